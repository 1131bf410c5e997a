import inspect
import json
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from imaginet_hub.errors import UsageError
from imaginet_hub.training import losses
from imaginet_hub.training.losses import (
    CrossEntropyLoss,
    ImagiNetLoss,
    SelfConLoss,
    SupConLoss,
    cross_entropy_loss,
    imaginet_loss,
    selfcon_loss,
    supcon_loss,
)
from tests.golden import golden

CASES = golden("golden_model_loss")["loss"]


def vectors(batch: int, views: int = 2, dim: int = 6, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(batch, views, dim, generator=generator, dtype=torch.float64), dim=-1).to(dtype)


def by_loops(projections: Tensor, labels: list[int], rows: list[bool], temperature: float = 0.07) -> float:
    """The equation, read aloud: anchors, their positives, everything else; plain floats."""
    views = [
        (label, vector.tolist())
        for image, label, row in zip(projections.double(), labels, rows, strict=True)
        if row
        for vector in image
    ]
    terms = []
    for i, (label, anchor) in enumerate(views):
        positives, total = [], 0.0
        for a, (other, vector) in enumerate(views):
            if a == i:
                continue
            similarity = sum(x * y for x, y in zip(anchor, vector, strict=True)) / temperature
            total += math.exp(similarity)
            if other == label:
                positives.append(similarity)
        if positives:
            terms.append(math.log(total) - sum(positives) / len(positives))
    return sum(terms) / len(terms) if terms else 0.0


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"seed{case['seed']}")
def test_golden_values(case: dict) -> None:
    projections = torch.tensor(case["features"], requires_grad=True)
    labels = torch.tensor(case["labels"])
    temperature = case["temperature"]
    multilabel = imaginet_loss(projections, labels[:, [0, 2]], temperature=temperature)
    multilabel.backward()
    assert projections.grad is not None
    assert multilabel.item() == pytest.approx(case["imaginet_multilabel"], rel=1e-5)
    assert projections.grad.norm().item() == pytest.approx(case["grad_norm_multilabel"], rel=1e-5)
    origin = selfcon_loss(projections, labels[:, 0], temperature=temperature)
    assert origin.item() == pytest.approx(case["selfcon_origin_only"], rel=1e-5)
    alone = selfcon_loss(projections, temperature=temperature)
    assert alone.item() == pytest.approx(case["selfcon_unsupervised"], rel=1e-5)


