"""What must not be published, in every wrapping, and what only looks like it."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imaginet_hub.screening import refusal
from tests.conftest import PROJECT, image_bytes


class Evil:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return print, ("run",)


def zipped(name: str, content: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(name, content)
    return stream.getvalue()


def tarred(name: str, content: bytes, mode: str = "w") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:  # type: ignore[call-overload]
        info = tarfile.TarInfo(name)
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def old_tar(name: str, content: bytes) -> bytes:
    """As tar wrote it before 1988, without a mark: only the sum of its header tells."""
    archive = bytearray(tarred(name, content))
    archive[148:156], archive[257:265] = b" " * 8, bytes(8)
    archive[148:156] = b"%06o\0 " % sum(archive[:512])
    return bytes(archive)


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def safetensors() -> bytes:
    header = json.dumps({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return struct.pack("<Q", len(header)) + header + b"\0\0\0\0"


def parquet() -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table({"x": [1]}), stream)
    return stream.getvalue()


def check(tmp_path: Path, name: str, content: bytes, repo_type: str = "model") -> str | None:
    file = tmp_path / "file"
    file.write_bytes(content)
    return refusal(file, name, repo_type, "repo")


PICKLES = {f"protocol {number}": pickle.dumps(Evil(), protocol=number) for number in range(6)}
#: What pickles come in, as bytes of one with a call in it.
WRAPPED = {
    **PICKLES,
    "data only": pickle.dumps({"a": [1, 2, 3], "b": "c"}, protocol=4),
    "data only, protocol 0": pickle.dumps({"a": [1, 2, 3], "b": "c"}, protocol=0),
    "long": pickle.dumps([Evil(), b"x" * 5_000_000], protocol=4),
    "cut": pickle.dumps([Evil(), b"x" * 1000], protocol=4)[:-600],
    "with more behind": pickle.dumps(Evil()) + b"and more",
    "zip": zipped("archive/data.pkl", pickle.dumps(Evil())),
    "zip, another name": zipped("notes.txt", pickle.dumps(Evil())),
    "zip behind an image": image_bytes(1) + zipped("archive/data.pkl", pickle.dumps(Evil())),
    "zip in a zip": zipped("a.zip", zipped("b", pickle.dumps(Evil()))),
    "tar": tarred("x/y", pickle.dumps(Evil())),
    "tar.gz": tarred("x/y", pickle.dumps(Evil()), "w:gz"),
    "gzip": gzip.compress(pickle.dumps(Evil())),
    "bz2": bz2.compress(pickle.dumps(Evil())),
    "xz": lzma.compress(pickle.dumps(Evil())),
    "zlib": zlib.compress(pickle.dumps(Evil())),
    "array of objects": npy(np.array([Evil(), None], dtype=object)),
    "7z": b"7z\xbc\xaf\x27\x1c" + b"\0" * 100,
    "damaged gzip": gzip.compress(b"x" * 1000)[:20],
    "lzma": lzma.compress(pickle.dumps(Evil()), format=lzma.FORMAT_ALONE),
    "old tar": old_tar("x/y", pickle.dumps(Evil())),
    "array of objects, late": npy(np.zeros(2, dtype=[*((f"f{n}", "f4") for n in range(99)), ("o", "O")])),
    **{
        f"{where}long first, protocol {number}": wrap(pickle.dumps([b"x" * 5_000_000, Evil()], protocol=number))
        for number in range(6)
        for where, wrap in (
            ("", bytes),
            ("gzip, ", lambda b: gzip.compress(b, 1)),
            ("zlib, ", lambda b: zlib.compress(b, 1)),
        )
    },
    "large zip in a zip": zipped("a", zipped("pad", bytes(5_000_000)) + zipped("b", pickle.dumps(Evil()))),
}


@pytest.mark.parametrize("kind", list(WRAPPED))
@pytest.mark.parametrize("name", ["notes.txt", "picture.png"])
def test_pickles_by_content(tmp_path: Path, kind: str, name: str) -> None:
    assert check(tmp_path, name, WRAPPED[kind])


@pytest.mark.parametrize("name", ["training_args.bin", "a/optimizer.pt", "model.PTH", "x.pkl", "y.joblib", "z.ckpt"])
def test_pickles_by_name(tmp_path: Path, name: str) -> None:
    assert "pickle" in (check(tmp_path, name, b"harmless") or "")


def test_a_checkpoint_of_torch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    for zip_ in (True, False):
        stream = io.BytesIO()
        torch.save({"weight": torch.zeros(3)}, stream, _use_new_zipfile_serialization=zip_)
        assert "pickle" in (check(tmp_path, "model.safetensors.txt", stream.getvalue()) or "")


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("model.safetensors", pickle.dumps(Evil()), "not a safetensors"),
        ("model.safetensors", struct.pack("<Q", 2**62) + b"{}", "not a safetensors"),
        ("model.safetensors", b"", "not a safetensors"),
        ("data/train.parquet", b"PAR1 nothing else", "not a Parquet"),
        ("data/train.parquet", b"PAR1", "not a Parquet"),
    ],
    ids=["pickle", "length", "empty", "no end", "short"],
)
def test_what_is_not_what_it_says(tmp_path: Path, name: str, content: bytes, what: str) -> None:
    assert what in (check(tmp_path, name, content) or "")


SECRET = {
    "Hugging Face": b"hf_" + b"a1B2" * 9,
    "GitHub": b"ghp_" + b"a1B2" * 9,
    "AWS": b"AKIA" + b"ABCD" * 4,
    "Kaggle": b'{"username": "me", "key": "' + b"0a" * 16 + b'"}',
    "private key": b"-----BEGIN RSA PRIVATE KEY-----",
    "OpenAI": b"sk-proj-" + b"a1B2" * 12,
    "PGP": b"-----BEGIN PGP PRIVATE KEY BLOCK-----",
    "GitLab": b"glpat-" + b"a1B2" * 5,
    "password": b"https://me:correcthorse@example.org/x.git",
    "AWS secret": b"aws_secret_access_key = " + b"a1B2" * 10,
    "variable": b"export KAGGLE_KEY=" + b"0a" * 16,
}


@pytest.mark.parametrize("kind", list(SECRET))
def test_secrets_by_content(tmp_path: Path, kind: str) -> None:
    assert "it holds" in (check(tmp_path, "config.json", b'{"x": "' + SECRET[kind] + b'"}') or "")
    # Wherever it is, also across the pieces that are read.
    for place in (3_999_990, 4_000_000, 7_999_999):
        assert "it holds" in (check(tmp_path, "notes.md", b" " * place + SECRET[kind] + b" " * 100) or "")


@pytest.mark.parametrize(
    "name",
    [".env", "conf/.env.local", ".envrc", "kaggle.json", "token", "hub_token", "id_rsa.bak", "server.pem", ".netrc"],
)
def test_secrets_by_name(tmp_path: Path, name: str) -> None:
    assert "secrets" in (check(tmp_path, name, b"x") or "")


def test_secrets_in_wrappings(tmp_path: Path) -> None:
    text = b"token: " + SECRET["Hugging Face"]
    for content in (
        gzip.compress(text),
        zipped("log.txt", text),
        tarred("log.txt", text),
        text.decode().encode("utf-16"),
    ):
        assert "it holds a Hugging Face token" in (check(tmp_path, "log.dat", content) or "")
    assert "secrets" in (check(tmp_path, "a.zip", zipped("x/.env", b"A=1")) or "")


def test_loading_scripts(tmp_path: Path) -> None:
    assert "loading script" in (check(tmp_path, "imaginet.py", b"pass", "dataset") or "")
    assert "loading script" in (check(tmp_path, "repo.py", b"pass", "dataset") or "")
    assert check(tmp_path, "imaginet.py", b"pass", "model") is None


HARMLESS = {
    "README.md": b"---\nlicense: other\n---\n# A title\n",
    "NOTICE": b"N.B. This is text.\n",
    "empty.txt": b"",
    "dot.txt": b".",
    "merges.txt": b"(ad" * 30,
    "links.md": b"see sk-learn-contrib-project-template-and-more-of-it and https://example.org:8080/a@b",
    "offset.npy": npy(np.zeros(2, dtype=[("Offset", "f4")])),
    "config.json": b'{"hf_token": null, "tokenizer": "x"}',
    "tokenizer.json": b"{}",
    "modeling.py": b"import pickle\ncopy = 1\n",
    "table.csv": b"path,label\na.png,real\n",
    "picture.png": image_bytes(1),
    "picture.jpg": image_bytes(2, format_="JPEG"),
    "picture.webp": image_bytes(3, format_="WEBP"),
    "x.npy": npy(np.zeros(4)),
    "x.zip": zipped("a.txt", b"text"),
    "x.jsonl.gz": gzip.compress(b'{"a": 1}\n'),
    "model.safetensors": safetensors(),
    "data/train.parquet": parquet(),
}


@pytest.mark.parametrize("name", list(HARMLESS))
def test_what_may_go(tmp_path: Path, name: str) -> None:
    assert check(tmp_path, name, HARMLESS[name], "dataset") is None


def test_nothing_of_this_project_looks_like_a_pickle(tmp_path: Path) -> None:
    """Some hundred files of text; and bytes at random, which are no text."""
    rng = np.random.default_rng(0)
    texts = [file.read_bytes() for file in sorted((PROJECT / "imaginet_hub").rglob("*.py"))]
    texts += [file.read_bytes() for file in sorted(PROJECT.glob("*.md"))]
    for content in texts:
        assert check(tmp_path, "file.txt", content) is None
    found = [check(tmp_path, "file.dat", b"\x00" + rng.bytes(2000)) for _ in range(300)]
    assert not any(found)
