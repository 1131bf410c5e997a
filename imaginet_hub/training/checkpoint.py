"""Reading a checkpoint that nobody vouches for: a file of `torch.save` in, safetensors out.

A pickle is a program. torch's reader for untrusted files (`weights_only=True`) runs none of it but what makes tensors
and plain containers; still such a file can declare any size, loop, or crash a reader. So it is read by a process of
its own with limits of time and memory, which writes what it found as safetensors, and nothing else of it is kept.
Beyond weights, one thing is let in, since upstream's own training writes it: `argparse.Namespace`, a bag of values,
and the arrays among its random-number states, which are passed over without being built.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import signal
import stat
import struct
import subprocess
import sys
import zipfile
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imaginet_hub.data import child
from imaginet_hub.data.units import one_line
from imaginet_hub.errors import DataNotFoundError, ModelError

if TYPE_CHECKING:
    import torch

__all__ = ["MAX_FILE_BYTES", "Checkpoint", "look_at", "read_checkpoint"]

#: Upstream's released file has about 160 MB, one of its first stage with all its state about 400.
MAX_FILE_BYTES = 4 * 1024**3
#: The parts of a checkpoint that hold weights, and the prefix of their tensors among what is kept.
SECTIONS = ("model", "classifier")
TIME_LIMIT_S = 600.0
#: Of a processor's time, and for each byte of the file; upstream's file takes some five seconds.
_CPU_SECONDS = 60.0
_CPU_SECONDS_A_BYTE = 1 / 2**25
#: What reading may take, beside the file itself three times: what is mapped, copied out of it, and being written.
MEMORY_LIMIT_BYTES = 512 * 1024**2
# The pickle of upstream's file, without its tensors' bytes, has 60 KB.
_MAX_PICKLE_BYTES = 16 * 1024**2
_MAX_TENSORS = 10_000
_MAX_MEMBERS = 100_000  # its optimizer has tensors as well
_MAX_DIMENSIONS = 16
#: The types of numbers that are kept; float8 and the like have scales elsewhere.
_DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")

_TORCH_ZIP = b"PK\x03\x04"
_TORCH_BEFORE_ZIP = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
#: How other files begin, and what to say of them.
_OTHER_FILES = (
    (
        rb"(?is)\s*<(!doctype|html|head)",
        "a web page; Google Drive answers with one when a file was asked for too often",
    ),
    (rb"version https://git-lfs", "a pointer to a file in Git LFS; fetch the file itself (git lfs pull)"),
    (rb"(?s).{8}\s*\{\"", "safetensors, which need no conversion of this kind"),
    (rb"\x80[\x00-\x05]", "a pickle that torch.save did not write"),
    (rb"7z\xbc\xaf|\x1f\x8b|Rar!|BZh|\xfd7zXZ", "a compressed file; unpack it first"),
    (rb"\x89HDF", "an HDF5 file"),
)


@dataclass(frozen=True)
class Checkpoint:
    """What a file held.

    Attributes:
        name: the file's name.
        sha256: of the whole file.
        size: of the file, in bytes.
        weights: safetensors with all tensors of the parts `model` and `classifier`, named "model/KEY" and so on.
        shapes: for each part the shape of each tensor, in the file's order of names.
        network: upstream's name of the network, where the file has the arguments of its training (`opt`).
        epoch: the epoch it was written after, where the file says so.
        dtypes: the types of its floating-point tensors.
    """

    name: str
    sha256: str
    size: int
    weights: Path
    shapes: Mapping[str, Mapping[str, tuple[int, ...]]]
    network: str | None
    epoch: int | None
    dtypes: tuple[str, ...]


def read_checkpoint(file: str | os.PathLike[str], weights: Path) -> Checkpoint:
    """Read an untrusted checkpoint.

    Memory: a process of its own takes at most three times the file's size and 512 MB beside what torch takes to start.

    Args:
        file: written by `torch.save`: a dictionary with the weights in `model` and, maybe, `classifier`.
        weights: a file to write the tensors to, as safetensors.

    Raises:
        DataNotFoundError: no such file.
        ModelError: not a checkpoint, damaged, in need of code to be read, or larger than it looks.
        OSError: `weights` cannot be written.
    """
    with _readable(file):
        file, before = look_at(file)
        sha256 = _sha256(file, before.st_size)
    found = _in_child(file, weights, before)
    return Checkpoint(
        name=one_line(file.name),
        sha256=sha256,
        size=before.st_size,
        weights=weights,
        shapes={part: {key: tuple(shape) for key, shape in of.items()} for part, of in found["shapes"].items()},
        network=found["network"],
        epoch=found["epoch"],
        dtypes=tuple(found["dtypes"]),
    )


def look_at(file: str | os.PathLike[str]) -> tuple[Path, os.stat_result]:
    """What can be told of a checkpoint without torch: that it is a file, of a size and beginning that may be one.

    Raises:
        DataNotFoundError, ModelError: see `read_checkpoint`.
    """
    with _readable(file):
        file = Path(file).expanduser()
        found = file.stat()
        if not stat.S_ISREG(found.st_mode):
            got = "a folder" if stat.S_ISDIR(found.st_mode) else "no file but a device or a pipe"
            raise ModelError(f"{one_line(str(file))}: expected a .pt or .pth file, got {got}")
        _check_kind(file, found.st_size)
        return file, found


@contextmanager
def _readable(file: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        shown = one_line(os.fspath(file))
        raise DataNotFoundError(f"no checkpoint at {shown}: expected a .pt or .pth file") from error
    except (OSError, RuntimeError) as error:  # RuntimeError: the home of a user that there is not
        got = one_line(getattr(error, "strerror", None) or str(error))
        raise ModelError(
            f"{one_line(Path(file).name)}: expected a file that can be read, got: {got}; see to that, or copy it"
        ) from error


def _check_kind(file: Path, size: int) -> None:
    name = one_line(file.name)
    if size > MAX_FILE_BYTES:
        raise ModelError(
            f"{name}: expected a checkpoint of some hundred MB, at most {MAX_FILE_BYTES:,} bytes, got {size:,} bytes"
        )
    with file.open("rb") as opened:
        start = opened.read(512)
    if start.startswith((_TORCH_ZIP, _TORCH_BEFORE_ZIP)):
        return
    what = next((words for pattern, words in _OTHER_FILES if re.match(pattern, start)), None)
    got = what or ("an empty file" if not start else f"a file that starts with {start[:8]!r}")
    raise ModelError(f"{name}: expected a checkpoint that torch.save wrote, got {got}; nothing of it was run")


def _sha256(file: Path, size: int) -> str:
    """Of that many bytes: a file that is being written may never end."""
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while size > 0 and (block := opened.read(min(size, 2**20))):
            digest.update(block)
            size -= len(block)
    return digest.hexdigest()


def _in_child(file: Path, weights: Path, before: os.stat_result) -> dict[str, Any]:
    name, size = one_line(file.name), before.st_size
    if not (_is_text(file.resolve()) and _is_text(weights.resolve())):  # what torch and safetensors take
        raise ModelError(f"{name}: expected paths that are valid text, got others; rename the file or its folders")
    question = {
        "file": str(file.resolve()),
        "weights": str(weights.resolve()),
        "size": size,
        "memory": 3 * size + MEMORY_LIMIT_BYTES,
        "seconds": _CPU_SECONDS + size * _CPU_SECONDS_A_BYTE,
    }
    nowhere = subprocess.DEVNULL
    process = child.started_by(__name__, _answer.__name__, question)
    try:
        reader = subprocess.Popen(**process, stdin=nowhere, stdout=subprocess.PIPE, stderr=nowhere)
    except OSError as error:
        raise ModelError(
            f"{name}: expected to start a process to read it in, got: {error.strerror or error}; free some memory, or "
            "end other programs, and run again"
        ) from error
    with reader:
        try:
            answer = reader.communicate(timeout=TIME_LIMIT_S)[0]
        except subprocess.TimeoutExpired:
            answer = None
        finally:
            reader.kill()
    if _changed(file, before):
        raise ModelError(f"{name}: it changed while it was read; wait until its download is done, and run again")
    if answer is None or reader.returncode == -getattr(signal, "SIGXCPU", 0):
        most = TIME_LIMIT_S if answer is None else question["seconds"]
        raise ModelError(
            f"{name}: expected a checkpoint that is read within {most:.0f} seconds, got one that takes longer: "
            "made to do harm, or read from a slow disk; copy it to a quicker one, or take another file"
        )
    try:
        found: dict[str, Any] = json.loads(answer)
    except ValueError as error:
        raise ModelError(
            f"{name}: expected a checkpoint that torch can read, got one that ends its reader (status "
            f"{reader.returncode}): damaged, or made to do harm; download it again and compare sizes"
        ) from error
    if "unwritable" in found:
        raise OSError(found["unwritable"])
    if "refused" in found:
        raise ModelError(f"{name}: {found['refused']}")
    return found


def _is_text(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _changed(file: Path, before: os.stat_result) -> bool:
    try:
        after = file.stat()
    except OSError:
        return True
    return (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns)


# --- the other process -----------------------------------------------------------------------------------------------


class _Refused(Exception):
    """What to tell the user, after the file's name."""


