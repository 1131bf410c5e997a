"""Members of tar archives by an index beside them: real archives, bytes that move, and indexes that lie."""

from __future__ import annotations

import hashlib
import io
import json
import random
import tarfile
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from imaginet_hub.data.matching import Finder
from imaginet_hub.data.readers import tars
from imaginet_hub.data.readers.files import LocalFile, RemoteFile
from imaginet_hub.data.readers.hosts import PlainFile
from imaginet_hub.data.readers.http import Http
from imaginet_hub.data.readers.tars import IndexedTar, TarMember, bucket_of
from imaginet_hub.data.sources import source_named
from imaginet_hub.errors import FetchError
from tests.data.test_zips import Memory
from tests.support.http import serve

SUM = "a" * 64


def archive(content: dict[str, bytes], format_: int = tarfile.PAX_FORMAT) -> tuple[bytes, dict[str, Any]]:
    """A tar archive, and the index of what the standard library finds in it."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=format_) as tar:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    stream.seek(0)
    files = {}
    with tarfile.open(fileobj=stream) as tar:
        for info in tar:
            sum_ = hashlib.sha256(content[info.name]).hexdigest()
            files[info.name] = {"offset": info.offset_data, "size": info.size, "sha256": sum_}
    data = stream.getvalue()
    return data, {"filesize": len(data), "hash": "0" * 40, "hash_lfs": "0" * 64, "files": files}


def pictures(count: int, least: int = 0, most: int = 9_000) -> dict[str, bytes]:
    chance = random.Random(count)
    return {f"{n * 1000 + 567}.jpg": chance.randbytes(chance.randint(least, most)) for n in range(1, count + 1)}


def finder_of(names: list[str]) -> Finder[TarMember]:
    return Finder(source_named("danbooru"), [f"danbooru2021/{name}" for name in names])


def read_all(tar: IndexedTar, names: list[str]) -> dict[str, bytes | FetchError]:
    results = dict(tar.read(tar.find(finder_of(names))))
    return {path.removeprefix("danbooru2021/"): data for path, data in results.items()}


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("folder", ["", "./", "0567/", "original/0567/", "x" * 60 + "/" + "y" * 90 + "/"])
def test_kinds_of_archives(format_: int, folder: str, tmp_path: Path) -> None:
    content = pictures(30)
    data, index = archive({folder + name: data for name, data in content.items()}, format_)
    (tmp_path / "a.tar").write_bytes(data)
    tar = IndexedTar(LocalFile(tmp_path / "a.tar", "danbooru"), json.dumps(index).encode())
    assert read_all(tar, list(content)) == content
    some = list(content)[3:17:2]
    assert read_all(tar, [*some, "999567.jpg"]) == {name: content[name] for name in some}


def test_bytes_that_cross_the_network(tmp_path: Path) -> None:
    content = pictures(400, 60_000, 120_000)
    data, index = archive(content)
    (tmp_path / "a.tar").write_bytes(data)
    names = list(content)
    for wanted in (names, names[100:150], random.Random(1).sample(names, 20), names[-1:], []):
        with serve(tmp_path) as server, Http() as http:
            tar = IndexedTar(
                RemoteFile(http, PlainFile("danbooru", f"{server.url}/a.tar")), json.dumps(index).encode()
            )
            assert read_all(tar, wanted) == {name: content[name] for name in wanted}
            assert server.sent <= 1.01 * sum(len(content[name]) for name in wanted) + 2
    file = Memory(data)
    assert read_all(IndexedTar(file, json.dumps(index).encode()), names) == content
    assert len(file.asked) <= 1 + len(data) // (3 << 20)


def test_a_member_that_is_another_stays_alone() -> None:
    content = pictures(20)
    data, index = archive(content)
    changed = bytearray(data)
    changed[index["files"]["9567.jpg"]["offset"] + 5] ^= 1
    got = read_all(IndexedTar(Memory(bytes(changed)), json.dumps(index).encode()), list(content))
    error = got.pop("9567.jpg")
    assert isinstance(error, FetchError) and error.reason == "corrupt"
    assert hashlib.sha256(content["9567.jpg"]).hexdigest() in error.expected and "9567.jpg" in error.expected
    assert got == {name: data for name, data in content.items() if name != "9567.jpg"}


def test_an_index_of_another_version() -> None:
    data, index = archive(pictures(3))
    for other in (data + b"\0" * 512, data[:-512]):
        with pytest.raises(FetchError) as caught:
            IndexedTar(Memory(other), json.dumps(index).encode())
        assert caught.value.reason == "changed"
        assert f"{len(data):,}" in caught.value.expected and f"{len(other):,}" in caught.value.got


def test_a_member_that_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    content = {"1.jpg": b"x" * 1000, "2.jpg": b"y" * 1001}
    data, index = archive(content)
    monkeypatch.setattr(tars, "MAX_MEMBER_BYTES", 1000)
    tar = IndexedTar(Memory(data), json.dumps(index).encode())
    got = read_all(tar, list(content))
    assert got["1.jpg"] == content["1.jpg"]
    assert isinstance(got["2.jpg"], FetchError) and "1,001" in got["2.jpg"].got


def test_two_members_of_one_image() -> None:
    """Equal bytes are one image, wherever they lie; others are ambiguous."""
    content = {"a/1.jpg": b"one", "b/1.jpg": b"one", "a/2.jpg": b"two", "b/2.jpg": b"TWO"}
    data, index = archive(content)
    tar, finder = IndexedTar(Memory(data), json.dumps(index).encode()), finder_of(["1.jpg", "2.jpg"])
    assert list(tar.find(finder)) == ["danbooru2021/1.jpg"]
    assert list(finder.ambiguous()) == ["danbooru2021/2.jpg"]


# --- indexes that lie -----------------------------------------------------------------------------------------------


def entry(**changed: Any) -> dict[str, Any]:
    fields = {"offset": 512, "size": 3, "sha256": SUM} | changed
    return {key: value for key, value in fields.items() if value != "none"}


def index_of(files: Any, filesize: Any = 10_240) -> bytes:
    return json.dumps({"filesize": filesize, "files": files}).encode()


def test_an_index_as_plain_as_it_can_be() -> None:
    assert list(IndexedTar(Memory(bytes(10_240)), index_of({"1.jpg": entry()})).find(finder_of(["1.jpg"])))
    assert not IndexedTar(Memory(b""), index_of({}, 0)).find(finder_of(["1.jpg"]))
    whole = entry(offset=512, size=9_728, sha256=SUM.upper())
    assert list(IndexedTar(Memory(bytes(10_240)), index_of({"1.jpg": whole})).find(finder_of(["1.jpg"])))


WRONG = ("none", None, True, -1, 1.0, 1e300, "512", [512], {}, 2**63, 10**400)


@pytest.mark.parametrize(
    "index",
    [
        b"",
        b"\0",
        b"\xff\xfe\x00",
        b"<html>",
        b"null",
        b"[]",
        b"7",
        b'"files"',
        b"{}",
        b'{"filesize": 10240}',
        b'{"files": {}}',
        b'{"filesize": 10240, "files": {}',
        b'{"filesize": 10240, "files": {}} {}',
        b'{"filesize": NaN, "files": {}}',
        b'{"filesize": 10240, "files": {}, "more": -Infinity}',
        b'{"filesize": 10240, "filesize": 10240, "files": {}}',
        b'{"filesize": 10240, "files": {"1.jpg": {}, "1.jpg": {}}}',
        b'{"filesize": ' + b"9" * 10_000 + b', "files": {}}',
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"filesize": 10240, "files": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_001,
        *(index_of(files) for files in (None, [], "a", 5)),
        *(index_of({}, size) for size in WRONG),
    ],
    ids=lambda index: index[:40].decode("latin-1"),
)
def test_what_is_no_index(index: bytes) -> None:
    with pytest.raises(FetchError) as caught:
        IndexedTar(Memory(bytes(10_240)), index)
    assert caught.value.reason == "corrupt"
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "wrong",
    [
        *(None, [], 5, {}),
        *(entry(offset=wrong) for wrong in (*WRONG, 0, 511, 10_238)),
        *(entry(size=wrong) for wrong in WRONG),
        *(entry(sha256=wrong) for wrong in (*WRONG, "", "a" * 63, "g" * 64, "a" * 64 + "\n")),
        entry(offset=10_241, size=0),
        entry(size=2**62, offset=2**62),
    ],
    ids=lambda wrong: json.dumps(wrong)[:60],
)
def test_an_entry_that_makes_no_sense_is_refused_and_its_neighbours_are_not(wrong: Any) -> None:
    data, index = archive({"2.jpg": b"two"})
    index["files"]["1.jpg"] = wrong
    tar = IndexedTar(Memory(data), json.dumps(index).encode())
    finder = finder_of(["1.jpg", "2.jpg"])
    assert dict(tar.read(tar.find(finder))) == {"danbooru2021/2.jpg": b"two"}
    assert finder.refusals()["danbooru2021/1.jpg"][0].startswith("an entry of the index with ")


def test_an_index_that_points_at_a_neighbour(tmp_path: Path) -> None:
    """Its offset, size and hash are right, for another picture."""
    content = pictures(3, 100)
    data, index = archive(content)
    first, second, third = content
    index["files"][first] = index["files"][second]
    results = read_all(IndexedTar(Memory(data), json.dumps(index).encode()), list(content))
    assert results.pop(third) == content[third]
    assert results.pop(second) == content[second]
    (error,) = results.values()
    assert isinstance(error, FetchError)
    assert error.reason == "corrupt"
    assert f"that of {second!r}" in str(error)


@pytest.mark.parametrize(
    "name",
    [
        "../1.jpg",
        "/etc/1.jpg",
        "..\\..\\1.jpg",
        "C:\\1.jpg",
        "\0/1.jpg",
        "\ud800/1.jpg",
        "a" * 3000 + "/1.jpg",
        "//1.jpg",
    ],
)
def test_names_that_lead_elsewhere_lead_to_the_image_or_nowhere(name: str) -> None:
    """A name is only compared with what is wanted."""
    data, _ = archive({"2.jpg": bytes(3)}, tarfile.USTAR_FORMAT)
    index = index_of({name: entry(), "2.jpg": entry(sha256=hashlib.sha256(bytes(3)).hexdigest())})
    results = read_all(IndexedTar(Memory(data), index), ["1.jpg", "2.jpg"])
    assert results.pop("2.jpg") == bytes(3)
    assert results.keys() <= {"1.jpg"}
    for error in results.values():
        assert isinstance(error, FetchError)
        str(error).encode()


@pytest.mark.parametrize("name", ["", "/", "..", "\0", "1.jpg\0", "1.jpg/", "1.jpg/..", "b" * 100_000, "\ud800"])
def test_names_of_nothing(name: str) -> None:
    tar = IndexedTar(Memory(bytes(10_240)), index_of({name: entry()}))
    assert set(tar.find(finder_of(["1.jpg"]))) <= {"danbooru2021/1.jpg"}


def _many(count: int) -> Iterator[bytes]:
    yield b'{"filesize": 10240, "files": {"0": {}'
    for number in range(1, count):
        yield b',"%d": {}' % number
    yield b"}}"


GREAT = {
    "entries": lambda: b"".join(_many(10_000_000 // 4)),
    "lists": lambda: b"[" + b"[]," * 20_000_000 + b"0]",
    "blanks": lambda: b'{"filesize":' + b" " * 60_000_000,
}


@pytest.mark.parametrize("kind", GREAT)
def test_an_index_that_would_fill_the_memory(kind: str) -> None:
    index = GREAT[kind]()
    tar, started = Memory(bytes(10_240)), time.monotonic()
    tracemalloc.start()
    with pytest.raises(FetchError):
        IndexedTar(tar, index)
    assert tracemalloc.get_traced_memory()[1] < 150 * 1024**2
    tracemalloc.stop()
    assert time.monotonic() - started < 5


def test_damaged_indexes_raise_nothing_but_our_own() -> None:
    chance = random.Random(9)
    content = pictures(8, 1, 50)
    data, made = archive(content)
    whole, refused = json.dumps(made).encode(), 0
    for _ in range(3000):
        changed = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(len(changed))
            match chance.randrange(4):
                case 0:
                    changed[at] ^= 1 << chance.randrange(8)
                case 1:
                    changed[at] = chance.choice(b'0123456789"{}[],:\\-eE')
                case 2:
                    del changed[at : at + chance.randint(1, 20)]
                case 3:
                    changed[at:at] = chance.choice((b"999999999", b'"', b"{", b"\\ud800", b"\xff", bytes(whole[at:])))
        try:
            results = read_all(IndexedTar(Memory(data), bytes(changed)), list(content))
        except FetchError:
            refused += 1
            continue
        for name, result in results.items():
            assert isinstance(result, FetchError) or result == content[name]
    assert 1000 < refused < 3000


# --- buckets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "bucket"),
    [
        ("danbooru2021/1234567.jpg", "0567"),
        ("danbooru2021/1000.jpg", "0000"),
        ("danbooru2021/7.png", "0007"),
        ("danbooru2021/0567/1234567.tar.jpg", None),
        ("42.jpg", "0042"),
        ("danbooru2021/12a.jpg", None),
        ("danbooru2021/-12.jpg", None),
        ("danbooru2021/١٢.jpg", None),
        ("danbooru2021/².jpg", None),
        ("danbooru2021/", None),
        ("", None),
        ("9" * 5000 + "012.jpg", "0012"),
    ],
)
def test_buckets(path: str, bucket: str | None) -> None:
    assert bucket_of(path) == bucket


def test_buckets_are_a_law() -> None:
    for number in range(1, 7_000_000, 997):
        assert bucket_of(f"danbooru2021/{number}.jpg") == f"{number % 1000:04d}"
