"""What the user already has: folders, ZIP archives, tar archives, on this disk."""

from __future__ import annotations

import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from imaginet_hub.data.images import read_bytes
from imaginet_hub.data.matching import Finder
from imaginet_hub.data.readers.files import LocalFile
from imaginet_hub.data.readers.zips import MAX_MEMBER_BYTES, Member, ZipFile
from imaginet_hub.data.sources import Source
from imaginet_hub.errors import FetchError, ImageError

__all__ = [
    "ARCHIVE_SUFFIXES",
    "archives_in",
    "find_in_folder",
    "inside_of",
    "kind_of",
    "read_file",
    "read_tar",
    "read_tars_in_zip",
    "tars_in_zip",
]

#: JourneyDB's archives lie in data/train/imgs/.
_ARCHIVE_DEPTH = 4
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_BROKEN = (
    tarfile.TarError,
    zipfile.BadZipFile,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    OSError,
    ValueError,
    OverflowError,
    RuntimeError,  # zipfile: encrypted, or an unknown method
    KeyError,
)


def kind_of(path: Path) -> str:
    """`folder`, `zip`, `tar`, `7z`, or `other`; by content, not by name."""
    if path.is_dir():
        return "folder"
    if not path.is_file():
        return "other"
    with path.open("rb") as file:
        head = file.read(512)
    if head.startswith((b"PK\3\4", b"PK\5\6")):
        return "zip"
    if head.startswith(b"7z\xbc\xaf\x27\x1c"):
        return "7z"
    if head[257:262] == b"ustar" or head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0")):
        return "tar"
    return {".zip": "zip", ".tar": "tar"}.get(path.suffix.lower(), "other")  # other bytes may come first; old tars


def inside_of(archive: Path) -> str:
    """Where the members of an archive lie, as a path: its own, without its ending."""
    return str(archive.absolute().parent / _without_ending(archive.name))


def _without_ending(name: str) -> str:
    ending = next((e for e in sorted(ARCHIVE_SUFFIXES, key=len, reverse=True) if name.lower().endswith(e)), "")
    return name[: len(name) - len(ending)]


def archives_in(folder: Path) -> list[Path]:
    """Archives in a folder and, as repositories of the Hub have them, a few folders below; nearest first."""
    found: list[tuple[int, Path]] = []
    base = os.path.abspath(folder)  # noqa: PTH100 - a link keeps its own name
    for parent, folders, names in os.walk(base):
        depth = len(Path(parent).relative_to(base).parts)
        if depth >= _ARCHIVE_DEPTH:
            folders.clear()
        files = (Path(parent, name) for name in names if name.lower().endswith(ARCHIVE_SUFFIXES))
        found += [(depth, file) for file in files if file.is_file()]
    return [file for _, file in sorted(found)]


def _log(error: OSError) -> None:
    import datasets

    where = os.fsencode(error.filename or "").decode("utf-8", "replace")
    logger = datasets.logging.get_logger(__name__)
    logger.warning(f"left out what is in {where}: {error.strerror or type(error).__name__}")


def find_in_folder(folder: Path, finder: Finder[Path], warn: Callable[[OSError], None] = _log) -> dict[str, Path]:
    """Offer every file below a folder to a finder and return its sure matches; the folder's own path counts too.

    Links are followed, and each folder is read once: by its own name if that is below `folder`, else by the first
    link to it.

    Args:
        warn: called with what is wrong with each folder that cannot be read and is left out. Default: log a warning.
    """
    ways = [os.path.abspath(folder)]  # noqa: PTH100 - a link keeps its own name
    seen = set()
    for way in ways:  # grows by the links that are met
        for parent, folders, names in os.walk(way, onerror=warn):
            try:
                status = os.stat(parent)  # noqa: PTH116
            except OSError as error:
                warn(error)
                continue
            if (status.st_dev, status.st_ino) in seen:
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            folders.sort()
            ways += [path for path in (f"{parent}/{name}" for name in folders) if os.path.islink(path)]  # noqa: PTH114
            for name in names:
                if finder.may_want(os.fsencode(name)):
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


