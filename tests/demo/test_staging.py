"""What staging packs, as zipfile, tarfile, py7zr, pyarrow, unzip, numpy and a range-reading client see it."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import struct
import subprocess
import tarfile
import urllib.request
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from imaginet_hub.data.sources import SOURCES
from imaginet_hub.demo.mirror import Mirror
from imaginet_hub.demo.staging import DRIVE_IDS, FFHQ_INDEX_ID, REPOSITORY, drive_id, stage
from tests.conftest import image_bytes

UUID = "{:08x}-81cc-4eef-a89f-0cb9f211fa6f"
SPANISH = "wikiart/Impressionism/joaqu\u00e3\u00adn-sorolla_inquisitive-child-1916.jpg"
PATHS = (
    *(f"imagenet/ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_{n:08d}.JPEG" for n in range(3)),
    *(f"imagenet/ILSVRC/Data/CLS-LOC/train/n0144076{n % 2}/n0144076{n % 2}_{n}.JPEG" for n in range(30)),
    "imagenet/ILSVRC/Data/CLS-LOC/val/00000012.png",
    *(f"{folder}/{n:012d}.jpg" for folder in ("train2017", "val2017") for n in range(139, 146)),
    *(
        f"progan_{split}/cat/{label}/{n:05d}.png"
        for split in ("train", "val")
        for label in ("0_real", "1_fake")
        for n in (1, 2)
    ),
    *(f"ffhq/{UUID.format(n)}.png" for n in range(9)),
    SPANISH,
    "wikiart/Baroque/rembrandt_it's-a-title-(1).jpg",
    *(f"wikiart/Baroque/painter_{n}.jpg" for n in range(4)),
    *(f"danbooru2021/{n}.jpg" for n in (*range(7339, 7345), 1007339, 12)),
    "danbooru2021/nameless.jpg",
    *(f"photozilla/dataset/nature/{n}.jpg" for n in range(4)),
    "photozilla/other_dataset/portrait/0.jpg",
    *(f"journeydb/{UUID.format(n)}.jpg" for n in range(20, 24)),
    *(
        f"{folder}/{UUID.format(n)}.png"
        for folder in ("dalle3", "dalle3_addition2", "sd_faces_fake")
        for n in (31, 32)
    ),
    "wikiart_stylegan/seed3.png",
    "mine/other/picture.png",
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ROOT of small PNG images under all manner of names."""
    folder = tmp_path_factory.mktemp("made") / "root"
    for number, path in enumerate(PATHS):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(image_bytes(number, (24, 17)))
    (folder / "annotations").mkdir()
    (folder / "annotations" / "test_annotations.txt").write_text("".join(f"./{path},0,0,4,8\n" for path in PATHS))
    (folder / "README.txt").write_text("not an image")
    (folder / ".hidden").mkdir()
    return folder


@pytest.fixture(scope="module")
def staged(root: Path) -> tuple[Path, dict[str, Path]]:
    """The origin, and what people bring themselves."""
    return root.parent / "origin", stage(root, root.parent / "origin", root.parent / "own")


def contents(archive: Path | io.IOBase) -> dict[str, bytes]:
    """Every file in a zip archive, with the CRC checked."""
    with zipfile.ZipFile(archive) as opened:
        return {info.filename: opened.read(info) for info in opened.infolist() if not info.is_dir()}


def of_root(root: Path, below: str, *, strip: str = "") -> dict[str, bytes]:
    return {path.removeprefix(strip): (root / path).read_bytes() for path in PATHS if path.startswith(below)}


def test_the_mirror_has_the_addresses_of_the_sources() -> None:
    assert REPOSITORY == "delyan-boychev/imaginet/d87b53a03466a68f5e1910d75c7909b8ba596f99"
    assert FFHQ_INDEX_ID == "16N0RV4fHI6joBuKbQAoG34V_cQk7vxSA"
    assert DRIVE_IDS == {
        "wikiart": "1vTChp3nU5GQeLkPwotrybpUGUXj12BTK",
        "danbooru": "1p0EM6IUAdBhFfdGoLpo0ewhLPXEkA86a",
        "photozilla": "1WkY6rcXMnir8nk4obejVq64h_WrtydVg",
        "imaginet": "1uUAoVUcAlUX9ltOXBlf3pKDz3rCKoytk",
    }


def unpacked(first: Path) -> dict[str, bytes]:
    """Every file in a 7z archive in volumes, by py7zr."""
    py7zr = pytest.importorskip("py7zr")
    volumes = sorted(first.parent.glob(f"{first.name.removesuffix('.001')}.0*"))
    factory = py7zr.io.BytesIOFactory(1 << 30)
    with py7zr.SevenZipFile(io.BytesIO(b"".join(file.read_bytes() for file in volumes))) as archive:
        archive.extractall(factory=factory)
    return {name: data.read() for name, data in factory.products.items()}


