"""Upstream's protocol lists: the facts of the real ones, and made ones that are read, refused and downloaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from imaginet_hub.data import upstream_lists
from imaginet_hub.data.lists import git_sha1
from imaginet_hub.data.sources import PinnedList
from imaginet_hub.data.upstream_lists import CALIBRATION_LIST, GROUP_LISTS, ListedImage, find_protocol_lists
from imaginet_hub.demo.mirror import Mirror
from imaginet_hub.demo.staging import REPOSITORY
from imaginet_hub.errors import AnnotationError, FetchError

#: Two synthetic and two real rows a group; a real image twice in one list, and in two lists.
MADE = {
    "test_annotations_gan.txt": "./progan_val/cat/1_fake/1.png,1,0,0,0\n./wikiart_stylegan/seed3.png,1,1,0,2\n"
    "./val2017/1.jpg,0,0,4,8\nval2017/1.jpg,0,0,4,8\n",
    "test_annotations_sd.txt": "./sd_faces_fake/a.webp,1,2,1,3\n./sdxl_photos_fake/b.webp,1,0,1,4\n"
    "./ffhq/a,b.png,0,2,4,8\n./val2017/1.jpg,0,0,4,8\n",
    "test_annotations_midjourney.txt": "./journeydb/a.jpg,1,3,2,6\n./val2017/2.jpg,0,0,4,8\n",
    "test_annotations_dalle3.txt": "./dalle3/a.png,1,3,3,7\n./ffhq/c.png,0,2,4,8\n",
    "test_calibration.txt": "./testset/uncategorized/synthetic/dalle3/00010.webp,1,3,3,7\n"
    "./testset/photos/synthetic/sd/00005.webp,1,0,1,4\n./testset/photos/real/00003.webp,0,0,4,8\n",
}


def write(folder: Path, **changed: str) -> Path:
    """The made lists, some of them changed; named by the word that tells them apart."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in MADE.items():
        word = name.removesuffix(".txt").rpartition("_")[2]
        (folder / name).write_text(changed.get(word, text))
    return folder


def read(folder: Path) -> upstream_lists.ProtocolLists:
    found = find_protocol_lists(folder, store=folder / "store", offline=True)
    assert found is not None
    return found


def test_the_real_lists(shared: Path) -> None:
    found = read(shared)
    assert found.remarks == ()
    assert {name: len(rows) for name, rows in found.groups.items()} == {
        "GAN": 15000,
        "SD": 15000,
        "Midjourney": 5000,
        "DALL-E 3": 5000,
    }
    real = Counter(image.path for rows in found.groups.values() for image in rows if image.label == 0)
    assert (real.total(), len(real), max(real.values())) == (20_000, 18_322, 7)
    listed = [line.rsplit(",", 4) for line in (shared / "annotations/test_annotations.txt").read_text().splitlines()]
    reals = {path.removeprefix("./") for path, origin, *_ in listed if origin == "0"}
    assert len(reals - real.keys()) == 1678
    assert real.keys() <= reals
    repeated = {name: len(rows) - len({image.path for image in rows}) for name, rows in found.groups.items()}
    assert repeated == {"GAN": 29, "SD": 20, "Midjourney": 0, "DALL-E 3": 6}
    synthetic = Counter(image.path for rows in found.groups.values() for image in rows if image.label == 1)
    assert synthetic == Counter(path.removeprefix("./") for path, origin, *_ in listed if origin == "1")


def test_the_real_lists_deal_out_real_images_by_source(shared: Path) -> None:
    """As many rows of each source as the test set has real images of it; nearly all repetitions are Photozilla's."""
    found = read(shared)
    listed = [line.rsplit(",", 4) for line in (shared / "annotations/test_annotations.txt").read_text().splitlines()]
    there = Counter(path.split("/")[1] for path, origin, *_ in listed if origin == "0")
    real = Counter(image.path for rows in found.groups.values() for image in rows if image.label == 0)
    assert Counter(path.split("/")[0] for path in real.elements()) == there
    unique = Counter(path.split("/")[0] for path in real)
    assert there - unique == {"photozilla": 1674, "wikiart": 2, "danbooru2021": 2}


def test_the_real_calibration_images_are_tested_on(shared: Path) -> None:
    found = read(shared)
    assert len(set(found.calibration)) == 80
    assert Counter(image.label for image in found.calibration) == {0: 40, 1: 40}
    # Ten synthetic images of each family; all real ones are among GAN's.
    for name, rows in found.groups.items():
        assert len(set(found.calibration).intersection(row for row in rows if row.label)) == 10, name
    assert {image for image in found.calibration if not image.label} <= set(found.groups["GAN"])


def test_pins_are_those_of_the_real_lists(shared: Path) -> None:
    for pinned in (*GROUP_LISTS.values(), CALIBRATION_LIST):
        assert git_sha1((shared / "annotations" / pinned.name).read_bytes()) == pinned.git_sha1
        assert all(address.endswith(f"/annotations/{pinned.name}") for address in pinned.addresses)


