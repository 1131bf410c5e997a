"""What a fetch keeps, trusts, replaces and leaves alone."""

from __future__ import annotations

import csv
import io
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from PIL import Image

from imaginet_hub.cli import main
from imaginet_hub.data.fetch import fetch
from imaginet_hub.data.keeper import Keeper
from imaginet_hub.data.ledger import FOLDER, Ledger, read_ledger
from imaginet_hub.data.manifest import Record
from imaginet_hub.data.memory import Memory
from imaginet_hub.data.verify import verify
from imaginet_hub.demo.mirror import Fault, Mirror, always
from tests.conftest import image_bytes
from tests.support.published import FAST, Published

FIRST, SECOND = "val2017/000000000001.jpg", "val2017/000000000002.jpg"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    return Published.make(tmp_path_factory.mktemp("published"))


@pytest.fixture
def root(published: Published, tmp_path: Path) -> Path:
    """A ROOT with COCO's images."""
    with Mirror(published.origin) as mirror:
        assert published.fetch(mirror, tmp_path / "root", ["coco"]).complete
    return tmp_path / "root"


def test_the_ledgers_word_stands(published: Published, root: Path) -> None:
    """Another image under a verified name is damage, whoever put it there; verify and fetch agree."""
    (root / FIRST).write_bytes(image_bytes(77, format_="JPEG"))
    assert verify(root, annotations=published.lists).problems[FIRST][0] == "changed"
    with Mirror(published.origin) as mirror:
        summary = published.fetch(mirror, root, ["coco"])
    assert summary.complete and summary.found == 0 and dict(summary.fetched) == {"coco": 1}
    assert "SHA-256" in str(summary.damaged[FIRST]) and "as on 20" in str(summary.damaged[FIRST])
    assert (root / FOLDER / "replaced" / FIRST).read_bytes() == image_bytes(77, format_="JPEG")
    assert any("1 files were there, but damaged" in remark and "replaced" in remark for remark in summary.remarks)
    assert (root / FIRST).read_bytes() == (published.root / FIRST).read_bytes()
    assert verify(root, annotations=published.lists).fine


def test_a_touched_or_copied_file_keeps_its_history(published: Published, root: Path, tmp_path: Path) -> None:
    before = read_ledger(root)
    shutil.copytree(root, tmp_path / "copy", copy_function=shutil.copyfile)
    summary = fetch(tmp_path / "copy", annotations=published.lists, only=["coco"])
    assert summary.complete and summary.found == 6
    after = read_ledger(tmp_path / "copy")
    assert {path: (e.route, e.when, e.sha256) for path, e in after.items()} == {
        path: (e.route, e.when, e.sha256) for path, e in before.items()
    }


def test_a_list_that_promises_other_bytes_is_believed(published: Published, root: Path, tmp_path: Path) -> None:
    with (tmp_path / "t.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "label", "sha256"])
        writer.writerow([FIRST, "real", "0" * 64])
        writer.writerow([SECOND, "real", read_ledger(root)[SECOND].sha256])
    with Mirror(published.origin) as mirror:
        summary = fetch(root, annotations=tmp_path / "t.csv", endpoints=mirror.endpoints, limits=FAST)
    assert list(summary.missing) == [FIRST] and "0" * 64 in str(summary.missing[FIRST])
    assert (root / FIRST).read_bytes() == (published.root / FIRST).read_bytes()  # the file stays


def test_a_linked_folder_is_filled_and_nothing_in_it_is_moved(published: Published, tmp_path: Path) -> None:
    mine = tmp_path / "elsewhere"
    mine.mkdir()
    (mine / Path(FIRST).name).write_bytes(b"my own notes")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "val2017").symlink_to(mine)
    with Mirror(published.origin) as mirror:
        summary = published.fetch(mirror, tmp_path / "root", ["coco", "wikiart"])
    assert list(summary.missing) == [FIRST] and "remove it yourself" in str(summary.missing[FIRST])
    assert (mine / Path(FIRST).name).read_bytes() == b"my own notes"
    assert dict(summary.fetched) == {"coco": 5, "wikiart": 6}
    assert not list(mine.glob(".*"))


def test_a_name_that_no_disk_takes_stops_nobody(published: Published, tmp_path: Path) -> None:
    lists = tmp_path / "lists"
    shutil.copytree(published.lists, lists)
    long = f"photozilla/dataset/{'x' * 300}/1.jpg"
    with (lists / "test_annotations.txt").open("a") as stream:
        stream.write(f"./{long},0,3,4,8\n")
    (tmp_path / "root" / "photozilla").mkdir(parents=True)
    with Mirror(published.origin) as mirror:
        given = {"endpoints": mirror.endpoints, "limits": FAST}
        summary = fetch(tmp_path / "root", annotations=lists, only=["photozilla", "coco"], **given)
    assert list(summary.missing) == [long] and dict(summary.fetched) == {"coco": 6, "photozilla": 6}