@pytest.mark.parametrize("views", [1, 2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_equals_triple_loop(seed: int, views: int) -> None:
    projections = vectors(9, views, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (9,), generator=generator)
    every = [True] * 9
    for names, given in ((labels.tolist(), labels), (list(range(9)), None)):
        expected = by_loops(projections, names, every)
        assert selfcon_loss(projections, given).item() == pytest.approx(expected, rel=1e-5)
        assert supcon_loss(projections, given).item() == pytest.approx(expected, rel=1e-5)

    three = torch.randint(0, 2, (9, 3), generator=generator)
    masks = torch.randint(0, 2, (9, 3), generator=generator).bool()
    weights = (1.0, 0.25, 3.0)
    expected = sum(
        weight * by_loops(projections, three[:, c].tolist(), masks[:, c].tolist()) for c, weight in enumerate(weights)
    )
    loss = imaginet_loss(projections, three, weights=weights, row_masks=masks)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_default_masks_take_the_synthetic_rows() -> None:
    projections, origin = vectors(8), torch.tensor([0, 1, 1, 0, 1, 1, 0, 1])
    family = torch.tensor([4, 0, 1, 4, 0, 2, 4, 1])
    synthetic = origin == 1
    expected = selfcon_loss(projections, origin) + 0.5 * selfcon_loss(projections[synthetic], family[synthetic])
    got = imaginet_loss(projections, torch.stack([origin, family], 1), weights=(1, 0.5))
    torch.testing.assert_close(got, expected)
    # What the real rows say in the family column must not matter.
    other = torch.where(synthetic, family, 7)
    torch.testing.assert_close(imaginet_loss(projections, torch.stack([origin, other], 1), weights=(1, 0.5)), got)


@pytest.mark.parametrize(
    ("batch", "views", "labels"),
    [
        (1, 1, [[0, 4]]),
        (1, 1, [[1, 2]]),
        (1, 2, [[1, 2]]),
        (3, 1, [[0, 4], [1, 0], [1, 1]]),  # classes seen once, one view: no positives but for nobody
        (4, 2, [[0, 4]] * 4),
        (4, 1, [[0, 4]] * 4),
        (4, 2, [[1, 3]] * 4),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_finite_at_the_edges(batch: int, views: int, labels: list[list[int]], dtype: torch.dtype) -> None:
    projections = vectors(batch, views, dtype=dtype).requires_grad_()
    loss = imaginet_loss(projections, torch.tensor(labels)) + selfcon_loss(projections)
    loss.backward()
    assert projections.grad is not None
    assert torch.isfinite(loss)
    assert loss >= 0
    assert torch.isfinite(projections.grad).all()


def test_no_synthetic_rows_leave_the_origin_term() -> None:
    projections, labels = vectors(5), torch.tensor([[0, 4]] * 5)
    torch.testing.assert_close(imaginet_loss(projections, labels), selfcon_loss(projections, labels[:, 0]))


def test_extreme_similarities_do_not_overflow() -> None:
    projections = torch.tensor([[[1.0, 0.0]] * 2, [[-1.0, 0.0]] * 2], requires_grad=True)
    right = selfcon_loss(projections, torch.tensor([0, 1]), temperature=1e-3)
    wrong = selfcon_loss(projections.roll(1, 1)[:, :, :], torch.tensor([0, 0]), temperature=1e-3)
    assert right.item() == pytest.approx(0, abs=1e-6)
    assert wrong.item() == pytest.approx(2 / 3 * 2000, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    projections = vectors(16, 2, 32, dtype=dtype)
    labels = torch.arange(16) % 3
    exact = selfcon_loss(projections.double(), labels)
    got = selfcon_loss(projections, labels)
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(exact.item(), rel=1e-5)
    with torch.autocast("cpu", dtype=dtype):
        inside = selfcon_loss(projections, labels)
    assert inside.dtype == torch.float32
    assert inside.item() == got.item()


def test_gradients() -> None:
    projections = vectors(5, 2, 4, dtype=torch.float64).requires_grad_()
    labels = torch.tensor([[0, 4], [1, 0], [1, 1], [1, 0], [0, 4]])
    assert torch.autograd.gradcheck(lambda z: imaginet_loss(z, labels, temperature=0.5), (projections,))
    assert torch.autograd.gradcheck(lambda z: selfcon_loss(z, labels[:, 1], temperature=0.5), (projections,))


def test_order_of_rows_and_views_and_names_of_classes_do_not_matter() -> None:
    projections, labels = vectors(10, 3, dtype=torch.float64), torch.tensor([[i % 2, i % 3] for i in range(10)])
    loss = imaginet_loss(projections, labels)
    rows = torch.randperm(10, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(imaginet_loss(projections[rows], labels[rows]), loss)
    torch.testing.assert_close(imaginet_loss(projections[:, [2, 0, 1]], labels), loss)
    renamed = torch.stack([labels[:, 0], 90 - 7 * labels[:, 1]], dim=1)
    torch.testing.assert_close(imaginet_loss(projections, renamed), loss)


def test_zero_weight_switches_a_term_off() -> None:
    projections, labels = vectors(6), torch.tensor([[i % 2, i % 3] for i in range(6)])
    torch.testing.assert_close(
        imaginet_loss(projections, labels, weights=(1, 0)), selfcon_loss(projections, labels[:, 0])
    )


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"projections": torch.zeros(4, 8)}, "batch, views, dim"),
        ({"projections": torch.zeros(4, 2, 8, dtype=torch.int64)}, "floating-point"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, r"\(4,\)"),
        ({"labels": torch.zeros(4)}, "integer"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"projections": torch.zeros(4, 0, 8)}, "batch, views, dim"),
        ({"projections": torch.zeros(4, 2, 0)}, "batch, views, dim"),
        ({"labels": torch.zeros(4, dtype=torch.complex64)}, "integer"),
        ({"labels": torch.zeros(4, dtype=torch.int64, device="meta")}, "labels on cpu.* got them on meta"),
    ],
)
def test_selfcon_refuses(arguments: dict, word: str) -> None:
    arguments = {"projections": vectors(4), "labels": torch.zeros(4, dtype=torch.int64), **arguments}
    with pytest.raises(UsageError, match=word):
        selfcon_loss(**arguments)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"labels": torch.zeros(4, 4, dtype=torch.int64), "weights": (1.0, 1.0)}, r"\(4, 2\)"),
        ({"labels": torch.zeros(4, dtype=torch.int64)}, r"\(4, 1\)"),
        ({"labels": torch.zeros(4, 0, dtype=torch.int64)}, "at least one label column"),
        ({"labels": torch.zeros(4, 2, dtype=torch.int64, device="meta")}, "got them on meta"),
        ({"row_masks": torch.ones(4, 2, dtype=torch.bool, device="meta")}, "on meta"),
        ({"weights": (1.0, math.nan)}, "weight"),
        ({"weights": (1.0, math.inf)}, "weight"),
        ({"weights": (1.0, -1.0)}, "weight"),
        ({"weights": ()}, "label column"),
        ({"labels": [[0, 0]] * 4}, "a list"),
        ({"labels": torch.tensor([[1, 0], [2, 0], [1, 0], [2, 0]])}, r"origin, 0 for real.*got 1\.\.2"),
        ({"row_masks": torch.ones(4, 2)}, "booleans"),
        ({"row_masks": torch.ones(4, 1, dtype=torch.bool)}, r"\(4, 2\)"),
    ],
)
def test_imaginet_refuses(arguments: dict, word: str) -> None:
    arguments = {"labels": torch.zeros(4, 2, dtype=torch.int64), **arguments}
    with pytest.raises(UsageError, match=word):
        imaginet_loss(vectors(4), **arguments)


