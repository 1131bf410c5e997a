"""Cards are rendered, never typed; and nothing in data is more than text in them."""

from __future__ import annotations

import copy
import functools
import importlib.util
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pytest
import yaml
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard, DatasetCardData, ModelCard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from PIL import Image

from imaginet_hub.cards import (
    LICENSES,
    card_metadata,
    check_card,
    dataset_card,
    model_card,
    perturbed_card,
    render_folder,
    write_card,
)
from imaginet_hub.data.loading import open_split
from imaginet_hub.data.repository import build_repository
from imaginet_hub.data.sources import SOURCES
from imaginet_hub.data.withheld import write_redistributable
from imaginet_hub.errors import DataNotFoundError, UsageError
from imaginet_hub.evaluation import evaluate_rows
from imaginet_hub.inference.weights import weights_digest
from tests.conftest import PROJECT, table_rows, write_root

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
RIGHTS = [
    {"license": "CC BY-NC-SA 4.0", "source": "ffhq", "images": 1000, "commercial_use": "no", "redistribution": "yes"},
    {"license": "CC0", "source": "me", "images": 234, "commercial_use": "yes", "redistribution": "yes"},
]
CONFIG: dict[str, Any] = {
    "backbone": "resnet18",
    "stem_stride": 2,
    "track": "detection",
    "id2label": {"0": "real", "1": "synthetic"},
    "trained_on": {"name": "my-dataset", "corpus": "own images", "images": 10},
}


def committed(name: str) -> dict[str, Any]:
    return dict(json.loads((PROJECT / "model_cards" / "results" / f"{name}.json").read_text(encoding="utf-8")))


#: As earlier releases wrote them: without a digest of the weights, and without speed.
RESULTS = committed("detection") | {"speed": None}
RESULTS["model"] = {key: value for key, value in RESULTS["model"].items() if key != "weights"}
AUDIT = json.loads((PROJECT / "dataset_script" / "audit.json").read_text())


def metadata(card: str) -> dict[str, Any]:
    found = card_metadata(card)
    assert found is not None
    return found


def first_line(card: str) -> str:
    """Of text, below the title."""
    return card.split("\n---\n", 1)[1].strip().splitlines()[2]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder as `imaginet train-head` leaves it, but for the weights."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config", "training"):
        (folder / f"{name}.json").write_text(json.dumps(committed(f"detection.{name}")))
    return folder


@pytest.fixture
def built(tmp_path: Path) -> Path:
    folder = tmp_path / "built"
    folder.mkdir()
    shutil.copy(PROJECT / "dataset_script" / "build_report.json", folder)
    return folder


# ---- dataset cards


def test_dataset_card_says_what_the_report_says() -> None:
    card = dataset_card(REPORT)
    assert "| train | 1,234 | 1,000 | 234 | 1 | 2,468 |" in card
    assert "These are not the images of ImagiNet" in card and "[Flickr-Faces-HQ]" in card
    assert metadata(card)["size_categories"] == ["1K<n<10K"]
    assert [config["config_name"] for config in metadata(card)["configs"]] == ["detection", "identification"]
    assert check_card(card, "dataset") == []
    assert DatasetCard(card).data["task_categories"] == ["image-classification"]
    assert "journal = {arXiv preprint arXiv:2407.20020}" in card
    assert 'load_dataset("PATH_OR_REPO", "detection")' in card
    assert 'load_dataset("me/mine", "detection")' in dataset_card(REPORT, repo_id="me/mine")


def test_every_source_that_occurs_is_cited_and_no_other() -> None:
    report = copy.deepcopy(REPORT)
    report["splits"]["train"]["source"] = {source.key: 1 for source in SOURCES}
    card = dataset_card({**report, "corpus": "ImagiNet"})
    rows = [f"| [{source.title}]({source.homepage}) |" for source in SOURCES]
    assert [row in card for row in rows] == [True] * len(SOURCES)
    assert [row in dataset_card(REPORT) for row in rows] == [source.key == "ffhq" for source in SOURCES]


def test_rights_are_shown_by_source_where_the_build_knows_them() -> None:
    old, new = dataset_card(REPORT), dataset_card({**REPORT, "rights": RIGHTS})
    assert "| CC0 | 1,234 |" in old and metadata(old)["license_link"] == "README.md#licences"
    assert "## Licences" in old and "NOTICE" not in old
    assert "| ffhq | CC BY-NC-SA 4.0 | 1,000 | no | yes |" in new and "[NOTICE](NOTICE)" in new
    assert metadata(new)["license_link"] == "NOTICE"
    assert "How to get the rest" not in new


