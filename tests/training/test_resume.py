"""A run that is killed, wherever it is, and gone on with ends as one that was not: same weights, losses, crops."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from imaginet_hub.errors import DataNotFoundError, ModelError, UsageError
from imaginet_hub.selfcon import SelfConResNetForImageClassification
from imaginet_hub.training.head import parse_head_args, train_head
from imaginet_hub.training.trainer import parse_train_args, train
from tests.conftest import PROJECT
from tests.training.conftest import TINY, pickles
from tests.training.test_trainer import trained

# A process that has imported all and forks for each command: what it is told to do to itself, then `imaginet train`.
_HATCHERY = """
import hashlib, json, os, pathlib, signal, sys
import torch, transformers.trainer
import imaginet_hub.cli, imaginet_hub.data.loading
from imaginet_hub.training import output as written, trainer
from tests.training.conftest import patterned

rows = patterned(40)
imaginet_hub.data.loading.load_rows = lambda *arguments, **options: rows

def end(how):
    os.kill(os.getpid(), how)

def crops_are_noted(file, fate, number):
    step, count = trainer.SelfConTrainer.training_step, 0
    def noted(self, model, inputs, *more):
        nonlocal count
        count += 1
        if fate in ("SIGKILL", "SIGINT") and count == number:
            end(getattr(signal, fate))
        with open(file, "a") as stream:
            name = hashlib.sha256(inputs["pixel_values"].numpy().tobytes()).hexdigest()
            stream.write(f"{self.state.global_step} {name}\\n")
        return step(self, model, inputs, *more)
    trainer.SelfConTrainer.training_step = noted

