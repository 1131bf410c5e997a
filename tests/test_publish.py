"""What a push would send, and what it refuses, before any network."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import socket
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from imaginet_hub.cards import dataset_card, perturbed_card, write_card
from imaginet_hub.cli import main
from imaginet_hub.data.perturbed import perturb
from imaginet_hub.data.repository import build_repository
from imaginet_hub.errors import DataNotFoundError, PublishError, UsageError
from imaginet_hub.publish import plan_push, push
from tests.conftest import image_bytes, table_rows, write_root


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of which half of the real rows may not be passed on, as far as is known."""
    base = tmp_path_factory.mktemp("built")
    rows = table_rows(real=12, synthetic=8)
    for number, row in enumerate(rows):
        if number < 6:
            row["license"], row["source"] = "all rights reserved", "an archive"
    write_root(base / "root", rows)
    build_repository(base / "root", base / "dataset", render_card=dataset_card)
    return base / "dataset"


@pytest.fixture
def dataset(built: Path, tmp_path: Path) -> Path:
    shutil.copytree(built, tmp_path / "dataset")
    return tmp_path / "dataset"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    pytest.importorskip("torch")
    from imaginet_hub import SelfConImageProcessor, SelfConResNetConfig, SelfConResNetForImageClassification

    config = SelfConResNetConfig(
        backbone="test_resnet", num_labels=2, id2label={0: "real", 1: "synthetic"}, track="detection"
    )
    SelfConResNetForImageClassification(config).save_pretrained(tmp_path / "model")
    SelfConImageProcessor().save_pretrained(tmp_path / "model")
    write_card(tmp_path / "model", license="apache-2.0")
    return tmp_path / "model"


def test_every_file_with_size_and_licence(model: Path) -> None:
    plan = plan_push(model, "me/model")
    there = {path.relative_to(model).as_posix(): path.stat().st_size for path in model.rglob("*") if path.is_file()}
    planned = {file.name: file.size for file in plan.files}
    assert planned.keys() == there.keys() and {"model.safetensors", "config.json", "README.md"} <= planned.keys()
    assert all(planned[name] == size for name, size in there.items() if name != "README.md")
    assert plan.fine and plan.repo_type == "model" and plan.kept is None
    assert {file.license for file in plan.files if not file.name.endswith(".py")} == {"apache-2.0"}
    card = plan.rendered["README.md"]
    assert "me/model" in card and "PATH_OR_REPO" not in card
    text = plan.text()
    assert all(name in text for name in planned)


def test_rows_that_may_not_be_passed_on(dataset: Path) -> None:
    plan = plan_push(dataset, "me/dataset")
    assert not plan.fine and not plan.refused and plan.kept == 14
    assert [(w.source, w.license, w.images) for w in plan.withheld] == [("an archive", "all rights reserved", 6)]
    assert plan.rendered["NOTICE"] == (dataset / "NOTICE").read_text()
    for stated, said in (("an archive", "an archive"), ("all rights reserved", "all rights"), ("all", "everything")):
        plan = plan_push(dataset, "me/dataset", redistribute=[stated])
        assert plan.fine and f"states the right to redistribute: {said}" in plan.rendered["NOTICE"]
    with pytest.raises(UsageError, match="an archive"):
        plan_push(dataset, "me/dataset", redistribute=["an archve"])


def shards(folder: Path) -> Iterator[Path]:
    return iter(sorted(folder.glob("data/*.parquet")))


def zip_of(name: str, content: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(name, content)
    return stream.getvalue()


def add(folder: Path, name: str, content: bytes = b"x") -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)


