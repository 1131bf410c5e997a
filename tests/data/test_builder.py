"""`load_dataset("imaginet", ...)` on ROOT folders."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
from PIL import Image

import imaginet_hub
from imaginet_hub.data.builder import BUILD_REPORT, ImagiNet
from imaginet_hub.data.sources import KNOWN_CORRUPT
from imaginet_hub.errors import AnnotationError, BuildError, DataNotFoundError
from tests.conftest import PROJECT, image_bytes, table_rows, write_root

MakeRoot = Callable[..., Path]


def stored(rows: datasets.Dataset) -> list[bytes]:
    return [row["image"]["bytes"] for row in rows.cast_column("image", datasets.Image(decode=False))]


def test_configs_without_data() -> None:
    assert datasets.get_dataset_config_names("imaginet") == ["detection", "identification", "mini"]
    assert datasets.get_dataset_default_config_name("imaginet") == "detection"
    with pytest.raises(ValueError, match="detecton"):
        datasets.load_dataset("imaginet", "detecton")


def test_rows_are_the_files(make_root: MakeRoot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_root()
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    loaded = datasets.load_dataset("imaginet", data_dir=str(root))
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 15, "test": 5}
    listed = table_rows()
    for split, rows in loaded.items():
        mine = [row for row in listed if row["split"] == split]
        assert rows["path"] == [row["path"] for row in mine]
        assert rows["group"] == [row["group"] for row in mine]
        for column in ("label", "content_type", "generator_family", "generator"):
            assert [rows.features[column].int2str(i) for i in rows[column]] == [row[column] for row in mine]
        for row, data in zip(rows, stored(rows), strict=True):
            assert data == (root / row["path"]).read_bytes()
            assert row["sha256"] == hashlib.sha256(data).hexdigest()
            assert (row["width"], row["height"]) == row["image"].size == (40, 32)
            assert row["format"] == Image.open(io.BytesIO(data)).format


def test_identification_is_the_synthetic_rows(make_root: MakeRoot) -> None:
    rows = datasets.load_dataset("imaginet", "identification", data_dir=str(make_root()), split="train+test")
    assert len(rows) == 8
    names = rows.features["generator_family"].names
    assert names == ["SD", "NewNet", "real"]
    assert {names[i] for i in rows["generator_family"]} == {"SD", "NewNet"}


def test_streaming_gives_the_same_rows(make_root: MakeRoot) -> None:
    root = str(make_root())
    for config in ("detection", "identification"):
        stream = datasets.load_dataset("imaginet", config, data_dir=root, split="train", streaming=True)
        rows = datasets.load_dataset("imaginet", config, data_dir=root, split="train")
        assert [row["path"] for row in stream] == list(rows["path"])
        assert stream.features == rows.features
        assert stream.num_shards > 1  # so that shuffle and DataLoader workers have something to deal


def test_two_processes_write_the_same_dataset(make_root: MakeRoot, tmp_path: Path) -> None:
    root = str(make_root())
    one = datasets.load_dataset("imaginet", data_dir=root, cache_dir=str(tmp_path / "1"))
    two = datasets.load_dataset("imaginet", data_dir=root, cache_dir=str(tmp_path / "2"), num_proc=2)
    assert len(two["train"].cache_files) == 2
    for split in one:
        assert one[split]["sha256"] == two[split]["sha256"]


def test_cache_is_used_and_honest(make_root: MakeRoot) -> None:
    root = make_root()

    def load() -> tuple[str, list[str], list[str]]:
        rows = datasets.load_dataset("imaginet", data_dir=str(root), split="train")
        return rows.cache_files[0]["filename"], list(rows["sha256"]), list(rows["group"])

    first = load()
    made = Path(first[0]).stat().st_mtime_ns
    assert load() == first and Path(first[0]).stat().st_mtime_ns == made

    image = root / table_rows()[1]["path"]  # same name, same size, other bytes
    before = image.stat()
    data = bytearray(image.read_bytes())
    replacement = image_bytes(999, (40, 32), "JPEG")
    image.write_bytes(replacement.ljust(len(data), b"\0")[: max(len(data), len(replacement))])
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))  # even with its old date
    second = load()
    assert second[0] != first[0] and second[1] != first[1]

    annotations = root / "annotations.csv"
    annotations.write_text(annotations.read_text().replace(",g1\n", ",gX\n"))
    third = load()
    assert "gX" in third[2] and "g1" not in third[2]


def test_parquet_through_the_builder(make_root: MakeRoot, tmp_path: Path) -> None:
    root = make_root()
    builder = ImagiNet(config_name="identification", data_dir=str(root), cache_dir=str(tmp_path / "c"))
    builder.download_and_prepare(str(tmp_path / "out"), file_format="parquet")
    assert builder.dataset_name == "imaginet"
    files = sorted((tmp_path / "out").glob("*.parquet"))
    assert [f.name for f in files] == ["imaginet-test.parquet", "imaginet-train.parquet"]
    rows = datasets.load_dataset(
        "parquet", data_files=[str(f) for f in files], split="train", cache_dir=tmp_path / "d"
    )
    assert len(rows) == 8
    assert all(hashlib.sha256(d).hexdigest() == s for d, s in zip(stored(rows), rows["sha256"], strict=True))


def broken_root(root: Path) -> dict[str, str]:
    """Breaks four images of a ROOT in four ways; path -> reason."""
    paths = [row["path"] for row in table_rows()]
    (root / paths[0]).unlink()
    (root / paths[1]).write_bytes((root / paths[1]).read_bytes()[:-300])
    (root / paths[2]).write_bytes(b"<html>not found</html>")
    from tests.data.test_images import png_of_size

    (root / paths[3]).write_bytes(png_of_size(30_000, 30_000))
    return dict(zip(paths[:4], ("missing", "truncated", "unreadable", "oversized"), strict=True))


def test_on_error_raise_lists_every_offender(make_root: MakeRoot) -> None:
    root = make_root()
    broken = broken_root(root)
    with pytest.raises(BuildError) as caught:
        datasets.load_dataset("imaginet", data_dir=str(root))
    assert str(caught.value).startswith("4 of 20 images")
    assert all(path in str(caught.value) for path in broken)
    assert {item.path: item.reason for item in caught.value.offenders} == broken  # type: ignore[attr-defined]


def test_on_error_skip_leaves_out_and_records(make_root: MakeRoot) -> None:
    root = make_root()
    broken = broken_root(root)
    rows = datasets.load_dataset("imaginet", data_dir=str(root), on_error="skip", split="train+test")
    assert len(rows) == 16 and not set(rows["path"]) & set(broken)
    report = json.loads((Path(rows.cache_files[0]["filename"]).parent / BUILD_REPORT).read_text())
    assert {item["path"]: item["reason"] for item in report["left_out"]} == broken


def test_streaming_meets_broken_images_when_they_come(make_root: MakeRoot) -> None:
    root = make_root()
    broken = broken_root(root)
    stream = datasets.load_dataset("imaginet", data_dir=str(root), on_error="skip", split="train", streaming=True)
    assert not {row["path"] for row in stream} & set(broken)
    stream = datasets.load_dataset("imaginet", data_dir=str(root), split="train", streaming=True)
    with pytest.raises(Exception, match="cannot be decoded"):
        list(stream)


def test_a_promised_checksum_is_verified(tmp_path: Path) -> None:
    rows = [{**row, "sha256": "0" * 64 if n == 1 else ""} for n, row in enumerate(table_rows())]
    with pytest.raises(BuildError, match=f"expected SHA-256 {'0' * 64}"):
        datasets.load_dataset("imaginet", data_dir=str(write_root(tmp_path, rows)))


def test_the_known_corrupt_file_does_not_stop_a_build(tmp_path: Path) -> None:
    corrupt = "wikiart/Baroque/rembrandt_woman-standing-with-raised-hands.jpg"
    assert corrupt in KNOWN_CORRUPT
    (tmp_path / "test_annotations.txt").write_text(f"./{corrupt},0,1,4,8\n./ffhq/a.png,0,2,4,8\n")
    for path, data in ((corrupt, image_bytes(1, format_="JPEG")[:200]), ("ffhq/a.png", image_bytes(2))):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_bytes(data)
    assert datasets.load_dataset("imaginet", data_dir=str(tmp_path), split="test")["path"] == ["./ffhq/a.png"]
    (tmp_path / corrupt).write_bytes(image_bytes(1, format_="JPEG"))  # somebody has an intact copy
    assert len(datasets.load_dataset("imaginet", data_dir=str(tmp_path), split="test")) == 2


def test_errors_before_any_work(tmp_path: Path, make_root: MakeRoot) -> None:
    with pytest.raises(DataNotFoundError, match="expected a folder of images"):
        datasets.load_dataset("imaginet", data_dir=str(tmp_path / "typo"))
    with pytest.raises(DataNotFoundError, match="carries no annotations"):
        datasets.load_dataset("imaginet", data_dir=str(tmp_path))
    with pytest.raises(ValueError, match="expected one of raise, skip"):
        datasets.load_dataset("imaginet", data_dir=str(make_root()), on_error="ignore")
    (tmp_path / "annotations.csv").write_text("path,label\na.png,fake\n")
    with pytest.raises(AnnotationError, match="line 2"):
        datasets.load_dataset("imaginet", data_dir=str(tmp_path))


class TestAFolderCalledImaginet:
    def test_upstreams_layout_becomes_data_dir(
        self, make_root: MakeRoot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        make_root("imaginet")
        monkeypatch.chdir(tmp_path)
        datasets.logging.enable_propagation()
        rows = datasets.load_dataset("imaginet", split="train")
        assert len(rows) == 15
        assert "is used as data_dir" in caplog.text

    def test_a_built_dataset_is_loaded_as_such(
        self, make_root: MakeRoot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        from imaginet_hub.cards import dataset_card
        from imaginet_hub.data.repository import build_repository

        build_repository(make_root(), tmp_path / "imaginet", render_card=dataset_card)
        monkeypatch.chdir(tmp_path)
        datasets.logging.enable_propagation()
        rows = datasets.load_dataset("imaginet", "identification", split="train")
        assert len(rows) == 6
        assert "loading the built dataset" in caplog.text

    def test_an_explicit_data_dir_wins(
        self, make_root: MakeRoot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "imaginet").mkdir()
        root = make_root(real=4, synthetic=4)
        monkeypatch.chdir(tmp_path)
        assert len(datasets.load_dataset("imaginet", data_dir="root", split="train+test")) == 8
        assert root.name == "root"


@pytest.mark.parametrize(
    "imports",
    [
        "import imaginet_hub; from datasets import load_dataset, get_dataset_config_names",
        "from datasets import load_dataset, get_dataset_config_names; import imaginet_hub",
        "import datasets; import imaginet_hub; from datasets import load_dataset, get_dataset_config_names",
    ],
)
def test_import_order_does_not_matter(imports: str, make_root: MakeRoot, tmp_path: Path) -> None:
    root = make_root()
    empty = tmp_path / "empty"
    empty.mkdir()
    code = (
        f"{imports}\n"
        "assert get_dataset_config_names('imaginet') == ['detection', 'identification', 'mini']\n"
        f"print(len(load_dataset('imaginet', 'detection', data_dir={str(root)!r}, split='train')))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=empty, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "15", done.stderr


def test_the_loading_script_exposes_and_runs_the_builder(make_root: MakeRoot, tmp_path: Path) -> None:
    script = PROJECT / "dataset_script" / "imaginet.py"
    done = subprocess.run(
        [sys.executable, str(script), str(make_root()), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "README.md").is_file()
    namespace: dict[str, object] = {"__name__": "imaginet_script"}
    exec(compile(script.read_text(), str(script), "exec"), namespace)
    assert namespace["ImagiNet"] is imaginet_hub.ImagiNet
