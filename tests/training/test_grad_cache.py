"""Gradient caching: the loss and the gradients are those of the whole batch, through the real trainer too."""

from __future__ import annotations

import gc
import json
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from transformers import TrainerCallback

from imaginet_hub.errors import UsageError
from imaginet_hub.selfcon import (
    SelfConResNetConfig,
    SelfConResNetForImageClassification,
    SelfConResNetForPreTraining,
)
from imaginet_hub.training.arguments import OBJECTIVES, parse_train_args
from imaginet_hub.training.grad_cache import cached_backward
from imaginet_hub.training.losses import cross_entropy_loss, imaginet_loss, selfcon_loss, supcon_loss
from imaginet_hub.training.trainer import SelfConTrainer, train
from tests.training.conftest import TINY

BATCH = 12
ROW_FLAGS = [
    "--crop_size",
    "40",
    "--perturb",
    "0.5",
    "--per_device_train_batch_size",
    str(BATCH),
    "--logging_steps",
    "1",
]
FLAGS = ["--disable_tqdm", "true", "--use_cpu", "true", "--bf16", "false", *ROW_FLAGS]
FROZEN = "--freeze_batchnorm"


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.freeze()  # each trainer collects garbage, which takes longer than such a step
    yield
    gc.unfreeze()
    torch.set_num_threads(before)


# --- cached_backward by itself


class Toy(nn.Module):
    """A few layers whose output for an image depends on that image alone."""

    def __init__(self, views: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 10), nn.GELU(), nn.LayerNorm(10), nn.Linear(10, 4 * views))
        self.views = views

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.layers(rows).unflatten(1, (self.views, 4)), dim=-1)


def toy(views: int = 2, rows: int = 11):
    torch.manual_seed(0)
    model = Toy(views).double()
    labels = torch.stack([torch.arange(rows) % 2, torch.arange(rows) % 3], dim=1)
    return model, torch.randn(rows, 6, dtype=torch.float64), lambda projections: imaginet_loss(projections, labels)


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(got, expected, rtol: float = 1e-10) -> None:
    """Of every tensor, by the largest number in it."""
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        error = (got[name] - value).abs().max().item()
        assert error <= rtol * max(value.abs().max().item(), 1e-12), f"{name}: off by {error}"


def largest_difference(one, other) -> float:
    """Of two sets of tensors, as a share of their length."""
    assert one.keys() == other.keys()
    flat = [torch.cat([part[name].flatten().double() for name in sorted(one)]) for part in (one, other)]
    return ((flat[0] - flat[1]).norm() / flat[0].norm()).item()


@pytest.mark.parametrize("views", [1, 2, 3])
@pytest.mark.parametrize("sizes", [[11], [4, 4, 3], [5, 5, 1], [1] * 11, [2, 8, 1], [10, 1]], ids=str)
def test_any_split_gives_the_gradient_of_the_whole(sizes, views):
    model, rows, loss_function = toy(views)
    whole = loss_function(model(rows))
    whole.backward()
    expected = gradients(model)
    model.zero_grad()
    loss = cached_backward(model, rows.split(sizes), loss_function)
    assert not loss.requires_grad
    assert loss.item() == pytest.approx(whole.item(), rel=1e-12)
    assert_same(gradients(model), expected)


def test_gradients_are_added_to_those_that_are_there():
    model, rows, loss_function = toy()
    cached_backward(model, rows.split(4), loss_function)
    once = gradients(model)
    cached_backward(model, rows.split(4), loss_function)
    assert_same(gradients(model), {name: 2 * value for name, value in once.items()})


def test_one_mini_batch_at_a_time_has_a_graph():
    model, rows, loss_function = toy()
    seen = []

    def encode(part):
        seen.append((len(part), torch.is_grad_enabled()))
        return model(part)

    cached_backward(encode, rows.split(4), loss_function)
    assert seen == [(4, False), (4, False), (3, False), (4, True), (4, True), (3, True)]


def test_a_scaled_backward_scales_the_gradients_and_not_the_loss():
    model, rows, loss_function = toy()
    loss = cached_backward(model, rows.split(4), loss_function)
    plain = gradients(model)
    model.zero_grad()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaled = cached_backward(
        model, rows.split(4), loss_function, backward=lambda stand_in: scaler.scale(stand_in).backward()
    )
    assert scaled.item() == loss.item()
    assert_same(gradients(model), {name: 1024 * value for name, value in plain.items()})


