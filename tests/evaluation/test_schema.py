import copy
import importlib.util
import json
import time

import pytest
from jsonschema import Draft202012Validator

from imaginet_hub.errors import MissingExtraError, UsageError
from imaginet_hub.evaluation.comparison import compare_results
from imaginet_hub.evaluation.schema import results_schema, validate
from tests.evaluation import made


@pytest.fixture(scope="module")
def detection_content():
    return made.detection().to_json()


@pytest.fixture(scope="module")
def identification_content():
    return made.identification(3).to_json()


def changed(content, path, value):
    """A copy with one value in place of another; `...` takes the key away."""
    content = copy.deepcopy(content)
    part = content
    for key in path[:-1]:
        part = part[key]
    if value is ...:
        del part[path[-1]]
    else:
        part[path[-1]] = value
    return content


def test_the_schema_is_one_and_describes_every_key():
    schema = results_schema()
    Draft202012Validator.check_schema(schema)

    def undescribed(part, where):
        for key, value in part.get("properties", {}).items():
            here = f"{where}.{key}"
            if not {"description", "$ref"} & value.keys():
                yield here
            yield from undescribed(value, here)
        for key in ("items", "additionalProperties"):
            if isinstance(part.get(key), dict):
                yield from undescribed(part[key], f"{where}.{key}")

    assert list(undescribed(schema, "")) == []
    for name, part in schema["$defs"].items():
        assert part["description"], name
        assert list(undescribed(part, name)) == []
    assert set(schema["required"]) == set(schema["properties"]) - {"speed"}  # which older files lack


def test_results_pass(detection_content, identification_content):
    validate(detection_content)
    validate(identification_content)
    for content in (detection_content, identification_content):
        validate(json.loads(json.dumps(content, allow_nan=False)))
        validate(content | {"per_image": None})


@pytest.mark.parametrize("label", ["real", "synthetic"])
def test_results_of_one_class_pass(label):
    validate(made.one_class(label).to_json())


def test_what_is_open_is_open_and_what_is_optional_may_be_null(detection_content, identification_content):
    validate(
        made.with_protocols(detection_content)
        | {
            "model": {"name": "m", "kind": "pipeline", "fingerprint": None, "label_mapping": {"fake": "synthetic"}},
            "dataset": {"name": "d", "split": "test", "images": 80, "revision": "main"},
            "software": {"torch": "2.15", "numpy": "2.4"},
            "skipped": [{"row": 3, "path": "./3.png", "reason": "truncated"}],
        }
    )
    results, other = made.detection(), made.detection(list(made.rows_of(apart=60)))
    validate(detection_content | {"comparison": json.loads(json.dumps(compare_results(results, other)))})
    interval = {"value": 0.8, "low": 0.7, "high": 0.9}
    unknown = {"score": "distance", "n_known": 160, "n_unknown": 2, "auroc": interval}
    validate(identification_content | {"unknown": unknown, "unknown_classes": {"Imagen": 2}})


WRONG = [
    (("schema_version",), 1, "schema_version: expected 2, got 1"),
    (("track",), "both", "track: expected 'detection' or 'identification', got 'both'"),
    (("extra",), 1, "the file: expected no key extra"),
    (("software",), ..., "the file: expected the keys software as well"),
    (("n",), "80", "n: expected integer, got '80'"),
    (("n",), 81, "n: expected 80, the sum of class_counts, got 81"),
    (("threshold",), None, "threshold: expected number, got None"),
    (("names",), ["real", "fake"], r"names\[1\]: expected 'real' or 'synthetic', got 'fake'"),
    (("names",), ["real", "real"], "names: expected distinct items"),
    (("model", "kind"), "gguf", "model.kind: expected 'selfcon_resnet'"),
    (("preprocessing", "crop_size"), 0, "preprocessing.crop_size: expected at least 1, got 0"),
    (("preprocessing", "equalize"), "jpeg", "preprocessing.equalize: expected text like"),
    (("bootstrap", "confidence"), 95, "bootstrap.confidence: expected exclusiveMaximum 1, got 95"),
    (("skipped",), [{"row": 1, "path": "x"}], r"skipped\[0\]: expected the keys reason as well"),
    (("metrics", "auc", "value"), float("nan"), "metrics.auc.value: expected a finite number, or null"),
    (("metrics", "auc", "low"), float("inf"), "metrics.auc.low: expected a finite number, or null"),
    (("metrics", "auc", "value"), 1.5, "metrics.auc.value: expected at most 1, got 1.5"),
    (("metrics", "nll", "value"), -1, "metrics.nll.value: expected at least 0, got -1"),
    (("metrics", "auc", "p"), 0.1, "metrics.auc: expected no key p"),
    (("metrics", "auc", "high"), ..., "metrics.auc: expected the keys high as well"),
    (("metrics", "f2"), {}, "metrics: expected no key f2"),
    (("metrics", "eer"), ..., "metrics: expected the keys eer as well"),
    (("metrics", "auc"), {"value": 0.5, "low": 0.6, "high": 0.4}, "metrics.auc: expected low <= high"),
    (("metrics", "auc"), {"value": 0.5, "low": None, "high": 0.4}, "metrics.auc: expected both ends or none"),
    (("metrics", "auc"), {"value": None, "low": 0.1, "high": 0.4}, "metrics.auc: expected both ends or none"),
    (("class_counts", "real"), 41, "n: expected 81, the sum of class_counts, got 80"),
    (("class_counts", "fake"), 0, "class_counts: expected the classes real, synthetic"),
    (("recall", "synthetic"), ..., "recall: expected the classes real, synthetic"),
    (("confusion",), [[40, 0]], "confusion: expected 2 rows of 2 counts"),
    (("confusion",), [[40, 0], [40]], "confusion: expected 2 rows of 2 counts"),
    (("confusion", 1), [40, 1], r"confusion\[1\]: expected counts that add up to class_counts.synthetic, 40"),
    (("baselines", "majority", "class"), "fake", "baselines.majority.class: expected one of real, synthetic"),
    (("by", "generator", "SDXL", "n"), 61, r"by.generator.SDXL: expected n_real and n_synthetic that add up to n, 61"),
    (("by", "generator", "SDXL", "n"), 99, r"by.generator.SDXL.n: expected at most n, 80"),
    (("by", "generator", "SDXL", "n_real"), ..., "by.generator.SDXL: expected n_real and n_synthetic"),
    (("by", "generator", "SDXL", "note"), "", "by.generator.SDXL: expected no key note"),
    (("unknown",), {"score": "entropy"}, "unknown.*expected"),
    (("per_image", 3, "scores"), [0.1, 0.2, 0.7], r"per_image\[3\].scores: expected 2 scores, one for each name"),
    (("per_image", 3, "scores"), [0.1, 1.2], r"per_image\[3\].scores\[1\]: expected at most 1, got 1.2"),
    (("per_image", 3, "label"), "fake", r"per_image\[3\].label: expected one of real, synthetic"),
    (("per_image", 3), ..., "per_image: expected 40 rows of synthetic, as class_counts has it, got 39"),
    (("per_image", 3, "columns", "generator"), None, r"per_image\[3\].columns.generator: expected string, got None"),
]


