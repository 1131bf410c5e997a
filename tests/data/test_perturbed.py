"""The perturbed test set: the same pixels however it is rendered, whole or not at all, verified by rendering again."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from imaginet_hub.cards import dataset_card, perturbed_card
from imaginet_hub.data import perturbed, rendering
from imaginet_hub.data.images import open_image
from imaginet_hub.data.loading import open_split
from imaginet_hub.data.perturbed import PERTURB_REPORT, summary, verify
from imaginet_hub.data.rendering import Task, render, render_all
from imaginet_hub.data.repository import build_repository
from imaginet_hub.errors import BuildError, DataNotFoundError, ImageError, UsageError
from imaginet_hub.perturbations import Perturbation, encoder_versions, rendered

FIELDS = ("path", "label", "generator_family", "generator", "split", "license", "group")


def perturb(dataset: Path | str, out: Path, **options: Any) -> dict[str, Any]:
    return perturbed.perturb(dataset, out, **{"progress": False, "render_card": perturbed_card, **options})


def encoded(image: Image.Image, format_: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format_, **options)
    return stream.getvalue()


def picture(seed: int, width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Smooth and with edges, as photographs are; quickly made."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    image = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    image.paste((seed % 256, 90, 200), (width // 3, height // 4, width // 2 + 1, height // 2 + 1))
    return image.convert(mode)


def write_root(root: Path, files: dict[str, bytes], order: Sequence[str] | None = None) -> Path:
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    rows = []
    for path in order or list(files):
        simple = os.path.normpath(path)
        made = int(hashlib.sha256(simple.encode()).hexdigest(), 16) % 3 == 0
        names = ("synthetic", "GAN", "ProGAN") if made else ("real", "real", "real")
        rows.append((path, *names, "test", "CC0" if made else "CC BY 4.0", f"g{len(simple) % 2}"))
    with (root / "annotations.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([FIELDS, *rows])
    return root


def thousand_files() -> dict[str, bytes]:
    sizes = [(300, 280), (40, 32), (256, 256), (420, 270), (280, 700)]
    formats: list[tuple[str, dict[str, Any]]] = [
        ("JPEG", {"quality": 85}),
        ("PNG", {"compress_level": 1}),
        ("BMP", {}),
    ]
    files = {}
    for number in range(1000):
        (width, height), (format_, options) = sizes[number % 5], formats[number % 3]
        files[f"some/{number:04}.{format_.lower()}"] = encoded(picture(number, width, height), format_, **options)
    return files


@pytest.fixture(scope="module")
def thousand(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any]]:
    """A ROOT of a thousand images, and its perturbed set by one worker."""
    place = tmp_path_factory.mktemp("thousand")
    root = write_root(place / "root", thousand_files())
    return root, place / "out", perturb(root, place / "out", num_workers=1)


@pytest.fixture
def few(tmp_path: Path) -> Path:
    files = {f"./x/{number}.png": encoded(picture(number, 270 + number, 260)) for number in range(12)}
    return write_root(tmp_path / "few", files)


def same(one: Image.Image, other: Image.Image) -> bool:
    return np.array_equal(np.asarray(one), np.asarray(other))


def stored(out: Path) -> dict[str, dict[str, Any]]:
    rows = [row for file in sorted((out / "data").iterdir()) for row in pq.read_table(file).to_pylist()]
    return {row["path"]: row for row in rows}


class TestSamePixels:
    def test_with_four_workers_and_again(self, thousand: Any, tmp_path: Path) -> None:
        root, out, report = thousand
        again = perturb(root, tmp_path / "four", num_workers=4)
        assert again == report
        for file in (PERTURB_REPORT, "README.md", *(f"data/{f.name}" for f in (out / "data").iterdir())):
            assert (tmp_path / "four" / file).read_bytes() == (out / file).read_bytes(), file
        assert report["rows"] == len(stored(out)) == 1000

    def test_of_some_in_another_order(self, thousand: Any, tmp_path: Path) -> None:
        root, out, report = thousand
        paths = random.Random(0).sample(sorted(stored(out)), 250)
        fewer = write_root(tmp_path / "fewer", {f"./{path}": (root / path).read_bytes() for path in paths})
        found = perturb(fewer, tmp_path / "out", num_workers=2)
        whole, some = stored(out), stored(tmp_path / "out")
        assert len(some) == 250
        assert found["digest"] != report["digest"]
        for path, row in some.items():
            assert {**row, "path": path.removeprefix("./")} == whole[path.removeprefix("./")]

    def test_are_what_the_law_says(self, thousand: Any) -> None:
        """By Pillow alone, with whole images."""
        root, out, report = thousand
        lines = []
        for path, row in stored(out).items():
            lines.append(f"{path}\t{row['pixel_sha256']}\n".encode())
            if int(path[5:9]) % 10:
                continue
            data = (root / path).read_bytes()
            original = Image.open(io.BytesIO(data)).convert("RGB")
            drawn = Perturbation.drawn(0, path, *original.size)
            pixels = rendered(original, drawn)
            file = row["image"]["bytes"]
            assert same(Image.open(io.BytesIO(file)), pixels)
            assert row["pixel_sha256"] == hashlib.sha256(np.asarray(pixels).tobytes()).hexdigest()
            assert row["sha256"] == hashlib.sha256(file).hexdigest()
            assert row["source_sha256"] == hashlib.sha256(data).hexdigest()
            assert (row["width"], row["height"], row["format"]) == (256, 256, Image.open(io.BytesIO(file)).format)
            said = [row[f"crop_{name}"] for name in ("side", "left", "top")] + [row["compression"], row["quality"]]
            assert said == [drawn.side, drawn.left, drawn.top, drawn.compression, drawn.quality]
        assert report["digest"] == hashlib.sha256(b"".join(sorted(lines))).hexdigest()

    def test_however_a_path_is_written(self, few: Path, tmp_path: Path) -> None:
        files = {path.name: path.read_bytes() for path in (few / "x").iterdir()}
        other = write_root(tmp_path / "other", {f"x//{name}": data for name, data in reversed(files.items())})
        one, two = (perturb(root, tmp_path / f"{root.name}-out", num_workers=1) for root in (few, other))
        assert one["digest"] == two["digest"]
        assert verify(other, tmp_path / "few-out", num_workers=1, progress=False)["same"]

    def test_other_seed_other_pixels(self, few: Path, tmp_path: Path) -> None:
        one, other = (perturb(few, tmp_path / f"{seed}", seed=seed, num_workers=1) for seed in (0, -1))
        assert one["digest"] != other["digest"]
        assert verify(few, tmp_path / "-1", num_workers=1, progress=False)["same"]

    @pytest.mark.parametrize(
        ("width", "height", "mode", "format_"),
        [
            (1, 1, "RGB", "PNG"),
            (5000, 300, "RGB", "JPEG"),
            (300, 2500, "RGB", "JPEG"),
            (300, 1500, "RGB", "PNG"),
            (256, 256, "RGB", "WEBP"),
            (300, 270, "L", "PNG"),
            (300, 270, "RGBA", "PNG"),
            (300, 270, "LA", "PNG"),
            (300, 270, "P", "GIF"),
            (300, 290, "CMYK", "JPEG"),
            (30, 900, "CMYK", "TIFF"),
            (300, 270, "I;16", "PNG"),
        ],
        ids=str,
    )
    def test_of_odd_images(self, width: int, height: int, mode: str, format_: str) -> None:
        if mode == "I;16":
            image = Image.fromarray(np.arange(width * height, dtype=np.uint16).reshape(height, width))
        else:
            image = picture(1, width, height, mode)
        data = encoded(image, format_)
        for number in range(4):
            result = render(data, f"odd/{number}", 3)
            whole = open_image(data)
            expected = rendered(whole, Perturbation.drawn(3, f"odd/{number}", width, height))
            assert result.pixel_sha256 == hashlib.sha256(np.asarray(expected).tobytes()).hexdigest()

    def test_of_real_images(self, shared: Path, tmp_path: Path) -> None:
        if not (shared / "realset").is_dir():
            pytest.skip("the real images are not on this machine")
        report = perturb(shared / "realset", tmp_path / "one", limit=48, num_workers=1)
        assert report["rows"] == 48
        assert report["limit"] == 48
        assert perturb(shared / "realset", tmp_path / "two", limit=48, num_workers=3)["digest"] == report["digest"]
        for row in list(stored(tmp_path / "one").values())[::6]:
            whole = open_image(shared / "realset" / row["path"])
            drawn = Perturbation.drawn(0, row["path"], *whole.size)
            assert same(Image.open(io.BytesIO(row["image"]["bytes"])), rendered(whole, drawn))


class TestRepository:
    def test_loads_without_this_package(self, thousand: Any) -> None:
        root, out, report = thousand
        rows = datasets.load_dataset(str(out), "detection", split="test_perturbed")
        synthetic = datasets.load_dataset(str(out), "identification", split="test_perturbed")
        assert len(rows) == 1000
        assert set(synthetic["label"]) == {1}
        assert len(synthetic) == sum(rows["label"]) == report["label"]["synthetic"]
        assert rows[0]["image"].size == (256, 256)
        assert rows[0]["image"].mode == "RGB"
        given = open_split(root, "test")
        assert [column for column in rows.column_names if column in given.features] == list(given.features)
        for column in ("label", "generator"):
            assert rows.features[column] == given.features[column]
        # what a row said it still says
        by_path = {row["path"]: row for row in given}
        again = {row["path"]: row for row in open_split(out, "test_perturbed")}
        assert set(again) == set(by_path)
        for path, row in again.items():
            for column in ("label", "content_type", "generator_family", "generator", "license", "group"):
                assert row[column] == by_path[path][column]

    def test_of_a_built_dataset(self, few: Path, tmp_path: Path) -> None:
        build_repository(few, tmp_path / "built", render_card=dataset_card)
        found = perturb(tmp_path / "built", tmp_path / "b", num_workers=1)
        assert found["digest"] == perturb(few, tmp_path / "r", num_workers=1)["digest"]
        assert verify(few, tmp_path / "b", num_workers=1, progress=False)["same"]

    def test_row_groups_and_files(self, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = perturb(few, tmp_path / "whole", num_workers=1)
        monkeypatch.setattr(perturbed, "ROW_GROUP_BYTES", 2_000)
        monkeypatch.setattr(perturbed, "SHARD_BYTES", 40_000)
        assert perturb(few, tmp_path / "cut", num_workers=2)["digest"] == whole["digest"]
        files = sorted((tmp_path / "cut" / "data").iterdir())
        assert len(files) > 2
        assert [f.name for f in files] == [
            f"test_perturbed-{n:05}-of-{len(files):05}.parquet" for n in range(len(files))
        ]
        for file in files:
            statistics = pq.ParquetFile(file)
            for group in range(statistics.num_row_groups):
                assert len(set(statistics.read_row_group(group, ["label"])["label"].to_pylist())) == 1
        assert stored(tmp_path / "cut") == stored(tmp_path / "whole")

    def test_report_and_card(self, thousand: Any) -> None:
        _, out, report = thousand
        assert json.loads((out / PERTURB_REPORT).read_text(encoding="utf-8")) == report
        assert report["encoders"] == encoder_versions()
        assert report["dataset"]["images"] == 1000
        assert sum(report["compression"].values()) == sum(report["license"].values()) == 1000
        assert report["left_out"] == report["columns_left_out"] == []
        card = (out / "README.md").read_text(encoding="utf-8")
        for said in (report["digest"], "seed 0", "1,000 images", "| jpeg |", "CC BY 4.0", "Nothing: every row is in."):
            assert said in card, said
        for name, version in report["encoders"].items():
            assert f"| {name} | {version} |" in card
        assert "\n\n\n" not in card

    def test_rows_of_others(self, tmp_path: Path) -> None:
        """No paths, another word for synthetic, a column that is no value; what is broken is left out."""
        others = tmp_path / "others"
        (others / "data").mkdir(parents=True)
        images = [encoded(picture(n, 300, 300)) for n in range(4)] + [b"<html>"]
        features = datasets.Features(
            {
                "image": datasets.Image(),
                "label": datasets.ClassLabel(names=["fake", "real"]),
                "score": datasets.Value("float64"),
                "box": datasets.Sequence(datasets.Value("int32")),
            }
        )
        columns = {
            "image": [{"bytes": data, "path": "0.png"} for data in images],
            "label": [0, 1, 0, 1, 0],
            "score": [0.5] * 5,
            "box": [[1, 2]] * 5,
        }
        table = pa.table(columns, schema=features.arrow_schema)
        pq.write_table(table, others / "data" / "test-00000.parquet")
        report = perturb(others, tmp_path / "out", num_workers=1)
        assert report["label"] == {"real": 2, "synthetic": 2}
        assert report["columns_left_out"] == ["box"]
        assert report["license"] == {"none": 4}
        assert [left["reason"] for left in report["left_out"]] == ["unreadable"]
        rows = stored(tmp_path / "out")
        assert set(rows) == {f"sha256:{hashlib.sha256(data).hexdigest()}" for data in images[:4]}
        assert {row["score"] for row in rows.values()} == {0.5}
        assert verify(others, tmp_path / "out", num_workers=1, progress=False)["same"]

    def test_not_twice(self, thousand: Any, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"has pixel_sha256, .* already"):
            perturb(thousand[1], tmp_path / "twice", split="test_perturbed")

    def test_usage(self, few: Path, tmp_path: Path) -> None:
        for bad in ({"num_workers": 0}, {"limit": 0}, {"seed": "x"}, {"split": "tset"}):
            with pytest.raises((UsageError, DataNotFoundError)):
                perturb(few, tmp_path / "out", **bad)
        assert not (tmp_path / "out").exists()

    def test_existing_folders(self, few: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        out.mkdir()
        (out / "mine.txt").write_text("mine")
        with pytest.raises(BuildError, match="choose another name"):
            perturb(few, out, overwrite=True)
        (out / "mine.txt").unlink()
        first = perturb(few, out, num_workers=1)
        with pytest.raises(BuildError, match="--overwrite"):
            perturb(few, out)
        assert perturb(few, out, seed=1, num_workers=1, overwrite=True)["digest"] != first["digest"]
        for inside in (few, few.parent):
            with pytest.raises(BuildError, match="is the dataset or holds it"):
                perturb(few, inside, overwrite=True)
        build_repository(few, tmp_path / "built", render_card=dataset_card)
        with pytest.raises(BuildError, match="not a dataset that was built by this command"):
            perturb(few, tmp_path / "built", overwrite=True)


class TestUnreadable:
    def test_left_out_and_listed(self, few: Path, tmp_path: Path) -> None:
        (few / "x/1.png").write_bytes((few / "x/1.png").read_bytes()[:-200])
        (few / "x/4.png").write_text("<html>quota</html>")
        (few / "x/7.png").unlink()
        report = perturb(few, tmp_path / "out", num_workers=2)
        assert report["rows"] == 9
        assert {(left["path"], left["reason"]) for left in report["left_out"]} == {
            ("./x/1.png", "truncated"),
            ("./x/4.png", "unreadable"),
            ("./x/7.png", "missing"),
        }
        assert "  3 left out; perturb_report.json lists all:\n    ./x/1.png: truncated\n" in summary(report)
        assert "HTML page" in next(left["message"] for left in report["left_out"] if "4" in left["path"])
        card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
        assert "3 images could not be read" in card
        assert "| ./x/7.png | missing |" in card
        assert verify(few, tmp_path / "out", num_workers=1, progress=False)["same"]

    def test_nothing_left(self, few: Path, tmp_path: Path) -> None:
        for file in (few / "x").iterdir():
            file.write_bytes(b"")
        with pytest.raises(BuildError, match=r"none of the 12 images .* an empty file; nothing was written"):
            perturb(few, tmp_path / "deep" / "out", num_workers=1)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["few"]


class TestVerify:
    def check(self, dataset: Path, out: Path) -> dict[str, Any]:
        return verify(dataset, out, num_workers=1, progress=False)

    def test_same(self, few: Path, tmp_path: Path) -> None:
        perturb(few, tmp_path / "out", num_workers=1, limit=7)
        nothing: dict[str, Any] = {"count": 0, "first": []}
        parts = dict.fromkeys(("different", "columns", "damaged", "report", "only_stored", "not_stored"), nothing)
        assert self.check(few, tmp_path / "out") == {"same": True, "rows": 7, "encoders": {}, **parts}

    def test_other_encoders(self, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(perturbed, "encoder_versions", lambda: {**encoder_versions(), "libwebp": "0.1"})
            perturb(few, tmp_path / "out", num_workers=1)
        found = self.check(few, tmp_path / "out")
        assert found["encoders"] == {"libwebp": {"stored": "0.1", "here": encoder_versions()["libwebp"]}}
        assert found["same"]  # the pixels are
        assert f"libwebp: 0.1 when it was stored, {encoder_versions()['libwebp']} here" in summary(found)

    def test_finds_every_kind_of_difference(self, few: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        perturb(few, out, num_workers=1)
        (few / "x/0.png").write_bytes(encoded(picture(99, 270, 260)))  # another original
        (few / "x/1.png").unlink()  # no longer there
        (file,) = (out / "data").iterdir()
        rows = pq.read_table(file)
        values = rows.to_pylist()
        for row in values:
            if row["path"] == "./x/2.png":
                row["pixel_sha256"] = "0" * 64
            if row["path"] == "./x/3.png":
                row["crop_left"] += 1
            if row["path"] == "./x/4.png":
                row["image"]["bytes"] = row["image"]["bytes"][:-1]
        kept = [row for row in values if row["path"] != "./x/5.png"]
        pq.write_table(pa.Table.from_pylist(kept, schema=rows.schema), file)
        found = self.check(few, out)
        assert not found["same"]
        assert found["rows"] == 10
        assert found["different"] == {
            "count": 3,
            "first": [
                {"path": "x/0.png", "columns": ["pixel_sha256", "source_sha256"]},
                {"path": "x/2.png", "columns": ["pixel_sha256"]},
                {"path": "x/3.png", "columns": ["crop_left"]},
            ],
        }
        assert found["damaged"] == {"count": 2, "first": ["x/2.png", "x/4.png"]}
        assert {"digest", "rows"} <= set(found["report"]["first"])
        assert found["only_stored"] == {"count": 1, "first": ["x/1.png"]}
        assert found["not_stored"] == {"count": 1, "first": ["x/5.png"]}
        said = summary(found)
        for line in ("10 rows rendered again: not the same", "  3 rows with other pixels", "    x/3.png (crop_left)"):
            assert line in said

    def test_finds_a_falsified_set(self, few: Path, tmp_path: Path) -> None:
        """Grey pictures with hashes of their own, other labels, another generator, columns of one's own."""
        out = tmp_path / "out"
        perturb(few, out, num_workers=1)

        def falsify(number: int, row: dict[str, Any]) -> None:
            grey = encoded(Image.new("RGB", (256, 256), "grey"), rendering.FORMAT, **rendering.LOSSLESS)
            if number < 4:
                row.update(image={"bytes": grey, "path": None}, sha256=hashlib.sha256(grey).hexdigest())
            if number < 2:
                row["pixel_sha256"] = hashlib.sha256(Image.new("RGB", (256, 256), "grey").tobytes()).hexdigest()
            if number == 5:
                row["label"] = 1 - row["label"]
            if number == 6:
                row.update(license=None, width=255)
            if number == 7:
                row["generator"] = 9999

        self.rewrite(out, falsify)
        found = self.check(few, out)
        assert not found["same"]
        assert [row["path"] for row in found["different"]["first"]] == ["x/0.png", "x/1.png"]
        assert found["different"]["first"][0]["columns"] == ["pixel_sha256"]
        assert found["damaged"] == {"count": 2, "first": ["x/2.png", "x/3.png"]}
        assert found["columns"] == {
            "count": 3,
            "first": [
                {"path": "x/5.png", "columns": ["label"]},
                {"path": "x/6.png", "columns": ["license", "width"]},
                {"path": "x/7.png", "columns": ["generator"]},
            ],
        }
        assert found["report"] == {"count": 3, "first": ["digest", "label", "license"]}
        assert found["only_stored"]["count"] == found["not_stored"]["count"] == 0
        said = summary(found)
        for line in (
            "not the same",
            "  3 rows whose labels",
            "    x/5.png (label)",
            "  3 values of perturb_report.json",
        ):
            assert line in said

    @pytest.mark.parametrize("kind", ["turned", "lossy", "shape", "png", "nothing"])
    def test_files_that_only_look_right(self, few: Path, tmp_path: Path, kind: str) -> None:
        """Of the pixels that their rows say, and another picture to who loads them; or no picture."""
        out = tmp_path / "out"
        perturb(few, out, num_workers=1, limit=1)

        def falsify(_: int, row: dict[str, Any]) -> None:
            image = Image.open(io.BytesIO(row["image"]["bytes"]))
            if kind == "turned":
                exif = Image.Exif()
                exif[0x112] = 3
                data = encoded(image, "WEBP", lossless=True, exif=exif)
            elif kind == "lossy":
                data = encoded(image, "WEBP", quality=5)
            elif kind == "shape":
                data = encoded(Image.frombytes("RGB", (512, 128), image.tobytes()), "WEBP", lossless=True)
            else:
                data = encoded(image) if kind == "png" else b""
            row.update(image={"bytes": data or None, "path": None}, sha256=hashlib.sha256(data).hexdigest())

        self.rewrite(out, falsify)
        found = self.check(few, out)
        assert not found["same"]
        assert found["damaged"] == {"count": 1, "first": ["x/0.png"]}

    def test_other_bytes_of_the_same_pixels(self, few: Path, tmp_path: Path) -> None:
        """As another version of libwebp makes them."""
        out = tmp_path / "out"
        perturb(few, out, num_workers=1)

        def again(_: int, row: dict[str, Any]) -> None:
            image = Image.open(io.BytesIO(row["image"]["bytes"]))
            data = encoded(image, "WEBP", lossless=True, method=6)
            row.update(image={"bytes": data, "path": None}, sha256=hashlib.sha256(data).hexdigest())

        before = stored(out)
        self.rewrite(out, again)
        assert stored(out) != before
        assert self.check(few, out)["same"]

    def test_columns_added_and_missing(self, few: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        perturb(few, out, num_workers=1)
        (file,) = (out / "data").iterdir()
        rows = pq.read_table(file).drop_columns(["license", "quality"])
        pq.write_table(rows.append_column("mine", pa.array([None] * 12, pa.string())), file)
        found = self.check(few, out)
        assert found["columns"]["count"] == found["different"]["count"] == 12
        assert found["columns"]["first"][0] == {"path": "x/0.png", "columns": ["license", "mine"]}
        assert found["different"]["first"][0] == {"path": "x/0.png", "columns": ["quality"]}

    @pytest.mark.parametrize("name", ["rows", "digest", "label", "compression", "license"])
    def test_report_of_others(self, few: Path, tmp_path: Path, name: str) -> None:
        report = perturb(few, tmp_path / "out", num_workers=1, limit=2)
        other = {"rows": 3, "digest": "0" * 64}.get(name, {"real": 7})
        (tmp_path / "out" / PERTURB_REPORT).write_text(json.dumps({**report, name: other}))
        found = self.check(few, tmp_path / "out")
        assert not found["same"]
        assert found["report"] == {"count": 1, "first": [name]}

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ([], "expected a JSON object, got list"),
            ("text", "expected a JSON object, got str"),
            (None, "expected a JSON object, got NoneType"),
            ({"seed": "x"}, "expected an integer as seed, got 'x'"),
            ({"limit": 1.5}, "expected an integer or null as limit, got 1.5"),
            ({"encoders": []}, r"expected an object as encoders, got \[\]"),
            ({"digest": ...}, "expected text as digest, got nothing"),
            ({"split": ...}, "expected text as split, got nothing"),
            ({"rows": ...}, "expected an integer as rows, got nothing"),
        ],
        ids=str,
    )
    def test_report_that_is_none(self, few: Path, tmp_path: Path, change: Any, said: str) -> None:
        report = perturb(few, tmp_path / "out", num_workers=1, limit=1)
        if isinstance(change, dict):
            change = {name: value for name, value in {**report, **change}.items() if value is not ...}
        (tmp_path / "out" / PERTURB_REPORT).write_text(json.dumps(change))
        with pytest.raises(DataNotFoundError, match=said) as raised:
            self.check(few, tmp_path / "out")
        assert "\n" not in str(raised.value)

    def test_limit_on_record_that_is_none(self, few: Path, tmp_path: Path) -> None:
        report = perturb(few, tmp_path / "out", num_workers=1, limit=1)
        (tmp_path / "out" / PERTURB_REPORT).write_text(json.dumps({**report, "limit": -1}))
        with pytest.raises(UsageError, match="limit: expected 1 or more, got -1"):
            self.check(few, tmp_path / "out")

    def test_paths_that_classes_share(self, tmp_path: Path) -> None:
        """real/0.png and fake/0.png, by their names alone: rows are written by label, and so in another order."""
        shared_names = self.of_two_classes(tmp_path / "set", 8)
        out = tmp_path / "out"
        perturb(shared_names, out, num_workers=1)
        found = self.check(shared_names, out)
        assert found["same"], found
        assert found["rows"] == 8

        def flip(number: int, row: dict[str, Any]) -> None:
            if number == 0:
                row["label"] = 1 - row["label"]

        self.rewrite(out, flip)
        flipped = {"path": "0.png", "columns": ["label"]}
        assert self.check(shared_names, out)["columns"] == {"count": 2, "first": [flipped] * 2}

    def test_paths_that_classes_share_and_another_original(self, tmp_path: Path) -> None:
        out = tmp_path / "out"
        perturb(self.of_two_classes(tmp_path / "set", 8), out, num_workers=1)
        found = self.check(self.of_two_classes(tmp_path / "other", 8, new=0), out)
        assert found["different"]["first"] == [{"path": "0.png", "columns": ["pixel_sha256", "source_sha256"]}]
        assert found["columns"]["count"] == found["only_stored"]["count"] == found["not_stored"]["count"] == 0

    def of_two_classes(self, folder: Path, count: int, new: int | None = None) -> Path:
        """A dataset whose rows come in pairs of one path, now one label first and now the other."""
        features = datasets.Features(
            {
                "image": datasets.Image(),
                "label": datasets.ClassLabel(names=["fake", "real"]),
                "path": datasets.Value("string"),
            }
        )
        images = [encoded(picture(n + 50 * (n == new), 270, 270)) for n in range(count)]
        columns = {
            "image": [{"bytes": data, "path": None} for data in images],
            "label": [n % 2 if n % 4 < 2 else 1 - n % 2 for n in range(count)],
            "path": [f"{n // 2}.png" for n in range(count)],
        }
        (folder / "data").mkdir(parents=True)
        pq.write_table(pa.table(columns, schema=features.arrow_schema), folder / "data" / "test-00000.parquet")
        return folder

    def rewrite(self, out: Path, change: Callable[[int, dict[str, Any]], None]) -> None:
        """Change rows by the number in their paths."""
        (file,) = (out / "data").iterdir()
        rows = pq.read_table(file)
        values = rows.to_pylist()
        for row in values:
            change(int(Path(row["path"]).stem), row)
        pq.write_table(pa.Table.from_pylist(values, schema=rows.schema), file)

    def test_of_the_first_rows(self, few: Path, tmp_path: Path) -> None:
        perturb(few, tmp_path / "out", num_workers=1)
        (few / "x/1.png").unlink()
        (few / "x/9.png").unlink()
        found = verify(few, tmp_path / "out", num_workers=1, limit=5, progress=False)
        assert found["rows"] == 4
        assert found["only_stored"] == {"count": 1, "first": ["x/1.png"]}

    def test_first_ten(self, few: Path, tmp_path: Path) -> None:
        perturb(few, tmp_path / "out", num_workers=1)
        for number in range(12):
            (few / f"x/{number}.png").unlink()
        found = self.check(few, tmp_path / "out")
        assert found["only_stored"]["count"] == 12
        assert found["only_stored"]["first"] == sorted(f"x/{n}.png" for n in range(12))[:10]

    def test_of_what_is_no_perturbed_set(self, few: Path, tmp_path: Path) -> None:
        for folder in (tmp_path / "nowhere", few):
            with pytest.raises(DataNotFoundError, match="imaginet perturb"):
                self.check(few, folder)
        perturb(few, tmp_path / "out", num_workers=1)
        (file,) = (tmp_path / "out" / "data").iterdir()
        file.write_bytes(file.read_bytes()[:1000])
        with pytest.raises(DataNotFoundError, match="imaginet perturb"):
            self.check(few, tmp_path / "out")


