"""Packs a ROOT back into what its sources publish: the tree that `mirror.Mirror` serves.

    brought = stage(root, origin, own)
    with Mirror(origin, kaggle={"me": "key"}) as mirror:
        fetch(elsewhere, annotations=own / "annotations", own=brought, endpoints=mirror.endpoints)

Every route of `sources` is published. Image bytes are never touched. The same ROOT gives the same bytes, whatever the
order of its folders on disk.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path, PurePosixPath

from PIL import Image

from imaginet_hub.data.matching import kaggle_name
from imaginet_hub.data.sources import FFHQ_INDEX, FFHQ_LIST, SOURCES, source_of
from imaginet_hub.demo.containers import (
    Member,
    write_7z,
    write_indexed_tar,
    write_parquet,
    write_tgz,
    write_zip,
)

__all__ = [
    "DRIVE_IDS",
    "FFHQ_INDEX_ID",
    "GATED",
    "REPOSITORY",
    "Member",
    "drive_id",
    "stage",
    "write_7z",
    "write_indexed_tar",
    "write_parquet",
    "write_tgz",
    "write_zip",
]

#: Where annotations lie on GitHub: owner/repository/commit.
REPOSITORY = FFHQ_LIST.addresses[0].removeprefix("github:").rsplit("/", 2)[0]
#: Source -> id of its zip on Drive.
DRIVE_IDS = {
    source.key: archive.address.removeprefix("drive:")
    for source in SOURCES
    for route in source.routes
    for archive in route.archives
    if archive.address.startswith("drive:")
}
#: Drive id of ffhq-dataset-v2.json.
FFHQ_INDEX_ID = FFHQ_INDEX[0].removeprefix("drive:")

_CNNDETECTION = "hf/sywang/CNNDetection"
#: Datasets on the Hub that can be had once their terms were accepted.
GATED = ("ILSVRC/imagenet-1k", "JourneyDB/JourneyDB", "delyanboychev/imaginet")
_FFHQ = "hf/Iceclear/FFHQ-HQ1024"
_PACKED = "hf/delyanboychev/imaginet"
_JOURNEYDB = "hf/JourneyDB/JourneyDB"
_DANBOORU, _DANBOORU_INDEX = "hf/nyanko7/danbooru2023/original", "hf/deepghs/danbooru2023_index/original"
_KAGGLE_IMAGENET = "kaggle/competitions/imagenet-object-localization-challenge"
_HF_IMAGENET = "hf/ILSVRC/imagenet-1k/data"
_KAGGLE_WIKIART = "kaggle/datasets/steubk/wikiart"
#: ImageNet on the Hub has 100 rows in a group, and 294 and 14 files; a small corpus gets several of both too.
_ROWS, _SHARDS = 8, {"train": 3, "validation": 2}


def drive_id(name: str) -> str:
    """The made-up Drive id, 33 characters, of a file of FFHQ: `drive_id("<uuid>.png")`."""
    return "1" + base64.urlsafe_b64encode(hashlib.sha256(f"drive {name}".encode()).digest()).decode()[:32]


def stage(root: Path, origin: Path, own: Path, *, lists: Path | None = None, packed: bool = True) -> dict[str, Path]:
    """Fill `origin` with what the sources of the images in `root` publish, and `own` with what people bring.

    Everything that `root` holds is packed, also what no list names. Single files are hard links where the disk
    allows: replace a file of `origin`, never write into it, or `root` changes too.

    Args:
        root: images in upstream's layout; image files of any size and format, whatever their names say.
        origin: the folder that `Mirror` serves: `coco/`, `github/`, `drive/`, `hf/`, `kaggle/`.
        own: gets every top folder of `root` that belongs to no source, and `annotations/`: the lists,
            ffhq_filenames.txt beside them. Only upstream's own lists are taken from GitHub unasked, so made ones are
            given with --annotations.
        lists: the folder of annotation lists; `root/annotations` by default.
        packed: also write the authors' packed release, which holds every image of a source once more.

    Returns:
        top folder that belongs to no source -> the folder in `own`.
    """
    root, origin, own = Path(root), Path(origin), Path(own)
    for file in sorted((lists or root / "annotations").glob("*.txt")):
        _link(file, origin / "github" / REPOSITORY / "annotations" / file.name)
        _link(file, own / "annotations" / file.name)
    by_source: dict[str, dict[str, list[Path]]] = {}
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        if folder.name != "annotations":
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            by_source.setdefault(source_of(f"{folder.name}/x")[0], {})[folder.name] = files
    brought: dict[str, Path] = {}
    drive = origin / "drive"
    for source, folders in by_source.items():
        every = [file for files in folders.values() for file in files]
        match source:
            case "imagenet":
                _stage_imagenet(root / "imagenet", every, origin)
            case "coco":
                _stage_coco(root, origin / "coco", folders)
            case "cnndetection":
                _stage_cnndetection(root, origin / _CNNDETECTION, folders)
            case "ffhq":
                _link(_stage_ffhq(every, origin), own / "annotations" / "ffhq_filenames.txt")
            case "wikiart":  # as Info-ZIP leaves names on Linux: bytes of UTF-8, and no flag to say so
                write_zip(drive / DRIVE_IDS[source], _members(root, every, raw=True, unix=True, folders=True))
                _stage_kaggle(origin / _KAGGLE_WIKIART, _below(root / "wikiart", every))
            case "danbooru":
                members = _members(root, every, unix=True, folders=True)
                write_zip(drive / DRIVE_IDS[source], members, comment=b"backup")
                _stage_tars(origin, every)
            case "photozilla":  # the only one without its own folder in it
                write_zip(drive / DRIVE_IDS[source], _members(root / "photozilla", every), zip64=True)
            case "journeydb":
                members = (Member(f"000/{file.name}", file) for file in every)
                write_tgz(origin / _JOURNEYDB / "data" / "train" / "imgs" / "000.tgz", members)
            case "imaginet":
                write_zip(drive / DRIVE_IDS[source], _members(root, every, unix=True))
            case _:
                for file in every:
                    _link(file, own / file.relative_to(root))
                brought[source] = own / next(iter(folders))
    public = (folders for source, folders in by_source.items() if source not in brought)
    every = sorted(file for folders in public for files in folders.values() for file in files)
    if packed and every:
        _stage_packed(root, origin / _PACKED, every)
    return brought


def _below(base: Path, files: Iterable[Path]) -> dict[str, Path]:
    return {file.relative_to(base).as_posix(): file for file in files}


def _members(
    base: Path, files: Iterable[Path], *, raw: bool = False, unix: bool = False, folders: bool = False
) -> Iterator[Member]:
    """Members of every make: one in three deflated, one in four with a descriptor; by their place, so the same again.

    Args:
        base: what names are relative to.
        raw: names as raw bytes.
        unix: with Info-ZIP's extra fields.
        folders: with a member for each folder, before its first file.
    """
    return _made(((file.relative_to(base).as_posix(), file) for file in files), raw=raw, unix=unix, folders=folders)


def _made(
    files: Iterable[tuple[str, Path]], *, raw: bool = False, unix: bool = False, folders: bool = False
) -> Iterator[Member]:
    seen = set()
    for number, (name, file) in enumerate(files):
        if folders:
            for parent in reversed(PurePosixPath(name).parents[:-1]):
                if parent not in seen:
                    seen.add(parent)
                    yield Member(_named(f"{parent}/", raw), unix=unix)
        yield Member(_named(name, raw), file, number % 3 == 1, number % 4 == 2, unix)


def _named(name: str, raw: bool) -> str | bytes:
    return name.encode() if raw else name


def _stage_coco(root: Path, out: Path, folders: dict[str, list[Path]]) -> None:
    """Single files, and a zip for each folder."""
    for folder, files in folders.items():
        for file in files:
            _link(file, out / file.relative_to(root))
        write_zip(out / "zips" / f"{folder}.zip", _members(root, files, unix=True, folders=True))


def _stage_imagenet(base: Path, files: list[Path], origin: Path) -> None:
    """Kaggle's single files and archive, and the Hub's Parquet files, whose names of images end with a class."""
    named: dict[str, Path] = {}
    rows: dict[str, list[tuple[str, Path, int]]] = {split: [] for split in _SHARDS}
    for file in files:
        path = f"imagenet/{file.relative_to(base).as_posix()}"
        place = PurePosixPath(kaggle_name(path) or file.relative_to(base).as_posix())
        named[f"ILSVRC/Data/CLS-LOC/{place}"] = file
        known = re.match(r"n\d{8}(?=_)", place.name)
        # A validation image's name does not tell its class: made up.
        wnid = known[0] if known else f"n{_chance(place.name) % 10**8:08d}"
        row = f"{place.stem}_{wnid}{place.suffix}", file, _chance(wnid) % 1000
        rows["validation" if place.parts[0] == "val" else "train"].append(row)
    rows["train"].sort(key=lambda row: _chance(row[0]))  # there without order
    _stage_kaggle(origin / _KAGGLE_IMAGENET, named)
    for split, found in rows.items():
        shards = min(_SHARDS[split], len(found))
        for number in range(shards):
            shard = found[number * len(found) // shards : (number + 1) * len(found) // shards]
            name = f"{split}-{number:05d}-of-{shards:05d}.parquet"
            write_parquet(origin / _HF_IMAGENET / name, shard, rows_per_group=_ROWS)


def _chance(text: str) -> int:
    """A large number that follows from the text as if by chance."""
    return int(hashlib.sha256(text.encode()).hexdigest(), 16)


def _stage_kaggle(out: Path, files: dict[str, Path]) -> None:
    """Single files, and the archive of all."""
    for name, file in files.items():
        _link(file, out / "files" / name)
    write_zip(out / "archive.zip", _made(files.items()))


def _stage_cnndetection(root: Path, out: Path, folders: dict[str, list[Path]]) -> None:
    """progan_val.zip; progan_train.zip in seven volumes of a 7z archive that does not compress it."""
    _text(out / "README.md", "---\nlicense: cc-by-nc-sa-4.0\n---\n")
    if "progan_val" in folders:
        write_zip(out / "progan_val.zip", _members(root, folders["progan_val"]))
    if "progan_train" in folders:
        inner = out / "progan_train.zip"
        write_zip(inner, _members(root / "progan_train", folders["progan_train"]), zip64=True)
        write_7z(out / "progan_train.7z", [(inner.name, inner)], volume_bytes=inner.stat().st_size // 6)
        inner.unlink()


def _stage_tars(origin: Path, files: list[Path]) -> None:
    """A tar archive and its index for each remainder of the ids by 1000."""
    buckets: dict[int, list[Member]] = {}
    for file in files:
        if re.fullmatch("[0-9]+", file.stem):  # what has no id is not there
            buckets.setdefault(int(file.stem) % 1000, []).append(Member(file.name, file))
    for bucket, members in buckets.items():
        name = f"data-{bucket:04d}"
        write_indexed_tar(origin / _DANBOORU / f"{name}.tar", origin / _DANBOORU_INDEX / f"{name}.json", members)


def _stage_packed(root: Path, out: Path, files: list[Path]) -> None:
    """Every image under its name in ROOT, stored, in five volumes."""
    total = sum(file.stat().st_size for file in files)
    write_7z(out / "imaginet.7z", _below(root, files).items(), volume_bytes=total // 4 or 1, encoded_header=True)


def _stage_ffhq(files: list[Path], origin: Path) -> Path:
    """Single files under Drive ids, upstream's list of them (returned), zips by FFHQ's index, the index itself."""
    # FFHQ's own order has nothing to do with upstream's names.
    shuffled = sorted(files, key=lambda file: _chance(file.name))
    rows, index, halves = [], {}, ([], [])  # type: ignore[var-annotated]
    for number, file in enumerate(shuffled):
        data = file.read_bytes()
        with Image.open(BytesIO(data)) as image:
            width, height = image.size
            pixels = hashlib.md5(image.convert("RGB").tobytes(), usedforsecurity=False).hexdigest()
        file_id, name = drive_id(file.name), f"{number:05d}.png"
        _link(file, origin / "drive" / file_id)
        rows.append(f"{file_id},{file.name},{pixels}\n")
        halves[2 * number >= len(shuffled)].append(Member(name, file, number % 3 == 1, number % 4 == 2))
        index[str(number)] = _ffhq_entry(number, file_id, data, pixels, (width, height))
    listed = origin / "github" / REPOSITORY / "download_scripts" / "ffhq_filenames.txt"
    _text(listed, "".join(sorted(rows)))
    _text(origin / "drive" / FFHQ_INDEX_ID, json.dumps(index))
    for half, members in enumerate(halves, 1):
        write_zip(origin / _FFHQ / f"FFHQ-1024-{half}.zip", members, zip64=half == 2)
    return listed


def _ffhq_entry(number: int, file_id: str, data: bytes, pixels: str, size: tuple[int, int]) -> dict[str, object]:
    """An entry of ffhq-dataset-v2.json. Thumbnail and photograph are not there; only their ids are made up."""
    folder, name = f"{number // 1000 * 1000:05d}", f"{number:05d}.png"

    def file(top: str, url_id: str, data: bytes, pixels: str) -> dict[str, object]:
        return {
            "file_url": f"https://drive.google.com/uc?id={url_id}",
            "file_path": f"{top}/{folder}/{name}",
            "file_size": len(data),
            "file_md5": hashlib.md5(data, usedforsecurity=False).hexdigest(),
            "pixel_size": list(size),
            "pixel_md5": pixels,
        }

    absent = hashlib.md5(file_id.encode(), usedforsecurity=False).hexdigest()
    return {
        "category": "training" if number < 60000 else "validation",
        "metadata": {"photo_title": "a demo's image", "author": "", "license": "", "country": ""},
        "image": file("images1024x1024", file_id, data, pixels),
        "thumbnail": file("thumbnails128x128", drive_id(f"thumbnail {number}"), b"", absent),
        "in_the_wild": file("in-the-wild-images", drive_id(f"wild {number}"), b"", absent),
    }


def _link(file: Path, target: Path) -> None:
    """The same bytes under another name: a hard link, or a copy on another disk."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    with suppress(OSError):
        os.link(file.resolve(), target)
        return
    shutil.copyfile(file, target)


def _text(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    file.write_text(text, encoding="utf-8")
