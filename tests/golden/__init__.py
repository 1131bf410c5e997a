"""Figures computed with upstream's own code on made-up weights and images, and the recipes of those."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def golden(name: str) -> Any:
    """One of the JSON files beside this module."""
    return json.loads((Path(__file__).parent / f"{name}.json").read_text())


def weight(key: str, shape: Sequence[int]) -> np.ndarray:
    """The made-up value of upstream's tensor of that name."""
    draw = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(tuple(shape))
    if key.endswith("num_batches_tracked"):
        return np.zeros((), np.int64)
    if key.endswith("running_var"):
        draw = 0.5 + np.abs(draw)
    elif len(shape) >= 2:
        draw = draw / np.sqrt(np.prod(shape[1:]))
    elif key.endswith("weight"):
        draw = 1 + 0.1 * draw
    else:
        draw = 0.1 * draw
    return draw.astype(np.float32)


def image(seed: int, height: int, width: int) -> np.ndarray:
    """The made-up picture of that seed, (height, width, 3) bytes."""
    return np.random.RandomState(seed).randint(0, 256, (height, width, 3)).astype(np.uint8)


def released(part: str = "model") -> dict[str, np.ndarray]:
    """The made-up tensors of upstream's released files by name: "model", "detection" or "identification" (heads)."""
    keys = golden("state_dict_keys")
    if part == "model":
        entries, prefix = keys["detection_model"]["model"], ""
    else:
        section = {"detection": "detection_model", "identification": "model_identification_model"}[part]
        entries, prefix = keys[section]["classifier"]["keys"], "classifier."
    return {entry["key"]: weight(prefix + entry["key"], entry["shape"]) for entry in entries}
