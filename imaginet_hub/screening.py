"""What must not be published, told from a file's name and its content. Reads files, decides, changes nothing."""

from __future__ import annotations

import bz2
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
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

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
}

#: Of damaged, encrypted and exotic ones.
_UNREADABLE = (
    *(zipfile.BadZipFile, tarfile.TarError, lzma.LZMAError, zlib.error),
    *(EOFError, OSError, RuntimeError, NotImplementedError, ValueError),
)

_SECRET_NAMES = (
    *(".env", ".env.*", "*.env", ".netrc", "_netrc", ".git-credentials", ".npmrc", ".pypirc", "kaggle.json", "token"),
    *("stored_tokens", "access_token", "credentials", "credentials.*", "secrets.*", "*.pem", "*.key", "*.p12"),
    *("id_rsa", "id_dsa", "id_ecdsa", "id_ed25519"),
)
#: What a secret begins with -> what may follow it, and what it is.
_SECRETS: dict[bytes, tuple[bytes, str]] = {
    b"hf_": (rb"[A-Za-z0-9]{20,}", "a Hugging Face token"),
    b"api_org_": (rb"[A-Za-z0-9]{20,}", "a Hugging Face token"),
    b"KGAT_": (rb"[A-Za-z0-9]{16,}", "a Kaggle token"),
    b'"key"': (rb"\s*:\s*\"[0-9a-f]{32}\"", "a Kaggle key"),
    **dict.fromkeys((b"ghp_", b"gho_", b"ghu_", b"ghs_", b"ghr_"), (rb"[A-Za-z0-9]{30,}", "a GitHub token")),
    b"github_pat_": (rb"[A-Za-z0-9_]{30,}", "a GitHub token"),
    **dict.fromkeys((b"AKIA", b"ASIA"), (rb"[0-9A-Z]{16}\b", "an AWS key")),
    b"AIza": (rb"[0-9A-Za-z_-]{35}", "a Google key"),
    b"sk-": (rb"[A-Za-z0-9_-]{32,}", "an OpenAI or Anthropic key"),
    **dict.fromkeys((b"xoxb-", b"xoxp-", b"xoxa-", b"xoxs-"), (rb"[A-Za-z0-9-]{20,}", "a Slack token")),
    b"-----BEGIN ": (rb"(?:[A-Z]+ )*PRIVATE KEY-----", "a private key"),
}
#: Longer files are searched for secrets in that many bytes at either end: what is between are pixels or weights.
_SEARCHED = 64_000_000
_PIECE = 4_000_000
_LONGEST_SECRET = 512

_MEMBERS = 10_000
_OPCODES = 2_000
_NESTED = 3
_MOST_UNPACKED = 64_000_000


