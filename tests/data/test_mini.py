"""The made corpus: the same everywhere, laid out as upstream is, and solvable by its traces alone."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import struct
import subprocess
import sys
import zlib
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from imaginet_hub.data import mini, mini_recipes
from imaginet_hub.errors import BuildError, DataNotFoundError, ImageError, MissingExtraError, UsageError
from imaginet_hub.labels import Generator

pytest.importorskip("skimage")
pytest.importorskip("sklearn")

FAKES = [generator for generator in Generator if generator is not Generator.REAL]

# Upstream's folders with the integers that its lists give them: origin, content, model, specific model.
UPSTREAM = {
    "imagenet": (0, 0, 4, 8),
    "train2017": (0, 0, 4, 8),
    "val2017": (0, 0, 4, 8),
    "wikiart": (0, 1, 4, 8),
    "danbooru2021": (0, 1, 4, 8),
    "ffhq": (0, 2, 4, 8),
    "photozilla": (0, 3, 4, 8),
    "imagenet_stylegan": (1, 0, 0, 1),
    "sd_photos_fake": (1, 0, 1, 3),
    "sdxl_photos_fake": (1, 0, 1, 4),
    "wikiart_stylegan": (1, 1, 0, 2),
    "sd_paintings_fake": (1, 1, 1, 3),
    "sdxl_paintings_fake": (1, 1, 1, 4),
    "animaginexl_paintings_fake": (1, 1, 1, 5),
    "ffhq_stylegan": (1, 2, 0, 1),
    "sd_faces_fake": (1, 2, 1, 3),
    "sdxl_faces_fake": (1, 2, 1, 4),
    "journeydb": (1, 3, 2, 6),
    "dalle3": (1, 3, 3, 7),
}


class Row(NamedTuple):
    path: str
    labels: tuple[int, ...]
    split: str

    @property
    def synthetic(self) -> bool:
        return self.labels[0] == 1

    @property
    def stem(self) -> str:
        return Path(self.path).stem


def read_list(root: Path, name: str, split: str) -> list[Row]:
    text = (root / "annotations" / f"{name}.txt").read_bytes().decode()
    assert text.endswith("\n")
    assert "\r" not in text
    fields = [line.split(",") for line in text.splitlines()]
    assert all(path.startswith("./") for path, *_ in fields)
    return [Row(path.removeprefix("./"), tuple(map(int, labels)), split) for path, *labels in fields]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mini.make_mini(tmp_path_factory.mktemp("mini") / "root", progress=False)


@pytest.fixture(scope="module")
def rows(root: Path) -> list[Row]:
    return read_list(root, "train_annotations", "train") + read_list(root, "test_annotations", "test")


@pytest.fixture(scope="module")
def pixels(root: Path, rows: list[Row]) -> dict[str, NDArray[np.uint8]]:
    found = {}
    for row in rows:
        with Image.open(root / row.path) as image:
            assert (image.format, image.mode, image.info) == ("PNG", "RGB", {})
            found[row.path] = np.asarray(image)
    return found


# --- the corpus is what it is said to be ----------------------------------------------------------------------------


def test_digest_of_what_lies_on_disk(root: Path) -> None:
    files = sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file() and p.name != "mini.json")
    lines = [f"{hashlib.sha256((root / file).read_bytes()).hexdigest()}  {file}\n" for file in files]
    assert hashlib.sha256("".join(lines).encode()).hexdigest() == mini.MINI_DIGEST
    assert json.loads((root / "mini.json").read_text()) == {"version": mini.MINI_VERSION, "sha256": mini.MINI_DIGEST}


def test_lists_name_every_image_once_under_upstreams_folders(root: Path, rows: list[Row]) -> None:
    assert sorted(row.path for row in rows) == sorted(p.relative_to(root).as_posix() for p in root.rglob("*.png"))
    for row in rows:
        top = row.path.split("/")[0]
        if top in ("progan_train", "progan_val"):
            assert top == ("progan_train" if row.split == "train" else "progan_val")
            assert row.labels == ((1, 0, 0, 0) if row.path.split("/")[2] == "1_fake" else (0, 0, 4, 8))
        else:
            assert row.labels == UPSTREAM[top]
    assert {row.split for row in rows if row.path.startswith("train2017/")} == {"train"}
    assert {row.split for row in rows if row.path.startswith("val2017/")} == {"test"}


def test_proportions_echo_the_papers_table_2(rows: list[Row]) -> None:
    assert len(rows) == 2400
    assert Counter(row.synthetic for row in rows) == {True: 1200, False: 1200}
    assert sum(row.split == "train" for row in rows) == 1920
    shares = Counter(row.labels[1] for row in rows)
    assert [shares[content] / len(rows) for content in range(4)] == pytest.approx(
        [0.30, 0.225, 0.225, 0.25], abs=0.001
    )
    generators = Counter(row.labels[3] for row in rows if row.synthetic)
    paper = {0: 7.5, 1: 18.75, 2: 11.25, 5: 5.625, 6: 12.5, 7: 12.5}
    for generator, thousands in paper.items():
        assert generators[generator] / 1200 == pytest.approx(thousands / 100, abs=0.003)
    assert (generators[3] + generators[4]) / 1200 == pytest.approx(0.31875, abs=0.003)


def test_calibration_is_a_balanced_part_of_train(root: Path, rows: list[Row]) -> None:
    listed = read_list(root, "calibration", "train")
    assert set(listed) < {row for row in rows if row.split == "train"}
    assert Counter(row.labels[3] for row in listed) == {**dict.fromkeys(range(8), 48), 8: 8 * 48}


def test_partners_share_size_and_name_and_splits_share_no_photograph(rows: list[Row]) -> None:
    sides = {side: sorted(row.stem for row in rows if row.synthetic is side) for side in (True, False)}
    assert sides[True] == sides[False] == sorted({row.stem for row in rows})
    used: dict[str, set[str]] = {"train": set(), "test": set()}
    for pair in mini._pairs():
        used[pair.split].add(pair.photograph)
    assert used["train"].isdisjoint(used["test"])
    assert used["train"] | used["test"] == set(mini.PHOTOGRAPHS)


def test_readme_says_what_it_is_and_credits_every_photograph(root: Path) -> None:
    text = (root / "README.txt").read_text(encoding="utf-8")
    assert "SIMULATIONS" in text
    for photograph in mini.PHOTOGRAPHS.values():
        assert photograph.credit in text
        assert photograph.licence in text


# --- nothing but the traces gives the label away --------------------------------------------------------------------


#: What a pair's two sides share to the last bit, so that no rule on it can be better than a coin.
EXACT = ("bytes", "bits per pixel", "height", "width", "area", "aspect", "number in the name", "gray picture")


def best_rule(values: NDArray[np.float64], labels: NDArray[np.bool_]) -> tuple[float, bool]:
    """The threshold, and the side that lies above it, with the best balanced accuracy in sample."""
    edges = np.unique(values)
    below = [np.searchsorted(np.sort(values[labels == s]), edges, side="right") / (labels == s).sum() for s in (0, 1)]
    gain = below[0] - below[1]
    best = int(np.abs(gain).argmax())
    return float(edges[best]), bool(gain[best] >= 0)


def accuracy(rule: tuple[float, bool], values: NDArray[np.float64], labels: NDArray[np.bool_]) -> float:
    """Balanced accuracy of a rule."""
    says = (values > rule[0]) == rule[1]
    return float((says[labels].mean() + (~says[~labels]).mean()) / 2)


def test_no_single_rule_tells_the_sides_apart(
    root: Path, rows: list[Row], pixels: dict[str, NDArray[np.uint8]]
) -> None:
    def features(row: Row) -> dict[str, float]:
        image = pixels[row.path]
        height, width, _ = image.shape
        size = (root / row.path).stat().st_size
        return {
            "bytes": size,
            "bits per pixel": size / (height * width),
            "height": height,
            "width": width,
            "area": height * width,
            "aspect": width / height,
            "multiples of 64": (height % 64 == 0) + (width % 64 == 0),
            "multiples of 8": (height % 8 == 0) + (width % 8 == 0),
            "number in the name": int(row.stem),
            "length of the name": len(Path(row.path).name),
            "gray picture": float((image[..., 0] == image[..., 1]).all()),
            "darkest": image.min(),
            "brightest": image.max(),
            **{f"mean {c}": image[..., c].mean() for c in range(3)},
            **{f"contrast {c}": image[..., c].std() for c in range(3)},
        }

    train, test = ([row for row in rows if row.split == split] for split in ("train", "test"))
    tables = [[features(row) for row in part] for part in (train, test)]
    labels = [np.array([row.synthetic for row in part]) for part in (train, test)]
    for key in tables[0][0]:
        columns = [np.array([f[key] for f in table], dtype=float) for table in tables]
        rule = best_rule(columns[0], labels[0])
        for column, truth in zip(columns, labels, strict=True):
            found = accuracy(rule, column, truth)
            assert found <= 0.6, (key, found)
            if key in EXACT:
                assert found == 0.5, (key, found)


def test_files_are_stored_pngs_that_hold_nothing_but_pixels(
    root: Path, rows: list[Row], pixels: dict[str, NDArray[np.uint8]]
) -> None:
    for row in rows[::97]:
        data, image = (root / row.path).read_bytes(), pixels[row.path]
        kinds, stream, at = [], b"", 8
        while at < len(data):
            length, kind = struct.unpack(">I4s", data[at : at + 8])
            assert struct.unpack(">I", data[at + 8 + length : at + 12 + length])[0] == zlib.crc32(
                data[at + 4 : at + 8 + length]
            )
            kinds.append(kind)
            stream += data[at + 8 : at + 8 + length] if kind == b"IDAT" else b""
            at += 12 + length
        assert kinds == [b"IHDR", b"IDAT", b"IEND"]
        raw = np.frombuffer(zlib.decompress(stream), np.uint8).reshape(len(image), -1)
        assert (raw[:, 0] == 0).all()
        assert (raw[:, 1:].reshape(image.shape) == image).all()


def test_pictures_are_not_clipped(pixels: dict[str, NDArray[np.uint8]]) -> None:
    clipped = np.mean([np.mean((image == 0) | (image == 255)) for image in pixels.values()])
    assert clipped < 1e-4


# --- the traces are there, where the table says, and can be learnt --------------------------------------------------

#: Peaks in units of 1/120 cycles per pixel.
PEAKS = {
    Generator.PROGAN: [(60, 60), (0, 60)],
    Generator.STYLEGAN_XL: [(60, 60), (0, 60)],
    Generator.STYLEGAN3: [(60, 60), (0, 60)],
    Generator.SD_2_1: [(15, 45), (45, 15)],
    Generator.SDXL_1_0: [(15, 45), (45, 15)],
    Generator.ANIMAGINE_XL: [(15, 45), (45, 15)],
    Generator.MIDJOURNEY: [(40, 40), (0, 40)],
    Generator.DALLE3: [(48, 48)],
}


def prominence(spectrum: NDArray[np.float64], peak: tuple[int, int]) -> float:
    """How many times a bin's power exceeds the median of the 11 x 11 bins around it."""
    around = np.take(np.roll(spectrum, -peak[1], axis=1), range(-5, 6), axis=1, mode="wrap")
    around = np.take(np.roll(around, -peak[0], axis=0), range(-5, 6), axis=0, mode="wrap")
    return float(spectrum[peak] / np.median(around))


