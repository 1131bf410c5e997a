"""The hub-ready repository that `imaginet build` writes."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import datasets
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from imaginet_hub.cards import dataset_card
from imaginet_hub.data.manifest import Record
from imaginet_hub.data.repository import Sized, build_repository, plan_split, shuffle_buffer_size
from imaginet_hub.errors import BuildError
from tests.conftest import image_bytes, table_rows, write_root
from tests.support.http import serve

MakeRoot = Callable[..., Path]


def build(root: Path, out: Path, **options: Any) -> dict[str, Any]:
    return build_repository(root, out, render_card=dataset_card, **options)


def record(number: int, label: str) -> Record:
    family = "real" if label == "real" else "GAN"
    return Record(f"x/{number}.png", label, "faces", family, family, "train", "me", "CC0")


sizes = st.lists(st.tuples(st.booleans(), st.integers(1, 400)), min_size=1, max_size=120)


class TestPlan:
    @given(sizes, st.integers(0, 3), st.integers(50, 1000), st.integers(500, 5000))
    def test_laws(self, drawn: list[tuple[bool, int]], seed: int, group_bytes: int, shard_bytes: int) -> None:
        rows = [Sized(record(n, "synthetic" if made else "real"), size) for n, (made, size) in enumerate(drawn)]
        size_of = {row.record.path: row.size for row in rows}
        shards = plan_split(rows, seed=seed, row_group_bytes=group_bytes, shard_bytes=shard_bytes)
        groups = [group for shard in shards for group in shard]
        # every row once, one label a group
        assert sorted(r.path for group in groups for r in group) == sorted(size_of)
        assert all(len({r.label for r in group}) == 1 for group in groups)
        # shards keep to their size, a single group aside
        for shard in shards:
            assert len(shard) == 1 or sum(size_of[r.path] for group in shard for r in group) <= shard_bytes
        for label in ("real", "synthetic"):
            mine = [sum(size_of[r.path] for r in g) for g in groups if g[0].label == label]
            # groups are as large as asked, to within one image, unless there is only one
            assert len(mine) <= 1 or min(mine) > group_bytes - 400
            # and alternate: after any number of groups each label has its share, to within one group
            seen = [g[0].label == label for g in groups]
            for position in range(1, len(groups) + 1):
                assert abs(sum(seen[:position]) - position * sum(seen) / len(seen)) < 1.5

    def test_order_is_seeded_and_local(self) -> None:
        rows = [Sized(record(n, "real"), 10) for n in range(50)]
        order = [r.path for r in plan_split(rows, seed=0)[0][0]]
        shuffled = random.Random(1).sample(rows, len(rows))
        assert [r.path for r in plan_split(shuffled, seed=0)[0][0]] == order  # whatever the annotations' order
        assert [r.path for r in plan_split(rows, seed=1)[0][0]] != order
        assert order != sorted(order)
        fewer = [r.path for r in plan_split(rows[:-10], seed=0)[0][0]]
        assert fewer == [path for path in order if path in set(fewer)]  # whichever other images there are

    def test_shuffle_buffer(self) -> None:
        assert shuffle_buffer_size([[[1] * 3, [1] * 5], [[1] * 4]]) == 18
        assert shuffle_buffer_size([[[1] * 3]]) == 6
        assert shuffle_buffer_size([]) == 0


def test_bytes_columns_and_layout(make_root: MakeRoot, tmp_path: Path) -> None:
    root = make_root()
    report = build(root, tmp_path / "out")
    out = tmp_path / "out"
    assert sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()) == [
        "NOTICE",
        "README.md",
        "build_report.json",
        "data/test-00000-of-00001.parquet",
        "data/train-00000-of-00001.parquet",
    ]
    loaded = datasets.load_dataset(str(out), "detection")
    listed = {row["path"]: row for row in table_rows()}
    seen = []
    for split, rows in loaded.items():
        assert rows.features.keys() >= {"image", "label", "sha256", "calibration", "group"}
        for row in rows.cast_column("image", datasets.Image(decode=False)):
            mine = listed[row["path"]]
            data = row["image"]["bytes"]
            assert data == (root / row["path"]).read_bytes() and row["sha256"] == hashlib.sha256(data).hexdigest()
            assert rows.features["generator"].int2str(row["generator"]) == mine["generator"]
            assert (split, row["group"], row["license"]) == (mine["split"], mine["group"], mine["license"])
            seen.append(row["path"])
    assert sorted(seen) == sorted(listed)
    assert json.loads((out / "build_report.json").read_text()) == report
    total = sum(f.stat().st_size for f in (out / "data").iterdir())
    assert report["parquet_bytes"] == total < 1.5 * report["bytes"] + 60_000  # no image twice


def test_two_builds_are_the_same_files(make_root: MakeRoot, tmp_path: Path) -> None:
    root = make_root()
    for name in ("a", "b"):
        build(root, tmp_path / name, num_proc=1 if name == "a" else 2)
    for file in (tmp_path / "a").rglob("*"):
        if file.is_file():
            assert file.read_bytes() == (tmp_path / "b" / file.relative_to(tmp_path / "a")).read_bytes()


class TestThreads:
    """Many small shards and row groups, so that there is something to get wrong."""

    SMALL: ClassVar[dict[str, Any]] = {"row_group_bytes": 10_000, "shard_bytes": 40_000}

    def test_any_number_writes_the_same_files(self, make_root: MakeRoot, tmp_path: Path) -> None:
        root = make_root(real=60, synthetic=40)
        build(root, tmp_path / "1", num_proc=1, **self.SMALL)
        one = {file.name: file.read_bytes() for file in (tmp_path / "1").rglob("*") if file.is_file()}
        assert len(one) > 6
        assert pq.ParquetFile(next((tmp_path / "1" / "data").glob("train-00000*"))).num_row_groups > 2
        for threads in (2, 3, 8):
            out = tmp_path / str(threads)
            build(root, out, num_proc=threads, **self.SMALL)
            assert {file.name: file.read_bytes() for file in out.rglob("*") if file.is_file()} == one

    @pytest.mark.parametrize("threads", [1, 2, 4])
    def test_row_groups_in_memory(
        self, make_root: MakeRoot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
    ) -> None:
        from imaginet_hub.data import repository

        root = make_root(real=60, synthetic=40)
        lock, held, most = threading.Lock(), 0, 0
        load, write = repository.pa.Table.from_pylist, pq.ParquetWriter.write_table

        def loaded(rows: list[Any], schema: Any) -> Any:
            nonlocal held, most
            with lock:
                held += 1
                most = max(most, held)
            return load(rows, schema=schema)

        def written(self: Any, table: Any, **options: Any) -> None:
            nonlocal held
            time.sleep(0.005)  # readers could run far ahead
            write(self, table, **options)
            with lock:
                held -= 1

        monkeypatch.setattr(repository.pa, "Table", SimpleNamespace(from_pylist=loaded))
        monkeypatch.setattr(pq.ParquetWriter, "write_table", written)
        build(root, tmp_path / "out", num_proc=threads, **self.SMALL)
        assert held == 0 and (most == 1 if threads == 1 else 2 <= most <= threads)

    @pytest.mark.parametrize("threads", [1, 2, 6])
    def test_what_one_thread_meets_stops_all(
        self, make_root: MakeRoot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
    ) -> None:
        from imaginet_hub.data import repository

        root = make_root(real=60, synthetic=40)
        before, read, seen, lock = threading.active_count(), repository.row_of, 0, threading.Lock()

        def fails(*args: Any) -> Any:
            nonlocal seen
            with lock:
                seen += 1
                if seen == 5:
                    raise OSError(28, "No space left on device")
            time.sleep(0.01)
            return read(*args)

        monkeypatch.setattr(repository, "row_of", fails)
        with pytest.raises(BuildError, match="No space left on device"):
            build(root, tmp_path / "out", num_proc=threads, row_group_bytes=80_000, shard_bytes=80_000)
        assert threading.active_count() == before
        assert sorted(p.name for p in tmp_path.iterdir()) == ["root"]
        assert seen <= 5 + 2 * threads  # a row group has about twenty; the others did not read theirs to the end

    def test_more_threads_than_row_groups(self, make_root: MakeRoot, tmp_path: Path) -> None:
        root = make_root(real=2, synthetic=0)
        build(root, tmp_path / "out", num_proc=5)
        assert sum(map(len, datasets.load_dataset(str(tmp_path / "out")).values())) == 2


def test_card_metadata_validates(make_root: MakeRoot, tmp_path: Path) -> None:
    from huggingface_hub import DatasetCard

    build(make_root(), tmp_path / "out")
    card = DatasetCard.load(tmp_path / "out" / "README.md")
    configs = {config["config_name"]: config for config in card.data["configs"]}
    assert configs["identification"]["filters"] == [["label", "==", 1]]
    assert configs["detection"]["default"] is True
    assert "Left out" in card.text and "Nothing: every annotated image is in." in card.text


def test_hostile_text_stays_in_its_cell(tmp_path: Path) -> None:
    rows = table_rows()
    for row in rows:
        row["license"] = "a | b\n---\n<script>`x`"
    out = tmp_path / "out"
    build(write_root(tmp_path / "root", rows), out)
    text = (out / "README.md").read_text()
    assert "<script>" not in text
    assert yaml.safe_load(text.split("---\n")[1])["configs"]
    assert any(line.startswith("| me | a \\| b --- &lt;script>\\`x\\` | 20 |") for line in text.splitlines())


def test_plain_datasets_loads_it_without_this_package(make_root: MakeRoot, tmp_path: Path) -> None:
    build(make_root(), tmp_path / "out")
    code = f"""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "imaginet_hub":
            raise ImportError("blocked")