def test_random_layers_draw_the_same_twice_and_the_generator_ends_where_one_pass_leaves_it():
    model, rows, loss_function = toy()
    model.layers.insert(2, nn.Dropout(0.3))
    parts = rows.split(4)
    torch.manual_seed(5)
    expected_loss = loss_function(torch.cat([model(part) for part in parts]))
    expected_state = torch.get_rng_state()
    expected_loss.backward()
    expected = gradients(model)
    model.zero_grad()
    torch.manual_seed(5)
    loss = cached_backward(model, parts, loss_function)
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-12)
    assert torch.equal(torch.get_rng_state(), expected_state)
    assert_same(gradients(model), expected)


# --- the trainer


class Seen(TrainerCallback):
    """What the first optimiser step is made from."""

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        if not state.global_step:
            self.gradients = gradients(model)
            self.rng = torch.get_rng_state()


def network(objective="imaginet", dtype=torch.float64, backbone="test_resnet", **fields):
    """Small, with BatchNorm layers that have seen something and residual branches that are not zero."""
    torch.manual_seed(0)
    exits = (2, 3) if OBJECTIVES[objective].exits else ()
    fields = {"exit_stages": exits, "projection_dim": 8, "head_hidden_size": 16, "head_dropout": 0.0, **fields}
    config = SelfConResNetConfig(backbone=backbone, stem_stride=2, id2label={0: "real", 1: "synthetic"}, **fields)
    kind = SelfConResNetForImageClassification if OBJECTIVES[objective].classifier else SelfConResNetForPreTraining
    model = kind(config).to(dtype)
    for layer in model.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            for tensor, low, high in [
                (layer.weight, 0.5, 1.5), (layer.bias, -0.3, 0.3),
                (layer.running_mean, -0.3, 0.3), (layer.running_var, 0.5, 1.5),
            ]:  # fmt: skip
                nn.init.uniform_(tensor, low, high)
    return model


def trainer_of(rows, model, out, *flags, objective="imaginet"):
    _, args = parse_train_args([*FLAGS, "--max_steps", "1", "--objective", objective, *flags], out)
    seen = Seen()
    return SelfConTrainer(model, args, rows, callbacks=[seen]), seen


def first_step(rows, model, out, *flags, objective="imaginet", prepare=None):
    """Loss and gradients of the first step, and the buffers after it, of a copy of the model."""
    model = deepcopy(model)
    trainer, seen = trainer_of(rows, model, out, *flags, objective=objective)
    if prepare:
        prepare(trainer)
    torch.manual_seed(3)
    trainer.train()
    seen.buffers = {name: value.clone() for name, value in model.named_buffers()}
    seen.loss = trainer.state.log_history[0]["loss"]
    return seen


