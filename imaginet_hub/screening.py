"""What must not be published, told from a file's name and its content. Reads files, decides, changes nothing."""

from __future__ import annotations

import bz2
import contextlib
import fnmatch
import gzip
import io
import itertools
import json
import lzma
import pickletools
import re
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np

__all__ = ["refusal"]

#: Kinds of files that are pickles whatever is in them, or are read as such.
_PICKLE_NAMES = ("*.pkl", "*.pickle", "*.pt", "*.pth", "*.bin", "*.ckpt", "*.joblib", "*.dill")
#: Archives that the standard library cannot look into.
_OPAQUE = {
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!\x1a\x07": "RAR",
    b"\x28\xb5\x2f\xfd": "Zstandard",
    b"\x04\x22\x4d\x18": "LZ4",
}
_COMPRESSED: dict[bytes, Callable[[IO[bytes]], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
    b"\x5d\x00\x00": lzma.open,  # without a container, as joblib writes it
}
#: Of damaged, encrypted and exotic ones.
_UNREADABLE = (
    *(zipfile.BadZipFile, tarfile.TarError, lzma.LZMAError, zlib.error),
    *(EOFError, OSError, RuntimeError, NotImplementedError, ValueError),
)

_SECRET_NAMES = (
    *(".env*", "*.env", ".netrc*", "_netrc", ".git-credentials", ".npmrc", ".pypirc", ".renviron", "kaggle.json"),
    *("token", "*_token", "*.token", "*_token.txt", "stored_tokens", "credentials", "credentials.*", "secrets.*"),
    *("*.pem", "*.key", "*.p12", "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*"),
)
#: What a secret begins with -> what may follow it, and what it is.
_SECRETS: dict[bytes, tuple[bytes, str]] = {
    b"hf_": (rb"[A-Za-z0-9]{20,}", "a Hugging Face token"),
    b"api_org_": (rb"[A-Za-z0-9]{20,}", "a Hugging Face token"),
    b"KGAT_": (rb"[A-Za-z0-9]{16,}", "a Kaggle token"),
    b'"key"': (rb"\s*:\s*\"[0-9a-f]{32}\"", "a Kaggle key"),
    b"KAGGLE_KEY": (rb"\W{1,5}[0-9a-f]{32}\b", "a Kaggle key"),
    b"WANDB_API_KEY": (rb"\W{1,5}[0-9a-f]{40}\b", "a key of Weights & Biases"),
    **dict.fromkeys((b"ghp_", b"gho_", b"ghu_", b"ghs_", b"ghr_"), (rb"[A-Za-z0-9]{30,}", "a GitHub token")),
    b"github_pat_": (rb"[A-Za-z0-9_]{30,}", "a GitHub token"),
    b"glpat-": (rb"[A-Za-z0-9_-]{20,}", "a GitLab token"),
    b"pypi-": (rb"[A-Za-z0-9_-]{50,}", "a PyPI token"),
    **dict.fromkeys((b"AKIA", b"ASIA"), (rb"[0-9A-Z]{16}\b", "an AWS key")),
    b"aws_secret_access_key": (rb"\W{1,5}[A-Za-z0-9/+]{40}", "an AWS key"),
    b"AIza": (rb"[0-9A-Za-z_-]{35}", "a Google key"),
    b"sk-": (rb"(?:[a-z0-9]+-){0,3}[A-Za-z0-9_]{32,}", "an OpenAI or Anthropic key"),
    **dict.fromkeys((b"xoxb-", b"xoxp-", b"xoxa-", b"xoxs-"), (rb"[A-Za-z0-9-]{20,}", "a Slack token")),
    b"-----BEGIN ": (rb"(?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----", "a private key"),
    b"://": (rb"[^\s/@:\"'<>]{1,64}:[^\s/@\"'<>{}$*]{6,64}@[\w.-]+\.\w", "an address with a password"),
}
#: Longer files are searched for secrets in that many bytes at either end: what is between are pixels or weights.
_SEARCHED = 64_000_000
_PIECE = 4_000_000
_LONGEST_SECRET = 512

_MEMBERS = 10_000
_OPCODES = 2_000
_NESTED = 3
_MOST_UNPACKED = 64_000_000
_TOO_MUCH = "an archive with too much in it to look into"


def refusal(file: Path, name: str, repo_type: str, repo_name: str = "") -> str | None:
    """Why a file must not be published, or None.

    Refused are pickles (by name and by content, and arrays of objects) and secrets (by name and by content), both also
    inside archives and compressed files; archives that cannot be looked into; files that are not what their name
    says; loading scripts that make `datasets` refuse a whole repository; lists of what the Hub is to leave out. Files
    above 128 MB are searched for secrets at their ends.

    Args:
        file: a regular file.
        name: its path in the repository.
        repo_type: "dataset" or "model".
        repo_name: the repository's name, without its owner.

    Raises:
        OSError: it cannot be read.
    """
    base = PurePosixPath(name).name.lower()
    if repo_type == "dataset" and base in {"imaginet.py", f"{repo_name.lower()}.py"}:
        return f"datasets refuses a repository with the loading script {base}"
    if base == ".gitignore":
        return "the Hub would leave out what it names, and say nothing"
    with file.open("rb") as stream:
        return _named_badly(base) or _mislabelled(stream, base) or _holds(stream)


def _named_badly(base: str) -> str | None:
    if any(fnmatch.fnmatchcase(base, pattern) for pattern in _SECRET_NAMES):
        return "a file of this name holds secrets"
    if any(fnmatch.fnmatchcase(base, pattern) for pattern in _PICKLE_NAMES):
        return "a pickle by its name; weights go as safetensors"
    return None


def _mislabelled(stream: IO[bytes], base: str) -> str | None:
    """Of the two formats that everything here is in: whether a file of that name is one."""
    stream.seek(0)
    if base.endswith(".parquet"):
        head = stream.read(4)
        size = stream.seek(0, io.SEEK_END)
        stream.seek(max(0, size - 4))
        return None if size >= 12 and head == stream.read(4) == b"PAR1" else "not a Parquet file, as its name says"
    if base.endswith(".safetensors"):
        length = int.from_bytes(stream.read(8), "little")
        size = stream.seek(0, io.SEEK_END)
        stream.seek(8)
        try:
            header = json.loads(stream.read(length)) if 2 <= length <= min(size - 8, 100_000_000) else None
        except (ValueError, RecursionError):
            header = None
        return None if isinstance(header, dict) else "not a safetensors file, as its name says"
    return None


def _holds(stream: IO[bytes], depth: int = 0) -> str | None:
    """What is in a file that must not go, however it is wrapped: what may run code when it is loaded, and secrets."""
    if depth > _NESTED:
        return _TOO_MUCH
    head = stream.read(512)
    for magic, format_ in _OPAQUE.items():
        if head.startswith(magic):
            return f"a {format_} archive, which cannot be looked into"
    if head.startswith(b"\x93NUMPY"):
        return _objects_in(stream)
    if _is_pickle(stream):
        return "a pickle by its content; weights go as safetensors"
    try:
        for member, content in _members(stream, head):
            why = _named_badly(PurePosixPath(member).name.lower()) or _holds(content, depth + 1)
            if why is not None:
                return f"{why}, in {member}" if member else why
    except _UNREADABLE as error:
        return f"an archive that cannot be looked into ({error})"
    return _secret_in(stream)


def _objects_in(stream: IO[bytes]) -> str | None:
    """Whether numpy has to unpickle an array."""
    stream.seek(0)
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        _, _, dtype = read(stream, max_header_size=1_000_000)
    except (ValueError, SyntaxError, RecursionError) as error:
        return f"an array that cannot be looked into ({error})"
    return "an array of Python objects (a pickle)" if dtype.hasobject else None


def _members(stream: IO[bytes], head: bytes) -> Iterator[tuple[str, IO[bytes]]]:
    """What is in an archive or a compressed file (which names nothing); nothing in any other file."""
    if zipfile.is_zipfile(stream):
        with zipfile.ZipFile(stream) as archive:
            yield from _few((info.filename, archive.open(info)) for info in archive.infolist() if not info.is_dir())
        return
    stream.seek(0)
    for magic, open_ in _COMPRESSED.items():
        if head.startswith(magic):
            yield from _few([("", open_(stream))])
            return
    if head[:1] == b"\x78" and int.from_bytes(head[:2], "big") % 31 == 0:  # zlib, as joblib compresses
        with contextlib.suppress(zlib.error):  # other files begin like that too
            yield "", io.BytesIO(zlib.decompressobj().decompress(stream.read(_MOST_UNPACKED), _MOST_UNPACKED))
        return
    with contextlib.suppress(tarfile.TarError):
        tarfile.TarInfo.frombuf(head, tarfile.ENCODING, "surrogateescape")  # whether it is one: its sum is right
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            yield from _few((info.name, member) for info in tar if info.isfile() and (member := tar.extractfile(info)))


def _few(members: Iterable[tuple[str, IO[bytes]]]) -> Iterator[tuple[str, IO[bytes]]]:
    """Members in memory, one at a time.

    Raises:
        ValueError: there is too much of it.
    """
    for number, (name, member) in enumerate(members):
        with member:
            content = member.read(_MOST_UNPACKED + 1)
        if number >= _MEMBERS or len(content) > _MOST_UNPACKED:
            raise ValueError("there is too much in it")
        yield name, io.BytesIO(content)


#: Without its leading mark a pickle is text, and much text begins like one; but it needs one of these to do anything.
_CALLS = {"GLOBAL", "STACK_GLOBAL", "INST", "REDUCE", "OBJ", "NEWOBJ", "EXT1", "EXT2", "EXT4", "PERSID", "BUILD"}


#: What a pickler writes between its values, of which there are some in every pickle that is more than one number.
_MEMOS = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}