class _Tars:
    """A finder of tar archives."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def may_want(self, name: bytes) -> bool:
        return name.isascii() and name.decode("ascii").lower().endswith(ARCHIVE_SUFFIXES[1:])

    def offer(self, name: str | bytes, _: Member) -> list[str]:
        if isinstance(name, str):
            self.names.append(name)
        return []

    def found(self) -> dict[str, Member]:
        return {}


def tars_in_zip(path: Path, source: str) -> list[str]:
    """Names of the tar archives inside a ZIP archive; none if it cannot be read."""
    tars = _Tars()
    try:
        ZipFile(LocalFile(path, source)).find(tars)
    except (FetchError, OSError):
        return []
    return tars.names


def _go_on() -> None:
    """Nobody wants to stop."""


def read_tars_in_zip(
    path: Path, source: Source, wanted: Iterable[str], check: Callable[[], None] = _go_on
) -> Iterator[tuple[str, bytes | FetchError]]:
    """`read_tar` of each tar archive inside a ZIP archive, as a stream."""
    left = list(wanted)
    for name in tars_in_zip(path, source.key):
        for target, result in read_tar(path, source.key, Finder(source, left), name, check):
            if isinstance(result, bytes):
                left.remove(target)
            yield target, result


def read_tar(
    path: Path, source: str, finder: Finder[str], inner: str | None = None, check: Callable[[], None] = _go_on
) -> Iterator[tuple[str, bytes | FetchError]]:
    """The wanted members of a tar archive, compressed or not; archives inside it are read too.

    It is read twice: which of its members match best is known at its end. ImageNet's training images come as a tar of
    tars. Only regular files are read, and none is unpacked to the disk.

    Args:
        inner: `path` is a ZIP archive, and this member of it the tar archive.
        check: called for every member, wanted or not, each time it is passed; raises to stop.
    """
    last: dict[str, int] = {}
    broken = None
    try:
        for number, (name, _, _) in enumerate(_members(path, inner, check)):
            if finder.offer(name, name):
                last[name] = number  # of members with one name the last one counts
    except _BROKEN as error:
        broken = error  # what lies before may be there
    wanted: dict[str, list[str]] = {}
    for target, name in finder.found().items():
        wanted.setdefault(name, []).append(target)
    try:
        for number, (name, member, archive) in enumerate(_members(path, inner, check) if wanted else ()):
            if name in wanted and last.get(name, number) == number:
                data = _data(path, source, name, member, archive)
                yield from ((target, data) for target in wanted.pop(name))
                if not wanted:
                    break
    except _BROKEN as error:
        broken = error
    for target, two in finder.ambiguous().items():
        got = f"two: {two[0]!r} and {two[1]!r}"
        yield target, FetchError("missing", source, str(path), f"a member for {target}", got, "name a narrower one")
    if broken is not None:
        raise FetchError(
            "corrupt",
            source,
            str(path),
            "a complete tar archive",
            str(broken) or type(broken).__name__,
            "it is truncated or damaged: fetch it again",
        ) from broken


def _members(
    path: Path, inner: str | None, check: Callable[[], None]
) -> Iterator[tuple[str, tarfile.TarInfo, tarfile.TarFile]]:
    """Regular files in their order: name (with that of the inner archive), description, the archive to read from."""
    if inner is None:
        with path.open("rb") as file:
            yield from _members_of(file, inside_of(path), check, depth=0)
        return
    with zipfile.ZipFile(path) as outer, outer.open(inner) as stream:
        yield from _members_of(stream, f"{inside_of(path)}/{_without_ending(inner)}", check, depth=0)


def _members_of(  # type: ignore[no-untyped-def]
    file, inside: str, check: Callable[[], None], depth: int
) -> Iterator[tuple[str, tarfile.TarInfo, tarfile.TarFile]]:
    with tarfile.open(fileobj=file, mode="r|*", errorlevel=1) as archive:
        for member in archive:
            archive.members.clear()  # type: ignore[attr-defined] # it would remember them all
            check()
            if not member.isreg():
                continue
            if depth == 0 and member.name.lower().endswith(".tar"):
                stem = member.name[: -len(".tar")]
                yield from _members_of(archive.extractfile(member), f"{inside}/{stem}", check, depth + 1)
            else:
                yield f"{inside}/{member.name}", member, archive


def _data(path: Path, source: str, name: str, member: tarfile.TarInfo, archive: tarfile.TarFile) -> bytes | FetchError:
    if member.size > MAX_MEMBER_BYTES or member.issparse():
        got = "a sparse file" if member.issparse() else f"one of {member.size:,} bytes"
        expected = f"an image of at most {MAX_MEMBER_BYTES:,} bytes"
        return FetchError("corrupt", source, f"{path}: {member.name}", expected, got, "leave it out")
    stream = archive.extractfile(member)
    data = stream.read(MAX_MEMBER_BYTES + 1) if stream is not None else b""
    if len(data) != member.size:
        raise EOFError(f"{name} ends after {len(data):,} of {member.size:,} bytes")
    return data
