"""The command line as people meet it: help, typos, exit status."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from imaginet_hub.cli import main
from tests.conftest import image_bytes, table_rows

MakeRoot = Callable[..., Path]
COMMANDS = (
    *(
        "sources",
        "fetch",
        "verify",
        "build",
        "train",
        "train-head",
        "convert",
        "evaluate",
        "perturb",
        "audit",
        "predict",
    ),
    *("card", "push", "licenses", "demo"),
)
#: Flags that mean the same wherever they are.
SHARED = {
    "--json": COMMANDS,
    "--quiet": COMMANDS,
    "--debug": COMMANDS,
    "--num-workers": ("fetch", "verify", "build", "train", "train-head", "evaluate", "perturb", "audit", "predict"),
    "--batch-size": ("train", "train-head", "evaluate", "audit", "predict"),
    "--device": ("train", "train-head", "evaluate", "audit", "predict"),
    "--dtype": ("train", "train-head", "evaluate", "audit", "predict"),
    "--seed": ("build", "evaluate", "perturb", "audit"),  # train and train-head: TrainingArguments'
    "--licenses": ("fetch", "build", "train", "train-head"),
}


def status_of(argv: list[str]) -> int:
    try:
        return main(argv)
    except SystemExit as stop:
        return int(stop.code or 0)


def test_help_names_every_command_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(command in text for command in COMMANDS)
    for command in COMMANDS:
        assert status_of([command, "--help"]) == 0
        assert f"example: imaginet {command}" in capsys.readouterr().out


def test_flags_are_called_the_same_everywhere() -> None:
    from imaginet_hub import cli

    commands = cli._parser()._subparsers._group_actions[0].choices  # type: ignore[union-attr]
    assert tuple(commands) and set(commands) == set(COMMANDS)
    for flag, having in SHARED.items():
        assert {name for name, sub in commands.items() if flag in sub._option_string_actions} == set(having), flag
    for sub in commands.values():
        assert all("_" not in flag for flag in sub._option_string_actions)


def test_help_documents_the_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {status} " in text for status in (0, 1, 2, 130))


def test_training_takes_the_flags_of_the_other_commands() -> None:
    pytest.importorskip("torch")
    from imaginet_hub import cli
    from imaginet_hub.training.arguments import parse_train_args

    given = ["train", "a", "b", "--batch-size", "6", "--num-workers", "1", "--device", "cpu", "--dtype", "bfloat16"]
    args, more = cli._parser().parse_known_args([*given, "--quiet", "--preset", "quick"])
    _, training = parse_train_args([*cli._training_flags(args), *more], "b")
    assert training.per_device_train_batch_size == 6 and training.dataloader_num_workers == 1
    assert training.use_cpu and training.bf16 and not training.fp16 and training.disable_tqdm
    args, more = cli._parser().parse_known_args([*given, "--per_device_train_batch_size", "8", "--bf16", "false"])
    _, training = parse_train_args([*cli._training_flags(args), *more], "b")
    assert training.per_device_train_batch_size == 8 and not training.bf16


def test_what_nobody_expected_is_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import imaginet_hub.data.access

    def fail() -> str:
        raise RuntimeError("first\nsecond \x1b[31m")

    monkeypatch.setattr(imaginet_hub.data.access, "sources_text", fail)
    assert status_of(["sources"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "unexpected RuntimeError: first second" in error and "\x1b" not in error
    with pytest.raises(RuntimeError):
        main(["sources", "--debug"])


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (["bild", "a", "b"], "did you mean build?"),
        (["build", "a", "b", "--overwrit"], "did you mean --overwrite?"),
        (["build", "a", "b", "--on-error", "skp"], "did you mean skip?"),
        (["evaluate", "m", "d", "--out", "x.json", "--equalise", "jpeg:90"], "did you mean --equalize?"),
        (["evaluate", "m", "d", "--out", "x.json", "--label-map", "fake"], "expected CLASS=real"),
        (["evaluate", "m", "d", "--out", "x.json", "--num-workers", "-1"], "0 or more"),
        (["audit", "d", "--out", "x", "--modle", "m"], "did you mean --model?"),
        (["perturb", "d", "--out", "x", "--verify", "--overwrite"], "not allowed with"),
        (["evaluate", "./m", "d", "--out", "x.json", "--label-map", "a=real,a=synthetic"], "several for a"),
        (["perturb", "d", "--out", "x", "--verify", "--seed", "7"], "leave --split and --seed out"),
        (["predict", "m"], "PATH"),
        (["psh", "a", "b/c"], "did you mean push?"),
        (["push", "a", "b/c", "--dryrun"], "did you mean --dry-run?"),
        (["push", "a", "b/c", "--repo-type", "datasets"], "did you mean dataset?"),
        (["push", "a"], "REPO_ID"),
        (["licences", "a"], "did you mean licenses?"),
        (["card", "a", "--result", "x"], "did you mean --results?"),
        (["train", "a", "b", "--device", "gpu"], "cuda"),
        (["predict", "m", "x", "--num-workers", "-1"], "0 or more"),
        (["build", "a", "b", "--num-proc", "0"], "positive whole number"),
    ],
)
def test_typos(argv: list[str], hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(argv) == 2
    assert hint in capsys.readouterr().err


def test_common_flags_stand_before_or_after(make_root: MakeRoot, tmp_path: Path) -> None:
    assert status_of(["--quiet", "build", str(make_root()), str(tmp_path / "a")]) == 0
    assert status_of(["build", str(tmp_path / "root"), str(tmp_path / "b"), "--quiet"]) == 0


def test_flags_before_names_are_not_guessed_at(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["--max_steps", "3", "data", "out"], ["--split", "train", "--max_steps", "3", "data", "out"]):
        assert status_of(["train", *argv]) == 2
        assert "expected DATASET OUT first" in capsys.readouterr().err
    assert status_of(["train-head", "--track", "detection", "./enc", "./data", "out", "--max_steps", "x"]) == 2
    assert "invalid int value: 'x'" in capsys.readouterr().err


def test_errors_are_one_readable_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(["build", str(tmp_path / "typo"), str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("imaginet build: expected a folder of images (ROOT)") and error.count("\n") == 1
    with pytest.raises(FileNotFoundError):
        main(["build", str(tmp_path / "typo"), str(tmp_path / "out"), "--debug"])


def test_build(make_root: MakeRoot, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_root()
    assert status_of(["build", str(root), str(tmp_path / "out")]) == 0
    assert "20 images" in capsys.readouterr().out
    assert status_of(["build", str(root), str(tmp_path / "out")]) == 1
    assert "--overwrite" in capsys.readouterr().err
    (root / table_rows()[0]["path"]).write_bytes(image_bytes(0)[:99])
    assert status_of(["build", str(root), str(tmp_path / "out"), "--overwrite"]) == 1
    assert table_rows()[0]["path"] in capsys.readouterr().err
    assert status_of(["build", str(root), str(tmp_path / "out"), "--overwrite", "--on-error", "skip", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["left_out"]) == 1


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["evaluate", "no-model", "no-data", "--out", "x.txt"], "ends in .json"),
        (["evaluate", "./no-model", "no-data", "--out", "x.json"], "no model at"),
        (["evaluate", "no.such:function", "no-data", "--out", "x.json"], "that can be imported from here"),
        (["audit", "./no-data", "--out", "x"], "no dataset at"),
        (["perturb", "./no-data", "--out", "x"], "no dataset at"),
        (["predict", "./no-model", "x.png"], "no model at"),
    ],
)
def test_what_is_not_there(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert status_of(argv) in (1, 2)
    assert said in capsys.readouterr().err


def test_a_folder_without_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(["predict", "model", str(tmp_path)]) == 2
    assert "no image files in" in capsys.readouterr().err


def test_imports_cost_nothing() -> None:
    code = (
        "import sys, imaginet_hub, imaginet_hub.cli\n"
        "imaginet_hub.cli._parser()\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy', 'PIL', 'pyarrow', 'sklearn', 'matplotlib'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_command_knows_what_an_interruption_leaves() -> None:
    from imaginet_hub import cli

    commands = cli._parser()._subparsers._group_actions[0].choices  # type: ignore[union-attr]
    assert set(cli._INTERRUPTED) == {*commands, "evaluate without cache"}