def untarred(archive: Path) -> dict[str, bytes]:
    with tarfile.open(archive) as opened:
        return {member.name: opened.extractfile(member).read() for member in opened}  # type: ignore[union-attr]


def test_every_image_is_published(root: Path, staged: tuple[Path, dict[str, Path]]) -> None:
    """By the first route of each source; only what is no source's has to be brought."""
    origin, own = staged
    kaggle = origin / "kaggle/competitions/imagenet-object-localization-challenge"
    packed = [
        *contents(kaggle / "archive.zip").values(),
        *contents(origin / "coco/zips/train2017.zip").values(),
        *contents(origin / "coco/zips/val2017.zip").values(),
        *(file.read_bytes() for file in (origin / "drive").iterdir() if file.read_bytes().startswith(b"\x89PNG")),
        *(data for key in DRIVE_IDS.values() for data in contents(origin / "drive" / key).values()),
        *contents(origin / "hf/sywang/CNNDetection/progan_val.zip").values(),
        *contents(io.BytesIO(progan_train(origin))).values(),
        *untarred(origin / "hf/JourneyDB/JourneyDB/data/train/imgs/000.tgz").values(),
        *(file.read_bytes() for file in own["mine"].rglob("*") if file.is_file()),
    ]
    assert set(own) == {"mine"} and sorted(path.name for path in own["mine"].parent.iterdir()) == [
        "annotations",
        "mine",
    ]
    assert sorted(packed) == sorted((root / path).read_bytes() for path in PATHS)


def progan_train(origin: Path) -> bytes:
    found = unpacked(origin / "hf/sywang/CNNDetection/progan_train.7z.001")
    assert list(found) == ["progan_train.zip"]
    return found["progan_train.zip"]


def test_every_address_of_the_sources_is_there(staged: tuple[Path, dict[str, Path]]) -> None:
    origin = staged[0]
    for route in (route for source in SOURCES for route in source.routes):
        for address in (route.address, *(a for archive in route.archives for a in (archive.address, archive.index))):
            host, _, where = (address or "").partition(":")
            if host == "kaggle":
                parts = where.split("/")
                slug = 2 if parts[0] == "competitions" else 3
                base = origin / host / Path(*parts[:slug])
                assert (base / "archive.zip").is_file() and (base / "files" / Path(*parts[slug:])).is_dir()
            elif host:
                assert (origin / host / where.lstrip("/")).exists(), address


def test_the_same_root_gives_the_same_bytes(root: Path, staged: tuple[Path, dict[str, Path]], tmp_path: Path) -> None:
    def digests(folder: Path) -> dict[str, str]:
        files = [file for file in folder.rglob("*") if file.is_file()]
        return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}

    before = digests(root)
    stage(root, tmp_path / "origin", tmp_path / "own", lists=root / "annotations")
    assert digests(tmp_path / "origin") == digests(staged[0])
    assert digests(tmp_path / "own") == digests(root.parent / "own")
    stage(root, tmp_path / "origin", tmp_path / "own")  # over what is there
    assert digests(tmp_path / "origin") == digests(staged[0]) and digests(root) == before


def test_lists_lie_where_upstream_has_them(root: Path, staged: tuple[Path, dict[str, Path]]) -> None:
    owner, repository, commit = REPOSITORY.split("/")
    file = staged[0] / "github" / owner / repository / commit / "annotations" / "test_annotations.txt"
    mine = root.parent / "own" / "annotations"
    assert re.fullmatch("[0-9a-f]{40}", commit)
    assert (mine / file.name).read_bytes() == file.read_bytes()
    faces = file.parents[1] / "download_scripts" / "ffhq_filenames.txt"
    assert (mine / faces.name).read_bytes() == faces.read_bytes()
    assert file.read_bytes() == (root / "annotations" / "test_annotations.txt").read_bytes()


def test_coco(root: Path, staged: tuple[Path, dict[str, Path]]) -> None:
    for folder in ("train2017", "val2017"):
        expected = of_root(root, folder)
        assert contents(staged[0] / "coco" / "zips" / f"{folder}.zip") == expected
        single = {f"{folder}/{file.name}": file for file in (staged[0] / "coco" / folder).iterdir()}
        assert {name: file.read_bytes() for name, file in single.items()} == expected
        assert (root / folder / "000000000139.jpg").samefile(single[f"{folder}/000000000139.jpg"])