def children(parent: int) -> list[int]:
    """Processes whose parent this is, as Linux knows."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, above = status.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(above) == parent and state != "Z":
            found.append(int(status.parent.name))
    return found


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def within(seconds: float, condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc")
class TestProcesses:
    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["kill", "ctrl-c"])
    def test_parent_ends(self, few: Path, tmp_path: Path, number: signal.Signals) -> None:
        out = tmp_path / "place" / "out"
        program = (
            "import sys, time\n"
            "from imaginet_hub.data import perturbed\n"
            "columns = perturbed._columns\n"
            "perturbed._columns = lambda result: (time.sleep(0.5), columns(result))[1]\n"
            "perturbed.perturb(sys.argv[1], sys.argv[2], num_workers=2, progress=False, render_card=str)\n"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(few), str(out)], stderr=subprocess.PIPE, start_new_session=True
        )
        with process:
            workers = within(60, lambda: (found := children(process.pid)) and len(found) == 2 and found)
            assert workers, "no workers were started"
            assert within(30, lambda: list(out.parent.glob(".out.incomplete/data")))
            time.sleep(1)
            os.killpg(process.pid, number)
            process.wait(20)
            assert within(10, lambda: not any(map(alive, workers)))
            said = (process.stderr.read() if process.stderr else b"").decode()
        assert not out.exists()
        assert "worker process" not in said
        if number == signal.SIGINT:
            assert not out.parent.exists()
        perturb(few, out, num_workers=1)
        assert sorted(path.name for path in out.parent.iterdir()) == ["out"]

    def test_worker_killed(self, few: Path) -> None:
        files = sorted((few / "x").iterdir())

        def tasks() -> Iterator[Task]:
            for number, file in enumerate(files * 40):
                if number == 5:
                    for worker in children(os.getpid()):
                        os.kill(worker, signal.SIGKILL)
                yield Task(None, str(number), file.read_bytes())

        with pytest.raises(BuildError, match=r"^\d+: a worker process ended .*status -9.*--num-workers.*leave it out"):
            list(render_all(tasks(), 0, 1))
        assert not children(os.getpid())

    def test_none_left_where_the_caller_stops(self, few: Path) -> None:
        data = (few / "x/0.png").read_bytes()
        results = render_all((Task(None, str(n), data) for n in range(10**9)), 0, 2)
        next(results)
        assert len(children(os.getpid())) == 2
        results.close()
        assert not children(os.getpid())


class TestStreams:
    def test_few_at_a_time(self, few: Path) -> None:
        data = (few / "x/0.png").read_bytes()
        taken = 0

        def tasks() -> Iterator[Task]:
            nonlocal taken
            for number in range(200):
                taken += 1
                yield Task(number, str(number), data)

        for number, (task, result) in enumerate(render_all(tasks(), 0, 1)):
            assert task.row == number
            assert not isinstance(result, ImageError)
            assert result.path == str(number)
            assert taken - number <= rendering._AHEAD + 1

    def test_few_large_ones_at_a_time(self, few: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        data = (few / "x/0.png").read_bytes()
        monkeypatch.setattr(rendering, "_AHEAD_BYTES", 3 * len(data))
        taken = 0

        def tasks() -> Iterator[Task]:
            nonlocal taken
            for number in range(20):
                taken += 1
                yield Task(number, str(number), data)

        for number, _ in enumerate(render_all(tasks(), 0, 1)):
            assert taken - number <= 4

    def test_workers_import_little(self) -> None:
        program = "import sys, imaginet_hub.data.rendering; print({'torch', 'datasets', 'pyarrow'} & set(sys.modules))"
        found = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
        assert found.stdout.strip() == "set()"


def test_a_row_without_an_image_costs_one_row(tmp_path: Path) -> None:
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["real", "synthetic"]),
            "path": datasets.Value("string"),
        }
    )
    images = [{"bytes": encoded(picture(n, 300, 280)), "path": None} for n in range(4)]
    columns = {
        "image": [*images[:2], None, *images[2:]],
        "label": [0, 1, 0, 1, 0],
        "path": [f"{n}.png" for n in range(5)],
    }
    folder = tmp_path / "theirs"
    folder.mkdir()
    datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / "test-00000-of-00001.parquet")
    report = perturb(folder, tmp_path / "out", num_workers=2)
    assert report["rows"] == 4 and [item["path"] for item in report["left_out"]] == ["2.png"]