REFUSED: dict[str, Callable[[Path], object]] = {
    "imaginet.py": lambda folder: add(folder, "imaginet.py"),
    "data.py": lambda folder: add(folder, "data.py"),
    "training_args.bin": lambda folder: add(folder, "training_args.bin"),
    "checkpoint-5/optimizer.pt": lambda folder: add(folder, "checkpoint-5/optimizer.pt"),
    "innocent.txt": lambda folder: add(folder, "innocent.txt", pickle.dumps({"a": [1, 2, 3]})),
    ".env": lambda folder: add(folder, ".env"),
    "extra/more.parquet": lambda folder: add(folder, "extra/more.parquet", next(shards(folder)).read_bytes()),
    "data/old/a.parquet": lambda folder: add(folder, "data/old/a.parquet", next(shards(folder)).read_bytes()),
    "sample.png": lambda folder: add(folder, "sample.png", image_bytes(1)),
    "images.zip": lambda folder: add(folder, "images.zip", zip_of("a.png", image_bytes(1))),
    ".gitignore": lambda folder: add(folder, ".gitignore", b"*.parquet\n"),
    "notes.md": lambda folder: add(folder, "notes.md", b"export HF_TOKEN=hf_" + b"aB3d" * 9),
    "outside.json": lambda folder: (folder / "outside.json").symlink_to("/etc/hostname"),
    "elsewhere": lambda folder: (folder / "elsewhere").symlink_to("/etc"),
    "circle": lambda folder: (folder / "circle").symlink_to("circle"),
    "pipe": lambda folder: os.mkfifo(folder / "pipe"),
    "gone": lambda folder: (folder / "gone").symlink_to("nowhere"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_files_that_must_not_go(dataset: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    REFUSED[name](dataset)
    plan = plan_push(dataset, "me/data", redistribute=["all"])
    assert [file.name for file in plan.refused] == [name]
    command = ["push", str(dataset), "me/data", "--redistribute", "all"]
    assert main([*command, "--dry-run"]) == 1
    assert "REFUSED" in capsys.readouterr().out
    assert main(command) == 1  # and no connection was opened
    assert name in capsys.readouterr().err
    assert main([*command, "--dry-run", "--exclude", name]) == 0


def test_a_folder_can_be_excluded_and_the_data_cannot(dataset: Path) -> None:
    add(dataset, "private/notes.txt")
    names = {file.name for file in plan_push(dataset, "me/data", redistribute=["all"], exclude=["private/"]).files}
    assert "private/notes.txt" not in names and "README.md" in names
    for pattern in ("data/*", "README.md", "NOTICE", "build_report.json", "*"):
        with pytest.raises(UsageError, match="belongs to what is published"):
            plan_push(dataset, "me/data", exclude=[pattern])


def test_the_list_of_a_push_without_some_rows(dataset: Path) -> None:
    add(dataset, "LICENSE", b"CC0")
    plan = plan_push(dataset, "me/data")
    names = [file.name for file in plan.files]
    written = {"data/test-*.parquet", "data/train-*.parquet", "withheld.csv"}
    assert names == sorted({"LICENSE", "NOTICE", "README.md", "build_report.json"} | written)
    whole = sum(file.stat().st_size for file in shards(dataset))
    about = sum(file.size or 0 for file in plan.files if file.name.startswith("data/"))
    assert abs(about - whole * 14 / 20) < 3


def test_what_the_publisher_frees_is_shown(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(dataset), "me/data", "--dry-run", "--redistribute", "an archive"]) == 0
    said = capsys.readouterr().out
    assert "Passed on because you say" in said and "6  an archive: all rights reserved" in said


def test_rows_that_are_not_those_that_are_counted(dataset: Path) -> None:
    next(shards(dataset)).unlink()
    with pytest.raises(PublishError, match="build it again"):
        plan_push(dataset, "me/data")


def test_a_rendered_test_set(dataset: Path, tmp_path: Path) -> None:
    """It goes whole, with a NOTICE that its own command does not write."""
    perturb(dataset, tmp_path / "rendered", render_card=perturbed_card, progress=False)
    plan = plan_push(tmp_path / "rendered", "me/rendered", redistribute=["all"])
    assert plan.fine and plan.kept == 5 and "NOTICE" in [file.name for file in plan.files]
    assert "everything in it" in plan.rendered["NOTICE"]
    plan = plan_push(tmp_path / "rendered", "me/rendered")
    assert plan.withheld
    with pytest.raises(PublishError, match="whole or not at all"):
        push(plan)


def test_numbers_typed_into_the_report(dataset: Path) -> None:
    report = json.loads((dataset / "build_report.json").read_text())
    (dataset / "build_report.json").write_text(json.dumps(report | {"images": 999_999}))
    write_card(dataset)
    with pytest.raises(PublishError, match="999999"):
        plan_push(dataset, "me/data")


def test_what_tools_leave_stays_here(dataset: Path) -> None:
    for name in (".git/config", ".cache/huggingface/x", "__pycache__/a.pyc", ".DS_Store"):
        add(dataset, name, b"hf_" + b"aB3d" * 9)
    assert plan_push(dataset, "me/data", redistribute=["all"]).fine


def test_a_link_inside_the_folder_may_go(dataset: Path) -> None:
    add(dataset, "docs/a.txt")
    (dataset / "b.txt").symlink_to("docs/a.txt")
    assert plan_push(dataset, "me/data", redistribute=["all"]).fine


def test_a_card_that_was_written_by_hand(dataset: Path) -> None:
    card = dataset / "README.md"
    card.write_text(card.read_text().replace("20 images", "2,000,000 images"))
    with pytest.raises(PublishError, match="imaginet card"):
        plan_push(dataset, "me/data")
    write_card(dataset, "me/other")
    assert "2,000,000" not in card.read_text()
    assert "me/data" in plan_push(dataset, "me/data").rendered["README.md"]
    card.unlink()
    with pytest.raises(PublishError, match="imaginet card"):
        plan_push(dataset, "me/data")


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        (("nowhere", "me/data"), DataNotFoundError, "found nothing"),
        (("dataset", "data"), UsageError, "OWNER/NAME"),
        (("dataset", "me/da ta"), UsageError, "OWNER/NAME"),
        (("dataset", "me/data/x"), UsageError, "OWNER/NAME"),
        (("empty", "me/data"), PublishError, "neither a dataset"),
    ],
    ids=["nowhere", "no owner", "space", "three", "empty"],
)
def test_what_cannot_be_pushed(
    dataset: Path, arguments: tuple[str, str], error: type[Exception], said: str, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(error, match=said):
        plan_push(tmp_path / arguments[0], arguments[1])


def test_the_wrong_type(dataset: Path) -> None:
    with pytest.raises(UsageError, match="is a dataset"):
        plan_push(dataset, "me/data", repo_type="model")


def test_the_dry_run_as_json(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(dataset), "me/data", "--dry-run", "--json"]) == 1
    plan = json.loads(capsys.readouterr().out)
    assert plan["rows"] == {"published": 14, "withheld": 6}
    assert {"path", "bytes", "license", "refused"} == set(plan["files"][0])


def test_names_that_steer_the_terminal(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add(dataset, "a\x1b[31m.txt")
    assert main(["push", str(dataset), "me/data", "--dry-run"]) == 1
    assert "\x1b" not in capsys.readouterr().out
