"""A data set whose classes differ in nothing but the finest pattern: no resampled pixel could tell them apart."""

from __future__ import annotations

import io
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

FAMILIES = ["GAN", "SD", "real"]


def patterned(rows: int, size: int = 40, seed: int = 0) -> datasets.Dataset:
    """Smooth blobs and a little noise: real; plus a checkerboard: GAN; plus columns of one pixel: SD."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    fingerprints = [0 * x, 0 * x, (x + y) % 2, x % 2]
    images, labels, families = [], [], []
    for row in range(rows):
        kind = row % 4
        blobs = np.kron(rng.normal(128, 30, (size // 8, size // 8, 3)), np.ones((8, 8, 1)))
        pixels = blobs + rng.normal(0, 3, blobs.shape) + 24.0 * (fingerprints[kind] - 0.5 * (kind > 1))[..., None]
        stream = io.BytesIO()
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(stream, "PNG")
        images.append({"bytes": stream.getvalue(), "path": None})
        labels.append(int(kind > 1))
        families.append((2, 2, 0, 1)[kind])
    features = datasets.Features(
        image=datasets.Image(),
        label=datasets.ClassLabel(names=["real", "synthetic"]),
        generator_family=datasets.ClassLabel(names=FAMILIES),
    )
    columns = {"image": images, "label": labels, "generator_family": families}
    return datasets.Dataset.from_dict(columns, features=features)


@pytest.fixture(scope="session")
def rows() -> datasets.Dataset:
    return patterned(40)


@pytest.fixture(scope="session")
def unseen() -> datasets.Dataset:
    return patterned(40, seed=1)


#: The smallest ResNet of timm, in its fast form.
TINY = ["--backbone", "test_resnet", "--stem_stride", "2", "--init", "random"]


def pickles(folder: Path) -> list[str]:
    """Files of a model folder, checkpoints aside, that hold a pickle: bare, or as torch.save wraps it into a zip."""
    return [
        file.name
        for file in folder.iterdir()
        if file.is_file() and (file.read_bytes()[:1] == b"\x80" or b"data.pkl" in file.read_bytes())
    ]