def half_written(fate, number):
    if fate == "optimizer":
        save, count = torch.save, 0
        def broken(what, file, *more, **options):
            nonlocal count
            save(what, file, *more, **options)
            if str(file).endswith("optimizer.pt"):
                count += 1
                if count == number:
                    os.truncate(file, os.path.getsize(file) // 2)
                    end(signal.SIGKILL)
        torch.save = broken
    if fate == "state":
        write, count = transformers.trainer.TrainerState.save_to_json, 0
        def broken(self, file):
            nonlocal count
            write(self, file)
            count += 1
            if count == number:
                os.truncate(file, os.path.getsize(file) // 2)
                end(signal.SIGKILL)
        transformers.trainer.TrainerState.save_to_json = broken
    if fate == "final":
        move, count = pathlib.Path.replace, 0
        def broken(self, target):
            nonlocal count
            count += self.parent.name == written._STAGING
            if count == number:
                end(signal.SIGKILL)
            return move(self, target)
        pathlib.Path.replace = broken
    if fate == "staging":
        written.write_json = lambda file, content: file.name == "training.json" and end(signal.SIGKILL)

for line in sys.stdin:
    order = json.loads(line)
    if (pid := os.fork()) == 0:
        output = os.open(order["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        crops_are_noted(order["crops"], order["fate"], order["number"])
        half_written(order["fate"], order["number"])
        status = 70
        try:
            status = imaginet_hub.cli.main(order["argv"])
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""

#: Five steps an epoch; checkpoints at 4, 8 and 12, and losses logged in between.
RUN = [*TINY, "--disable_tqdm", "true", "--use_cpu", "true", "--bf16", "false", "--crop_size", "32",
       "--per_device_train_batch_size", "8", "--max_steps", "12", "--save_strategy", "steps", "--save_steps", "4",
       "--logging_steps", "3", "--learning_rate", "0.01"]  # fmt: skip
KINDS = {
    "plain": [],
    "balanced": ["--balance", "--crops_per_image", "2"],
    "workers": ["--dataloader_num_workers", "2", "--dataloader_persistent_workers"],
    "cached": ["--mini_batch_size", "3"],
    "bf16": ["--bf16", "true"],
    "one checkpoint": ["--save_total_limit", "1", "--optim", "adamw_torch"],
}


class Commands:
    """`imaginet train` in processes of their own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def __call__(self, out: Path, *flags: str, fate: str = "", number: int = 0) -> tuple[int, str]:
        """Exit status (negative: the signal that ended it) and what it said."""
        order: dict[str, Any] = {
            "argv": ["train", "data", str(out), *RUN, *flags],
            "output": str(out.with_name(f"{out.name}.output")),
            "crops": str(out.with_name(f"{out.name}.crops")),
            "fate": fate,
            "number": number,
        }
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        status = int(self.process.stdout.readline())
        return status, Path(order["output"]).read_text()


@pytest.fixture(scope="module")
def command() -> Iterator[Commands]:
    path = os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH"))))
    process = subprocess.Popen(
        [sys.executable, "-c", _HATCHERY], stdin=-1, stdout=-1, env={**os.environ, "PYTHONPATH": path}, text=True
    )
    yield Commands(process)
    process.communicate()


@pytest.fixture(scope="module")
def whole(command, tmp_path_factory):
    """Uninterrupted runs, by kind."""
    found: dict[str, Path] = {}

    def of(kind: str) -> Path:
        if kind not in found:
            out = tmp_path_factory.mktemp("whole") / "out"
            status, said = command(out, *KINDS[kind])
            assert status == 0, said
            found[kind] = out
        return found[kind]

    return of


def crops(out: Path) -> list[str]:
    return out.with_name(f"{out.name}.crops").read_text().splitlines()


def assert_alike(out: Path, expected: Path) -> None:
    """The same weights, the same losses, the same crops at every step, and nothing left over."""
    ours, theirs = load_file(out / "model.safetensors"), load_file(expected / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    records = [json.loads((folder / "training.json").read_text()) for folder in (out, expected)]
    for name in ("history", "steps", "epochs", "final_loss", "model", "dataset"):
        assert records[0][name] == records[1][name]
    assert set(crops(out)) == set(crops(expected)), "a step saw other crops"
    files = [{path.name for path in folder.iterdir() if path.is_file()} for folder in (out, expected)]
    assert files[0] == files[1]
    assert not (out / ".model.incomplete").exists() and pickles(out) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_ends_where_an_uninterrupted_one_does(kind, command, whole, tmp_path):
    expected, out = whole(kind), tmp_path / "out"
    assert len(set(crops(expected))) == 12
    assert command(out, *KINDS[kind], fate="SIGKILL", number=11)[0] == -signal.SIGKILL
    last = sorted(path.name for path in out.glob("checkpoint-*"))[-1]
    assert last == "checkpoint-8", "in the middle of an epoch"
    before = len(crops(out))
    status, said = command(out, *KINDS[kind], "--resume_from_checkpoint", "last")
    assert status == 0, said
    assert len(crops(out)) - before == 4, "from the checkpoint on, not from the start"
    assert_alike(out, expected)


@pytest.mark.parametrize("fate", ["optimizer", "state"])
def test_killed_while_it_writes_a_checkpoint_it_goes_on_from_the_one_before(fate, command, whole, tmp_path):
    out = tmp_path / "out"
    assert command(out, fate=fate, number=2)[0] == -signal.SIGKILL
    assert (out / "checkpoint-8" / "model.safetensors").is_file()
    before = len(crops(out))
    assert command(out, "--resume_from_checkpoint", "last")[0] == 0
    assert len(crops(out)) - before == 8
    assert_alike(out, whole("plain"))


@pytest.mark.parametrize(("fate", "number"), [("staging", 0), ("final", 1), ("final", 4), ("final", 7)])
def test_killed_while_it_writes_the_model_nothing_half_has_a_final_name(fate, number, command, whole, tmp_path):
    out = tmp_path / "out"
    assert command(out, fate=fate, number=number)[0] == -signal.SIGKILL
    assert not (out / "model.safetensors").exists(), "by which a folder is known to be done"
    for file in (file for file in out.iterdir() if file.is_file()):
        if file.name not in ("training.json", "config.json"):
            assert file.read_bytes() == (whole("plain") / file.name).read_bytes()
        elif file.suffix == ".json":
            json.loads(file.read_text())
    assert command(out, "--resume_from_checkpoint", "last")[0] == 0
    assert_alike(out, whole("plain"))


def test_killed_while_it_replaces_a_model_the_old_weights_do_not_get_a_new_description(command, whole, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole("plain"), out)
    assert command(out, "--overwrite", "--seed", "1", fate="final", number=3)[0] == -signal.SIGKILL
    assert not (out / "model.safetensors").exists()


def test_an_interrupted_run_says_how_to_go_on(command, whole, tmp_path):
    out = tmp_path / "out"
    status, said = command(out, fate="SIGINT", number=7)
    assert status == 130
    assert "imaginet train: interrupted" in said and "--resume_from_checkpoint last" in said
    assert "Traceback" not in said and not (out / "model.safetensors").exists()
    assert command(out, "--resume_from_checkpoint", "last")[0] == 0
    assert_alike(out, whole("plain"))


@pytest.fixture
def copy(whole, tmp_path):
    """A finished run to do harm to."""
    return Path(shutil.copytree(whole("plain"), tmp_path / "copy"))


def resumed(rows, out, *flags, dataset_record=None):
    record = dataset_record or json.loads((out / "config.json").read_text())["trained_on"]
    return train(rows, *parse_train_args([*RUN, *flags], out), dataset_record=record)


@pytest.mark.parametrize(
    "name",
    [
        *("trainer_state.json", "model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "config.json"),
        "training_args.json",
    ],
)
@pytest.mark.parametrize("how", ["cut", "empty", "noise"])
def test_a_damaged_checkpoint_is_seen(name, how, copy, rows):
    file = copy / "checkpoint-12" / name
    content = file.read_bytes()
    file.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "noise": b"[]"}[how])
    with pytest.raises(ModelError, match="expected a whole checkpoint, got one with") as caught:
        resumed(rows, copy, "--resume_from_checkpoint", str(copy / "checkpoint-12"))
    assert "\n" not in str(caught.value)


def test_last_passes_over_what_is_damaged_and_says_so_if_nothing_is_left(copy, rows, whole):
    (copy / "checkpoint-12" / "optimizer.pt").unlink()
    resumed(rows, copy, "--resume_from_checkpoint", "last")
    ours, theirs = load_file(copy / "model.safetensors"), load_file(whole("plain") / "model.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    for path in copy.glob("checkpoint-*"):
        (path / "optimizer.pt").write_bytes(b"")
    with pytest.raises(DataNotFoundError, match=r"checkpoint-12 has optimizer\.pt missing or cut short"):
        resumed(rows, copy, "--resume_from_checkpoint", "last")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--backbone", "resnet10t"], "expected --backbone test_resnet, which the checkpoint checkpoint-12 has"),
        (["--projection_dim", "64"], "expected --projection_dim 128"),
        (["--seed", "7"], "expected --seed 42"),
        (["--per_device_train_batch_size", "20"], "expected --per_device_train_batch_size 8"),
        (["--balance"], "expected --balance False"),
        (["--optim", "adamw_torch"], "expected --optim sgd"),
        *((["--" + name, now], f"expected --{name} {then}, which the checkpoint checkpoint-12 has, got {now}")
          for name, then, now in [
              ("crop_size", 32, "40"), ("perturb", 0.5, "0.25"), ("rotate", 0.33, "0.0"), ("flip", 0.33, "0.0"),
              ("temperature", 0.07, "0.5"), ("crops_per_image", 1, "2"), ("mini_batch_size", 90, "4"),
              ("learning_rate", 0.01, "0.1"), ("weight_decay", 0.0001, "0.0"), ("warmup_steps", 0.025, "0.5"),
              ("lr_scheduler_type", "cosine_warmup_with_min_lr", "linear"), ("max_grad_norm", 0.0, "1.0"),
              ("dataloader_drop_last", True, "False")]),
        (["--freeze_batchnorm"], "expected --freeze_batchnorm False"),
        (["--bf16", "true"], "expected --bf16 False"),
        (["--objective", "supcon", "--exit_stages", "2"], "expected --objective imaginet"),
    ],
)  # fmt: skip
def test_a_checkpoint_of_another_run_is_refused(flags, message, copy, rows):
    with pytest.raises(UsageError, match=message):
        resumed(rows, copy, *flags, "--resume_from_checkpoint", "last")


def test_a_checkpoint_of_other_images_is_refused_but_not_of_a_moved_folder(copy, rows):
    record = json.loads((copy / "config.json").read_text())["trained_on"]
    with pytest.raises(UsageError, match="expected the images that the checkpoint checkpoint-12 was trained on"):
        resumed(rows, copy, "--resume_from_checkpoint", "last", dataset_record={**record, "images": 41})
    resumed(rows, copy, "--resume_from_checkpoint", "last", dataset_record={**record, "name": "moved"})


def test_what_changes_neither_data_nor_mathematics_may_change(copy, rows):
    flags = ["--max_steps", "14", "--save_steps", "50", "--logging_steps", "1", "--no_channels_last", "--overwrite"]
    resumed(rows, copy, *flags, "--dataloader_num_workers", "1", "--resume_from_checkpoint", "last")
    record = json.loads((copy / "training.json").read_text())
    assert record["steps"] == 14
    assert (copy / "checkpoint-4").is_dir(), "gone on with, so not replaced"


def test_another_number_of_processes_is_refused(copy, rows):
    file = copy / "checkpoint-12" / "training_args.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "world_size": 2}))
    with pytest.raises(UsageError, match=r"expected a number of processes of 2, which the checkpoint .* has, got 1"):
        resumed(rows, copy, "--resume_from_checkpoint", "last")


@pytest.fixture(scope="module")
def heads(whole, rows, tmp_path_factory):
    """Runs of a head, by kind: of `flags`, into a folder."""
    made: dict[str, Path] = {}

    def run(out: Path, *flags: str, column: str = "label", images: int = 40) -> Path:
        args = parse_head_args([*HEAD, *flags], out)
        mine = rows if column == "label" else rows.select([row for row in range(40) if row % 4 > 1])
        return train_head(mine, whole("plain"), args, label_column=column, dataset_record={"images": images})

    def of(kind: str) -> Path:
        if kind not in made:
            made[kind] = run(tmp_path_factory.mktemp("head") / "out", *HEADS[kind])
        return made[kind]

    return run, of


HEAD = ["--disable_tqdm", "true", "--use_cpu", "true", "--bf16", "false", "--crop_size", "40",
        "--processor_crop_size", "40", "--per_device_train_batch_size", "8", "--max_steps", "2",
        "--save_strategy", "steps", "--save_steps", "1", "--held_out", "0"]  # fmt: skip
HEADS = {"plain": [], "stored": ["--cache_epochs", "1", "--no_adapt_batchnorm"]}


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_of_another_kind_is_refused(kind, heads, tmp_path):
    run, of = heads
    out = Path(shutil.copytree(of(kind), tmp_path / "out"))
    went_on = [*HEADS[kind], "--resume_from_checkpoint", "last"]
    for flags, message in {
        ("--head_type", "l2norm_mlp"): "expected --head_type batchnorm_mlp",
        ("--head_hidden_size", "64"): "expected --head_hidden_size 1024",
        ("--head_dropout", "0.5"): "expected --head_dropout 0.2",
        ("--head_optimizer", "adamw"): "expected --head_optimizer adam",
        ("--cache_epochs", "2", "--no_adapt_batchnorm"): f"expected --cache_epochs {int(kind == 'stored')}",
    }.items():
        with pytest.raises(UsageError, match=message):
            run(out, *went_on, *flags)
    if kind == "plain":
        with pytest.raises(UsageError, match="expected --unfreeze_encoder False"):
            run(out, *went_on, "--unfreeze_encoder")
        with pytest.raises(UsageError, match="expected --adapt_batchnorm True"):
            run(out, *went_on, "--no_adapt_batchnorm")
    with pytest.raises(UsageError, match=r"expected --track detection|expected the label column label"):
        run(out, *went_on, column="generator_family")
    with pytest.raises(UsageError, match="expected the images that the checkpoint"):
        run(out, *went_on, images=41)
    run(out, *went_on)


def test_a_trained_head_outlives_its_calibration(heads, tmp_path, monkeypatch):
    run, _ = heads
    out = tmp_path / "out"

    def broken(*arguments):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("imaginet_hub.training.head._uncalibrated", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        run(out)
    model = SelfConResNetForImageClassification.from_pretrained(out)
    assert model.config.calibration["method"] == "none" and "calibrated" in model.config.calibration["why"]
    assert json.loads((out / "training.json").read_text())["steps"] == 2
    weights = load_file(out / "checkpoint-2" / "model.safetensors")
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items() if name in weights)


def test_nothing_is_downloaded_to_go_on(copy, rows, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(copy / "empty"))
    resumed(rows, copy, "--resume_from_checkpoint", "last", "--init", "timm")
    assert json.loads((copy / "training.json").read_text())["model"]["init"] == "timm"


def test_nothing_to_resume_from_is_an_error(rows, tmp_path):
    with pytest.raises(DataNotFoundError, match="no checkpoint to resume from"):
        trained(rows, tmp_path, "--resume_from_checkpoint", "last")
    with pytest.raises(DataNotFoundError, match="no checkpoint at nowhere"):
        trained(rows, tmp_path, "--resume_from_checkpoint", "nowhere")


def test_what_out_holds_is_not_lost(copy, rows, tmp_path):
    before = (copy / "model.safetensors").read_bytes()
    with pytest.raises(UsageError, match=r"got model\.safetensors .*--resume_from_checkpoint last.*--overwrite"):
        resumed(rows, copy)
    assert (copy / "model.safetensors").read_bytes() == before and (copy / "checkpoint-4").is_dir()
    (copy / "README.md").write_text("of the first model")
    resumed(rows, copy, "--overwrite", "--max_steps", "1")
    assert (copy / "model.safetensors").read_bytes() != before and not list(copy.glob("checkpoint-[48]"))
    assert not (copy / "README.md").exists(), "of the model that was replaced"
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nowhere")):
        with pytest.raises(UsageError, match="expected OUT to be a folder that can be made and written"):
            trained(rows, out)
    assert (tmp_path / "file").read_text() == "mine"


def test_checkpoints_are_replaced_only_by_a_run_that_starts(copy, rows):
    checkpoints = sorted(path.name for path in copy.glob("checkpoint-*"))
    for flags in (["--init", "typo"], ["--optim_args", "abc"], ["--resume_from_checkpoint", "nowhere"]):
        with pytest.raises((DataNotFoundError, ModelError, UsageError)):
            resumed(rows, copy, "--overwrite", *flags)
        assert sorted(path.name for path in copy.glob("checkpoint-*")) == checkpoints
    start = [flag for flag in RUN if flag not in TINY]
    model_args, args = parse_train_args([*start, "--overwrite", "--init", str(copy / "checkpoint-4")], copy)
    train(rows, model_args, dataclasses.replace(args, max_steps=1), dataset_record={"images": 40})
    assert [path.name for path in copy.glob("checkpoint-*")] == ["checkpoint-1"], "of the run that started from it"


def test_a_run_that_goes_on_elsewhere_does_not_lose_what_is_there(copy, rows, whole):
    before = (copy / "model.safetensors").read_bytes()
    elsewhere = ["--resume_from_checkpoint", str(whole("plain") / "checkpoint-8")]
    with pytest.raises(UsageError, match=r"expected OUT to hold no model yet, got model\.safetensors"):
        resumed(rows, copy, *elsewhere)
    assert (copy / "model.safetensors").read_bytes() == before
    resumed(rows, copy, *elsewhere, "--overwrite")
    assert [path.name for path in copy.glob("checkpoint-*")] == ["checkpoint-12"]
    resumed(rows, copy, "--resume_from_checkpoint", str(copy / "checkpoint-12"))


def test_what_is_no_checkpoint_is_neither_removed_nor_written_through(copy, rows, tmp_path):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "file").write_text("mine")
    (copy / "checkpoint-90").write_text("mine")
    (copy / "checkpoint-91").symlink_to(theirs, target_is_directory=True)
    with pytest.raises(UsageError, match=r"checkpoint-91 to be a folder, .* got a file or a link"):
        resumed(rows, copy, "--overwrite")
    resumed(rows, copy, "--overwrite", "--save_strategy", "no", "--max_steps", "1")
    assert sorted(path.name for path in copy.glob("checkpoint-*")) == ["checkpoint-90", "checkpoint-91"]
    assert (theirs / "file").read_text() == "mine"


def test_nothing_of_somebody_elses_is_written_over(rows, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "README.md").write_text("the card of a data set")
    for flags in ([], ["--overwrite"]):
        with pytest.raises(UsageError, match=r"empty or to hold a model, got .* with README.md in it"):
            trained(rows, tmp_path, "--max_steps", "1", *flags)
    assert (tmp_path / "README.md").read_text() == "the card of a data set"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "data"]


def test_a_full_disk_is_one_line_and_leaves_no_half_model(rows, tmp_path):
    """In a child process, whose files may not grow beyond 300 kB, which weights do."""
    script = """
import resource, signal, sys
from pathlib import Path
from tests.training.conftest import patterned
from tests.training.test_trainer import trained
from imaginet_hub.errors import ImagiNetError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
rows = patterned(40)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
for name, flags in {"final": [], "checkpoint": ["--save_strategy", "steps", "--save_steps", "1"]}.items():
    try:
        trained(rows, Path(sys.argv[1]) / name, "--max_steps", "1", *flags)
    except ImagiNetError as error:
        print(f"{name}: {error}")
"""
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said = [line for line in done.stdout.splitlines() if line.startswith(("final", "checkpoint"))]
    assert len(said) == 2 and all("expected to write there, got:" in line for line in said)
    assert not list((tmp_path / "final").iterdir())
    assert not (tmp_path / "checkpoint" / "model.safetensors").exists()
