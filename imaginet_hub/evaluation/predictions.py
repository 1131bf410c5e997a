"""Predictions that outlive a run: a file of scores by the content of images, so that a stopped evaluation goes on.

A file belongs to one model, one dataset and one preprocessing. Its lines are JSON objects, `{"sha256", "scores"}` with
the SHA-256 of the image file's bytes: an image that changed is predicted again, whatever the dataset says of it. Lines
are appended a batch at a time; a line that a kill cut short, or that cannot be read, is as if it were not there.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imaginet_hub.errors import UsageError

__all__ = ["PredictionStore", "predictions_folder"]


def predictions_folder() -> Path:
    """`$HF_HOME/imaginet/predictions`, `~/.cache/huggingface/imaginet/predictions` by default."""
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME).expanduser() / "imaginet" / "predictions"


class PredictionStore:
    """The predictions of one model for one dataset under one preprocessing.

    Args:
        key: what the scores depend on: anything that JSON can say of the model, the dataset and the preprocessing.
        n_scores: numbers per image; one more are taken too.
        folder: where files are kept.

    Attributes:
        path: the file.
        reused: how many images were answered from it.

    Raises:
        UsageError: the file cannot be read or written.
    """

    def __init__(self, key: Mapping[str, Any], n_scores: int, folder: Path | None = None) -> None:
        text = json.dumps({**key, "n_scores": n_scores}, sort_keys=True, ensure_ascii=False)
        name = hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:32]
        self.path = (predictions_folder() if folder is None else folder) / f"{name}.jsonl"
        self.reused = 0
        self._n_scores = n_scores
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._known = self._read()
            with self.path.open("ab") as file:
                if not file.tell():
                    file.write(text.encode(errors="backslashreplace") + b"\n")
                elif not self._ends_well():
                    file.write(b"\n")
        except OSError as error:
            raise UsageError(
                f"predictions cannot be kept in {self.path.parent} ({error}); set HF_HOME to a folder that can be "
                "written, or leave the cache out (--no-cache)"
            ) from error

    def __len__(self) -> int:
        return len(self._known)

    def get(self, digest: str) -> NDArray[np.float64] | None:
        """The scores of an image by the SHA-256 of its file, or None."""
        return self._known.get(digest)

    def add(self, digests: Sequence[str | None], scores: NDArray[np.float64]) -> None:
        """Append a batch; images without a digest are not kept.

        Args:
            digests: SHA-256 of each image's file.
            scores: (images, n_scores).

        Raises:
            UsageError: the file cannot be written.
        """
        lines = []
        for digest, values in zip(digests, scores, strict=True):
            if digest is not None:
                self._known[digest] = values
                lines.append(json.dumps({"sha256": digest, "scores": values.tolist()}) + "\n")
        try:
            with self.path.open("ab") as file:
                file.write("".join(lines).encode())
        except OSError as error:
            raise UsageError(
                f"predictions cannot be kept in {self.path} ({error}); free some space, or leave the cache out "
                "(--no-cache)"
            ) from error

    def _read(self) -> dict[str, NDArray[np.float64]]:
        known: dict[str, NDArray[np.float64]] = {}
        if not self.path.exists():
            return known
        with self.path.open("rb") as file:
            for line in file:
                try:
                    entry = json.loads(line)
                    digest, scores = entry["sha256"], entry["scores"]
                except (ValueError, LookupError, TypeError):
                    continue
                if (
                    isinstance(digest, str)
                    and isinstance(scores, list)
                    and len(scores) in (self._n_scores, self._n_scores + 1)
                    and all(isinstance(score, float) and math.isfinite(score) for score in scores)
                ):
                    known[digest] = np.array(scores)
        return known

    def _ends_well(self) -> bool:
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"
