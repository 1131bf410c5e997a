"""Whole files: resumed, verified, and never under their name before."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from imaginet_hub.data.readers.downloads import download, had
from imaginet_hub.data.readers.hosts import Endpoints, remote_for
from imaginet_hub.data.readers.http import Cancelled, Http, Remote
from imaginet_hub.demo.mirror import Fault, Mirror, always, first
from imaginet_hub.errors import FetchError
from tests.support.published import FAST

DATA = os.urandom(700_000)
SHA = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[Mirror]:
    file = tmp_path / "origin" / "hf" / "owner" / "repo" / "a.7z.001"
    file.parent.mkdir(parents=True)
    file.write_bytes(DATA)
    with Mirror(tmp_path / "origin") as running:
        yield running


@pytest.fixture
def remote(mirror: Mirror) -> Remote:
    return remote_for("hf:owner/repo/a.7z.001", "test", Endpoints.resolve(mirror.endpoints))


@pytest.fixture
def http() -> Iterator[Http]:
    with Http(limits=FAST) as client:
        yield client


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "store" / "a.7z.001"


def sent(mirror: Mirror) -> int:
    return sum(request.sent for request in mirror.requests if request.host == "cdn")


@pytest.mark.parametrize("sha", [SHA, None], ids=["sum", "none"])
def test_once(sha: str | None, http: Http, remote: Remote, target: Path, mirror: Mirror) -> None:
    moved: list[int] = []
    download(http, remote, target, len(DATA), sha, moved.append)
    assert target.read_bytes() == DATA
    assert sum(moved) == len(DATA) == had(target, len(DATA), sha)
    assert [path.name for path in target.parent.iterdir()] == [target.name]
    mirror.forget()
    download(http, remote, target, len(DATA), sha, moved.append)
    assert not mirror.requests
    assert sum(moved) == 2 * len(DATA)


@pytest.mark.parametrize("held", [1, 65_536, len(DATA) - 1, len(DATA)])
def test_what_is_here_is_not_asked_for(held: int, http: Http, remote: Remote, target: Path, mirror: Mirror) -> None:
    target.parent.mkdir()
    partial = target.with_name(f"{target.name}.{SHA[:16]}.incomplete")
    partial.write_bytes(DATA[:held])
    assert had(target, len(DATA), SHA) == held
    moved: list[int] = []
    download(http, remote, target, len(DATA), SHA, moved.append)
    assert target.read_bytes() == DATA
    assert sent(mirror) == len(DATA) - held
    assert sum(moved) == len(DATA)
    assert not partial.exists()


@pytest.mark.parametrize("wrong", [b"another beginning", DATA + b"more", bytes(len(DATA))])
def test_a_wrong_beginning_is_thrown_away_once(
    wrong: bytes, http: Http, remote: Remote, target: Path, mirror: Mirror
) -> None:
    target.parent.mkdir()
    target.with_name(f"{target.name}.{SHA[:16]}.incomplete").write_bytes(wrong)
    moved: list[int] = []
    download(http, remote, target, len(DATA), SHA, moved.append)
    assert target.read_bytes() == DATA
    assert sum(moved) == len(DATA)
    assert sent(mirror) <= 2 * len(DATA)


def test_another_version_is_not_gone_on_with(http: Http, remote: Remote, target: Path, mirror: Mirror) -> None:
    target.parent.mkdir()
    target.with_name(f"{target.name}.{'0' * 16}.incomplete").write_bytes(DATA[:1000])
    assert had(target, len(DATA), SHA) == 0
    download(http, remote, target, len(DATA), SHA, lambda count: None)
    assert sent(mirror) == len(DATA)


def test_wrong_bytes_are_asked_for_once_more(http: Http, remote: Remote, target: Path, mirror: Mirror) -> None:
    mirror.fault = first(1, ".7z", Fault(wrong_bytes=True), host="cdn")
    download(http, remote, target, len(DATA), SHA, lambda count: None)
    assert target.read_bytes() == DATA
    target.unlink()
    mirror.forget()
    mirror.fault = always(".7z", Fault(wrong_bytes=True), host="cdn")
    with pytest.raises(FetchError, match=SHA) as raised:
        download(http, remote, target, len(DATA), SHA, lambda count: None)
    assert raised.value.reason == "corrupt"
    assert sent(mirror) == 2 * len(DATA)
    assert list(target.parent.iterdir()) == []


def test_a_connection_that_breaks_keeps_what_came(http: Http, remote: Remote, target: Path, mirror: Mirror) -> None:
    mirror.fault = always(".7z", Fault(reset_after=20_000), host="cdn")
    with pytest.raises(FetchError) as raised:
        download(http, remote, target, len(DATA), SHA, lambda count: None)
    assert raised.value.reason == "network"
    assert not target.exists()
    held = had(target, len(DATA), SHA)
    assert held > 0
    mirror.fault = None
    mirror.forget()
    download(http, remote, target, len(DATA), SHA, lambda count: None)
    assert target.read_bytes() == DATA
    assert sent(mirror) == len(DATA) - held


def test_stopped(http: Http, remote: Remote, target: Path, mirror: Mirror) -> None:
    """By whoever counts, or from outside: what came is kept."""

    class Stop(Exception):
        pass

    def stop(count: int) -> None:
        raise Stop

    with pytest.raises(Stop):
        download(http, remote, target, len(DATA), SHA, stop)
    assert 0 < had(target, len(DATA), SHA) < len(DATA)
    http.cancel()
    with pytest.raises(Cancelled):
        download(http, remote, target, len(DATA), SHA, lambda count: None)
    assert not target.exists()
