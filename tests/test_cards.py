"""Cards are rendered, never typed."""

from __future__ import annotations

import importlib.util
from typing import Any

import jinja2
import pytest
import yaml
from huggingface_hub import ModelCard

from imaginet_hub.cards import dataset_card, model_card
from tests.conftest import PROJECT

REPORT: dict[str, Any] = {
    "imaginet_hub": "0.1.0",
    "corpus": "own images",
    "fingerprint": "f" * 16,
    "build_id": "b" * 16,
    "images": 1234,
    "formats": {"JPEG": 1000, "PNG": 234},
    "splits": {
        "train": {
            "images": 1234,
            "shards": 1,
            "row_groups": 2,
            "shuffle_buffer_size": 2468,
            "label": {"real": 1000, "synthetic": 234},
            "content_type": {"faces": 1234},
            "generator_family": {"GAN": 234, "real": 1000},
            "generator": {"ProGAN": 234, "real": 1000},
            "source": {"ffhq": 1000, "me": 234},
            "license": {"CC0": 1234},
        }
    },
    "carried_columns": ["group"],
    "repeated_rows": 0,
    "left_out": [],
}
CONFIG: dict[str, Any] = {
    "backbone": "resnet18",
    "stem_stride": 2,
    "track": "detection",
    "id2label": {"0": "real", "1": "synthetic"},
    "trained_on": {"name": "my-dataset", "corpus": "own images", "images": 10},
}
RESULTS: dict[str, Any] = {
    "dataset": {"name": "my-dataset", "split": "test"},
    "n": 40,
    "skipped": [],
    "metrics": {
        "auc": {"value": 0.91234, "low": 0.8, "high": 0.99},
        "tpr_at_fpr_1": {"value": None, "low": None, "high": None},
    },
}


def metadata(card: str) -> dict[str, Any]:
    return dict(yaml.safe_load(card.split("---\n")[1]))


def test_dataset_card_says_what_the_report_says() -> None:
    card = dataset_card(REPORT)
    assert "| train | 1,234 | 1,000 | 234 | 1 | 2,468 |" in card
    assert "These are not the images of ImagiNet" in card and "[Flickr-Faces-HQ]" in card
    assert metadata(card)["size_categories"] == ["1K<n<10K"]
    assert [config["config_name"] for config in metadata(card)["configs"]] == ["detection", "identification"]


def test_a_partial_build_says_so() -> None:
    source = {"split": "test", "source": "a | b<i>", "annotated": 3000, "absent": 2000, "folders": {"x": 2000}}
    row = {"table": "Table 3", "row": "GAN", "absent": 2000, "needed": 2500, "why": "GAN test images"}
    partial = {"annotated": 4000, "absent": 2000, "splits": {}, "sources": [source], "not_comparable": [row]}
    card = dataset_card({**REPORT, "partial": partial})
    assert "2,000 annotated images were not there when this was built; `missing.txt` lists them." in card
    assert "| test | a \\| b&lt;i> | 2,000 | 3,000 |" in card
    assert "| Table 3 | GAN | 2,000 | 2,500 | GAN test images |" in card
    assert "Nothing: every" not in card
    many = [{**source, "source": f"s{n}"} for n in range(70)]
    card = dataset_card({**REPORT, "partial": {**partial, "sources": many}})
    assert "| s49 |" in card and "| s50 |" not in card and "... and 20 more rows" in card
    damaged = [{"path": "x.png", "split": "test", "reason": "truncated", "policy": "on_error"}]
    card = dataset_card({**REPORT, "left_out": damaged, "partial": {**partial, "absent": 1}})
    assert "| x.png | test | truncated | on_error |" in card and "missing.txt" not in card
    assert card.count("not comparable") == 1


def test_a_figure_that_is_missing_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError):
        dataset_card({key: value for key, value in REPORT.items() if key != "fingerprint"})


def test_simulations_are_called_so_first() -> None:
    for card in (
        dataset_card({**REPORT, "corpus": "mini"}),
        model_card({**CONFIG, "trained_on": {"corpus": "mini"}}, None),
    ):
        first = card.split("---\n", 2)[2].strip().splitlines()[2]
        assert first.startswith("**Simulated.**")


def test_a_model_not_trained_on_imaginet_says_so_first() -> None:
    card = model_card(CONFIG, {"steps": 100, "loss": [1, 2]}, [RESULTS])
    assert card.split("---\n", 2)[2].strip().splitlines()[2].startswith("This model was not trained on ImagiNet")
    assert "| auc | 0.912 [0.800, 0.990] |" in card and "| tpr_at_fpr_1 | n/a |" in card
    assert "| steps | 100 |" in card
    assert ModelCard(card).data["pipeline_tag"] == "image-classification"
    assert "not trained on ImagiNet" not in model_card({**CONFIG, "trained_on": {"corpus": "ImagiNet"}}, None)


def test_a_model_card_has_both_protocols() -> None:
    def part(value: float, tested: int) -> dict[str, Any]:
        mean = {"balanced_accuracy": {"value": value, "low": None, "high": None}, "auc": {"value": None}}
        return {"calibration": {"n_tested": tested}, "by": {"generator_family": {"mean": mean}}}

    results = {**RESULTS, "protocols": {"paper": part(0.95, 80), "clean": part(0.875, 0)}}
    card = model_card(CONFIG, None, [results])
    assert "| paper | 0.950 | n/a |" in card and "| clean | 0.875 | n/a |" in card and "(80 here)" in card


def test_an_encoder_card_claims_no_classes() -> None:
    card = model_card({**CONFIG, "track": None}, None)
    assert "stage 1" in card and "pipeline_tag" not in metadata(card)


def test_the_committed_cards_are_rendered_from_the_committed_figures() -> None:
    specification = importlib.util.spec_from_file_location("render", PROJECT / "model_cards" / "render.py")
    assert specification is not None and specification.loader is not None
    render = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(render)
    for file, text in render.cards().items():
        assert file.read_text(encoding="utf-8") == text, f"{file}: run python model_cards/render.py"
