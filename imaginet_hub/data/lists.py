"""The lists of a fetch: from the user, from ROOT, or from upstream's repository, verified as git names them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from imaginet_hub.data.manifest import Manifest, find_annotations, read_annotations
from imaginet_hub.data.readers.hosts import Endpoints, remote_for
from imaginet_hub.data.readers.http import Http
from imaginet_hub.data.sources import FFHQ_LIST, LISTS, PinnedList
from imaginet_hub.errors import AnnotationError, DataNotFoundError, FetchError, UsageError

__all__ = ["Face", "Lists", "download_list", "find_faces", "find_lists", "git_sha1", "parse_faces", "save_list"]

_FOLDER = "annotations"
_MAX_LIST_BYTES = 64 * 1024**2
_FACE = re.compile(r"([\w-]{10,100}),([^,/\\]+\.png),([0-9a-f]{32})")


def git_sha1(data: bytes) -> str:
    """The name that git gives a file's content.

    >>> git_sha1(b"")
    'e69de29bb2d1d6434b8b29ae775ad8c2e48c5391'
    """
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


@dataclass(frozen=True)
class Lists:
    """The annotations of a fetch.

    Attributes:
        manifest: what they say.
        place: the file or folder that they were read from.
        remarks: what the user should know about them.
    """

    manifest: Manifest
    place: Path
    remarks: tuple[str, ...] = ()


def find_lists(
    root: Path,
    annotations: Path | None,
    split: str | None,
    http: Http,
    endpoints: Endpoints,
    *,
    store: Path,
    offline: bool = False,
) -> Lists:
    """Read the lists that a fetch needs, and download those of upstream that are not here.

    Args:
        root: ROOT.
        annotations: the user's list, table or folder; only what `split` needs is read of it. By default what ROOT
            carries, and upstream's lists where it carries none (or some of upstream's).
        split: the one split to fetch.
        store: the folder to put downloaded lists into.

    Raises:
        AnnotationError, DataNotFoundError, UsageError: see `read_annotations`.
        FetchError: a list could not be downloaded, or is not upstream's.
    """
    splits = None if split is None else {split}
    if annotations is not None:
        return _read(annotations, splits)
    carried = find_annotations(root)
    if carried is not None and (carried.is_file() or not _all_upstream(carried)):
        return _read(carried, splits)
    if split is not None and split not in ("train", "test"):
        raise UsageError(f"split: upstream's lists have train and test, got {split!r}")
    names = [n for n in ("train", "calibration", "test") if split is None or n == split or (n, split) == _WITH_TRAIN]
    absent = [LISTS[n] for n in names if carried is None or not (carried / LISTS[n].name).is_file()]
    if carried is not None and not absent:
        return _read(carried, splits)
    for pinned in absent:
        if not (store / pinned.name).is_file():
            if offline:
                raise DataNotFoundError(
                    f"the list {pinned.name} is not in {root / _FOLDER}, and offline mode is on (HF_HUB_OFFLINE); "
                    "name a list with --annotations"
                )
            save_list(store / pinned.name, download_list(pinned, http, endpoints))
    for name in names:  # they are read from one folder
        if carried is not None and LISTS[name] not in absent and not (store / LISTS[name].name).is_file():
            save_list(store / LISTS[name].name, (carried / LISTS[name].name).read_bytes())
    return _read(store, splits)


_WITH_TRAIN = ("calibration", "train")


def _all_upstream(folder: Path) -> bool:
    present = [(folder / pinned.name, pinned) for pinned in LISTS.values() if (folder / pinned.name).is_file()]
    return all(git_sha1(file.read_bytes()) == pinned.git_sha1 for file, pinned in present)


def _read(place: Path, splits: set[str] | None) -> Lists:
    manifest = read_annotations(place, splits)
    pinned = {item.name: item.git_sha1 for item in LISTS.values()}
    remarks = []
    for name, _ in manifest.lists:
        file = Path(name)
        if file.suffix == ".txt" and git_sha1(file.read_bytes()) != pinned.get(file.name):
            remarks.append(f"{file} differs from upstream's list; it is used as it is")
    return Lists(manifest, place, tuple(remarks))


def download_list(pinned: PinnedList, http: Http, endpoints: Endpoints) -> bytes:
    for address in pinned.addresses:
        remote = remote_for(address, "annotations", endpoints)
        try:
            data, _ = http.read(remote, max_bytes=_MAX_LIST_BYTES)
            break
        except FetchError as error:
            if error.reason != "missing" or address == pinned.addresses[-1]:
                raise
    found = git_sha1(data)
    if found != pinned.git_sha1:
        raise remote.error(
            "corrupt",
            f"the git blob {pinned.git_sha1}",
            f"{found} ({len(data):,} bytes)",
            "this is not upstream's list; check the mirror, or name a list with --annotations",
        )
    return data


def save_list(file: Path, data: bytes) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}.incomplete")
        temporary.write_bytes(data)
        temporary.replace(file)
    except OSError as error:
        raise FetchError("disk", "annotations", str(file), "a folder to write to", str(error), "check it") from error


@dataclass(frozen=True)
class Face:
    """One line of upstream's FFHQ list: the Drive id of an image and the MD5 of its RGB pixels, row by row."""

    drive_id: str
    pixel_md5: str


def parse_faces(data: bytes, name: str) -> dict[str, Face]:
    """`<Drive id>,<uuid>.png,<pixel MD5>` lines by path below ROOT.

    Raises:
        AnnotationError: naming the line.
    """
    faces: dict[str, Face] = {}
    for number, line in enumerate(data.decode("utf-8", errors="replace").splitlines(), start=1):
        parsed = _FACE.fullmatch(line.strip())
        if parsed is None and line.strip():
            raise AnnotationError(
                f"{name}, line {number}: expected <Drive id>,<name>.png,<32 hexadecimal digits>, found {line[:120]!r}"
            )
        if parsed is not None:
            face = Face(parsed[1], parsed[3])
            if faces.setdefault(f"ffhq/{parsed[2]}", face) != face:
                raise AnnotationError(f"{name}, line {number}: {parsed[2]} again, with other values than before")
    return faces


def find_faces(
    root: Path, place: Path, http: Http, endpoints: Endpoints, *, store: Path, offline: bool = False
) -> tuple[Mapping[str, Face], tuple[str, ...]]:
    """Upstream's FFHQ list: beside the annotations, in ROOT, or from upstream's repository; and remarks on it.

    Raises:
        AnnotationError: a line that is not as it should be.
        FetchError: it could not be downloaded, or is not upstream's.
    """
    name = FFHQ_LIST.name
    folder = place if place.is_dir() else place.parent
    for file in (
        folder / name,
        folder / "download_scripts" / name,
        folder.parent / "download_scripts" / name,
        root / _FOLDER / name,
        store / name,
    ):
        if file.is_file():
            data = file.read_bytes()
            differs = git_sha1(data) != FFHQ_LIST.git_sha1
            remark = (f"{file} differs from upstream's FFHQ list; it is used as it is",) if differs else ()
            return parse_faces(data, str(file)), remark
    if offline:
        raise DataNotFoundError(f"upstream's FFHQ list ({name}) is not here, and offline mode is on (HF_HUB_OFFLINE)")
    data = download_list(FFHQ_LIST, http, endpoints)
    save_list(store / name, data)
    return parse_faces(data, name), ()