def test_every_place_that_failed_is_named(published: Published, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    hook = always("000000000001", Fault(status=503))
    with Mirror(published.origin, fault=hook) as mirror:
        shutil.copytree(published.origin / "coco", tmp_path / "origin" / "coco")
        shutil.rmtree(tmp_path / "origin" / "coco" / "zips")
        with Mirror(tmp_path / "origin", fault=hook) as without_zips:
            endpoints = {**mirror.endpoints, "coco": without_zips.endpoints["coco"]}
            summary = published.fetch(
                mirror, tmp_path / "root", ["coco"], endpoints=endpoints, own={"coco": tmp_path / "mine"}
            )
    error = summary.missing[FIRST]
    assert error.reason == "status"  # not "access", as S3 answers for what is not there, nor "missing", of the folder
    for word in ("HTTP 503", "zips/val2017.zip", "HTTP 403", str(tmp_path / "mine")):
        assert word in str(error)


def test_a_mode_without_rgb_is_no_face(tmp_path: Path) -> None:
    from imaginet_hub.data.lists import Face
    from imaginet_hub.errors import FetchError

    stream = io.BytesIO()
    Image.new("LAB", (8, 8)).save(stream, "TIFF")
    record = Record("ffhq/x.png", "real", "faces", "real", "real", "test", "ffhq", "none")
    keeper = Keeper(tmp_path, Ledger(tmp_path), {"ffhq/x.png": Face("1" * 33, "0" * 32)})
    with pytest.raises(FetchError, match=r"expected pixels with MD5 0{32}, got"):
        keeper.place(record, stream.getvalue(), "drive")
    assert not (tmp_path / "ffhq").exists()


def test_an_image_that_takes_its_time_can_be_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from imaginet_hub.data import images

    class Stop(BaseException):
        pass

    calls = []

    def check() -> None:
        calls.append(1)
        if len(calls) > 2:
            raise Stop

    monkeypatch.setattr(images.child, "_PROGRAM", "import time; time.sleep(60)")
    record = Record("danbooru2021/1.jpg", "real", "faces", "real", "real", "test", "danbooru", "none")
    keeper = Keeper(tmp_path, Ledger(tmp_path), {}, check)
    with pytest.raises(Stop):
        keeper.place(record, image_bytes(1, format_="AVIF"), "files")
    assert not list(tmp_path.rglob("*.jpg"))


def test_memory_is_shared_and_one_may_always_have_more() -> None:
    memory, held, most = Memory(10), [], 0
    lock = threading.Lock()

    def hold(count: int) -> None:
        nonlocal most
        with memory.held(count):
            with lock:
                held.append(count)
                if len(held) > 1:
                    most = max(most, sum(held))
            threading.Event().wait(0.005)
            with lock:
                held.remove(count)

    threads = [threading.Thread(target=hold, args=(count,)) for count in (3, 4, 5, 6, 50, 2, 1, 9, 7) * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert not held and 0 < most <= 10


def test_dry_runs_see_a_file_in_roots_place(
    published: Published, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "root").write_text("a file")
    assert main(["fetch", str(tmp_path / "root"), "--annotations", str(published.lists), "--dry-run"]) == 1
    assert "expected a folder, got a file" in capsys.readouterr().err
    assert main(["fetch", "", "--annotations", str(published.lists), "--dry-run"]) == 2


def test_a_timeout_that_is_no_whole_number_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(os.environ, "HF_HUB_DOWNLOAD_TIMEOUT", "2.5")
    assert main(["sources"]) == 2
    assert "HF_HUB_DOWNLOAD_TIMEOUT: expected a whole number of seconds, got '2.5'" in capsys.readouterr().err


def test_bars_obey_the_switches_of_datasets_without_importing_it(published: Published, tmp_path: Path) -> None:
    code = (
        "import sys; from imaginet_hub.cli import main; status = main(sys.argv[1:])\n"
        "assert 'datasets' not in sys.modules; sys.exit(status)"
    )
    with Mirror(published.origin) as mirror:
        for number, (extra, shown) in enumerate((({}, True), ({"HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}, False))):
            environment = {k: v for k, v in os.environ.items() if k != "HF_DATASETS_DISABLE_PROGRESS_BARS"}
            words = ["fetch", str(tmp_path / str(number)), "--only", "coco", "--annotations", str(published.lists)]
            done = subprocess.run(
                [sys.executable, "-c", code, *words],
                env={**environment, **mirror.environ(), **extra},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            assert ("files]" in done.stderr) == shown, done.stderr
