"""What `imaginet train` takes: the recipe, presets, flags and files of flags, and what it says to the rest."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from imaginet_hub.errors import DataNotFoundError, ImagiNetError, UsageError
from imaginet_hub.selfcon import SelfConResNetConfig
from imaginet_hub.training.arguments import (
    _EVALUATION,
    _FIXED,
    _RANGES,
    HEAD_PRESETS,
    PRESETS,
    UPLOAD,
    HeadTrainingArguments,
    SelfConModelArguments,
    SelfConTrainingArguments,
    parse_head_args,
    parse_train_args,
)

QUIET = ["--disable_tqdm", "true", "--use_cpu", "true", "--bf16", "false"]


def parsed(tmp_path, *flags, preset=()):
    return parse_train_args([*QUIET, *preset, *flags], tmp_path)


def from_file(tmp_path, text, *flags, name="flags.yaml"):
    (tmp_path / name).write_text(text, encoding="utf-8")
    return parsed(tmp_path, "--config", str(tmp_path / name), *flags)


def test_the_defaults_are_the_papers_recipe(tmp_path):
    model_args, args = parsed(tmp_path)
    assert dataclasses.asdict(model_args) == {
        "backbone": None, "stem_stride": None, "exit_stages": None, "projection_dim": None, "init": "timm"
    }  # fmt: skip
    config = SelfConResNetConfig()
    assert (config.backbone, config.stem_stride, config.exit_stages, config.projection_dim) == (
        "resnet50",
        1,
        (2,),
        128,
    )
    expected = {
        "per_device_train_batch_size": 200,
        "mini_batch_size": 90,
        "num_train_epochs": 400,
        "learning_rate": 0.005,
        "warmup_steps": 10 / 400,
        "lr_scheduler_type": "cosine_warmup_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr_rate": 1e-3, "warmup_lr_rate": 1e-4},
        "optim": "sgd",
        "optim_args": "momentum=0.9",
        "weight_decay": 1e-4,
        "max_grad_norm": 0,
        "temperature": 0.07,
        "objective": "imaginet",
        "crop_size": 96,
        "perturb": 0.5,
        "rotate": 0.33,
        "flip": 0.33,
        "balance": False,
        "held_out": 0,
        "seed": 42,
        "gradient_accumulation_steps": 1,
        "dataloader_drop_last": True,
        "crops_per_image": 1,
        "freeze_batchnorm": False,
        "report_to": [],
        "save_strategy": "no",
    }
    assert {name: getattr(args, name) for name in expected} == expected
    assert parsed(tmp_path, "--preset", "paper")[1].to_dict() == args.to_dict()


def test_the_heads_defaults_are_upstreams_recipe(tmp_path):
    args = parse_head_args(QUIET, tmp_path)
    expected = {
        "per_device_train_batch_size": 200,
        "num_train_epochs": 5,
        "learning_rate": 1e-4,
        "weight_decay": 1e-3,
        "lr_scheduler_type": "constant",
        "head_optimizer": "adam",
        "crop_size": 256,
        "perturb": 0.5,
        "rotate": 0.33,
        "flip": 0.33,
        "head_hidden_size": 1024,
        "head_dropout": 0.2,
        "adapt_batchnorm": True,
        "balance": True,
    }
    assert {name: getattr(args, name) for name in expected} == expected


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_presets_change_the_defaults_and_flags_win(preset, tmp_path):
    parts = parse_train_args(["--disable_tqdm", "true", "--use_cpu", "--preset", preset], tmp_path)
    given = {name: value for part in parts for name, value in vars(part).items()}
    assert {name: given[name] for name in PRESETS[preset]} == PRESETS[preset]
    model_args, args = parsed(tmp_path, "--preset", preset, "--learning_rate", "0.5", "--backbone", "resnet18")
    assert args.learning_rate == 0.5 and model_args.backbone == "resnet18"
    head = parse_head_args(["--disable_tqdm", "true", "--use_cpu", "--preset", preset], tmp_path)
    assert {name: getattr(head, name) for name in HEAD_PRESETS[preset]} == HEAD_PRESETS[preset]


@pytest.mark.parametrize("said", ["flag", "file"])
def test_a_preset_leaves_the_network_to_the_model_that_init_names(said, tmp_path):
    (tmp_path / "flags.yaml").write_text("init: somebody/model")
    init = ["--init", "somebody/model"] if said == "flag" else ["--config", str(tmp_path / "flags.yaml")]
    model_args, args = parsed(tmp_path, "--preset", "quick", *init)
    assert dataclasses.asdict(model_args) == {
        "backbone": None, "stem_stride": None, "exit_stages": None, "projection_dim": None, "init": "somebody/model"
    }  # fmt: skip
    assert args.crop_size == PRESETS["quick"]["crop_size"]
    assert parsed(tmp_path, "--preset", "quick", *init, "--backbone", "resnet18")[0].backbone == "resnet18"
    for new in ("timm", "timm:a1_in1k", "weights.safetensors"):
        assert parsed(tmp_path, "--preset", "quick", "--init", new)[0].backbone == "test_resnet"


@pytest.mark.parametrize("flags", [["--optim", "sgd"], ["--optim_args", "momentum=0.5"]])
def test_an_optimiser_that_would_not_be_used_is_refused(flags, tmp_path):
    for kind in ([], ["--head_optimizer", "adamw"]):
        with pytest.raises(UsageError, match=f"expected no {flags[0]} .*: pass --head_optimizer trainer"):
            parse_head_args([*QUIET, *kind, *flags], tmp_path)
    args = parse_head_args([*QUIET, "--head_optimizer", "trainer", *flags], tmp_path)
    assert str(getattr(args, flags[0].removeprefix("--")).lower()).endswith(flags[1])


@pytest.mark.parametrize(
    ("flags", "beta2"),
    [
        ([], 0.999),
        (["--head_optimizer", "adamw"], 0.99),
        (["--head_optimizer", "trainer"], 0.999),
        (["--head_optimizer", "adamw", "--adam_beta2", "0.999"], 0.999),
        (["--adam_beta2", "0.99"], 0.99),
    ],
)
def test_the_second_beta_is_the_optimisers_own_unless_it_is_given(flags, beta2, tmp_path):
    assert parse_head_args([*QUIET, *flags], tmp_path).adam_beta2 == beta2


YAML = """
# every kind of value
preset: quick
learning_rate: 1e-3
weight_decay: .5
seed: 007
crop_size: 40
balance: no
no_such: &anchor 1
"""


def test_a_file_stands_between_preset_and_flags(tmp_path):
    text = YAML.replace("no_such: &anchor 1\n", "")
    model_args, args = from_file(tmp_path, text, "--crop_size", "64")
    assert args.crop_size == 64, "flags over the file"
    assert args.learning_rate == 1e-3, "the file over the preset"
    assert args.temperature == 0.1, "the preset over the defaults"
    assert (model_args.backbone, args.weight_decay, args.seed, args.balance) == ("test_resnet", 0.5, 7, False)
    _, args = from_file(tmp_path, text, "--preset", "paper")
    assert args.temperature == 0.07 and args.crop_size == 40


@pytest.mark.parametrize("kind", ["json", "yaml"])
def test_files_have_every_kind_of_value(kind, tmp_path):
    values = {
        "exit_stages": [1, 2],
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr_rate": 0.001},
        "bf16": True,
        "save_strategy": "no",
        "mini_batch_size": None,
        "report_to": ["none"],
        "run_name": "2026-01-02",
        "accelerator_config": {"even_batches": True, "gradient_accumulation_kwargs": None},
        "max_steps": 3,
    }
    text = json.dumps(values)
    if kind == "yaml":
        text = """