@pytest.mark.parametrize(("path", "value", "message"), WRONG, ids=[message[:40] for *_, message in WRONG])
def test_the_first_problem_is_named(detection_content, path, value, message):
    with pytest.raises(UsageError, match=f"^results: {message}"):
        validate(changed(detection_content, path, value))


def test_identification_has_no_threshold_and_its_own_metrics(identification_content):
    with pytest.raises(UsageError, match=r"threshold: expected null, got 0\.5"):
        validate(identification_content | {"threshold": 0.5})
    with pytest.raises(UsageError, match="keys macro_f1 as well"):
        validate(changed(identification_content, ("metrics", "macro_f1"), ...))
    image = identification_content["per_image"][0] | {"label": "Imagen"}
    content = identification_content | {"per_image": [*identification_content["per_image"], image]}
    with pytest.raises(UsageError, match=r"per_image\[160\].label"):
        validate(content)
    validate(content | {"unknown_classes": {"Imagen": 1}})


def test_intervals_of_protocols_and_comparisons_are_looked_at(detection_content):
    content = made.with_protocols(detection_content)
    upside_down = {"value": 0.5, "low": 0.6, "high": 0.4}
    mean = "protocols", "clean", "by", "generator_family", "mean"
    with pytest.raises(UsageError, match=r"protocols\.clean\.by\.generator_family\.mean\.auc: expected low <= high"):
        validate(changed(content, (*mean, "auc"), upside_down))
    with pytest.raises(UsageError, match=r"clean\.by\.generator_family\.mean\.auc\.value: expected at most 1, got 2"):
        validate(changed(content, (*mean, "auc", "value"), 2))
    mcnemar = {"only_a_right": 1, "only_b_right": 2, "p_value": 1.0}
    with pytest.raises(UsageError, match=r"comparison\.differences\.auc: expected low <= high"):
        validate(content | {"comparison": {"mcnemar": mcnemar, "differences": {"auc": upside_down}}})


def test_what_is_nested_without_end_is_refused(detection_content):
    deep = []
    for _ in range(100_000):
        deep = [deep]
    for key in ("model", "per_image"):
        with pytest.raises(UsageError, match="more levels"):
            validate(detection_content | {key: {"a": deep}})
    with pytest.raises(UsageError, match=r"comparison\.remarks\[0\]: expected string"):
        validate(
            detection_content
            | {
                "comparison": {
                    "mcnemar": {"only_a_right": 0, "only_b_right": 0, "p_value": 1},
                    "differences": {},
                    "remarks": [1],
                }
            }
        )


def test_messages_stay_short(detection_content):
    with pytest.raises(UsageError) as caught:
        validate(detection_content | {"skipped": "x" * 10_000})
    assert len(str(caught.value)) < 200


def test_forty_thousand_rows_take_seconds(detection_content):
    content = copy.copy(detection_content)
    content["per_image"] = content["per_image"] * 50
    start = time.perf_counter()
    with pytest.raises(UsageError, match="per_image"):
        validate(content)
    assert time.perf_counter() - start < 10


def test_without_jsonschema_the_extra_is_named(detection_content, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "jsonschema" else find_spec(name))
    with pytest.raises(MissingExtraError, match=r"imaginet_hub\[eval\]"):
        validate(detection_content)


def test_speed_is_optional_and_checked(detection_content):
    timed = {
        **{"images_per_second": 10.0, "crop_size": 128, "turns": 6, "batch_size": 8, "device": "a processor"},
        **{"dtype": "float32", "compiled": False, "threads": 2, "torch": "2.15.0"},
        "yardstick": {"name": "resnet50 of timm", "images_per_second": 2.0, "crop_size": 224},
        "ratio": {"value": 5.0, "low": 4.0, "high": 6.0},
    }
    validate(changed(detection_content, ["speed"], ...))  # as older files have it
    validate(changed(detection_content, ["speed"], timed))
    assert detection_content["speed"] is None
    for path, value, said in (
        (["ratio"], {"value": 5.0, "low": 6.0, "high": 4.0}, "low <= high"),
        (["images_per_second"], 0, "speed"),
        (["device"], ..., "device"),
        (["mood"], "good", "no key mood"),
    ):
        with pytest.raises(UsageError, match=said):
            validate(changed(detection_content, ["speed"], changed(timed, path, value)))
