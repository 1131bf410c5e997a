"""Two processes under torchrun (gloo, CPU) train as one does on the same global batch."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from imaginet_hub import cli
from imaginet_hub.errors import UsageError
from imaginet_hub.training.grad_cache import all_gather
from imaginet_hub.training.losses import supcon_loss
from tests.conftest import PROJECT
from tests.training.conftest import TINY, patterned, pickles
from tests.training.test_grad_cache import (
    BATCH,
    FLAGS,
    FROZEN,
    assert_same,
    first_step,
    largest_difference,
    network,
    trainer_of,
)

HALF = ["--per_device_train_batch_size", str(BATCH // 2)]
CACHED = ["--mini_batch_size", "4"]
WHOLE = ["--mini_batch_size", "0"]
CHECKPOINTS = ["--activation_checkpointing", "--activation_checkpointing_kwargs"]

#: First steps: objective, flags, those of two processes, those of the one that they are compared with.
STEPS: dict[str, tuple[str, list[str], list[str], list[str]]] = {
    f"{objective}, frozen, {how}": (objective, [FROZEN], flags, WHOLE)
    for objective in ("imaginet", "selfcon", "supcon", "cross_entropy")
    for how, flags in {"whole": WHOLE, "cached": CACHED}.items()
}
STEPS |= {
    "a process is a mini-batch": ("imaginet", [], WHOLE, ["--mini_batch_size", "6"]),
    "a process is two mini-batches": ("imaginet", [], ["--mini_batch_size", "3"], ["--mini_batch_size", "3"]),
    "classifier, BatchNorm moving": ("cross_entropy", [], ["--mini_batch_size", "3"], ["--mini_batch_size", "3"]),
    "accumulated, whole": ("imaginet", [FROZEN, "--gradient_accumulation_steps", "2"], WHOLE, WHOLE),
    "accumulated, cached": ("imaginet", [FROZEN, "--gradient_accumulation_steps", "2"], CACHED, WHOLE),
    "checkpointed, whole": ("imaginet", [FROZEN, *CHECKPOINTS, '{"use_reentrant": false}'], WHOLE, WHOLE),
    "checkpointed, cached": ("imaginet", [FROZEN, *CHECKPOINTS, '{"use_reentrant": true}'], CACHED, WHOLE),
    "crops, cached": ("supcon", [FROZEN, "--crops_per_image", "2"], CACHED, WHOLE),
    "exits without a part in the loss": ("supcon", [FROZEN], CACHED, WHOLE),
    "frozen exits": ("supcon", [FROZEN], CACHED, WHOLE),
}


def steps(rows, out, processes):
    """Loss, gradients and buffers of every kind of first step."""
    found = {}
    for name, (objective, flags, of_two, of_one) in STEPS.items():
        model = network("imaginet" if "exits" in name else objective)
        for part, parameter in model.named_parameters():
            parameter.requires_grad_(not ("exit" in part and name == "frozen exits"))
        more = [*of_two, *HALF] if processes == 2 else of_one
        seen = first_step(rows, model, out, *flags, *more, objective=objective)
        found[name] = {"loss": seen.loss, "gradients": seen.gradients, "buffers": seen.buffers}
    return found


def gathered(rank):
    """What `all_gather` gives of (3, 2) numbers, and the gradient of a loss of it."""
    mine = torch.arange(6.0).reshape(3, 2) + 10 * rank
    mine.requires_grad_()
    everyone = all_gather(mine)
    (everyone**3).sum().backward()
    return {"rows": everyone.detach(), "gradient": mine.grad, "labels": all_gather(torch.arange(3) + 3 * rank)}


def unit(rows, views, seed=0):
    vectors = torch.randn(rows, views, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(vectors, dim=-1)


def pairs_across(rows, out, rank):
    """Loss and gradient of two images in each process whose like are in the other one only."""
    trainer, _ = trainer_of(rows, network("supcon"), out, *HALF, objective="supcon")
    views = unit(4, 1)[2 * rank : 2 * rank + 2].requires_grad_()
    loss = trainer.loss_of(views, {"labels": torch.tensor([[0, 1], [1, 0]][rank])})
    loss.backward()
    return {"loss": loss.item(), "gradient": views.grad}


def said(*arguments):
    """Exit status and output of a command."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        status = cli.main([str(argument) for argument in arguments])
    dist.barrier()  # the first process writes
    return {"status": status, "out": out.getvalue()}


