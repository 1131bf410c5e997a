"""Arithmetics of a detector: which is taken where, and that 16 bits decide as 32 do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from imaginet_hub.cards import dataset_card
from imaginet_hub.cli import main
from imaginet_hub.data.repository import build_repository
from imaginet_hub.errors import UsageError
from imaginet_hub.inference.detector import Detector
from imaginet_hub.inference.measure import measure
from imaginet_hub.precision import CLOSE_CALL, automatic, chosen, close_calls, rounding_noise
from imaginet_hub.selfcon import (
    SelfConImageProcessor,
    SelfConResNetConfig,
    SelfConResNetForImageClassification,
    save_publishable,
)
from tests.conftest import image_bytes, table_rows, write_root

CPU = torch.device("cpu")
SIZE = 32


def network(scale: float = 1.0, classes: int = 2) -> SelfConResNetForImageClassification:
    """A classifier of noise whose logits spread around their means, times `scale`.

    Blocks are not the identity, as they would be at first, so that rounding goes through all of the network.
    """
    torch.manual_seed(0)
    names = {0: "real", 1: "synthetic"} if classes == 2 else {k: f"class {k}" for k in range(classes)}
    config = SelfConResNetConfig(
        backbone="resnet10t",
        stem_stride=2,
        head_hidden_size=32,
        track="detection" if classes == 2 else "identification",
        id2label=names,
    )
    model = SelfConResNetForImageClassification(config).eval()
    for module in model.encoder.backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.weight, 1, 0.1)
    with torch.inference_mode():
        features = model.encoder(pixels(64, seed=9)).pooler_output
        norm = model.classifier[0]
        norm.running_mean.copy_(features.mean(0))
        norm.running_var.copy_(features.var(0))
        last = model.classifier[-1]
        logits = model.classifier(features)
        last.bias -= logits.mean(0)
        last.weight *= scale / logits.std()
        last.bias *= scale / logits.std()
    return model


def pixels(count: int, seed: int = 0) -> torch.Tensor:
    """Noise of several strengths and frequencies, (count, 3, SIZE, SIZE)."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, 3, SIZE, SIZE, generator=generator)
    soft = torch.nn.functional.interpolate(noise[:, :, :4, :4], size=(SIZE, SIZE), mode="bilinear")
    weight = torch.rand(count, 1, 1, 1, generator=generator)
    return weight * noise + (1 - weight) * soft


def detector(model: SelfConResNetForImageClassification, dtype: str = "float32", **options: Any) -> Detector:
    return Detector(model, SelfConImageProcessor(crop_size=SIZE), device="cpu", dtype=dtype, **options)


def plain(model: SelfConResNetForImageClassification, inputs: torch.Tensor) -> torch.Tensor:
    """The reference: the model's own forward in float32, one image after another."""
    with torch.inference_mode():
        return torch.cat([model(pixel_values=one[None]).logits for one in inputs])


@pytest.mark.parametrize(
    ("device", "capabilities", "expected"),
    [
        ("cpu", {"amx_bf16": True, "avx512_bf16": True}, "bfloat16"),
        ("cpu", {"amx_bf16": True}, "bfloat16"),
        ("cpu", {"amx_bf16": False, "avx512_bf16": True}, "bfloat16"),
        ("cpu", {"amx_bf16": False, "avx512_bf16": False, "avx512_f": True, "avx2": True}, "float32"),
        ("cpu", {"architecture": "aarch64", "neon": True, "bf16": True}, "float32"),  # not measured
        ("cpu", {}, "float32"),
        ("cuda", {"bfloat16": True}, "bfloat16"),
        ("cuda", {"bfloat16": False}, "float32"),
        ("cuda", {"avx512_bf16": True}, "float32"),  # the host's
        ("mps", {"bfloat16": True}, "float32"),
        ("xpu", {}, "float32"),
    ],
)
def test_what_auto_takes(device: str, capabilities: dict[str, Any], expected: str) -> None:
    assert automatic(device, capabilities) == expected


def test_auto_asks_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for has, expected in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has=has: {"avx512_bf16": has})
        assert chosen("auto", CPU) == expected
        assert detector(network(), "auto").dtype == expected


def test_what_is_asked_for_is_taken_or_refused() -> None:
    assert chosen("float32", CPU) == "float32" and chosen("bfloat16", CPU) == "bfloat16"
    with pytest.raises(UsageError, match="float16 needs a CUDA device, got cpu; use bfloat16"):
        detector(network(), "float16")
    with pytest.raises(UsageError, match="expected auto, float32, bfloat16 or float16, got 'int8'"):
        detector(network(), "int8")
    with pytest.raises(UsageError, match="meta does not have it"):
        chosen("bfloat16", torch.device("meta"))


