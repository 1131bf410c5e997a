"""Members of compressed 7z blocks, straight from the archive's volumes to memory: no file is written by its name.

The system's 7z does it where there is one, py7zr where there is none (and for what 7z could not read).
"""

from __future__ import annotations

import contextlib
import importlib.util
import re
import shutil
import subprocess
import tempfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, cast

from imaginet_hub.data.readers.files import File
from imaginet_hub.data.readers.sevenzip import Block, Entry, SevenZip
from imaginet_hub.errors import FetchError

__all__ = ["require_unpacker", "unpack", "unpack_to", "unpacker"]

_PROGRAMS = ("7zz", "7z", "7za")
_PIECE = 1024**2
#: What 7z may take: its dictionary (see `sevenzip.MAX_DICTIONARY_BYTES`) and itself.
_PROGRAM_BYTES = 800 * 1024**2
#: Names that 7z takes literally.
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def unpacker() -> str | None:
    """What will unpack: the path of 7z, "py7zr", or None."""
    program = next(filter(None, map(shutil.which, _PROGRAMS)), None)
    return program or ("py7zr" if importlib.util.find_spec("py7zr") else None)


def require_unpacker(file: File) -> str:
    """See `unpacker`.

    Raises:
        FetchError: reason "format": there is none.
    """
    found = unpacker()
    if found is None:
        remedy = 'install 7-Zip (7z or 7zz), or py7zr with: pip install "imaginet_hub[fetch]"'
        raise file.error("format", "a program that unpacks 7z archives", "none", remedy)
    return found


def unpack_to(archive: SevenZip, first_volume: Path, entry: Entry, target: Path, check: Callable[[], None]) -> None:
    """A member too large for memory, to a file that gets its name when it is complete and its CRC-32 was right.

    Raises:
        FetchError: it cannot be unpacked, or is damaged.
        OSError: the disk.
    """
    block = archive.blocks[entry.block]
    if block.refusal is not None or entry.link:
        got = block.refusal or "a symbolic link"
        raise archive.file.error("corrupt", f"a member {entry.name!r} to unpack", got, archive.file.remedy)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.incomplete")
    program = require_unpacker(archive.file)
    pieces = (
        _pieces_by_program(program, archive, first_volume, entry, check)
        if program != "py7zr"
        else _pieces_by_py7zr(archive, entry, check)
    )
    crc, size = 0, 0
    with partial.open("wb") as file:
        for piece in pieces:
            file.write(piece)
            crc = zlib.crc32(piece, crc)
            size += len(piece)
    if size != entry.size or entry.crc not in (None, crc):
        partial.unlink()
        got = f"{size:,} bytes, CRC32 {crc:08x}"
        expected = f"{entry.size:,} bytes of {entry.name!r}, CRC32 {entry.crc or 0:08x}"
        raise archive.file.error("corrupt", expected, got, archive.file.remedy)
    partial.replace(target)


def unpack(
    archive: SevenZip, first_volume: Path, wanted: Mapping[str, Entry], check: Callable[[], None]
) -> Iterator[tuple[str, bytes | FetchError]]:
    """Members of compressed blocks.

    Args:
        archive: over volumes that lie on this disk.
        first_volume: `<name>.7z` or `<name>.7z.001`; the others lie beside it.
        wanted: entries, by path.
        check: called often; raises to stop.

    Yields:
        (path, the member's bytes or what is wrong with it), in the archive's order.

    Raises:
        FetchError: reason "format", where nothing here can unpack.
    """
    refused = {path: error for path, entry in wanted.items() if (error := archive.unreadable(entry)) is not None}
    yield from refused.items()
    left = {path: entry for path, entry in wanted.items() if path not in refused}
    program = require_unpacker(archive.file)
    failed: dict[str, FetchError] = {}
    if program != "py7zr":
        for path, result in _by_program(program, archive, first_volume, left, check):
            if isinstance(result, bytes):
                yield path, result
            else:
                failed[path] = result
        left = {path: left[path] for path in failed}
    if left and importlib.util.find_spec("py7zr"):
        yield from _by_py7zr(archive, left, check)
    else:
        yield from failed.items()


def _by_program(
    program: str, archive: SevenZip, first_volume: Path, wanted: Mapping[str, Entry], check: Callable[[], None]
) -> Iterator[tuple[str, bytes | FetchError]]:
    """7z writes members one behind the other to its standard output; the table of contents says where each ends."""
    tops = {entry.name.split("/")[0] for entry in wanted.values()}
    paths: dict[int, list[str]] = {}
    for path, entry in wanted.items():
        paths.setdefault(id(entry), []).append(path)
    with tempfile.TemporaryFile() as words, _running(program, first_volume, tops, words) as (output, expected):
        for entry in filter(expected, archive.entries):
            if not paths:
                return
            check()
            targets = paths.pop(id(entry), [])
            data = _taken(output, entry.size, keep=bool(targets), check=check)
            result = archive.checked(entry, data)
            if isinstance(result, FetchError):
                result = archive.file.error("corrupt", result.expected, result.got + _said(words), result.remedy)
            yield from ((target, result) for target in targets)


def _said(words: IO[bytes]) -> str:
    words.seek(0)
    errors = [line.strip() for line in words.read(4000).decode(errors="replace").splitlines() if "ERROR" in line]
    return f" (7z: {errors[0][:200]})" if errors else ""


