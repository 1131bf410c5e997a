"""Which file of somebody's archive or folder is which image of the lists. Pure: names in, matches out.

Archives and folders put the same images under other folders than upstream does (`dataset/` for `photozilla/dataset/`,
`images1024x1024/00000/` for `ffhq/`), and some spell names in other encodings. A match is by the last parts of the
path: at least as many as identify an image within its source, and the longest agreement wins. A target path is never
built from a name that was found, so no name can lead outside ROOT. Names that lead out of their archive are refused
all the same: whoever wrote them did not mean to hand over an image.
"""

from __future__ import annotations

import contextlib
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Generic, TypeVar

from imaginet_hub.data.sources import Source

__all__ = ["Finder", "imagenet_basename", "kaggle_name", "shown", "spellings", "why_refused"]

Handle = TypeVar("Handle")

#: Hugging Face's copy of ImageNet appends the class to each name.
_HF_IMAGENET = re.compile(r"(?P<basename>.+?)_(?P<wnid>n\d{8})\.JPEG", re.IGNORECASE)
_NOT_ASCII = bytes(range(128, 256))
#: The longest path of the lists has 149 characters. Normalising takes time that grows with the square of the length.
_LONGEST_STORED, _LONGEST = 1024, 4096
_DRIVE = re.compile(r"[A-Za-z]:")
_KAGGLE_FOLDERS = ("ILSVRC", "Data", "CLS-LOC")
_IMAGENET = re.compile(r"(ILSVRC2012_(val|test)_\d{8}|n\d{8}_\d+)\.JPEG", re.IGNORECASE)


def imagenet_basename(path: str) -> str | None:
    """The name that ImageNet itself gives an image, or None if `path` is in neither known convention.

    >>> imagenet_basename("imagenet/train/n01440764_10026_n01440764.JPEG")
    'n01440764_10026.JPEG'
    """
    name = PurePosixPath(path).name
    suffixed = _HF_IMAGENET.fullmatch(name)
    if suffixed:
        name = f"{suffixed['basename']}.JPEG"
    return f"{name[:-5]}.JPEG" if _IMAGENET.fullmatch(name) else None


def kaggle_name(file: str) -> str | None:
    """Where Kaggle keeps a file of ROOT, below its route's address; None for a name that tells nothing.

    >>> kaggle_name("imagenet/n01440764_10026_n01440764.JPEG")
    'train/n01440764/n01440764_10026.JPEG'
    """
    parts = PurePosixPath(file).parts
    if parts[0] != "imagenet":
        return "/".join(parts[1:])
    name = imagenet_basename(file)
    if name is None:  # but it may lie where Kaggle has it
        return "/".join(parts[4:]) if parts[1:4] == _KAGGLE_FOLDERS else None
    if name.startswith("ILSVRC2012_"):
        return f"{name.split('_')[1]}/{name}"
    return f"train/{name.split('_')[0]}/{name}"


def spellings(name: str | bytes) -> list[str]:
    """How a stored name may be meant, likeliest first: normalised to NFC, forward slashes.

    Args:
        name: text, or the bytes of a ZIP entry that does not say it is UTF-8. By the book those are cp437; Info-ZIP on
            Linux writes the system's bytes, mostly UTF-8; some tools write Latin-1. Text with escaped bytes (as Python
            gives names of files and of tar members that are not UTF-8) is taken for those bytes.
    """
    if isinstance(name, str):
        with contextlib.suppress(UnicodeEncodeError):
            escaped = name.encode("utf-8", errors="surrogateescape")
            name = name if _is_utf8(escaped) else escaped
    if isinstance(name, str):
        texts = [name]
    elif name.isascii():
        texts = [name.decode("ascii")]
    else:
        texts = []
        for encoding in ("utf-8", "cp437", "latin-1"):
            try:
                texts.append(name.decode(encoding))
            except UnicodeDecodeError:
                continue
    return list(dict.fromkeys(unicodedata.normalize("NFC", text).replace("\\", "/") for text in texts))


