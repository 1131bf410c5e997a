"""Stage 1 on a few small images: it learns and leaves a folder that is clean and loads."""

from __future__ import annotations

import json
import math
from collections import Counter

import datasets
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import TrainerCallback

from imaginet_hub.errors import UsageError
from imaginet_hub.selfcon import SelfConImageProcessor, SelfConResNetForPreTraining, SelfConResNetModel
from imaginet_hub.training.head import parse_head_args, train_head
from imaginet_hub.training.losses import imaginet_loss
from imaginet_hub.training.trainer import SelfConTrainer, build_model, parse_train_args, train
from tests.training.conftest import TINY, pickles

QUIET = ["--disable_tqdm", "true", "--use_cpu", "true", "--bf16", "false"]


def small(*flags: str) -> list[str]:
    """Flags of a run of seconds; later flags win."""
    return [*QUIET, *TINY, "--crop_size", "32", "--per_device_train_batch_size", "20", "--logging_steps", "1", *flags]


def trained(rows, out, *flags, **options):
    model_args, training_args = parse_train_args(small(*flags), out)
    return train(rows, model_args, training_args, dataset_record={"name": "patterns", "images": len(rows)}, **options)


@pytest.fixture(scope="module")
def run(rows, tmp_path_factory):
    """Four epochs with a checkpoint after each."""
    return trained(
        rows, tmp_path_factory.mktemp("run"), "--num_train_epochs", "4", "--save_strategy", "epoch", "--balance"
    )


def test_the_loss_falls_below_that_of_equal_embeddings(rows, tmp_path):
    out = trained(rows, tmp_path, "--max_steps", "150", "--perturb", "0", "--temperature", "0.2", "--balance")
    losses = [entry["loss"] for entry in json.loads((out / "training.json").read_text())["history"]]
    equal = torch.nn.functional.normalize(torch.ones(20, 2, 8), dim=-1)
    labels = torch.tensor([[0, 2]] * 10 + [[1, 0]] * 5 + [[1, 1]] * 5)
    chance = imaginet_loss(equal, labels, temperature=0.2).item()
    assert sum(losses[-10:]) / 10 < chance - 0.3, "an encoder that maps every image to one point stays at chance"


def test_the_final_folder_is_complete_and_has_no_pickle(run):
    files = {path.name for path in run.iterdir() if path.is_file()}
    assert files == {
        "config.json",
        "configuration_selfcon.py",
        "image_processing_selfcon.py",
        "model.safetensors",
        "modeling_selfcon.py",
        "preprocessor_config.json",
        "training.json",
    }
    assert pickles(run) == []
    assert not list(run.rglob("training_args.bin"))
    for checkpoint in run.glob("checkpoint-*"):
        assert json.loads((checkpoint / "training_args.json").read_text())["optim"] == "sgd"
        assert (checkpoint / "model.safetensors").is_file()


