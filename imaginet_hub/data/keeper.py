"""Keeping a file: verify the bytes, write them beside the final name, rename, enter them in the ledger."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from imaginet_hub.data.images import ImageFacts, examine
from imaginet_hub.data.ledger import FOLDER, Entry, Ledger
from imaginet_hub.data.lists import Face
from imaginet_hub.data.manifest import Record
from imaginet_hub.data.workers import Fatal
from imaginet_hub.errors import FetchError, ImageError

__all__ = ["FOUND", "REPLACED", "Keeper", "disk_error", "temporary_name"]

#: The route of files that were there already.
FOUND = "found"
#: Where files that were damaged are kept, below the ledger's folder.
REPLACED = "replaced"
#: Errors that are one file's own; any other means that nothing more can be written.
_FILE_S_OWN = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EINVAL, errno.EXDEV, errno.ELOOP)


def temporary_name(name: str) -> str:
    """What a file is called until it is complete; see `fetch._TEMPORARY`."""
    return f".{hashlib.sha256(name.encode(errors='surrogateescape')).hexdigest()[:16]}.incomplete"


class Keeper:
    """The only one who writes images into a ROOT.

    Args:
        root: ROOT.
        ledger: open for appending.
        faces: what upstream's FFHQ list promises, by path.
        check: called while an image takes its time; raises to stop.

    Attributes:
        set_aside: damaged files that had to make room, below `.imaginet/replaced`.
    """

    def __init__(
        self, root: Path, ledger: Ledger, faces: Mapping[str, Face], check: Callable[[], None] = lambda: None
    ) -> None:
        self._root = root
        self._ledger = ledger
        self._faces = faces
        self._folders: set[Path] = set()
        self.set_aside: list[str] = []
        self._check = check

    def adopt(self, record: Record, data: bytes, mtime_ns: int) -> None:
        """Enter a file that is there, if it is what lists and ledger say.

        Args:
            data: its bytes.
            mtime_ns: its modification time before they were read.

        Raises:
            FetchError: reason "corrupt"; or `Fatal`.
        """
        facts = self._verified(record, data, FOUND)
        known = self._ledger.entries.get(record.file)
        if known is not None and known.sha256 != facts.sha256:
            raise self.wrong(record, FOUND, f"SHA-256 {known.sha256} as on {known.when}", facts.sha256)
        # One that was only touched or copied keeps what is known of where it came from.
        entry = Entry.of(record, facts, FOUND, mtime_ns) if known is None else replace(known, mtime_ns=mtime_ns)
        try:
            self._ledger.append(entry)
        except OSError as error:
            raise disk_error(self._root, error) from error

    def place(self, record: Record, data: bytes, route: str) -> None:
        """Give bytes that came by a route their final name.

        Raises:
            FetchError: reason "corrupt", or "disk" where this one file has no place; or `Fatal`.
        """
        facts = self._verified(record, data, route)
        target = self._root / record.file
        temporary = target.parent / temporary_name(target.name)
        try:
            if target.parent not in self._folders:
                target.parent.mkdir(parents=True, exist_ok=True)
                self._folders.add(target.parent)
            try:
                with temporary.open("wb") as file:
                    file.write(data)
                mtime = temporary.stat().st_mtime_ns
                if os.path.lexists(target):
                    self._make_room(target, record)
                temporary.replace(target)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            self._ledger.append(Entry.of(record, facts, route, mtime))
        except OSError as error:
            if error.errno in _FILE_S_OWN:
                raise self.no_place(record, str(error)) from error
            raise disk_error(self._root, error) from error

    def _verified(self, record: Record, data: bytes, route: str) -> ImageFacts:
        """The facts of bytes that are fit to be this file."""
        face = self._faces.get(record.file)
        try:
            facts = examine(data, record.path, pixel_md5=face is not None, check=self._check)
        except ImageError as error:
            raise self.wrong(record, route, "an image that decodes completely", error.message) from error
        if record.sha256 is not None and facts.sha256 != record.sha256:
            raise self.wrong(record, route, f"SHA-256 {record.sha256}", facts.sha256)
        if face is not None and facts.pixel_md5 != face.pixel_md5:
            raise self.wrong(record, route, f"pixels with MD5 {face.pixel_md5}", str(facts.pixel_md5))
        return facts

    def wrong(self, record: Record, route: str, expected: str, got: str) -> FetchError:
        """Bytes that are not the file's."""
        return FetchError("corrupt", record.source, f"{record.path} by {route}", expected, got, "try another --route")

    def no_place(self, record: Record, got: str) -> FetchError:
        """A file that cannot have its name here."""
        target = str(self._root / record.file)
        return FetchError("disk", record.source, target, "a place for the file", got, "make room there")

    def blocked_folders(self, records: Iterable[Record]) -> dict[str, Path]:
        """Folders of records that cannot be made, and the file that lies where they (or a parent) should be."""
        blocked = {}
        for folder in {record.file.rpartition("/")[0] for record in records}:
            above = (self._root / folder, *(self._root / folder).parents)
            existing = next((path for path in above if os.path.lexists(path)), self._root)
            if not os.path.isdir(existing):  # noqa: PTH112 - pathlib raises where a name is too long
                blocked[folder] = existing
        return blocked

    def _make_room(self, target: Path, record: Record) -> None:
        """A damaged file (or a folder in its place) is kept, out of the way; behind a link it is not ours to move."""
        if not target.parent.resolve().is_relative_to(self._root.resolve()):
            raise OSError(
                errno.EEXIST, "a damaged file lies in a folder outside ROOT; remove it yourself", str(target)
            )
        folder = self._root / FOLDER / REPLACED
        aside, number = folder / record.file, 1
        while os.path.lexists(aside):
            number += 1
            aside = folder / f"{record.file}.{number}"
        aside.parent.mkdir(parents=True, exist_ok=True)
        target.replace(aside)
        self.set_aside.append(record.file)


def disk_error(root: Path, error: OSError) -> Fatal:
    """What an OSError means when nothing more can be written."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return Fatal(
        "disk",
        "ROOT",
        str(root),
        "room for the next file" if full else "a folder that can be written",
        str(error),
        "everything that came in is kept: "
        + ("free some disk" if full else "make it writable")
        + " and run the same command again",
    )