def test_what_is_withheld_is_counted_and_one_command_brings_it() -> None:
    withheld = [{"source": "coco", "license": "Flickr terms", "images": 1500}]
    withheld += [{"source": f"s{n}", "license": "none", "images": 10} for n in range(60)]
    report = {**REPORT, "rights": RIGHTS, "withheld": withheld}
    card = dataset_card(report, repo_id="me/mine")
    assert "2,100 images may not be passed on" in card and "| coco | Flickr terms | 1,500 |" in card
    assert "```bash\nimaginet build ROOT OUT --complete me/mine\n```" in card
    assert "... and 11 more in `build_report.json`" in card
    assert "Nothing: every annotated image is in." not in card
    assert "Lin et al., Microsoft COCO" in card  # cited, though its images are not here
    rebuild = "imaginet build ROOT OUT --complete PATH_OR_REPO --seed 3"
    assert "--complete me/mine --seed 3" in dataset_card({**report, "rebuild": rebuild}, repo_id="me/mine")
    assert "rm " not in dataset_card({**report, "rebuild": f"{rebuild}; rm -rf ~"})
    whole = {"images": 3334, "fingerprint": "e" * 16}
    assert f"3,334 images with the content fingerprint `{'e' * 16}`" in dataset_card({**report, "original": whole})


def test_what_was_selected_is_said() -> None:
    left_out = [{"source": "coco", "license": "Flickr terms", "images": 1500}]
    card = dataset_card({**REPORT, "selected": {"licenses": ["CC0", "CC BY 4.0"], "left_out": left_out}})
    assert "(CC0, CC BY 4.0)" in card and "not chosen: 1,500." in card and "| coco | Flickr terms | 1,500 |" in card


def test_the_audit_is_what_scores_are_to_be_compared_with() -> None:
    silent, card = dataset_card(REPORT), dataset_card(REPORT, AUDIT)
    wanting = "for want of an audit"  # which says nothing of whether there is one elsewhere
    assert wanting in silent and "Compare any score with these" not in silent
    assert "Compare any score with these" in card and wanting not in card
    found = AUDIT["classifier"]["metadata"]["cross_validated"]["balanced_accuracy"]
    said = "{value:.3f} [{low:.3f}, {high:.3f}]".format(**found)
    assert f"| metadata, on unseen images | {said} |" in card
    for finding in AUDIT["verdict"]["findings"]:
        assert finding["text"] in card.replace("\\", "")
    baseline = {"name": "is_png", "text": "is_png predicts real", "balanced_accuracy": found}
    verdict = {"findings": [{"text": f"finding {n}"} for n in range(13)], "baseline": baseline}
    card = dataset_card(REPORT, {**AUDIT, "verdict": verdict})
    assert "finding 9" in card and "finding 10" not in card and "and 3 weaker ones" in card
    assert "file headers alone say: is_png predicts real." in card
    assert "nothing beyond chance" in dataset_card(REPORT, {**AUDIT, "verdict": {"findings": [], "baseline": None}})


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
        assert first_line(card).startswith("**Simulated.**")


# ---- model cards


@pytest.mark.parametrize(
    "trained_on",
    [{"corpus": "mini"}, {"corpus": "own images", "name": "x"}, {"corpus": "own images"}, {}, None],
    ids=["mini", "own", "nameless", "empty", "none"],
)
def test_a_model_not_trained_on_imaginet_says_so_first(trained_on: dict[str, Any] | None) -> None:
    assert "This model was not trained on ImagiNet" in first_line(
        model_card({**CONFIG, "trained_on": trained_on}, None)
    )


def test_one_that_was_does_not() -> None:
    card = model_card({**CONFIG, "trained_on": {"corpus": "ImagiNet", "images": 160000, "split": "train"}}, None)
    assert "not trained on ImagiNet" not in card and "160,000 images" in first_line(card)
    converted = {**CONFIG, "trained_on": {"converted_from": "imaginet_weights.pt", "sha256": "a" * 64}}
    assert first_line(model_card(converted, None)).startswith("Converted from upstream's checkpoint")