def test_each_family_leaves_its_fingerprint_and_photographs_leave_none(
    rows: list[Row], pixels: dict[str, NDArray[np.uint8]]
) -> None:
    """Mean log spectra of 120-pixel windows of the test photographs."""

    def spectrum(specific: int) -> NDArray[np.float64]:
        logs = []
        for row in rows:
            if row.split == "test" and row.labels[3] == specific:
                gray = pixels[row.path][:120, :120].astype(float).mean(axis=-1)
                window = np.outer(np.hanning(120), np.hanning(120))
                logs.append(np.log(np.abs(np.fft.fft2((gray - gray.mean()) * window)) ** 2 + 1))
        return np.asarray(np.exp(np.mean(logs, axis=0)))

    real = spectrum(8)
    for specific, generator in enumerate(FAKES):
        made = spectrum(specific)
        for peak in PEAKS[generator]:
            assert prominence(made, peak) > 10, (generator, peak)
        foreign = {peak for other in FAKES for peak in PEAKS[other]} - set(PEAKS[generator])
        assert max(prominence(made, peak) for peak in foreign) < min(prominence(made, p) for p in PEAKS[generator])
    assert max(prominence(real, peak) for peaks in PEAKS.values() for peak in peaks) < 4


def test_a_linear_model_of_residual_spectra_solves_both_tracks_on_unseen_photographs(
    rows: list[Row], pixels: dict[str, NDArray[np.uint8]]
) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def features(row: Row) -> NDArray[np.float64]:
        gray = pixels[row.path][:122, :122].astype(float).mean(axis=-1)
        residual = 4 * gray[1:-1, 1:-1] - gray[2:, 1:-1] - gray[:-2, 1:-1] - gray[1:-1, 2:] - gray[1:-1, :-2]
        tiles = residual.reshape(3, 40, 3, 40).swapaxes(1, 2) * np.outer(np.hanning(40), np.hanning(40))
        return np.asarray(np.log(np.abs(np.fft.rfft2(tiles)) ** 2 + 1).mean(axis=(0, 1)).ravel())

    train, test = ([row for row in rows if row.split == split] for split in ("train", "test"))
    x, x_test = np.array([features(row) for row in train]), np.array([features(row) for row in test])
    y, y_test = np.array([row.labels for row in train]), np.array([row.labels for row in test])

    def fitted(chosen: NDArray[np.bool_], column: int) -> Any:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
        return model.fit(x[chosen], y[chosen, column])

    everything, made, made_test = np.ones(len(y), bool), y[:, 0] == 1, y_test[:, 0] == 1
    assert roc_auc_score(y_test[:, 0], fitted(everything, 0).decision_function(x_test)) > 0.97
    assert np.mean(fitted(made, 2).predict(x_test[made_test]) == y_test[made_test, 2]) > 0.9


