"""A name for a model's weights that is the same in memory and in its folder. No torch in here."""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imaginet_hub.errors import UsageError

__all__ = ["folder_weights", "weights_digest"]

#: Of safetensors files; bfloat16, which numpy lacks, is the upper half of a float32.
_DTYPES = {
    **{"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "BOOL": "|b1"},
    **{f"{kind}{8 * size}": f"<{kind.lower()}{size}" for kind in "IU" for size in (1, 2, 4, 8)},
}


def weights_digest(tensors: Iterable[tuple[str, NDArray[Any]]]) -> str:
    """A digest of named tensors, whatever their order.

    Args:
        tensors: name and values; floating ones count as float32, in which detectors hold them.

    Returns:
        32 hexadecimal digits.
    """
    digests = []
    for name, values in tensors:
        plain = values.astype("<f4") if values.dtype.kind == "f" else values
        head = f"{name} {list(plain.shape)} {plain.dtype.str}\n".encode()
        digests.append(hashlib.sha256(head + np.ascontiguousarray(plain).tobytes()).digest())
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()[:32]


def folder_weights(folder: str | os.PathLike[str]) -> str | None:
    """`weights_digest` of the weights in a model folder; None where there are none.

    Raises:
        UsageError: a file of weights that cannot be read.
    """
    whole = Path(folder) / "model.safetensors"
    files = [whole] if whole.is_file() else sorted(Path(folder).glob("model-*-of-*.safetensors"))
    return weights_digest(pair for file in files for pair in _tensors(file)) if files else None


def _tensors(file: Path) -> Iterator[tuple[str, NDArray[Any]]]:
    """Of a safetensors file: 8 bytes say how long the JSON after them is, which says where each tensor is."""
    try:
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            start = 8 + int.from_bytes(data[:8], "little")
            for name, facts in json.loads(data[8:start]).items():
                if name == "__metadata__":
                    continue
                first, last = facts["data_offsets"]
                dtype, shape = np.dtype(_DTYPES[facts["dtype"]]), facts["shape"]
                piece = data[start + first : start + last]
                if len(piece) != dtype.itemsize * math.prod(shape):
                    raise ValueError(f"{name} has {len(piece)} bytes")
                values = np.frombuffer(piece, dtype).reshape(shape)
                if facts["dtype"] == "BF16":
                    values = (values.astype("<u4") << 16).view("<f4")
                yield name, values
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(
            f"{file}: expected weights as safetensors, got something else ({type(error).__name__}: {error}); save or "
            "download the model again"
        ) from error
