"""The loopback Hub answers the real clients as the real one does."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    HfFileSystem,
    constants,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import _http

from tests.support.hub import OTHER, READ, WRITE, Fault, Hub, Request, first

SMALL, LARGE = b"a line\n", bytes(range(256)) * 40
FILES = {"README.md": b"---\nlicense: mit\n---\n", "data/a.txt": SMALL, "data/deep/b.parquet": LARGE}


@pytest.fixture(autouse=True)
def _one_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large files by LFS; and clients that wait for nobody."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=lambda seconds: None))


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        yield server


@pytest.fixture
def api(hub: Hub) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=WRITE)


def as_(hub: Hub, token: str | bool) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=token)


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def status_of(error: pytest.ExceptionInfo[Any]) -> int:
    return int(error.value.response.status_code)


# --- repositories


def test_repositories_are_made_once_and_go(hub: Hub, api: HfApi) -> None:
    assert api.whoami()["name"] == "me" and api.whoami()["auth"]["accessToken"]["role"] == "write"
    assert api.create_repo("me/data", repo_type="dataset", private=True) == f"{hub.endpoint}/datasets/me/data"
    api.create_repo("me/data", repo_type="dataset", exist_ok=True)
    with pytest.raises(HfHubHTTPError, match="already created") as error:
        api.create_repo("me/data", repo_type="dataset")
    assert status_of(error) == 409
    api.create_repo("org/data")  # a model of the same name is another repository
    info = api.dataset_info("me/data")
    assert info.private and info.sha and [s.rfilename for s in info.siblings or []] == [".gitattributes"]
    assert api.repo_exists("org/data") and not api.repo_exists("me/data")
    api.delete_repo("me/data", repo_type="dataset")
    with pytest.raises(RepositoryNotFoundError):
        api.dataset_info("me/data")


def test_ids_are_those_of_git(tmp_path: Path, hub: Hub) -> None:
    repo = hub.repo("model", "me/m", {"b.txt": SMALL, "b/c.txt": SMALL, "b-a/x/y": b"", "big.bin": LARGE})
    commit = repo.at()
    assert commit is not None
    write(tmp_path, {path: file.data for path, file in commit.files.items()})
    git = ["git", "-C", str(tmp_path), "-c", "core.autocrlf=false"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "-f", "-A"], check=True)
    tree = subprocess.run([*git, "write-tree"], check=True, capture_output=True, text=True).stdout.strip()
    listed = subprocess.run([*git, "ls-tree", "-r", "-t", tree], check=True, capture_output=True, text=True).stdout
    ids = {line.split("\t")[1]: line.split("\t")[0].split()[2] for line in listed.splitlines()}
    api = as_(hub, False)
    found = list(api.list_repo_tree("me/m", recursive=True))
    assert {entry.path: getattr(entry, "blob_id", None) or getattr(entry, "tree_id", None) for entry in found} == ids
    pointer = commit.files["big.bin"].data.decode()
    assert pointer.splitlines()[1] == f"oid sha256:{hashlib.sha256(LARGE).hexdigest()}"


def test_a_push_and_what_is_there(hub: Hub, api: HfApi, tmp_path: Path) -> None:
    folder = write(tmp_path / "there", FILES)
    api.create_repo("me/data", repo_type="dataset")
    done = api.upload_folder(folder_path=folder, repo_id="me/data", repo_type="dataset", commit_message="first")
    repo = hub.repos["dataset", "me/data"]
    assert repo.refs["refs/heads/main"] == done.oid and [c.title for c in repo.log()] == ["first", "initial commit"]
    assert {name: repo.read(name) for name in FILES} == FILES
    assert hub.files_received() == sum(map(len, FILES.values()))

    top = api.list_repo_tree("me/data", repo_type="dataset")
    assert [entry.path for entry in top] == [".gitattributes", "README.md", "data"]
    below = list(api.list_repo_tree("me/data", "data/deep", repo_type="dataset", expand=True))
    assert below[0].lfs.sha256 == hashlib.sha256(LARGE).hexdigest()  # type: ignore[union-attr]
    assert below[0].last_commit.title == "first"  # type: ignore[union-attr]
    some = api.get_paths_info("me/data", ["README.md", "data/deep", "nothing"], repo_type="dataset", expand=True)
    assert {entry.path for entry in some} == {"README.md", "data/deep"}
    blobs = {s.rfilename: s for s in api.dataset_info("me/data", files_metadata=True).siblings or []}
    assert blobs["data/a.txt"].size == len(SMALL) and blobs["data/deep/b.parquet"].lfs
    titles = [commit.title for commit in api.list_repo_commits("me/data", repo_type="dataset")]
    assert titles == ["first", "initial commit"]
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree("me/data", "nothing", repo_type="dataset"))


def test_long_listings_have_pages(hub: Hub) -> None:
    hub.page = 7
    hub.repo("dataset", "me/data", {f"d{n % 3}/{n}.txt": b"x" for n in range(50)})
    found = as_(hub, False).list_repo_files("me/data", repo_type="dataset")
    assert len(found) == 51
    assert sum("/tree/" in request.path for request in hub.requests) == -(-54 // 7)


def test_a_second_push_moves_nothing(hub: Hub, api: HfApi, tmp_path: Path) -> None:
    folder = write(tmp_path / "there", FILES)
    api.create_repo("me/m")
    made = api.upload_folder(folder_path=folder, repo_id="me/m")
    asked = len(hub.requests)
    again = api.upload_folder(folder_path=folder, repo_id="me/m")
    assert again.oid == made.oid and hub.files_received(asked) == 0
    assert not any("/commit/" in request.path or request.method == "PUT" for request in hub.requests[asked:])
    (folder / "copy.bin").write_bytes(LARGE)  # content that is there already, by another name
    api.upload_folder(folder_path=folder, repo_id="me/m")
    assert hub.files_received(asked) == 0 and hub.repos["model", "me/m"].read("copy.bin") == LARGE


def test_parts(api: HfApi, hub: Hub) -> None:
    hub.multipart_over = 1000
    api.create_repo("me/m")
    api.upload_file(path_or_fileobj=LARGE, path_in_repo="big.bin", repo_id="me/m")
    puts = [request for request in hub.requests if request.method == "PUT"]
    assert [request.received for request in puts] == [1000] * 10 + [240]
    assert hub.repos["model", "me/m"].read("big.bin") == LARGE


def test_storage_takes_only_what_was_announced(hub: Hub) -> None:
    hub.repo("model", "me/m")
    sha256 = hashlib.sha256(LARGE).hexdigest()
    asked: dict[str, Any] = {
        "operation": "upload",
        "objects": [{"oid": sha256, "size": len(LARGE)}],
        "ref": {"name": "main"},
    }
    bearer = {"Authorization": f"Bearer {WRITE}"}
    with httpx2.Client() as client:
        url = f"{hub.endpoint}/me/m.git/info/lfs/objects/batch"
        batch: dict[str, Any] = client.post(url, json=asked, headers=bearer).json()
        actions = batch["objects"][0]["actions"]
        href = actions["upload"]["href"]
        assert client.put(href, content=LARGE, headers=bearer).status_code == 400
        assert client.put(href.replace("Signature=", "Signature=0"), content=LARGE).status_code == 403
        assert client.get(href).status_code == 403
        assert client.put(href, content=LARGE[1:]).status_code == 400
        checked = {"json": asked["objects"][0], "headers": bearer}
        assert client.post(actions["verify"]["href"], **checked).status_code == 404
        assert client.put(href, content=LARGE).headers["etag"]
        assert client.post(actions["verify"]["href"], **checked).status_code == 200


def test_commits_are_whole_or_not_at_all(hub: Hub, api: HfApi) -> None:
    repo = hub.repo("dataset", "me/data", FILES)
    head = repo.refs["refs/heads/main"]
    changes: list[Any] = [CommitOperationAdd("new.txt", SMALL), CommitOperationDelete("nothing.txt")]
    with pytest.raises(EntryNotFoundError):
        api.create_commit("me/data", changes, commit_message="c", repo_type="dataset")
    with pytest.raises(HfHubHTTPError, match="A commit has happened since") as error:
        api.create_commit(
            "me/data", changes[:1], commit_message="c", repo_type="dataset", parent_commit=repo.log()[1].oid
        )
    assert status_of(error) == 412 and repo.refs["refs/heads/main"] == head
    gone = [*changes[:1], CommitOperationDelete("data/")]
    api.create_commit("me/data", gone, commit_message="c", repo_type="dataset", parent_commit=head)
    assert repo.names() == [".gitattributes", "README.md", "new.txt"]
    pointer = {"key": "lfsFile", "value": {"path": "x.bin", "algo": "sha256", "oid": "0" * 64, "size": 1}}
    lines = "\n".join(json.dumps(line) for line in ({"key": "header", "value": {"summary": "s"}}, pointer))
    url = f"{hub.endpoint}/api/datasets/me/data/commit/main"
    assert httpx2.post(url, content=lines, headers={"Authorization": f"Bearer {WRITE}"}).status_code == 400
    assert "x.bin" not in repo.names()


def test_branches_and_pull_requests(hub: Hub, api: HfApi) -> None:
    repo = hub.repo("model", "me/m", {"a.txt": SMALL})
    api.create_branch("me/m", branch="v1/next")
    api.create_branch("me/m", branch="v1/next", exist_ok=True)
    with pytest.raises(HfHubHTTPError, match="already exists"):
        api.create_branch("me/m", branch="v1/next")
    api.upload_file(path_or_fileobj=b"1", path_in_repo="b.txt", repo_id="me/m", revision="v1/next")
    assert "b.txt" in repo.names("v1/next") and "b.txt" not in repo.names()
    with pytest.raises(RevisionNotFoundError):
        api.upload_file(path_or_fileobj=b"1", path_in_repo="b.txt", repo_id="me/m", revision="v2")
    # Anybody who can read may propose.
    proposed = as_(hub, OTHER).upload_file(path_or_fileobj=LARGE, path_in_repo="c.bin", repo_id="me/m", create_pr=True)
    assert proposed.pr_revision == "refs/pr/1" and "c.bin" in repo.names("refs/pr/1")
    api.upload_file(path_or_fileobj=b"2", path_in_repo="d.txt", repo_id="me/m", revision="refs/pr/1")
    refs = api.list_repo_refs("me/m", include_pull_requests=True)
    assert {ref.name for ref in refs.branches} == {"main", "v1/next"}
    assert [ref.ref for ref in refs.pull_requests or []] == ["refs/pr/1"]
    assert hf_hub_download("me/m", "d.txt", revision="refs/pr/1", endpoint=hub.endpoint)
    api.delete_branch("me/m", branch="v1/next")
    assert not api.revision_exists("me/m", "v1/next") and repo.names() == [".gitattributes", "a.txt"]


def test_gitignore_and_cards_are_looked_at(hub: Hub, api: HfApi, tmp_path: Path) -> None:
    folder = write(tmp_path / "there", {".gitignore": b"*.log\nold/\n", "a.log": b"", "old/b.bin": LARGE, "c": b""})
    api.create_repo("me/m")
    api.upload_folder(folder_path=folder, repo_id="me/m")
    assert hub.repos["model", "me/m"].names() == [".gitattributes", ".gitignore", "c"]
    for card, said in ((b"---\nlicense: MIT or so\n---\n", "must be one of"), (b"---\nlicense: mit\n", "do not end")):
        with pytest.raises(ValueError, match=said):
            api.upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id="me/m")
    with pytest.warns(UserWarning, match="empty or missing yaml"):
        api.upload_file(path_or_fileobj=b"# card\n", path_in_repo="README.md", repo_id="me/m")


# --- reading


def test_downloads(hub: Hub, tmp_path: Path) -> None:
    repo = hub.repo("dataset", "me/data", FILES, private=True)
    where: dict[str, Any] = {"repo_type": "dataset", "endpoint": hub.endpoint, "cache_dir": tmp_path, "token": READ}
    for name, data in FILES.items():
        path = Path(hf_hub_download("me/data", name, **where))
        assert path.read_bytes() == data and path.parts[-1 - len(Path(name).parts)] == repo.refs["refs/heads/main"]
    got = hub.files_received(), len(hub.requests)
    folder = Path(snapshot_download("me/data", **where))
    assert {name: (folder / name).read_bytes() for name in FILES} == FILES
    assert not any(request.host == "storage" for request in hub.requests[got[1] :]), "they were in the cache"
    tokens = {request.headers.get("authorization") for request in hub.requests if request.host == "storage"}
    assert tokens == {None}
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("me/data", "nothing", **where)
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download("me/data", "README.md", revision="v9", **where)


def test_what_a_file_is_called(hub: Hub) -> None:
    repo = hub.repo("dataset", "me/data", FILES)
    commit = repo.at()
    assert commit is not None
    with httpx2.Client() as client:
        small = client.head(f"{hub.endpoint}/datasets/me/data/resolve/main/data/a.txt")
        assert small.status_code == 200 and small.headers["content-length"] == str(len(SMALL))
        assert small.headers["etag"] == f'"{commit.files["data/a.txt"].oid}"'
        assert small.headers["x-repo-commit"] == commit.oid
        large = client.get(f"{hub.endpoint}/datasets/me/data/resolve/{commit.oid}/data/deep/b.parquet")
        sha256 = hashlib.sha256(LARGE).hexdigest()
        assert large.status_code == 302 and large.headers["x-linked-etag"] == f'"{sha256}"'
        assert large.headers["x-linked-size"] == str(len(LARGE)) and large.headers["x-repo-commit"] == commit.oid
        there = large.headers["location"]
        assert there.startswith(hub.storage)
        assert client.get(there, headers={"Authorization": f"Bearer {WRITE}"}).status_code == 400
        for asked, part in (
            ("0-9", LARGE[:10]),
            ("10230-", LARGE[10230:]),
            ("-7", LARGE[-7:]),
            ("5-99999", LARGE[5:]),
        ):
            got = client.get(there, headers={"Range": f"bytes={asked}"})
            assert (got.status_code, got.content) == (206, part)
        assert client.get(there, headers={"Range": f"bytes={len(LARGE)}-"}).status_code == 416
        assert client.get(f"{hub.endpoint}/api/anything").status_code == 404


def test_as_a_file_system(hub: Hub) -> None:
    hub.repo("dataset", "me/data", FILES)
    files = HfFileSystem(endpoint=hub.endpoint, token=False, skip_instance_cache=True)
    assert files.glob("datasets/me/data/**/*.parquet") == ["datasets/me/data/data/deep/b.parquet"]
    assert files.isdir("datasets/me/data/data") and not files.exists("datasets/me/data/nothing")
    assert files.info("datasets/me/data/data/a.txt")["size"] == len(SMALL)
    with files.open("datasets/me/data/data/deep/b.parquet", block_size=512) as stream:
        stream.seek(1000)
        assert stream.read(100) == LARGE[1000:1100]
    assert max(request.sent for request in hub.requests if request.host == "storage") < len(LARGE)


LOAD = """
import json, sys
from datasets import load_dataset
whole = load_dataset("me/data", split="train")
some = load_dataset("me/data", data_files={"test": "csv/*-1.csv"}, split="test")
stream = load_dataset("me/data", split="train", streaming=True)
at = load_dataset("me/data", revision="refs/pr/1", split="train")
print(json.dumps([[row["n"] for row in rows] for rows in (whole, some, stream, at)]))
"""


def test_datasets(hub: Hub, tmp_path: Path) -> None:
    rows = {
        f"csv/train-{part}.csv": "".join(["n\n", *(f"{part}{n}\n" for n in range(1, 4))]).encode() for part in (1, 2)
    }
    card = b"---\nconfigs:\n- config_name: default\n  data_files: csv/train-*.csv\n---\n"
    repo = hub.repo("dataset", "me/data", {"README.md": card, **rows}, private=True)
    main = repo.at()
    assert main is not None
    less = {path: file for path, file in main.files.items() if "2.csv" not in path}
    repo.add("refs/pr/1", less, "less", "me", main.oid)
    done = subprocess.run(
        [sys.executable, "-c", LOAD],
        env=hub.environ(tmp_path, READ),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first_, second = [11, 12, 13], [21, 22, 23]
    assert json.loads(done.stdout) == [first_ + second, first_, first_ + second, first_]


def test_the_environment_is_nobody_elses(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code = "from huggingface_hub import HfApi; print(HfApi().whoami()['name'])"
    for token, said in ((READ, "me\n"), (OTHER, "stranger\n"), (None, "")):
        done = subprocess.run(
            [sys.executable, "-c", code], env=hub.environ(tmp_path, token), capture_output=True, text=True, check=False
        )
        assert done.stdout == said
    assert os.environ["HF_TOKEN"] == "hf_of_somebody"


# --- who may not


@pytest.mark.parametrize(
    ("token", "id_", "kind", "status"),
    [
        (False, "me/public", None, None),
        (OTHER, "me/public", None, None),
        ("hf_wrong", "me/public", HfHubHTTPError, 401),
        (False, "me/private", RepositoryNotFoundError, 401),
        (OTHER, "me/private", RepositoryNotFoundError, 404),
        (READ, "me/private", None, None),
        (False, "me/absent", RepositoryNotFoundError, 401),
        (READ, "me/absent", RepositoryNotFoundError, 404),
        (False, "me/gated", GatedRepoError, 401),
        (OTHER, "me/gated", GatedRepoError, 403),
        (READ, "me/gated", None, None),
    ],
    ids=str,
)
def test_who_may_read(hub: Hub, tmp_path: Path, token: Any, id_: str, kind: Any, status: int | None) -> None:
    for name, facts in (("public", {}), ("private", {"private": True}), ("gated", {"gated": "auto"})):
        hub.repo("dataset", f"me/{name}", FILES, **facts)

    def get() -> str:
        return hf_hub_download(
            id_, "README.md", repo_type="dataset", endpoint=hub.endpoint, token=token, cache_dir=tmp_path
        )

    if kind is None:
        assert Path(get()).read_bytes() == FILES["README.md"]
        return
    with pytest.raises(HfHubHTTPError if kind is HfHubHTTPError else kind) as error:
        get()
    assert status_of(error) == status
    if "gated" in id_:  # what is in it may be known
        assert as_(hub, token).list_repo_files(id_, repo_type="dataset")


def test_readers_may_be_let_in(hub: Hub) -> None:
    hub.repo("model", "me/m", FILES, private=True, gated="manual", readers={"stranger"})
    assert as_(hub, OTHER).hf_hub_download("me/m", "README.md")


@pytest.mark.parametrize(
    ("token", "status", "said"),
    [
        ("hf_wrong", 401, "Invalid credentials"),
        (False, 401, "Invalid username or password"),
        (READ, 403, "must use a write token"),
        (OTHER, 403, "create_pr=1|don't have the rights"),
    ],
)
def test_who_may_write(hub: Hub, token: Any, status: int, said: str) -> None:
    repo = hub.repo("model", "me/m", FILES)
    before, files = dict(repo.refs), HfApi(endpoint=hub.endpoint, token=token)
    writes = [
        lambda: files.create_repo("me/new"),
        lambda: files.create_repo("org/new", repo_type="dataset"),
        lambda: files.delete_repo("me/m"),
        lambda: files.create_branch("me/m", branch="b"),
        lambda: files.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id="me/m"),
        lambda: files.upload_file(path_or_fileobj=LARGE, path_in_repo="x.bin", repo_id="me/m"),
    ]
    for attempt in writes:
        with pytest.raises(HfHubHTTPError, match=said) as error:
            attempt()
        assert status_of(error) == status
    assert repo.refs == before and set(hub.repos) == {("model", "me/m")} and hub.files_received() == 0


# --- what goes wrong


def test_busy_hubs_are_asked_again(hub: Hub, api: HfApi) -> None:
    hub.repo("model", "me/m")
    limits = {"Retry-After": "3", "RateLimit": '"api";r=0;t=7', "RateLimit-Policy": '"fixed window";"api";q=500;w=300'}
    for fault in (Fault(429, limits, "slow down"), Fault(503), Fault(500)):
        hub.fault = first(2, fault, "POST", "/preupload/")
        api.upload_file(path_or_fileobj=str(fault).encode(), path_in_repo=f"{fault.status}.txt", repo_id="me/m")
    assert hub.repos["model", "me/m"].names() == [".gitattributes", "429.txt", "500.txt", "503.txt"]
    statuses = [request.status for request in hub.requests if "/preupload/" in request.path]
    assert statuses == [429, 429, 200, 503, 503, 200, 500, 500, 200]
    hub.fault = first(99, Fault(429, limits, "slow down"), path="whoami")
    with pytest.raises(HfHubHTTPError, match="rate limit") as error:
        api.whoami()
    assert status_of(error) == 429


def test_uploads_that_are_cut(hub: Hub, api: HfApi) -> None:
    api.create_repo("me/m")
    hub.fault = first(2, Fault(cut_upload=4000), "PUT")
    api.upload_file(path_or_fileobj=LARGE, path_in_repo="x.bin", repo_id="me/m")
    assert [(r.received, r.status) for r in hub.requests if r.method == "PUT"] == [(4000, 0)] * 2 + [(len(LARGE), 200)]
    assert hub.repos["model", "me/m"].read("x.bin") == LARGE


def test_downloads_that_are_cut_go_on(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.time", SimpleNamespace(sleep=lambda seconds: None))
    hub.repo("model", "me/m", {"x.bin": LARGE})
    hub.fault = first(1, Fault(cut_download=5000), "GET", host="storage")
    where: dict[str, Any] = {"endpoint": hub.endpoint, "cache_dir": tmp_path, "token": False}
    try:
        path = hf_hub_download("me/m", "x.bin", **where)
    except httpx2.TransportError:  # a reset may look like one thing or another; asked again, it goes on all the same
        path = hf_hub_download("me/m", "x.bin", **where)
    assert Path(path).read_bytes() == LARGE
    gets = [request for request in hub.requests if request.host == "storage"]
    assert gets[0].sent == 5000 and len(gets) == 2


def test_a_lost_answer_is_not_a_lost_commit(hub: Hub, api: HfApi) -> None:
    repo = hub.repo("model", "me/m")
    hub.fault = first(1, Fault(cut_download=-1), "POST", "/commit/")
    with pytest.raises(httpx2.TransportError):
        api.upload_file(path_or_fileobj=SMALL, path_in_repo="a.txt", repo_id="me/m")
    assert repo.read("a.txt") == SMALL and len(repo.log()) == 2
    api.upload_file(path_or_fileobj=SMALL, path_in_repo="a.txt", repo_id="me/m")
    assert len(repo.log()) == 2


def test_what_is_uploaded_but_not_committed_is_kept(hub: Hub, api: HfApi) -> None:
    repo = hub.repo("model", "me/m")
    hub.fault = first(1, Fault(400, message="no"), "POST", "/commit/")
    for _ in range(2):
        try:
            api.upload_file(path_or_fileobj=LARGE, path_in_repo="x.bin", repo_id="me/m")
        except BadRequestError:
            assert "x.bin" not in repo.names() and len(repo.objects) == 1
    assert repo.read("x.bin") == LARGE and hub.files_received() == len(LARGE)


def test_hooks_see_requests_before_they_are_answered(hub: Hub, api: HfApi) -> None:
    seen: list[Request] = []

    def hook(request: Request) -> Fault | None:
        seen.append(request)
        return None

    hub.fault = hook
    api.create_repo("me/m")
    assert [(r.method, r.path) for r in seen] == [("POST", "/api/repos/create")] and seen == hub.requests