def test_close_calls() -> None:
    far = 2 * CLOSE_CALL
    rows = [[0, far, 0], [0, 0.9 * CLOSE_CALL, -9], [3, 3, -9], [np.nan, 0, 0], [np.inf, np.inf, 0], [0, far, 0]]
    noise = torch.tensor([1.0] * 5 + [np.nan])
    assert close_calls(torch.tensor(rows), noise).tolist() == [False, True, True, True, True, True]
    assert close_calls(torch.tensor(rows[:2]), torch.tensor([2.1, 0.8])).tolist() == [True, False]
    assert close_calls(torch.tensor([[float("inf"), 0.0], [0.0, float("-inf")]]), noise[:2]).tolist() == [True, True]
    assert close_calls(torch.zeros(0, 2), noise[:0]).tolist() == []


def test_rounding_noise_is_the_root_mean_square_of_a_linear_head() -> None:
    """Of a linear head with weights a and b the difference moves by half a unit times |(a - b) f|, however scaled."""
    weights, features = torch.randn(3, 512), torch.rand(6, 512) + 0.5
    for dtype, unit in (("bfloat16", 2**-8), ("float16", 2**-11)):
        noise = rounding_noise(lambda given: given @ weights.T, features, dtype)
        top = (features @ weights.T).topk(2, dim=1).indices
        expected = unit * ((weights[top[:, 0]] - weights[top[:, 1]]) * features).norm(dim=1)
        assert ((noise / expected > 0.4) & (noise / expected < 1.8)).all()  # of eight draws
        scaled = rounding_noise(lambda given: 100 * given @ weights.T, features, dtype)
        torch.testing.assert_close(scaled, 100 * noise, rtol=0.05, atol=0)


@pytest.mark.parametrize(("scale", "classes"), [(3.0, 2), (3.0, 5), (0.02, 2), (0.02, 5)])
def test_decisions_are_those_of_float32(scale: float, classes: int) -> None:
    model, inputs = network(scale, classes), pixels(200)
    expected = plain(model, inputs)
    assert len(expected.argmax(1).unique()) == classes  # there is something to decide
    quick = detector(model, "bfloat16")
    found = torch.cat([quick.logits(part) for part in inputs.split(16)])
    assert found.argmax(1).equal(expected.argmax(1))
    once = torch.cat([quick.logits(part, second_look=False) for part in inputs.split(16)])
    changed = once.argmax(1) != expected.argmax(1)
    assert changed.any()  # the second look is needed ...
    close = (found != once).any(1)
    assert close[changed].all()
    assert 0 < close.float().mean() < 0.7  # ... whatever the scale of the logits, and spares rows
    torch.testing.assert_close(found[close], expected[close], rtol=1e-3, atol=1e-3 * scale)
    assert found[~close].equal(once[~close])


def test_only_close_calls_are_looked_at_again() -> None:
    model, inputs = network(3.0), pixels(16)
    quick, seen = detector(model, "bfloat16"), []
    hook = model.encoder.register_forward_pre_hook(lambda module, given: seen.append(tuple(given[0].shape)))
    close = int((quick.logits(inputs, second_look=False) != quick.logits(inputs)).any(1).sum())
    assert 0 < close < 16
    seen.clear()
    quick.logits(inputs)
    assert seen == [(16, 3, SIZE, SIZE), (close, 3, SIZE, SIZE)]
    seen.clear()
    detector(model).logits(inputs)
    assert seen == [(16, 3, SIZE, SIZE)]
    hook.remove()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_row_does_not_depend_on_its_batch(dtype: str) -> None:
    model, inputs = network(3.0), pixels(48)
    quick = detector(model, dtype)
    together, reverse = quick.logits(inputs), quick.logits(inputs.flip(0)).flip(0)
    alone = torch.cat([quick.logits(part) for part in inputs.split(1)])
    assert together.argmax(1).equal(alone.argmax(1)) and together.argmax(1).equal(reverse.argmax(1))
    # Float error, of the arithmetic that was used; beside the margin that close calls are given.
    tolerance = 1e-4 if dtype == "float32" else CLOSE_CALL / 2
    torch.testing.assert_close(together, alone, rtol=0, atol=tolerance)
    torch.testing.assert_close(together, reverse, rtol=0, atol=tolerance)


