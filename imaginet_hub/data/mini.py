"""The embedded default: a small corpus made on the spot, laid out exactly as ImagiNet is.

Real images are crops of photographs that scikit-learn, matplotlib and scikit-image carry inside their packages.
Synthetic images are the same crops put through `mini_recipes.simulate`. They are simulations for trying the software,
not images by the generators whose folders they lie in, and a figure measured on them says nothing about those.

Why a detector has to look at the traces, and at nothing else:

* Every synthetic image has a real partner, cut from the same place with the same tones and grain: content, size,
  colour and file name (folder aside) agree between the two sides, pair by pair.
* Every file is a PNG without compression or metadata: its size in bytes is a function of its width and height.
* Black and white points leave headroom, so that no trace is clipped into a shift of the mean.
* Paintings are photographs put through the same painterly filter on both sides, before any simulated generator. Gray
  photographs are gray on both sides.
* Training and test photographs are different photographs.

The corpus is the same, byte for byte, everywhere: photographs are pinned by their decoded pixels, arithmetic is on
integers, chance comes from SHA-256 and raw PCG64 output, and the digest of the whole is checked before it is handed
over.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import struct
import uuid
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imaginet_hub.data.manifest import Manifest
from imaginet_hub.data.mini_recipes import develop, paint, resample, simulate
from imaginet_hub.data.sources import MINI_SOURCE
from imaginet_hub.errors import BuildError, DataNotFoundError, ImageError, UsageError, require
from imaginet_hub.labels import ContentType, Generator, Origin

__all__ = [
    "LICENSE",
    "MINI_DIGEST",
    "MINI_VERSION",
    "PHOTOGRAPHS",
    "Photograph",
    "is_mini",
    "labelled",
    "make_mini",
    "mini_splits",
]

#: Changes whenever a byte of the corpus does.
MINI_VERSION = "1"
#: SHA-256 over the sorted lines "<sha256 of the file>  <path>\n" of every file but the marker.
MINI_DIGEST = "3ba7169b78647c1404d77691f6b91b710f33eb58c981bfca0f975104726a7d9c"

_MARKER = "mini.json"
#: The `license` column of its rows.
LICENSE = "as the photographs (see README.txt of the corpus)"
#: Height, width.
_SIZES = ((128, 128), (128, 160), (160, 128), (160, 160), (128, 192), (192, 128), (192, 160), (160, 256), (144, 208))
_CALIBRATION_PAIRS = 48


@dataclass(frozen=True)
class Photograph:
    """A photograph inside an installed package.

    Attributes:
        file: its path inside the package's folder.
        pixels: SHA-256 of its decoded RGB bytes, row by row.
        scales: the reductions at which it is cut. JPEGs are never cut at 1, and no ratio maps their 8-pixel grid
            onto a period that a simulated generator leaves.
        face: left, top, right, bottom of the part that shows a head, at full size.
    """

    package: str
    file: str
    pixels: str
    licence: str
    credit: str
    scales: tuple[Fraction, ...]
    face: tuple[int, int, int, int] | None = None


_FULL, _11_13, _7_10, _7_12 = Fraction(1), Fraction(11, 13), Fraction(7, 10), Fraction(7, 12)
_SHARP = (_FULL, _11_13, _7_10)
_JPEG = (_11_13, _7_10, _7_12)

PHOTOGRAPHS: Mapping[str, Photograph] = {
    "astronaut": Photograph(
        "skimage",
        "data/astronaut.png",
        "a8c429c18afa7b0fd5673e598d73a21225d94c864a71bbb3885126fdecb41071",
        "public domain",
        "NASA: Eileen Collins",
        _SHARP,
        face=(90, 0, 370, 290),
    ),
    "brick": Photograph(
        "skimage",
        "data/brick.png",
        "3501e216fb0968c378803347d3a13e3cc04021eaecc44b64c6528088c7ea0f64",
        "CC0-1.0",
        "CC0Textures: Bricks25",
        _SHARP,
    ),
    "camera": Photograph(
        "skimage",
        "data/camera.png",
        "13e2b4aa92cb1649b4aac5a4d48b38a8ea3a18b86e8abdf5a4871abf24c9d038",
        "CC0-1.0",
        "Lav Varshney",
        _SHARP,
    ),
    "chelsea": Photograph(
        "skimage",
        "data/chelsea.png",
        "416b729128bfb2c3d1eb69bf9b1734a796293abc17939267b2dc94f8a5784031",
        "CC0-1.0",
        "Stefan van der Walt: the cat Chelsea",
        _SHARP,
        face=(60, 0, 451, 300),
    ),
    "china": Photograph(
        "sklearn",
        "datasets/images/china.jpg",
        "e701459344fd69797154c91add3bb5d70e5ed1a61d8bed889bab3a796104698d",
        "CC-BY-2.0",
        "danielbuechele, https://www.flickr.com/photos/danielbuechele/6061409035/",
        _JPEG,
    ),
    "coffee": Photograph(
        "skimage",
        "data/coffee.png",
        "0ce2b51640b9c95f19617f03eabf40c3f0368589cc1ee1190b70966165ac184f",
        "CC0-1.0",
        "Rachel Michetti",
        _SHARP,
    ),
    "flower": Photograph(
        "sklearn",
        "datasets/images/flower.jpg",
        "3202904ed246795bf616c66d7859cd7c6080eff736c6e38dc5cc62779742033f",
        "CC-BY-2.0",
        "vultilion, https://www.flickr.com/photos/vultilion/6056698931/",
        _JPEG,
    ),
    "grace_hopper": Photograph(
        "matplotlib",
        "mpl-data/sample_data/grace_hopper.jpg",
        "f7f982de68dd296af67ee51b2a95a2e5658f7bf064c6536520b66bae8d01fc34",
        "public domain",
        "U.S. Navy: Grace Hopper",
        _JPEG,
        face=(110, 10, 420, 340),
    ),
    "grass": Photograph(
        "skimage",
        "data/grass.png",
        "c7ca5c984d6b5a2787506e70a42bcac22b164b00e8e1cf9e06cf76b8110c5734",
        "CC0-1.0",
        "linolafett, DeviantArt: Grass 01",
        _SHARP,
    ),
    "gravel": Photograph(
        "skimage",
        "data/gravel.png",
        "e73bd88250cbfd7f96f232357ecad0d2302252483457337f5cf79d2c5b82227a",
        "CC0-1.0",
        "CC0Textures: Gravel04",
        _SHARP,
    ),
    "hubble": Photograph(
        "skimage",
        "data/hubble_deep_field.jpg",
        "9a3ea9548188f81e63435188456e74de45a981ebeb791e265abe79a26d3b528b",
        "public domain",
        "NASA: Hubble eXtreme Deep Field",
        _JPEG,
    ),
    "ihc": Photograph(
        "skimage",
        "data/ihc.png",
        "c5b3ef509a92f16d4c29be8cf0300fe75d53e13a3ce650159db932caea8dcc1b",
        "no known copyright restrictions",
        "Center for Microscopy and Molecular Imaging: colonic glands",
        _SHARP,
    ),
    "retina": Photograph(
        "skimage",
        "data/retina.jpg",
        "3670e389d0dae9f755cc1bb7e4da4c3d2cdf10eba2dc3060836d8d4b8024d860",
        "CC0-1.0",
        "Mikael Häggström: fundus of a left eye",
        (_7_12, Fraction(5, 13), Fraction(3, 7)),
    ),
    "rocket": Photograph(
        "skimage",
        "data/rocket.jpg",
        "3d4435cc745752b7f9724df88c6e18817de3ce7e3d2d71c55f85f7831e68f197",
        "public domain",
        "SpaceX: Falcon 9 with DSCOVR",
        _JPEG,
    ),
}


@dataclass(frozen=True)
class _Cell:
    """One line of the paper's Table 2, scaled down: pairs of an image in a real and one in a synthetic folder.

    Attributes:
        real, synthetic: folders; {split} stands for train or val, {kind} for a photograph's class or style.
        kinds: for each split its photographs, each with its {kind}.
        train, test: how many pairs.
        brush: radius of the painterly filter; 0 leaves a photograph.
    """

    content: ContentType
    generator: Generator
    real: str
    synthetic: str
    kinds: Mapping[str, Mapping[str, str]]
    train: int
    test: int
    brush: int = 0


_SCENES = {
    "train": dict.fromkeys(("china", "coffee", "chelsea", "astronaut", "brick"), ""),
    "test": dict.fromkeys(("flower", "rocket", "camera"), ""),
}
_OBJECTS = {
    "train": {"chelsea": "cat", "coffee": "diningtable", "astronaut": "person"},
    "test": {"flower": "pottedplant", "grace_hopper": "person"},
}
_MODELS = {
    "train": dict.fromkeys(("china", "coffee", "chelsea", "astronaut"), "Impressionism"),
    "test": dict.fromkeys(("flower", "rocket", "grace_hopper"), "Impressionism"),
}
_HEADS = {"train": {"astronaut": "", "chelsea": ""}, "test": {"grace_hopper": ""}}
_STYLES = {
    "train": {
        "hubble": "other_dataset/longexposure",
        "retina": "dataset/nature",
        "ihc": "dataset/nature",
        "grass": "dataset/nature",
        "brick": "dataset/architecture",
    },
    "test": {
        "rocket": "other_dataset/longexposure",
        "flower": "dataset/nature",
        "gravel": "dataset/nature",
        "camera": "dataset/street",
    },
}

_PHOTOS, _PAINTINGS, _FACES, _UNCATEGORIZED = ContentType
_IMAGENET = "imagenet/ILSVRC/Data/CLS-LOC/{split}"
_LSUN, _PROGAN = "progan_{split}/{kind}/0_real", "progan_{split}/{kind}/1_fake"
_CELLS = (
    _Cell(_PHOTOS, Generator.STYLEGAN_XL, _IMAGENET, "imagenet_stylegan", _SCENES, 72, 18),
    _Cell(_PHOTOS, Generator.PROGAN, _LSUN, _PROGAN, _OBJECTS, 72, 18),
    _Cell(_PHOTOS, Generator.SD_2_1, "{split}2017", "sd_photos_fake", _SCENES, 72, 18),
    _Cell(_PHOTOS, Generator.SDXL_1_0, "{split}2017", "sdxl_photos_fake", _SCENES, 72, 18),
    _Cell(_PAINTINGS, Generator.STYLEGAN3, "wikiart/{kind}", "wikiart_stylegan", _MODELS, 108, 27, brush=2),
    _Cell(_PAINTINGS, Generator.SD_2_1, "danbooru2021", "sd_paintings_fake", _MODELS, 27, 7, brush=3),
    _Cell(_PAINTINGS, Generator.SDXL_1_0, "danbooru2021", "sdxl_paintings_fake", _MODELS, 27, 7, brush=3),
    _Cell(_PAINTINGS, Generator.ANIMAGINE_XL, "danbooru2021", "animaginexl_paintings_fake", _MODELS, 54, 13, brush=3),
    _Cell(_FACES, Generator.STYLEGAN_XL, "ffhq", "ffhq_stylegan", _HEADS, 108, 27),
    _Cell(_FACES, Generator.SD_2_1, "ffhq", "sd_faces_fake", _HEADS, 54, 13),
    _Cell(_FACES, Generator.SDXL_1_0, "ffhq", "sdxl_faces_fake", _HEADS, 54, 14),
    _Cell(_UNCATEGORIZED, Generator.MIDJOURNEY, "photozilla/{kind}", "journeydb", _STYLES, 120, 30),
    _Cell(_UNCATEGORIZED, Generator.DALLE3, "photozilla/{kind}", "dalle3", _STYLES, 120, 30),
)

#: The family id of every generator id (as in upstream's lists).
_FAMILY_IDS = (0, 0, 0, 1, 1, 1, 2, 3, 4)


@dataclass(frozen=True)
class _Pair:
    """A real image and the synthetic one made of it; `number` names both files."""

    number: int
    split: str
    cell: _Cell
    photograph: str

    def path(self, folder: str) -> str:
        split = "train" if self.split == "train" else "val"
        kind = self.cell.kinds[self.split][self.photograph]
        return f"{folder.format(split=split, kind=kind)}/{self.number:08d}.png"

    @property
    def rows(self) -> tuple[tuple[str, Generator], tuple[str, Generator]]:
        """Path and generator of the real and of the synthetic image."""
        return (self.path(self.cell.real), Generator.REAL), (self.path(self.cell.synthetic), self.cell.generator)


def make_mini(root: str | os.PathLike[str], *, progress: bool = True) -> Path:
    """Fill a folder with the mini corpus: a ROOT in upstream's layout, with `annotations/` in upstream's txt format.

    2,400 PNG images of 128 to 256 pixels a side (about 190 MB): half real, half simulated, 80 % for training. The
    folder is made beside its final place and renamed when it is complete and verified.

    Args:
        root: the folder to make. One that already holds this version of the corpus is returned as it is.
        progress: show a bar (HF_DATASETS_DISABLE_PROGRESS_BARS=1 hides it too).

    Returns:
        `root` as a path.

    Raises:
        UsageError: `root` holds something else; nothing in it is touched.
        MissingExtraError: a package that carries the photographs is not installed.
        DataNotFoundError: an installed package lacks its photograph.
        ImageError: a photograph's decoded pixels are not the pinned ones.
        BuildError: the finished corpus is not the pinned one.
    """
    root = Path(root)
    if _is_complete(root):
        return root
    require("demo", *sorted({photograph.package for photograph in PHOTOGRAPHS.values()}))
    for name in PHOTOGRAPHS:
        _pixels(name)
    root.parent.mkdir(parents=True, exist_ok=True)
    staging = root.parent / f".{root.name}-{uuid.uuid4().hex}"
    staging.mkdir()
    try:
        digest = _fill(staging, progress)
        if digest != MINI_DIGEST:
            raise BuildError(
                f"the mini corpus came out different: expected digest {MINI_DIGEST}, got {digest}; the photographs "
                f"are the pinned ones, so numpy {np.__version__} computes otherwise: install another release of numpy"
            )
        (staging / _MARKER).write_text(json.dumps(_marker()), encoding="utf-8")
        _move(staging, root)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return root


def is_mini(root: str | os.PathLike[str]) -> bool:
    """Whether a folder is a mini corpus, of whatever version."""
    try:
        marker = json.loads((Path(root) / _MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(marker, dict) and marker.keys() == _marker().keys()


def labelled(root: str | os.PathLike[str], manifest: Manifest) -> Manifest:
    """What lists say of a ROOT, with source and licence put right if it is a mini corpus.

    Its folders are named like ImagiNet's; what is in them is not.
    """
    if not is_mini(root):
        return manifest
    return replace(manifest, records=tuple(replace(r, source=MINI_SOURCE, license=LICENSE) for r in manifest.records))


def mini_splits() -> dict[str, int]:
    """How many images each split of the corpus has; it need not be there."""
    return {split: 2 * pairs for split, pairs in Counter(pair.split for pair in _pairs()).items()}


def _pairs() -> Iterator[_Pair]:
    number = 0
    for split in ("train", "test"):
        for cell in _CELLS:
            names = tuple(cell.kinds[split])
            for i in range(cell.train if split == "train" else cell.test):
                number += 1
                yield _Pair(number, split, cell, names[i % len(names)])


def _fill(folder: Path, progress: bool) -> str:
    """Write every file of the corpus but the marker; the digest of what was written."""
    from datasets.utils import tqdm

    pairs = list(_pairs())
    prints: dict[tuple[str, Fraction, int], NDArray[np.uint8]] = {}
    lines: dict[str, list[tuple[int, str]]] = {"train": [], "test": []}
    digests: dict[str, str] = {}

    def write(path: str, data: bytes) -> None:
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        digests[path] = hashlib.sha256(data).hexdigest()

    for pair in tqdm(pairs, desc="Making the mini corpus", unit=" pairs", disable=not progress):
        real = _cut(pair, prints)
        for path, generator in pair.rows:
            write(path, _png(real if generator is Generator.REAL else simulate(real, generator)))
            lines[pair.split].append((pair.number, _row(path, pair.cell.content, generator)))
    chosen = _calibration(pairs)
    for name, rows in (
        ("train_annotations", lines["train"]),
        ("test_annotations", lines["test"]),
        ("calibration", [row for row in lines["train"] if row[0] in chosen]),
    ):
        write(f"annotations/{name}.txt", "".join(sorted(f"./{line}\n" for _, line in rows)).encode())
    write("README.txt", _readme().encode())
    listing = "".join(f"{digests[path]}  {path}\n" for path in sorted(digests))
    return hashlib.sha256(listing.encode()).hexdigest()


def _row(path: str, content: ContentType, generator: Generator) -> str:
    """`path,origin,content,model,specific` in upstream's integers, which are the places in labels.py's enums."""
    specific = list(Generator).index(generator)
    origin = list(Origin).index(Origin.REAL if generator is Generator.REAL else Origin.SYNTHETIC)
    return f"{path},{origin},{list(ContentType).index(content)},{_FAMILY_IDS[specific]},{specific}"


def _calibration(pairs: Iterable[_Pair]) -> set[int]:
    """The training pairs of the calibration list: equally many of every generator, drawn by lot."""
    lots: dict[Generator, list[tuple[bytes, int]]] = {}
    for pair in pairs:
        if pair.split == "train":
            lot = hashlib.sha256(f"calibration {pair.number}".encode()).digest()
            lots.setdefault(pair.cell.generator, []).append((lot, pair.number))
    return {number for lot in lots.values() for _, number in sorted(lot)[:_CALIBRATION_PAIRS]}


def _dice(key: str) -> Iterator[int]:
    """Endless whole numbers below 2**64, fixed by the key."""
    i = 0
    while True:
        yield int.from_bytes(hashlib.sha256(f"{key} {i}".encode()).digest()[:8], "big")
        i += 1


def _cut(pair: _Pair, prints: dict[tuple[str, Fraction, int], NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """The real image of a pair: of four random places, the one with most texture; mirrored half of the time."""
    dice = _dice(f"mini {MINI_VERSION} {pair.number}")
    photograph = PHOTOGRAPHS[pair.photograph]
    scale = photograph.scales[next(dice) % len(photograph.scales)]
    key = (pair.photograph, scale, pair.cell.brush)
    if key not in prints:
        prints[key] = _print(*key)
    whole = prints[key]
    if pair.cell.content is _FACES and photograph.face:
        left, top, right, bottom = (int(edge * scale) for edge in photograph.face)
        whole = whole[top:bottom, left:right]
    fitting = [(h, w) for h, w in _SIZES if h <= whole.shape[0] and w <= whole.shape[1]]
    height, width = fitting[next(dice) % len(fitting)]
    places = []
    for _ in range(4):
        y, x = next(dice) % (whole.shape[0] - height + 1), next(dice) % (whole.shape[1] - width + 1)
        places.append(whole[y : y + height, x : x + width])
    best = max(places, key=_texture)
    black, white, grain = 16 + next(dice) % 48, 172 + next(dice) % 68, 1 + next(dice) % 3
    return develop(best[:, ::-1] if next(dice) % 2 else best, black, white, grain, seed=pair.number)


def _texture(image: NDArray[np.uint8]) -> int:
    green = image[..., 1].astype(np.int32)
    return int(np.abs(np.diff(green, axis=0)).sum() + np.abs(np.diff(green, axis=1)).sum())


def _print(name: str, scale: Fraction, brush: int) -> NDArray[np.uint8]:
    """A photograph as it is cut: range drawn in, reduced, and painted over where the brush is not 0."""
    picture = _pixels(name) if scale == 1 else resample(_pixels(name), scale)
    return paint(picture, brush) if brush else picture


def _pixels(name: str) -> NDArray[np.uint8]:
    """Decode a photograph where its package is installed (the package itself is not imported), and verify it."""
    photograph = PHOTOGRAPHS[name]
    spec = importlib.util.find_spec(photograph.package)
    folder = Path(spec.origin).parent if spec and spec.origin else Path(photograph.package)
    file = folder / photograph.file
    if not file.is_file():
        raise DataNotFoundError(
            f"expected the photograph {name!r} at {file}, where wheels of {photograph.package} carry it; got no such "
            f'file: reinstall the package from its wheel: pip install --force-reinstall "imaginet_hub[demo]"'
        )
    with Image.open(file) as opened:
        pixels = np.asarray(opened.convert("RGB"))
    got = hashlib.sha256(pixels.tobytes()).hexdigest()
    if got != photograph.pixels:
        raise ImageError(
            "checksum",
            f"the photograph {name!r} ({file}) decodes to other pixels than the mini corpus is pinned to: expected "
            f"SHA-256 {photograph.pixels}, got {got}; the package changed the file or Pillow's JPEG library decodes "
            f'otherwise: reinstall both from wheels: pip install --force-reinstall pillow "imaginet_hub[demo]"',
        )
    return pixels


def _png(image: NDArray[np.uint8]) -> bytes:
    """An RGB PNG in stored deflate blocks: no compressor, hence the same bytes whatever zlib is installed.

    PNG specification (3rd edition), section 11.2; RFC 1950, section 2.2; RFC 1951, section 3.2.4.
    """
    height, width, _ = image.shape
    rows = np.zeros((height, 1 + 3 * width), dtype=np.uint8)  # column 0: filter type 0 (none)
    rows[:, 1:] = image.reshape(height, 3 * width)
    raw = rows.tobytes()
    stream = bytearray(b"\x78\x01")
    for start in range(0, len(raw), 0xFFFF):
        block = raw[start : start + 0xFFFF]
        stream += struct.pack("<BHH", start + 0xFFFF >= len(raw), len(block), 0xFFFF - len(block)) + block
    stream += struct.pack(">I", zlib.adler32(raw))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", bytes(stream)) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _is_complete(root: Path) -> bool:
    """Whether `root` holds this version of the corpus; False where it is absent or empty.

    Raises:
        UsageError: it holds anything else.
    """
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        marker = json.loads((root / _MARKER).read_text(encoding="utf-8"))
        listed = [
            line.split(",", 1)[0]
            for name in ("train", "test")
            for line in (root / "annotations" / f"{name}_annotations.txt").read_text(encoding="utf-8").splitlines()
        ]
    except (OSError, ValueError):
        marker, listed = None, []
    if marker == _marker() and all((root / path).is_file() for path in listed):
        return True
    raise UsageError(
        f"expected {root} to be absent, empty or version {MINI_VERSION} of the mini corpus, complete; it holds "
        f"something else (or an incomplete one), which is left as it is: give another folder, or remove this one"
    )


def _marker() -> dict[str, str]:
    return {"version": MINI_VERSION, "sha256": MINI_DIGEST}


def _move(staging: Path, root: Path) -> None:
    """Rename the finished folder into place; a finished one that another process put there meanwhile is as good."""
    try:
        if root.exists():
            root.rmdir()
        staging.rename(root)
    except OSError:
        if not _is_complete(root):
            raise


def _readme() -> str:
    photographs = "\n".join(
        f"  {name:<13} {photo.package}/{photo.file}\n{'':<16}{photo.credit} ({photo.licence})"
        for name, photo in PHOTOGRAPHS.items()
    )
    return f"""The mini corpus of imaginet_hub, version {MINI_VERSION}

THESE ARE SIMULATIONS FOR TRYING THE SOFTWARE. No image here was made by ProGAN, StyleGAN-XL, StyleGAN3, Stable
Diffusion, Animagine XL, Midjourney or DALL-E 3, and none comes from ImageNet, LSUN, COCO, WikiArt, Danbooru, FFHQ or
Photozilla: the folders bear those names because ImagiNet's do. What a detector scores on it says nothing about
images by those generators.

Real images are crops of the photographs below (some reduced or mirrored, toned, with a little grain). Paintings are
photographs put through a painterly filter, on the real and the synthetic side alike. "faces" holds two people and a
cat. Synthetic images are the same crops put through simulated decoders; the module imaginet_hub.data.mini_recipes
lists them with the trace that each leaves. A synthetic image has the file name of the real image that it was made of.
Training and test photographs are different ones.

annotations/*.txt: path,origin,content,model,specific_model, in ImagiNet's integers.

Photographs, from the packages that carry them:
{photographs}
"""