sys.meta_path.insert(0, Blocked())
from datasets import load_dataset
for config in ("detection", "identification"):
    rows = load_dataset({str(tmp_path / "out")!r}, config)
    stream = load_dataset({str(tmp_path / "out")!r}, config, streaming=True)
    sizes = {{split: len(part) for split, part in rows.items()}}
    print(config, sizes, sum(1 for _ in stream["train"]), rows["train"][0]["image"].size)
    if config == "identification":
        assert set(rows["train"]["label"]) == {{1}}
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [
        "detection {'train': 15, 'test': 5} 15 (40, 32)",
        "identification {'train': 6, 'test': 2} 6 (40, 32)",
    ], done.stderr


def test_real_only_data_has_no_identification_config(make_root: MakeRoot, tmp_path: Path) -> None:
    build(make_root(real=6, synthetic=0), tmp_path / "out")
    assert datasets.get_dataset_config_names(str(tmp_path / "out")) == ["detection"]
    assert len(datasets.load_dataset(str(tmp_path / "out"), split="train")) == 4


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A built dataset of about 120 MB, half of it synthetic, with row groups of the default size."""
    folder = tmp_path_factory.mktemp("large")
    rows = [
        {"path": f"p/{n}.png", "label": ("real", "synthetic")[n % 2], "generator": ("real", "New")[n % 2]}
        for n in range(200)
    ]
    (folder / "root" / "p").mkdir(parents=True)
    for n, row in enumerate(rows):
        (folder / "root" / row["path"]).write_bytes(image_bytes(n, (500, 400)))
    lines = [",".join(row.values()) for row in rows]
    (folder / "root" / "annotations.csv").write_text("path,label,generator\n" + "\n".join(lines) + "\n")
    build(folder / "root", folder / "out")
    return folder / "out"


def test_row_groups_hold_one_label_and_alternate(large: Path) -> None:
    file = pq.ParquetFile(large / "data" / "train-00000-of-00001.parquet")
    labels = []
    for number in range(file.num_row_groups):
        group = file.metadata.row_group(number)
        column = next(group.column(i) for i in range(group.num_columns) if group.column(i).path_in_schema == "label")
        assert column.statistics.min == column.statistics.max
        labels.append(column.statistics.min)
        assert group.total_byte_size > 25_000_000
    assert labels in ([0, 1, 0, 1], [1, 0, 1, 0])


def test_identification_over_http_moves_few_bytes(large: Path) -> None:
    file = large / "data" / "train-00000-of-00001.parquet"
    with serve(large) as server:
        stream = datasets.load_dataset(
            "parquet",
            data_files=f"{server.url}/data/{file.name}",
            split="train",
            streaming=True,
            filters=[["label", "==", 1]],
        )
        assert sum(1 for _ in stream.decode(False)) == 100
        moved = server.sent
    assert moved <= 0.65 * file.stat().st_size


def test_the_documented_shuffle_buffer_mixes_the_labels(large: Path) -> None:
    size = json.loads((large / "build_report.json").read_text())["splits"]["train"]["shuffle_buffer_size"]
    assert f"| {size:,} |" in (large / "README.md").read_text()
    stream = datasets.load_dataset(str(large), "detection", split="train", streaming=True).decode(False)

    def shares(rows: Any) -> list[float]:
        labels = [row["label"] for row in rows]
        return [sum(labels[i : i + 32]) / 32 for i in range(0, len(labels) - 31, 32)]

    assert not all(0.2 < share < 0.8 for share in shares(stream))  # in file order they come label by label
    assert all(0.2 < share < 0.8 for share in shares(stream.shuffle(seed=0, buffer_size=size)))


def test_a_rebuilt_folder_is_not_served_from_the_cache(make_root: MakeRoot, tmp_path: Path) -> None:
    def paths(out: Path) -> set[str]:
        return {path for rows in datasets.load_dataset(str(out)).values() for path in rows["path"]}

    root = make_root()
    build(root, tmp_path / "a" / "out")
    assert len(paths(tmp_path / "a" / "out")) == 20
    (root / table_rows()[0]["path"]).unlink()
    build(root, tmp_path / "b" / "out", on_error="skip")  # another folder of that name
    build(root, tmp_path / "a" / "out", on_error="skip", overwrite=True)
    assert len(paths(tmp_path / "b" / "out")) == len(paths(tmp_path / "a" / "out")) == 19


class TestWhatGoesWrong:
    def test_nothing_is_left_when_images_cannot_go_in(self, make_root: MakeRoot, tmp_path: Path) -> None:
        root = make_root()
        (root / table_rows()[5]["path"]).write_bytes(b"no image")
        with pytest.raises(BuildError, match="1 of 20 images"):
            build(root, tmp_path / "out")
        assert sorted(p.name for p in tmp_path.iterdir()) == ["root"]

    def test_skip_reports_in_json_and_card(self, make_root: MakeRoot, tmp_path: Path) -> None:
        root = make_root()
        path = table_rows()[5]["path"]
        (root / path).write_bytes(b"no image")
        report = build(root, tmp_path / "out", on_error="skip")
        assert [(item["path"], item["reason"]) for item in report["left_out"]] == [(path, "unreadable")]
        assert f"| {path} | train | unreadable | on_error |" in (tmp_path / "out" / "README.md").read_text()
        assert sum(map(len, datasets.load_dataset(str(tmp_path / "out")).values())) == 19

    def test_nothing_left_to_build(self, make_root: MakeRoot, tmp_path: Path) -> None:
        root = make_root(real=1, synthetic=1)
        for row in table_rows(1, 1):
            (root / row["path"]).unlink()
        with pytest.raises(BuildError, match="2 of 2"):
            build(root, tmp_path / "out", on_error="skip")

    def test_other_peoples_folders_are_safe(self, make_root: MakeRoot, tmp_path: Path) -> None:
        root = make_root()
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.txt").write_text("years of work")
        for overwrite in (False, True):
            with pytest.raises(BuildError, match="not a dataset that was built"):
                build(root, tmp_path / "mine", overwrite=overwrite)
        with pytest.raises(BuildError, match="is ROOT or holds it"):
            build(root, tmp_path, overwrite=True)
        assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"

    def test_a_linked_folder_stays_a_link(self, make_root: MakeRoot, tmp_path: Path) -> None:
        (tmp_path / "disk").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "disk")
        root = make_root()
        for _ in range(2):
            build(root, tmp_path / "link", overwrite=True)
        assert (tmp_path / "link").is_symlink() and (tmp_path / "disk" / "README.md").is_file()
        assert sorted(p.name for p in tmp_path.iterdir()) == ["disk", "link", "root"]

    def test_the_old_dataset_survives_a_replacement_that_fails(
        self, make_root: MakeRoot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        root, out = make_root(), tmp_path / "out"
        build(root, out)
        rename = Path.rename

        def interrupted(self: Path, target: Path) -> Path:
            if self.name == ".out.incomplete":
                raise KeyboardInterrupt
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build(root, out, overwrite=True, seed=1)
        assert sum(map(len, datasets.load_dataset(str(out)).values())) == 20
        monkeypatch.undo()
        out.rename(tmp_path / ".out.old")  # as a kill between the two renames leaves it
        assert build(root, out, overwrite=True)["images"] == 20
        assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "root"]

    def test_an_unusable_place_is_said_before_the_work(self, make_root: MakeRoot, tmp_path: Path) -> None:
        root = make_root()
        for out in (root / "annotations.csv" / "out", tmp_path / ("x" * 260)):
            with pytest.raises(BuildError, match="choose another folder"):
                build(root, out)

    def test_overwrite_replaces_only_when_asked(self, make_root: MakeRoot, tmp_path: Path) -> None:
        build(make_root("a"), tmp_path / "out")
        with pytest.raises(BuildError, match="--overwrite"):
            build(make_root("b", real=4), tmp_path / "out")
        assert build(tmp_path / "b", tmp_path / "out", overwrite=True)["images"] == 12
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "out"]

    def test_an_image_that_changes_between_the_looks(
        self, make_root: MakeRoot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from imaginet_hub.data import repository

        root = make_root()
        look = repository.scan

        def scan_then_change(*args: Any, **kwargs: Any) -> Any:
            result = look(*args, **kwargs)
            (root / table_rows()[0]["path"]).write_bytes(image_bytes(1234))
            return result

        monkeypatch.setattr(repository, "scan", scan_then_change)
        with pytest.raises(ValueError, match="changed since it was verified"):
            build(root, tmp_path / "out")
        assert sorted(p.name for p in tmp_path.iterdir()) == ["root"]

    @pytest.mark.parametrize(("signal_", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
    def test_interrupted(self, large: Path, tmp_path: Path, signal_: signal.Signals, status: int) -> None:
        command = [
            sys.executable,
            "-m",
            "imaginet_hub.cli",
            "build",
            str(large.parent / "root"),
            str(tmp_path / "out"),
        ]
        process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
        )
        staging = tmp_path / ".out.incomplete"
        deadline = time.monotonic() + 60
        while not staging.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal_)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == status, errors
        assert not (tmp_path / "out").exists()
        if signal_ == signal.SIGINT:
            assert "interrupted; nothing was left behind" in errors
            assert list(tmp_path.iterdir()) == []
        again = subprocess.run(
            command, capture_output=True, text=True, check=False
        )  # whatever was left is no obstacle
        assert again.returncode == 0, again.stderr
        assert [p.name for p in tmp_path.iterdir()] == ["out"]
