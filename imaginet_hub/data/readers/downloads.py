"""Whole files to this disk, resumed where they were, verified before they get their name."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from imaginet_hub.data.readers.http import Http, Remote

__all__ = ["download", "had"]

_PIECE = 1024**2


def _partial(target: Path, size: int, sha256: str | None) -> Path:
    """What it is called until it is complete; what another version left is not to be gone on with."""
    return target.with_name(f"{target.name}.{(sha256 or str(size))[:16]}.incomplete")


def _sha256(file: Path, check: Callable[[], None]) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while piece := stream.read(_PIECE):
            digest.update(piece)
            check()
    return digest.hexdigest()


def had(target: Path, size: int, sha256: str | None) -> int:
    """How many bytes of a file earlier runs had."""
    if target.is_file() and target.stat().st_size == size:
        return size
    partial = _partial(target, size, sha256)
    return min(size, partial.stat().st_size) if partial.is_file() else 0


def download(
    http: Http, remote: Remote, target: Path, size: int, sha256: str | None, moved: Callable[[int], None]
) -> None:
    """Have a file. What an earlier run had of it is not asked for again.

    Args:
        http: the client.
        remote: the file.
        target: where it is to lie; what lies there already is taken for it, if it is as large and has that hash.
        size: its bytes.
        sha256: of its bytes, if that is known: 64 hexadecimal digits in lower case.
        moved: is told how many bytes were had, and how many of those in vain (as a negative number); it may
            raise to stop.

    Raises:
        FetchError: see `Http.stream`; or reason "corrupt", and nothing is left of it.
        OSError: the disk.
    """
    if target.is_file() and target.stat().st_size == size:
        # Volumes are all of one size, whatever version they are of.
        if sha256 in (None, _sha256(target, http.check)):
            moved(size)
            return
        target.unlink()
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(target, size, sha256)
    for last in (False, True):
        digest = hashlib.sha256()
        with partial.open("ab+") as file:
            file.seek(0)
            while piece := file.read(_PIECE):
                digest.update(piece)
                moved(len(piece))
                http.check()
            position = file.tell()
            if position < size:
                for piece in http.stream(remote, position, size):
                    file.write(piece)
                    digest.update(piece)
                    position += len(piece)
                    moved(len(piece))
            file.flush()
            os.fsync(file.fileno())  # or its name might outlive its bytes
        found = digest.hexdigest()
        if position == size and sha256 in (None, found):
            partial.replace(target)
            return
        moved(-position)
        partial.unlink()
        if last:
            expected = f"SHA-256 {sha256}" if position == size else f"{size:,} bytes"
            got = found if position == size else f"{position:,}"
            raise remote.error("corrupt", expected, got, remote.other_ways())
