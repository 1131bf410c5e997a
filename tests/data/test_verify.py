"""Looking at a ROOT again."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from imaginet_hub.cli import main
from imaginet_hub.data.images import examine
from imaginet_hub.data.ledger import FOLDER, Entry, Ledger
from imaginet_hub.data.manifest import read_annotations
from imaginet_hub.data.verify import verify
from imaginet_hub.errors import AnnotationError, DataNotFoundError, UsageError
from tests.conftest import image_bytes

PATHS = [f"{folder}/{n}.jpg" for folder in ("train2017", "val2017") for n in range(4)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four training and four test images with annotations and a ledger; 0 is the same picture in both."""
    root = tmp_path / "root"
    (root / "annotations").mkdir(parents=True)
    for split, folder in (("train", "train2017"), ("test", "val2017")):
        rows = [f"./{path},0,0,4,8\n" for path in PATHS if path.startswith(folder)]
        (root / "annotations" / f"{split}_annotations.txt").write_text("".join(rows))
    ledger = Ledger(root)
    for record in read_annotations(root / "annotations").records:
        file = root / record.file
        file.parent.mkdir(exist_ok=True)
        number = int(file.stem)
        seed = 0 if number == 0 else PATHS.index(record.file) + 1
        file.write_bytes(image_bytes(seed, format_="JPEG"))
        facts = examine(file.read_bytes(), record.path)
        ledger.append(Entry.of(record, facts, "s3", file.stat().st_mtime_ns))
    ledger.close()
    return root


def test_all_is_well(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = verify(root)
    assert (found.intact, found.unlisted, dict(found.problems), found.absent) == (8, (), {}, 0)
    assert found.fine
    assert found.twins == ((("train2017/0.jpg", "train"), ("val2017/0.jpg", "test")),)
    assert main(["verify", str(root)]) == 0
    out = capsys.readouterr().out
    assert "8 files are as the ledger says, 0 are not" in out
    assert "1 images are in more than one split, byte for byte" in out
    assert "train:train2017/0.jpg = test:val2017/0.jpg" in out
    assert main(["verify", str(root), "--quiet"]) == 0
    assert capsys.readouterr().out == ""


def test_twins_of_one_split_are_not_reported(root: Path) -> None:
    (root / "val2017/1.jpg").write_bytes((root / "val2017/2.jpg").read_bytes())
    assert len(verify(root).twins) == 1


def test_everything_that_can_be_wrong(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = root / "val2017/1.jpg"
    status, data = file.stat(), bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))  # size and time tell nothing
    with (root / "val2017/2.jpg").open("r+b") as stream:
        stream.truncate(500)
    (root / "val2017/3.jpg").unlink()
    (root / "train2017/1.jpg").unlink()
    (root / "train2017/1.jpg").mkdir()
    found = verify(root)
    assert {path: reason for path, (reason, _) in found.problems.items()} == {
        "val2017/1.jpg": "changed",
        "val2017/2.jpg": "changed",
        "val2017/3.jpg": "missing",
        "train2017/1.jpg": "damaged",
    }
    assert "SHA-256" in found.problems["val2017/1.jpg"][1]
    assert "found 500" in found.problems["val2017/2.jpg"][1]
    assert main(["verify", str(root)]) == 1
    out = capsys.readouterr().out
    assert "4 files are as the ledger says, 4 are not" in out
    assert "run the `imaginet fetch` that filled ROOT" in out
    assert main(["verify", str(root), "--json", "--quiet"]) == 1
    value = json.loads(capsys.readouterr().out)
    assert value["fine"] is False
    assert [(item["path"], item["reason"]) for item in value["problems"]] == [
        (path, found.problems[path][0]) for path in sorted(found.problems)
    ]
    assert value["identical_across_splits"] == [
        [{"path": "train2017/0.jpg", "split": "train"}, {"path": "val2017/0.jpg", "split": "test"}]
    ]


def test_files_that_the_ledger_does_not_know(root: Path) -> None:
    (root / FOLDER / "ledger.jsonl").unlink()
    (root / "val2017/2.jpg").write_bytes(b"<html>")
    (root / "val2017/3.jpg").unlink()
    found = verify(root)
    assert found.intact == 0
    assert set(found.unlisted) == set(PATHS) - {"val2017/2.jpg", "val2017/3.jpg"}
    assert found.absent == 1
    assert {path: reason for path, (reason, _) in found.problems.items()} == {"val2017/2.jpg": "damaged"}
    assert len(found.twins) == 1
    assert "are not in the ledger; 1 listed images are not here" in found.text()


def test_a_ledger_without_annotations(root: Path) -> None:
    for file in (root / "annotations").iterdir():
        file.unlink()
    assert verify(root).intact == 8
    assert len(verify(root).twins) == 1  # the ledger knows the splits
    only = root.parent / "test_annotations.txt"
    only.write_text("./val2017/9.jpg,0,0,4,8\n")
    assert verify(root, annotations=only).absent == 1


def test_what_cannot_be_verified(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataNotFoundError, match="ROOT"):
        verify(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataNotFoundError, match="neither a ledger"):
        verify(tmp_path / "empty")
    for workers in (0, -1):
        with pytest.raises(UsageError, match=f"max_workers: expected a positive number, got {workers}"):
            verify(root, max_workers=workers)
    (root / "annotations" / "train_annotations.txt").write_text("broken\n")
    with pytest.raises(AnnotationError):
        verify(root)
    assert main(["verify", str(root)]) == 1
    assert main(["verify", str(tmp_path / "absent")]) == 1
    with pytest.raises(SystemExit) as caught:
        main(["verify", str(root), "--max-workers", "0"])
    assert caught.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_hostile_ledger_leads_nowhere(root: Path) -> None:
    file = root / FOLDER / "ledger.jsonl"
    line = json.loads(file.read_text().splitlines()[0])
    for path in ("../../etc/passwd", "/etc/passwd", "/dev/zero"):
        file.write_text(file.read_text() + json.dumps(line | {"path": path}) + "\n")
    found = verify(root)
    assert found.fine
    assert found.intact == 8
