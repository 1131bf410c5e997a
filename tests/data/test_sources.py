"""The registry of sources, and what is said of it on a machine."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from imaginet_hub.cli import main
from imaginet_hub.data.access import credentials, hub_token, kaggle_authorization, offline, sources_json, sources_text
from imaginet_hub.data.manifest import read_annotations
from imaginet_hub.data.sources import (
    FFHQ_INDEX,
    FFHQ_LIST,
    KNOWN_CORRUPT,
    LISTS,
    SOURCES,
    TEST_FOLDER_COUNTS,
    source_of,
)

OFFLINE = ("HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
SECRET = "hf_ThisIsNoTokenButLooksLikeOne"


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without any account."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name in OFFLINE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("KAGGLE_CONFIG_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_sums() -> None:
    assert sum(source.train_images for source in SOURCES) == 160_000
    assert sum(source.test_images for source in SOURCES) == 40_000
    assert all(source.train_images == 4 * source.test_images for source in SOURCES)
    per_source = Counter({source.key: 0 for source in SOURCES})
    for folder, count in TEST_FOLDER_COUNTS.items():
        per_source[source_of(f"{folder}/x")[0]] += count
    assert per_source == {source.key: source.test_images for source in SOURCES}


def test_counts_are_those_of_the_list(shared: Path) -> None:
    records = read_annotations(shared / "annotations" / "test_annotations.txt").records
    assert Counter(record.file.split("/")[0] for record in records) == TEST_FOLDER_COUNTS
    assert set(KNOWN_CORRUPT) & {record.file for record in records} == {
        "wikiart/Baroque/rembrandt_woman-standing-with-raised-hands.jpg"
    }


def test_every_source_has_routes_for_all_its_folders() -> None:
    folders = Counter(folder for source in SOURCES for folder in source.folders)
    assert max(folders.values()) == 1
    for source in SOURCES:
        assert {folder for route in source.routes for folder in route.folders} == set(source.folders)
        assert len({route.name for route in source.routes}) == len(source.routes)
        assert source.routes[-1].name == "packed"
        for route in source.routes:
            assert set(route.folders) <= set(source.folders)
            single = ("files", "drive-files", "kaggle-files")
            assert route.reader in (*single, "zip", "7z", "tgz", "parquet", "tars")
            assert all(set(archive.folders) <= set(route.folders) for archive in route.archives)
            assert bool(route.archives) == (route.reader not in single)


def test_the_validation_images_of_progan_come_from_the_right_archive() -> None:
    """Upstream's README links another archive, CNNDetection's test set."""
    (archive,) = next(r for s in SOURCES for r in s.routes if r.name == "hf-zip").archives
    assert archive.address == "hf:sywang/CNNDetection/progan_val.zip"
    assert archive.bytes == 830_792_545


def test_pinned_lists() -> None:
    commit = "d87b53a03466a68f5e1910d75c7909b8ba596f99"
    for pinned in (*LISTS.values(), FFHQ_LIST):
        assert pinned.addresses[0].startswith(f"github:delyan-boychev/imaginet/{commit}/")
        assert all(address.endswith(f"/{pinned.name}") for address in pinned.addresses)
        assert len(pinned.git_sha1) == 40
    assert FFHQ_INDEX[1] == 267_793_842


def test_json_has_what_people_ask() -> None:
    for item in sources_json(frozenset()):
        assert item["images"]["train"] + item["images"]["test"] > 0
        assert item["license"]
        assert item["commercial_use"] in ("yes", "no", "unclear", "per image")
        assert item["redistribution"] in ("yes", "no", "unclear", "per image")
        assert item["bytes_to_move_estimate"] > 10**8
        assert item["disk_bytes_estimate"] > 10**8
        assert item["routes"]
        for route in item["routes"]:
            assert (route["missing_here"] is not None) == (route["needs_account"] is not None)
            if route["missing_here"]:
                assert route["remedy"]
    total = sum(item["disk_bytes_estimate"] for item in sources_json(frozenset()))
    assert 120e9 < total < 170e9  # the packed release has 144 GB


def test_what_is_said_of_routes_is_true() -> None:
    """Every route can be taken; what a machine lacks for it is said with the remedy, and nothing else."""
    for known in (frozenset(), frozenset({"hf"}), frozenset({"kaggle"}), frozenset({"hf", "kaggle"})):
        text = sources_text(known)
        assert "not yet" not in text and "not readable" not in text
        for item in sources_json(known):
            assert item["ready"] == any(route["missing_here"] is None for route in item["routes"])
            for route in item["routes"]:
                assert (route["missing_here"] is None) == (route["needs_account"] in {None, *known})
                assert (route["click"] is not None) == (route["needs_account"] is not None)
                for word in filter(None, (route["click"],)):
                    assert word in route["remedy"]
                if route["missing_here"] == "kaggle":
                    assert "https://www.kaggle.com/settings" in route["remedy"]
    ready = {item["source"] for item in sources_json(frozenset()) if item["ready"]}
    assert ready == {source.key for source in SOURCES} - {"imagenet", "journeydb"}


def test_an_account_that_is_here_is_not_missed() -> None:
    routes = [route for item in sources_json(frozenset({"hf"})) for route in item["routes"]]
    assert not any(route["missing_here"] == "hf" for route in routes)
    assert any(route["missing_here"] == "kaggle" for route in routes)
    assert any("accept the terms once on" in (route["remedy"] or "") for route in routes)


def test_text_has_every_source_and_route() -> None:
    text = sources_text(frozenset())
    for source in SOURCES:
        assert f"{source.key}: {source.title}" in text
        assert source.license in text
        assert all(f"{route.name}: " in text for route in source.routes)
    assert "hf auth login" in text
    assert "not legal advice" in text


def _file(path: Path, text: str = SECRET) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("where", "found"),
    [
        ("nowhere", set()),
        ("HF_TOKEN", {"hf"}),
        ("token file", {"hf"}),
        ("KAGGLE_API_TOKEN", {"kaggle"}),
        ("KAGGLE_USERNAME and KAGGLE_KEY", {"kaggle"}),
        ("KAGGLE_USERNAME", set()),
        ("kaggle.json", {"kaggle"}),
        ("access_token", {"kaggle"}),
        ("KAGGLE_CONFIG_DIR", {"kaggle"}),
    ],
)
@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_credentials_are_found_and_never_shown(
    where: str,
    found: set[str],
    flags: list[str],
    bare: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if where == "token file":
        _file(bare / "token")
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(bare / "token"))
    elif where in ("kaggle.json", "access_token"):
        _file(bare / ".kaggle" / where, json.dumps({"username": "me", "key": SECRET}))
    elif where == "KAGGLE_CONFIG_DIR":
        _file(bare / "elsewhere" / "kaggle.json", json.dumps({"username": "me", "key": SECRET}))
        monkeypatch.setenv(where, str(bare / "elsewhere"))
    elif where != "nowhere":
        for name in where.split(" and "):
            monkeypatch.setenv(name, SECRET)
    assert credentials() == found
    assert bool(hub_token()) == ("hf" in found)
    assert main(["sources", *flags]) == 0
    out, err = capsys.readouterr()
    assert SECRET not in out + err
    assert SECRET[3:] not in out + err
    if flags:
        items = json.loads(out)
        assert [item["source"] for item in items] == [source.key for source in SOURCES]
        missing = {r["missing_here"] for item in items for r in item["routes"]} - {None}
        assert missing == {"hf", "kaggle"} - found
    else:
        assert all(source.key in out for source in SOURCES)


@pytest.mark.parametrize(
    ("value", "expected"), [("1", True), ("yes", True), ("0", False), ("", False), ("off", False)]
)
def test_offline(monkeypatch: pytest.MonkeyPatch, value: str, expected: bool) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert offline() is expected


def test_offline_is_what_datasets_takes_it_for(monkeypatch: pytest.MonkeyPatch) -> None:
    values = (None, "", "0", "1", "on")
    for several in itertools.product(values, repeat=3):
        for name, value in zip(OFFLINE, several, strict=True):
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)
        ours, hub, transformers = several
        # As `datasets.config` and `huggingface_hub.constants` have it.
        expected = (hub or transformers) in ("1", "on") if ours is None else ours in ("1", "on")
        assert offline() is expected, several
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "yes")
    code = "import datasets; print(datasets.config.HF_DATASETS_OFFLINE)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == str(offline()) == "True"


@pytest.mark.parametrize(
    "code",
    ["import imaginet_hub.data.readers.hosts", "from imaginet_hub.cli import main; main(['sources', '--quiet'])"],
)
def test_what_sources_need_is_cheap(code: str) -> None:
    code = (
        f"{code}\nimport sys; print([m for m in ('PIL', 'datasets', 'numpy', 'pyarrow', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.fixture
def nobody(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user whom the machine does not know, as in containers that run under any id."""

    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)


@pytest.mark.usefixtures("nobody")
def test_kaggles_credentials_of_a_user_without_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kaggle_authorization() is None
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "kaggle.json").write_text('{"username": "a", "key": "b"}')
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path / "given"))
    assert kaggle_authorization() == "Basic YTpi"
    monkeypatch.delenv("KAGGLE_CONFIG_DIR")
    monkeypatch.setenv("KAGGLE_USERNAME", "u")
    monkeypatch.setenv("KAGGLE_KEY", "k")
    assert kaggle_authorization() == "Basic dTpr"


def test_a_key_that_no_text_can_hold_is_none(bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kaggle.json").write_text('{"username": "a", "key": "\\ud800"}')
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path))
    assert kaggle_authorization() is None


def test_text_looks_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr("imaginet_hub.data.access.credentials", lambda: calls.append(1) or frozenset())
    assert "route packed" in sources_text()
    assert len(calls) == 1