def why_refused(name: str | bytes) -> str | None:
    """What is wrong with the name of an archive's member, in words that fit an error; None if nothing is.

    >>> why_refused("..\\\\x.jpg")
    "a member whose name leads out of the archive: '../x.jpg'"
    """
    if len(name) > _LONGEST_STORED:
        return f"a member whose name has {len(name):,} characters: {shown(name[:40])[:-1]}...'"
    text = name if isinstance(name, str) else name.decode("latin-1")
    if "\\" in text:
        text = text.replace("\\", "/")
    if text.startswith("/") or _DRIVE.match(text) or (".." in text and ".." in text.split("/")):
        return f"a member whose name leads out of the archive: {shown(name)}"
    return None


def shown(name: str | bytes) -> str:
    """A stored name for people, in quotes."""
    if isinstance(name, bytes):
        name = name.replace(b"\\", b"/").decode("utf-8", errors="backslashreplace")
    return f"'{name.replace(chr(92), '/')}'" if name.isprintable() else ascii(name)


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _parts(name: str) -> tuple[str, ...]:
    return tuple(part for part in name.split("/") if part not in ("", "."))


def _skeleton(parts: tuple[str, ...]) -> str:
    """What every misspelling of a name keeps: its ASCII characters, in lower case."""
    return "/".join("".join(c for c in unicodedata.normalize("NFC", p) if c.isascii()).lower() for p in parts)


@dataclass
class _Best(Generic[Handle]):
    agreement: int
    name: str
    handle: Handle
    rival: str | None = None