# --- recipes --------------------------------------------------------------------------------------------------------


def texture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    noise = np.random.default_rng(seed).integers(60, 200, (height, width, 3))
    shifted = [np.roll(noise, (y, x), (0, 1)) for y in range(3) for x in range(3)]
    return (np.sum(shifted, axis=0) // 9).astype(np.uint8)


@pytest.mark.parametrize("generator", FAKES)
def test_a_recipe_keeps_size_mean_and_grayness_and_changes_little(generator: Generator) -> None:
    image = texture(131, 157)
    made = mini_recipes.simulate(image, generator)
    assert made.shape == image.shape
    assert made.dtype == np.uint8
    difference = made.astype(int) - image
    assert abs(difference.mean()) < 0.5
    assert 1 < difference.std() < 8
    assert (made == mini_recipes.simulate(image, generator)).all()
    gray = np.repeat(image[..., :1], 3, axis=-1)
    assert np.ptp(mini_recipes.simulate(gray, generator), axis=-1).max() == 0


def test_real_is_no_generator() -> None:
    with pytest.raises(KeyError):
        mini_recipes.simulate(texture(32, 32), Generator.REAL)


@pytest.mark.parametrize("scale", [Fraction(11, 13), Fraction(3, 7), Fraction(5, 4)])
def test_resample_agrees_with_a_triangle_filter_in_floating_point(scale: Fraction) -> None:
    image = texture(29, 41)

    def weights(size: int) -> NDArray[np.float64]:
        s = float(scale)
        centres = (np.arange(int(size * scale)) + 0.5) / s
        grid = np.arange(-9, size + 9)
        w = np.clip(1 - np.abs((grid + 0.5)[None] - centres[:, None]) * min(s, 1), 0, None)
        folded = np.zeros((len(centres), size))
        np.add.at(folded.T, np.clip(grid, 0, size - 1), w.T)
        return folded / folded.sum(1, keepdims=True)

    expected = np.einsum("ih,hwc,jw->ijc", weights(29), image.astype(float), weights(41))
    got = mini_recipes.resample(image, scale)
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= 1.01


def test_paint_agrees_with_kuwaharas_definition() -> None:
    image, radius = texture(14, 17), 2
    padded = np.pad(image.astype(int), ((radius, radius), (radius, radius), (0, 0)), mode="edge")
    got = mini_recipes.paint(image, radius)
    for y in range(14):
        for x in range(17):
            best = []
            for dy in (0, radius):
                for dx in (0, radius):
                    part = padded[y + dy : y + dy + radius + 1, x + dx : x + dx + radius + 1].reshape(-1, 3)
                    best.append((((part @ [77, 150, 29]) >> 8).var(), part.mean(0)))
            least = min(variance for variance, _ in best)
            close = [mean for variance, mean in best if variance <= least + 1e-9]
            assert min(np.abs(got[y, x] - mean).max() for mean in close) <= 0.51


def test_develop_sets_the_black_and_the_white_point_and_the_grain() -> None:
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=-1)
    toned = mini_recipes.develop(ramp, 30, 200, 0, seed=1)
    assert (toned[0, 0, 0], toned[0, 255, 0]) == (30, 200)
    assert (np.diff(toned[0, :, 0].astype(int)) >= 0).all()
    flat = np.full((200, 200, 3), 128, np.uint8)
    grainy = mini_recipes.develop(flat, 0, 255, 3, seed=1).astype(float)
    assert grainy.mean() == pytest.approx(128, abs=0.1)
    assert grainy.std() == pytest.approx(3 * 0.58, abs=0.1)


