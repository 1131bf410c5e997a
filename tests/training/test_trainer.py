"""Stage 1 on a few small images: it learns, resumes, and leaves a folder that is clean and loads."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter

import datasets
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from imaginet_hub.errors import DataNotFoundError, ModelError, UsageError
from imaginet_hub.selfcon import SelfConImageProcessor, SelfConResNetForPreTraining, SelfConResNetModel
from imaginet_hub.training.losses import imaginet_loss
from imaginet_hub.training.trainer import (
    PRESETS,
    SelfConModelArguments,
    SelfConTrainingArguments,
    build_model,
    parse_train_args,
    train,
)
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


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(rows, run, tmp_path):
    class StopAfter(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 5

    flags = ["--num_train_epochs", "4", "--save_strategy", "steps", "--save_steps", "3", "--balance"]
    trained(rows, tmp_path, *flags, callbacks=[StopAfter()])
    assert [folder.name for folder in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"], "in the middle of an epoch"
    trained(rows, tmp_path, *flags, "--resume_from_checkpoint", "last")
    expected, got = load_file(run / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    histories = [
        [entry["loss"] for entry in json.loads((out / "training.json").read_text())["history"]]
        for out in (run, tmp_path)
    ]
    assert histories[0] == histories[1]


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


def test_the_defaults_are_the_papers_recipe(tmp_path):
    model_args, args = parse_train_args(QUIET, tmp_path)
    model = build_model(SelfConModelArguments(backbone="resnet18", init="random"))
    assert (model.config.stem_stride, model.config.exit_stages, model.config.projection_dim) == (1, (2,), 128)
    assert model_args.backbone is None and args.crop_size == 96 and args.temperature == 0.07
    assert (args.per_device_train_batch_size, args.num_train_epochs, args.learning_rate) == (200, 400, 0.005)
    assert (args.optim, args.optim_args, args.weight_decay, args.max_grad_norm) == ("sgd", "momentum=0.9", 1e-4, 0)
    assert (args.perturb, args.rotate, args.flip, args.balance) == (0.5, 0.33, 0.33, False)
    assert args.report_to == [] and args.save_strategy == "no"


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


def test_other_schedules_and_optimisers_get_no_foreign_arguments(tmp_path):
    _, args = parse_train_args([*QUIET, "--optim", "adamw_torch", "--lr_scheduler_type", "linear"], tmp_path)
    assert args.optim_args is None and not args.lr_scheduler_kwargs


def test_presets_change_the_defaults_and_flags_win(tmp_path):
    model_args, args = parse_train_args([*QUIET, "--preset", "quick", "--learning_rate", "0.5"], tmp_path)
    assert model_args.backbone == PRESETS["quick"]["backbone"] and args.learning_rate == 0.5
    assert args.per_device_train_batch_size == PRESETS["quick"]["per_device_train_batch_size"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--learning_rte", "1"], r"unknown option --learning_rte: did you mean --learning[_-]rate"),
        (["--qqqq=1"], "unknown option --qqqq: see --help"),
        (["--preset", "slow"], "invalid choice: 'slow'"),
        (["--crop_size", "big"], "invalid int value: 'big'"),
        (["--stem_stride", "4"], "expected --stem_stride 1 or 2, got 4"),
        (["--per_device_train_batch_size", "1"], "batch of 2 images or more, got 1"),
        (["--push_to_hub"], "train into a folder"),
        (["--lr_scheduler_type", "sawtooth"], "sawtooth"),
    ],
)
def test_flags_that_cannot_be_used_are_explained(flags, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        parse_train_args([*QUIET, *flags], tmp_path)


def test_rows_that_cannot_be_trained_on_are_refused(rows, tmp_path):
    with pytest.raises(UsageError, match="generator_family missing"):
        trained(rows.remove_columns("generator_family"), tmp_path)
    with pytest.raises(UsageError, match="got only the label synthetic"):
        trained(rows.filter(lambda label: label == 1, input_columns="label"), tmp_path)
    with pytest.raises(UsageError, match="one full batch of 20 rows, got 10"):
        trained(rows.select(range(10)), tmp_path)
    swapped = rows.cast_column("label", datasets.ClassLabel(names=["fake", "true"]))
    with pytest.raises(UsageError, match="names real, synthetic, got fake, true"):
        trained(swapped, tmp_path)


def test_nothing_to_resume_from_is_an_error(rows, tmp_path):
    with pytest.raises(DataNotFoundError, match="no checkpoint to resume from"):
        trained(rows, tmp_path, "--resume_from_checkpoint", "last")
    with pytest.raises(DataNotFoundError, match="no checkpoint at nowhere"):
        trained(rows, tmp_path, "--resume_from_checkpoint", "nowhere")


def test_weights_can_come_from_a_model_of_the_family(run):
    model = build_model(SelfConModelArguments(init=str(run)))
    saved = load_file(run / "model.safetensors")
    assert model.config.backbone == "test_resnet" and model.config.stem_stride == 2
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())
    with pytest.raises(UsageError, match=r"--backbone test_resnet, which the model of --init has"):
        build_model(SelfConModelArguments(init=str(run), backbone="resnet18"))


def changed(folder, copy, without=(), fields=()):
    """A copy of a model folder without the tensors that start so and with other fields of its configuration."""
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("checkpoint-*"))
    weights = load_file(copy / "model.safetensors")
    left = {name: value for name, value in weights.items() if not name.startswith(tuple(without))}
    save_file(left, copy / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((copy / "config.json").read_text()) | dict(fields)
    (copy / "config.json").write_text(json.dumps(config))
    return copy


def test_heads_that_a_model_of_the_family_lost_are_not_made_up(run, tmp_path):
    heads = ("projector.", "exit_projectors.")
    lost = changed(run, tmp_path / "lost", heads)
    with pytest.raises(ModelError, match=r"e\.g\. exit_projectors.* would be random"):
        build_model(SelfConModelArguments(init=str(lost)))
    assert build_model(SelfConModelArguments(init=str(lost), projection_dim=128)).projector, "asked for"
    classifier = changed(run, tmp_path / "classifier", heads, {"track": "detection"})
    model = build_model(SelfConModelArguments(init=str(classifier)))
    assert all(torch.equal(v, load_file(run / "model.safetensors")[f"encoder.{n}"])
               for n, v in model.encoder.state_dict().items())  # fmt: skip
    assert model.config.track is None
    no_exits = changed(classifier, tmp_path / "no_exits", ["encoder.exits."])
    with pytest.raises(ModelError, match=r"e\.g\. encoder\.exits\."):
        build_model(SelfConModelArguments(init=str(no_exits)))


def test_what_a_model_started_from_is_kept(rows, run, tmp_path):
    out = trained(rows, tmp_path, "--max_steps", "1", "--init", str(run))
    record = {"name": "patterns", "images": 40}
    assert json.loads((out / "config.json").read_text())["trained_on"] == {**record, "init": record}
    assert json.loads((out / "training.json").read_text())["dataset"] == record


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        '"text"',
        "{",
        "[" * 100_000,
        '{"model_type": "selfcon_resnet", "backbone": 3}',
        '{"model_type": "selfcon_resnet", "id2label": {"zero": "a"}}',
        '{"model_type": "selfcon_resnet", "id2label": {"0": ["a"]}}',
        '{"model_type": "selfcon_resnet", "dtype": "no_such"}',
        '{"model_type": "selfcon_resnet", "num_labels": 65536, "head_hidden_size": 65536}',
        '{"model_type": "selfcon_resnet", "forget_what_was_asked": 1}',
    ],
    ids=lambda content: content[-40:],
)
def test_configurations_that_cannot_be_read_are_one_line(content, run, tmp_path):
    folder = changed(run, tmp_path / "broken")
    (folder / "config.json").write_text(content)
    with pytest.raises(ModelError) as caught:
        build_model(SelfConModelArguments(init=str(folder)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("weights", [b"", b"no safetensors", None])
def test_weights_that_cannot_be_read_are_one_line(weights, run, tmp_path):
    folder = changed(run, tmp_path / "broken", fields={"projection_dim": 7} if weights is None else ())
    if weights is not None:
        (folder / "model.safetensors").write_bytes(weights)
    with pytest.raises(ModelError) as caught:
        build_model(SelfConModelArguments(init=str(folder)))
    assert "\n" not in str(caught.value)


def test_weights_can_come_from_a_plain_resnet(tmp_path):
    tiny = {"backbone": "test_resnet", "stem_stride": 2}
    torch.manual_seed(0)
    source = build_model(SelfConModelArguments(**tiny, init="random")).encoder.backbone
    plain = {name: value.clone() for name, value in source.state_dict().items()} | {"fc.weight": torch.zeros(5, 96)}
    save_file(plain, tmp_path / "plain.safetensors")
    model = build_model(SelfConModelArguments(**tiny, init=str(tmp_path / "plain.safetensors")))
    assert all(torch.equal(value, plain[name]) for name, value in model.encoder.backbone.state_dict().items())
    with pytest.raises(ModelError, match="not those of a resnet18"):
        build_model(SelfConModelArguments(backbone="resnet18", init=str(tmp_path / "plain.safetensors")))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"init": "nowhere.safetensors"}, DataNotFoundError, "no weights at nowhere.safetensors"),
        ({"init": "weights.pth"}, ModelError, "pickles are not read"),
        ({"init": "nowhere"}, DataNotFoundError, "no model at 'nowhere'"),
        ({"init": "timm:no_such_tag"}, ModelError, "has for test_resnet, test_resnet.r160_in1k, got test_resnet.no_such_tag"),
        ({"backbone": "resnet9000"}, ModelError, "resnet9000"),
        ({"exit_stages": [3, 2]}, ModelError, "strictly increasing"),
    ],
)
def test_initialisations_that_are_not_there_are_explained(arguments, error, message):
    with pytest.raises(error, match=message):
        build_model(SelfConModelArguments(**{"backbone": "test_resnet", "stem_stride": 2, **arguments}))


def test_timm_weights_offline_name_the_way_out(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"--init FILE.safetensors"):
        build_model(SelfConModelArguments(backbone="test_resnet", stem_stride=2, init="timm"))


def test_arguments_are_a_dataclass_of_transformers(tmp_path):
    args = SelfConTrainingArguments(output_dir=str(tmp_path), use_cpu=True, per_device_train_batch_size=8)
    assert args.to_dict()["temperature"] == 0.07