def refusal(file: Path, name: str, repo_type: str, repo_name: str = "") -> str | None:
    """Why a file must not be published, or None.

    Refused are pickles (by name and by content, also in archives and compressed files, and arrays of objects),
    archives that cannot be looked into, files that are not what their name says, loading scripts that make `datasets`
    refuse a whole repository, lists of what the Hub is to leave out, and secrets (by name and by content).

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
    if any(fnmatch.fnmatchcase(base, pattern) for pattern in _SECRET_NAMES):
        return "a file of this name holds secrets"
    if any(fnmatch.fnmatchcase(base, pattern) for pattern in _PICKLE_NAMES):
        return "a pickle by its name; weights go as safetensors"
    with file.open("rb") as stream:
        why = _mislabelled(stream, base) or _pickled(stream)
        if why is None:
            stream.seek(0)
            why = _secret_in(stream, file.stat().st_size)
    return why


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


def _pickled(stream: IO[bytes], depth: int = 0) -> str | None:
    """Whether loading this may run code, however it is wrapped."""
    stream.seek(0)
    head = stream.read(512)
    for magic, format_ in _OPAQUE.items():
        if head.startswith(magic):
            return f"a {format_} archive, which cannot be looked into"
    if head.startswith(b"\x93NUMPY"):
        return "an array of Python objects (a pickle)" if re.search(rb"'descr':[^}]*O", head) else None
    if _is_pickle(stream):
        return "a pickle by its content; weights go as safetensors"
    try:
        if zipfile.is_zipfile(stream):
            return _in_members(_zip_members(stream), depth)
        for magic, open_ in _COMPRESSED.items():
            if head.startswith(magic):
                stream.seek(0)
                with open_(stream) as plain:
                    return _in_members(iter([("its content", io.BytesIO(plain.read(_MOST_UNPACKED)))]), depth)
        if head[:1] == b"\x78" and int.from_bytes(head[:2], "big") % 31 == 0:  # zlib, as joblib compresses
            plain = zlib.decompressobj().decompress(head, 4096)
            return _in_members(iter([("its content", io.BytesIO(plain))]), depth)
        if head[257:262] == b"ustar":
            stream.seek(0)
            with tarfile.open(fileobj=stream) as archive:
                return _in_members(_tar_members(archive), depth)
    except _UNREADABLE as error:
        return None if head[:1] == b"\x78" else f"an archive that cannot be looked into ({error})"
    return None


def _in_members(members: Iterator[tuple[str, IO[bytes]]], depth: int) -> str | None:
    for number, (name, content) in enumerate(members):
        if number >= _MEMBERS or depth >= _NESTED:
            return "an archive with too much in it to look into"
        base = PurePosixPath(name).name.lower()
        if any(fnmatch.fnmatchcase(base, pattern) for pattern in _PICKLE_NAMES):
            return f"an archive with a pickle in it ({name})"
        why = _pickled(content, depth + 1)
        if why is not None:
            return f"{why}, in {name}"
    return None


def _zip_members(stream: IO[bytes]) -> Iterator[tuple[str, IO[bytes]]]:
    with zipfile.ZipFile(stream) as archive:
        for info in archive.infolist():
            if not info.is_dir():
                with archive.open(info) as member:
                    yield info.filename, io.BytesIO(member.read(_PIECE))


def _tar_members(archive: tarfile.TarFile) -> Iterator[tuple[str, IO[bytes]]]:
    for info in archive:
        member = archive.extractfile(info) if info.isfile() else None
        if member is not None:
            yield info.name, io.BytesIO(member.read(_PIECE))


#: Without its leading mark a pickle is text, and much text begins like one; but it needs one of these to do anything.
_CALLS = {"GLOBAL", "STACK_GLOBAL", "INST", "REDUCE", "OBJ", "NEWOBJ", "EXT1", "EXT2", "EXT4", "PERSID", "BUILD"}


def _is_pickle(stream: IO[bytes]) -> bool:
    stream.seek(0)
    content = stream.read(_PIECE)
    marked = re.match(rb"\x80[\x02-\x05]", content) is not None
    names = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in what would be text
            for opcode, _, _ in itertools.islice(pickletools.genops(io.BytesIO(content)), _OPCODES):
                names.append(opcode.name)
    except (ValueError, OverflowError):  # no such opcode, or the end of what was read
        return len(names) >= (3 if marked else 50)
    return marked or not _CALLS.isdisjoint(names) or len(names) >= 8


def _secret_in(stream: IO[bytes], size: int) -> str | None:
    parts = [(0, size)] if size <= 2 * _SEARCHED else [(0, _SEARCHED), (size - _SEARCHED, size)]
    for start, end in parts:
        stream.seek(start)
        before, left = b"", end - start
        while left > 0 and (piece := stream.read(min(_PIECE, left))):
            found = _secret(before + piece)
            if found:
                return f"it holds {found}"
            before, left = piece[-_LONGEST_SECRET:], left - len(piece)
    return None


def _secret(text: bytes) -> str | None:
    for beginning, (rest, what) in _SECRETS.items():  # a search for plain bytes first: it is a hundred times quicker
        place = text.find(beginning)
        while place >= 0:
            inside_a_word = place > 0 and text[place - 1 : place].isalnum()
            if not inside_a_word and re.compile(rest).match(text, place + len(beginning)):
                return what
            place = text.find(beginning, place + 1)
    return None
