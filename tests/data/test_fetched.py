"""`load_dataset("imaginet")` without `data_dir`: the plan first, then a fetch into the cache, once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest

import imaginet_hub  # noqa: F401
from imaginet_hub.data import fetch as fetching
from imaginet_hub.demo.mirror import Mirror
from imaginet_hub.demo.staging import stage
from imaginet_hub.errors import DataNotFoundError, FetchError, UsageError
from tests.conftest import image_bytes
from tests.support.published import ACCOUNTS, GATES

UUID = "{:08x}-81cc-4eef-a89f-0cb9f211fa6f"
#: Path and labels, by split.
LISTED = {
    "test": [
        *((f"./val2017/{n:012d}.jpg", "0,0,4,8") for n in range(139, 145)),
        *((f"./ffhq/{UUID.format(n)}.png", "0,2,4,8") for n in range(4)),
        *((f"./sd_faces_fake/{UUID.format(n)}.webp", "1,2,1,3") for n in range(10, 14)),
        *((f"./journeydb/{UUID.format(n)}.jpg", "1,3,2,6") for n in range(20, 23)),
    ],
    "train": [
        *((f"./train2017/{n:012d}.jpg", "0,0,4,8") for n in range(200, 206)),
        *((f"./dalle3/{UUID.format(n)}.png", "1,3,3,7") for n in range(30, 34)),
    ],
}
FORMATS = {".jpg": "JPEG", ".png": "PNG", ".webp": "WEBP"}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """What hosts serve, and the lists."""
    base = tmp_path_factory.mktemp("published")
    root = base / "root"
    (root / "annotations").mkdir(parents=True)
    number = 0
    for split, rows in LISTED.items():
        (root / "annotations" / f"{split}_annotations.txt").write_text("".join(f"{p},{c}\n" for p, c in rows))
        for path, _ in rows:
            (root / path).parent.mkdir(exist_ok=True)
            (root / path).write_bytes(image_bytes(number, format_=FORMATS[Path(path).suffix]))
            number += 1
    stage(root, base / "origin", base / "own")
    return base / "origin", base / "own" / "annotations"


@pytest.fixture
def mirror(published: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    with Mirror(published[0], **GATES) as running:
        for name, value in running.environ().items():
            monkeypatch.setenv(name, value)
        yield running


@pytest.fixture
def accounts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ACCOUNTS.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def options(published: tuple[Path, Path], tmp_path: Path) -> dict[str, Any]:
    """Arguments of load_dataset."""
    lists = tmp_path / "lists"
    shutil.copytree(published[1], lists)
    return {"annotations": str(lists), "cache_dir": str(tmp_path / "cache")}


def paths(loaded: datasets.DatasetDict) -> dict[str, list[str]]:
    return {split: list(rows["path"]) for split, rows in loaded.items()}


@pytest.mark.usefixtures("accounts")
def test_all_of_it_once(mirror: Mirror, options: dict[str, Any]) -> None:
    loaded = datasets.load_dataset("imaginet", **options)
    assert paths(loaded) == {split: [path for path, _ in LISTED[split]] for split in ("train", "test")}
    root = Path(options["cache_dir"]) / "imaginet-root"
    for split in loaded:
        for row in loaded[split].cast_column("image", datasets.Image(decode=False)):
            assert row["image"]["bytes"] == (root / row["path"]).read_bytes()
    mirror.forget()
    again = datasets.load_dataset("imaginet", **options)
    assert paths(again) == paths(loaded) and mirror.requests == []
    assert {f["filename"] for f in again["test"].cache_files} == {f["filename"] for f in loaded["test"].cache_files}
    generators = datasets.load_dataset("imaginet", "identification", **options)
    assert len(generators["test"]) == 7 and mirror.requests == []
    one = datasets.load_dataset("imaginet", only=["coco"], splits="test", **options)
    assert paths(one) == {"test": [path for path, _ in LISTED["test"][:6]]}


def test_the_cache_follows_the_files(mirror: Mirror, options: dict[str, Any], published: tuple[Path, Path]) -> None:
    options |= {"only": "coco", "splits": "test"}
    first = datasets.load_dataset("imaginet", **options)
    changed = Path(options["cache_dir"]) / "imaginet-root" / "val2017" / "000000000139.jpg"
    changed.unlink()
    changed.write_bytes(image_bytes(999, format_="JPEG"))
    mirror.forget()
    second = datasets.load_dataset("imaginet", **options)  # another image than was verified: the ledger's word stands
    assert second["test"]["sha256"] == first["test"]["sha256"]
    assert second["test"].cache_files != first["test"].cache_files
    assert [request.path for request in mirror.requests] == ["/val2017/000000000139.jpg"]
    listed = Path(options["annotations"]) / "test_annotations.txt"
    listed.write_text(listed.read_text().replace("./val2017/000000000139.jpg,0,0,4,8\n", ""))
    assert len(datasets.load_dataset("imaginet", **options)["test"]) == 5


def test_what_cannot_work_stops_before_the_first_byte(
    mirror: Mirror, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(DataNotFoundError, match="nothing was fetched") as caught:
        datasets.load_dataset("imaginet", **options)
    account = ("an account is needed (hf)", "hf auth login")
    for word in ("journeydb", "3 images", *account, "data_dir=ROOT", "allow_partial=True"):
        assert word in str(caught.value)
    assert mirror.requests == []
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(FetchError, match=r"free disk \(images, and the prepared dataset\), got 1 kB"):
        datasets.load_dataset("imaginet", only="coco", **options)
    assert mirror.requests == []


def test_a_partial_one(mirror: Mirror, options: dict[str, Any]) -> None:
    loaded = datasets.load_dataset("imaginet", allow_partial=True, **options)
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 10, "test": 14}
    mirror.forget()
    again = datasets.load_dataset("imaginet", allow_partial=True, **options)
    assert paths(again) == paths(loaded) and mirror.requests == []


def test_streams_and_questions_fetch_no_image(mirror: Mirror, options: dict[str, Any]) -> None:
    options |= {"only": "ffhq", "splits": "test"}
    assert datasets.get_dataset_split_names("imaginet", **options) == ["test"]
    stream = datasets.load_dataset("imaginet", split="test", streaming=True, **options)
    with pytest.raises(DataNotFoundError, match=r"streams do not fetch; run `imaginet fetch .*imaginet-root`"):
        next(iter(stream))
    assert mirror.requests == []
    datasets.load_dataset("imaginet", **options)
    mirror.forget()
    stream = datasets.load_dataset("imaginet", split="test", streaming=True, **options)
    assert [row["path"] for row in stream] == [path for path, _ in LISTED["test"][6:10]]
    assert mirror.requests == []


@pytest.mark.usefixtures("accounts")
def test_identification_fetches_no_real_image(mirror: Mirror, options: dict[str, Any]) -> None:
    loaded = datasets.load_dataset("imaginet", "identification", **options)
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 4, "test": 7}
    root = Path(options["cache_dir"]) / "imaginet-root"
    assert not (root / "val2017").exists() and not (root / "ffhq").exists()


def test_room_for_the_prepared_copy_is_asked_for_too(
    mirror: Mirror, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    free = 6 * 163_000 * 3 // 2  # more than the images, less than twice as much
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, free))
    with pytest.raises(FetchError, match=r"images, and the prepared dataset"):
        datasets.load_dataset("imaginet", only="coco", splits="test", **options)
    assert mirror.requests == []


def test_what_is_damaged_everywhere_stops_nobody(
    mirror: Mirror, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = Path(options["annotations"]) / "test_annotations.txt"
    with listed.open("a") as stream:
        stream.write("./wikiart/Baroque/rembrandt_woman-standing-with-raised-hands.jpg,0,1,4,8\n")
    options |= {"only": "coco,wikiart", "splits": "test"}
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataNotFoundError, match="nothing was fetched"):
        datasets.load_dataset("imaginet", **options)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    datasets.load_dataset("imaginet", "detection", **options)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    loaded = datasets.load_dataset("imaginet", "detection", **{**options, "only": ["wikiart", "coco", "coco"]})
    assert len(loaded["test"]) == 6


def test_a_failure_is_told_and_the_next_load_goes_on(mirror: Mirror, options: dict[str, Any]) -> None:
    from imaginet_hub.demo.mirror import Fault, always

    mirror.fault = always("000000000141", Fault(status=404))
    (Path(options["annotations"]) / "train_annotations.txt").unlink()
    options |= {"only": "coco"}
    zips = Path(mirror.origin) / "coco" / "zips"
    moved = zips.rename(zips.with_name("elsewhere"))
    try:
        with pytest.raises(FetchError, match=r"1 missing, such as this one: coco: .*load again"):
            datasets.load_dataset("imaginet", **options)
    finally:
        moved.rename(zips)
    mirror.fault = None
    mirror.forget()
    assert len(datasets.load_dataset("imaginet", **options)["test"]) == 6
    assert [request.path for request in mirror.requests] == ["/val2017/000000000141.jpg"]


def test_wrong_words(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean coco"):
        datasets.load_dataset("imaginet", only="cocoo", **options)
    with pytest.raises(UsageError, match="nothing is fetched"):
        datasets.load_dataset("imaginet", data_dir=str(tmp_path), only="coco")
    with pytest.raises(DataNotFoundError, match="nowhere"):
        datasets.load_dataset("imaginet", annotations=str(tmp_path / "nowhere"))
    assert not os.path.exists(options["cache_dir"] + "/imaginet-root/val2017")  # noqa: PTH110
