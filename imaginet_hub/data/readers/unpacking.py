"""Members of compressed 7z blocks, straight from the archive's volumes to memory: no file is written by its name.

The system's 7z does it where there is one, py7zr where there is none (and for what 7z could not read).
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import lzma
import os
import re
import select
import shutil
import struct
import subprocess
import tempfile
import time
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from imaginet_hub.data.readers.files import File
from imaginet_hub.data.readers.sevenzip import Block, Entry, SevenZip
from imaginet_hub.errors import FetchError

__all__ = ["py7zr_is_here", "require_unpacker", "unpack", "unpack_to", "unpacker"]

_PROGRAMS = ("7zz", "7z", "7za")
_PIECE = 1024**2
#: Packed bytes that py7zr gets at a time: some of its decoders unpack whatever they get at once, up to 1000-fold.
_FEED = 64 * 1024
#: A decoder that gave nothing so often, though it was given nothing, is at its end: some hold a few bytes back.
_IDLE = 100
#: What 7z may take: its dictionary (see `sevenzip.MAX_DICTIONARY_BYTES`) and itself; and what it may write to a file.
_PROGRAM_BYTES, _WORDS_BYTES = 800 * 1024**2, 1024**2
#: A program that neither writes nor computes for so long hangs; how often that is looked at.
_SILENCE_S, _LOOK_S = 120.0, 0.2
#: What 7z may need to start and to understand names; no secrets.
_ENVIRONMENT = (
    "PATH",
    "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH",
    "SYSTEMROOT",
    "TMPDIR",
    "TEMP",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
)
#: Names that 7z takes literally.
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
#: Methods that py7zr decodes in bounded memory: Copy, Delta, BCJ and its kin, LZMA, LZMA2, Deflate(64), BZip2. Not
#: PPMd: damaged data make its library end the process.
_BOUNDED = {
    bytes.fromhex(number)
    for number in (
        *("00", "03", "04", "05", "06", "07", "08", "09", "21", "030101", "040108", "040109", "040202"),
        *("03030103", "03030205", "03030401", "03030501", "03030701", "03030805"),
    )
}

Check = Callable[[], None]


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


def unpack_to(archive: SevenZip, first_volume: Path, entry: Entry, target: Path, check: Check) -> None:
    """A member too large for memory, to a file that gets its name when it is complete and its CRC-32 was right.

    Raises:
        FetchError: it cannot be unpacked, or is damaged.
        OSError: the disk.
    """
    block = archive.blocks[entry.block]
    if block.refusal is not None or entry.link:
        got = block.refusal or "a symbolic link"
        raise archive.file.error("corrupt", f"a member {entry.name!r} to unpack", got, archive.file.remedy)
    program = require_unpacker(archive.file)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.incomplete")
    partial.unlink(missing_ok=True)  # of a run that was killed
    ways = [] if program == "py7zr" else [_pieces_by_program(program, archive, first_volume, entry, check)]
    ways += [_pieces_by_py7zr(archive, entry, check)] if py7zr_is_here() else []
    errors = []
    try:
        for pieces in ways:
            error = _write(archive, entry, pieces, partial)
            if error is None:
                partial.replace(target)
                return
            errors.append(error)
    finally:
        partial.unlink(missing_ok=True)
    raise errors[-1]


def _write(archive: SevenZip, entry: Entry, pieces: Generator[bytes], partial: Path) -> FetchError | None:
    """What is wrong with the pieces of a member, having written them to a file."""
    crc, size = 0, 0
    try:
        with contextlib.closing(pieces), partial.open("wb") as file:
            for piece in pieces:
                file.write(piece)
                crc = zlib.crc32(piece, crc)
                size += len(piece)
    except FetchError as error:
        return error
    if size == entry.size and entry.crc in (None, crc):
        return None
    got = f"{size:,} bytes, CRC32 {crc:08x}"
    expected = f"{entry.size:,} bytes of {entry.name!r}, CRC32 {entry.crc or 0:08x}"
    return archive.file.error("corrupt", expected, got, archive.file.remedy)


def unpack(
    archive: SevenZip, first_volume: Path, wanted: Mapping[str, Entry], check: Check
) -> Iterator[tuple[str, bytes | FetchError]]:
    """Members of compressed blocks.

    Args:
        archive: over volumes that lie on this disk.
        first_volume: `<name>.7z` or `<name>.7z.001`; the others lie beside it.
        wanted: entries, by path.
        check: called often; raises to stop.

    Yields:
        (path, the member's bytes or what is wrong with it), in the archive's order, those that need py7zr last.

    Raises:
        FetchError: reason "format", where nothing here can unpack.
    """
    refused = {path: error for path, entry in wanted.items() if (error := archive.unreadable(entry)) is not None}
    yield from refused.items()
    left = {path: entry for path, entry in wanted.items() if path not in refused}
    if not left:
        return
    program = require_unpacker(archive.file)
    choice = _Choice.of(archive, left.values())
    failed: dict[str, FetchError] = {}
    if choice.dangerous:  # 7z would decode what lies between; py7zr is given blocks one by one
        failed = dict.fromkeys(left, _too_dangerous(archive))
    elif program != "py7zr":
        for path, result in _by_program(program, archive, first_volume, left, choice, check):
            if isinstance(result, bytes):
                yield path, result
            else:
                failed[path] = result
        left = {path: left[path] for path in failed}
    if py7zr_is_here():
        yield from _by_py7zr(archive, left, check)
    else:
        yield from failed.items()


def _too_dangerous(archive: SevenZip) -> FetchError:
    remedy = 'install py7zr with: pip install "imaginet_hub[fetch]"'
    got = "bombs among them, which 7z would unpack too"
    return archive.file.error("format", "blocks that can be unpacked", got, remedy)


def py7zr_is_here() -> bool:
    """Whether there is a second opinion on what 7z could not read."""
    return importlib.util.find_spec("py7zr") is not None


@dataclass(frozen=True)
class _Choice:
    """What 7z is told to unpack.

    Attributes:
        tops: top folders; none: everything. The program and we have to mean the same by it, so they are only used
            where no name in the archive leaves a doubt.
        entries: the members that this is, in the order in which they come.
        dangerous: whether some lie in blocks that should not be decoded.
    """

    tops: tuple[str, ...]
    entries: tuple[Entry, ...]
    dangerous: bool

    @classmethod
    def of(cls, archive: SevenZip, wanted: Iterable[Entry]) -> _Choice:
        plain = all(_PLAIN.fullmatch(top) for top in {_top(entry) for entry in archive.entries})
        tops = {_top(entry) for entry in wanted} if plain else set()
        entries = tuple(entry for entry in archive.entries if not plain or _top(entry) in tops)
        numbers = {entry.block for entry in entries}
        return cls(tuple(sorted(tops)), entries, any(archive.blocks[number].refusal is not None for number in numbers))


def _top(entry: Entry) -> str:
    return entry.name.partition("/")[0]


def _by_program(
    program: str, archive: SevenZip, first_volume: Path, wanted: Mapping[str, Entry], choice: _Choice, check: Check
) -> Iterator[tuple[str, bytes | FetchError]]:
    """7z writes members one behind the other to its standard output; the table of contents says where each ends.

    Of a block that it cannot decode to its end it writes less, and whatever comes then lies elsewhere: only a right
    CRC-32 shows that we are still (or again) where we think.
    """
    paths: dict[int, list[str]] = {}
    for path, entry in wanted.items():
        paths.setdefault(id(entry), []).append(path)
    sure = True
    with _Program(program, first_volume, choice.tops, check) as running:
        for entry in choice.entries:
            if not paths:
                return
            targets = paths.pop(id(entry), [])
            if not targets:
                right = running.passes(entry)
                sure = right and (sure or entry.crc is not None)
                continue
            result = archive.checked(entry, running.take(entry.size))
            sure = isinstance(result, bytes) and (sure or entry.crc is not None)
            if not sure:
                expected, got = f"member {entry.name!r}", "other bytes"
                if isinstance(result, FetchError):
                    expected, got = result.expected, result.got
                result = archive.file.error("corrupt", expected, got + running.said(), archive.file.remedy)
            yield from ((target, result) for target in targets)


def _pieces_by_program(
    program: str, archive: SevenZip, first_volume: Path, wanted: Entry, check: Check
) -> Generator[bytes]:
    choice = _Choice.of(archive, [wanted])
    if choice.dangerous:
        raise _too_dangerous(archive)
    with _Program(program, first_volume, choice.tops, check) as running:
        for entry in choice.entries:
            for piece in running.pieces(entry.size):
                if entry is wanted:
                    yield piece
            if entry is wanted:
                return


class _Program:
    """7z at work, and what it writes; nothing where it cannot be started. It ends with the block."""

    def __init__(self, program: str, first_volume: Path, tops: Sequence[str], check: Check) -> None:
        self._command = [program, "x", "-so", "-bd", "-mmt=1", "-spd", "--", str(first_volume.absolute()), *tops]
        self._check = check
        self._process: subprocess.Popen[bytes] | None = None
        self._words: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the block
        self._trouble = ""

    def __enter__(self) -> _Program:
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=self._words,
                bufsize=0,
                env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
            )
        except OSError as error:
            self._trouble = str(error)
            return self
        with contextlib.suppress(ImportError, AttributeError, OSError, ValueError):  # Linux alone has it
            import resource

            resource.prlimit(self._process.pid, resource.RLIMIT_AS, (_PROGRAM_BYTES, _PROGRAM_BYTES))
            resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE, (_WORDS_BYTES, _WORDS_BYTES))
        return self

    def __exit__(self, *exc: object) -> None:
        if self._process is not None and self._process.stdout is not None:
            self._process.kill()
            self._process.stdout.close()
            self._process.wait()
        self._words.close()

    def pieces(self, size: int) -> Iterator[bytes]:
        """The next `size` bytes, or fewer at the end."""
        while size > 0 and (piece := self._read(min(_PIECE, size))):
            size -= len(piece)
            yield piece

    def take(self, size: int) -> bytes:
        """The next `size` bytes, or fewer at the end."""
        kept = io.BytesIO()
        for piece in self.pieces(size):
            kept.write(piece)
        return kept.getvalue()

    def passes(self, entry: Entry) -> bool:
        """Read over a member; whether it was what the table says."""
        crc = size = 0
        for piece in self.pieces(entry.size):
            crc = zlib.crc32(piece, crc)
            size += len(piece)
        return size == entry.size and entry.crc in (None, crc)

    def said(self) -> str:
        """What went wrong, in its own words."""
        self._words.seek(0)
        lines = self._words.read(4000).decode(errors="replace").splitlines()
        found = [self._trouble] if self._trouble else [line.strip() for line in lines if "ERROR" in line]
        return f" ({Path(self._command[0]).name}: {found[0][:200]})" if found else ""

    def _read(self, most: int) -> bytes:
        self._check()
        if self._process is None or self._process.stdout is None or self._trouble:
            return b""
        if hasattr(select, "poll"):
            self._wait(self._process.stdout.fileno(), self._process.pid)
        return b"" if self._trouble else os.read(self._process.stdout.fileno(), most)

    def _wait(self, file: int, process: int) -> None:
        """Until there is something to read, or nothing to hope for."""
        ready = select.poll()
        ready.register(file)
        since, work = time.monotonic(), _work(process)
        while not ready.poll(1000 * _LOOK_S):
            self._check()
            if (now := _work(process)) != work:
                since, work = time.monotonic(), now
            elif time.monotonic() - since > _SILENCE_S:
                self._trouble = f"nothing for {_SILENCE_S:.0f} s"
                return


def _work(process: int) -> object:
    """Something that changes when a process computes; always, where that cannot be seen."""
    try:
        return Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()[11:13]
    except OSError:
        return time.monotonic()


def _by_py7zr(
    archive: SevenZip, wanted: Mapping[str, Entry], check: Check
) -> Iterator[tuple[str, bytes | FetchError]]:
    """Block by block; what breaks one leaves the others alone, and what came before."""
    blocks: dict[int, dict[int, tuple[Entry, list[str]]]] = {}
    for path, entry in wanted.items():
        blocks.setdefault(entry.block, {}).setdefault(id(entry), (entry, []))[1].append(path)
    for number, members in sorted(blocks.items()):
        kept = io.BytesIO()
        try:
            for piece, entry in _decoded(
                archive, archive.blocks[number], [entry for entry, _ in members.values()], check
            ):
                kept.write(piece)
                if not piece:  # the end of a member
                    result = archive.checked(entry, kept.getvalue())
                    kept = io.BytesIO()
                    yield from ((path, result) for path in members.pop(id(entry))[1])
        except FetchError as error:
            yield from ((path, error) for _, paths in members.values() for path in paths)


def _pieces_by_py7zr(archive: SevenZip, entry: Entry, check: Check) -> Generator[bytes]:
    for piece, _ in _decoded(archive, archive.blocks[entry.block], [entry], check):
        yield piece


def _decoded(archive: SevenZip, block: Block, entries: Iterable[Entry], check: Check) -> Iterator[tuple[bytes, Entry]]:
    """Pieces of members, in the block's order, and an empty piece at the end of each."""
    import py7zr.compressor
    import py7zr.exceptions

    coders = [
        {"method": c.method, "properties": c.properties or None, "numinstreams": c.inputs, "numoutstreams": c.outputs}
        for c in block.coders
    ]
    position = idle = 0
    try:
        if not all(coder.method in _BOUNDED for coder in block.coders):
            raise ValueError("a method that it is not given")
        decoder = py7zr.compressor.SevenZipDecompressor(coders, block.packed, list(block.sizes), None, None, _FEED)
        source = _Packed(archive.file, block, decoder.chain[0])
        for entry in sorted(entries, key=lambda entry: entry.start):
            end = entry.start + entry.size
            while position < end:
                check()
                skip = max(0, entry.start - position)
                source.fed = False  # it may not even ask
                data = decoder.decompress(source, min(_PIECE, skip or end - position))
                idle = 0 if data or source.fed else idle + 1
                if idle > _IDLE:
                    break
                position += len(data)
                if data and not skip:
                    yield bytes(data), entry
            yield b"", entry
    except (
        py7zr.exceptions.ArchiveError,
        lzma.LZMAError,
        zlib.error,
        *(ValueError, TypeError, EOFError, OSError, ArithmeticError, LookupError, MemoryError, RuntimeError),
        *(AttributeError, ImportError),  # another py7zr than we know
        struct.error,
    ) as error:
        what = "+".join(coder.method.hex() for coder in block.coders)
        raise archive.file.error(
            "corrupt",
            f"a block that py7zr can decode (methods {what})",
            f"{type(error).__name__} ({error})"[:300],
            f"install 7-Zip (7z or 7zz), or {archive.file.remedy}",
        ) from error


class _Packed:
    """A block's packed data as py7zr reads them: it asks for more each time, also while a decoder is full of it.

    Args:
        file: the archive.
        block: the block.
        decoder: the first of py7zr's chain.

    Attributes:
        fed: set when something was given.
    """

    def __init__(self, file: File, block: Block, decoder: object) -> None:
        self._pieces = file.stream(block.offset, block.offset + block.packed)
        self._rest = memoryview(b"")
        inner = (decoder, getattr(decoder, "_decompressor", None), getattr(decoder, "decoder", None))
        self._hungry = next((each for each in inner if hasattr(each, "needs_input")), None)
        self.fed = False

    def read(self, size: int) -> bytes:
        if self._hungry is not None and not self._hungry.needs_input:
            return b""
        if not self._rest:
            self._rest = memoryview(next(self._pieces, b""))
        data = bytes(self._rest[:size])
        self._rest = self._rest[size:]
        self.fed = bool(data)
        return data