def test_a_model_card_has_what_its_files_say() -> None:
    training = committed("detection.training")
    card = model_card(committed("detection.config"), training, [RESULTS], "me/detector", "cc-by-4.0")
    auc, mean = RESULTS["metrics"]["auc"], RESULTS["protocols"]["clean"]["by"]["generator_family"]["mean"]
    assert "| AUC | {value:.3f} [{low:.3f}, {high:.3f}] |".format(**auc) in card
    assert "{value:.3f} [{low:.3f}, {high:.3f}] |".format(**mean["auc"]) in card
    for family in RESULTS["protocols"]["clean"]["by"]["generator_family"]["groups"]:
        assert f"| {family} |" in card
    for content in RESULTS["by"]["content_type"]:
        assert f"| {content} |" in card
    assert (
        f"| steps | {training['steps']} |" in card
        and f"| learning rate | {training['arguments']['learning_rate']} |" in card
    )
    assert "dataloader" not in card and RESULTS["dataset"]["fingerprint"] in card
    assert training["dataset"]["fingerprint"] in card
    assert 'pipeline("image-classification", model="me/detector", trust_remote_code=True)' in card
    assert "published under `cc-by-4.0`" in card and "No licence was stated" not in card
    data = ModelCard(card).data
    assert data["pipeline_tag"] == "image-classification" and data["license"] == "cc-by-4.0"
    assert check_card(card, "model") == []
    # The Hub's index: headline figures of all rows and of each protocol, as the results have them.
    assert data.model_name == "detector"
    found = {(r.dataset_config, r.metric_type): r.metric_value for r in data.eval_results}
    assert len(found) == 6 and found["detection", "roc_auc"] == round(auc["value"], 4)
    assert found["detection-clean", "roc_auc"] == round(mean["auc"]["value"], 4)
    assert {r.dataset_name for r in data.eval_results} == {"dataset (simulated)"}


def test_the_use_is_five_lines_of_python() -> None:
    for track in ("detection", None):
        code = re.search(r"## Use\n\n```python\n(.*?)\n```", model_card({**CONFIG, "track": track}, None), re.S)
        assert code is not None and len([line for line in code[1].splitlines() if line]) <= 5
        compile(code[1], "card", "exec")


def test_weights_without_a_licence_say_so_and_how_to_state_one() -> None:
    card = model_card(CONFIG, None)
    assert "license" not in metadata(card)
    assert "**No licence was stated for the weights**" in card and "imaginet card PATH --license ID" in card


def test_figures_that_are_undefined_are_not_numbers() -> None:
    results = copy.deepcopy(RESULTS)
    results["metrics"]["auc"] = {"value": None, "low": None, "high": None}
    card = model_card(CONFIG, None, [results])
    assert "| AUC | n/a |" in card and check_card(card, "model") == []


def test_results_on_changed_images_are_robustness_not_headlines() -> None:
    changed = copy.deepcopy(RESULTS)
    changed["preprocessing"]["equalize"] = "jpeg:75"
    changed["metrics"]["balanced_accuracy"] = {"value": 0.6, "low": 0.5, "high": 0.7}
    card = model_card(CONFIG, None, [RESULTS, changed])
    assert "| dataset, test | re-encoded as jpeg:75 | 0.600 [0.500, 0.700] |" in card
    assert "### Robustness" in card and "### Robustness" not in model_card(CONFIG, None, [RESULTS])
    assert metadata(card)["model-index"] == metadata(model_card(CONFIG, None, [RESULTS]))["model-index"]


def test_speed_is_a_ratio_with_its_hardware() -> None:
    timed = {
        **{"images_per_second": 10.0, "crop_size": 128, "turns": 6, "batch_size": 8, "device": "a processor"},
        **{"dtype": "float32", "compiled": False, "threads": 2, "torch": "2.15.0"},
        "yardstick": {"name": "resnet50 of timm", "images_per_second": 2.0, "crop_size": 224},
        "ratio": {"value": 5.0, "low": 4.0, "high": 6.0},
    }
    card = model_card(CONFIG, None, [{**RESULTS, "speed": timed}])
    assert "**5.000 [4.000, 6.000]**" in card and "On a processor, float32, 2 threads" in card
    assert "### Speed" not in model_card(CONFIG, None, [RESULTS])


@pytest.mark.parametrize(
    ("init", "base"),
    [
        *(("timm:a1_in1k", "timm/resnet18.a1_in1k"), ("microsoft/resnet-18", "microsoft/resnet-18")),
        *(("random", None), ("encoder", None), ("../../etc/passwd x", None)),
    ],
)
def test_the_first_weights_are_the_base_model_where_they_are_on_the_hub(init: str, base: str | None) -> None:
    assert metadata(model_card(CONFIG, {"model": {"init": init}})).get("base_model") == base


def test_a_dataset_of_the_hub_is_named() -> None:
    assert "datasets" not in metadata(model_card(CONFIG, None))
    hub = {**CONFIG, "trained_on": {"name": "me/mine", "corpus": "own images"}}
    assert metadata(model_card(hub, None))["datasets"] == ["me/mine"]


def test_an_encoder_card_claims_no_classes() -> None:
    card = model_card({**CONFIG, "track": None}, None)
    assert "stage 1" in card and "pipeline_tag" not in metadata(card) and "## Results" not in card


# ---- text out of data