@pytest.mark.parametrize("place", ["annotations", "."])
def test_lists_keep_order_and_repetitions(tmp_path: Path, place: str) -> None:
    write(tmp_path / place)
    found = read(tmp_path)
    assert found.groups["GAN"] == (
        ListedImage("progan_val/cat/1_fake/1.png", 1, "photos"),
        ListedImage("wikiart_stylegan/seed3.png", 1, "paintings"),
        ListedImage("val2017/1.jpg", 0, "photos"),
        ListedImage("val2017/1.jpg", 0, "photos"),
    )
    assert found.groups["SD"][2] == ListedImage("ffhq/a,b.png", 0, "faces")
    assert found.calibration == (found.groups["DALL-E 3"][0], found.groups["SD"][1], found.groups["GAN"][3])
    assert len(found.remarks) == 5
    assert all("differs from upstream's" in remark for remark in found.remarks)


GAN, CALIBRATION = "test_annotations_gan.txt", "test_calibration.txt"


@pytest.mark.parametrize(
    ("word", "row", "expected"),
    [
        ("gan", "./a.png,1,0,0", "path,origin"),
        ("gan", "./a.png,2,0,0,0", "path,origin"),
        ("gan", "./a.png,1,0,1,3", "model 0 for origin 1"),
        ("gan", "./a.png,0,0,0,0", "model 4 for origin 0"),
        ("calibration", "./testset/photos/real/3.webp,0,0,4,8", "<5 digits>"),
        ("calibration", "./testset/photos/real/00012.webp,0,0,4,8", "a number below 12"),
        ("calibration", "./testset/photos/real/00002.webp,1,0,0,0", "photos/real, as row 2"),
        ("calibration", "./testset/faces/real/00002.webp,0,2,4,8", "photos/real, as row 2"),
        ("calibration", "./testset/photos/synthetic/gan/00005.webp,1,0,1,4", "photos/synthetic/sd, as row 5"),
    ],
    ids=["fields", "origin", "family", "real", "digits", "number", "label", "content", "group"],
)
def test_a_row_that_is_not_as_it_should_be_is_named(tmp_path: Path, word: str, row: str, expected: str) -> None:
    name = GAN if word == "gan" else CALIBRATION
    write(tmp_path, **{word: f"{MADE[name]}\r\n{row}\n"})
    with pytest.raises(AnnotationError, match=expected) as caught:
        read(tmp_path)
    assert f"{tmp_path / name}, line {MADE[name].count(chr(10)) + 2}: expected" in str(caught.value)
    assert row in str(caught.value)


def test_lists_without_rows_or_in_another_encoding(tmp_path: Path) -> None:
    write(tmp_path, sd="\n\n")
    with pytest.raises(AnnotationError, match=r"test_annotations_sd.txt, line 1: expected at least one row"):
        read(tmp_path)
    (write(tmp_path) / GAN).write_bytes(MADE[GAN].encode() + "./\u00e9.png,1,0,0,0\n".encode("latin-1"))
    with pytest.raises(AnnotationError, match="line 5: expected UTF-8"):
        read(tmp_path)


def test_offline_without_lists_there_are_none(tmp_path: Path) -> None:
    assert find_protocol_lists(None, store=tmp_path, offline=True) is None
    (write(tmp_path) / CALIBRATION).unlink()
    assert find_protocol_lists(tmp_path, store=tmp_path / "store", offline=True) is None


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    """Upstream's repository on a mirror, with the made lists pinned as its own."""
    write(tmp_path / "origin" / "github" / REPOSITORY / "annotations")
    pins = {name: git_sha1(text.encode()) for name, text in MADE.items()}
    repinned = {family: PinnedList(x.name, x.addresses, pins[x.name]) for family, x in GROUP_LISTS.items()}
    monkeypatch.setattr(upstream_lists, "GROUP_LISTS", repinned)
    calibration = PinnedList(CALIBRATION_LIST.name, CALIBRATION_LIST.addresses, pins[CALIBRATION_LIST.name])
    monkeypatch.setattr(upstream_lists, "CALIBRATION_LIST", calibration)
    with Mirror(tmp_path / "origin") as mirror:
        monkeypatch.setenv("IMAGINET_ENDPOINTS", ",".join(f"{k}={v}" for k, v in mirror.endpoints.items()))
        yield mirror


def test_absent_lists_are_downloaded_once_and_verified(mirror: Mirror, tmp_path: Path) -> None:
    folder, store = write(tmp_path / "some"), tmp_path / "store"
    (folder / GAN).unlink()
    found = find_protocol_lists(folder, store=store, offline=False)
    assert found is not None
    assert (len(mirror.requests), found.remarks) == (1, ())
    assert find_protocol_lists(folder, store=store, offline=False) == found
    assert find_protocol_lists(folder, store=store, offline=True) == found
    assert find_protocol_lists(None, store=tmp_path / "all", offline=False) == found
    assert len(mirror.requests) == 6


def test_a_download_that_is_not_upstreams_is_refused(mirror: Mirror, tmp_path: Path) -> None:
    (mirror.origin / "github" / REPOSITORY / "annotations" / GAN).write_text(MADE[GAN] * 2)
    with pytest.raises(FetchError) as caught:
        find_protocol_lists(None, store=tmp_path / "store", offline=False)
    assert caught.value.reason == "corrupt"
    assert not (tmp_path / "store" / GAN).exists()