def test_training_json_records_the_run(run):
    record = json.loads((run / "training.json").read_text())
    assert record["stage"] == "representation" and record["steps"] == 8 and record["epochs"] == 4
    assert record["dataset"] == {"name": "patterns", "images": 40}
    assert record["model"] == {
        "init": "random", "backbone": "test_resnet", "stem_stride": 2, "exit_stages": [2], "projection_dim": 128
    }  # fmt: skip
    assert record["loss"]["name"] == "ImagiNetLoss" and record["loss"]["temperature"] == 0.07
    assert [entry["step"] for entry in record["history"]] == list(range(1, 9))
    assert record["final_loss"] == record["history"][-1]["loss"]
    assert record["seconds"] > 0 and record["seed"] == 42
    assert record["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert record["arguments"]["crop_size"] == 32 and record["arguments"]["weight_decay"] == 1e-4
    assert str(run) not in (run / "training.json").read_text() + (run / "config.json").read_text()
    assert json.loads((run / "config.json").read_text())["trained_on"] == record["dataset"]


def test_the_folder_loads_as_any_model_of_the_family(run):
    weights = load_file(run / "model.safetensors")
    model = SelfConResNetForPreTraining.from_pretrained(run)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert SelfConResNetModel.from_pretrained(run).config.trained_on == {"name": "patterns", "images": 40}
    assert dict(SelfConImageProcessor.from_pretrained(run).crop_size) == {"height": 256, "width": 256}


def test_the_seed_decides_and_the_workers_do_not(rows, tmp_path):
    flags = ["--max_steps", "2"]
    one, other, seeded = (
        load_file(trained(rows, tmp_path / name, *flags, *more) / "model.safetensors")
        for name, more in {
            "one": [],
            "other": ["--dataloader_num_workers", "2", "--dataloader_persistent_workers"],
            "seeded": ["--seed", "1"],
        }.items()
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(not torch.equal(one[name], seeded[name]) for name in one)


def test_batches_are_balanced_on_request(rows, tmp_path):
    unbalanced = datasets.concatenate_datasets([rows.filter(lambda label: label == 0, input_columns="label"), rows])

    class Batches(TrainerCallback):
        def on_train_begin(self, args, state, control, train_dataloader, **kwargs):
            self.seen = [Counter(batch["families"].tolist()) for batch in train_dataloader]

    batches = Batches()
    trained(unbalanced, tmp_path, "--max_steps", "1", "--balance", callbacks=[batches])
    assert len(batches.seen) == 3
    assert all(abs(batch[2] - 10) <= 2 and abs(batch[0] - 5) <= 2 for batch in batches.seen)


def test_bf16_and_memory_order_change_the_result_a_little(rows, tmp_path):
    losses = []
    for name, flags in {"plain": ["--no_channels_last"], "last": [], "bf16": ["--bf16"]}.items():
        out = trained(rows, tmp_path / name, "--max_steps", "2", *flags)
        losses.append(json.loads((out / "training.json").read_text())["final_loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert losses[2] == pytest.approx(losses[0], rel=5e-2) and losses[2] != losses[0]


def test_the_schedule_warms_up_linearly_then_follows_a_cosine(rows, tmp_path):
    out = trained(rows, tmp_path, "--max_steps", "40", "--warmup_steps", "0.1", "--learning_rate", "0.01")
    rates = [entry["learning_rate"] for entry in json.loads((out / "training.json").read_text())["history"]]
    warm_up = [1e-4 + (1 - 1e-4) * step / 3 for step in range(4)]
    cosine = [1e-3 + (1 - 1e-3) * (1 + math.cos(math.pi * step / 36)) / 2 for step in range(1, 37)]
    assert rates == pytest.approx([0.01 * factor for factor in warm_up + cosine])


def test_every_parameter_is_decayed(rows, tmp_path):
    class Groups(TrainerCallback):
        def on_train_begin(self, args, state, control, optimizer, model, **kwargs):
            self.decays = [(group["weight_decay"], len(group["params"])) for group in optimizer.param_groups]
            self.parameters = len(list(model.parameters()))

    groups = Groups()
    trained(rows, tmp_path, "--max_steps", "1", callbacks=[groups])
    assert sum(count for decay, count in groups.decays if decay == 1e-4) == groups.parameters
    assert sum(count for decay, count in groups.decays if decay != 1e-4) == 0


def test_rows_that_cannot_be_trained_on_are_refused(rows, tmp_path):
    with pytest.raises(UsageError, match="generator_family missing"):
        trained(rows.remove_columns("generator_family"), tmp_path)
    with pytest.raises(UsageError, match="got only the label synthetic"):
        trained(rows.filter(lambda label: label == 1, input_columns="label"), tmp_path)
    with pytest.raises(UsageError, match="one full batch of 20 rows, got 10: lower --per_device_train_batch_size"):
        trained(rows.select(range(10)), tmp_path)
    with pytest.raises(UsageError, match=r"got \d: lower --held_out 0\.99, .* or lower --per_device_train_batch_size"):
        trained(rows, tmp_path, "--held_out", "0.99")
    model_args, args = parse_train_args(small(), tmp_path)
    with pytest.raises(UsageError, match="one full batch of 20 rows, got 10"):
        SelfConTrainer(build_model(model_args), args, rows.select(range(10)))
    flags = [*QUIET, "--per_device_train_batch_size", "50", "--dataloader_drop_last"]
    with pytest.raises(UsageError, match="one full batch of 50 rows, got "):
        train_head(rows, build_model(model_args), parse_head_args(flags, tmp_path), dataset_record={})
    swapped = rows.cast_column("label", datasets.ClassLabel(names=["fake", "true"]))
    with pytest.raises(UsageError, match="names real, synthetic, got fake, true"):
        trained(swapped, tmp_path)


def test_tensorboard_gets_the_losses(rows, tmp_path, monkeypatch):
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    out = trained(rows, tmp_path, "--max_steps", "2", "--report_to", "tensorboard")
    (folder,) = (out / "runs").iterdir()
    events = EventAccumulator(str(folder)).Reload()
    history = json.loads((out / "training.json").read_text())["history"]
    got = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert got == [(entry["step"], pytest.approx(entry["loss"], rel=1e-6)) for entry in history]
    assert pickles(out) == []


def test_tensorboard_where_it_is_not_installed_is_explained(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.integrations.integration_utils.is_tensorboard_available", lambda: False)
    with pytest.raises(UsageError, match=r"got tensorboard; install it .*imaginet_hub\[train\]"):
        parse_train_args(small("--report_to", "tensorboard"), tmp_path)


def test_gradient_checkpointing_changes_nothing(rows, run, tmp_path):
    plain, checked = (
        load_file(trained(rows, tmp_path / name, "--max_steps", "2", *flags) / "model.safetensors")
        for name, flags in {"plain": [], "checked": ["--gradient_checkpointing"]}.items()
    )
    assert all(torch.allclose(plain[name].float(), checked[name].float(), atol=1e-6) for name in plain)


def test_publishing_is_refused_with_the_command(rows, tmp_path):
    model_args, args = parse_train_args(small(), tmp_path)
    trainer = SelfConTrainer(build_model(model_args), args, rows)
    with pytest.raises(UsageError, match="hf upload OWNER/NAME FOLDER --exclude 'checkpoint-\\*' 'runs/\\*'"):
        trainer.push_to_hub()


def test_the_folder_says_nothing_of_language_models(run):
    assert "use_cache" not in (run / "config.json").read_text()


def test_training_that_diverges_ends_before_it_is_saved(rows, tmp_path):
    flags = ["--max_steps", "6", "--learning_rate", "1e30", "--logging_steps", "50"]
    with pytest.raises(UsageError, match=r"expected a loss that is a number, got nan by step 2: .*--learning_rate"):
        trained(rows, tmp_path, *flags, "--save_strategy", "steps", "--save_steps", "2")
    assert not list(tmp_path.glob("checkpoint-*")) and not (tmp_path / "model.safetensors").exists()
    with pytest.raises(UsageError, match="got nan by step 6"):
        trained(rows, tmp_path, *flags)
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize(
    "flags",
    [
        ["--optim_args", "abc"],
        ["--optim_args", "momentum=x"],
        ["--adam_beta1", "2", "--optim", "adamw_torch"],
        ["--optim", "adamw_bnb_8bit"],
        ["--lr_scheduler_type", "cosine_with_min_lr"],
        ["--lr_scheduler_type", "warmup_stable_decay"],
        ["--lr_scheduler_kwargs", '{"abc":1}'],
    ],
)
def test_optimisers_and_schedules_that_cannot_be_made_are_explained(flags, rows, tmp_path):
    with pytest.raises(UsageError, match=f"expected flags that fit together, got .*{flags[-2]} ") as caught:
        trained(rows, tmp_path, "--max_steps", "1", *flags)
    assert "\n" not in str(caught.value)


def test_a_last_batch_of_one_image_is_refused_at_the_start(rows, tmp_path):
    one_more = datasets.concatenate_datasets([rows, rows.select([0])])
    with pytest.raises(UsageError, match="got 41 rows in batches of 20: pass --dataloader_drop_last"):
        trained(one_more, tmp_path, "--dataloader_drop_last", "false", "--num_train_epochs", "1")


@pytest.mark.parametrize("flags", [["--crop_size", "33"], ["--crops_per_image", "2"], ["--freeze_batchnorm"]])
def test_but_not_where_batchnorm_can_normalise_it(flags, rows, tmp_path):
    one_more = datasets.concatenate_datasets([rows, rows.select([0])])
    out = trained(one_more, tmp_path, "--dataloader_drop_last", "false", "--num_train_epochs", "1", *flags)
    assert json.loads((out / "training.json").read_text())["steps"] == 3


def test_a_head_is_refused_one_image_where_its_own_batchnorm_would_get_it(rows, tmp_path):
    one_more = datasets.concatenate_datasets([rows, rows.select([0])])
    encoder = build_model(parse_train_args(small(), tmp_path)[0])
    flags = [*QUIET, "--crop_size", "40", "--processor_crop_size", "40", "--per_device_train_batch_size", "20"]
    flags += ["--held_out", "0", "--num_train_epochs", "1", "--no_balance"]
    with pytest.raises(UsageError, match="got 41 rows in batches of 20: pass --dataloader_drop_last"):
        train_head(one_more, encoder, parse_head_args(flags, tmp_path), dataset_record={})
    args = parse_head_args([*flags, "--head_type", "l2norm_mlp"], tmp_path)
    out = train_head(one_more, encoder, args, dataset_record={})
    assert json.loads((out / "training.json").read_text())["steps"] == 3


def test_evaluating_gives_the_loss_of_a_data_set(rows, unseen, tmp_path):
    model_args, args = parse_train_args(small("--perturb", "0"), tmp_path)
    trainer = SelfConTrainer(build_model(model_args), args, rows, eval_dataset=unseen)
    found = trainer.evaluate()
    expected = []
    for batch in trainer.get_eval_dataloader():
        with torch.no_grad():
            views = trainer.views(trainer.model.eval(), batch["pixel_values"])
        labels = torch.stack([batch["labels"], batch["families"]], dim=1)
        expected += [imaginet_loss(views, labels, temperature=0.07).item()] * len(labels)
    assert found["eval_loss"] == pytest.approx(sum(expected) / len(expected), rel=1e-4)
    assert trainer.model.training is False and len(expected) == 40
