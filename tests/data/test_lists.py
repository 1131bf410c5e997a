"""Where the lists of a fetch come from, and what is believed of them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from imaginet_hub.data import lists
from imaginet_hub.data.fetch import plan_fetch
from imaginet_hub.data.lists import Lists, find_faces, find_lists, git_sha1, parse_faces
from imaginet_hub.data.readers.hosts import Endpoints
from imaginet_hub.data.readers.http import Http, Limits
from imaginet_hub.data.sources import FFHQ_LIST, LISTS, PinnedList
from imaginet_hub.demo.mirror import Mirror
from imaginet_hub.demo.staging import REPOSITORY
from imaginet_hub.errors import AnnotationError, DataNotFoundError, FetchError, UsageError

TEST = "./val2017/000000000139.jpg,0,0,4,8\n./wikiart/Realism/a_b.jpg,0,1,4,8\n"
TRAIN = "./train2017/000000000009.jpg,0,0,4,8\n./train2017/000000000025.jpg,0,0,4,8\n"
CALIBRATION = "./train2017/000000000025.jpg,0,0,4,8\n"
FACE = "1xJYS4u3p0wMmDtvUE13fOkxFaUGBoH42,4de7697c-81cc-4eef-a89f-0cb9f211fa6f.png,47238b44dfb87644460cbdcc4607e289"


class Upstream:
    """Upstream's repository on a mirror, with lists that are pinned as its own."""

    def __init__(self, mirror: Mirror, http: Http) -> None:
        self.mirror = mirror
        self.http = http
        self.folder = mirror.origin / "github" / REPOSITORY

    def find(self, root: Path, annotations: Path | None = None, split: str | None = None, **options: object) -> Lists:
        options = {"store": root / "annotations", **options}
        endpoints = Endpoints.resolve(self.mirror.endpoints)
        return find_lists(root, annotations, split, self.http, endpoints, **options)  # type: ignore[arg-type]

    @property
    def asked(self) -> list[str]:
        return [request.path.rpartition("/")[2] for request in self.mirror.requests]


@pytest.fixture
def upstream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Upstream]:
    given = {"train": TRAIN, "calibration": CALIBRATION, "test": TEST}
    folder = tmp_path / "origin" / "github" / REPOSITORY / "annotations"
    folder.mkdir(parents=True)
    for name, text in given.items():
        (folder / LISTS[name].name).write_text(text)
        pinned = PinnedList(LISTS[name].name, LISTS[name].addresses, git_sha1(text.encode()))
        monkeypatch.setitem(lists.LISTS, name, pinned)
    with Mirror(tmp_path / "origin") as mirror, Http(limits=Limits(backoff_s=0.01)) as http:
        yield Upstream(mirror, http)


def paths(found: Lists) -> list[str]:
    return [record.file for record in found.manifest.records]


TRAIN_PATHS, TEST_PATHS = (
    ["train2017/000000000009.jpg", "train2017/000000000025.jpg"],
    ["val2017/000000000139.jpg", "wikiart/Realism/a_b.jpg"],
)


