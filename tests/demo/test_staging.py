"""What staging packs, as zipfile, tarfile, unzip, numpy and a range-reading client see it."""

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
import pytest
from PIL import Image

from imaginet_hub.demo import staging
from imaginet_hub.demo.mirror import Mirror
from imaginet_hub.demo.staging import DRIVE_IDS, FFHQ_INDEX_ID, REPOSITORY, Member, drive_id, stage, write_zip
from tests.conftest import image_bytes

UUID = "{:08x}-81cc-4eef-a89f-0cb9f211fa6f"
SPANISH = "wikiart/Impressionism/joaqu\u00e3\u00adn-sorolla_inquisitive-child-1916.jpg"
PATHS = (
    *(f"imagenet/ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_{n:08d}.JPEG" for n in range(3)),
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
    *(f"danbooru2021/{n}.jpg" for n in range(7339, 7345)),
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
    with zipfile.ZipFile(archive) as opened:  # type: ignore[arg-type]
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


def test_every_image_is_packed_once(root: Path, staged: tuple[Path, dict[str, Path]]) -> None:
    origin, own = staged
    assert set(own) == {"imagenet", "cnndetection", "journeydb", "mine"}
    packed = [
        *contents(origin / "coco/zips/train2017.zip").values(),
        *contents(origin / "coco/zips/val2017.zip").values(),
        *(file.read_bytes() for file in (origin / "drive").iterdir() if file.read_bytes().startswith(b"\x89PNG")),
        *(data for key in DRIVE_IDS.values() for data in contents(origin / "drive" / key).values()),
        *contents(origin / "hf/sywang/CNNDetection/progan_val.zip").values(),
        *contents(own["cnndetection"]).values(),
        *(file.read_bytes() for key in ("imagenet", "mine") for file in own[key].rglob("*") if file.is_file()),
    ]
    with tarfile.open(own["journeydb"]) as archive:
        packed += [archive.extractfile(member).read() for member in archive]  # type: ignore[union-attr]
    assert sorted(packed) == sorted((root / path).read_bytes() for path in PATHS)


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
    origin, own = staged
    drive = origin / "drive"
    assert contents(drive / DRIVE_IDS["danbooru"]) == of_root(root, "danbooru2021/")
    assert contents(drive / DRIVE_IDS["photozilla"]) == of_root(root, "photozilla/", strip="photozilla/")
    synthetic = contents(drive / DRIVE_IDS["imaginet"])
    assert synthetic == of_root(root, "dalle3") | of_root(root, "sd_faces_fake/") | of_root(root, "wikiart_stylegan/")
    assert contents(origin / "hf/sywang/CNNDetection/progan_val.zip") == of_root(root, "progan_val/")
    assert contents(own["cnndetection"]) == of_root(root, "progan_train/", strip="progan_train/")


def test_what_people_bring(root: Path, staged: tuple[Path, dict[str, Path]]) -> None:
    _, own = staged
    kaggle = own["imagenet"] / "ILSVRC" / "Data" / "CLS-LOC" / "val"
    assert sorted(file.name for file in kaggle.iterdir()) == [f"ILSVRC2012_val_{n:08d}.JPEG" for n in range(3)]
    with tarfile.open(own["journeydb"], "r|gz") as archive:  # a stream: no seeking
        found = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
    assert own["journeydb"].name == "000.tgz"
    assert found == {f"000/{name}": data for name, data in of_root(root, "journeydb/", strip="journeydb/").items()}
    assert (own["mine"] / "other" / "picture.png").is_file()


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
    for file in (*archives, *staged[0].rglob("*.zip"), staged[1]["cnndetection"]):
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


# --- write_zip ------------------------------------------------------------------------------------------------------

DATA = bytes(range(256)) * 40
MAKES = [
    (deflate, descriptor, unix) for deflate in (False, True) for descriptor in (False, True) for unix in (False, True)
]


@pytest.mark.parametrize("zip64", [False, True])
def test_write_zip(tmp_path: Path, zip64: bool) -> None:
    (tmp_path / "data").write_bytes(DATA)
    members = [Member(f"{n}.bin", tmp_path / "data" if n % 3 else DATA, *make) for n, make in enumerate(MAKES)]
    more = [Member("\u00e9.bin", b"named"), Member("folder/"), Member("empty", b"", True), ("pair", b"of two")]
    file = write_zip(tmp_path / "a" / "b.zip", [*members, *more], zip64=zip64, comment=b"say hello!")
    assert list(file.parent.iterdir()) == [file]
    expected = {f"{n}.bin": DATA for n in range(8)} | {"\u00e9.bin": b"named", "empty": b"", "pair": b"of two"}
    assert contents(file) == expected
    with zipfile.ZipFile(file) as archive:
        assert archive.comment == b"say hello!" and archive.getinfo("folder/").is_dir()
        assert archive.getinfo("pair").date_time == (2024, 1, 1, 12, 0, 0)
        assert {info.extract_version for info in archive.infolist()} == {45 if zip64 else 20}
        assert archive.getinfo("\u00e9.bin").flag_bits & 0x800 and not archive.getinfo("pair").flag_bits
    end = file.read_bytes()[-22 - 10 :]
    count, size, start = struct.unpack("<10xH2I", end[:20])
    assert (count, size, start) == ((0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF) if zip64 else (count, size, start))
    assert zip64 or (count == 12 and start < file.stat().st_size)


def test_local_headers_and_descriptors_are_whole(tmp_path: Path) -> None:
    """Read front to back by the specification, as a streaming unzipper does; zipfile reads back to front."""
    for zip64 in (False, True):
        members = [Member(f"{n}", DATA, *make) for n, make in enumerate(MAKES)]
        data = write_zip(tmp_path / "x.zip", members, zip64=zip64).read_bytes()
        with zipfile.ZipFile(tmp_path / "x.zip") as archive:
            infos = archive.infolist()
        at = 0
        for info, (_, descriptor, unix) in zip(infos, MAKES, strict=True):
            fields = struct.unpack_from("<4s5H3I2H", data, at)
            assert fields[0] == b"PK\3\4" and at == info.header_offset
            crc, packed, unpacked, name, extra = fields[6:]
            kinds, where = {}, at + 30 + name
            while where < at + 30 + name + extra:
                kind, length = struct.unpack_from("<2H", data, where)
                kinds[kind] = data[where + 4 : where + 4 + length]
                where += 4 + length
            assert where == at + 30 + name + extra and list(kinds) == [1] * zip64 + [0x5455, 0x7875] * unix
            if zip64:
                assert (packed, unpacked) == (0xFFFFFFFF, 0xFFFFFFFF)
                unpacked, packed = struct.unpack("<2Q", kinds[1])
            at = where + info.compress_size
            if descriptor:
                assert (crc, packed, unpacked) == (0, 0, 0)
                signature, crc, packed, unpacked = struct.unpack_from("<4sI2Q" if zip64 else "<4s3I", data, at)
                assert signature == b"PK\7\x08"
                at += 24 if zip64 else 16
            assert (crc, packed, unpacked) == (info.CRC, info.compress_size, len(DATA))
        assert data[at : at + 4] == b"PK\1\2"


def test_damaged_members_and_prefixes(tmp_path: Path) -> None:
    file = write_zip(tmp_path / "x.zip", [("good", DATA), Member("bad", DATA, crc=1)], prefix=b"#!/bin/sh\n" * 10)
    with zipfile.ZipFile(file) as archive:
        assert archive.read("good") == DATA and archive.testzip() == "bad"


def test_more_members_than_sixteen_bits_count(tmp_path: Path) -> None:
    file = write_zip(tmp_path / "x.zip", ((f"{n}", b"") for n in range(65_536)))
    with zipfile.ZipFile(file) as archive:
        assert len(archive.infolist()) == 65_536


def test_offsets_beyond_four_gigabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the sparse file that an out-of-the-way prefix makes, not with four gigabytes."""
    file = write_zip(tmp_path / "x.zip", [("one", DATA), ("two", DATA)])
    moved = tmp_path / "moved.zip"
    real = staging._write_member

    def far(out: io.BufferedWriter, member: Member, zip64: bool, prefix: int) -> bytes:
        if member.name == "two":
            out.seek(5 << 30)
        return real(out, member, zip64, prefix)

    monkeypatch.setattr(staging, "_write_member", far)
    write_zip(moved, [("one", DATA), ("two", DATA)])
    assert contents(moved) == contents(file) and moved.stat().st_size > 5 << 30
    with zipfile.ZipFile(moved) as archive:
        assert archive.getinfo("two").header_offset == 5 << 30 and archive.getinfo("two").extract_version == 45


def test_nothing_is_left_of_an_interrupted_zip(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_zip(tmp_path / "x.zip", [("one", DATA), ("two", tmp_path / "absent")])
    assert not list(tmp_path.iterdir())