class _PassedOver:
    """In the place of what the file holds but nobody needs: arguments are taken, nothing is built."""

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


#: What may be named in a file beside tensors and plain containers.
_ALLOWED = (
    (Namespace, "argparse.Namespace"),
    *(
        (_PassedOver, name)
        for name in (
            "numpy.ndarray",
            "numpy.dtype",
            "numpy.core.multiarray._reconstruct",
            "numpy._core.multiarray._reconstruct",
        )
    ),
)
# Whatever torch's reader raises on bytes that are not what they say.
_UNREADABLE = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    struct.error,
    ArithmeticError,
    AssertionError,
    AttributeError,
    BufferError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


def _answer(question: Mapping[str, Any]) -> None:
    """Read the file, write the weights, answer in JSON."""
    child.begin(question)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a file may ask for a GPU and its memory
    import torch

    torch.set_num_threads(1)  # each would have a stack and an arena
    child.limit(DATA=question["memory"] + _data_bytes(), CPU=question["seconds"], CORE=0)
    try:
        answer = _read(question["file"], question["size"], question["weights"])
    except _Refused as refused:
        answer = {"refused": str(refused)}
    sys.stdout.write(json.dumps(answer))
    sys.stdout.flush()
    os._exit(0)


def _data_bytes() -> int:
    """What this process has of what RLIMIT_DATA limits; more than torch takes, where that cannot be told."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 2 * 1024**3
    return int(re.search(r"VmData:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]


def _read(file: str, size: int, weights: str) -> dict[str, Any]:
    parts, network, epoch = _parts(_loaded(file, size))
    tensors = {f"{part}/{key}": value for part, of in parts.items() for key, value in of.items()}
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if total > size:  # views that repeat their bytes
        raise _Refused(f"its tensors take {total:,} bytes, more than the {size:,} bytes of the file")
    shapes = {part: {key: list(value.shape) for key, value in of.items()} for part, of in parts.items()}
    dtypes = sorted({str(t.dtype).removeprefix("torch.") for t in tensors.values() if t.is_floating_point()})
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, weights)
    except (MemoryError, RuntimeError) as error:
        raise _too_large() from error
    except (OSError, SafetensorError) as error:
        return {"unwritable": f"{weights}: {error}"}
    return {"shapes": shapes, "network": network, "epoch": epoch, "dtypes": dtypes}


def _loaded(file: str, size: int) -> Any:
    import torch

    with torch.serialization.safe_globals(list(_ALLOWED)):
        try:
            with Path(file).open("rb") as opened:
                zipped = opened.read(len(_TORCH_ZIP)) == _TORCH_ZIP  # as torch decides
            if zipped:
                _check_archive(file, size)
                needed = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(file))
                if needed:
                    raise _needs_more(needed)
            return torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
        except MemoryError as error:
            raise _too_large() from error
        except _UNREADABLE as error:
            said = str(error).strip() or type(error).__name__
            needed = re.findall(r"GLOBAL (.+) was not an allowed|unsupported GLOBAL (.+) whose", said)
            if needed:
                raise _needs_more(sorted(filter(None, needed[0]))) from error
            if re.search("allocate memory|Cannot allocate|bad_alloc", said):
                raise _too_large() from error
            if "Unsupported operand" in said:
                raise _needs_more(["instructions of another pickle protocol than torch.save's own"]) from error
            # What torch's reader said is below what torch.load has to say of it.
            got = one_line(re.sub(r"(?s).*WeightsUnpickler error: ", "", said).strip().partition("\n")[0][:200])
            raise _Refused(
                "expected a checkpoint that torch can read as weights only, got one that it cannot: damaged, cut "
                f"short, or not of torch.save ({got}); download it again and compare sizes"
            ) from error


def _needs_more(names: list[str]) -> _Refused:
    shown = ", ".join(one_line(name[:100]) for name in names[:5]) + (" ..." if len(names) > 5 else "")
    return _Refused(
        f"expected weights and plain values only, got a pickle that also needs {shown}. Nothing of it was run, and "
        "nothing will be: code in such a file can do anything. If you made the file yourself, save its weights alone: "
        'torch.save({"model": ..., "classifier": ...}, FILE)'
    )


def _too_large() -> _Refused:
    return _Refused("expected a checkpoint that takes as much memory as its file, got one that asks for far more")


def _check_archive(file: str, size: int) -> None:
    """torch stores members as they are, so that together they are smaller than the file."""
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        names = [member.filename for member in members]
        _check_members(members, names, size)
        damaged = archive.testzip()  # torch would not compare checksums
    if damaged is not None:
        raise _Refused(
            f"expected members with the bytes that were written, got others in {damaged[:100]!r}: the file "
            "is damaged (or written without checksums); download it again"
        )


def _check_members(members: list[zipfile.ZipInfo], names: list[str], size: int) -> None:
    if len(members) > _MAX_MEMBERS:
        raise _Refused(f"expected at most {_MAX_MEMBERS:,} members in its archive, got {len(members):,}")
    if any("constants.pkl" in name or "/code/" in name for name in names):
        raise _Refused("expected weights, got a TorchScript program; nothing of it was run")
    pickles = [member for member in members if member.filename.rpartition("/")[2] == "data.pkl"]
    if len(pickles) != 1:
        raise _Refused(f"expected a checkpoint of torch.save, got a ZIP archive of {len(names):,} other files")
    if len(set(names)) != len(names):
        raise _Refused("expected an archive whose members have different names, got one with a name twice")
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise _Refused(
                f"expected members that are stored as they are, got {member.filename[:100]!r}, which is "
                "compressed or encrypted; torch.save writes no such file"
            )
    total = sum(member.file_size for member in members)
    if total > size:
        raise _Refused(f"expected members within the file's {size:,} bytes, got {total:,} bytes of them")
    if pickles[0].file_size > _MAX_PICKLE_BYTES:
        raise _Refused(f"expected a pickle of less than {_MAX_PICKLE_BYTES:,} bytes, got {pickles[0].file_size:,}")


def _parts(
    loaded: Any,
) -> tuple[dict[str, dict[str, torch.Tensor]], str | None, int | None]:
    import torch

    if not isinstance(loaded, dict) or "model" not in loaded:
        keys = ", ".join(_what(key) for key in list(loaded)[:5]) if isinstance(loaded, dict) else ""
        got = f"one with {keys or 'nothing'}" if isinstance(loaded, dict) else _what(loaded)
        raise _Refused(
            f"expected a dictionary whose `model` holds the weights (and `classifier` the head's), got {got}"
        )
    # The file may have given each object attributes, which hide methods: those of the classes are asked.
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for part in SECTIONS:
        state = dict.get(loaded, part)
        if state is None and part != "model":
            continue
        if not isinstance(state, dict) or len(state) > _MAX_TENSORS:
            raise _Refused(f"expected `{part}` to be a state dictionary, got {_what(state)}")
        for key, value in dict.items(state):
            if type(key) is not str or len(key) > 200 or not (key.isascii() and key.isprintable()):
                raise _Refused(f"expected `{part}` to hold tensors by plain names, got {_what(key)}")
            if type(value) not in (torch.Tensor, torch.nn.Parameter):
                raise _Refused(f"expected `{part}` to hold tensors by name, got {_what(value)} at {part}.{key}")
            ordinary = value.layout is torch.strided and value.device.type == "cpu" and value.ndim <= _MAX_DIMENSIONS
            if not ordinary or str(value.dtype).removeprefix("torch.") not in _DTYPES:
                raise _Refused(f"expected ordinary tensors of real numbers, got {_what(value)} at {part}.{key}")
        parts[part] = {key: torch.Tensor.detach(value).resolve_neg() for key, value in dict.items(state)}
    opt = dict.get(loaded, "opt")
    network = vars(opt).get("model") if isinstance(opt, Namespace) else None
    network = one_line(network[:100]) if type(network) is str else None
    epoch = dict.get(loaded, "epoch")
    return parts, network, epoch if type(epoch) is int and 0 <= epoch < 10**9 else None


def _what(value: Any) -> str:
    """A hostile value in a few words; its own `repr` may be endless."""
    import torch

    if isinstance(value, str):
        return repr(value[:60])
    if isinstance(value, dict):
        return f"a dictionary of {len(value):,}"
    if type(value) in (torch.Tensor, torch.nn.Parameter):
        return f"a {value.ndim:,}-dimensional tensor ({value.dtype}, {value.layout}, {value.device})"
    return f"a value of type {type(value).__name__}"
