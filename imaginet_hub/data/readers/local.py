"""What the user already has: folders, ZIP archives, tar archives, on this disk."""

from __future__ import annotations

import lzma
import os
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from imaginet_hub.data.images import read_bytes
from imaginet_hub.data.matching import Finder
from imaginet_hub.data.readers.zips import MAX_MEMBER_BYTES
from imaginet_hub.errors import FetchError, ImageError

__all__ = ["ARCHIVE_SUFFIXES", "archives_in", "find_in_folder", "kind_of", "read_file", "read_tar"]

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_BROKEN = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError, ValueError, OverflowError)


def kind_of(path: Path) -> str:
    """`folder`, `zip`, `tar`, `7z`, or `other`; by content, not by name."""
    if path.is_dir():
        return "folder"
    with path.open("rb") as file:
        head = file.read(512)
    if head.startswith((b"PK\3\4", b"PK\5\6")):
        return "zip"
    if head.startswith(b"7z\xbc\xaf\x27\x1c"):
        return "7z"
    if head[257:262] == b"ustar" or head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0")):
        return "tar"
    return "zip" if path.suffix.lower() == ".zip" else "other"


def archives_in(folder: Path) -> list[Path]:
    """Archives that lie directly in a folder."""
    return sorted(p for p in folder.iterdir() if p.name.lower().endswith(ARCHIVE_SUFFIXES) and p.is_file())


def find_in_folder(folder: Path, finder: Finder[Path]) -> dict[str, Path]:
    """Offer every file below a folder to a finder and return its sure matches; the folder's own path counts too."""
    base = os.path.abspath(folder)  # noqa: PTH100 - a link keeps its own name
    for parent, _, names in os.walk(base):
        for name in names:
            finder.offer(f"{parent}/{name}", Path(parent, name))
    return finder.found()


def read_file(path: Path, source: str) -> bytes:
    """The bytes of one of the user's files.

    Raises:
        FetchError: reason "corrupt".
    """
    try:
        return read_bytes(path)
    except ImageError as error:
        raise FetchError(
            "corrupt", source, str(path), "a readable file", error.reason, "repair it, or have it fetched"
        ) from error


def read_tar(path: Path, source: str, finder: Finder[str]) -> Iterator[tuple[str, bytes | FetchError]]:
    """The wanted members of a tar archive, compressed or not, in one pass; archives inside it are read too.

    ImageNet's training images come as a tar of tars. Only regular files are read, and none is unpacked to the disk.
    """
    try:
        with path.open("rb") as file:
            yield from _members(file, str(path), source, finder, set(), depth=0)
    except _BROKEN as error:
        reason = str(error) or type(error).__name__
        raise FetchError(
            "corrupt",
            source,
            str(path),
            "a complete tar archive",
            reason,
            "it is truncated or damaged: fetch it again",
        ) from error


def _members(  # type: ignore[no-untyped-def]
    file, prefix: str, source: str, finder: Finder[str], given: set[str], depth: int
) -> Iterator[tuple[str, bytes | FetchError]]:
    with tarfile.open(fileobj=file, mode="r|*", errorlevel=1) as archive:
        for member in archive:
            if not member.isreg():
                continue
            if depth == 0 and member.name.lower().endswith(".tar"):
                inner = archive.extractfile(member)
                stem = member.name[: -len(".tar")]
                yield from _members(inner, f"{prefix}/{stem}", source, finder, given, depth + 1)
                continue
            wanted = [p for p in finder.offer(f"{prefix}/{member.name}", member.name) if p not in given]
            if not wanted:
                continue
            address = f"{prefix}: {member.name}"
            if member.size > MAX_MEMBER_BYTES or member.issparse():
                got = "a sparse file" if member.issparse() else f"one of {member.size:,} bytes"
                error = FetchError(
                    "corrupt", source, address, f"an image of at most {MAX_MEMBER_BYTES:,} bytes", got, "leave it out"
                )
                yield from ((p, error) for p in wanted)
                continue
            stream = archive.extractfile(member)
            data = stream.read(MAX_MEMBER_BYTES + 1) if stream is not None else b""
            if len(data) != member.size:
                raise EOFError(f"{member.name} ends after {len(data):,} of {member.size:,} bytes")
            given.update(wanted)
            yield from ((p, data) for p in wanted)