def test_float32_and_its_layout_change_nothing() -> None:
    model, inputs = network(), pixels(8)
    expected = plain(model, inputs)
    ours = detector(model)
    assert model.encoder.backbone.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(ours.logits(inputs), expected, rtol=1e-4, atol=1e-4)
    halved = detector(network().to(torch.bfloat16))  # a folder may hold such weights
    assert halved.logits(inputs).dtype == torch.float32
    assert ours.logits(inputs).dtype == detector(model, "bfloat16").logits(inputs).dtype == torch.float32


def test_overflow_is_answered_in_float32() -> None:
    model, inputs = network(), pixels(4)
    expected = plain(model, inputs)
    quick = detector(model, "bfloat16")
    features = quick._features

    def overflowing(encoder: Any, given: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        return features(encoder, given) * (1 if dtype is None else torch.inf)

    quick._features = overflowing  # type: ignore[method-assign]
    torch.testing.assert_close(quick.logits(inputs), expected, rtol=1e-4, atol=1e-4)


def test_compiled_for_any_batch_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a compiler that only counts, since a real one takes half a minute."""
    compiled = []

    def count(graph: Any, example: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module: real(module, backend=count))
    model, inputs = network(3.0), pixels(8)
    quick = detector(model, "bfloat16", compile=True)
    assert quick.compiled and "compiled" in quick.how
    for size in (8, 3, 1, 5):
        assert quick.logits(inputs[:size]).argmax(1).equal(plain(model, inputs[:size]).argmax(1))
    assert len(compiled) == 1


def test_failures_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    images = [Image.new("RGB", (SIZE, SIZE))] * 3
    quick = detector(network())
    for error in (
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    ):
        monkeypatch.setattr(quick, "_features", lambda *a, error=error: (_ for _ in ()).throw(error))
        with pytest.raises(UsageError, match=r"^3 images at a time do not fit .* of cpu .*; lower --batch-size$"):
            quick(images)
    monkeypatch.setattr(quick, "_features", lambda *a: (_ for _ in ()).throw(RuntimeError("something else")))
    with pytest.raises(RuntimeError, match="something else"):
        quick(images)

    def broken(graph: Any, example: Any) -> Any:
        raise RuntimeError("no compiler found")

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module: real(module, backend=broken))
    with pytest.raises(
        UsageError, match=r"the model cannot be compiled here .no compiler found.; leave --compile out"
    ):
        detector(network(), compile=True)(images)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("models") / "detector"
    return save_publishable(network(), SelfConImageProcessor(crop_size=SIZE), target)


def test_predict_says_which_arithmetic(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    for number in range(5):
        (tmp_path / f"{number}.png").write_bytes(image_bytes(number))
    command = ["predict", str(folder), str(tmp_path), "--device", "cpu", "--json"]
    reduced = "imaginet predict: bfloat16 autocast, channels_last, cpu; close calls again in float32\n"
    labels = []
    for more, line in (
        ([], reduced),
        (["--dtype", "auto"], reduced),
        (["--dtype", "bfloat16"], reduced),
        (["--dtype", "float32"], "imaginet predict: float32, channels_last, cpu\n"),
        (["--quiet"], ""),
    ):
        assert main([*command, *more]) == 0
        captured = capsys.readouterr()
        assert captured.err == line
        labels.append([json.loads(answer)["label"] for answer in captured.out.splitlines()])
    assert len(labels[0]) == 5 and all(answers == labels[0] for answers in labels)
    assert main([*command, "--dtype", "float16"]) == 2
    assert "needs a CUDA device" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command, "--dtype", "float64"])


def test_evaluate_is_in_float32_and_says_so(folder: Path, tmp_path: Path) -> None:
    root = write_root(tmp_path / "root", table_rows())
    dataset = tmp_path / "dataset"
    build_repository(root, dataset, render_card=dataset_card)
    command = ["evaluate", str(folder), str(dataset), "--device", "cpu", "--quiet", "--out"]
    assert main([*command, str(tmp_path / "a.json")]) == 0
    assert main([*command, str(tmp_path / "b.json"), "--dtype", "bfloat16"]) == 0
    first, second = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json"))
    facts = {"compiled": False, "device": "cpu", "torch": torch.__version__.partition("+")[0]}
    for found, dtype in ((first, "float32"), (second, "bfloat16")):
        model = found["model"]
        model["torch"] = model["torch"].partition("+")[0]
        assert {key: model[key] for key in ("dtype", *facts)} == {"dtype": dtype, **facts}
    assert first["confusion"] == second["confusion"]
    loaded = Detector.from_pretrained(folder, device="cpu", dtype="bfloat16")
    assert measure(loaded, dataset, tmp_path / "c.json", progress=False).model["dtype"] == "bfloat16"