def refused(rows, out):
    try:
        even = '{"even_batches": false}'
        trainer_of(rows, network(), out, *HALF, "--no_dataloader_drop_last", "--accelerator_config", even)
    except UsageError as error:
        return str(error)


def uneven(rows, out):
    """The batches of an epoch of 15 rows, of which 12 fill two batches, and how training on them ends."""
    flags = [*HALF, "--dataloader_drop_last", "false", "--max_steps", "-1", "--num_train_epochs", "1", FROZEN]
    trainer, _ = trainer_of(rows.select(range(15)), network(), out, *flags)
    trainer.train()
    return {"steps": trainer.state.global_step, "sizes": [len(b["labels"]) for b in trainer.get_train_dataloader()]}


def work(folder: Path) -> None:
    """Everything that one process of two does for these tests, into a file."""
    torch.set_num_threads(1)
    gc.freeze()
    rows, rank = patterned(24), int(os.environ["RANK"])
    own = folder / f"own{rank}"
    found = {"steps": steps(rows, own, 2), "gathered": gathered(rank), "pairs": pairs_across(rows, own, rank)}
    found |= {"refused": refused(rows, own), "uneven": uneven(rows, own)}
    found["resumed"] = said(
        "train", folder / "data", folder / "resumed", *RUN, *HALF, "--resume_from_checkpoint", "last"
    )
    head = [*FLAGS[:-4], *HALF, "--logging_steps", "1", "--max_steps", "3", "--processor_crop_size", "40"]
    head += ["--held_out", "0.3"]
    track = ["--track", "detection"]
    found["head"] = said("train-head", folder / "run", folder / "data", folder / "head", *track, *head)
    torch.save(found, folder / f"found{rank}.pt")
    dist.destroy_process_group()


#: A whole run by the command line.
RUN = [*FLAGS, *TINY, FROZEN, *CACHED, "--max_steps", "4", "--learning_rate", "0.1"]
RUN += ["--save_strategy", "steps", "--save_steps", "2"]


def dataset_folder(folder: Path) -> Path:
    """Rows as `imaginet build` writes them, as far as training looks."""
    rows = patterned(24)
    for column, names in {"content_type": ["other"], "generator": ["a"]}.items():
        rows = rows.add_column(column, [0] * len(rows), feature=datasets.ClassLabel(names=names))
    (folder / "detection").mkdir(parents=True)
    rows.to_parquet(folder / "detection" / "train-00000-of-00001.parquet")
    config = "configs:\n- config_name: detection\n  data_files:\n  - split: train\n    path: detection/train-*\n"
    (folder / "README.md").write_text(f"---\n{config}---\n")
    return folder


def launch(*arguments, cwd):
    """Two processes of a command under torchrun."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master-addr", "127.0.0.1"]
    path = os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH"))))
    return subprocess.run(
        [*command, "--master-port", str(port), *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With a run of the command line in it, then what `work` leaves."""
    folder = tmp_path_factory.mktemp("two")
    dataset_folder(folder / "data")
    ran = launch("-m", "imaginet_hub.cli", "train", folder / "data", folder / "run", *RUN, *HALF, cwd=folder)
    assert ran.returncode == 0, ran.stderr
    (folder / "stdout").write_text(ran.stdout)
    shutil.copytree(folder / "run" / "checkpoint-2", folder / "resumed" / "checkpoint-2")
    (folder / "work.py").write_text(
        "import sys\nfrom pathlib import Path\nfrom tests.training.test_distributed import work\n"
        "work(Path(sys.argv[1]))\n"
    )
    ran = launch("work.py", folder, cwd=folder)
    assert ran.returncode == 0, ran.stderr
    return folder


