"""The contents of a 7z archive, wherever its volumes are, and its members by range where they are stored.

A 7z archive keeps its table of contents at its end, mostly compressed; the data of its members lie in *blocks* (the
format's word is folder). The members of a block that is only copied lie at known places with known CRC-32s, and can be
read one by one; a compressed block has to be decoded from its beginning (`readers.unpacking`).
(7zFormat.txt of the 7-Zip distribution, version 0.4.)
"""

from __future__ import annotations

import itertools
import lzma
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from imaginet_hub.data.readers.files import File, read_range
from imaginet_hub.data.readers.runs import MAX_MEMBER_BYTES, Run, Window
from imaginet_hub.errors import FetchError

__all__ = ["Block", "Coder", "Entry", "SevenZip"]

_SIGNATURE = b"7z\xbc\xaf\x27\x1c"
_START = struct.Struct("<6s2BL2QL")
#: A table of 200,000 images takes about 30 MB, and less than 10 MB compressed.
_MAX_TABLE_BYTES = 64 * 1024**2
_MAX_ENTRIES = 1_000_000
#: What decoding may take at a time: dictionaries (and PPMd's models) beyond that are refused.
MAX_DICTIONARY_BYTES = 512 * 1024**2
#: Images hardly shrink. A block that claims to is a bomb.
_MAX_RATIO, _HARMLESS_BYTES = 100, 256 * 1024**2

_COPY, _LZMA, _LZMA2, _PPMD, _AES = b"\0", b"\3\1\1", b"\x21", b"\3\4\1", b"\6\xf1\7\1"
# Property ids.
_END, _HEADER, _MAIN, _FILES, _PACK, _UNPACK, _SUBSTREAMS = 0, 1, 4, 5, 6, 7, 8
_SIZE, _CRC, _FOLDER, _UNPACK_SIZE, _COUNT, _EMPTY, _NAMES, _ATTRIBUTES, _ENCODED = 9, 10, 11, 12, 13, 14, 17, 21, 23
_UNIX_EXTENSION, _LINK, _FILE_TYPE = 0x8000, 0o120000, 0o170000


@dataclass(frozen=True, slots=True)
class Coder:
    """One step of decoding a block."""

    method: bytes
    properties: bytes | None
    inputs: int
    outputs: int

    @property
    def memory(self) -> int:
        """Bytes that its dictionary takes."""
        properties = self.properties or b""
        if self.method == _LZMA and len(properties) >= 5:
            return int.from_bytes(properties[1:5], "little")
        if self.method == _LZMA2 and properties:
            bits = properties[0]
            return 0xFFFFFFFF if bits >= 40 else (2 | bits & 1) << (bits // 2 + 11)
        if self.method == _PPMD and len(properties) >= 5:
            return int.from_bytes(properties[1:5], "little")
        return 0

    @property
    def sound(self) -> bool:
        """Whether its properties make sense where a decoder could not bear others."""
        if self.properties == b"":  # liblzma's filters end the process
            return False
        if self.method != _PPMD:
            return True
        properties = self.properties or b""
        return len(properties) in (5, 7) and 2 <= properties[0] <= 64 and self.memory >= 2048


@dataclass(frozen=True, slots=True)
class Block:
    """Members that were packed together.

    Attributes:
        offset: where its packed data begin, in the archive.
        packed, size: bytes as they lie there, and unpacked.
        coders: how it is decoded.
        sizes: unpacked bytes after each coder's output.
    """

    offset: int
    packed: int
    size: int
    coders: tuple[Coder, ...]
    sizes: tuple[int, ...]
    streams: int

    @property
    def stored(self) -> bool:
        """Whether its bytes lie in the archive as they are."""
        return self.streams == 1 and [c.method for c in self.coders] == [_COPY] and self.packed == self.size

    @property
    def encrypted(self) -> bool:
        return any(coder.method == _AES for coder in self.coders)

    @property
    def refusal(self) -> str | None:
        """What speaks against decoding it."""
        if self.encrypted:
            return "an encrypted block"
        if not all(coder.sound for coder in self.coders):
            return "a coder with senseless properties"
        memory = sum(coder.memory for coder in self.coders)
        if memory > MAX_DICTIONARY_BYTES:
            return f"a dictionary of {memory:,} bytes"
        if self.size > _MAX_RATIO * self.packed + _HARMLESS_BYTES:
            return f"{self.size:,} bytes packed into {self.packed:,}"
        return None


@dataclass(frozen=True, slots=True)
class Entry:
    """A member. Two are equal if they hold the same bytes (by CRC-32 and size).

    Attributes:
        name: as stored.
        block: number of its block.
        start: where it begins in the unpacked block.
        offset: where it begins in the archive, if its block is stored.
        crc: CRC-32, if the archive knows it.
        link: a symbolic link.
    """

    name: str
    block: int
    start: int
    size: int
    crc: int | None
    offset: int = 0
    link: bool = False

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Entry) or self.crc is None:
            return self is other
        return (self.crc, self.size) == (other.crc, other.size)

    def __hash__(self) -> int:
        return hash((self.crc, self.size))

    @property
    def end(self) -> int:
        return self.offset + self.size

    @property
    def moved(self) -> int:
        """Bytes that reading it moves."""
        return self.size

    @property
    def held(self) -> int:
        """Bytes that reading it holds in memory."""
        return self.size


