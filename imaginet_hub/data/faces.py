"""FFHQ's faces: upstream's list of them, and where FFHQ's own numbering puts them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from imaginet_hub.data.ledger import FOLDER
from imaginet_hub.data.lists import Face, find_faces
from imaginet_hub.data.readers.hosts import Endpoints, remote_for
from imaginet_hub.data.readers.http import Http, Remote
from imaginet_hub.data.sources import FFHQ_INDEX
from imaginet_hub.errors import AnnotationError, DataNotFoundError, FetchError

__all__ = ["INDEX_FILE", "Faces", "ffhq_index"]

INDEX_FILE = "ffhq-dataset-v2.json"


class Faces:
    """What is known of the faces of one fetch.

    Attributes:
        listed: Drive id and pixel MD5 by path below ROOT; empty until `load` finds upstream's list.
        error: why there is no list.
        offline: no network.
    """

    def __init__(self, root: Path, http: Http, endpoints: Endpoints, *, offline: bool) -> None:
        self.listed: Mapping[str, Face] = {}
        self.error: Exception | None = None
        self.offline = offline
        self._root = root
        self._http = http
        self._endpoints = endpoints
        self._names: dict[str, str] | None = None

    def load(self, place: Path) -> tuple[str, ...]:
        """Find the list, beside the annotations at `place` first; return remarks on it."""
        store = self._root / "annotations"
        try:
            self.listed, remarks = find_faces(
                self._root, place, self._http, self._endpoints, store=store, offline=self.offline
            )
        except (FetchError, AnnotationError, DataNotFoundError) as error:
            self.error = error
            remarks = (f"the FFHQ list could not be had, so pixels of faces cannot be verified: {error}",)
        return remarks

    def required(self) -> Mapping[str, Face]:
        """The list, for what cannot do without.

        Raises:
            FetchError: there is none, and why.
        """
        if self.listed:
            return self.listed
        raise FetchError(
            "missing",
            "ffhq",
            "ffhq_filenames.txt",
            "upstream's FFHQ list, which holds the Drive ids and the pixel MD5s",
            str(self.error or "none"),
            "put it beside the annotations, or bring the files with --from ffhq=PATH",
        )

    @property
    def numbered(self) -> bool:
        """Whether an index was read."""
        return self._names is not None

    def names(self) -> dict[str, str]:
        """Path in ROOT -> path in FFHQ's own numbering, by FFHQ's index, which is kept beside the ledger.

        Raises:
            FetchError, OSError: the index could not be had, or not be kept.
        """
        address, size, md5 = FFHQ_INDEX
        file = self._root / FOLDER / INDEX_FILE
        if not file.is_file():
            remote = remote_for(address, "ffhq", self._endpoints)
            temporary = file.with_suffix(".incomplete")
            self._download(remote, temporary)
            # Another host's index may be a part of it; a wrong one gives names that pixels then belie.
            if "drive" not in self._endpoints.moved:
                with temporary.open("rb") as stream:
                    found = hashlib.file_digest(stream, "md5").hexdigest()
                if found != md5:
                    temporary.unlink()
                    raise remote.error("corrupt", f"{size:,} bytes, MD5 {md5}", found, remote.other_ways())
            temporary.replace(file)
        return self._read(file)

    def names_near(self, path: Path) -> dict[str, str]:
        """The same from an index that lies with the user's files, if one does."""
        folder = path if path.is_dir() else path.parent
        for near in (folder, folder.parent, self._root / FOLDER):
            if (near / INDEX_FILE).is_file():
                return self._read(near / INDEX_FILE)
        return {}

    def _download(self, remote: Remote, file: Path) -> None:
        """A large file, going on after what an earlier run got of it."""
        start = file.stat().st_size if file.exists() else 0
        try:
            with file.open("ab") as out:
                for piece in self._http.stream(remote, start):
                    out.write(piece)
        except FetchError as error:
            if start == 0 or error.reason not in ("range", "changed"):
                raise
            file.unlink()
            remote.forget_version()
            self._download(remote, file)

    def _read(self, file: Path) -> dict[str, str]:
        if self._names is None:
            wanted = {face.pixel_md5: path for path, face in self.listed.items()}
            self._names = {wanted[md5]: name for md5, name in ffhq_index(file) if md5 in wanted}
        return self._names


def ffhq_index(file: Path) -> Iterator[tuple[str, str]]:
    """(MD5 of the pixels, path in FFHQ's own numbering) of every image in ffhq-dataset-v2.json, read as a stream.

    Raises:
        FetchError: reason "format".
    """
    decoder = json.JSONDecoder()
    with file.open(encoding="utf-8", errors="replace") as stream:
        text, position = stream.read(1024**2), 0
        opening = re.compile(r'\s*[{,]\s*("[^"]*")\s*:\s*')
        while True:
            key = opening.match(text, position)
            try:
                if key is None:
                    raise ValueError("no entry here")
                value, end = decoder.raw_decode(text, key.end())
                if end == len(text):  # a number or a word may go on
                    raise ValueError("cut")
                position = end
            except (ValueError, RecursionError):
                if re.match(r"\s*(\{\s*)?\}\s*$", text[position:]):
                    return
                more = stream.read(1024**2)
                if not more or len(text) - position > 16 * 1024**2:
                    raise FetchError(
                        "format", "ffhq", str(file), "FFHQ's index", "something else", "delete it and run again"
                    ) from None
                text, position = text[position:] + more, 0
                continue
            image = value.get("image") if isinstance(value, dict) else None
            if isinstance(image, dict):
                md5, path = image.get("pixel_md5"), image.get("file_path")
                if isinstance(md5, str) and isinstance(path, str):
                    yield md5, path
