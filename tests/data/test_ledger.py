"""The ledger: what a kill, a bad disk or a stranger may leave in it."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from imaginet_hub.data.images import ImageFacts
from imaginet_hub.data.ledger import FOLDER, Entry, Ledger, known_facts, read_ledger
from imaginet_hub.data.manifest import Record
from imaginet_hub.errors import FetchError

ENTRY = Entry(
    "val2017/1.jpg",
    "ab" * 32,
    7,
    "coco",
    "s3",
    "Flickr",
    "2026-01-01T00:00:00Z",
    "test",
    40,
    30,
    "JPEG",
    1_700_000_000,
)


def file_of(root: Path) -> Path:
    file = root / FOLDER / "ledger.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


def line(**changes: object) -> bytes:
    return json.dumps(asdict(ENTRY) | changes).encode() + b"\n"


def test_round_trip(tmp_path: Path) -> None:
    assert read_ledger(tmp_path) == {}
    other = replace(ENTRY, path="wikiart/Realism/arnold-bã¶cklin 'x' (1),2.jpg", bytes=2**40)
    ledger = Ledger(tmp_path)
    for each in (ENTRY, other, replace(ENTRY, bytes=8)):
        ledger.append(each)
    ledger.close()
    assert read_ledger(tmp_path) == {ENTRY.path: replace(ENTRY, bytes=8), other.path: other}
    assert list(asdict(ENTRY))[:7] == ["path", "sha256", "bytes", "source", "route", "license", "when"]
    again = Ledger(tmp_path)
    again.close()
    assert again.entries == read_ledger(tmp_path)


@pytest.mark.parametrize("cut", [1, 10, 150, -1])
def test_a_line_that_was_cut_short(tmp_path: Path, cut: int) -> None:
    """It is forgotten, and nothing is appended to it."""
    second = line(path="val2017/2.jpg")
    file_of(tmp_path).write_bytes(line() + second[:cut])
    # A line of which only the end is missing is whole.
    kept = {ENTRY.path, "val2017/2.jpg"} if cut == -1 else {ENTRY.path}
    assert set(read_ledger(tmp_path)) == kept
    ledger = Ledger(tmp_path)
    ledger.append(replace(ENTRY, path="val2017/3.jpg"))
    ledger.close()
    assert set(read_ledger(tmp_path)) == {*kept, "val2017/3.jpg"}
    assert file_of(tmp_path).read_bytes().count(b"\n") == len(kept) + 1


@pytest.mark.parametrize("cut", [1, 100, -1])
def test_a_line_that_the_disk_had_no_room_for(tmp_path: Path, cut: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread may write its own before the first one has stopped everything."""
    ledger = Ledger(tmp_path)
    ledger.append(ENTRY)
    real = ledger._file

    class Full:
        def write(self, data: bytes) -> int:
            return real.write(data[:cut])

    for number in (2, 3):
        monkeypatch.setattr(ledger, "_file", Full())
        with pytest.raises(OSError, match="No space left"):
            ledger.append(replace(ENTRY, path=f"val2017/{number}.jpg"))
        assert f"val2017/{number}.jpg" not in ledger.entries
    monkeypatch.setattr(ledger, "_file", real)
    for number in (4, 5):
        ledger.append(replace(ENTRY, path=f"val2017/{number}.jpg"))
    ledger.close()
    # A line of which only the end is missing is whole.
    kept = {"val2017/2.jpg", "val2017/3.jpg"} if cut == -1 else set()
    assert set(read_ledger(tmp_path)) == {ENTRY.path, "val2017/4.jpg", "val2017/5.jpg", *kept}


def test_a_long_ledger_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file_of(tmp_path).write_bytes(line() + b"\n\n" + line(path="val2017/2.jpg"))
    reads, real = [], Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: reads.append(self) or real(self))
    ledger = Ledger(tmp_path)
    ledger.close()
    assert set(ledger.entries) == {ENTRY.path, "val2017/2.jpg"}
    assert reads == [file_of(tmp_path)]


HOSTILE = [
    b"",
    b"garbage",
    b"\xff\xfe\0\0",
    b"null",
    b"[]",
    b"1",
    b"{}",
    b"NaN",
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b"9" * 10_000,
    line(bytes=7.0),
    line(bytes=True),
    line(bytes="7"),
    line(bytes=None),
    line(bytes=float("nan")),
    line(width=[1]),
    line(path=3),
    line(path={"a": 1}),
    line(path="../outside.jpg"),
    line(path="a/../../outside.jpg"),
    line(path="/etc/passwd"),
    line(path="a\0b"),
    line(path=""),
    line(path="./val2017/1.jpg"),
    line(sha256="short"),
    line(sha256="g" * 64),
    line().replace(b'"mtime_ns": 1700000000', b'"mtime_ns": ' + b"1" * 6000),
]


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_lines_that_are_not_ours(tmp_path: Path, number: int) -> None:
    bad = HOSTILE[number].rstrip(b"\n") + b"\n"
    file_of(tmp_path).write_bytes(bad + line(path="val2017/2.jpg") + bad)
    assert set(read_ledger(tmp_path)) == {"val2017/2.jpg"}


def test_odd_values_that_may_be(tmp_path: Path) -> None:
    huge = 10**40
    file_of(tmp_path).write_bytes(line(bytes=huge, mtime_ns=-huge, more="than we know", route="\ud800"))
    entry = read_ledger(tmp_path)[ENTRY.path]
    assert (entry.bytes, entry.mtime_ns) == (huge, -huge)
    ledger = Ledger(tmp_path)
    ledger.append(entry)
    ledger.close()
    assert read_ledger(tmp_path)[ENTRY.path] == entry


def test_a_ledger_that_cannot_be_read(tmp_path: Path) -> None:
    file_of(tmp_path).mkdir()
    with pytest.raises(FetchError) as caught:
        read_ledger(tmp_path)
    assert caught.value.reason == "disk"
    (tmp_path / "file").write_text("")
    assert read_ledger(tmp_path / "file") == {}


def test_many_threads(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)

    def write(number: int) -> None:
        for n in range(200):
            ledger.append(replace(ENTRY, path=f"{number}/{n}.jpg", license="x" * (n * 40)))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ledger.close()
    assert len(read_ledger(tmp_path)) == 1600
    assert read_ledger(tmp_path) == ledger.entries


def test_known_facts_are_of_files_that_did_not_change(tmp_path: Path) -> None:
    records = [Record(f"./a/{n}.jpg", "real", "photos", "real", "real", "test", "coco", "x") for n in range(6)]
    (tmp_path / "a").mkdir()
    ledger = Ledger(tmp_path)
    for n, record in enumerate(records):
        file = tmp_path / record.file
        file.write_bytes(b"1234567")
        ledger.append(replace(ENTRY, path=record.file, mtime_ns=file.stat().st_mtime_ns, width=n + 1))
    ledger.append(replace(ENTRY, path="a/unlisted.jpg"))
    ledger.close()
    facts = ImageFacts(ENTRY.sha256, 1, 30, "JPEG", 7)
    assert known_facts(tmp_path, records)["a/0.jpg"] == facts
    status = (tmp_path / "a/1.jpg").stat()
    os.utime(tmp_path / "a/1.jpg", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    (tmp_path / "a/2.jpg").write_bytes(b"12345678")
    (tmp_path / "a/3.jpg").unlink()
    (tmp_path / "a/4.jpg").unlink()
    (tmp_path / "a/4.jpg").mkdir()
    assert set(known_facts(tmp_path, records)) == {"a/0.jpg", "a/5.jpg"}
    assert known_facts(tmp_path / "nowhere", records) == {}