class SevenZip:
    """A 7z archive.

    Args:
        file: all of it; of several volumes `files.Volumes`.

    Attributes:
        blocks: in the order of their data.
        entries: members with content, in the order of their data.
        table_bytes: what reading the contents moved.

    Raises (everywhere):
        FetchError: reason "format" or "corrupt" if it is not a 7z archive that can be read; and whatever reading its
            bytes raises.
    """

    def __init__(self, file: File) -> None:
        self.file = file
        self.table_bytes = 0
        self.blocks: list[Block] = []
        self.entries: list[Entry] = []
        try:
            self._read()
        except (struct.error, IndexError, ValueError, OverflowError, MemoryError, lzma.LZMAError, EOFError) as error:
            got = f"{type(error).__name__} ({error})" if str(error) else type(error).__name__
            raise self._format("a table of contents", got) from error

    def _format(self, expected: str, got: str) -> FetchError:
        return self.file.error("format", f"a 7z archive with {expected}", got, self.file.remedy)

    def _read(self) -> None:
        size = self.file.size()
        head = read_range(self.file, 0, min(size, _START.size))
        if len(head) < _START.size or not head.startswith(_SIGNATURE):
            raise self._format("its signature", f"bytes that start with {head[:8].hex(' ')}" if head else "nothing")
        _, _, _, start_crc, offset, length, crc = _START.unpack(head)
        if zlib.crc32(head[12:]) != start_crc:
            raise self._format("a sound beginning", "a wrong CRC32 (an archive that was never finished?)")
        if length == 0:
            return
        if length > _MAX_TABLE_BYTES:
            raise self._format(f"contents of at most {_MAX_TABLE_BYTES:,} bytes", f"{length:,}")
        if _START.size + offset + length > size:
            got = f"{size:,} bytes of {_START.size + offset + length:,}: a volume is missing, or the last one is short"
            raise self.file.error("corrupt", "all volumes of the 7z archive", got, self.file.remedy)
        table = read_range(self.file, _START.size + offset, _START.size + offset + length)
        self.table_bytes = _START.size + length
        if zlib.crc32(table) != crc:
            raise self.file.error("corrupt", f"a table of contents with CRC32 {crc:08x}", "another", self.file.remedy)
        for _ in range(4):  # an encoded table may be encoded again
            reader = _Reader(table)
            kind = reader.number()
            if kind == _HEADER:
                self._parse(reader)
                return
            if kind != _ENCODED:
                break
            table = self._decoded(reader)
        raise self._format("a table of contents", "another kind of header")

    def _decoded(self, reader: _Reader) -> bytes:
        """The table, which is packed like a member."""
        blocks, _, crcs = _streams(reader, self.file.size())
        if len(blocks) != 1:
            raise ValueError(f"{len(blocks)} blocks for the table of contents")
        block = blocks[0]
        if block.encrypted:
            raise self.file.error("format", "a 7z archive without a password", "an encrypted one", self.file.remedy)
        if max(block.size, block.packed) > _MAX_TABLE_BYTES:
            raise self._format(f"contents of at most {_MAX_TABLE_BYTES:,} bytes", f"{block.size:,}")
        if block.streams != 1 or len(block.coders) != 1:
            raise ValueError(f"a table of contents in {len(block.coders)} coders")
        packed = read_range(self.file, block.offset, block.offset + block.packed)
        self.table_bytes += len(packed)
        data = _unpacked(block, packed)
        if crcs and crcs[0] is not None and zlib.crc32(data) != crcs[0]:
            raise self.file.error("corrupt", f"contents with CRC32 {crcs[0]:08x}", "others", self.file.remedy)
        return data

    def _parse(self, reader: _Reader) -> None:
        kind = reader.number()
        if kind == 2:  # archive properties
            while reader.number() != _END:
                reader.take(reader.number())
            kind = reader.number()
        if kind == 3:
            raise ValueError("additional streams")
        blocks: list[Block] = []
        sizes: list[list[int]] = []
        digests: list[int | None] = []
        if kind == _MAIN:
            blocks, sizes, digests = _streams(reader, self.file.size())
            kind = reader.number()
        if kind == _END:
            return
        if kind != _FILES:
            raise ValueError(f"property {kind} in place of the list of files")
        names, empty, attributes = _files(reader)
        self.blocks = blocks
        full = [number for number in range(len(names)) if not (number < len(empty) and empty[number])]
        if len(full) != sum(map(len, sizes)):
            raise ValueError(f"{len(full):,} files for {sum(map(len, sizes)):,} streams")
        position = 0
        for number, block in enumerate(blocks):
            start = 0
            for size in sizes[number]:
                file = full[position]
                mode = attributes[file]
                link = bool(mode & _UNIX_EXTENSION) and (mode >> 16) & _FILE_TYPE == _LINK
                offset = block.offset + start if block.stored else 0
                entry = Entry(names[file], number, start, size, digests[position], offset, link or bool(mode & 0x400))
                self.entries.append(entry)
                start += size
                position += 1

    def unreadable(self, entry: Entry) -> FetchError | None:
        """Why a member cannot be taken in, by what the table says of it; None if nothing speaks against it."""
        got = self.blocks[entry.block].refusal
        if entry.link:
            got = "a symbolic link"
        elif entry.size > MAX_MEMBER_BYTES:
            got = f"one of {entry.size:,} bytes"
        if got is None:
            return None
        expected = f"an image of at most {MAX_MEMBER_BYTES:,} bytes as member {entry.name!r}"
        return self.file.error("corrupt", expected, got, self.file.remedy)

    def checked(self, entry: Entry, data: bytes) -> bytes | FetchError:
        """The bytes of a member, or what is wrong with them."""
        if len(data) != entry.size:
            got = f"{len(data):,} (member {entry.name!r})"
            return self.file.error("corrupt", f"{entry.size:,} bytes", got, self.file.remedy)
        found = zlib.crc32(data)
        if entry.crc is not None and found != entry.crc:
            expected = f"CRC32 {entry.crc:08x} (member {entry.name!r})"
            return self.file.error("corrupt", expected, f"{found:08x}", self.file.remedy)
        return data

    def read(self, run: Run[Entry]) -> Iterator[tuple[str, bytes | FetchError]]:
        """The wanted members of a run of stored ones: (path, its bytes or what is wrong with it)."""
        window = Window(self.file.stream(run.start, run.end), run.start)
        for path, entry in run.members:
            yield path, self.checked(entry, window.take(entry.offset, entry.size))