exit_stages: [1, 2]
lr_scheduler_type: cosine_with_min_lr
lr_scheduler_kwargs:
  min_lr_rate: 1e-3
bf16: true
save_strategy: no
mini_batch_size: null
report_to: [none]
run_name: 2026-01-02
accelerator_config: {even_batches: true, gradient_accumulation_kwargs: null}
max_steps: 3
"""
    (tmp_path / f"flags.{kind}").write_text(text)
    model_args, args = parse_train_args(["--use_cpu", "--config", str(tmp_path / f"flags.{kind}")], tmp_path)
    assert model_args.exit_stages == [1, 2] and args.bf16 is True and args.mini_batch_size is None
    assert args.lr_scheduler_kwargs == {"min_lr_rate": 0.001} and args.save_strategy == "no"
    assert args.report_to == [] and args.run_name == "2026-01-02" and args.max_steps == 3
    assert args.accelerator_config.even_batches is True


def test_an_empty_list_is_a_value(tmp_path):
    assert from_file(tmp_path, "exit_stages: []")[0].exit_stages == []
    assert from_file(tmp_path, "exit_stages: []", "--exit_stages", "3")[0].exit_stages == [3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rte: 1", r"unknown option 'learning_rte': did you mean learning_rate"),
        ("no_channels_last: true", "did you mean channels_last"),
        ("qqqq: 1", "unknown option 'qqqq': see --help"),
        ("config: other.yaml", "unknown option 'config'"),
        ("output_dir: here", "expected no output_dir, since OUT"),
        ("crop_size: null", "expected a value of crop_size, got null"),
        ("backbone: []", r"expected a value of backbone, got \[\]"),
        ("crop_size: big", "invalid int value: 'big'"),
        ("crop_size: [1, 2]", "crop_size|unknown option"),
        ("exit_stages: [[1]]", "expected exit_stages to be a word, a number or a list"),
        ("exit_stages: [1, null]", "expected exit_stages to be a word, a number or a list"),
        ("run_name: !!binary aGFsbG8=", "expected run_name to be a word"),
        ("lr_scheduler_kwargs: {1: 2}", "expected lr_scheduler_kwargs to be"),
        ("bf16: perhaps", "bf16"),
        ("preset: slow", "invalid choice: 'slow'"),
        ("a: 1\na: 2", "'a' is in it twice"),
        ("a: &x 1\nb: *x", "an alias"),
        ("a: &x [*x]", "an alias"),
        ("a: !!python/object/apply:os.system [ls]", "expected YAML or JSON, but"),
        ("- a\n- b", r"expected a mapping NAME: VALUE, got \['a', 'b'\]"),
        ("", "expected a mapping NAME: VALUE, got None"),
        ("text", "expected a mapping NAME: VALUE, got 'text'"),
        ("1: 2", "expected a mapping NAME: VALUE"),
        ("a: [", "expected YAML or JSON, but"),
        ("\t", "expected"),
        ("[" * 100_000, "brackets too deep"),
        ("a: \x00", "expected YAML or JSON, but"),
    ],
)
def test_files_that_cannot_be_used_are_explained(text, message, tmp_path):
    with pytest.raises(UsageError, match=message) as caught:
        from_file(tmp_path, text)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "expected YAML or JSON, but"),
        ("[1]", "expected a mapping"),
        ('{"seed": 1, "seed": 2}', "'seed' is in it twice"),
        ("[" * 100_000, "brackets too deep"),
        ('{"learning_rate": NaN}', "expected --learning_rate to be 0 or more, got nan"),
    ],
)
def test_json_that_cannot_be_used_is_explained(text, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        from_file(tmp_path, text, name="flags.JSON")


def test_what_is_no_file_of_text_is_explained(tmp_path):
    with pytest.raises(DataNotFoundError, match=r"no file .*nowhere\.yaml"):
        parsed(tmp_path, "--config", "nowhere.yaml")
    with pytest.raises(UsageError, match="expected YAML or JSON, but"):
        parsed(tmp_path, "--config", str(tmp_path))
    (tmp_path / "latin.yaml").write_bytes("run_name: café".encode("latin-1"))
    with pytest.raises(UsageError, match="expected YAML or JSON, but"):
        parsed(tmp_path, "--config", str(tmp_path / "latin.yaml"))


def test_booleans_are_flags_in_every_form(tmp_path):
    quiet = ["--use_cpu"]
    assert parse_train_args([*quiet, "--bf16"], tmp_path)[1].bf16 is True
    assert parse_train_args([*quiet, "--bf16", "false"], tmp_path)[1].bf16 is False
    assert parse_train_args([*quiet, "--bf16", "--balance"], tmp_path)[1].balance is True
    assert parse_train_args([*quiet, "--no_channels_last"], tmp_path)[1].channels_last is False
    assert parse_train_args([*quiet, "--no-channels-last"], tmp_path)[1].channels_last is False
    assert parse_train_args(quiet, tmp_path)[1].channels_last is True
    assert parse_train_args([*quiet, "--learning-rate=0.25"], tmp_path)[1].learning_rate == 0.25


@pytest.mark.parametrize(("has", "expected"), [("amx_bf16", True), ("avx512_bf16", True), ("avx2", False)])
def test_bfloat16_is_the_default_where_it_is_hardware(has, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {has: True})
    assert parse_train_args(["--use_cpu"], tmp_path)[1].bf16 is expected
    assert parse_train_args(["--use_cpu", "--bf16", "false"], tmp_path)[1].bf16 is False
    assert parse_train_args(["--use_cpu", "--preset", "quick"], tmp_path)[1].bf16 is False
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert parse_train_args(["--use_cpu", "--bf16"], tmp_path)[1].bf16 is True, "slow, but asked for"


def test_other_schedules_and_optimisers_get_no_foreign_arguments(tmp_path):
    _, args = parsed(tmp_path, "--optim", "adamw_torch", "--lr_scheduler_type", "linear")
    assert args.optim_args is None and not args.lr_scheduler_kwargs


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--learning_rte", "1"], r"unknown option --learning_rte: did you mean --learning[_-]rate"),
        (["--qqqq=1"], "unknown option --qqqq: see --help"),
        (["--preset", "slow"], "invalid choice: 'slow'"),
        (["--crop_size", "big"], "invalid int value: 'big'"),
        (["--stem_stride", "4"], "expected --stem_stride 1 or 2, got 4"),
        (["--per_device_train_batch_size", "1"], "batch of 2 images or more, got 1"),
        (["--push_to_hub"], "upload that folder: hf upload OWNER/NAME FOLDER"),
        (["--lr_scheduler_type", "sawtooth"], "sawtooth"),
        (["--optim", "muon"], "muon"),
        (["--objective", "triplet"], "invalid choice: 'triplet'"),
        (["--label_smoothing_factor", "0.1"], "belongs to a classifier"),
        (["--fp16"], "needs a CUDA device"),
        (["--lr_scheduler_kwargs", "abc"], "expected --lr_scheduler_kwargs to be a mapping as JSON, got abc"),
        (["--activation_checkpointing_kwargs", "abc"], "to be a mapping as JSON, got abc"),
        (["--accelerator_config", "nowhere.json"], r"nowhere\.json"),
        (["--accelerator_config", '{"a": 1}'], "'a'"),
        (["--report_to", "wandb"], r"installed here \(.*tensorboard.*\), got wandb"),
        (["--report_to", "tensorboard", "nope"], "got nope"),
        (["--torch_compile_backend", "nope"], "expected --torch_compile_backend to be one of .*inductor.*, got nope"),
        (["--torch_compile_mode", "nope"], "expected --torch_compile_mode to be one of .*reduce-overhead.*, got nope"),
        (["--dataloader_persistent_workers"], "--dataloader_num_workers of 1 or more"),
        (["--dataloader_prefetch_factor", "2"], "dataloader_num_workers"),
        (["--save_strategy", "best"], "imaginet evaluate"),
    ],
)
def test_flags_that_cannot_be_used_are_explained(flags, message, tmp_path):
    with pytest.raises(UsageError, match=message) as caught:
        parsed(tmp_path, *flags)
    assert "\n" not in str(caught.value)


# Values that a flag does not have by itself.
OTHER = {
    "train_sampling_strategy": "sequential", "neftune_noise_alpha": "5", "fsdp": "full_shard",
    "deepspeed": "zero.json", "parallelism_config": None, "eval_strategy": "steps", "eval_steps": "5",
    "eval_delay": "1", "eval_accumulation_steps": "1", "include_for_metrics": "loss", "label_names": "labels",
    "metric_for_best_model": "loss", "per_device_eval_batch_size": "4", "eval_do_concat_batches": "false",
}  # fmt: skip


@pytest.mark.parametrize("name", [*_FIXED, *_EVALUATION])
def test_what_has_no_effect_here_is_refused_with_a_reason(name, tmp_path):
    value = OTHER.get(name, "true")
    if value is None:
        with pytest.raises(UsageError):
            parsed(tmp_path, f"--{name}", "1")
        return
    reason = "imaginet evaluate" if name in _EVALUATION else f"expected --{name} to be left at"
    with pytest.raises(UsageError, match=reason):
        parsed(tmp_path, f"--{name}", value)
    with pytest.raises(UsageError, match=reason):
        parse_head_args([*QUIET, f"--{name}", value], tmp_path)


@pytest.mark.parametrize("name", _RANGES)
def test_numbers_are_looked_at_before_anything_is_read(name, tmp_path):
    parse = parse_train_args if hasattr(SelfConTrainingArguments, name) else parse_head_args
    kind = SelfConTrainingArguments if parse is parse_train_args else HeadTrainingArguments
    whole = isinstance(getattr(kind, name), int) or name in ("data_seed", "dataloader_prefetch_factor")
    for value in ("-1", "-7") if whole and name not in ("max_steps",) else ("-1", "nan", "-inf"):
        with pytest.raises(UsageError, match=f"expected --{name} to be .*, got {float(value):g}"):
            parse([*QUIET, f"--{name}={value}"], tmp_path)


def plausible(field):
    """A value for a flag, by what the flag starts as."""
    known = {
        "output_dir": None, "lr_scheduler_kwargs": '{"min_lr_rate": 0.1}', "optim_args": "momentum=0.5",
        "logging_strategy": "epoch", "log_level": "info", "log_level_replica": "info", "report_to": "tensorboard",
        "save_strategy": "epoch", "hub_strategy": "end", "init": "random", "objective": "supcon",
        "activation_checkpointing_kwargs": '{"use_reentrant": false}', "lr_scheduler_type": "linear",
        "gradient_checkpointing_kwargs": '{"use_reentrant": false}', "optim": "adamw_torch", "ddp_backend": "gloo",
        "accelerator_config": '{"even_batches": false}', "fsdp_config": '{"min_num_params": 1}',
        "debug": "underflow_overflow",
        "dataloader_multiprocessing_context": "spawn", "torch_compile_backend": "eager", "head_optimizer": "adamw",
        "torch_compile_mode": "default", "stem_stride": "2", "perturb": "0.1",
        "held_out": "0.2", "head_dropout": "0.5", "head_type": "l2norm_mlp",
    }  # fmt: skip
    if field.name in known:
        return known[field.name]
    if "bool" in str(field.type):
        return "true"
    return "1"


@pytest.mark.parametrize("kinds", [(SelfConModelArguments, SelfConTrainingArguments), (HeadTrainingArguments,)])
def test_every_field_is_a_flag_that_works_or_is_refused(kinds, tmp_path):
    parse = parse_train_args if len(kinds) == 2 else parse_head_args
    taken = set()
    for field in [field for kind in kinds for field in dataclasses.fields(kind) if field.init]:
        value = plausible(field)
        if value is None or field.name == "ddp_backend":  # see below
            continue
        needs = ["--dataloader_num_workers", "2"] if field.name.startswith("dataloader_p") else []
        needs += ["--no_adapt_batchnorm"] if field.name == "cache_epochs" else []
        needs += ["--head_optimizer", "trainer"] if len(kinds) == 1 and field.name.startswith("optim") else []
        needs += ["--per_device_train_batch_size", "2"] if field.name != "per_device_train_batch_size" else []
        try:
            result = parse([*QUIET, *needs, f"--{field.name}", value], tmp_path)
        except ImagiNetError as error:
            assert "unknown option" not in str(error) and "\n" not in str(error), field.name
            refused = (*_FIXED, *_EVALUATION, "per_device_train_batch_size", "fp16", "tf32", "liger_kernel_config",
                       "parallelism_config", "label_smoothing_factor")  # fmt: skip
            assert field.name in refused, f"--{field.name} {value}: {error}"
        else:
            parts = result if isinstance(result, tuple) else (result,)
            got = next(getattr(part, field.name) for part in parts if hasattr(part, field.name))
            assert got not in (None, [], ""), field.name
            taken.add(field.name)
    assert len(taken) > 85


def test_the_backend_of_several_processes_does_not_disturb_one(tmp_path):
    assert parsed(tmp_path, "--ddp_backend", "gloo")[1].world_size == 1


def test_publishing_is_a_command_of_its_own(tmp_path):
    with pytest.raises(UsageError) as caught:
        parsed(tmp_path, "--push_to_hub")
    assert UPLOAD in str(caught.value)


def test_arguments_are_a_dataclass_of_transformers(tmp_path):
    args = SelfConTrainingArguments(output_dir=str(tmp_path), use_cpu=True, per_device_train_batch_size=8)
    assert args.to_dict()["temperature"] == 0.07
    assert dataclasses.replace(args, learning_rate=0.5).learning_rate == 0.5