def test_ffhq(root: Path, staged: tuple[Path, dict[str, Path]]) -> None:
    origin, faces = staged[0], of_root(root, "ffhq/", strip="ffhq/")
    listed = (origin / "github" / REPOSITORY / "download_scripts" / "ffhq_filenames.txt").read_text().splitlines()
    index = json.loads((origin / "drive" / FFHQ_INDEX_ID).read_text())
    zips = [contents(origin / f"hf/Iceclear/FFHQ-HQ1024/FFHQ-1024-{half}.zip") for half in (1, 2)]
    assert len(listed) == len(index) == 9 and not zips[0].keys() & zips[1].keys() and min(map(len, zips)) >= 4
    by_id = {
        entry["image"]["file_url"].removeprefix("https://drive.google.com/uc?id="): entry for entry in index.values()
    }
    for line in listed:
        file_id, name, md5 = line.split(",")
        data = faces.pop(name)
        pixels = hashlib.md5(np.array(Image.open(io.BytesIO(data)).convert("RGB")).tobytes()).hexdigest()
        assert len(file_id) == 33 and file_id == drive_id(name) and md5 == pixels
        assert (origin / "drive" / file_id).read_bytes() == data
        image = by_id[file_id]["image"]
        assert (image["file_size"], image["pixel_md5"]) == (len(data), pixels)
        assert (image["file_md5"], image["pixel_size"]) == (hashlib.md5(data).hexdigest(), [24, 17])
        assert re.fullmatch(r"images1024x1024/00000/0000\d\.png", image["file_path"])
        assert (zips[0] | zips[1])[image["file_path"].split("/")[-1]] == data
    assert not faces
    sections = {"category", "metadata", "image", "thumbnail", "in_the_wild"}
    assert {frozenset(entry) for entry in index.values()} == {frozenset(sections)}


def test_wikiart_does_not_flag_its_names(root: Path, staged: tuple[Path, dict[str, Path]]) -> None:
    file = staged[0] / "drive" / DRIVE_IDS["wikiart"]
    found = contents(file)
    assert SPANISH not in found
    assert {name.encode("cp437").decode(): data for name, data in found.items()} == of_root(root, "wikiart/")
    with zipfile.ZipFile(file) as archive:
        assert not [info for info in archive.infolist() if info.flag_bits & 0x800]
        assert [info.filename for info in archive.infolist() if info.is_dir()] == [
            "wikiart/",
            "wikiart/Baroque/",
            "wikiart/Impressionism/",
        ]


def test_the_other_zips(root: Path, staged: tuple[Path, dict[str, Path]]) -> None:
    origin, _ = staged
    drive = origin / "drive"
    assert contents(drive / DRIVE_IDS["danbooru"]) == of_root(root, "danbooru2021/")
    assert contents(drive / DRIVE_IDS["photozilla"]) == of_root(root, "photozilla/", strip="photozilla/")
    synthetic = contents(drive / DRIVE_IDS["imaginet"])
    assert synthetic == of_root(root, "dalle3") | of_root(root, "sd_faces_fake/") | of_root(root, "wikiart_stylegan/")
    assert contents(origin / "hf/sywang/CNNDetection/progan_val.zip") == of_root(root, "progan_val/")


def test_what_people_bring(root: Path, staged: tuple[Path, dict[str, Path]]) -> None:
    assert (staged[1]["mine"] / "other" / "picture.png").samefile(root / "mine/other/picture.png")


def test_imagenet_on_kaggle(root: Path, staged: tuple[Path, dict[str, Path]]) -> None:
    base = staged[0] / "kaggle/competitions/imagenet-object-localization-challenge"
    expected = of_root(root, "imagenet/", strip="imagenet/")
    assert contents(base / "archive.zip") == expected
    single = {path.relative_to(base / "files").as_posix(): path for path in (base / "files").rglob("*.*")}
    assert {name: path.read_bytes() for name, path in single.items()} == expected
    name = "ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_00000001.JPEG"
    assert single[name].samefile(root / "imagenet" / name)


