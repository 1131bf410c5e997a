"""Folders and archives that people have, as they have them."""

from __future__ import annotations

import bz2
import contextlib
import errno
import gzip
import io
import logging
import lzma
import os
import random
import struct
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import datasets
import pytest

from imaginet_hub.data.matching import Finder
from imaginet_hub.data.readers import local
from imaginet_hub.data.readers.local import (
    archives_in,
    find_in_folder,
    inside_of,
    kind_of,
    read_file,
    read_tar,
    read_tars_in_zip,
)
from imaginet_hub.data.sources import source_named
from imaginet_hub.demo.staging import write_zip
from imaginet_hub.errors import FetchError

COCO = ["val2017/000000000139.jpg", "val2017/000000000285.jpg", "train2017/000000000009.jpg"]


def tar(file: Path, members: list[tuple[str, bytes]], mode: str = "w", format_: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(file, mode, format=format_, encoding="utf-8", errors="surrogateescape") as archive:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file


def finder(key: str, wanted: list[str], aliases: dict[str, str] | None = None) -> Finder:
    source = source_named(key)
    assert source is not None
    return Finder(source, wanted, aliases)


def test_kinds_by_content(tmp_path: Path) -> None:
    assert kind_of(tmp_path) == "folder"
    write_zip(tmp_path / "really.tar", [("a", b"")])
    assert kind_of(tmp_path / "really.tar") == "zip"
    write_zip(tmp_path / "sfx.zip", [("a", b"")], prefix=b"MZ" * 50)
    assert kind_of(tmp_path / "sfx.zip") == "zip"
    write_zip(tmp_path / "empty", [])
    assert kind_of(tmp_path / "empty") == "zip"
    for mode, name in (("w", "a.zip"), ("w:gz", "a"), ("w:bz2", "b"), ("w:xz", "c")):
        assert kind_of(tar(tmp_path / name, [("a", b"1")], mode)) == "tar"
    (tmp_path / "old.tar").write_bytes(b"\0" * 10240)
    assert kind_of(tmp_path / "old.tar") == "tar"
    (tmp_path / "a.7z").write_bytes(b"7z\xbc\xaf\x27\x1c" + bytes(30))
    assert kind_of(tmp_path / "a.7z") == "7z"
    (tmp_path / "a.txt").write_bytes(b"")
    assert kind_of(tmp_path / "a.txt") == "other"
    os.mkfifo(tmp_path / "pipe.zip")
    assert kind_of(tmp_path / "pipe.zip") == "other"  # and nobody waits for somebody to write
    with pytest.raises(OSError, match="absent"):
        (tmp_path / "absent").stat()


def test_where_members_lie() -> None:
    assert inside_of(Path("/data/progan_train.zip")) == "/data/progan_train"
    assert inside_of(Path("/data/progan_train.tar.gz")) == "/data/progan_train"
    assert inside_of(Path("/data/progan_train.TGZ")) == "/data/progan_train"
    assert inside_of(Path("/data/v1.2.data")) == "/data/v1.2.data"


def test_folders(tmp_path: Path) -> None:
    for name in (COCO[0], f"deep/er/{COCO[1]}", "flat/000000000009.jpg", "val2017/000000000009.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    found = find_in_folder(tmp_path, finder("coco", COCO))
    assert found == {
        COCO[0]: tmp_path / COCO[0],
        COCO[1]: tmp_path / "deep/er" / COCO[1],
        COCO[2]: tmp_path / "flat/000000000009.jpg",
    }
    assert read_file(found[COCO[0]], "coco") == COCO[0].encode()
    # The folder's own name counts.
    assert find_in_folder(tmp_path / "val2017", finder("coco", COCO)) == {COCO[0]: tmp_path / COCO[0]}
    (tmp_path / "cat" / "0_real").mkdir(parents=True)
    (tmp_path / "cat" / "0_real" / "00001.png").write_bytes(b"")
    (tmp_path / "progan_val").symlink_to(tmp_path)
    progan = ["progan_val/cat/0_real/00001.png", "progan_train/cat/0_real/00001.png"]
    assert find_in_folder(tmp_path / "progan_val", finder("cnndetection", progan)).keys() == {progan[0]}
    assert find_in_folder(tmp_path, finder("cnndetection", progan)) == {}


def test_linked_folders_are_read_once(tmp_path: Path) -> None:
    """Images often lie on another disk, behind a link; and links may lead in circles."""
    disk, root = tmp_path / "disk", tmp_path / "root"
    for name in (f"a/{COCO[0]}", "b/deep/000000000285.jpg"):
        (disk / name).parent.mkdir(parents=True)
        (disk / name).touch()
    (root / "here").mkdir(parents=True)
    (root / "here" / "000000000009.jpg").touch()
    (root / "away").symlink_to(disk / "a")
    (root / "here" / "more").symlink_to(disk / "b")
    (root / "again").symlink_to(disk / "b" / "deep")
    (disk / "a" / "up").symlink_to(root)
    (disk / "b" / "deep" / "self").symlink_to(disk / "b" / "deep")
    (root / "aaa").symlink_to(root / "here")
    (root / "nowhere").symlink_to(root / "absent")
    same = finder("coco", COCO)
    assert find_in_folder(root, same) == {
        COCO[0]: root / "away" / COCO[0],
        COCO[1]: root / "again/000000000285.jpg",
        COCO[2]: root / "here/000000000009.jpg",
    }
    assert same.ambiguous() == {}
    (root / "progan_val").symlink_to(disk / "progan")
    (disk / "progan" / "cat" / "0_real").mkdir(parents=True)
    (disk / "progan" / "cat" / "0_real" / "00001.png").touch()
    progan = ["progan_val/cat/0_real/00001.png", "progan_train/cat/0_real/00001.png"]
    assert find_in_folder(root, finder("cnndetection", progan)) == {progan[0]: root / progan[0]}


def test_folders_that_cannot_be_read_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for folder in ("closed", "open"):
        (tmp_path / folder).mkdir()
    (tmp_path / "open" / "000000000139.jpg").touch()
    scandir = os.scandir

    def refuse(path: str) -> object:
        if path.endswith("closed"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    monkeypatch.setattr(datasets.logging.get_logger("datasets"), "propagate", True)
    found = {COCO[0]: tmp_path / "open/000000000139.jpg"}
    with caplog.at_level(logging.WARNING):
        assert find_in_folder(tmp_path, finder("coco", COCO)) == found
    assert f"left out what is in {tmp_path}/closed: Permission denied" in caplog.text
    errors: list[OSError] = []
    assert find_in_folder(tmp_path, finder("coco", COCO), errors.append) == found
    assert [error.filename for error in errors] == [f"{tmp_path}/closed"]


def test_files_that_nobody_wants_are_only_glanced_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(100):
        (tmp_path / f"{number}.jpg").touch()
    (tmp_path / "000000000139.jpg").touch()
    offered, every = [], finder("coco", COCO)
    offer = every.offer
    monkeypatch.setattr(
        every, "offer", lambda name, handle, **more: offered.append(name) or offer(name, handle, **more)
    )
    assert find_in_folder(tmp_path, every) == {COCO[0]: tmp_path / "000000000139.jpg"}
    assert offered == [f"{tmp_path}/000000000139.jpg"]


def test_folders_with_names_in_other_encodings(tmp_path: Path) -> None:
    wanted = ["wikiart/Realism/arnold-bã¶cklin_sea.jpg"]
    folder = tmp_path / "Realism"
    folder.mkdir()
    with open(os.fsencode(folder) + b"/arnold-b\xe3\xb6cklin_sea.jpg", "wb") as file:  # noqa: PTH123
        file.write(b"Latin-1")
    found = find_in_folder(tmp_path, finder("wikiart", wanted))
    assert read_file(found[wanted[0]], "wikiart") == b"Latin-1"


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(FetchError) as caught:
        read_file(tmp_path, "coco")
    assert caught.value.reason == "corrupt"
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FetchError):
        read_file(tmp_path / "pipe", "coco")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FetchError):
        read_file(tmp_path / "link", "coco")


def test_archives_in_a_folder(tmp_path: Path) -> None:
    for name in ("a.zip", "b.TAR", "c.tgz", "d.tar.xz", "e.jpg", "f.7z"):
        (tmp_path / name).touch()
    (tmp_path / "g.zip").mkdir()
    assert [path.name for path in archives_in(tmp_path)] == ["a.zip", "b.TAR", "c.tgz", "d.tar.xz", "f.7z"]


MEMBERS = [(f"x/{path}", path.encode() * 100) for path in COCO]


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_tars(tmp_path: Path, mode: str, format_: int) -> None:
    file = tar(tmp_path / "a.tar", [("other", b"1"), *MEMBERS, ("x/last", b"2")], mode, format_)
    assert dict(read_tar(file, "coco", finder("coco", COCO))) == {path: path.encode() * 100 for path in COCO}
    assert dict(read_tar(file, "coco", finder("coco", COCO[1:2]))) == {COCO[1]: COCO[1].encode() * 100}
    assert dict(read_tar(file, "coco", finder("coco", []))) == {}


def test_a_tar_of_tars(tmp_path: Path) -> None:
    """As ImageNet's training images come."""
    wanted = [f"imagenet/train/n0144076{n}/n0144076{n}_1.JPEG" for n in range(3)]
    inner = []
    for n in range(3):
        file = tar(tmp_path / "inner.tar", [(f"n0144076{n}_{i}.JPEG", b"%d %d" % (n, i)) for i in range(3)])
        inner.append((f"n0144076{n}.tar", file.read_bytes()))
    found = dict(read_tar(tar(tmp_path / "train.tar", inner), "imagenet", finder("imagenet", wanted)))
    assert found == {path: b"%d 1" % n for n, path in enumerate(wanted)}


class Stop(BaseException):
    """What a check raises."""


class Check:
    """A check that stops the scan at the n-th call."""

    def __init__(self, after: int | None = None) -> None:
        self.calls = 0
        self.after = after

    def __call__(self) -> None:
        self.calls += 1
        if self.calls == self.after:
            raise Stop


def test_a_scan_can_be_stopped_at_any_member(tmp_path: Path) -> None:
    """Also where nothing is delivered, in either pass, and in archives of archives."""
    inner = tar(tmp_path / "inner.tar", [*((f"x{n}", b"") for n in range(10)), MEMBERS[0]])
    file = tar(tmp_path / "a.tar", [("x", b""), ("i.tar", inner.read_bytes()), *MEMBERS[1:], ("last", b"")])
    everything = 2 + 11 + 2 + 1
    for wanted, calls in (
        (["val2017/1.jpg"], everything),
        (COCO, 2 * everything - 1),
    ):  # nothing after the last wanted
        check = Check()
        dict(read_tar(file, "coco", finder("coco", wanted), check=check))
        assert check.calls == calls
        for after in range(1, calls + 1):
            with pytest.raises(Stop):
                dict(read_tar(file, "coco", finder("coco", wanted), check=Check(after)))
    source = source_named("coco")
    assert source is not None
    packed = write_zip(tmp_path / "a.zip", [("a.tar", file), ("b.tar", file)])
    check = Check()
    found = dict(read_tars_in_zip(packed, source, COCO, check=check))
    assert found == {path: path.encode() * 100 for path in COCO}
    assert check.calls == 3 * everything - 1
    with pytest.raises(Stop):
        dict(read_tars_in_zip(packed, source, ["val2017/1.jpg"], check=Check(everything + 1)))


def test_the_best_member_of_a_tar_wins_wherever_it_is(tmp_path: Path) -> None:
    names = {"ffhq/a.png": "images1024x1024/00000/00000.png"}
    small, large = ("ffhq/thumbnails128x128/00000/00000.png", b"s"), ("ffhq/images1024x1024/00000/00000.png", b"l")
    for members in ([small, large], [large, small]):
        file = tar(tmp_path / "a.tar", members)
        assert dict(read_tar(file, "ffhq", finder("ffhq", ["ffhq/a.png"], names))) == {"ffhq/a.png": b"l"}


def test_two_sizes_in_a_tar_are_no_answer(tmp_path: Path) -> None:
    wanted = ["danbooru2021/1.jpg", "danbooru2021/2.jpg"]
    file = tar(tmp_path / "a.tar", [("original/0001/1.jpg", b"o"), ("512px/0001/1.jpg", b"5"), ("512px/2.jpg", b"2")])
    found = dict(read_tar(file, "danbooru", finder("danbooru", wanted)))
    assert found.pop(wanted[1]) == b"2"
    assert "two: " in str(found[wanted[0]])


def test_the_last_of_members_with_one_name_counts(tmp_path: Path) -> None:
    """As in a tar that was added to."""
    file = tar(tmp_path / "a.tar", [(COCO[0], b"old"), ("x", b""), (COCO[0], b"new")])
    assert dict(read_tar(file, "coco", finder("coco", COCO))) == {COCO[0]: b"new"}


def test_the_name_of_a_tar_tells_which_half_it_is(tmp_path: Path) -> None:
    wanted = ["progan_val/cat/0_real/00001.png", "progan_train/cat/0_real/00001.png"]
    members = [("cat/0_real/00001.png", b"1")]
    found = read_tar(tar(tmp_path / "progan_train.tar.gz", members, "w:gz"), "x", finder("cnndetection", wanted))
    assert dict(found) == {wanted[1]: b"1"}
    assert dict(read_tar(tar(tmp_path / "some.tar", members), "x", finder("cnndetection", wanted))) == {}


def test_names_of_tar_members_in_other_encodings(tmp_path: Path) -> None:
    wanted = ["wikiart/Realism/arnold-bã¶cklin_sea.jpg"]
    for number, raw in enumerate(
        (wanted[0].encode(), wanted[0].encode("latin-1"), wanted[0].encode().decode("cp437").encode())
    ):
        name = raw.decode("utf-8", "surrogateescape")
        file = tar(
            tmp_path / f"{number}.tar", [("wikiart/Realism/other.jpg", b""), (name, b"1")], "w", tarfile.GNU_FORMAT
        )
        assert dict(read_tar(file, "wikiart", finder("wikiart", wanted))) == {wanted[0]: b"1"}


SPECIAL = {
    tarfile.SYMTYPE: "a symbolic link to '/etc/passwd'",
    tarfile.LNKTYPE: "a hard link to '/etc/passwd'",
    tarfile.CHRTYPE: "a character device",
    tarfile.BLKTYPE: "a block device",
    tarfile.FIFOTYPE: "a named pipe",
}


@pytest.mark.parametrize("kind", SPECIAL)
def test_links_and_devices_are_not_read_and_named(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        info = tarfile.TarInfo(f"x/{COCO[0]}")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
        good = tarfile.TarInfo(COCO[1])
        good.size = 4
        archive.addfile(good, io.BytesIO(b"good"))
    found = dict(read_tar(tmp_path / "a.tar", "coco", finder("coco", COCO)))
    assert found.pop(COCO[1]) == b"good"
    assert found.keys() == {COCO[0]} and SPECIAL[kind] in str(found[COCO[0]])
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def test_a_member_through_a_link_is_a_member_like_others(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        info = tarfile.TarInfo("val2017")
        info.type, info.linkname = tarfile.SYMTYPE, "/tmp"
        archive.addfile(info)
        info = tarfile.TarInfo(COCO[0])
        info.size = 4
        archive.addfile(info, io.BytesIO(b"here"))
    assert dict(read_tar(tmp_path / "a.tar", "coco", finder("coco", COCO))) == {COCO[0]: b"here"}


def test_names_that_lead_out_of_a_tar(tmp_path: Path) -> None:
    file = tar(tmp_path / "a.tar", [(f"../../{COCO[0]}", b"1"), (f"/{COCO[1]}", b"2"), (COCO[2], b"3")])
    found = dict(read_tar(file, "coco", finder("coco", COCO)))
    assert found.pop(COCO[2]) == b"3"
    assert f"leads out of the archive: '../../{COCO[0]}'" in str(found[COCO[0]])
    assert f"leads out of the archive: '/{COCO[1]}'" in str(found[COCO[1]])


def claiming(kind: bytes, size: int) -> bytes:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    "kind", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE]
)
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_headers_that_claim_ten_gigabytes_are_not_read(tmp_path: Path, kind: bytes, mode: str) -> None:
    """What lies before them is delivered; nothing can be found behind them."""
    plain = tar(tmp_path / "plain.tar", [(COCO[0], b"1")]).read_bytes()[: 512 * 2]
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        end = archive.offset
    data = plain + claiming(kind, 10 << 30) + bytes(20 << 20) + bytes(1024 + end)
    file = tmp_path / "a.tar"
    file.write_bytes(data if mode == "w" else gzip.compress(data, 1))
    tracemalloc.start()
    results = {}
    with pytest.raises(FetchError, match=r"more than 1,048,576 bytes of headers"):
        for path, result in read_tar(file, "coco", finder("coco", COCO)):
            results[path] = result
    assert results == {COCO[0]: b"1"}
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("module", [gzip, bz2, lzma])
def test_a_compressed_tar_that_expands_without_end(
    tmp_path: Path, module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One member of a terabyte: given up after a little (here 32 MB), with what came before."""
    monkeypatch.setattr(local, "_BOMB_BYTES", 32 << 20)
    plain = tar(tmp_path / "plain.tar", [(COCO[0], b"1")]).read_bytes()[: 512 * 2]
    info = tarfile.TarInfo("zeros.bin")
    info.size = 1 << 40
    packed = module.compress(plain + info.tobuf(tarfile.GNU_FORMAT) + bytes(200 << 20))
    assert len(packed) < 300_000
    (tmp_path / "a.tar").write_bytes(packed)
    results = {}
    tracemalloc.start()
    with pytest.raises(FetchError, match="compressed bytes that expand to more than"):
        for path, result in read_tar(tmp_path / "a.tar", "coco", finder("coco", COCO)):
            results[path] = result
    assert results == {COCO[0]: b"1"}
    assert tracemalloc.get_traced_memory()[1] < 24 << 20  # of which xz takes 17
    tracemalloc.stop()


def test_xz_with_a_huge_dictionary(tmp_path: Path) -> None:
    data = tar(tmp_path / "plain.tar", MEMBERS).read_bytes()
    for size, fine in ((64 << 20, True), (1 << 30, False)):
        chain = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": size}]
        (tmp_path / "a.tar.xz").write_bytes(lzma.compress(data, filters=chain))
        with contextlib.nullcontext() if fine else pytest.raises(FetchError, match="Memory usage limit"):
            assert len(dict(read_tar(tmp_path / "a.tar.xz", "coco", finder("coco", COCO)))) == 3


@pytest.mark.parametrize("module", [gzip, bz2, lzma])
def test_compressed_tars_in_several_streams(tmp_path: Path, module: Any) -> None:
    """As pigz and pbzip2 write them; zeros and other bytes may follow."""
    data = tar(tmp_path / "plain.tar", MEMBERS).read_bytes()
    for cut, rest in ((700, b""), (5000, bytes(70_000)), (9000, b"garbage")):
        (tmp_path / "a.tar").write_bytes(module.compress(data[:cut]) + module.compress(data[cut:]) + rest)
        found = dict(read_tar(tmp_path / "a.tar", "coco", finder("coco", COCO)))
        assert found == {path: path.encode() * 100 for path in COCO}


def test_sparse_files_and_headers_inside_headers(tmp_path: Path) -> None:
    info = tarfile.TarInfo(COCO[0])
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 512
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[483:495] = b"00000001000\0"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    file = tmp_path / "a.tar"
    file.write_bytes(bytes(header) + bytes(512 * 3))
    (error,) = dict(read_tar(file, "coco", finder("coco", COCO))).values()
    assert "a sparse file" in str(error)
    file.write_bytes((claiming(tarfile.GNUTYPE_LONGNAME, 5) + b"name".ljust(512, b"\0")) * 5000)
    with pytest.raises(FetchError):
        dict(read_tar(file, "coco", finder("coco", COCO)))


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_a_truncated_tar_gives_what_it_has(tmp_path: Path, mode: str) -> None:
    chance = random.Random(1)
    members = [(f"val2017/{n:012d}.jpg", chance.randbytes(100_000)) for n in range(5)]
    file = tar(tmp_path / "a.tar", members, mode)
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size // 2)
    results = {}
    with pytest.raises(FetchError, match="truncated or damaged") as caught:
        for path, data in read_tar(file, "coco", finder("coco", [name for name, _ in members])):
            results[path] = data
    assert caught.value.reason == "corrupt"
    assert len(results) in (1, 2)
    assert all(results[name] == data for name, data in members if name in results)


def test_a_member_that_claims_too_much(tmp_path: Path) -> None:
    file = tmp_path / "a.tar"
    info = tarfile.TarInfo(COCO[0])
    info.size = 300 << 20
    file.write_bytes(info.tobuf() + bytes(1 << 20))
    with pytest.raises(FetchError):
        dict(read_tar(file, "coco", finder("coco", COCO)))
    with file.open("r+b") as stream:
        stream.truncate((300 << 20) + 2048)
    (error,) = dict(read_tar(file, "coco", finder("coco", COCO))).values()
    assert "314,572,800 bytes" in str(error)


def test_mutated_tars_raise_nothing_but_our_own(tmp_path: Path) -> None:
    chance = random.Random(11)
    seeds = []
    for number, (mode, format_) in enumerate(
        (
            ("w", tarfile.GNU_FORMAT),
            ("w", tarfile.PAX_FORMAT),
            ("w:gz", tarfile.PAX_FORMAT),
            ("w:xz", tarfile.GNU_FORMAT),
        )
    ):
        long = [("n" * 200 + "/ü" * 30, b"1"), *MEMBERS, (f"{number}.tar", tar(tmp_path / "i", MEMBERS).read_bytes())]
        seeds.append(tar(tmp_path / f"{number}", long, mode, format_).read_bytes())
    read = 0
    for _ in range(800):
        data = bytearray(chance.choice(seeds))
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(min(len(data), 6000))
            match chance.randrange(4):
                case 0:
                    data[at] = chance.randrange(256)
                case 1:
                    data[at : at + 8] = chance.choice((b"7" * 8, b"\x80" + b"\xff" * 7, bytes(8), b"-1 x\0GNU"))
                case 2:
                    del data[at : at + chance.choice((1, 512))]
                case 3:  # a header whose sum is right and whose type is not
                    at -= at % 512
                    header = bytearray(data[at : at + 512])
                    if len(header) == 512:
                        header[156] = chance.choice(b"01234567LKSxgXDMNV\xff")
                        header[148:156] = b" " * 8
                        header[148:156] = b"%06o\0 " % sum(header)
                        data[at : at + 512] = header
        file = tmp_path / "mutated.tar"
        file.write_bytes(data)
        with contextlib.suppress(FetchError):
            read += bool(dict(read_tar(file, "coco", finder("coco", COCO))))
    assert read > 50


def test_no_tar_at_all(tmp_path: Path) -> None:
    file = tmp_path / "a.tar"
    for data in (b"", b"\x1f\x8b" + bytes(30), b"text" * 400, struct.pack("<512x")):
        file.write_bytes(data)
        try:
            assert dict(read_tar(file, "coco", finder("coco", COCO))) == {}
        except FetchError as error:
            assert error.reason == "corrupt"


def test_names_of_members_steer_no_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "MAX_MEMBER_BYTES", 3)
    evil = "a\x1b[2J\nforged/000000000139.jpg"
    (error,) = (
        result for _, result in read_tar(tar(tmp_path / "a.tar", [(evil, b"1234")]), "coco", finder("coco", COCO[:1]))
    )
    assert isinstance(error, FetchError)
    assert r"'a\x1b[2J\nforged/000000000139.jpg'" in str(error)
    assert str(error).isprintable()
    two = tar(tmp_path / "two.tar", [(evil, b"1"), ("b\x1b/000000000139.jpg", b"2")])
    (error,) = (result for _, result in read_tar(two, "coco", finder("coco", COCO[:1])))
    assert isinstance(error, FetchError)
    assert "got two: " in str(error) and str(error).isprintable()
