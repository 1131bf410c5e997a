"""What every test shares: caches of its own, no network but loopback, and small ROOT folders."""

from __future__ import annotations

import csv
import io
import os
import runpy
import tempfile
from collections.abc import Callable
from pathlib import Path

# Before anything imports datasets or transformers.
_CACHE = tempfile.TemporaryDirectory(prefix="imaginet-tests-")
os.environ["HF_HOME"] = _CACHE.name
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["KAGGLE_CONFIG_DIR"] = _CACHE.name
# Networks this small gain nothing from threads, and wait long for each other where tests run side by side.
os.environ["OMP_NUM_THREADS"] = "1"
for _name in ("HF_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_API_TOKEN", "KAGGLE_API_ENDPOINT"):
    os.environ.pop(_name, None)
# No connection to another machine, neither from here nor from any Python that a test starts.
_GUARD = Path(__file__).parent / "support" / "guard"
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(_GUARD), os.environ.get("PYTHONPATH"))))
runpy.run_path(str(_GUARD / "sitecustomize.py"))

import numpy as np  # noqa: E402
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402
from PIL import Image  # noqa: E402

# An example takes as long as a busy machine lets it.
settings.register_profile("patient", settings(), deadline=None)
settings.load_profile("patient")

PROJECT = Path(__file__).parents[1]
SHARED = PROJECT.parent / "shared"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """What `-n auto` means: a worker for each core, as long as there are 3 GB of memory for each."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(os.cpu_count() or 1, memory // (3 * 10**9)))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with upstream's lists and real images, on machines that have it."""
    if not (SHARED / "annotations").is_dir():
        pytest.skip("upstream's lists are not on this machine")
    return SHARED


def image_bytes(seed: int, size: tuple[int, int] = (40, 32), format_: str = "PNG", mode: str = "RGB") -> bytes:
    """A noise image, so that no two seeds give the same bytes and nothing compresses."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, format_)
    return stream.getvalue()


COLUMNS = ("path", "label", "content_type", "generator_family", "generator", "split", "license", "source", "group")


def table_rows(real: int = 12, synthetic: int = 8) -> list[dict[str, str]]:
    """Rows of people's own data, with generators that ImagiNet does not know."""
    rows = []
    for number in range(real + synthetic):
        made = number >= real
        family = ("NewNet", "SD")[number % 2] if made else "real"
        generator = ("NewNet 3", "SD v2.1")[number % 2] if made else "real"
        values = (
            f"pictures/{number:03d}.{('png', 'jpg', 'webp')[number % 3]}",
            "synthetic" if made else "real",
            ("faces", "maps")[number % 2],
            family,
            generator,
            "test" if number % 4 == 0 else "train",
            "CC0 1.0",
            "me",
            f"g{number % 3}",
        )
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    return rows


def write_root(root: Path, rows: list[dict[str, str]], size: tuple[int, int] = (40, 32)) -> Path:
    """A ROOT with annotations.csv and an image for each row."""
    formats = {".png": "PNG", ".jpg": "JPEG", ".webp": "WEBP"}
    for number, row in enumerate(rows):
        file = root / row["path"]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(image_bytes(number, size, formats[file.suffix]))
    with (root / "annotations.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return root


@pytest.fixture
def make_root(tmp_path: Path) -> Callable[..., Path]:
    """Makes ROOT folders: `make_root(real=12, synthetic=8)`."""

    def make(name: str = "root", size: tuple[int, int] = (40, 32), **counts: int) -> Path:
        (tmp_path / name).mkdir()
        return write_root(tmp_path / name, table_rows(**counts), size)

    return make
