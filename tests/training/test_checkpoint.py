"""Checkpoints that nobody vouches for: what is read, and what is refused, without a bit of it being run."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import random
import re
import struct
import subprocess
import sys
import threading
import time
import zipfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from imaginet_hub.cli import main
from imaginet_hub.errors import DataNotFoundError, ModelError
from imaginet_hub.selfcon import SelfConResNetConfig, SelfConResNetForPreTraining
from imaginet_hub.training import checkpoint
from imaginet_hub.training.checkpoint import _Refused, read_checkpoint
from imaginet_hub.training.convert import _check_answers, _check_network, _sound

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, of protocols and of sparse tensors

LEGACY = b"".join(
    pickle.dumps(part, 2)
    for part in (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}})
)


# --- a pickle, by hand -----------------------------------------------------------------------------------------------


def text(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def named(path: str) -> bytes:
    module, _, name = path.rpartition(".")
    return f"c{module}\n{name}\n".encode()


def several(*values: bytes) -> bytes:
    return b"(" + b"".join(values) + b"t"


def mapping(*keys_and_values: bytes) -> bytes:
    return b"}(" + b"".join(keys_and_values) + b"u"


def call(path: str, *arguments: bytes) -> bytes:
    return named(path) + several(*arguments) + b"R"


def program(value: bytes, protocol: int = 2) -> bytes:
    return b"\x80" + bytes([protocol]) + value + b"."


def storage(kind: str = "torch.FloatStorage", key: str = "0", count: int = 16) -> bytes:
    return several(text("storage"), named(kind), text(key), text("cpu"), number(count)) + b"Q"


EMPTY = named("collections.OrderedDict") + b")R"


def view(
    size: tuple[int, ...] = (4,), stride: tuple[int, ...] = (1,), offset: int = 0, of: bytes = storage()
) -> bytes:
    """Arguments of `torch._utils._rebuild_tensor_v2`."""
    return several(of, number(offset), several(*map(number, size)), several(*map(number, stride)), b"\x89", EMPTY)


def tensor(*args: Any, **kwargs: Any) -> bytes:
    return named("torch._utils._rebuild_tensor_v2") + view(*args, **kwargs) + b"R"


def model(value: bytes, key: bytes = text("w")) -> bytes:
    return program(mapping(text("model"), b"}" + key + value + b"s"))


def attributes(**values: bytes) -> bytes:
    """A tensor with attributes of its own in the place of methods."""
    state = mapping(*(part for name, value in values.items() for part in (text(name), value)))
    rebuild = named("torch._utils._rebuild_tensor_v2")
    return call("torch._tensor._rebuild_from_type_v2", rebuild, named("torch.Tensor"), view(), state)


def archive(
    pickled: bytes | None, *more: tuple[str, bytes], method: int = zipfile.ZIP_STORED, name: str = "a"
) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", method) as members:
        if pickled is not None:
            members.writestr(f"{name}/data.pkl", pickled)
        members.writestr(f"{name}/data/0", bytes(64))
        members.writestr(f"{name}/version", "3\n")
        for member, content in more:
            members.writestr(member, content)
    return made.getvalue()


def saved(value: Any, **how: Any) -> bytes:
    made = io.BytesIO()
    torch.save(value, made, **how)
    return made.getvalue()


def read(content: bytes, folder: Path, file_name: str = "file.pt") -> dict[str, Any]:
    """As the other process does it, in this one."""
    file = folder / file_name
    file.write_bytes(content)
    try:
        checkpoint._check_kind(file, len(content))
    except ModelError as error:
        raise _Refused(str(error)) from error
    return checkpoint._read(str(file), len(content), str(folder / "weights.safetensors"))


def refused(content: bytes, folder: Path) -> str:
    with pytest.raises(_Refused) as caught:
        read(content, folder)
    said = str(caught.value)
    assert len(said) < 700
    assert said.isprintable()
    assert not (folder / "marker").exists()
    assert not (folder / "weights.safetensors").exists()
    return said


# --- what is read ----------------------------------------------------------------------------------------------------

SMALL = {"model": {"w": torch.arange(24.0).view(2, 3, 2, 2), "n": torch.tensor(3)}, "epoch": 7}


@pytest.mark.parametrize("legacy", [False, True])
def test_numbers_arrive(tmp_path: Path, legacy: bool) -> None:
    state = {"w": SMALL["model"]["w"], "n": torch.tensor(3), "half": torch.tensor([0.5, 2.0]).half()}  # type: ignore[index]
    state["last"] = state["w"].to(memory_format=torch.channels_last)
    state["t"] = torch.arange(6.0).view(2, 3).t()
    state["p"] = torch.nn.Parameter(torch.ones(2))
    state["brain"], state["double"] = torch.tensor([1.5]).bfloat16(), torch.tensor([1e300]).double()
    content = saved({"model": state, "classifier": {"b": state["w"][0]}}, _use_new_zipfile_serialization=not legacy)
    found = read(content, tmp_path)
    assert found["dtypes"] == ["bfloat16", "float16", "float32", "float64"]
    kept = load_file(tmp_path / "weights.safetensors")
    assert torch.equal(kept.pop("classifier/b"), state["w"][0])
    assert {name.removeprefix("model/") for name in kept} == set(state)
    for name, value in state.items():
        assert torch.equal(kept[f"model/{name}"], value), name
        assert kept[f"model/{name}"].dtype == value.dtype


@pytest.mark.parametrize("numpys", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_what_upstreams_training_saves_beside_weights(tmp_path: Path, numpys: bytes) -> None:
    opt = Namespace(
        model="resnet50nodown", lr=0.1, feat_dim=128, device=torch.device("cuda"), nested=Namespace(a=[{}])
    )
    states = [torch.get_rng_state(), random.getstate(), np.random.get_state(), np.arange(5)]  # noqa: NPY002
    made = io.BytesIO()
    old = zipfile.ZipFile(io.BytesIO(saved({**SMALL, "opt": opt, "rng_states": states})))
    with old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            new.writestr(name, re.sub(rb"numpy\._?core\.multiarray", numpys, old.read(name)))
    assert numpys in made.getvalue()
    found = read(made.getvalue(), tmp_path)
    assert found["epoch"] == 7
    assert found["network"] == "resnet50nodown"
    # Nothing of it is an array: the bytes were never looked at.
    with torch.serialization.safe_globals(list(checkpoint._ALLOWED)):
        loaded = torch.load(io.BytesIO(made.getvalue()), weights_only=True)
    assert type(loaded["rng_states"][3]) is type(loaded["rng_states"][2][1]) is checkpoint._PassedOver


def test_names_that_hide_methods_are_not_asked(tmp_path: Path) -> None:
    hidden = dict.fromkeys(("detach", "numel", "is_complex", "element_size", "contiguous"), named("builtins.set"))
    top = EMPTY + b"(" + text("model") + mapping(text("w"), attributes(**hidden)) + b"u"
    content = archive(program(top + mapping(text("get"), b"N", text("items"), b"N") + b"b"))
    assert read(content, tmp_path)["shapes"] == {"model": {"w": [4]}}


# --- what is refused -------------------------------------------------------------------------------------------------

CODE = (
    "os.system",
    "posix.system",
    "builtins.eval",
    "builtins.exec",
    "builtins.getattr",
    "subprocess.Popen",
    "functools.partial",
    "numpy.load",
    "numpy.core.multiarray.scalar",
    "torch.load",
    "torch.hub.load",
    "pathlib.PosixPath",
    "argparse.Namespace.__init__",
    "argparse.ArgumentParser",
)


@pytest.mark.parametrize("path", CODE)
@pytest.mark.parametrize("where", ["model", "opt", "legacy"])
def test_code_is_named_and_not_run(tmp_path: Path, path: str, where: str) -> None:
    words = text(f"open({str(tmp_path / 'marker')!r}, 'w')" if "ev" in path else f"touch {tmp_path / 'marker'}")
    if where == "opt":
        options = named("argparse.Namespace") + b")\x81" + mapping(text("x"), call(path, words)) + b"b"
        content = archive(program(mapping(text("model"), mapping(text("w"), tensor()), text("opt"), options)))
    else:
        content = archive(model(call(path, words))) if where == "model" else LEGACY + model(call(path, words))
    said = refused(content, tmp_path)
    assert path.removeprefix("builtins.") in said
    assert "Nothing of it was run" in said


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_no_protocol_of_pickle_runs_code(tmp_path: Path, protocol: int) -> None:
    content = pickle.dumps({"model": Evil(tmp_path / "marker")}, protocol)
    pickle.loads(content)
    (tmp_path / "marker").unlink()
    for whole in (archive(content), LEGACY + content):
        assert "Nothing of it was run" in refused(whole, tmp_path)
    assert "nothing of it was run" in refused(content, tmp_path)


@pytest.mark.parametrize(
    "value",
    [
        b"(" + text("touch marker") + b"ios\nsystem\n",  # INST
        b"(" + named("os.system") + text("touch marker") + b"o",  # OBJ
        named("os.system") + several(text("touch marker")) + b"\x81",  # NEWOBJ
        named("os.system") + mapping() + b"b",  # BUILD
        text("os") + text("system") + b"\x93" + several(text("touch marker")) + b"R",  # STACK_GLOBAL
    ],
)
def test_no_instruction_runs_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: bytes) -> None:
    monkeypatch.chdir(tmp_path)
    for content in (archive(model(value)), LEGACY + model(value)):
        assert "Nothing of it was run" in refused(content, tmp_path)


LAYOUT = call("torch.serialization._get_layout", text("torch.sparse_coo"))
FULL = mapping(text("w"), tensor())
DEEP = text("x") + b"\x85" * 100_000
EXPONENTIAL = text("x") + b"q\x00h\x00\x86" * 24
NAMESPACE = named("argparse.Namespace") + b")\x81"
DATA = named("torch.float8_e4m3fn")

PICKLES = {
    "no dictionary": (program(b"]"), "a value of type list"),
    "another dictionary": (program(mapping(text("state_dict"), FULL)), "'state_dict'"),
    "text": (program(text("a\nb" * 10_000)), "a dictionary whose `model`"),
    "no model": (program(mapping(text("model"), b"N")), "NoneType"),
    "model a list": (program(mapping(text("model"), b"]")), "type list"),
    "model nested": (program(mapping(text("model"), mapping(text("model"), FULL))), "of 1 at model.model"),
    "key a number": (model(tensor(), number(3)), "plain names, got a value of type int"),
    "key of a megabyte": (model(tensor(), text("k" * 10**6)), "'kkk"),
    "key steers": (model(tensor(), text("k\x1b[2J\n")), r"'k\x1b[2J\n'"),
    "key is no text": (model(tensor(), text("\ud800")), r"'\ud800'"),
    "key deep": (model(tensor(), DEEP), "type tuple"),
    "deep at the top": (program(b"}" + DEEP + b"Ns"), "type tuple"),
    "exponential key": (program(b"}" + EXPONENTIAL + b"Ns"), "type tuple"),
    "exponential words": (model(NAMESPACE + mapping(text("layout"), EXPONENTIAL) + b"b"), "Namespace"),
    "100,000 lists": (model(b"]" * 100_000 + b"a" * 99_999), "type list"),
    "100,000 keys": (program(mapping(text("model"), b"}" + b"".join(
        b"(" + number(n) + b"Nu" for n in range(100_000)))), "a dictionary of 100,000"),
    "name of a megabyte": (model(call("x" * 10**6 + ".y")), "also needs xxx"),
    "name steers": (model(call("x\x1b[31m\x07.\u2028")), r"x\x1b[31m\x07.\u2028"),
    "a hundred names": (program(b"".join(named(f"m{n}.f") for n in range(100))), "..."),
    "ends early": (b"\x80\x02(((", "EOFError"),
    "takes from nothing": (b"\x80\x02t.", "pop from empty list"),
    "unknown memory": (model(b"hw"), "cannot"),
    "a giant from one number": (model(tensor((10**9, 10**9), (0, 0))), "more than the"),
    "so many numbers": (model(tensor((2**32, 2**32), (0, 0))), "overflow"),
    "size below nothing": (model(tensor((-1,))), "overflow"),
    "stride below nothing": (model(tensor((4,), (-1,))), "overflow"),
    "stride beyond": (model(tensor((3, 3), (2**62, 2**62))), "overflow"),
    "offset below nothing": (model(tensor(offset=-1)), "offset"),
    "offset beyond": (model(tensor(offset=2**62)), "overflow"),
    "larger than its bytes": (model(tensor((1000,))), "cannot"),
    "larger than the file": (model(tensor((10**15,), of=storage(count=10**15))), "cannot"),
    "bytes that are not there": (model(tensor(of=storage(key="../../x"))), "cannot"),
    "100,000 dimensions": (model(tensor((1,) * 100_000, (1,) * 100_000)), "a 100,000-dimensional tensor"),
    "complex": (model(tensor(of=storage("torch.ComplexFloatStorage", count=8))), "complex64"),
    "quantised": (model(tensor(of=storage("torch.QInt8Storage"))), "qint8"),
    "float8": (model(named("torch._utils._rebuild_tensor_v3") + view(
        of=storage("torch.storage.UntypedStorage"))[:-1] + DATA + b"tR"), "float8_e4m3fn"),
    "without numbers": (model(call("torch._utils._rebuild_meta_tensor_no_storage", named("torch.float32"), several(
        number(10**9)), several(number(1)), b"\x89")), "meta"),
    "sparse": (model(call("torch._utils._rebuild_sparse_tensor", LAYOUT, several(
        tensor((1, 1), (1, 1), of=storage("torch.LongStorage", count=8)), tensor((1,)), several(number(10**12))))),
        "sparse_coo"),
    "modules": (model(several(text("module"), named("torch.Tensor"), text("a"), text("b")) + b"Q"), "storage"),
    "data that hides": (model(attributes(data=tensor((10**9,), (0,)))), "more than the"),
}  # fmt: skip


@pytest.mark.parametrize("case", PICKLES)
def test_refused_pickles(tmp_path: Path, case: str) -> None:
    content, words = PICKLES[case]
    assert words.lower() in refused(archive(content), tmp_path).lower()


GOOD = archive(model(tensor()))


def patched(marker: bytes, offset: int, values: bytes) -> bytes:
    """The good archive with other bytes at an offset from the first place of a marker."""
    at = GOOD.index(marker) + offset
    return GOOD[:at] + values + GOOD[at + len(values) :]


CENTRAL, END = b"PK\x01\x02", b"PK\x05\x06"
ARCHIVES = {
    "empty": (b"", "an empty file"),
    "one byte": (b"P", "starts with b'P'"),
    "a web page": (b"<!DOCTYPE html><html>", "a web page"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
    "safetensors": (struct.pack("<Q", 10) + b'{"a":1}   ', "safetensors"),
    "numpy": (b"\x93NUMPY\x01\0", "NUMPY"),
    "gzip": (b"\x1f\x8b\x08", "compressed"),
    "steers": (b"\x1b[2J\x1b]0;x\x07", r"\x1b"),
    "compressed": (archive(model(tensor()), method=zipfile.ZIP_DEFLATED), "compressed"),
    "no pickle": (archive(None), "2 other files"),
    "two pickles": (archive(model(tensor()), ("b/data.pkl", b"")), "4 other files"),
    "TorchScript": (archive(model(tensor()), ("a/constants.pkl", b"")), "TorchScript"),
    "a path outside": (archive(model(tensor()), ("../../marker", b"x")), "cannot"),
    "encrypted": (patched(CENTRAL, 8, b"\1"), "encrypted"),
    "larger than the file": (patched(CENTRAL, 20, struct.pack("<II", 10**6, 10**6)), "within the file's"),
    "64 bits unsaid": (patched(CENTRAL, 20, b"\xff" * 8), "within the file's"),
    "stored and yet not": (patched(CENTRAL, 20, struct.pack("<I", 10**6)), "damaged"),
    "before the start": (patched(CENTRAL, 42, b"\xf0\xff\xff\xff"), "damaged"),
    "another member's bytes": (patched(CENTRAL, 42, struct.pack("<I", GOOD.index(b"PK\x03\x04", 4))), "damaged"),
    "name too long": (patched(b"PK\x03\x04", 26, b"\xff\xef"), "damaged"),
    "no directory": (patched(END, 16, b"\xff" * 4), "damaged"),
    "a flipped bit": (patched(bytes(64), 0, b"\1"), "'a/data/0': the file is damaged"),
    "a comment": (GOOD[:-2] + b"\xff\xff" + END * 16383 + b"abc", "damaged"),
    "bytes after it": (GOOD + b"x" * 100_000, "damaged"),
    "pickle of 17 MB": (archive(b"N" * 17 * 2**20), "a pickle of less than"),
    "old, and asks for memory": (LEGACY + model(tensor(of=several(
        text("storage"), named("torch.FloatStorage"), text("0"), text("cpu"), number(-10), b"N") + b"Q")), "cannot"),
    "old, version": (LEGACY[: LEGACY.index(b"M\xe9\x03")] + b"K\5.", "protocol version"),
}  # fmt: skip


@pytest.mark.parametrize("case", ARCHIVES)
def test_refused_files(tmp_path: Path, case: str) -> None:
    content, words = ARCHIVES[case]
    assert words in refused(content, tmp_path)


def test_a_name_twice(tmp_path: Path) -> None:
    assert "a name twice" in refused(archive(model(tensor()), ("a/data/0", bytes(64))), tmp_path)


@pytest.mark.parametrize("legacy", [False, True])
def test_cut_short(tmp_path: Path, legacy: bool) -> None:
    content = saved(SMALL, _use_new_zipfile_serialization=not legacy)
    for end in range(0, len(content), len(content) // 40):
        refused(content[:end], tmp_path)


def test_whatever_byte_is_changed_nothing_escapes(tmp_path: Path) -> None:
    """Only the other process may meet a crash; what raises is known."""
    dice = random.Random(5)
    contents = [saved(SMALL), saved(SMALL, _use_new_zipfile_serialization=False), archive(model(tensor()))]
    right = 0
    for _ in range(150):
        content = bytearray(dice.choice(contents))
        for _ in range(dice.choice([1, 2, 4])):
            content[dice.randrange(len(content))] = dice.randrange(256)
        with contextlib.suppress(_Refused):
            read(bytes(content), tmp_path)
            right += 1
    assert 0 < right < 75


# --- the process of its own ------------------------------------------------------------------------------------------


def message(file: Path, folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        read_checkpoint(file, folder / "weights.safetensors")
    assert str(caught.value).isprintable()
    return str(caught.value)


def children() -> Iterator[int]:
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            yield from map(int, (task / "children").read_text().split())


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory, and /proc")
@pytest.mark.parametrize(
    "bomb",
    [
        archive(model(call("builtins.bytearray", number(10**11)))),
        archive(model(call("torch.FloatTensor", number(10**11)))),
        archive(b"\x80\x02" + b"}" * 8 * 2**20 + b"."),
        LEGACY + model(tensor(of=several(
            text("storage"), named("torch.FloatStorage"), text("0"), text("cpu"), number(10**11), b"N") + b"Q")),
    ],
    ids=["bytes", "tensor", "dictionaries", "old"],
)  # fmt: skip
def test_memory_is_bounded(tmp_path: Path, bomb: bytes) -> None:
    (tmp_path / "bomb.pt").write_bytes(bomb)
    peaks, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            for child in children():
                with contextlib.suppress(OSError):
                    if b"\0-I\0" in Path(f"/proc/{child}/cmdline").read_bytes():  # no more a copy of this process
                        status = Path(f"/proc/{child}/status").read_text()
                        peaks.extend(int(kib) for kib in re.findall(r"VmHWM:\s+(\d+)", status))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        said = message(tmp_path / "bomb.pt", tmp_path)
    finally:
        done.set()
        watching.join()
    assert "asks for far more" in said
    assert 0 < max(peaks) < 1.5 * 2**20


def test_time_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key whose hash takes 2**60 steps."""
    monkeypatch.setattr(checkpoint, "TIME_LIMIT_S", 4.0)
    (tmp_path / "slow.pt").write_bytes(archive(program(b"}" + text("x") + b"q\x00h\x00\x86" * 60 + b"Ns")))
    assert "within 4 seconds" in message(tmp_path / "slow.pt", tmp_path)
    assert not list(children())


