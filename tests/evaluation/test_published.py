"""The published rows: the paper's and the repository's figures, and that they agree with themselves."""

import copy
import json
import statistics
from importlib import resources

import pytest

from imaginet_hub.errors import UsageError
from imaginet_hub.evaluation.published import MEAN, PAPER, published, rows_of


@pytest.fixture
def content():
    return json.loads(resources.files("imaginet_hub.evaluation").joinpath("published.json").read_text())


def figures(table, detector, group):
    (row,) = published(table=table, detector=detector, group=group)
    return tuple(row.metrics.values())


def test_known_figures():
    assert figures("3", "Ours*", MEAN) == (0.9589, 0.9930)
    assert figures("3", "Grag2021", "DALL-E 3") == (0.4128, 0.3905)
    assert figures("4", "Wu2023", "YiJian") == (0.8392, 0.9233)
    assert figures("5", "Ours*", "ADM") == (0.7704, 0.8550)
    assert figures("content", "Ours*", "paintings") == (0.9077, 0.9745)
    assert figures("generator", "Ours*", "StyleGAN3") == (0.8811, 0.9724)
    assert figures("6", "Corvi2022", "RTX 4090") == (49.53,)
    assert figures("7", "Ours*", MEAN) == (0.9510, 0.9980)
    assert figures("7", "Ours*", "GAN") == (0.9968,)


def test_every_table_is_there():
    sizes = {table: len(published(table=table)) for table in ("3", "4", "5", "6", "7", "content", "generator")}
    assert sizes == {"3": 25, "4": 35, "5": 65, "6": 4, "7": 5, "content": 25, "generator": 45}
    assert len(published()) == sum(sizes.values())
    assert {row.source for row in published(table="3")} == {"paper v3, Table 3"}
    assert all(row.source.startswith("repository, ") for row in published(table="content"))
    # Both the paper's columns and those that only the repository has.
    assert {row.detector for row in published(table="4") if row.source == "paper v3, Table 4"} == {"Wu2023", "Ours*"}


def test_every_mean_is_that_of_its_rows():
    means = [(row, metric) for row in published(group=MEAN) for metric in row.metrics]
    checked = 0
    for row, metric in means:
        rows = [r for r in published(table=row.table, detector=row.detector) if r.group != MEAN]
        if all(metric in r.metrics for r in rows):
            assert statistics.fmean(r.metrics[metric] for r in rows) == pytest.approx(row.metrics[metric], abs=1.01e-4)
            checked += 1
    assert checked == len(means) - 1  # of identification there is one AUC only
    assert checked == 51


def test_a_misprint_would_not_go_unnoticed(content):
    corrected = [
        (table, detector, item)
        for table, what in content["tables"].items()
        for detector, said in what["detectors"].items()
        for item in said.get("corrected", ())
    ]
    assert [(table, detector, item["group"]) for table, detector, item in corrected] == [
        ("5", "Corvi2022*", "LatentDiff")
    ]
    for table, detector, item in corrected:
        as_printed = copy.deepcopy(content)
        place = content["tables"][table]["metrics"].index(item["metric"])
        as_printed["tables"][table]["detectors"][detector]["values"][item["group"]][place] = item["printed"]
        with pytest.raises(UsageError, match=r"table 5, Corvi2022\*: expected the mean auc of the groups, 0\.94545"):
            rows_of(as_printed)
    (row,) = published(table="5", detector="Corvi2022*", group="LatentDiff")
    assert row.metrics["auc"] == 0.9889
    assert any("misprint" in note for note in row.footnotes)
    (other,) = published(table="5", detector="Ours*", group="LatentDiff")
    assert not any("misprint" in note for note in other.footnotes)


def test_footnotes_are_used_and_say_what_is_odd(content):
    used = {note for row in published() for note in row.footnotes}
    assert used == set(content["footnotes"].values())
    assert any("README" in note for row in published(table="6") for note in row.footnotes)
    assert any("unperturbed" in note for row in published(table="7") for note in row.footnotes)
    assert all(any("80 labelled images" in n for n in row.footnotes) for row in published(table="3"))
    assert content["name"] == PAPER
    assert {row.detector for row in published()} == set(content["detectors"])
    # Figures of the network before the paper's first version.
    assert not {0.8838, 0.9438, 0.9953} & {f for row in published() for f in row.metrics.values()}


@pytest.mark.parametrize("name", ["table", "detector", "group"])
def test_what_does_not_occur_is_named_with_what_does(name):
    with pytest.raises(UsageError, match=rf"published {name}: expected one of .*, got 'x'"):
        published(**{name: "x"})


def test_broken_data_are_refused(content):
    broken = copy.deepcopy(content)
    del broken["tables"]["3"]["detectors"]["Ours*"]["values"]["SD"]
    with pytest.raises(UsageError, match="expected the groups"):
        rows_of(broken)
    broken = copy.deepcopy(content)
    broken["tables"]["3"]["detectors"]["Ours*"]["values"]["SD"][0] = 96.08
    with pytest.raises(UsageError, match="share"):
        rows_of(broken)