def test_imagenet_elsewhere_in_root_is_where_kaggle_has_it(tmp_path: Path) -> None:
    for name in (
        "val/ILSVRC2012_val_00000001.JPEG",
        "ILSVRC2012_val_00000002.JPEG",
        "n01440764/n01440764_3.JPEG",
        "4.png",
    ):
        (tmp_path / "root/imagenet" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root/imagenet" / name).write_bytes(image_bytes(len(name)))
    stage(tmp_path / "root", tmp_path / "origin", tmp_path / "own")
    base = tmp_path / "origin/kaggle/competitions/imagenet-object-localization-challenge"
    assert sorted(contents(base / "archive.zip")) == [
        "ILSVRC/Data/CLS-LOC/4.png",
        "ILSVRC/Data/CLS-LOC/train/n01440764/n01440764_3.JPEG",
        "ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_00000001.JPEG",
        "ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_00000002.JPEG",
    ]


def test_imagenet_on_the_hub(root: Path, staged: tuple[Path, dict[str, Path]]) -> None:
    files = sorted((staged[0] / "hf/ILSVRC/imagenet-1k/data").iterdir())
    assert [file.name for file in files] == [
        *(f"train-{n:05d}-of-00003.parquet" for n in range(3)),
        *(f"validation-{n:05d}-of-00002.parquet" for n in range(2)),
    ]
    found: dict[str, bytes] = {}
    labels: dict[str, set[int]] = {}
    for file in files:
        opened = pq.ParquetFile(file)
        groups = [opened.metadata.row_group(n).num_rows for n in range(opened.num_row_groups)]
        assert max(groups) <= 8 and (len(groups) > 1) is file.name.startswith("train")
        for row in opened.read().to_pylist():
            basename, wnid, suffix = re.fullmatch(r"(.+)_(n\d{8})(\.\w+)", row["image"]["path"]).groups()  # type: ignore[union-attr]
            assert file.name.startswith("train") is basename.startswith("n0")
            assert not basename.startswith("n0") or basename.startswith(wnid)
            found[basename + suffix] = row["image"]["bytes"]
            labels.setdefault(wnid, set()).add(row["label"])
    assert found == {path.rpartition("/")[2]: data for path, data in of_root(root, "imagenet/").items()}
    assert all(len(each) == 1 and 0 <= min(each) < 1000 for each in labels.values())


def test_progan_train_is_a_zip_in_volumes(root: Path, staged: tuple[Path, dict[str, Path]]) -> None:
    folder = staged[0] / "hf/sywang/CNNDetection"
    assert [file.name for file in sorted(folder.iterdir())] == [
        "README.md",
        *(f"progan_train.7z.{n:03d}" for n in range(1, 8)),
        "progan_val.zip",
    ]
    inner = progan_train(staged[0])
    assert contents(io.BytesIO(inner)) == of_root(root, "progan_train/", strip="progan_train/")
    assert inner[-42:-38] == b"PK\6\7"  # ZIP64's locator before the end record
    whole = b"".join(file.read_bytes() for file in sorted(folder.glob("progan_train.7z.*")))
    assert whole[32 : 32 + len(inner)] == inner and len(whole) - 32 - len(inner) < 100


def test_the_packed_release(root: Path, staged: tuple[Path, dict[str, Path]], tmp_path: Path) -> None:
    folder = staged[0] / "hf/delyanboychev/imaginet"
    assert [file.name for file in sorted(folder.iterdir())] == [f"imaginet.7z.{n:03d}" for n in range(1, 6)]
    expected = of_root(root, "")
    del expected["mine/other/picture.png"]
    assert unpacked(folder / "imaginet.7z.001") == expected
    assert stage(root, tmp_path / "origin", tmp_path / "own", packed=False).keys() == {"mine"}
    assert not (tmp_path / "origin/hf/delyanboychev").exists()


@pytest.mark.skipif(shutil.which("7z") is None, reason="needs 7z")
@pytest.mark.parametrize("name", ["sywang/CNNDetection/progan_train.7z.001", "delyanboychev/imaginet/imaginet.7z.001"])
def test_7z_agrees(staged: tuple[Path, dict[str, Path]], name: str) -> None:
    done = subprocess.run(["7z", "t", str(staged[0] / "hf" / name)], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "Everything is Ok" in done.stdout, done.stdout + done.stderr


def test_journeydb(root: Path, staged: tuple[Path, dict[str, Path]]) -> None:
    with tarfile.open(staged[0] / "hf/JourneyDB/JourneyDB/data/train/imgs/000.tgz", "r|gz") as archive:  # no seeking
        found = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
    assert found == {f"000/{name}": data for name, data in of_root(root, "journeydb/", strip="journeydb/").items()}


def test_danbooru_in_indexed_tars(root: Path, staged: tuple[Path, dict[str, Path]]) -> None:
    tars, indices = (
        staged[0] / "hf" / name / "original" for name in ("nyanko7/danbooru2023", "deepghs/danbooru2023_index")
    )
    names = [f"data-0{n:03d}" for n in (12, *range(339, 345))]
    assert [file.name for file in sorted(tars.iterdir())] == [f"{name}.tar" for name in names]
    assert [file.name for file in sorted(indices.iterdir())] == [f"{name}.json" for name in names]
    found: dict[str, bytes] = {}
    for name in names:
        data, index = (tars / f"{name}.tar").read_bytes(), json.loads((indices / f"{name}.json").read_text())
        assert (index["filesize"], index["hash_lfs"]) == (len(data), hashlib.sha256(data).hexdigest())
        sliced = {key: data[e["offset"] : e["offset"] + e["size"]] for key, e in index["files"].items()}
        assert sliced == untarred(tars / f"{name}.tar")
        assert all(hashlib.sha256(sliced[key]).hexdigest() == e["sha256"] for key, e in index["files"].items())
        assert all(int(key.removesuffix(".jpg")) % 1000 == int(name[-3:]) for key in sliced)
        found |= sliced
    everything = of_root(root, "danbooru2021/", strip="danbooru2021/")
    assert everything.pop("nameless.jpg") and found == everything


def test_wikiart_on_kaggle(root: Path, staged: tuple[Path, dict[str, Path]]) -> None:
    base = staged[0] / "kaggle/datasets/steubk/wikiart"
    expected = of_root(root, "wikiart/", strip="wikiart/")
    assert contents(base / "archive.zip") == expected
    assert {
        p.relative_to(base / "files").as_posix(): p.read_bytes() for p in (base / "files").rglob("*.jpg")
    } == expected


def test_members_come_in_every_make(staged: tuple[Path, dict[str, Path]]) -> None:
    for file in (*(staged[0] / "drive" / key for key in DRIVE_IDS.values()), staged[0] / "coco/zips/val2017.zip"):
        with zipfile.ZipFile(file) as archive, file.open("rb") as stream:
            infos = [info for info in archive.infolist() if not info.is_dir()]
            assert {info.compress_type for info in infos} == {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
            assert {info.flag_bits & 8 for info in infos} == {0, 8}
            differing = 0
            for info in infos:
                stream.seek(info.header_offset)
                extra = struct.unpack("<28xH", stream.read(30))[0]
                differing += extra != len(info.extra)
            assert differing == len(infos)  # so nobody can tell from the directory where data starts


@pytest.mark.skipif(shutil.which("unzip") is None, reason="needs unzip")
def test_unzip_agrees(staged: tuple[Path, dict[str, Path]]) -> None:
    archives = [staged[0] / "drive" / key for key in DRIVE_IDS.values()]
    for file in (*archives, *staged[0].rglob("*.zip")):
        done = subprocess.run(["unzip", "-tq", str(file)], capture_output=True, text=True, check=False)
        assert done.returncode == 0 and "No errors" in done.stdout and not done.stderr, (file, done)


def test_zips_are_readable_by_range_through_the_mirror(root: Path, staged: tuple[Path, dict[str, Path]]) -> None:
    class Remote(io.RawIOBase):
        """A file behind a URL, as zipfile wants it: a request a read."""

        def __init__(self, url: str) -> None:
            self.url, self.at = url, 0
            with urllib.request.urlopen(urllib.request.Request(url, method="HEAD")) as response:
                self.size = int(response.headers["Content-Length"])

        def seekable(self) -> bool:
            return True

        def readable(self) -> bool:
            return True

        def seek(self, offset: int, whence: int = 0) -> int:
            self.at = offset + (0, self.at, self.size)[whence]
            return self.at

        def tell(self) -> int:
            return self.at

        def read(self, size: int = -1) -> bytes:
            stop = self.size if size < 0 else min(self.size, self.at + size)
            if stop <= self.at:
                return b""
            asked = urllib.request.Request(self.url, headers={"Range": f"bytes={self.at}-{stop - 1}"})
            with urllib.request.urlopen(asked) as response:
                assert response.status == 206
                data: bytes = response.read()
            self.at = stop
            return data

    with Mirror(staged[0], virus_scan_over=1000) as mirror:
        drive = f"{mirror.endpoints['drive']}/download?export=download&confirm=t&id="
        assert contents(Remote(drive + DRIVE_IDS["danbooru"])) == of_root(root, "danbooru2021/")
        hub = f"{mirror.endpoints['hf']}/datasets/sywang/CNNDetection/resolve/main/progan_val.zip"
        assert contents(Remote(hub)) == of_root(root, "progan_val/")
        path = f"{mirror.endpoints['github']}/{REPOSITORY}/download_scripts/ffhq_filenames.txt"
        with urllib.request.urlopen(path) as response:
            assert response.read().count(b"\n") == 9