HOSTILE = st.one_of(
    st.text(st.sampled_from("#|`[]()<>*_~$\n\r\t-={}%!@&\\:/. \u202e\u2028\0abw1\"'"), min_size=1, max_size=40),
    st.sampled_from(
        [
            *("# heading", "\n\n# heading\n\n", "---", "\n---\nlicense: mit\n---\n", "[a](https://b.c)", "![a](b)"),
            *("`code`", "```\ncode\n```", "a | b | c", "|---|---|", "<script>alert(1)</script>", "<!-- x", "-->"),
            *("{{ 7 * 7 }}", "{% raw %}", "{# x #}", "https://evil.example/x", "WWW.evil.example", "a@evil.example"),
            *("**bold**", "_em_", "~~no~~", "&lt;b&gt;", "\\[x](y)", "> quote", "1. one", "- one", "[x]: https://e.f"),
            *("$$x$$", "x" * 10_000, "=== ", "    code", "%s %d", "null", "yes", "!!python/object:os.system"),
        ]
    ),
)


@functools.cache
def planted(name: str) -> tuple[str, str]:
    """A dataset's card and a model's with a name wherever data have names."""
    report = copy.deepcopy(REPORT)
    facts = report["splits"]["train"]
    for column in ("content_type", "generator_family", "generator", "source", "license"):
        facts[column] = {name: 3}
    report |= {
        **{"fingerprint": name, "imaginet_hub": name, "carried_columns": [name], "formats": {name: 3}},
        "left_out": [{"path": name, "split": name, "reason": name, "policy": name}],
        "rights": [{"license": name, "source": name, "images": 3, "commercial_use": name, "redistribution": name}],
        "withheld": [{"license": name, "source": name, "images": 3}],
        "rebuild": name,
        "selected": {"licenses": [name], "left_out": [{"license": name, "source": name, "images": 3}]},
    }
    audit = {**AUDIT, "verdict": {"findings": [{"text": name}], "baseline": {"text": name}}}
    results = copy.deepcopy(RESULTS)
    results["dataset"] = {"name": name, "split": name, "fingerprint": name}
    results["by"] = {name: {name: next(iter(RESULTS["by"]["generator"].values()))}}
    for protocol in ("paper", "clean"):
        part = results["protocols"][protocol]
        part["by"]["generator_family"]["groups"] = {name: part["by"]["generator_family"]["groups"]["GAN"]}
        part["remarks"] = [name]
    config = {**CONFIG, "label_column": name, "id2label": {"0": name, "1": "b"}, "track": "identification"}
    config["trained_on"] = {"name": name, name: {name: name}}
    return dataset_card(report, audit), model_card(config, {"stage": name, "model": {"init": name}}, [results])


@functools.cache
def structure(card: str) -> list[tuple[str, str]]:
    """What a Markdown parser makes of a card, but for words and for what is code anyway."""
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(card.split("\n---\n", 1)[1])
    flat = [part for token in tokens for part in (token.children or [token])]
    return [
        (token.type, str(token.attrs)) for token in flat if token.type not in ("text", "softbreak", "text_special")
    ]


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(HOSTILE)
@example("_")
def test_names_are_never_more_than_text(name: str) -> None:
    for card, plain, kind in zip(planted(name), planted("plain name"), ("dataset", "model"), strict=True):
        assert structure(card) == structure(plain) and "\n\n\n" not in card
        assert check_card(card, kind) == []
        assert metadata(card).keys() - {"base_model", "datasets"} == metadata(plain).keys()
        assert "license" not in metadata(card) or metadata(card)["license"] == "other"
        text = re.sub(r"(?ms)^```.*?^```$", "", card.split("\n---\n", 1)[1])
        text = re.sub(r"`[^`\n]*`|\]\(https?://[^)]*\)", "", text)
        assert not re.search(r"(?i)://|\bwww\.|@", text)  # which GitHub and the Hub make links of
        assert max(map(len, card.splitlines())) < 4000
        assert all(character.isprintable() or character == "\n" for character in card)


def test_braces_are_no_templates() -> None:
    for card in planted("{{ 7 * 7 }}{% for x in y %}"):
        assert "{{ 7 * 7 }}".replace("*", "\\*") in card


def test_names_that_mean_nothing_in_markdown_stay_as_they_are() -> None:
    for name in (
        "SD v2.1",
        "DALL-E 3",
        "StyleGAN-XL",
        "has_any_metadata",
        "CC BY-NC-SA 4.0",
        "Ünïcode 画像",
        "a+b (c)",
    ):
        assert f"| {name} |" in planted(name)[0]


# ---- folders