def test_git_names() -> None:
    assert git_sha1(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_pins_are_those_of_the_real_lists(shared: Path) -> None:
    for pinned in (LISTS["test"], FFHQ_LIST):
        assert git_sha1((shared / "annotations" / pinned.name).read_bytes()) == pinned.git_sha1


def test_upstreams_lists_are_downloaded_once(upstream: Upstream, tmp_path: Path) -> None:
    root = tmp_path / "root"
    found = upstream.find(root)
    assert paths(found) == TRAIN_PATHS + TEST_PATHS
    assert [record.calibration for record in found.manifest.records] == [False, True, False, False]
    assert found.remarks == ()
    assert sorted(path.name for path in (root / "annotations").iterdir()) == sorted(p.name for p in LISTS.values())
    assert len(upstream.asked) == 3
    assert paths(upstream.find(root)) == TRAIN_PATHS + TEST_PATHS
    assert len(upstream.asked) == 3


def test_only_the_lists_of_a_split_are_downloaded(upstream: Upstream, tmp_path: Path) -> None:
    assert paths(upstream.find(tmp_path / "a", split="test")) == TEST_PATHS
    assert upstream.asked == ["test_annotations.txt"]
    # Later the others too, beside the one that is here.
    assert paths(upstream.find(tmp_path / "a")) == TRAIN_PATHS + TEST_PATHS
    assert upstream.asked == ["test_annotations.txt", "train_annotations.txt", "calibration.txt"]
    assert paths(upstream.find(tmp_path / "b", split="train")) == TRAIN_PATHS
    with pytest.raises(UsageError, match="validation"):
        upstream.find(tmp_path / "c", split="validation")


def test_lists_in_root_itself_are_completed(upstream: Upstream, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "test_annotations.txt").write_text(TEST)
    assert paths(upstream.find(root)) == TRAIN_PATHS + TEST_PATHS
    assert paths(upstream.find(root)) == TRAIN_PATHS + TEST_PATHS
    assert "test_annotations.txt" not in upstream.asked
    assert len(upstream.asked) == 2


def test_a_dry_run_completes_them_elsewhere(upstream: Upstream, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "annotations").mkdir(parents=True)
    (root / "annotations" / "test_annotations.txt").write_text(TEST)
    before = sorted(root.rglob("*"))
    plan, _ = plan_fetch(root, endpoints=upstream.mirror.endpoints)
    assert plan.listed == 4
    assert sorted(root.rglob("*")) == before


def test_a_list_on_the_host_that_is_not_upstreams_is_refused(upstream: Upstream, tmp_path: Path) -> None:
    (upstream.folder / "annotations" / "test_annotations.txt").write_text(TEST.replace("139", "140"))
    with pytest.raises(FetchError) as caught:
        upstream.find(tmp_path / "root", split="test")
    assert caught.value.reason == "corrupt"
    for word in (LISTS["test"].git_sha1, "test_annotations.txt", "--annotations", "annotations: http://127.0.0.1"):
        assert word in str(caught.value)
    assert not list(tmp_path.glob("root/**/*.txt"))
    (upstream.folder / "annotations" / "test_annotations.txt").unlink()
    with pytest.raises(FetchError) as caught:
        upstream.find(tmp_path / "root", split="test")
    assert caught.value.reason == "missing"


def test_the_real_list_comes_through_github(shared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "github" / REPOSITORY
    for place, name in (("annotations", "test_annotations.txt"), ("download_scripts", "ffhq_filenames.txt")):
        (folder / place).mkdir(parents=True)
        shutil.copy(shared / "annotations" / name, folder / place)
    root = tmp_path / "root"
    with Mirror(tmp_path) as mirror, Http() as http:
        where = Endpoints.resolve(mirror.endpoints)
        found = find_lists(root, None, "test", http, where, store=root / "annotations")
        faces, remarks = find_faces(root, found.place, http, where, store=root / "annotations")
        assert len(mirror.requests) == 2
        again, _ = find_faces(root, found.place, http, where, store=root / "annotations")
        assert len(mirror.requests) == 2
    assert len(found.manifest.records) == 40_000
    assert (found.remarks, remarks) == ((), ())
    assert faces == again
    assert len(faces) == 22_500
    assert len({record.file for record in found.manifest.records} & set(faces)) == 4500
    assert faces["ffhq/4de7697c-81cc-4eef-a89f-0cb9f211fa6f.png"].pixel_md5 == "47238b44dfb87644460cbdcc4607e289"


def test_annotations_that_people_name(upstream: Upstream, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "test_annotations.txt").write_text(TEST)
    (folder / "train_annotations.txt").write_text("this is no list\n")
    root = tmp_path / "root"
    # Of a folder, what is not asked for is not read.
    found = upstream.find(root, folder, "test")
    assert paths(found) == TEST_PATHS
    assert found.remarks == ()
    with pytest.raises(AnnotationError, match=r"train_annotations\.txt, line 1"):
        upstream.find(root, folder)
    with pytest.raises(AnnotationError):
        upstream.find(root, folder, "train")
    assert paths(upstream.find(root, folder / "test_annotations.txt")) == TEST_PATHS
    with pytest.raises(DataNotFoundError, match="no row of split train"):
        upstream.find(root, folder / "test_annotations.txt", "train")
    with pytest.raises(DataNotFoundError):
        upstream.find(root, tmp_path / "absent")
    (folder / "calibration.txt").write_text("\0broken")
    assert paths(upstream.find(root, folder, "test")) == TEST_PATHS
    assert upstream.asked == []
    assert not root.exists()


def test_a_list_that_differs_is_used_with_a_remark(upstream: Upstream, tmp_path: Path) -> None:
    file = tmp_path / "test_annotations.txt"
    file.write_text(TEST.splitlines()[0] + "\n")
    found = upstream.find(tmp_path / "root", file)
    assert paths(found) == TEST_PATHS[:1]
    assert found.remarks == (f"{file} differs from upstream's list; it is used as it is",)
    table = tmp_path / "annotations.csv"
    table.write_text("path,label\npictures/1.png,real\n")
    assert upstream.find(tmp_path / "root", table).remarks == ()


def test_roots_own_lists_come_before_upstreams(upstream: Upstream, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "annotations").mkdir(parents=True)
    (root / "annotations" / "test_annotations.txt").write_text(TEST.splitlines()[0] + "\n")
    (root / "annotations" / "train_annotations.txt").write_text("broken\n")
    found = upstream.find(root, split="test")
    assert paths(found) == TEST_PATHS[:1]
    assert len(found.remarks) == 1
    (root / "annotations.csv").write_text("path,label,split\npictures/1.png,real,validation\n")
    assert paths(upstream.find(root)) == ["pictures/1.png"]
    assert paths(upstream.find(root, split="validation")) == ["pictures/1.png"]
    assert upstream.asked == []


def test_offline(upstream: Upstream, tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError, match="HF_HUB_OFFLINE"):
        upstream.find(tmp_path / "root", offline=True)
    with pytest.raises(DataNotFoundError, match="HF_HUB_OFFLINE"):
        endpoints = Endpoints.resolve(upstream.mirror.endpoints)
        find_faces(tmp_path, tmp_path, upstream.http, endpoints, store=tmp_path / "a", offline=True)
    assert upstream.asked == []


@pytest.mark.parametrize("place", ["lists", "lists/download_scripts", "download_scripts", "root/annotations"])
def test_the_ffhq_list_is_found_near_the_annotations(upstream: Upstream, tmp_path: Path, place: str) -> None:
    folder = tmp_path / "lists"
    folder.mkdir()
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    (tmp_path / place / "ffhq_filenames.txt").write_text(FACE + "\n")
    for near in (folder, folder / "test_annotations.txt"):
        near.touch() if near.suffix else None
        faces, remarks = find_faces(
            tmp_path / "root",
            near,
            upstream.http,
            Endpoints.resolve(upstream.mirror.endpoints),
            store=tmp_path / "root" / "annotations",
        )
        assert list(faces) == ["ffhq/4de7697c-81cc-4eef-a89f-0cb9f211fa6f.png"]
        assert "differs from upstream's" in remarks[0]
    assert upstream.asked == []


def test_a_wrong_ffhq_list_on_the_host_is_refused(upstream: Upstream, tmp_path: Path) -> None:
    (upstream.folder / "download_scripts").mkdir()
    (upstream.folder / "download_scripts" / "ffhq_filenames.txt").write_text(FACE + "\n")
    endpoints = Endpoints.resolve(upstream.mirror.endpoints)
    with pytest.raises(FetchError, match=FFHQ_LIST.git_sha1):
        find_faces(tmp_path / "root", tmp_path, upstream.http, endpoints, store=tmp_path / "root")
    assert not list(tmp_path.glob("root/**/*"))


@pytest.mark.parametrize(
    "line",
    [
        b"no commas",
        b"id,name.png",
        b"1xJYS4u3p0wMmDtvUE13fOkxFaUGBoH42,name.jpg,47238b44dfb87644460cbdcc4607e289",
        b"1xJYS4u3p0wMmDtvUE13fOkxFaUGBoH42,../../x.png,47238b44dfb87644460cbdcc4607e289",
        b"1xJYS4u3p0wMmDtvUE13fOkxFaUGBoH42,a\\b.png,47238b44dfb87644460cbdcc4607e289",
        b"../../1xJYS4u3p0wMm,x.png,47238b44dfb87644460cbdcc4607e289",
        b"id&export=other&id=x,x.png,47238b44dfb87644460cbdcc4607e289",
        b"1xJYS4u3p0wMmDtvUE13fOkxFaUGBoH42,x.png,short",
        b"1xJYS4u3p0wMmDtvUE13fOkxFaUGBoH42,x.png,47238b44dfb87644460cbdcc4607e28G",
        b"1xJYS4u3p0wMmDtvUE13fOkxFaUGBoH42,x.png,47238b44dfb87644460cbdcc4607e289,more",
        b"\xff\xfe\x00",
        b"x" * 100_000,
        FACE.replace("47238b", "57238b").encode(),  # the same face with other pixels
        FACE.replace("1xJYS", "2xJYS").encode(),
    ],
)
def test_hostile_ffhq_lists(line: bytes) -> None:
    with pytest.raises(AnnotationError, match="faces, line 3") as caught:
        parse_faces(FACE.encode() + b"\n\n" + line + b"\n", "faces")
    assert len(str(caught.value)) < 400
    assert len(parse_faces(FACE.encode() + b"\r\n\r\n" + FACE.encode(), "faces")) == 1