def _pieces_by_program(
    program: str, archive: SevenZip, first_volume: Path, wanted: Entry, check: Callable[[], None]
) -> Iterator[bytes]:
    top = wanted.name.split("/")[0]
    with tempfile.TemporaryFile() as words, _running(program, first_volume, {top}, words) as (output, expected):
        for entry in filter(expected, archive.entries):
            left = entry.size
            while left and (piece := output.read(min(_PIECE, left))):
                check()
                left -= len(piece)
                if entry is wanted:
                    yield piece
            if entry is wanted:
                return


@contextlib.contextmanager
def _running(
    program: str, first_volume: Path, tops: Collection[str], words: IO[bytes]
) -> Iterator[tuple[IO[bytes], Callable[[Entry], bool]]]:
    """7z at work: what it writes, and which members that is, by their top folders."""
    plain = all(_PLAIN.fullmatch(top) for top in tops)
    command = [program, "x", "-so", "-bd", "-mmt=1", "-spd", "--", str(first_volume.absolute())]
    command += sorted(tops) if plain else []
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=words, bufsize=_PIECE)
    try:
        with contextlib.suppress(ImportError, AttributeError, OSError, ValueError):  # Linux alone has it
            import resource

            resource.prlimit(process.pid, resource.RLIMIT_AS, (_PROGRAM_BYTES, _PROGRAM_BYTES))
        yield cast("IO[bytes]", process.stdout), lambda entry: not plain or entry.name.split("/")[0] in tops
    finally:
        process.kill()
        process.communicate()


def _taken(output: IO[bytes], size: int, *, keep: bool, check: Callable[[], None]) -> bytes:
    """The next `size` bytes; none of them where they are not to be kept."""
    kept = bytearray()
    while size > 0:
        piece = output.read(min(_PIECE, size))
        if not piece:
            break
        size -= len(piece)
        if keep:
            kept += piece
        check()
    return bytes(kept)


def _by_py7zr(
    archive: SevenZip, wanted: Mapping[str, Entry], check: Callable[[], None]
) -> Iterator[tuple[str, bytes | FetchError]]:
    """Block by block; what breaks one leaves the others alone."""
    blocks: dict[int, list[tuple[str, Entry]]] = {}
    for path, entry in wanted.items():
        blocks.setdefault(entry.block, []).append((path, entry))
    for number, members in sorted(blocks.items()):
        members.sort(key=lambda member: member[1].start)
        told = 0
        try:
            for path, result in _block(archive, archive.blocks[number], members, check):
                yield path, result
                told += 1
        except FetchError as error:
            yield from ((path, error) for path, _ in members[told:])


def _pieces_by_py7zr(archive: SevenZip, entry: Entry, check: Callable[[], None]) -> Iterator[bytes]:
    for piece, wanted in _decoded(archive, archive.blocks[entry.block], [entry], check):
        if wanted is entry:
            yield piece


def _block(
    archive: SevenZip, block: Block, members: Sequence[tuple[str, Entry]], check: Callable[[], None]
) -> Iterator[tuple[str, bytes | FetchError]]:
    """The wanted members of a block; two paths may want the same."""
    paths: dict[int, list[str]] = {}
    for path, entry in members:
        paths.setdefault(id(entry), []).append(path)
    entries = list({id(entry): entry for _, entry in members}.values())
    kept = bytearray()
    for piece, entry in _decoded(archive, block, entries, check):
        if piece:
            kept += piece
        else:  # the end of a member
            result = archive.checked(entry, bytes(kept))
            kept.clear()
            yield from ((path, result) for path in paths[id(entry)])


def _decoded(
    archive: SevenZip, block: Block, entries: Sequence[Entry], check: Callable[[], None]
) -> Iterator[tuple[bytes, Entry]]:
    """Pieces of members, in the block's order, and an empty piece at the end of each."""
    import py7zr.compressor
    import py7zr.exceptions

    coders = [
        {"method": c.method, "properties": c.properties, "numinstreams": c.inputs, "numoutstreams": c.outputs}
        for c in block.coders
    ]
    position = 0
    try:
        decoder = py7zr.compressor.SevenZipDecompressor(coders, block.packed, list(block.sizes), None)
        source = _Reading(archive.file, block)
        for entry in sorted(entries, key=lambda entry: entry.start):
            end = entry.start + entry.size
            while position < end:
                check()
                skip = max(0, entry.start - position)
                data = decoder.decompress(source, min(_PIECE, skip or end - position))
                if not data and source.ended:
                    break
                position += len(data)
                if data and not skip:
                    yield data, entry
            yield b"", entry
    except (
        py7zr.exceptions.ArchiveError,
        *(ValueError, EOFError, OSError, ArithmeticError, LookupError, MemoryError, RuntimeError, zlib.error),
    ) as error:
        what = "+".join(coder.method.hex() for coder in block.coders)
        raise archive.file.error(
            "corrupt",
            f"a block that py7zr can decode (methods {what})",
            f"{type(error).__name__} ({error})"[:300],
            f"install 7-Zip (7z or 7zz), or {archive.file.remedy}",
        ) from error


class _Reading:
    """A block's packed data as py7zr reads them."""

    def __init__(self, file: File, block: Block) -> None:
        self._pieces = file.stream(block.offset, block.offset + block.packed)
        self._rest = b""
        self.ended = False

    def read(self, size: int = -1) -> bytes:
        parts, got = [self._rest], len(self._rest)
        while size < 0 or got < size:
            piece = next(self._pieces, None)
            if piece is None:
                self.ended = True
                break
            parts.append(piece)
            got += len(piece)
        data = b"".join(parts)
        self._rest = data[size:] if size >= 0 else b""
        return data[:size] if size >= 0 else data