def test_a_folder_gives_its_card_and_keeps_what_a_person_stated(built: Path, model: Path) -> None:
    for folder, kind in ((built, "dataset"), (model, "model")):
        card = write_card(folder)
        plain = metadata(card.read_text(encoding="utf-8"))
        text = card.read_text(encoding="utf-8")
        assert text == render_folder(folder) and check_card(text, kind) == []
        assert "me/name" not in text and "me/name" in render_folder(folder, "me/name")
        stated = {
            "license": "other",
            "license_name": "my-terms",
            "license_link": "https://me.example",
            "language": "en",
        }
        edited = {**metadata(text), **stated}
        card.write_text(f"---\n{yaml.safe_dump(edited)}---\n# my words\n\nAUC 1.000\n", encoding="utf-8")
        again = render_folder(folder)
        assert "AUC 1.000" not in again
        if kind == "dataset":  # its terms are those of each image, whatever somebody wrote
            assert metadata(again) == plain | {"language": "en"}
            continue
        assert metadata(again).items() >= stated.items()
        # Another licence takes the place of all of it but the language.
        new = metadata(render_folder(folder, license="cc-by-4.0"))
        assert new["license"] == "cc-by-4.0" and new["language"] == "en" and "license_name" not in new
        assert write_card(folder, license="mit").read_text() == render_folder(folder)
        assert metadata(render_folder(folder))["license"] == "mit"


def test_the_license_has_to_be_one_that_the_hub_knows(model: Path) -> None:
    with pytest.raises(UsageError, match=r"did you mean cc-by-4\.0"):
        write_card(model, license="CC-BY-4")
    with pytest.raises(UsageError, match="such as owner/name"):
        render_folder(model, "../../x y")
    assert not (model / "README.md").exists()
    assert {"other", "unknown", "cc0-1.0", "apache-2.0"} <= LICENSES


def scored() -> dict[str, Any]:
    """Results of the committed model with the scores of images, which are made up."""
    rng = np.random.default_rng(0)
    rows = [
        {"path": f"secret/{n}.png", "label": ("real", "synthetic")[n % 2], "generator": ("real", "x")[n % 2]}
        for n in range(40)
    ]
    chances = iter(np.clip([n % 2 * 0.3 + 0.7 * rng.random() for n in range(40)], 0, 1))

    def predict(images: Any) -> Any:
        return np.array([[1 - p, p] for p in (next(chances) for _ in images)])

    image = Image.new("RGB", (8, 8))
    found = evaluate_rows(
        ({**row, "image": image} for row in rows),
        predict,
        track="detection",
        names=RESULTS["names"],
        by=["generator"],
        n_resamples=20,
        progress=False,
    )
    found.model, found.dataset = RESULTS["model"], RESULTS["dataset"]
    return found.to_json()