@pytest.mark.parametrize("columns", [1, 2, 3, 4])
def test_each_column_counts_one_by_default(columns: int) -> None:
    projections = vectors(12)
    labels = torch.randint(0, 3, (12, columns), generator=torch.Generator().manual_seed(columns))
    labels[:, 0] %= 2
    rows = [[True] * 12] + [(labels[:, 0] == 1).tolist()] * (columns - 1)
    expected = sum(by_loops(projections, labels[:, c].tolist(), rows[c]) for c in range(columns))
    assert imaginet_loss(projections, labels).item() == pytest.approx(expected, rel=1e-5)
    assert imaginet_loss(projections, labels, weights=[1] * columns) == imaginet_loss(projections, labels)
    loss = ImagiNetLoss()
    assert ImagiNetLoss(**json.loads(json.dumps(loss.get_config_dict())))(projections, labels) == loss(
        projections, labels
    )


INTEGERS = [torch.int8, torch.int16, torch.int32, torch.uint8, torch.uint16, torch.uint32, torch.uint64]


@pytest.mark.parametrize("dtype", [*INTEGERS, torch.bool])
def test_labels_of_any_integer_type(dtype: torch.dtype) -> None:
    projections, labels = vectors(8), torch.tensor([[i % 2, i // 2 % 2] for i in range(8)])
    assert imaginet_loss(projections, labels.to(dtype)) == imaginet_loss(projections, labels)
    assert selfcon_loss(projections, labels[:, 1].to(dtype)) == selfcon_loss(projections, labels[:, 1])
    logits = projections[:, 0, :2]
    assert cross_entropy_loss(logits, labels[:, 1].to(dtype)) == cross_entropy_loss(logits, labels[:, 1])


def test_empty_batches_have_no_loss_and_no_gradient() -> None:
    for views in (1, 2):
        projections = torch.zeros(0, views, 4, requires_grad=True)
        labels = torch.zeros(0, 2, dtype=torch.int64)
        loss = imaginet_loss(projections, labels) + selfcon_loss(projections) + supcon_loss(projections, labels[:, 0])
        loss.backward()
        assert loss == 0
        assert projections.grad is not None and projections.grad.shape == (0, views, 4)
    for shape in ((0,), (0, 1), (0, 4)):
        logits = torch.zeros(shape, requires_grad=True)
        loss = cross_entropy_loss(logits, torch.zeros(0, dtype=torch.int64))
        loss.backward()
        assert loss == 0 and logits.grad is not None
    # Rows, but none that a term lets in.
    projections = vectors(3).requires_grad_()
    loss = imaginet_loss(
        projections, torch.ones(3, 1, dtype=torch.int64), row_masks=torch.zeros(3, 1, dtype=torch.bool)
    )
    loss.backward()
    assert loss == 0 and projections.grad is not None and not projections.grad.any()


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("batch", "views", "labels"),
    [(1, 1, [0]), (1, 1, [1]), (3, 1, [0, 1, 1]), (3, 2, [0, 0, 0]), (3, 2, [1, 0, 1]), (2, 1, [0, 1])],
)
def test_what_is_not_finite_is_never_hidden(batch: int, views: int, labels: list[int], wrong: float) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        projections = vectors(batch, views, dtype=dtype)
        projections[0, -1, 2] = wrong
        columns = torch.tensor(labels)[:, None].repeat(1, 2)
        for weights in (None, (1, 0), (0, 0)):
            assert not torch.isfinite(imaginet_loss(projections, columns, weights=weights))
        assert not torch.isfinite(selfcon_loss(projections))
        assert not torch.isfinite(supcon_loss(projections, columns[:, 0]))
    logits = torch.zeros(3, 2)
    logits[1, 0] = math.nan
    assert cross_entropy_loss(logits, torch.tensor([1, 1, 0])).isnan()
    assert cross_entropy_loss(logits[:, 0], torch.tensor([1, 1, 0])).isnan()


def test_vectors_are_not_normalised() -> None:
    projections, labels = vectors(6, dtype=torch.float64), torch.arange(6) % 2
    expected = by_loops(3 * projections, labels.tolist(), [True] * 6, 0.5)
    assert selfcon_loss(3 * projections, labels, temperature=0.5).item() == pytest.approx(expected, rel=1e-9)
    assert expected != pytest.approx(by_loops(projections, labels.tolist(), [True] * 6, 0.5), rel=0.1)


def test_supcon_without_labels_is_simclr() -> None:
    """Chen et al. 2020, equation 1, in float64: the other view among all others, as a classification."""
    projections = vectors(7, 2, dtype=torch.float64)
    flat = torch.cat([projections[:, 0], projections[:, 1]]).numpy()
    similar = flat @ flat.T / 0.07
    np.fill_diagonal(similar, -np.inf)
    partners = similar[np.arange(14), (np.arange(14) + 7) % 14]
    expected = (np.log(np.exp(similar).sum(axis=1)) - partners).mean()
    assert supcon_loss(projections).item() == pytest.approx(expected, rel=1e-9)


def cross_entropy_by_numpy(logits: Tensor, labels: list[int]) -> float:
    """Probabilities first, then the label's; plain float64."""
    z = logits.double().numpy().reshape(len(labels), -1)
    if z.shape[1] == 1:
        synthetic = 1 / (1 + np.exp(-z))
        probabilities = np.concatenate([1 - synthetic, synthetic], axis=1)
    else:
        probabilities = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    return float(np.mean([-np.log(row[label]) for row, label in zip(probabilities, labels, strict=True)]))


@pytest.mark.parametrize("shape", [(9,), (9, 1), (9, 2), (9, 4), (9, 5), (1, 5), (1,)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_cross_entropy_equals_numpy(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(len(shape))
    logits = (3 * torch.randn(shape, generator=generator)).to(dtype)
    classes = max(2, *shape[1:], 2)
    labels = torch.randint(0, classes, shape[:1], generator=generator)
    expected = cross_entropy_by_numpy(logits, labels.tolist())
    for loss in (cross_entropy_loss(logits, labels), CrossEntropyLoss()(logits, labels)):
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert loss.item() == pytest.approx(expected, rel=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert cross_entropy_loss(logits, labels).item() == pytest.approx(expected, rel=1e-5)
    rows = torch.randperm(shape[0], generator=generator)
    torch.testing.assert_close(cross_entropy_loss(logits[rows], labels[rows]), cross_entropy_loss(logits, labels))


def test_one_logit_is_two_of_which_the_first_is_zero() -> None:
    one = torch.tensor([-200.0, -30.0, -1.5, 0.0, 2.0, 40.0, 300.0], dtype=torch.float64, requires_grad=True)
    two = torch.stack([torch.zeros_like(one), one], dim=1)
    for label in (0, 1):
        labels = torch.full((7,), label)
        binary = cross_entropy_loss(one, labels)
        torch.testing.assert_close(binary, cross_entropy_loss(two, labels))
        torch.testing.assert_close(cross_entropy_loss(one[:, None], labels), binary)
        (left,) = torch.autograd.grad(binary, one)
        (right,) = torch.autograd.grad(cross_entropy_loss(two, labels), one, retain_graph=True)
        torch.testing.assert_close(left, right)


def test_cross_entropy_gradients_and_extremes() -> None:
    labels = torch.tensor([1, 0, 1, 1])
    for shape in ((4,), (4, 1), (4, 3)):
        logits = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
        assert torch.autograd.gradcheck(lambda z: cross_entropy_loss(z, labels), (logits,))
        for scale in (1e4, -1e4):
            logits = torch.full(shape, scale, requires_grad=True)
            loss = cross_entropy_loss(logits, labels)
            loss.backward()
            assert logits.grad is not None
            assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()


@pytest.mark.parametrize(
    ("logits", "labels", "word"),
    [
        (torch.zeros(4), torch.tensor([0, 1, 2, 0]), r"0\.\.1 for 2 classes, got 0\.\.2"),
        (torch.zeros(4, 1), torch.tensor([0, -1, 1, 0]), r"got -1\.\.1"),
        (torch.zeros(4, 4), torch.tensor([0, 1, 4, 0]), r"0\.\.3 for 4 classes"),
        (torch.zeros(4, 4), torch.tensor([0, 1, -100, 0]), "real ones among families"),  # torch would pass over it
        (torch.zeros(4, 4), torch.zeros(4), "integer"),
        (torch.zeros(4, 4), torch.zeros(4, 1, dtype=torch.int64), r"shape \(4,\)"),
        (torch.zeros(4, 4), torch.zeros(4, dtype=torch.int64, device="meta"), "got them on meta"),
        (torch.zeros(4, 0), torch.zeros(4, dtype=torch.int64), "classes"),
        (torch.zeros(4, 4, 4), torch.zeros(4, dtype=torch.int64), "classes"),
        (torch.zeros(4, 4, dtype=torch.int64), torch.zeros(4, dtype=torch.int64), "floating-point"),
    ],
)
def test_cross_entropy_refuses(logits: Tensor, labels: Tensor, word: str) -> None:
    with pytest.raises(UsageError, match=word):
        cross_entropy_loss(logits, labels)


@pytest.mark.parametrize("wrong", [-100, -1, 2, 9])
def test_labels_that_nobody_looked_at_make_it_nan(wrong: int) -> None:
    """What a GPU does with labels out of range, where looking first would make it wait."""
    labels = torch.tensor([0, wrong, 1])
    for logits in (torch.zeros(3), torch.zeros(3, 1), torch.zeros(3, 2)):
        assert losses._cross_entropy(logits, labels, 2).isnan()
        assert losses._cross_entropy(logits, labels.clamp(0, 1), 2).item() == pytest.approx(math.log(2))


def test_modules_are_their_functions() -> None:
    projections, labels = vectors(6), torch.tensor([[i % 2, i % 3] for i in range(6)])
    loss = ImagiNetLoss(temperature=0.2, weights=(1.0, 2.0))
    again = ImagiNetLoss(**loss.get_config_dict())
    expected = imaginet_loss(projections, labels, temperature=0.2, weights=(1.0, 2.0))
    torch.testing.assert_close(loss(projections, labels), expected)
    torch.testing.assert_close(again(projections, labels), expected)
    assert SelfConLoss(**SelfConLoss(0.3).get_config_dict()).temperature == 0.3
    torch.testing.assert_close(SelfConLoss(0.3)(projections), selfcon_loss(projections, temperature=0.3))
    assert "2407.20020" in loss.citation
    assert "2106.15499" in SelfConLoss.citation
    assert repr(loss) == "ImagiNetLoss(temperature=0.2, weights=[1.0, 2.0])"
    torch.testing.assert_close(
        SupConLoss(0.3)(projections, labels[:, 1]), supcon_loss(projections, labels[:, 1], temperature=0.3)
    )


@pytest.mark.parametrize("name", losses.__all__)
def test_every_loss_says_what_it_is(name: str) -> None:
    loss = getattr(losses, name)
    if inspect.isclass(loss):
        assert "loss = " in inspect.getdoc(loss) and "20" in inspect.getdoc(loss).splitlines()[0]
        assert "arxiv.org/abs/" in loss.citation
        json.dumps(loss().get_config_dict())
        assert repr(loss(**loss().get_config_dict())) == repr(loss())
    else:
        assert all(f"{part}:" in loss.__doc__ for part in ("Args", "Returns", "Raises"))


@pytest.mark.parametrize(
    "make", [lambda: SelfConLoss(0), lambda: ImagiNetLoss(0.1, (1, -2)), lambda: ImagiNetLoss(weights=[])]
)
def test_modules_refuse_when_they_are_made(make: Callable[[], object]) -> None:
    with pytest.raises(UsageError, match=r"(temperature|weight) >=? 0|a weight"):
        make()