def test_a_reader_that_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file.pt").write_bytes(GOOD)
    monkeypatch.setattr(checkpoint._answer, "__name__", "_data_bytes")  # takes no question
    assert "ends its reader (status 1)" in message(tmp_path / "file.pt", tmp_path)


def test_a_file_that_grows(tmp_path: Path) -> None:
    file, done = tmp_path / "file.pt", threading.Event()
    file.write_bytes(GOOD)

    def grow() -> None:
        while not done.wait(0.01):
            with file.open("ab") as opened:
                opened.write(b"x")

    growing = threading.Thread(target=grow)
    growing.start()
    try:
        assert "changed while it was read" in message(file, tmp_path)
    finally:
        done.set()
        growing.join()


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError, match=r"no checkpoint at .*a\\nb"):
        read_checkpoint(tmp_path / "a\nb.pt", tmp_path / "weights")
    assert "a folder" in message(tmp_path, tmp_path)
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    assert "symbolic links" in message(tmp_path / "circle", tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        assert "a device or a pipe" in message(tmp_path / "pipe", tmp_path)
    with (tmp_path / "sparse.pt").open("wb") as file:
        file.truncate(checkpoint.MAX_FILE_BYTES + 1)
    assert "at most" in message(tmp_path / "sparse.pt", tmp_path)
    if sys.platform == "linux":
        odd = tmp_path / os.fsdecode(b"\xff\xfe.pt")
        odd.write_bytes(GOOD)
        assert "valid text" in message(odd, tmp_path)


# --- numbers that cannot be a network's ------------------------------------------------------------------------------

INFINITE = torch.tensor([1.0, float("inf")])


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("a.weight", torch.tensor([1.0, float("nan")]), "1 NaN or infinite of 2"),
        ("a.weight", INFINITE, "1 NaN or infinite of 2"),
        ("a.weight", torch.tensor([1e300, 0.0], dtype=torch.float64), "1 NaN or infinite of 2"),
        ("a.weight", torch.ones(2, dtype=torch.int32), "floating-point numbers, got torch.int32"),
        ("a.running_var", torch.tensor([1.0, -0.5]), "variances >= 0 .* got -0.5"),
        ("a.num_batches_tracked", torch.tensor(2.0), "whole number >= 0, got 2.0"),
        ("a.num_batches_tracked", torch.tensor(-5), "whole number >= 0, got -5"),
    ],
)
def test_unsound_numbers(name: str, value: torch.Tensor, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        _sound(name, value)


def test_other_networks() -> None:
    upstream = {"encoder.conv1.weight": (64, 3, 7, 7), "head.0.bias": (2048,)}
    _check_network(upstream, dict(reversed(upstream.items())))
    for got, words in (
        ({}, "got 0: 2 missing"),
        ({"encoder.conv1.weight": (64, 3, 7, 7)}, "1 missing, such as head.0.bias"),
        ({**upstream, "fc.weight": (1000, 2048)}, "1 unknown, such as fc.weight"),
        ({**upstream, "head.0.bias": (1, 2048)}, r"head.0.bias of shape \[1, 2048\] instead of \[2048\]"),
    ):
        with pytest.raises(ModelError, match=words):
            _check_network(upstream, got)


@pytest.mark.parametrize("weight", [3e38, -3e38])
def test_finite_numbers_whose_products_are_not(weight: float) -> None:
    network = SelfConResNetForPreTraining(SelfConResNetConfig(backbone="resnet10t", stem_stride=2)).eval()
    _check_answers(network)
    with torch.no_grad():
        next(network.parameters()).fill_(weight)
    with pytest.raises(ModelError, match="finite answers"):
        _check_answers(network)


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (archive(model(call("os.system", text("touch marker")))), "also needs os.system"),
        (archive(program(mapping(text("model"), b"N"))), "NoneType"),
        (GOOD, "328 missing"),
        (b"<html>", "a web page"),
    ],
)
def test_the_command_fails_on_one_line_and_leaves_nothing(
    content: bytes, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    Path("a\nb.pt").write_bytes(content)
    assert main(["convert", "a\nb.pt", "out", "--track", "none", "--stem-stride", "1"]) == 1
    said = capsys.readouterr()
    assert words in said.err
    assert said.err.endswith("\n") and said.err[:-1].isprintable()
    assert not said.out
    assert [file.name for file in tmp_path.iterdir()] == ["a\nb.pt"]


def test_places_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file.pt").write_bytes(GOOD)
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    before = sorted(tmp_path.iterdir())
    for out in ("file.pt/x", "circle", "circle/x"):
        assert main(["convert", str(tmp_path / "file.pt"), str(tmp_path / out), "--track", "detection"]) == 1
        assert re.fullmatch(r"imaginet convert: .*cannot be written.*\n", capsys.readouterr().err)
    assert main(["convert", str(tmp_path / "circle"), str(tmp_path / "out"), "--track", "detection"]) == 1
    assert re.fullmatch(r"imaginet convert: .*\n", capsys.readouterr().err)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent is gone")
def test_killed_in_the_middle(tmp_path: Path) -> None:
    """The reader goes with its parent; what was left is cleared away by the next run."""
    (tmp_path / "slow.pt").write_bytes(archive(program(b"}" + text("x") + b"q\x00h\x00\x86" * 60 + b"Ns")))
    words = ["convert", str(tmp_path / "slow.pt"), str(tmp_path / "out"), "--track", "detection"]
    run = "import sys; from imaginet_hub.cli import main; main(sys.argv[1:])"
    with subprocess.Popen([sys.executable, "-c", run, *words]) as command:
        task, deadline, readers = Path(f"/proc/{command.pid}/task/{command.pid}/children"), time.time() + 60, ""
        while not readers and time.time() < deadline:
            time.sleep(0.05)
            readers = task.read_text()
        time.sleep(2)
        command.kill()
    reader = Path(f"/proc/{int(readers)}")
    while reader.exists() and time.time() < deadline:
        time.sleep(0.05)
    assert not reader.exists()
    assert sorted(file.name for file in tmp_path.iterdir()) == [".out.incomplete", "slow.pt"]
    (tmp_path / "slow.pt").write_bytes(GOOD)  # read, then refused for what is in it
    assert main(words) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["slow.pt"]