def test_results_that_their_own_scores_contradict_are_refused(model: Path) -> None:
    results = scored()
    write_card(model, results=[results])

    def better(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        changed = copy.deepcopy(results)
        change(changed)
        return changed

    changes: dict[str, Callable[[dict[str, Any]], Any]] = {
        "metrics.auc.value": lambda r: r["metrics"]["auc"].update(value=0.99),
        "metrics.balanced_accuracy.value": lambda r: r["metrics"]["balanced_accuracy"].update(value=0.99),
        "metrics.accuracy.value": lambda r: r["metrics"]["accuracy"].update(value=0.99),
        "recall.real.value": lambda r: r["recall"]["real"].update(value=1.0),
        "confusion": lambda r: r.update(confusion=[[20, 0], [0, 20]]),
        "by.generator.x.metrics.auc.value": lambda r: r["by"]["generator"]["x"]["metrics"]["auc"].update(value=1.0),
        "metrics.": lambda r: r["per_image"][0].update(scores=r["per_image"][1]["scores"]),
    }
    for where, change in changes.items():
        with pytest.raises(UsageError, match=re.escape(f"results: {where}")):
            write_card(model, results=[better(change)])
    write_card(model, results=[better(lambda r: r.update(per_image=None))])  # nothing says otherwise


def save_weights(folder: Path, values: list[float]) -> str:
    """The file format by hand: how long the JSON is, the JSON, the numbers. Returns what results say of it."""
    tensor = np.array(values, "<f4")
    head = json.dumps({"a.b": {"dtype": "F32", "shape": [len(values)], "data_offsets": [0, tensor.nbytes]}}).encode()
    (folder / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + tensor.tobytes())
    return weights_digest([("a.b", tensor)])


def test_results_of_other_weights_are_refused(model: Path) -> None:
    own = save_weights(model, [1.0, 2.0])
    other = weights_digest([("a.b", np.array([1.0, 2.5], "<f4"))])

    def of(**changes: Any) -> dict[str, Any]:
        return {**RESULTS, "model": {**RESULTS["model"], **changes}}

    write_card(model, results=[of(weights=own)])
    before = {path: path.read_bytes() for path in model.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match=f"those of another: weights {other}, not {own}"):
        write_card(model, results=[of(weights=other)])
    with pytest.raises(UsageError, match="kind pipeline"):
        write_card(model, results=[of(kind="pipeline")])
    assert {path: path.read_bytes() for path in model.rglob("*") if path.is_file()} == before
    write_card(model, results=[of()])  # as earlier releases wrote them
    write_card(model, results=[of(weights=own)])
    # What is kept is looked at again, since weights change; new results take its place.
    new = save_weights(model, [3.0])
    with pytest.raises(UsageError, match=r"results/dataset-test\.json: .*evaluate .*, or remove the file"):
        render_folder(model)
    write_card(model, results=[of(weights=new)])
    assert metadata(render_folder(model))["model-index"]
    (model / "model.safetensors").write_bytes(b"x")
    with pytest.raises(UsageError, match="expected weights as safetensors"):
        render_folder(model)


def test_results_are_taken_over_without_the_scores_of_images(model: Path, tmp_path: Path) -> None:
    results = scored()
    file = tmp_path / "on mini.json"
    file.write_text(json.dumps(results))
    write_card(model, results=[file])
    kept = json.loads((model / "results" / "on-mini.json").read_text())
    assert kept["per_image"] is None and kept["metrics"] == results["metrics"]
    assert sorted(path.name for path in model.iterdir()) == ["README.md", "config.json", "results", "training.json"]
    text = (model / "README.md").read_text()
    assert "secret" not in text and f"{results['metrics']['auc']['value']:.3f}" in text
    write_card(model)
    assert (model / "README.md").read_text() == text  # what was taken over stays


def test_results_of_another_model_are_refused_and_nothing_changes(model: Path, built: Path) -> None:
    write_card(model)
    before = {path: path.read_bytes() for path in model.rglob("*") if path.is_file()}
    other = copy.deepcopy(RESULTS)
    other["model"]["trained_on"] = {"corpus": "ImagiNet"}
    for wrong, said in (
        (other, "training data"),
        (committed("identification"), "track identification"),
        ({**RESULTS, "n": 1}, "sum of class_counts"),
        ({}, "schema version"),
    ):
        with pytest.raises(UsageError, match=said):
            write_card(model, results=[RESULTS, wrong])
        assert {path: path.read_bytes() for path in model.rglob("*") if path.is_file()} == before
    with pytest.raises(UsageError, match="expected a model folder"):
        write_card(built, results=[RESULTS])


def test_an_audit_is_taken_over_without_lists_of_images(built: Path, model: Path, tmp_path: Path) -> None:
    whole = copy.deepcopy(AUDIT)
    whole["unreadable"] = [{"path": "secret.png"}]
    whole["duplicates"]["near"]["examples"] = [{"rows": [{"path": "secret.png"}]}]
    for part in whole["scalars"].values():
        part |= {"histogram": {"edges": [1]}, "by_format": {}}
    (tmp_path / "audit.json").write_text(json.dumps(whole))
    write_card(built, audit=tmp_path / "audit.json")
    kept = (built / "audit.json").read_text()
    assert json.loads(kept) == AUDIT and "secret" not in kept
    assert "Compare any score with these" in (built / "README.md").read_text()
    other = copy.deepcopy(AUDIT)
    other["dataset"]["splits"][0]["images"] += 1
    for wrong, folder, said in (
        (other, built, "one of another"),
        ({"rules": 1}, built, "imaginet audit"),
        (AUDIT, model, "expected a dataset"),
    ):
        with pytest.raises(UsageError, match=said):
            write_card(folder, audit=wrong)
    with pytest.raises(DataNotFoundError, match="found none"):
        write_card(built, audit=tmp_path / "none.json")


def test_an_audit_of_another_dataset_is_refused_though_it_has_as_many_images(built: Path) -> None:
    def like(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        audit = copy.deepcopy(AUDIT)
        change(audit)
        return audit

    write_card(built, audit=AUDIT)
    labels = {"n": 480, "n_real": 241, "n_synthetic": 239}
    other = like(lambda a: a["counts"]["by"]["split"].update(test=labels))
    with pytest.raises(UsageError, match="241 real images in its split 'test', not 240"):
        write_card(built, audit=other)
    (built / "audit.json").write_text(json.dumps(other))
    with pytest.raises(UsageError, match=r"remove .*audit\.json"):
        render_folder(built)
    sample = {"n": 48, "n_real": 30, "n_synthetic": 18}
    few = like(lambda a: (a["options"].update(limit=48), a["counts"]["by"]["split"].update(test=sample)))
    write_card(built, audit=few)

    report = json.loads((built / "build_report.json").read_text())
    del report["splits"]["train"]
    report["fingerprint"] = AUDIT["dataset"]["splits"][1]["fingerprint"]
    (built / "build_report.json").write_text(json.dumps(report))
    alone = like(lambda a: a["dataset"]["splits"].pop(0))
    write_card(built, audit=alone)
    alone["dataset"]["splits"][0]["fingerprint"] = "0" * 16
    with pytest.raises(UsageError, match="content fingerprint"):
        write_card(built, audit=alone)


def test_an_audit_is_of_the_very_rows(make_root: Callable[..., Path], tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "ab"]
    for number, folder in enumerate(folders):
        root = make_root(f"root{number}", size=(40 + number, 32))
        build_repository(root, folder, render_card=dataset_card)
    first, second = (audit_of(folder) for folder in folders)
    write_card(folders[0], audit=first)
    with pytest.raises(UsageError, match="of another: content fingerprint"):
        write_card(folders[0], audit=second)


def audit_of(folder: Path) -> dict[str, Any]:
    """The committed audit, as if it were of the whole of this dataset."""
    report = json.loads((folder / "build_report.json").read_text())
    splits = [open_split(folder, split).record() for split in report["splits"]]
    by = {
        split: {
            "n": facts["images"],
            **{f"n_{label}": facts["label"].get(label, 0) for label in ("real", "synthetic")},
        }
        for split, facts in report["splits"].items()
    }
    whole = {key: sum(part[key] for part in by.values()) for key in ("n", "n_real", "n_synthetic")}
    dataset = {"name": "x", "splits": splits}
    return {**AUDIT, "dataset": dataset, "counts": {**whole, "by": {"split": by}, "unreadable": 0}}


def test_a_divided_dataset_keeps_the_audit_of_the_whole(tmp_path: Path) -> None:
    rows = [{**row, "license": "CC0" if n % 3 else "secret", "source": "me"} for n, row in enumerate(table_rows())]
    whole, part = tmp_path / "whole", tmp_path / "part"
    build_repository(write_root(tmp_path / "root", rows), whole, render_card=dataset_card)
    audit = audit_of(whole)
    write_card(whole, audit=audit)
    report = write_redistributable(whole, part, (), dataset_card)
    gone, n = sum(row["images"] for row in report["withheld"]), len(rows)
    assert "for want of an audit" in (part / "README.md").read_text()
    shutil.copy(whole / "audit.json", part)
    card = render_folder(part)
    assert f"of all {n} images, before {gone} were withheld" in card.replace("\n", " ")
    assert "for want of an audit" not in card and "before" not in render_folder(whole).split("## Biases")[1][:800]
    assert "by hand: ask the publisher" in card
    # One of what is here says nothing of the rest; one of something else is refused.
    write_card(part, audit=audit_of(part))
    assert f"of {n - gone} images" in (part / "README.md").read_text()
    more = copy.deepcopy(audit)
    more["dataset"]["splits"][0]["images"] += 1
    with pytest.raises(UsageError, match="of another"):
        write_card(part, audit=more)
    write_card(part, audit=audit)
    assert (part / "README.md").read_text() == card


def test_a_license_is_not_stated_for_all_images_of_a_dataset(built: Path) -> None:
    for call in (render_folder, write_card):
        with pytest.raises(UsageError, match="whose terms are those of each image"):
            call(built, license="mit")
    assert metadata(dataset_card(REPORT, stated={"license": "mit", "language": "en"}))["license"] == "other"


def test_what_no_command_can_fetch_is_said_to_be_got_by_hand() -> None:
    known = {"source": "coco", "license": "Flickr terms", "images": 1500}
    own = {"source": "my camera", "license": "", "images": 34}
    fetches, by_hand = "fetches them from their sources", "ask the publisher"
    for withheld, fetched, asked in (([known], True, False), ([own], False, True), ([known, own], True, True)):
        card = dataset_card({**REPORT, "withheld": withheld})
        assert (fetches in card or "fetches the others from" in card) is fetched and (by_hand in card) is asked
        assert ("put the files under ROOT at the paths" in card) is asked
    assert "| coco | Flickr terms | 1,500 | the command fetches them |" in card
    assert "| my camera |  | 34 | by hand: ask the publisher |" in card and "where 34 of them are" in card


def test_a_perturbed_set_has_a_card_too(tmp_path: Path) -> None:
    law = {
        "crop_side": [256, 1024],
        "size": 256,
        "compression_share": 0.75,
        "compressions": ["jpeg"],
        "quality": [50, 90],
    }
    report = {
        **{
            "rows": 12,
            "split": "test_perturbed",
            "seed": 0,
            "limit": None,
            "imaginet_hub": "0.1.0",
            "digest": "d" * 16,
        },
        **{"build_id": "b" * 16, "law": law, "label": {"synthetic": 12}, "compression": {"jpeg": 12}, "left_out": []},
        **{"license": {"CC0": 12}, "columns_left_out": ["x"], "encoders": {"jpeg": "3", "webp": None}},
        "dataset": {"name": "mine", "split": "test", "fingerprint": "f" * 16, "corpus": "own images"},
    }
    (tmp_path / "perturb_report.json").write_text(json.dumps(report))
    text = write_card(tmp_path, "me/mine").read_text()
    assert text == perturbed_card(report, "me/mine") and check_card(text, "dataset") == []
    assert 'load_dataset("me/mine", "detection", split="test_perturbed")' in text


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "found no build_report.json"),
        ({"config.json": "{"}, "config.json"),
        ({"config.json": "[]"}, "JSON object"),
        ({"config.json": "{}"}, "make them again"),
        ({"build_report.json": "{}"}, "make them again"),
        ({"build_report.json": '{"splits": 3, "corpus": "mini"}'}, "make them again"),
        ({"config.json": "{}", "README.md": "---\na: [\n---\n"}, "repair it"),
        ({"config.json": "{}", "README.md": "---\na: 1\na: 2\n---\n"}, "twice"),
    ],
    ids=["empty", "cut", "list", "other", "other-report", "wrong-types", "yaml", "keys"],
)
def test_folders_of_something_else_are_refused(tmp_path: Path, files: dict[str, str], said: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises((UsageError, DataNotFoundError), match=re.escape(said)):
        write_card(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == files


# ---- what the Hub takes


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("dataset", {"task_categories": ["telling"]}, "task_categories"),
        ("dataset", {"size_categories": ["many"]}, "size_categories"),
        ("dataset", {"license": "mine"}, "license:"),
        ("dataset", {"license": "other", "license_name": None}, "license_name"),
        ("dataset", {"license_link": "javascript:alert(1)"}, "license_link"),
        ("dataset", {"configs": {"a": 1}}, "configs"),
        ("dataset", {"configs": [{"data_files": "x"}]}, "configs"),
        ("dataset", {"configs": [{"config_name": n, "default": True, "data_files": "x"} for n in "ab"]}, "configs"),
        ("dataset", {"language": "English"}, "language"),
        ("dataset", {"tags": ["a", 3]}, "tags"),
        ("model", {"pipeline_tag": "detecting"}, "pipeline_tag"),
        ("model", {"license": ["mit", 3]}, "license:"),
        ("model", {"license_name": "x"}, "license_name"),
        ("model", {"base_model": "a b/c"}, "base_model"),
        ("model", {"datasets": ["a/b/c"]}, "datasets"),
        ("model", {"model-index": [{"name": "x"}]}, "model"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_wrong_metadata_is_named(kind: str, change: dict[str, Any], said: str) -> None:
    card = dataset_card(REPORT) if kind == "dataset" else model_card(CONFIG, None)
    data = {key: value for key, value in {**metadata(card), **change}.items() if value is not None}
    wrong = check_card(f"---\n{yaml.safe_dump(data)}---\n# x\n", kind)
    assert len(wrong) == 1 and said in wrong[0] and "\n" not in wrong[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("# x\n", "got none"),
        ("---\n- a\n---\n# x\n", "mapping"),
        ("---\n---\n# x\n", "got none"),
        ("---\nlicense: mit\nlicense: other\n---\n# x\n", "occurs twice"),
        ("---\na: &x {b: 1, b: 2}\n---\n# x\n", "occurs twice"),
        ("---\na: [\n---\n# x\n", "metadata"),
        ("---\na: !!python/object/apply:os.system [ls]\n---\n# x\n", "metadata"),
        ("---\nlicense: mit\n---\nno title\n", "title"),
    ],
)
def test_broken_cards_are_named(text: str, said: str) -> None:
    for kind in ("dataset", "model"):
        (wrong,) = check_card(text, kind)
        assert said in wrong
    with pytest.raises(UsageError, match="dataset or model"):
        check_card(text, "space")


def test_the_configs_are_those_that_datasets_reads() -> None:
    data = DatasetCardData(**metadata(dataset_card(REPORT)))
    configs = MetadataConfigs.from_dataset_card_data(data)
    assert list(configs) == ["detection", "identification"] and configs.get_default_config_name() == "detection"


# ---- what is in the repository


def test_the_committed_cards_are_rendered_from_the_committed_figures() -> None:
    specification = importlib.util.spec_from_file_location("render", PROJECT / "model_cards" / "render.py")
    assert specification is not None and specification.loader is not None
    render = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(render)
    for file, text in render.cards().items():
        assert file.read_text(encoding="utf-8") == text, f"{file}: run python model_cards/render.py"
        assert check_card(text, "dataset" if file.parent.name == "dataset_script" else "model") == []
        assert "Simulated" in first_line(text)
    picture = PROJECT / "model_cards" / "detection.svg"
    assert picture.stat().st_size < 300_000 and "<image" not in picture.read_text(encoding="utf-8")
