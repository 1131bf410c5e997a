"""Files that are read in ranges: on this disk, in volumes, inside one another."""

from __future__ import annotations

import os
import random
import zlib
from pathlib import Path

import pytest

from imaginet_hub.data.readers.files import Inflated, LocalFile, Span, Volumes, read_range, seeks
from imaginet_hub.errors import FetchError


def volumes(folder: Path, data: bytes, cuts: list[int]) -> Volumes:
    parts = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    files = []
    for number, part in enumerate(parts):
        (folder / f"v{number}").write_bytes(part)
        files.append(LocalFile(folder / f"v{number}", "test"))
    return Volumes(files)


def test_a_local_file(tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    (tmp_path / "a").write_bytes(data)
    file = LocalFile(tmp_path / "a", "test")
    assert file.size() == len(data)
    assert read_range(file, 5, 2_500_000) == data[5:2_500_000]
    assert read_range(file, 7, 7) == b""
    with pytest.raises(FetchError, match="the end of the file") as raised:
        read_range(file, len(data) - 3, len(data) + 1)
    assert raised.value.reason == "corrupt"


def test_a_local_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path / "a" / "b"):
        for read in (LocalFile(path, "test").size, lambda path=path: read_range(LocalFile(path, "test"), 0, 1)):
            with pytest.raises(FetchError, match="a file that can be read") as raised:
                read()
            assert raised.value.address == str(path)
    with pytest.raises(FetchError, match="a file that can be read"):
        read_range(LocalFile(tmp_path, "test"), 0, 1)


def test_volumes_are_one_file(tmp_path: Path) -> None:
    """Any range, whatever the borders; also of volumes without a byte."""
    chance = random.Random(4)
    for _ in range(60):
        data = chance.randbytes(chance.randrange(1, 200))
        cuts = sorted(chance.randrange(len(data) + 1) for _ in range(chance.randrange(8)))
        file = volumes(tmp_path, data, cuts)
        assert file.size() == len(data)
        for _ in range(20):
            start, end = sorted(chance.randrange(len(data) + 1) for _ in range(2))
            assert read_range(file, start, end) == data[start:end]
        with pytest.raises(FetchError, match="bytes in all volumes"):
            read_range(file, 0, len(data) + 1)


def test_volumes_shorter_than_was_said(tmp_path: Path) -> None:
    file = volumes(tmp_path, bytes(100), [50])
    said = Volumes([LocalFile(tmp_path / name, "test") for name in ("v0", "v1")], [60, 50])
    assert file.size() == 100
    assert said.size() == 110
    with pytest.raises(FetchError, match="the end of the file"):
        read_range(said, 40, 70)


def test_spans_and_inflated_parts(tmp_path: Path) -> None:
    data = os.urandom(1000) * 900
    press = zlib.compressobj(6, zlib.DEFLATED, -15)
    packed = press.compress(data) + press.flush()
    file = volumes(tmp_path, b"before" + packed + b"behind", [3, 500, 501])
    span = Span(file, 6, len(packed))
    assert read_range(span, 0, span.size()) == packed
    with pytest.raises(FetchError):
        read_range(span, 0, len(packed) + 1)
    inflated = Inflated(span, len(data))
    assert read_range(inflated, 0, len(data)) == data
    assert seeks(span) and not seeks(inflated)
    assert read_range(inflated, 777_777, 777_779) == data[777_777:777_779]
    with pytest.raises(FetchError, match="bytes unpacked"):
        read_range(inflated, 0, len(data) + 1)
    with pytest.raises(FetchError, match="deflated data"):
        read_range(Inflated(Span(file, 3, 400), 1000), 0, 1000)