@pytest.fixture(scope="module")
def found(folder):
    return [torch.load(folder / f"found{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same first steps in this process."""
    torch.set_num_threads(1)
    gc.freeze()
    yield steps(patterned(24), tmp_path_factory.mktemp("alone"), 1)
    gc.unfreeze()


@pytest.mark.parametrize("name", STEPS)
def test_the_first_step_is_that_of_one_process(name, found, alone):
    expected = alone[name]
    one, other = (each["steps"][name] for each in found)
    assert one["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    assert one["gradients"].keys() == other["gradients"].keys()
    for each in (one, other):
        gradients = {
            key: each["gradients"].get(key, torch.zeros_like(value)) for key, value in expected["gradients"].items()
        }
        assert_same(gradients, expected["gradients"], 1e-8)
    if FROZEN in STEPS[name][1]:
        assert_same(one["buffers"], expected["buffers"], 0)


def test_running_statistics_are_the_first_processs(found, alone):
    for name, tracked in {"a process is a mini-batch": (1, 2), "a process is two mini-batches": (2, 4)}.items():
        mine, expected = found[0]["steps"][name]["buffers"], alone[name]["buffers"]
        counts = [{v.item() for n, v in each.items() if "tracked" in n} for each in (mine, expected)]
        assert counts == [{tracked[0]}, {tracked[1]}]
        assert largest_difference(mine, found[1]["steps"][name]["buffers"]) > 0, "each its own until the next step"


def test_all_gather_is_in_the_order_of_ranks_and_sums_gradients(found):
    everyone = torch.cat([torch.arange(6.0).reshape(3, 2) + 10 * rank for rank in range(2)])
    for rank, each in enumerate(found):
        assert torch.equal(each["gathered"]["rows"], everyone)
        assert each["gathered"]["labels"].tolist() == list(range(6))
        assert torch.equal(each["gathered"]["gradient"], 2 * 3 * everyone[3 * rank : 3 * rank + 3] ** 2)


def test_all_gather_of_one_process_is_the_tensor_itself():
    tensor = torch.ones(3, 2)
    assert all_gather(tensor) is tensor


def test_images_of_the_other_process_are_positives(found):
    views, labels = unit(4, 1).requires_grad_(), torch.tensor([0, 1, 1, 0])
    loss = supcon_loss(views, labels)
    loss.backward()
    assert loss.item() > 0 and supcon_loss(views[:2], labels[:2]).item() == 0, "alone, nothing is like another"
    for rank, each in enumerate(found):
        assert each["pairs"]["loss"] == pytest.approx(loss.item())
        assert_same({"": each["pairs"]["gradient"] / 2}, {"": views.grad[2 * rank : 2 * rank + 2]})


def test_the_last_batch_is_filled_up(found):
    assert [each["uneven"] for each in found] == [{"steps": 2, "sizes": [6, 6]}] * 2
    assert all("--dataloader_drop_last" in each["refused"] for each in found)


def test_a_run_writes_one_folder_and_says_one_line(folder, tmp_path):
    assert (folder / "stdout").read_text().count("stage-1 encoder; next:") == 1
    run = folder / "run"
    assert {path.name for path in run.iterdir() if path.is_file()} == {
        "README.md", "config.json", "configuration_selfcon.py", "image_processing_selfcon.py", "model.safetensors",
        "modeling_selfcon.py", "preprocessor_config.json", "training.json",
    }  # fmt: skip
    assert sorted(path.name for path in run.iterdir() if path.is_dir()) == ["checkpoint-2", "checkpoint-4"]
    assert pickles(run) == []
    with contextlib.redirect_stdout(io.StringIO()):
        flags = [*RUN, "--mini_batch_size", "0", "--save_strategy", "no"]
        assert cli.main(["train", str(folder / "data"), str(tmp_path / "one"), *flags]) == 0
    assert largest_difference(*(load_file(out / "model.safetensors") for out in (tmp_path / "one", run))) < 1e-5
    one, two = (json.loads((out / "training.json").read_text()) for out in (tmp_path / "one", run))
    assert (one["processes"], two["processes"]) == (1, 2) and one["steps"] == two["steps"] == 4
    losses = [[entry["loss"] for entry in each["history"]] for each in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and len(losses[0]) == 4


def test_a_run_is_resumed(folder, found):
    assert [each["resumed"]["status"] for each in found] == [0, 0]
    assert found[0]["resumed"]["out"].count("next:") == 1 and "next:" not in found[1]["resumed"]["out"]
    whole, resumed = (load_file(folder / name / "model.safetensors") for name in ("run", "resumed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_head_is_trained(folder, found):
    assert [each["head"]["status"] for each in found] == [0, 0]
    assert found[0]["head"]["out"].count("next:") == 1 and "next:" not in found[1]["head"]["out"]
    record = json.loads((folder / "head" / "training.json").read_text())
    assert record["processes"] == 2 and record["steps"] == 3 and record["calibration"]
    assert (folder / "head" / "model.safetensors").is_file() and pickles(folder / "head") == []


def test_what_cannot_be_done_is_said_and_nothing_hangs(folder):
    ran = launch("-m", "imaginet_hub.cli", "train", folder / "data", folder / "run", *RUN, *HALF, cwd=folder)
    assert ran.returncode != 0
    said = [line for line in ran.stderr.splitlines() if line.startswith("imaginet train: ")]
    assert len(said) == 1 and "to hold no model yet" in said[0]
