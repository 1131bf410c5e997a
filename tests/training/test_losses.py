import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from imaginet_hub.errors import UsageError
from imaginet_hub.training.losses import ImagiNetLoss, SelfConLoss, imaginet_loss, selfcon_loss
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
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
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


def test_half_precision_is_computed_in_float32() -> None:
    projections = vectors(16, 2, 32, dtype=torch.bfloat16)
    labels = torch.arange(16) % 3
    exact = selfcon_loss(projections.double(), labels)
    got = selfcon_loss(projections, labels)
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(exact.item(), rel=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
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
    ],
)
def test_selfcon_refuses(arguments: dict, word: str) -> None:
    arguments = {"projections": vectors(4), "labels": torch.zeros(4, dtype=torch.int64), **arguments}
    with pytest.raises(UsageError, match=word):
        selfcon_loss(**arguments)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"labels": torch.zeros(4, 4, dtype=torch.int64)}, r"\(4, 2\)"),
        ({"weights": (1.0, -1.0)}, "weight"),
        ({"weights": ()}, "labels"),
        ({"row_masks": torch.ones(4, 2)}, "booleans"),
        ({"row_masks": torch.ones(4, 1, dtype=torch.bool)}, r"\(4, 2\)"),
    ],
)
def test_imaginet_refuses(arguments: dict, word: str) -> None:
    arguments = {"labels": torch.zeros(4, 2, dtype=torch.int64), **arguments}
    with pytest.raises(UsageError, match=word):
        imaginet_loss(vectors(4), **arguments)


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