class Finder(Generic[Handle]):
    """Collects, for wanted paths of one source, the best match among the names that it is offered.

    Args:
        source: says how many parts identify an image.
        wanted: paths in upstream's layout (`Record.file`).
        aliases: other paths under which images may be found (FFHQ's own numbering).
        inside: where all names lie, if that tells something: the path of their archive, without its ending.
    """

    def __init__(
        self, source: Source, wanted: Iterable[str], aliases: Mapping[str, str] | None = None, inside: str = ""
    ) -> None:
        self._source = source
        self._inside = _parts(inside)
        self._aimed: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
        self._skeletons: dict[str, set[str]] = {}
        self._bones: set[bytes] = set()
        self._best: dict[str, _Best[Handle]] = {}
        self._weak: dict[str, list[tuple[str, Handle]]] = {}
        self._refused: dict[str, tuple[str, Handle]] = {}
        for path in wanted:
            for target in (path, (aliases or {}).get(path)):
                if target is not None:
                    parts = _parts(unicodedata.normalize("NFC", target))
                    self._aimed.setdefault(self._basename(parts), []).append((path, parts))
                    self._bones.add(_skeleton(parts[-1:]).encode())
                    if not target.isascii():
                        self._skeletons.setdefault(_skeleton(parts[-source.tail :]), set()).add(path)

    def _basename(self, parts: tuple[str, ...]) -> str:
        if self._source.key == "imagenet":
            return imagenet_basename(parts[-1]) or parts[-1]
        return parts[-1]

    def may_want(self, name: bytes) -> bool:
        """A quick look at a name in an archive of millions: False only if `offer` would find nothing, or nonsense."""
        if len(name) > _LONGEST_STORED:  # such a name is refused, and remembered if it is plain and wanted
            return (
                name[max(name.rfind(b"/"), name.rfind(b"\\"), len(name) - _LONGEST_STORED) + 1 :].decode("latin-1")
                in self._aimed
            )
        last = name[max(name.rfind(b"/"), name.rfind(b"\\")) + 1 :]
        if not name.isascii():
            # Accents of their own (NFD, as macOS writes it) belong to the letters before them.
            return b"\xcc" in last or b"\xcd" in last or last.translate(None, _NOT_ASCII).lower() in self._bones
        text = last.decode("ascii")
        if text in self._aimed:
            return True
        if self._source.key != "imagenet":
            return False
        stem = text.rpartition(".")[0]
        return f"{stem}.JPEG" in self._aimed or f"{stem.rpartition('_')[0]}.JPEG" in self._aimed

    def offer(self, name: str | bytes, handle: Handle, *, trusted: bool = False) -> list[str]:
        """Consider one stored file.

        Args:
            trusted: the name is a path on this disk, not one that somebody wrote into an archive.

        Returns:
            The wanted paths that it matches (whether or not it is the best match).
        """
        found: list[str] = []
        if not trusted and (why := why_refused(name)) is not None:
            self.refuse(name, why, handle)
            return found
        if len(name) > _LONGEST:
            return found
        for spelling in spellings(name):
            parts = _parts(spelling)
            if parts:
                parts = (*self._inside, *parts)
                aimed = self._aimed.get(self._basename(parts), ())
                found += [path for path, aim in aimed if self._consider(path, aim, parts, spelling, handle)]
        if not found and self._skeletons and not name.isascii():
            parts = _parts(spellings(name)[0])
            for path in self._skeletons.get(_skeleton(parts[-self._source.tail :]), ()):
                self._weak.setdefault(path, []).append((spellings(name)[0], handle))
        return found

    def refuse(self, name: str | bytes, why: str, handle: Handle) -> None:
        """Remember a stored file that may not be taken, if its last part is wanted."""
        for spelling in spellings(name[-_LONGEST_STORED:]):
            parts = _parts(spelling)
            aimed = self._aimed.get(self._basename(parts), ()) if parts else ()
            for path, aim in aimed:
                agreement = 1  # the last parts agree already
                while agreement < min(len(aim), len(parts)) and aim[-agreement - 1] == parts[-agreement - 1]:
                    agreement += 1
                if agreement >= min(self._source.tail, len(aim)):
                    self._refused.setdefault(path, (why, handle))
            if aimed:
                return

    def refusals(self) -> dict[str, tuple[str, Handle]]:
        """For wanted paths that only refused files match: why (of the first), and its handle."""
        taken = self._best.keys() | self._weak.keys()
        return {path: refusal for path, refusal in self._refused.items() if path not in taken}

    def _consider(self, path: str, aim: tuple[str, ...], parts: tuple[str, ...], name: str, handle: Handle) -> bool:
        agreement = 1  # the last parts agree already, perhaps up to ImageNet's suffix
        while agreement < min(len(aim), len(parts)) and aim[-agreement - 1] == parts[-agreement - 1]:
            agreement += 1
        tail = self._source.tail
        if self._source.key == "imagenet" and imagenet_basename(aim[-1]) is None:
            tail = len(aim) - 1  # not a name that identifies an image: its folders have to agree
        if agreement < min(tail, len(aim)):
            return False
        # progan_train/cat/0_real/00001.png is not progan_val/cat/0_real/00001.png, however much of them agrees; where
        # nothing tells which of them cat/0_real/00001.png is, it is neither. (A single name that identifies an image
        # does not need its folder.)
        folders = self._source.folders
        if agreement < len(aim) and aim[0] in folders:
            above = next((part for part in reversed(parts[:-agreement]) if part in folders), None)
            if above != aim[0] and (above is not None or (len(folders) > 1 and tail > 1)):
                return False
        best = self._best.get(path)
        if best is None or agreement > best.agreement:
            self._best[path] = _Best(agreement, name, handle)
        elif agreement == best.agreement and handle != best.handle:
            best.rival = best.rival or name
        return True

    def found(self) -> dict[str, Handle]:
        """The unambiguous matches, by wanted path."""
        sure = {path: best.handle for path, best in self._best.items() if best.rival is None}
        for path, offers in self._weak.items():
            same_name = {p for p, others in self._weak.items() if others[0] == offers[0]}
            if path not in self._best and all(offer == offers[0] for offer in offers) and len(same_name) == 1:
                sure[path] = offers[0][1]
        return sure

    def ambiguous(self) -> dict[str, tuple[str, str]]:
        """Wanted paths for which two different files agree equally well, and the two names."""
        return {path: (best.name, best.rival) for path, best in self._best.items() if best.rival is not None}