# --- safe, repeatable, and plain about what is missing --------------------------------------------------------------


def test_a_complete_corpus_is_returned_as_it_is(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mini, "_fill", None)
    before = (root / "mini.json").stat().st_mtime_ns
    assert mini.make_mini(str(root)) == root
    assert (root / "mini.json").stat().st_mtime_ns == before


def test_other_peoples_files_are_never_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="left as it is"):
        mini.make_mini(tmp_path)
    with pytest.raises(UsageError, match="left as it is"):
        mini.make_mini(tmp_path / "thesis.txt")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_incomplete_corpus_is_not_taken_for_a_whole_one(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    for name in ("train", "test"):
        (tmp_path / "annotations" / f"{name}_annotations.txt").write_text("./ffhq/00000001.png,0,2,4,8\n")
    (tmp_path / "mini.json").write_text(json.dumps(mini._marker()))
    with pytest.raises(UsageError, match="incomplete"):
        mini.make_mini(tmp_path)


def test_a_wrong_digest_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mini, "_fill", lambda folder, progress: "0" * 64)
    with pytest.raises(BuildError, match=f"expected digest {mini.MINI_DIGEST}, got 0000"):
        mini.make_mini(tmp_path / "root")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_filled_and_a_rival_who_was_faster_is_accepted(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mini, "_fill", lambda folder, progress: mini.MINI_DIGEST)
    (tmp_path / "root").mkdir()
    assert (mini.make_mini(tmp_path / "root") / "mini.json").is_file()
    staging = tmp_path / "staging"
    staging.mkdir()
    mini._move(staging, root)
    assert (root / "mini.json").is_file()


def test_a_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "skimage" else found(name))
    with pytest.raises(MissingExtraError, match=r"skimage.*imaginet_hub\[demo\]"):
        mini.make_mini(tmp_path / "root")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_or_changed_photograph_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = mini.PHOTOGRAPHS["coffee"]
    for change, error, words in (
        ({"file": "data/tea.png"}, DataNotFoundError, "'coffee'.*tea.png.*force-reinstall"),
        ({"pixels": "0" * 64}, ImageError, f"'coffee'.*expected SHA-256 0000.*got {good.pixels}"),
    ):
        changed = mini.Photograph(**{**vars(good), **change})
        monkeypatch.setattr(mini, "PHOTOGRAPHS", {**mini.PHOTOGRAPHS, "coffee": changed})
        with pytest.raises(error, match=words):
            mini.make_mini(tmp_path / "root")
        monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


def test_importing_it_imports_none_of_the_packages_that_carry_photographs() -> None:
    code = (
        "import sys, imaginet_hub.data.mini as mini; [mini._pixels(name) for name in mini.PHOTOGRAPHS]; "
        "print(sorted({'sklearn', 'skimage', 'matplotlib', 'scipy', 'torch', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