_FIRST = {opcode.code for opcode in pickletools.opcodes}


class _Bounded:
    """A stream that gives no more at a time than a pickle of harmless size would have."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.asked_too_much = False

    def read(self, size: int) -> bytes:
        if size > _MOST_UNPACKED:
            self.asked_too_much = True
            return b""
        return self._stream.read(size)

    def readline(self) -> bytes:
        return self._stream.readline(_MOST_UNPACKED)


def _is_pickle(stream: IO[bytes]) -> bool:
    stream.seek(0)
    start = stream.read(3)
    if re.fullmatch(rb"\x80[\x02-\x05].", start, re.S) and chr(start[2]) in _FIRST:
        return True
    stream.seek(0)
    bounded: Any = _Bounded(stream)
    names = set()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in what would be text
            for opcode, _, _ in itertools.islice(pickletools.genops(bounded), _OPCODES):
                names.add(opcode.name)
    except (ValueError, OverflowError):  # no such opcode, or the end of the file
        return bounded.asked_too_much and not _CALLS.isdisjoint(names)
    return not (_CALLS | _MEMOS).isdisjoint(names)


def _secret_in(stream: IO[bytes]) -> str | None:
    size = stream.seek(0, io.SEEK_END)
    for start, end in [(0, size)] if size <= 2 * _SEARCHED else [(0, _SEARCHED), (size - _SEARCHED, size)]:
        stream.seek(start)
        before, left = b"", end - start
        while left > 0 and (piece := stream.read(min(_PIECE, left))):
            text = before + piece
            wide = 0.4 < text[:200].count(b"\0") / len(text[:200]) < 0.6  # UTF-16
            found = _secret(text.replace(b"\0", b"") if wide else text)
            if found:
                return f"it holds {found}"
            before, left = piece[-_LONGEST_SECRET:], left - len(piece)
    return None


def _secret(text: bytes) -> str | None:
    for beginning, (rest, what) in _SECRETS.items():  # a search for plain bytes first: it is a hundred times quicker
        place = text.find(beginning)
        while place >= 0:
            inside_a_word = place > 0 and text[place - 1 : place + 1].isalnum()
            if not inside_a_word and re.compile(rest).match(text, place + len(beginning)):
                return what
            place = text.find(beginning, place + 1)
    return None