def by_hand(rows, model, out, mini, *flags, objective="imaginet", batches=1):
    """The same without the trainer's arithmetic: mini-batches one after another, one graph, one loss."""
    model = deepcopy(model)
    trainer, _ = trainer_of(rows, model, out, *flags, objective=objective)
    model.train()
    if FROZEN in flags:
        for layer in model.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.eval()
    losses = []
    torch.manual_seed(3)
    for _, batch in zip(range(batches), trainer.get_train_dataloader(), strict=False):
        views, labels = [], batch["labels"]
        for pixels in batch["pixel_values"].split(mini):
            crops = pixels if pixels.ndim == 4 else pixels.flatten(0, 1)
            outputs = model(crops.contiguous(memory_format=torch.channels_last))
            if objective == "cross_entropy":
                views.append(outputs.logits)
                continue
            seen = [outputs.projections, *(outputs.exit_projections if objective != "supcon" else ())]
            views.append(torch.cat([view.reshape(len(pixels), -1, view.shape[-1]) for view in seen], dim=1))
        views = torch.cat(views)
        if objective == "cross_entropy":
            losses.append(cross_entropy_loss(views, labels.repeat_interleave(len(views) // len(labels))))
        elif objective == "imaginet":
            both = torch.stack([labels, batch["families"]], dim=1)
            losses.append(imaginet_loss(views, both, temperature=0.07))
        else:
            losses.append({"selfcon": selfcon_loss, "supcon": supcon_loss}[objective](views, labels, temperature=0.07))
    loss = sum(losses) / batches
    loss.backward()
    return loss.item(), gradients(model), {name: value.clone() for name, value in model.named_buffers()}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_with_frozen_batchnorm_every_gradient_is_that_of_the_whole_batch(objective, rows, tmp_path):
    model = network(objective)
    whole = first_step(rows, model, tmp_path, FROZEN, "--mini_batch_size", "0", objective=objective)
    loss, expected, _ = by_hand(rows, model, tmp_path, BATCH, FROZEN, objective=objective)
    assert whole.loss == pytest.approx(loss, rel=1e-6), "logged in float32"
    assert whole.gradients.keys() == {name for name, _ in model.named_parameters()}
    assert_same(whole.gradients, expected)
    assert sum(value.any().item() for value in expected.values()) > 0.9 * len(expected)
    for mini in (6, 5, 11, 1):
        cached = first_step(rows, model, tmp_path, FROZEN, "--mini_batch_size", str(mini), objective=objective)
        assert_same(cached.gradients, expected)
        assert cached.loss == pytest.approx(whole.loss, rel=1e-6)
        assert_same(cached.buffers, dict(model.named_buffers()), 0)
        assert torch.equal(cached.rng, whole.rng), "nothing drew"


@pytest.mark.parametrize(
    ("objective", "backbone"), [*((objective, "test_resnet") for objective in OBJECTIVES), ("imaginet", "resnet10t")]
)
def test_in_training_mode_batchnorm_sees_a_mini_batch_at_a_time(objective, backbone, rows, tmp_path):
    model = network(objective, backbone=backbone)
    for mini in (5, 10):
        loss, expected, buffers = by_hand(rows, model, tmp_path, mini, objective=objective)
        cached = first_step(rows, model, tmp_path, "--mini_batch_size", str(mini), objective=objective)
        assert cached.loss == pytest.approx(loss, rel=1e-6)
        assert_same(cached.gradients, expected, 1e-8)
        assert_same(cached.buffers, buffers)
        counts = {v.item() for name, v in cached.buffers.items() if name.endswith("num_batches_tracked")}
        assert counts == {-(-BATCH // mini)}, "once for each mini-batch"
    _, whole, _ = by_hand(rows, model, tmp_path, BATCH, objective=objective)
    assert largest_difference(whole, expected) > 0.01, "another normalisation is another gradient"


@pytest.mark.parametrize("objective", ["imaginet", "supcon", "cross_entropy"])
def test_crops_of_an_image_stay_together(objective, rows, tmp_path):
    model, crops = network(objective), ("--crops_per_image", "2")
    for flags, mini in (([FROZEN], 5), ([], 5)):
        loss, expected, buffers = by_hand(rows, model, tmp_path, mini, *crops, *flags, objective=objective)
        if flags:
            assert_same(by_hand(rows, model, tmp_path, BATCH, *crops, *flags, objective=objective)[1], expected)
        step = first_step(rows, model, tmp_path, "--mini_batch_size", str(mini), *crops, *flags, objective=objective)
        assert step.loss == pytest.approx(loss, rel=1e-6)
        assert_same(step.gradients, expected, 1e-8)
        assert_same(step.buffers, buffers)


def test_dropout_draws_once_for_each_mini_batch(rows, tmp_path):
    model = network("cross_entropy", head_dropout=0.4)
    loss, expected, _ = by_hand(rows, model, tmp_path, 5, FROZEN, objective="cross_entropy")
    state = torch.get_rng_state()
    cached = first_step(rows, model, tmp_path, FROZEN, "--mini_batch_size", "5", objective="cross_entropy")
    assert cached.loss == pytest.approx(loss, rel=1e-6)
    assert_same(cached.gradients, expected)
    assert torch.equal(cached.rng, state)


@pytest.mark.parametrize("mini", ["0", "5"])
def test_accumulated_gradients_are_the_mean_of_the_batches(mini, rows, tmp_path):
    model = network()
    flags = [FROZEN, "--gradient_accumulation_steps", "2"]
    loss, expected, _ = by_hand(rows, model, tmp_path, BATCH, FROZEN, batches=2)
    step = first_step(rows, model, tmp_path, "--mini_batch_size", mini, *flags)
    assert step.loss == pytest.approx(loss, rel=1e-6)
    assert_same(step.gradients, expected)


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "training"])
@pytest.mark.parametrize("mini", ["0", "5"])
def test_activation_checkpointing_changes_nothing(mini, frozen, rows, tmp_path, recwarn):
    model, flags = network(), ["--mini_batch_size", mini, *([FROZEN] if frozen else [])]
    plain = first_step(rows, model, tmp_path, *flags)
    for reentrant in (False, True):
        how = json.dumps({"use_reentrant": reentrant})
        step = first_step(
            rows, model, tmp_path, *flags, "--activation_checkpointing", "--activation_checkpointing_kwargs", how
        )
        assert step.loss == plain.loss
        assert_same(step.gradients, plain.gradients)
        assert_same(step.buffers, plain.buffers)
    assert not [str(each.message) for each in recwarn if "requires_grad" in str(each.message)]


def test_in_bfloat16_caching_is_within_its_noise(rows, tmp_path):
    model = network(dtype=torch.float32)
    exact = first_step(rows, model, tmp_path, FROZEN, "--mini_batch_size", "0").gradients
    whole = first_step(rows, model, tmp_path, FROZEN, "--mini_batch_size", "0", "--bf16", "true").gradients
    cached = first_step(rows, model, tmp_path, FROZEN, "--mini_batch_size", "5", "--bf16", "true").gradients
    noise = largest_difference(exact, whole)
    assert 1e-4 < noise < 0.2
    assert largest_difference(exact, cached) < 1.5 * noise
    assert largest_difference(whole, cached) < noise


def test_a_loss_scaler_scales_what_is_differentiated(rows, tmp_path):
    def scaled(trainer):
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    model = network()
    plain = first_step(rows, model, tmp_path, FROZEN, "--mini_batch_size", "0")
    for mini in ("0", "5"):
        step = first_step(rows, model, tmp_path, FROZEN, "--mini_batch_size", mini, prepare=scaled)
        assert step.loss == pytest.approx(plain.loss, rel=1e-6)
        assert_same(step.gradients, {name: 1024 * value for name, value in plain.gradients.items()})


def trained(rows, out, *flags):
    arguments = parse_train_args([*FLAGS, *TINY, "--max_steps", "4", "--learning_rate", "0.1", *flags], out)
    folder = train(rows, *arguments, dataset_record={"name": "patterns"})
    history = json.loads((folder / "training.json").read_text())["history"]
    return [entry["loss"] for entry in history], load_file(folder / "model.safetensors")


def test_whole_runs_end_alike(rows, tmp_path):
    losses, weights = trained(rows, tmp_path / "whole", FROZEN, "--mini_batch_size", "0")
    cached_losses, cached_weights = trained(rows, tmp_path / "cached", FROZEN, "--mini_batch_size", "5")
    assert cached_losses == pytest.approx(losses, rel=1e-4) and len(losses) == 4 and losses[0] != losses[-1]
    assert largest_difference(weights, cached_weights) < 1e-5
    moving, _ = trained(rows, tmp_path / "moving", "--mini_batch_size", "0")
    assert moving[-1] != pytest.approx(losses[-1], rel=1e-3)


@pytest.mark.parametrize("mini", ["0", "6"])
def test_a_compiled_step_is_the_same(mini, rows, tmp_path):
    # Traced and differentiated ahead of time as for any backend, but run without a C++ compiler and its minutes.
    model, flags = network(), ["--mini_batch_size", mini]
    compiled = [*flags, "--torch_compile", "--torch_compile_backend", "aot_eager"]
    plain = first_step(rows, model, tmp_path, *flags)
    for more in ([], ["--activation_checkpointing"])[: 1 if mini == "0" else 2]:
        torch._dynamo.reset()
        step = first_step(rows, model, tmp_path, *compiled, *more)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
        assert step.loss == pytest.approx(plain.loss, rel=1e-6)
        assert_same(step.gradients, plain.gradients, 1e-8)
        assert_same(step.buffers, plain.buffers)


@pytest.mark.parametrize("mini", ["1", "11"])
def test_batchnorm_is_not_left_alone_with_one_image(mini, rows, tmp_path):
    with pytest.raises(UsageError, match=f"--mini_batch_size {mini} for a batch of 12: one has 1 image"):
        trainer_of(rows, network(), tmp_path, "--mini_batch_size", mini)
    trainer_of(rows, network(), tmp_path, "--mini_batch_size", mini, FROZEN)


def test_deepspeed_is_refused_where_it_would_step_with_every_mini_batch(rows, tmp_path):
    _, args = parse_train_args([*FLAGS, "--mini_batch_size", "5"], tmp_path)
    args.deepspeed_plugin = object()
    with pytest.raises(UsageError, match="--mini_batch_size 0"):
        SelfConTrainer(network(), args, rows)