def _unpacked(block: Block, packed: bytes) -> bytes:
    """The bytes of a small block of one coder."""
    coder = block.coders[0]
    properties = coder.properties or b""
    if coder.method == _COPY:
        data = packed
    elif coder.method in (_LZMA, _LZMA2) and properties:
        # No more of a dictionary is ever used than there is output.
        dictionary = min(max(coder.memory, 4096), max(block.size, 4096))
        if coder.method == _LZMA:
            first = properties[0]
            settings = {"lc": first % 9, "lp": first // 9 % 5, "pb": first // 45}
            chain = [{"id": lzma.FILTER_LZMA1, "dict_size": dictionary, **settings}]
        else:
            chain = [{"id": lzma.FILTER_LZMA2, "dict_size": dictionary}]
        data = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=chain).decompress(packed, block.size)
    else:
        raise ValueError(f"a table of contents packed by method {coder.method.hex()}")
    if len(data) != block.size:
        raise ValueError(f"a table of contents of {len(data):,} bytes in place of {block.size:,}")
    return data


class _Reader:
    """The table of contents, byte by byte."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        if count > len(self._data) - self._at:
            raise EOFError("it ends too soon")
        self._at += count
        return self._data[self._at - count : self._at]

    def byte(self) -> int:
        return self.take(1)[0]

    def number(self) -> int:
        """A number of one to nine bytes: the ones at the first byte's front tell how many follow."""
        first = self.byte()
        mask, value = 0x80, 0
        for place in range(8):
            if not first & mask:
                return value + ((first & (mask - 1)) << (8 * place))
            value |= self.byte() << (8 * place)
            mask >>= 1
        return value

    def count(self, each: int = 1) -> int:
        """A number of things that take at least `each` bits of what is left."""
        value = self.number()
        if value * each > 8 * (len(self._data) - self._at):
            raise ValueError(f"{value:,} items in {len(self._data) - self._at:,} bytes")
        return value

    def bits(self, count: int) -> list[bool]:
        data = self.take((count + 7) // 8)
        return [bool(data[n >> 3] & (0x80 >> (n & 7))) for n in range(count)]

    def defined(self, count: int) -> list[bool]:
        return [True] * count if self.byte() else self.bits(count)

    def digests(self, count: int) -> list[int | None]:
        return [struct.unpack("<L", self.take(4))[0] if known else None for known in self.defined(count)]

    def expect(self, kind: int) -> None:
        found = self.number()
        if found != kind:
            raise ValueError(f"property {found} in place of {kind}")


def _streams(reader: _Reader, archive_size: int) -> tuple[list[Block], list[list[int]], list[int | None]]:
    """Blocks, the sizes of the members of each, all members' CRC-32s."""
    packs: list[int] = []
    position = _START.size
    blocks: list[Block] = []
    block_crcs: list[int | None] = []
    kind = reader.number()
    if kind == _PACK:
        position += reader.number()
        packs, kind = _pack_info(reader)
    if kind == _UNPACK:
        blocks, block_crcs = _unpack_info(reader, packs, position, archive_size)
        kind = reader.number()
    sizes = [[block.size] for block in blocks]
    digests = list(block_crcs)
    if kind == _SUBSTREAMS:
        sizes, digests = _substreams(reader, blocks, block_crcs)
        kind = reader.number()
    if kind != _END:
        raise ValueError(f"property {kind} at the end of the streams")
    return blocks, sizes, digests


def _pack_info(reader: _Reader) -> tuple[list[int], int]:
    count = reader.count(8)
    if count > 4 * _MAX_ENTRIES:  # a block of BCJ2 has four
        raise ValueError(f"{count:,} packed streams")
    sizes = [0] * count
    kind = reader.number()
    if kind == _SIZE:
        sizes = [reader.number() for _ in range(count)]
        kind = reader.number()
    if kind == _CRC:
        reader.digests(count)
        kind = reader.number()
    if kind != _END:
        raise ValueError(f"property {kind} among the packed streams")
    return sizes, reader.number()


def _unpack_info(
    reader: _Reader, packs: list[int], position: int, archive_size: int
) -> tuple[list[Block], list[int | None]]:
    reader.expect(_FOLDER)
    count = reader.count(16)
    if count > _MAX_ENTRIES or reader.byte():
        raise ValueError(f"{count:,} blocks, or some described elsewhere")
    known: dict[tuple[Coder, ...], tuple[Coder, ...]] = {}  # most blocks are packed alike
    folders = [_folder(reader, known) for _ in range(count)]
    reader.expect(_UNPACK_SIZE)
    sizes = [tuple(reader.number() for _ in range(sum(c.outputs for c in coders))) for coders, _, _ in folders]
    crcs: list[int | None] = [None] * count
    kind = reader.number()
    if kind == _CRC:
        crcs = reader.digests(count)
        kind = reader.number()
    if kind != _END:
        raise ValueError(f"property {kind} among the blocks")
    blocks, used = [], 0
    for (coders, last, streams), each in zip(folders, sizes, strict=True):
        packed = packs[used : used + streams]
        if len(packed) < streams or position + sum(packed) > archive_size:
            raise ValueError("a block that lies beyond the archive's end")
        blocks.append(Block(position, sum(packed), each[last], coders, each, streams))
        position += sum(packed)
        used += streams
    return blocks, crcs


def _folder(reader: _Reader, known: dict[tuple[Coder, ...], tuple[Coder, ...]]) -> tuple[tuple[Coder, ...], int, int]:
    """The coders of a block, which of their outputs is the block's, and how many packed streams it has."""
    count = reader.count(8)
    if not 1 <= count <= 32:
        raise ValueError(f"{count} coders")
    coders = []
    for _ in range(count):
        flags = reader.byte()
        if flags & 0xC0:
            raise ValueError(f"a coder with flags {flags:02x}")
        method = reader.take(flags & 0xF)
        inputs, outputs = (reader.number(), reader.number()) if flags & 0x10 else (1, 1)
        if not (1 <= inputs <= 32 and outputs == 1):
            raise ValueError(f"a coder of {inputs} inputs and {outputs} outputs")
        coders.append(Coder(method, reader.take(reader.number()) if flags & 0x20 else None, inputs, outputs))
    inputs, outputs = sum(c.inputs for c in coders), sum(c.outputs for c in coders)
    bound = [(reader.number(), reader.number()) for _ in range(outputs - 1)]
    streams = inputs - len(bound)
    if streams < 1:
        raise ValueError("coders without a packed stream")
    if streams > 1:
        for _ in range(streams):
            reader.number()
    free = [output for output in range(outputs) if all(output != pair[1] for pair in bound)]
    if len(free) != 1:
        raise ValueError("coders that lead nowhere")
    return known.setdefault(tuple(coders), tuple(coders)), free[0], streams


def _substreams(
    reader: _Reader, blocks: list[Block], block_crcs: list[int | None]
) -> tuple[list[list[int]], list[int | None]]:
    counts = [1] * len(blocks)
    kind = reader.number()
    if kind == _COUNT:
        counts = [reader.number() for _ in blocks]
        if sum(counts) > _MAX_ENTRIES:
            raise ValueError(f"{sum(counts):,} members")
        kind = reader.number()
    if kind == _SIZE or any(count > 1 for count in counts):
        given = kind == _SIZE
        sizes = []
        for block, count in zip(blocks, counts, strict=True):
            if count > 1 and not given:
                raise ValueError("members without sizes")
            each = [reader.number() for _ in range(count - 1)]
            last = block.size - sum(each)
            if last < 0:
                raise ValueError("members larger than their block")
            sizes.append([*each, last] if count else [])
        kind = reader.number() if given else kind
    else:
        sizes = [[block.size] if count else [] for block, count in zip(blocks, counts, strict=True)]
    digests: list[int | None] = []
    known = [count == 1 and crc is not None for count, crc in zip(counts, block_crcs, strict=True)]
    new: list[int | None] = [None] * sum(count for count, has in zip(counts, known, strict=True) if not has)
    if kind == _CRC:
        new = reader.digests(len(new))
        kind = reader.number()
    if kind != _END:
        raise ValueError(f"property {kind} among the members")
    rest = iter(new)
    for count, has, crc in zip(counts, known, block_crcs, strict=True):
        digests += [crc] if has else itertools.islice(rest, count)
    return sizes, digests


def _files(reader: _Reader) -> tuple[list[str], list[bool], list[int]]:
    """Names, which have no content, Windows attributes (with Unix's mode in the upper half)."""
    count = reader.count(16)  # of bits: the zero that ends a name
    if count > _MAX_ENTRIES:
        raise ValueError(f"{count:,} files")
    names: list[str] = []
    empty: list[bool] = []
    attributes = [0] * count
    while (kind := reader.number()) != _END:
        part = _Reader(reader.take(reader.number()))
        if kind == _EMPTY:
            empty = part.bits(count)
        elif kind == _NAMES:
            if part.byte():
                raise ValueError("names that lie elsewhere")
            text = part.take(len(part._data) - 1).decode("utf-16-le", errors="surrogatepass")
            names = text.split("\0")[:-1]
            if len(names) != count:
                raise ValueError(f"{len(names):,} names for {count:,} files")
        elif kind == _ATTRIBUTES:
            known = part.defined(count)
            if part.byte():
                raise ValueError("attributes that lie elsewhere")
            attributes = [struct.unpack("<L", part.take(4))[0] if has else 0 for has in known]
    if len(names) != count:
        raise ValueError(f"{count:,} files without names")
    return names, empty, attributes
