"""The lists of upstream's test protocol: which real images each group of generators is tested with, and how often.

`test_annotations_{gan,sd,midjourney,dalle3}.txt` name a group's synthetic images and as many real ones, whatever these
show: 20,000 rows dealt out over the groups, as many of each source as the test set has real images of it. But 1,674
of Photozilla's 5,000 rows, and four others, name an image again in place of one that is never used.
`test_calibration.txt` names 80 images of the rendered test set, `./testset/<content>/<real|synthetic>
[/<group>]/<number>.webp`. The number counts through the four lists in the order given here, so that it leads back to
the image that was rendered. They are upstream's files: never part of this package, and known by their git ids.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from imaginet_hub.data.lists import download_list, git_sha1, save_list
from imaginet_hub.data.readers.hosts import Endpoints
from imaginet_hub.data.readers.http import Http
from imaginet_hub.data.sources import LISTS, PinnedList
from imaginet_hub.errors import AnnotationError
from imaginet_hub.labels import ContentType, GeneratorFamily

__all__ = ["CALIBRATION_LIST", "GROUP_LISTS", "ListedImage", "ProtocolLists", "find_protocol_lists"]


def _pinned(name: str, git_id: str) -> PinnedList:
    beside = (address.rpartition("/")[0] for address in LISTS["test"].addresses)
    return PinnedList(name, tuple(f"{folder}/{name}" for folder in beside), git_id)


#: By generator family, in the order in which upstream numbers the rendered images.
GROUP_LISTS: dict[GeneratorFamily, PinnedList] = {
    GeneratorFamily.GAN: _pinned("test_annotations_gan.txt", "23b28a247fa94df5a37a77bb5e7981dfc14877fc"),
    GeneratorFamily.SD: _pinned("test_annotations_sd.txt", "113673a6e8a6ba5a398995f922834bb37824042d"),
    GeneratorFamily.MIDJOURNEY: _pinned("test_annotations_midjourney.txt", "d81fb64900875f601853a94f3d9db4a954ecebac"),
    GeneratorFamily.DALLE3: _pinned("test_annotations_dalle3.txt", "7a6635232813d0cffb51b8fa2c6d2fd7524191e0"),
}
CALIBRATION_LIST = _pinned("test_calibration.txt", "5e0693863c7319524274b608bbd7dee8c264921f")

_ROW = re.compile(r"(?P<path>.+),(?P<origin>[01]),(?P<content>[0-3]),(?P<model>[0-4]),[0-8]")
_RENDERED = re.compile(
    r"(?:\./)?testset/(?P<content>\w+)/(?P<origin>real|synthetic/(?P<group>\w+))/(?P<number>\d{5})\.webp"
)
#: The folder of a group in the rendered test set.
_FOLDER = {
    family: pinned.name.removeprefix("test_annotations_").removesuffix(".txt")
    for family, pinned in GROUP_LISTS.items()
}


class ListedImage(NamedTuple):
    """A row of a list: the path below ROOT in its simplest form, 0 = real or 1 = synthetic, and the content."""

    path: str
    label: int
    content_type: str


@dataclass(frozen=True)
class ProtocolLists:
    """Upstream's test protocol.

    Attributes:
        groups: by generator family, the images in list order; an image stands there as often as it counts.
        calibration: the images that upstream fits its calibration to.
        remarks: what the user should know about the lists.
    """

    groups: Mapping[str, tuple[ListedImage, ...]]
    calibration: tuple[ListedImage, ...]
    remarks: tuple[str, ...] = ()


def find_protocol_lists(folder: Path | None, *, store: Path, offline: bool) -> ProtocolLists | None:
    """Read upstream's protocol lists, and download those that are not here.

    Args:
        folder: where the lists may be: a ROOT (in its `annotations` or in itself) or a folder of lists.
        store: the folder to put downloaded lists into, and to look for them later.
        offline: whether to go without a download (HF_HUB_OFFLINE).

    Returns:
        The lists, or None where some are not here and may not be downloaded.

    Raises:
        AnnotationError: naming file and line of a row that is not as it should be.
        FetchError: a list could not be downloaded, or is not upstream's.
    """
    places = [*([folder / "annotations", folder] if folder else []), store]
    pinned = (*GROUP_LISTS.values(), CALIBRATION_LIST)
    found = {item.name: next((p / item.name for p in places if (p / item.name).is_file()), None) for item in pinned}
    absent = [item for item in pinned if found[item.name] is None]
    if absent and offline:
        return None
    if absent:
        endpoints = Endpoints.resolve()
        with Http() as http:
            for item in absent:
                save_list(store / item.name, download_list(item, http, endpoints))
    texts, remarks = {}, []
    for item in pinned:
        file = found[item.name] or store / item.name
        data = file.read_bytes()
        if git_sha1(data) != item.git_sha1:
            remarks.append(f"{file} differs from upstream's list; it is used as it is")
        texts[item.name] = _Text(file, data)
    groups = {family: _group(texts[item.name], family) for family, item in GROUP_LISTS.items()}
    calibration = _calibration(texts[CALIBRATION_LIST.name], groups)
    return ProtocolLists({str(family): rows for family, rows in groups.items()}, calibration, tuple(remarks))


class _Text:
    """A list as numbered lines, for error messages."""

    def __init__(self, file: Path, data: bytes) -> None:
        self.file = file
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise self.error(line, "UTF-8", str(data[error.start : error.start + 20])) from error
        lines = enumerate(text.removeprefix("\ufeff").split("\n"), start=1)
        self.lines = [(number, line.removesuffix("\r")) for number, line in lines if line.strip()]
        if not self.lines:
            raise self.error(1, "at least one row", "")

    def error(self, line: int, expected: str, found: str) -> AnnotationError:
        return AnnotationError(
            f"{self.file}, line {line}: expected {expected}, found {found[:200]!r}; get upstream's list, or correct it"
        )

    def row(self, number: int, line: str) -> re.Match[str]:
        row = _ROW.fullmatch(line)
        if row is None:
            raise self.error(number, "path,origin,content_type,model,specific_model with upstream's integers", line)
        return row


def _group(text: _Text, family: GeneratorFamily) -> tuple[ListedImage, ...]:
    models = {"0": list(GeneratorFamily).index(GeneratorFamily.REAL), "1": list(GeneratorFamily).index(family)}
    rows = []
    for number, line in text.lines:
        row = text.row(number, line)
        if int(row["model"]) != models[row["origin"]]:
            raise text.error(number, f"model {models[row['origin']]} for origin {row['origin']}", line)
        content = str(list(ContentType)[int(row["content"])])
        rows.append(ListedImage(str(PurePosixPath(row["path"])), int(row["origin"]), content))
    return tuple(rows)


def _calibration(text: _Text, groups: Mapping[GeneratorFamily, tuple[ListedImage, ...]]) -> tuple[ListedImage, ...]:
    """The images that the rendered ones were made of."""
    numbered = [(family, image) for family, images in groups.items() for image in images]
    rows = []
    for number, line in text.lines:
        row = text.row(number, line)
        rendered = _RENDERED.fullmatch(row["path"])
        if rendered is None:
            raise text.error(
                number, "./testset/<content>/real/<5 digits>.webp or ./testset/<content>/synthetic/<group>/...", line
            )
        place = int(rendered["number"])
        if place >= len(numbered):
            raise text.error(number, f"a number below {len(numbered)}, the rows of the group lists", line)
        family, image = numbered[place]
        kind = f"synthetic/{_FOLDER[family]}" if image.label else "real"
        if (int(row["origin"]), rendered["content"], rendered["origin"]) != (image.label, image.content_type, kind):
            raise text.error(number, f"{image.content_type}/{kind}, as row {place} of the group lists is", line)
        rows.append(image)
    return tuple(rows)
