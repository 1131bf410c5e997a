"""What people are told where the Hub does not give what they ask for, by whichever way they ask."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from imaginet_hub.data.readers.hub import hub_trouble
from tests.conftest import PROJECT
from tests.support.hub import OTHER, WRITE, Fault, Hub, Request

ASK = """
import json, os, sys, time
time.sleep = lambda seconds: None  # between one attempt of the client's and the next
from imaginet_hub.data.loading import load_rows, splits_of
from imaginet_hub.data.rights import licenses_report
from imaginet_hub.data.withheld import complete
from imaginet_hub.errors import ImagiNetError
from imaginet_hub.inference.contract import load_measurable
from imaginet_hub.inference.detector import Detector

WAYS = {
    "dataset": {
        "load": lambda name: load_rows(name, "detection", "train"),
        "splits": splits_of,
        "licenses": licenses_report,
        "complete": lambda name: complete(name, sys.argv[2]),
    },
    "model": {"ours": Detector.from_pretrained, "any": load_measurable},
}
told = []
for name, token in json.loads(sys.argv[1]):
    os.environ.pop("HF_TOKEN", None)
    if token:
        os.environ["HF_TOKEN"] = token
    for kind, ways in WAYS.items():
        for way, ask in ways.items():
            try:
                ask(name)
                told.append([name, token, kind, way, "", "nothing went wrong"])
            except ImagiNetError as error:
                told.append([name, token, kind, way, type(error).__name__, str(error)])
print(json.dumps(told))
"""
GATED = {"README.md": b"# x\n", "config.json": b"{}", "data/train-00000-of-00001.parquet": b"PAR1"}


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with Hub() as server:
        for kind in ("dataset", "model"):
            server.repo(kind, "me/gated-one", GATED, gated="manual")
            server.repo(kind, "me/private", GATED, private=True)
            server.repo(kind, "me/busy", GATED)
        server.fault = busy
        yield server


def busy(request: Request) -> Fault | None:
    return Fault(400, message="Not today") if "me/busy" in request.path else None


def said(hub: Hub, home: Path, asked: list[tuple[str, str | None]], **environ: str) -> list[list[str]]:
    environment = hub.environ(home) | environ
    argv = [sys.executable, "-c", ASK, json.dumps(asked), str(home / "new")]
    done = subprocess.run(argv, env=environment, cwd=PROJECT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not (home / "new").exists()
    told: list[list[str]] = json.loads(done.stdout.splitlines()[-1])
    assert len(told) == 6 * len(asked)
    for _, _, kind, way, error, message in told:
        assert error == {"dataset": "DataNotFoundError", "model": "ModelError"}[kind], (way, message)
        assert "\n" not in message and len(message) < 300 and "For more information" not in message
    return told


def test_every_way_says_the_same(hub: Hub, tmp_path: Path) -> None:
    asked = [("me/gated-one", None), ("me/gated-one", OTHER), ("me/private", None), ("me/private", OTHER)]
    asked += [("me/none", WRITE), ("me/gated-one", "hf_wrong"), ("me/busy", WRITE)]
    for name, token, kind, _, _, whole in said(hub, tmp_path, asked):
        message = whole.removesuffix(". What came already is kept")
        page = f"{hub.endpoint}/{'datasets/' if kind == 'dataset' else ''}{name}"
        if token == "hf_wrong":
            expected = f"the {kind} '{name}' could not be had: the Hub answered 401 (Invalid credentials in "
            expected += "Authorization header); the token is not valid: log in (`hf auth login`), or mend HF_TOKEN"
        elif name == "me/gated-one":
            expected = f"the {kind} '{name}' is gated: accept its terms on its page, {page}, and log in "
            expected += "(`hf auth login`) with that account"
        elif name == "me/busy":
            expected = f"the {kind} '{name}' could not be had: the Hub answered 400 (Not today); see its page there, "
            expected += "and whether the token may read it"
        else:
            expected = (
                f"'{name}' is no folder here, and the Hub has no such {kind}, or a private one; check the name, "
            )
            expected += "and log in (`hf auth login`), if private"
        assert message == expected


def test_offline(hub: Hub, tmp_path: Path) -> None:
    asked = len(hub.requests)
    for name, *_, message in said(hub, tmp_path, [("me/none", WRITE)], HF_HUB_OFFLINE="1"):
        assert message.startswith(f"'{name}' is no folder here, and not in the Hub's cache")
        assert "HF_HUB_OFFLINE" in message
    assert len(hub.requests) == asked


def test_nobody_answers(hub: Hub, tmp_path: Path) -> None:
    for name, *_, message in said(hub, tmp_path, [("me/none", None)], HF_ENDPOINT="http://127.0.0.1:9"):
        assert message.startswith(f"'{name}' is no folder here, and the Hub could not be asked for it")
        assert "check the name and the network" in message


# --- what is looked at -----------------------------------------------------------------------------------------------


def answered(kind: type[HfHubHTTPError], status: int, message: str | None = None) -> HfHubHTTPError:
    request = httpx2.Request("GET", "http://127.0.0.1/me/data?X-Amz-Signature=secret")
    return kind(
        f"{status} for url {request.url}", response=httpx2.Response(status, request=request), server_message=message
    )


def wrapped(error: BaseException, times: int = 2, how: str = "from") -> BaseException:
    for _ in range(times):
        try:
            try:
                raise error
            except BaseException as one:
                if how == "from":
                    raise OSError("something was the matter") from one
                raise ValueError("and something else")  # noqa: B904
        except (OSError, ValueError) as outer:
            error = outer
    return error


CASES: dict[str, tuple[BaseException, str | None]] = {
    "gated": (answered(GatedRepoError, 403), "is gated"),
    "absent": (answered(RepositoryNotFoundError, 404), "has no such dataset"),
    "revision": (answered(RevisionNotFoundError, 404), "no such revision"),
    "patience": (answered(HfHubHTTPError, 429), r"429 \(Too Many Requests\); try again later"),
    "broken": (answered(HfHubHTTPError, 503, "down"), r"503 \(down\); try again later"),
    "cut": (httpx2.ReadError("it was cut"), r"could not be asked for it \(it was cut\)"),
    "uncached": (LocalEntryNotFoundError("not here"), "could not be asked for it; check"),
    "hidden gate": (DatasetNotFoundError("Dataset 'a' is a gated dataset on the Hub."), "is gated"),
    "hidden": (DatasetNotFoundError("Dataset 'gated' doesn't exist on the Hub"), "has no such dataset"),
    "a file that is not there": (answered(RemoteEntryNotFoundError, 404), None),
    "the disk": (OSError(28, "No space left on device"), None),
    "a value": (ValueError("BuilderConfig 'x' not found"), None),
}


@pytest.mark.parametrize("how", ["as it is", "from", "while"])
@pytest.mark.parametrize("case", CASES)
def test_what_it_came_of_counts(case: str, how: str) -> None:
    error, expected = CASES[case]
    found = hub_trouble(error if how == "as it is" else wrapped(error, how=how), "me/data", "dataset")
    if expected is None:
        assert found is None
    else:
        assert found is not None and re.search(expected, found) and "secret" not in found


def test_a_folder_is_no_repository(tmp_path: Path) -> None:
    assert hub_trouble(CASES["gated"][0], str(tmp_path), "model") is None
