import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData, parse_eval_result_entries
from huggingface_hub.repocard_data import model_index_to_eval_results

from imaginet_hub.errors import UsageError
from imaginet_hub.evaluation.export import eval_results, model_index, model_index_results, write_eval_results
from imaginet_hub.evaluation.schema import validate
from tests.evaluation import made

ID = "someone/some-images"


@pytest.fixture
def content():
    content = made.detection().to_json()
    content["dataset"] = {"name": "some-images", "split": "test", "images": 81, "corpus": "mini"}
    content["skipped"] = [{"row": 80, "path": "./80.png", "reason": "truncated"}]
    content["preprocessing"] = {"crop_size": 256, "resize": None, "equalize": "jpeg:90"}
    content["metrics"]["balanced_accuracy"] = {"value": 0.75, "low": 0.651234, "high": 0.85}
    content["metrics"]["auc"] = {"value": 0.8123456, "low": None, "high": None}
    return content


def test_the_headlines_are_entries_with_notes(content):
    entries = eval_results(content, ID, dataset_revision="abc", date="2026-01-02", source_url="https://a.example/run")
    assert [(entry.task_id, entry.value) for entry in entries] == [
        ("detection_balanced_accuracy", 0.75),
        ("detection_auc", 0.8123),
    ]
    assert {(entry.dataset_id, entry.dataset_revision, entry.source_url) for entry in entries} == {
        (ID, "abc", "https://a.example/run")
    }
    assert entries[0].notes == (
        "balanced accuracy 0.750 [0.651, 0.850]; 95 % interval of 30 resamples; threshold 0.5; all 80 rows; "
        "unreadable rows: 1; dataset some-images/test; simulated images; preprocessing: crop size 256, "
        "equalize jpeg:90"
    )
    assert "threshold" not in entries[1].notes
    assert "interval" not in entries[1].notes


def test_the_file_is_read_back_as_it_was_written(content, tmp_path):
    entries = eval_results(content, ID, date="2026-01-02", source_url="https://a.example/run", source_name="the run")
    path = write_eval_results(tmp_path / "model", entries)
    assert path == tmp_path / "model" / ".eval_results" / "some-images.yaml"
    assert parse_eval_result_entries(yaml.safe_load(path.read_text())) == entries
    write_eval_results(tmp_path / "model", entries[:1])
    assert parse_eval_result_entries(yaml.safe_load(path.read_text())) == entries[:1]
    write_eval_results(tmp_path / "model", entries, name="other")
    assert sorted(file.name for file in path.parent.iterdir()) == ["other.yaml", "some-images.yaml"]


def test_protocols_have_tasks_of_their_own(content):
    content = made.with_protocols(content)
    validate(content)
    means = {name: content["protocols"][name]["by"]["generator_family"]["mean"] for name in ("paper", "clean")}
    entries = eval_results(content, ID, task_id="imaginet")
    assert [(entry.task_id, entry.value) for entry in entries] == [
        ("imaginet_balanced_accuracy", 0.75),
        ("imaginet_auc", 0.8123),
        ("imaginet_paper_balanced_accuracy", round(means["paper"]["balanced_accuracy"]["value"], 4)),
        ("imaginet_paper_auc", round(means["paper"]["auc"]["value"], 4)),
        ("imaginet_clean_balanced_accuracy", round(means["clean"]["balanced_accuracy"]["value"], 4)),
        ("imaginet_clean_auc", round(means["clean"]["auc"]["value"], 4)),
    ]
    assert len({entry.task_id for entry in entries}) == len(entries)
    assert "protocol paper, mean of 2 generator families against" in entries[2].notes
    assert "calibration: logistic regression on images of the test set" in entries[2].notes
    assert "interval" not in entries[2].notes
    assert "protocol clean" in entries[4].notes
    assert "95 % interval of 30 resamples" in entries[4].notes


def test_the_model_index_survives_a_card_and_keeps_protocols_apart(content):
    content = made.with_protocols(content)
    index = model_index([content], [ID], "my-detector")
    assert index[0]["name"] == "my-detector"
    assert [part["dataset"]["config"] for part in index[0]["results"]] == [
        "detection",
        "detection-paper",
        "detection-clean",
    ]
    names = [[metric["name"] for metric in part["metrics"]] for part in index[0]["results"]]
    assert names[0] == names[2] == [name.replace("_", " ") for name in content["metrics"]]
    assert names[1] == ["balanced accuracy", "auc"]
    first = index[0]["results"][0]["metrics"][0]
    assert (first["type"], first["value"]) == ("balanced_accuracy", 0.75)
    assert first["args"] == {"threshold": 0.5, "interval": [0.6512, 0.85], "confidence": 0.95}

    header = yaml.safe_dump({"license": "apache-2.0", "model-index": index}, sort_keys=False)
    card = ModelCard(f"---\n{header}---\n\n# Title\n")
    flat = model_index_results(content, ID)
    assert card.data.eval_results == flat
    assert card.data.model_name == "my-detector"
    again = ModelCard(str(card))  # written by huggingface_hub
    assert again.data.eval_results == flat
    assert ModelCardData(model_name="my-detector", eval_results=flat).to_dict()["model-index"] == index
    assert model_index_to_eval_results(index) == ("my-detector", flat)


def test_results_of_several_datasets(content):
    identification = made.identification(3).to_json()
    index = model_index([content, identification], [ID, "a/b"], "m")
    assert [part["dataset"]["type"] for part in index[0]["results"]] == [ID, "a/b"]
    assert [part["task"]["name"] for part in index[0]["results"]] == [
        "synthetic image detection",
        "generator identification",
    ]
    assert [entry.task_id for entry in eval_results(identification, "a/b")] == [
        "identification_balanced_accuracy",
        "identification_auc",
    ]
    with pytest.raises(UsageError, match="each of 2 results"):
        model_index([content, identification], [ID], "m")


def test_undefined_metrics_are_left_out():
    content = made.one_class("real").to_json()
    types = [entry.metric_type for entry in model_index_results(content, ID)]
    assert "accuracy" in types
    assert "roc_auc" not in types
    with pytest.raises(UsageError, match="rows of two classes"):
        eval_results(content, ID)


@pytest.mark.parametrize("dataset_id", ["", "a/b/c", "../x", "some images"])
def test_what_is_no_hub_id_is_refused(content, dataset_id):
    with pytest.raises(UsageError, match="Hub id"):
        eval_results(content, dataset_id)
    with pytest.raises(UsageError, match="Hub id"):
        model_index_results(content, dataset_id)


def test_a_source_has_an_address(content):
    for export in (eval_results, model_index_results):
        with pytest.raises(UsageError, match="source_url"):
            export(content, ID, source_name="the run")


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a b", "é"])
def test_other_file_names_are_refused(content, tmp_path, name):
    with pytest.raises(UsageError, match="file name"):
        write_eval_results(tmp_path, eval_results(content, ID), name)
    with pytest.raises(UsageError, match="one entry or more"):
        write_eval_results(tmp_path, [])
    assert list(tmp_path.iterdir()) == []
