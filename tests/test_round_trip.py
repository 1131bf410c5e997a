"""What `imaginet push` publishes comes back whole, to people who do not have this package."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.utils import _http
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, pipeline

from imaginet_hub import publish
from imaginet_hub.cards import dataset_card, write_card
from imaginet_hub.cli import main
from imaginet_hub.data.repository import build_repository
from imaginet_hub.errors import PublishError
from imaginet_hub.labels import Track
from imaginet_hub.selfcon import SelfConImageProcessor, SelfConResNetForImageClassification, register, save_publishable
from tests.conftest import image_bytes, table_rows, write_root
from tests.golden import image
from tests.selfcon.conftest import tiny
from tests.support.hub import OTHER, READ, WRITE, Fault, Hook, Hub, Repo, Request, first

LABELS = {Track.DETECTION: ("real", "synthetic"), Track.IDENTIFICATION: ("GAN", "SD", "NewNet")}

ABSENT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "imaginet_hub":
            raise ModuleNotFoundError("imaginet_hub is hidden from this process", name=name)

sys.meta_path.insert(0, Absent())
import hashlib, json
"""


# --- what is published


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_root(tmp_path_factory.mktemp("root"), table_rows(real=24, synthetic=16))


@pytest.fixture(scope="module")
def dataset(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A built dataset of many small shards."""
    folder = tmp_path_factory.mktemp("built") / "dataset"
    build_repository(root, folder, render_card=dataset_card, row_group_bytes=8_000, shard_bytes=10_000)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[Track, Path]:
    folders = {}
    for number, (track, labels) in enumerate(LABELS.items()):
        torch.manual_seed(number)
        config = tiny(backbone="test_resnet", track=str(track), id2label=dict(enumerate(labels)), trained_on=None)
        folder = tmp_path_factory.mktemp("models") / track.value
        save_publishable(
            SelfConResNetForImageClassification(config).eval(), SelfConImageProcessor(crop_size=40), folder
        )
        write_card(folder)
        folders[track] = folder
    return folders


def digest_of(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def is_there(repo: Repo, folder: Path, revision: str = "main") -> bool:
    """Whether a branch holds the folder, and nothing else but what a repository starts with."""
    names = {name for name in repo.names(revision) if name != ".gitattributes"}
    same = all(repo.read(name, revision) == (folder / name).read_bytes() for name in names - {"README.md"})
    return names == set(digest_of(folder)) and same


# --- ways to push


def command(*argv: object) -> list[str]:
    return [sys.executable, "-m", "imaginet_hub.cli", "push", *map(str, argv)]


def run(argv: list[str], hub: Hub, home: Path, token: str | None) -> subprocess.CompletedProcess[str]:
    home.mkdir(exist_ok=True)
    return subprocess.run(
        argv, env=hub.environ(home, token), cwd=home, capture_output=True, text=True, check=False, timeout=120
    )


def pushed(hub: Hub, home: Path, *argv: object, token: str = WRITE) -> str:
    done = run(command(*argv), hub, home, token)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        yield server


@pytest.fixture
def push_here(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`imaginet push` in this process, which waits for nobody."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(sys.modules["huggingface_hub.utils.tqdm"], "HF_HUB_DISABLE_PROGRESS_BARS", True)
    for module in (_http, publish):
        monkeypatch.setattr(module, "time", SimpleNamespace(sleep=lambda seconds: None, monotonic=time.monotonic))

    def call(*argv: object, token: str | None = WRITE) -> int:
        if token is None:
            monkeypatch.delenv("HF_TOKEN", raising=False)
        else:
            monkeypatch.setenv("HF_TOKEN", token)
        return main(["push", "--quiet", *map(str, argv)])

    return call


# --- there and back


@pytest.fixture(scope="module")
def published(
    dataset: Path, models: dict[Track, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Hub, Path]]:
    """A Hub that the dataset (private) and both models were pushed to, from the shell."""
    home = tmp_path_factory.mktemp("publisher")
    with Hub() as hub:
        address = pushed(hub, home, dataset, "me/data", "--private")
        assert address.startswith(f"{hub.endpoint}/datasets/me/data/commit/")
        for track, folder in models.items():
            pushed(hub, home, folder, f"me/{track}", "--repo-type", "model")
        yield hub, home


def test_all_of_it_is_there(published: tuple[Hub, Path], dataset: Path, models: dict[Track, Path]) -> None:
    hub, _ = published
    assert {key: repo.private for key, repo in hub.repos.items()} == {
        ("dataset", "me/data"): True,
        ("model", "me/detection"): False,
        ("model", "me/identification"): False,
    }
    for (_, id_), repo in hub.repos.items():
        assert is_there(repo, dataset if id_ == "me/data" else models[Track(id_[3:])])
        assert len(repo.log()) == 2, "the repository's own commit, and one more"
        card = repo.read("README.md").decode()
        assert id_ in card and "PATH_OR_REPO" not in card


LOAD = (
    ABSENT
    + """
from datasets import Image, load_dataset

def told(rows):
    first = next(iter(rows))["image"]
    seen = [{**row, "image": hashlib.sha256(row["image"]["bytes"]).hexdigest()}
            for row in rows.cast_column("image", Image(decode=False))]
    return {"rows": seen, "first": hashlib.sha256(first.convert("RGB").tobytes()).hexdigest()}

found = {}
for config in ("detection", "identification"):
    for how in (False, True):
        loaded = load_dataset(sys.argv[1], config, streaming=how)
        found[f"{config} {'streamed' if how else 'whole'}"] = {split: told(rows) for split, rows in loaded.items()}
names = load_dataset(sys.argv[1], split="test").features["label"].names
print(json.dumps({"found": found, "names": names, "hidden": "imaginet_hub" not in sys.modules}))
"""
)


def test_the_dataset_comes_back(published: tuple[Hub, Path], dataset: Path, root: Path, tmp_path: Path) -> None:
    hub, _ = published
    done = run([sys.executable, "-c", LOAD, "me/data"], hub, tmp_path / "reader", READ)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["hidden"] and answer["names"] == ["real", "synthetic"]
    built: dict[str, list[dict[str, Any]]] = {}
    for split in ("train", "test"):
        shards = sorted((dataset / "data").glob(f"{split}-*.parquet"))
        assert len(shards) > 1
        built[split] = [row for shard in shards for row in pq.read_table(shard).to_pylist()]
    assert sum(map(len, built.values())) == 40
    for kind, splits in answer["found"].items():
        assert set(splits) == {"train", "test"}
        for split, told in splits.items():
            rows = [row for row in built[split] if kind.startswith("detection") or row["label"] == 1]
            assert told["rows"] == [
                {**row, "image": hashlib.sha256((root / row["path"]).read_bytes()).hexdigest()} for row in rows
            ]
            with Image.open(root / rows[0]["path"]) as picture:
                assert told["first"] == hashlib.sha256(picture.convert("RGB").tobytes()).hexdigest()


LOAD_MODELS = (
    ABSENT
    + """
import numpy as np
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, pipeline

pictures = [Image.fromarray(array) for array in np.load(sys.argv[1]).values()]
found = {}
for repo in sys.argv[2:]:
    trust = {"trust_remote_code": True}
    inputs = AutoImageProcessor.from_pretrained(repo, **trust)(pictures, return_tensors="pt")
    logits = AutoModelForImageClassification.from_pretrained(repo, **trust)(**inputs).logits
    features = AutoModel.from_pretrained(repo, **trust)(**inputs).pooler_output
    scores = pipeline("image-classification", model=repo, **trust)(pictures, top_k=None)
    found[repo] = [*(t.detach().numpy().tobytes().hex() for t in (inputs["pixel_values"], logits, features)), scores]
print(json.dumps({"found": found, "hidden": "imaginet_hub" not in sys.modules}))
"""
)


def test_the_models_come_back(published: tuple[Hub, Path], models: dict[Track, Path], tmp_path: Path) -> None:
    hub, _ = published
    arrays = [image(seed, 50, 60) for seed in (1, 2, 3)]
    np.savez(tmp_path / "pictures.npz", *arrays)
    argv = [sys.executable, "-c", LOAD_MODELS, str(tmp_path / "pictures.npz"), *(f"me/{track}" for track in models)]
    done = run(argv, hub, tmp_path / "reader", None)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["hidden"]
    register()
    pictures = [Image.fromarray(array) for array in arrays]
    for track, folder in models.items():
        inputs = AutoImageProcessor.from_pretrained(folder)(pictures, return_tensors="pt")
        with torch.no_grad():
            logits = AutoModelForImageClassification.from_pretrained(folder)(**inputs).logits
            features = AutoModel.from_pretrained(folder)(**inputs).pooler_output
        assert logits.shape == (3, len(LABELS[track]))
        *tensors, scores = answer["found"][f"me/{track}"]
        assert tensors == [t.numpy().tobytes().hex() for t in (inputs["pixel_values"], logits, features)]
        assert scores == pipeline("image-classification", model=str(folder))(pictures, top_k=None)
        assert {score["label"] for score in scores[0]} == set(LABELS[track])


def test_a_second_push_moves_nothing(
    published: tuple[Hub, Path], dataset: Path, models: dict[Track, Path], tmp_path: Path
) -> None:
    hub, home = published
    logs = {key: repo.log() for key, repo in hub.repos.items()}
    asked = len(hub.requests)
    before = hub.repos["dataset", "me/data"].refs["refs/heads/main"]
    assert pushed(hub, home, dataset, "me/data", "--private").endswith(before)
    pushed(hub, tmp_path / "another", models[Track.DETECTION], "me/detection")  # on another machine, so to speak
    assert hub.files_received(asked) == 0
    assert not any("/commit/" in r.path or r.method == "PUT" for r in hub.requests[asked:])
    assert {key: repo.log() for key, repo in hub.repos.items()} == logs


STRANGER = (
    ABSENT
    + """
from datasets import load_dataset
from huggingface_hub import hf_hub_download
for get in (lambda: load_dataset(sys.argv[1]), lambda: hf_hub_download(sys.argv[1], "README.md", repo_type="dataset")):
    try:
        get()
    except Exception as error:
        print(type(error).__name__)
"""
)


@pytest.mark.parametrize("token", [None, OTHER], ids=["nobody", "stranger"])
def test_private_is_private(published: tuple[Hub, Path], token: str | None, tmp_path: Path) -> None:
    hub, _ = published
    asked = len(hub.requests)
    done = run([sys.executable, "-c", STRANGER, "me/data"], hub, tmp_path / "reader", token)
    assert done.stdout.split() == ["DatasetNotFoundError", "RepositoryNotFoundError"], done.stderr
    answers = {r.status for r in hub.requests[asked:] if "me/data" in r.path}
    assert answers == {401 if token is None else 404}


# --- interruptions


def killing(process: list[subprocess.Popen[str]], kept: int, match: Callable[[Request], bool], hub: Hub) -> Hook:
    """Kills the client at its first such request after `kept` large files are there."""
    lock, seen = threading.Lock(), [0]

    def hook(request: Request) -> Fault | None:
        if not match(request):
            return None
        with lock:
            seen[0] += 1
            if seen[0] <= kept:
                return None
        until = time.monotonic() + 20
        while len(hub.repos["dataset", "me/data"].objects) < kept and time.monotonic() < until:
            time.sleep(0.005)
        os.kill(process[0].pid, signal.SIGKILL)
        return Fault(cut_upload=0)

    return hook


@pytest.mark.parametrize("at", ["upload", "commit"])
def test_a_killed_push_goes_on(hub: Hub, dataset: Path, tmp_path: Path, at: str) -> None:
    large = [path.stat().st_size for path in dataset.rglob("*.parquet")]
    kept = 3 if at == "upload" else 0
    process: list[subprocess.Popen[str]] = []
    hub.fault = killing(process, kept, lambda r: r.method == "PUT" if at == "upload" else "/commit/" in r.path, hub)
    argv = command(dataset, "me/data")
    process.append(
        subprocess.Popen(argv, env=hub.environ(tmp_path, WRITE), cwd=tmp_path, stderr=subprocess.DEVNULL, text=True)
    )
    assert process[0].wait(60) == -signal.SIGKILL
    repo = hub.repos["dataset", "me/data"]
    assert repo.names() == [".gitattributes"] and len(repo.log()) == 1, "nothing is published yet"
    there = set(repo.objects)
    assert len(there) == (kept if at == "upload" else len(large)) and kept < len(large)

    hub.fault, asked = None, len(hub.requests)
    pushed(hub, tmp_path, dataset, "me/data")
    assert is_there(repo, dataset) and len(repo.log()) == 2
    whole = [request for request in hub.requests if request.method == "PUT" and request.status == 200]
    assert len(whole) == len({request.path for request in whole}) == len(large), "each came once, in either push"
    assert sum(request.files for request in whole) == sum(large)
    moved = {request.path.rpartition("/")[2] for request in hub.requests[asked:] if request.method == "PUT"}
    assert moved == set(repo.objects) - there


def test_a_line_that_is_cut(hub: Hub, dataset: Path, push_here: Callable[..., int]) -> None:
    faults = [
        first(2, Fault(cut_upload=5_000), "PUT"),
        first(1, Fault(cut_download=-1), "PUT"),  # it came, and nobody said so
        first(1, Fault(cut_download=-1), "POST", "/commit/"),
        first(1, Fault(cut_download=-1), "POST", "/repos/create"),
        first(1, Fault(503, {"Retry-After": "1"}), path="/whoami"),
        first(1, Fault(429, {"RateLimit": '"api";r=0;t=2'}), "POST", "/preupload/"),
        first(1, Fault(500), "GET", "/tree/"),
    ]
    hub.fault = lambda request: next(filter(None, (fault(request) for fault in faults)), None)
    assert push_here(dataset, "me/data") == 0
    repo = hub.repos["dataset", "me/data"]
    assert is_there(repo, dataset) and len(repo.log()) == 2
    cut = [request for request in hub.requests if request.method == "PUT" and request.status == 0]
    assert len(cut) == 3


def test_readers_see_the_old_or_the_new(
    hub: Hub, dataset: Path, root: Path, tmp_path: Path, push_here: Callable[..., int]
) -> None:
    """A dataset that was built anew replaces the old one in one step: no file of it stays among the new ones."""
    assert push_here(dataset, "me/data") == 0
    repo = hub.repos["dataset", "me/data"]
    newer = tmp_path / "newer"
    build_repository(root, newer, render_card=dataset_card)
    assert set(digest_of(newer)) != set(digest_of(dataset))
    seen: list[bool] = []

    def watch(request: Request) -> None:
        seen.append(is_there(repo, dataset))

    hub.fault = watch
    assert push_here(newer, "me/data") == 0
    assert seen and all(seen[:-1]), "the old one, until the commit was asked for"
    assert is_there(repo, newer) and len(repo.log()) == 3


# --- branches and pull requests


def test_a_branch(hub: Hub, models: dict[Track, Path], push_here: Callable[..., int]) -> None:
    folder = models[Track.DETECTION]
    assert push_here(folder, "me/m", "--revision", "v1/next") == 0
    repo = hub.repos["model", "me/m"]
    assert is_there(repo, folder, "v1/next") and repo.names() == [".gitattributes"]
    moved = len(hub.requests)
    assert push_here(folder, "me/m", "--revision", "v1/next") == 0
    assert hub.files_received(moved) == 0 and len(repo.log("v1/next")) == 2
    assert push_here(folder, "me/m") == 0
    assert is_there(repo, folder)


def test_a_pull_request(
    hub: Hub, models: dict[Track, Path], push_here: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    """Anybody may propose to a repository that he can see."""
    folder = models[Track.DETECTION]
    repo = hub.repo("model", "me/m")
    assert push_here(folder, "me/m", "--create-pr", token=OTHER) == 0
    assert capsys.readouterr().out.strip() == f"{hub.endpoint}/me/m/discussions/1"
    assert is_there(repo, folder, "refs/pr/1") and repo.names() == [".gitattributes"]
    assert repo.log("refs/pr/1")[0].author == "stranger"
    assert push_here(folder, "me/m", "--create-pr", "--revision", "v1", token=OTHER) == 2


# --- what is said when it does not work


def forever(fault: Fault, method: str = "", path: str = "") -> Hook:
    return first(10**6, fault, method, path)


@pytest.mark.parametrize(
    ("token", "fault", "said"),
    [
        (None, None, "no token"),
        ("hf_wrong", None, "log in"),
        (READ, None, "may not write"),
        (OTHER, None, "may not write"),
        (WRITE, forever(Fault(404, {"X-Error-Code": "RepoNotFound"}, "gone"), "POST", "/preupload/"), "name"),
        (WRITE, forever(Fault(429, {"Retry-After": "9"}, "slow down")), "patience"),
        (WRITE, forever(Fault(429, {"RateLimit": '"api";r=0;t=9'}, "slow"), "POST", "/commit/"), "patience"),
        (WRITE, forever(Fault(503)), "again"),
        (WRITE, forever(Fault(500), "POST", "/preupload/"), "again"),
        (WRITE, forever(Fault(502), "PUT"), "again"),
        (WRITE, forever(Fault(413, {}, "too large"), "PUT"), "no files of that size"),
        (WRITE, forever(Fault(cut_upload=100), "PUT"), "again"),
        (WRITE, forever(Fault(cut_download=-1), "GET", "/tree/"), "again"),
        (WRITE, forever(Fault(400, {}, "no\nand more"), "POST", "/batch"), "no"),
        (WRITE, forever(Fault(401, {}, "expired"), "POST", "/commit/"), "log in"),
    ],
    ids=[
        "no token", "wrong token", "read token", "stranger", "404", "429", "429 commit", "503", "500 preupload",
        "502 upload", "413", "cut upload", "cut listing", "400 batch", "401 commit",
    ],
)  # fmt: skip
def test_refusals_are_one_line(
    hub: Hub,
    models: dict[Track, Path],
    push_here: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    token: str | None,
    fault: Hook | None,
    said: str,
) -> None:
    repo = hub.repo("model", "me/m", {"README.md": b"---\nlicense: mit\n---\nolder\n"}, private=token == OTHER)
    folder = models[Track.DETECTION]
    here, there = digest_of(folder), repo.log()
    hub.fault = fault
    assert push_here(folder, "me/m", token=token) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("imaginet push: me/m: ") and said in lines[-1]
    assert not any("Traceback" in line or line.startswith("  ") for line in lines)
    assert digest_of(folder) == here and repo.log() == there
    # Nothing that went wrong stays.
    hub.fault, repo.private = None, False
    assert push_here(folder, "me/m") == 0
    assert is_there(repo, folder)


def test_refusals_from_the_shell(hub: Hub, models: dict[Track, Path], tmp_path: Path) -> None:
    done = run(command(models[Track.DETECTION], "me/m", "--quiet"), hub, tmp_path, READ)
    assert done.returncode == 1 and done.stdout == "" and not hub.repos
    assert done.stderr.startswith("imaginet push: me/m: ") and "may not write" in done.stderr
    assert done.stderr.count("\n") == 1


def test_storage_knows_no_tokens(
    hub: Hub, models: dict[Track, Path], push_here: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    """An address that has expired is no reason to look for another token."""
    hub.fault = forever(Fault(403, {}, "SignatureDoesNotMatch"), "PUT")
    assert push_here(models[Track.DETECTION], "me/m") == 1
    said = capsys.readouterr().err
    assert "token" not in said and "run the same command again" in said


def test_what_else_is_on_the_hub_stays(hub: Hub, models: dict[Track, Path], push_here: Callable[..., int]) -> None:
    theirs = {name: b"x" for name in ("app.py", "examples/train.py", "onnx/int8.safetensors", "results/paper.txt")}
    stale = {"model-00001-of-00002.safetensors": b"y", "results/old.json": b"{}"}
    repo = hub.repo("model", "me/m", theirs | stale)
    assert push_here(models[Track.DETECTION], "me/m") == 0
    assert theirs.keys() <= set(repo.names()) and not stale.keys() & set(repo.names())
    # What is excluded stays there, too.
    assert push_here(models[Track.DETECTION], "me/m", "--exclude", "*.safetensors") == 0
    assert "model.safetensors" in repo.names()


@pytest.mark.usefixtures("push_here")
def test_what_was_looked_at_is_what_is_sent(hub: Hub, models: dict[Track, Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(models[Track.DETECTION], folder)
    (folder / "notes.txt").write_text("harmless")
    plan = publish.plan_push(folder, "me/m")
    (folder / "notes.txt").unlink()
    (folder / "notes.txt").symlink_to("/etc/hostname")
    with pytest.raises(PublishError, match="has changed since"):
        publish.push(plan, token=WRITE)
    assert "notes.txt" not in hub.repos["model", "me/m"].names()


def test_addresses_that_let_anybody_write_are_not_shown(
    hub: Hub, models: dict[Track, Path], push_here: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    hub.fault = forever(Fault(413, {}, "too large"), "PUT")
    assert push_here(models[Track.DETECTION], "me/m") == 1
    assert "Signature=" not in capsys.readouterr().err


@pytest.mark.parametrize("where", ["here", "there"])
def test_no_file_is_left_out_in_silence(
    hub: Hub,
    models: dict[Track, Path],
    push_here: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    where: str,
) -> None:
    """The Hub leaves out of a commit what a .gitignore names, one that comes with it or one that is there."""
    ignore = {".gitignore": b"*.safetensors\n"}
    folder = tmp_path / "model"
    shutil.copytree(models[Track.DETECTION], folder)
    repo = hub.repo("model", "me/m", ignore if where == "there" else None)
    if where == "here":
        (folder / ".gitignore").write_bytes(ignore[".gitignore"])
    assert push_here(folder, "me/m") == 1
    assert ".gitignore" in capsys.readouterr().err and "config.json" not in repo.names()


def test_somebody_else_pushed_meanwhile(
    hub: Hub, models: dict[Track, Path], push_here: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    repo = hub.repo("model", "me/m")
    folder = models[Track.DETECTION]

    def hook(request: Request) -> None:
        if "/commit/" in request.path and len(repo.log()) == 1:
            base = repo.log()[0]
            repo.add("refs/heads/main", base.files, "another's", "me", base.oid)

    hub.fault = hook
    assert push_here(folder, "me/m") == 1
    assert "meanwhile" in capsys.readouterr().err.splitlines()[-1]
    assert [commit.title for commit in repo.log()] == ["another's", "initial commit"]
    assert push_here(folder, "me/m") == 0 and is_there(repo, folder)


def test_nobody_is_there(
    hub: Hub,
    models: dict[Track, Path],
    push_here: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        assert push_here(models[Track.DETECTION], "me/m") == 1
    assert "run the same command again" in capsys.readouterr().err.splitlines()[-1]


def test_gated_repositories_take_their_owners_push(
    hub: Hub, dataset: Path, push_here: Callable[..., int], tmp_path: Path
) -> None:
    repo = hub.repo("dataset", "me/data", gated="manual")
    assert push_here(dataset, "me/data") == 0 and is_there(repo, dataset)
    done = run([sys.executable, "-c", STRANGER, "me/data"], hub, tmp_path / "reader", OTHER)
    assert done.stdout.split() == ["DatasetNotFoundError", "GatedRepoError"], done.stderr


def test_private_does_not_hide_what_is_public(
    hub: Hub, models: dict[Track, Path], push_here: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    repo = hub.repo("model", "me/m")
    assert push_here(models[Track.DETECTION], "me/m", "--private") == 1
    assert "public" in capsys.readouterr().err and repo.names() == [".gitattributes"]


def test_a_dry_run_asks_nobody(
    hub: Hub, dataset: Path, push_here: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert push_here(dataset, "me/data", "--dry-run", token=None) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in digest_of(dataset)) and not hub.requests
    spoiled = tmp_path / "spoiled"
    shutil.copytree(dataset, spoiled)
    (spoiled / "weights.pkl").write_bytes(b"\x80\x04N.")
    for argv in (["--dry-run"], []):
        assert push_here(spoiled, "me/data", *argv) == 1
    assert not hub.requests


def test_what_may_not_be_passed_on_stays(
    hub: Hub, tmp_path: Path, push_here: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = table_rows(real=24, synthetic=16)
    for row in rows[::4]:
        row["license"] = "All rights reserved"
    (tmp_path / "root").mkdir()
    root = write_root(tmp_path / "root", rows)
    folder = tmp_path / "dataset"
    build_repository(root, folder, render_card=dataset_card)
    assert push_here(folder, "me/data", "--dry-run", token=None) == 1 and not hub.requests
    assert push_here(folder, "me/data") == 0
    repo = hub.repos["dataset", "me/data"]
    found: list[str] = []
    for name in repo.names():
        if name.endswith(".parquet"):
            (tmp_path / "one.parquet").write_bytes(repo.read(name))
            found += pq.read_table(tmp_path / "one.parquet", columns=["path"])["path"].to_pylist()
    assert sorted(found) == sorted(row["path"] for n, row in enumerate(rows) if n % 4)
    withheld = repo.read("withheld.csv").decode()
    assert all(row["path"] in withheld for row in rows[::4])
    stays = {image_bytes(n, (40, 32), "PNG") for n in range(0, 40, 4) if rows[n]["path"].endswith(".png")}
    assert stays and not any(picture in repo.read(name) for picture in stays for name in repo.names())
    # Again, and nothing moves; with the right to, all of it goes.
    asked = len(hub.requests)
    assert push_here(folder, "me/data") == 0 and hub.files_received(asked) == 0
    assert push_here(folder, "me/data", "--redistribute", "All rights reserved") == 0
    assert "withheld.csv" not in repo.names()
    assert "states the right to redistribute: All rights reserved" in repo.read("NOTICE").decode()
    (folder / "NOTICE").write_bytes(repo.read("NOTICE"))
    assert is_there(repo, folder)
