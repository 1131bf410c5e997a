"""A dataset in two parts, and whole again."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imaginet_hub.cards import dataset_card
from imaginet_hub.data import withheld as module
from imaginet_hub.data.ledger import read_ledger
from imaginet_hub.data.loading import open_split
from imaginet_hub.data.manifest import Record, read_annotations, write_annotations
from imaginet_hub.data.perturbed import perturb
from imaginet_hub.data.repository import build_repository
from imaginet_hub.data.withheld import complete, redistributable, write_redistributable
from imaginet_hub.demo.mirror import Mirror
from imaginet_hub.errors import AnnotationError, BuildError, DataNotFoundError, ImagiNetError, UsageError
from tests.conftest import PROJECT, image_bytes, table_rows, write_root
from tests.support.hub import WRITE, Hub
from tests.support.published import ACCOUNTS, FAST, GATES, Published

#: So small that there is more than one file, and more than one row group in a file.
SMALL = {"row_group_bytes": 4_000, "shard_bytes": 9_000}


def build(root: Path, out: Path, **options: Any) -> dict[str, Any]:
    return build_repository(root, out, render_card=dataset_card, **options)


def files(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def stored(folder: Path) -> dict[str, bytes]:
    """The images of a built folder by path, read by pyarrow alone."""
    found = {}
    for file in folder.glob("data/*.parquet"):
        for row in pq.read_table(file).to_pylist():
            found[row["path"]] = row["image"]["bytes"]
    return found


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    return Published.make(tmp_path_factory.mktemp("published"), 4)


@pytest.fixture
def mirror(published: Published, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    for name, value in ACCOUNTS.items():
        monkeypatch.setenv(name, value)
    with Mirror(published.origin, **GATES) as running:
        yield running


OWN_TERMS = {"free": "CC0 1.0", "kept": "CC BY-ND 4.0", "theirs": "all rights reserved"}
NASTY = ("pictures/a, b.png", 'pictures/"quoted".png', "pictures/ä\u200b漢.png", "pictures/#1 '; drop.png")


def own_root(root: Path) -> Path:
    """People's own images: names, flags and further columns that a table could stumble over."""
    rows = []
    for number in range(24):
        made = number % 3 == 0
        terms = list(OWN_TERMS)[number // 3 % 3]
        path = NASTY[number] if number < len(NASTY) else f"./pictures/{number:02d}.png"
        rows.append(
            {
                "path": path,
                "label": "synthetic" if made else "real",
                "content_type": ("faces", "Zürich, maps", 'a "b"')[number % 3 if made else 1],
                "generator_family": ("NewNet, Inc", "SD")[number % 2] if made else "real",
                "generator": ("NewNet 3", "SD v2.1")[number % 2] if made else "real",
                "split": ("train", "test", "odd")[number % 3],
                "license": OWN_TERMS[terms],
                "source": terms,
                "calibration": "true" if number % 4 == 0 else "false",
                "note": ("", " two\nlines ", 'a "quoted", \r\n one')[number % 3],
                "größe": f"{number}",
            }
        )
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(image_bytes(number))
    with (root / "annotations.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return own_root(tmp_path / "root")


class TestDivision:
    def test_counts(self, root: Path, tmp_path: Path) -> None:
        build(root, tmp_path / "out")
        expected = Counter((r.source, r.license) for r in read_annotations(root).records)
        division = redistributable(tmp_path / "out")
        assert division.kept == {k: n for k, n in expected.items() if k[0] != "theirs"}
        assert division.withheld == {k: n for k, n in expected.items() if k[0] == "theirs"}
        for stated in (["theirs"], ["all rights reserved"], ["all"], ["all", "theirs"]):
            assert redistributable(tmp_path / "out", stated).kept == expected

    def test_a_statement_about_nothing(self, root: Path, tmp_path: Path) -> None:
        build(root, tmp_path / "out")
        with pytest.raises(UsageError, match=r"redistribute: no row has the licence or source 'their'; did you mean"):
            redistributable(tmp_path / "out", ["their"])
        with pytest.raises(UsageError, match="expected all, or one of"):
            redistributable(tmp_path / "out", ["all", "zzz"])

    def test_the_same_file_under_two_licences_stays(self, root: Path, tmp_path: Path) -> None:
        records = read_annotations(root).records
        theirs = next(r for r in records if r.source == "theirs")
        free = next(r for r in records if r.source == "free" and (r.label, r.split) == (theirs.label, theirs.split))
        (root / free.file).write_bytes((root / theirs.file).read_bytes())
        build(root, tmp_path / "out")
        report = write_redistributable(tmp_path / "out", tmp_path / "part", (), dataset_card)
        assert {"source": "free", "license": "CC0 1.0", "images": 1} in report["withheld"]
        assert (root / theirs.file).read_bytes() not in stored(tmp_path / "part").values()
        assert redistributable(tmp_path / "out").withheld["free", "CC0 1.0"] == 1

    def test_rendered_images_are_changed_ones(self, root: Path, tmp_path: Path) -> None:
        build(root, tmp_path / "out")
        perturb(tmp_path / "out", tmp_path / "rendered", progress=False, num_workers=1, render_card=lambda report: "")
        division = redistributable(tmp_path / "rendered")
        assert {source for source, _ in division.kept} == {"free"}  # CC BY-ND allows unchanged files only
        assert {source for source, _ in division.withheld} >= {"kept"}
        assert not redistributable(tmp_path / "rendered", ["all"]).withheld

    @pytest.mark.parametrize("kind", ["nothing", "empty", "garbage"])
    def test_no_dataset(self, kind: str, tmp_path: Path) -> None:
        if kind != "nothing":
            (tmp_path / "out" / "data").mkdir(parents=True)
        if kind == "garbage":
            (tmp_path / "out" / "data" / "train-00000-of-00001.parquet").write_bytes(b"PAR1 not PAR1")
        for look in (redistributable, lambda folder: complete(folder, tmp_path / "new")):
            with pytest.raises(DataNotFoundError, match="imaginet build"):
                look(tmp_path / "out")


class TestPart:
    def test_as_a_build_of_these_alone(self, root: Path, tmp_path: Path) -> None:
        """Same files as from a ROOT of nothing else, by an own path through the code."""
        whole = build(root, tmp_path / "out", seed=3, **SMALL)
        alone = build(root, tmp_path / "alone", seed=3, licenses="redistributable", **SMALL)
        report = write_redistributable(tmp_path / "out", tmp_path / "part", (), dataset_card, **SMALL)
        part, expected = files(tmp_path / "part"), files(tmp_path / "alone")
        names = [name for name in expected if name.startswith("data/")]
        assert len(names) > 3 and {n: part[n] for n in names} == {n: expected[n] for n in names}
        assert part.keys() - expected.keys() == {"withheld.csv"}
        differ = {"build_id", "selected", "withheld", "original", "rebuild"}
        assert {k: v for k, v in report.items() if k not in differ} == {
            k: v for k, v in alone.items() if k not in differ
        }
        original = report["original"]
        assert (original["images"], original["fingerprint"]) == (24, whole["fingerprint"])
        assert original["splits"] == {
            split: {
                "images": whole["splits"][split]["images"],
                "fingerprint": open_split(tmp_path / "out", split).record()["fingerprint"],
            }
            for split in whole["splits"]
        }
        assert report["rebuild"] == "imaginet build ROOT OUT --complete PATH_OR_REPO --seed 3"
        assert json.loads(part["build_report.json"]) == report
        assert datasets.load_dataset(str(tmp_path / "part"), split="train").num_rows

    def test_not_a_byte_of_the_others(self, root: Path, tmp_path: Path) -> None:
        build(root, tmp_path / "out")
        write_redistributable(tmp_path / "out", tmp_path / "part", (), dataset_card)
        everything = b"".join(files(tmp_path / "part").values())
        theirs = [r for r in read_annotations(root).records if r.source == "theirs"]
        assert theirs
        for record in theirs:
            data = (root / record.file).read_bytes()
            assert data not in everything and data[100:400] not in everything
        kept = stored(tmp_path / "part")
        assert kept == {
            r.path: (root / r.file).read_bytes() for r in read_annotations(root).records if r.source != "theirs"
        }

    def test_twice_is_the_same(self, root: Path, tmp_path: Path) -> None:
        build(root, tmp_path / "out")
        for name in ("a", "b"):
            write_redistributable(tmp_path / "out", tmp_path / name / "part", ["free"], dataset_card)
        assert files(tmp_path / "a") == files(tmp_path / "b")
        assert "states the right to redistribute: free" in (tmp_path / "a" / "part" / "NOTICE").read_text()

    def test_the_list_says_all_of_a_row(self, root: Path, tmp_path: Path) -> None:
        build(root, tmp_path / "out")
        write_redistributable(tmp_path / "out", tmp_path / "part", (), dataset_card)
        table = read_annotations(tmp_path / "part" / "withheld.csv")
        original = {r.path: r for r in read_annotations(root).records if r.source == "theirs"}
        assert table.carried_columns == ("note", "größe") and len(table.records) == len(original)
        assert any(r.calibration for r in table.records)
        for record in table.records:
            digest = hashlib.sha256((root / record.file).read_bytes()).hexdigest()
            fields = Record.__dataclass_fields__.keys() - {"sha256"}
            assert {f: getattr(record, f) for f in fields} == {f: getattr(original[record.path], f) for f in fields}
            assert record.sha256 == digest

    def test_a_part_of_a_part(self, root: Path, tmp_path: Path) -> None:
        build(root, tmp_path / "out")
        first = write_redistributable(tmp_path / "out", tmp_path / "all", ["all"], dataset_card)
        assert first["withheld"] == [] and not (tmp_path / "all" / "withheld.csv").exists()
        part = write_redistributable(tmp_path / "out", tmp_path / "part", (), dataset_card)
        again = write_redistributable(tmp_path / "part", tmp_path / "again", (), dataset_card)
        assert again["withheld"] == part["withheld"] and again["original"] == part["original"]
        assert (tmp_path / "again" / "withheld.csv").read_bytes() == (tmp_path / "part" / "withheld.csv").read_bytes()

    def test_nothing_would_be_left(self, root: Path, tmp_path: Path) -> None:
        build(root, tmp_path / "out", licenses="all rights reserved")
        with pytest.raises(BuildError, match="nothing would be left"):
            write_redistributable(tmp_path / "out", tmp_path / "part", (), dataset_card)
        with pytest.raises(BuildError, match="is the dataset or holds it"):
            write_redistributable(tmp_path / "out", tmp_path / "out", ["all"], dataset_card)
        with pytest.raises(BuildError, match="already holds a built dataset"):
            build(root, tmp_path / "other")
            write_redistributable(tmp_path / "out", tmp_path / "other", ["all"], dataset_card)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["other", "out", "root"]

    @pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError], ids=lambda f: f.__name__)
    def test_interrupted_leaves_nothing(self, failure: type[BaseException], root: Path, tmp_path: Path) -> None:
        build(root, tmp_path / "out")

        def card(report: dict[str, Any]) -> str:
            raise failure("now")

        with pytest.raises((KeyboardInterrupt, BuildError)):
            write_redistributable(tmp_path / "out", tmp_path / "part", (), card)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "root"]

    def test_memory_holds_a_few_row_groups(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        root = tmp_path / "root"
        root.mkdir()
        rows = []
        for number in range(120):
            (root / f"{number}.png").write_bytes(image_bytes(number, (100, 100)))  # 30 kB each
            rows.append((f"{number}.png", "synthetic" if number % 2 else "real", "CC0" if number % 3 else "?"))
        with (root / "annotations.csv").open("w") as stream:
            csv.writer(stream).writerows([("path", "label", "license"), *rows])
        sizes = {"row_group_bytes": 200_000, "shard_bytes": 1_000_000}
        build(root, tmp_path / "out", **sizes)
        before, most = pa.total_allocated_bytes(), 0
        write = pq.ParquetWriter.write_table

        def written(self: Any, table: Any, **options: Any) -> None:
            nonlocal most
            most = max(most, pa.total_allocated_bytes() - before)
            write(self, table, **options)

        monkeypatch.setattr(pq.ParquetWriter, "write_table", written)
        report = write_redistributable(tmp_path / "out", tmp_path / "part", (), dataset_card, **sizes)
        assert report["bytes"] > 2_000_000 and sum(s["row_groups"] for s in report["splits"].values()) > 6
        assert most < 1_500_000


names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
labels = names.map(str.strip).filter(lambda name: name.casefold() not in ("", "real"))


@settings(max_examples=60)
@given(data=st.data())
def test_tables_round_trip(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    carried = data.draw(st.lists(st.sampled_from(["a, b", 'x"y', "ü", "note"]), unique=True))
    records = []
    for number in range(data.draw(st.integers(1, 4))):
        made = data.draw(st.booleans())
        records.append(
            Record(
                path=f"x/{number}/{data.draw(names)}.png".replace("\\", "_"),
                label="synthetic" if made else "real",
                content_type=data.draw(labels),
                generator_family=data.draw(labels) if made else "real",
                generator=data.draw(labels) if made else "real",
                split=data.draw(st.sampled_from(["train", "odd.split", "test"])),
                source=data.draw(labels),
                license=data.draw(labels),
                calibration=data.draw(st.booleans()),
                sha256=data.draw(st.sampled_from([None, "0" * 64])),
                carried=tuple(data.draw(names) for _ in carried),
            )
        )
    if any(".." in Path(r.path).parts for r in records):
        return
    file = tmp_path_factory.mktemp("table") / "a.csv"
    write_annotations(file, records, carried)
    table = read_annotations(file)
    assert (list(table.records), table.carried_columns) == (records, tuple(carried))
    assert [p.name for p in file.parent.iterdir()] == ["a.csv"]


class TestComplete:
    def test_from_the_sources(self, published: Published, mirror: Mirror, tmp_path: Path) -> None:
        """Built, parted, fetched and built again: the same files, and so the same fingerprint and classes."""
        whole = build(published.root, tmp_path / "whole")
        part = write_redistributable(tmp_path / "whole", tmp_path / "part", (), dataset_card)
        assert part["images"] == 12 and sum(w["images"] for w in part["withheld"]) == 16
        new = tmp_path / "new"
        routes = {"wikiart": "drive", "danbooru": "drive"}
        done = complete(tmp_path / "part", new, endpoints=mirror.endpoints, limits=FAST, routes=routes)
        assert done.complete and sum(done.fetched.values()) == 16
        asked = " ".join(request.path for request in mirror.requests)
        assert not any(folder in asked for folder in ("progan_val", "sd_faces"))  # what is published is not fetched
        again = build(new, tmp_path / "again")
        assert again["fingerprint"] == whole["fingerprint"] == part["original"]["fingerprint"]
        assert again["class_names"] == whole["class_names"]
        data = {n: d for n, d in files(tmp_path / "whole").items() if n.startswith("data/")}
        assert {n: d for n, d in files(tmp_path / "again").items() if n.startswith("data/")} == data
        mirror.forget()
        before = files(new)
        complete(tmp_path / "part", new, endpoints=mirror.endpoints, limits=FAST, routes=routes)
        assert mirror.requests == [] and files(new) == before

    def test_from_what_one_has(self, published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        whole = build(published.root, tmp_path / "whole")
        write_redistributable(tmp_path / "whole", tmp_path / "part", (), dataset_card)
        own = {key: published.root for key in ("coco", "wikiart", "danbooru", "photozilla")}
        assert complete(tmp_path / "part", tmp_path / "new", own=own).complete
        assert build(tmp_path / "new", tmp_path / "again")["fingerprint"] == whole["fingerprint"]

    def test_own_images_and_names(self, root: Path, tmp_path: Path) -> None:
        """Nobody but their owner has these: they are put there by hand."""
        whole = build(root, tmp_path / "whole")
        write_redistributable(tmp_path / "whole", tmp_path / "part", (), dataset_card)
        new = tmp_path / "new"
        done = complete(tmp_path / "part", new)
        theirs = [r.file for r in read_annotations(root).records if r.source == "theirs"]
        assert sorted(done.missing) == sorted(theirs) and not done.complete
        for file in theirs:
            shutil.copy(root / file, new / file)
        assert complete(tmp_path / "part", new).complete
        again = build(new, tmp_path / "again")
        for key in ("fingerprint", "class_names", "carried_columns", "splits"):
            assert again[key] == whole[key]
        assert stored(tmp_path / "again") == stored(tmp_path / "whole")
        rows = {
            split: sorted(zip(r["path"], r["calibration"], r["note"], r["license"], strict=True))
            for folder in ("whole", "again")
            for split, r in datasets.load_dataset(str(tmp_path / folder)).items()
        }
        assert any(flag for split in rows.values() for _, flag, _, _ in split)

    def test_classes_without_a_row(self, root: Path, tmp_path: Path) -> None:
        """Ids stay what they were although no row shows all of the names."""
        table = root / "annotations.csv"
        table.write_text(table.read_text(encoding="utf-8").replace("SD v2.1", "Unique", 1), encoding="utf-8")
        unique = next(record for record in read_annotations(root).records if record.generator == "Unique")
        others = [terms for terms in OWN_TERMS.values() if terms != unique.license]
        whole = build(root, tmp_path / "whole", licenses=others)
        assert whole["class_names"]["generator"] == ["SD v2.1", "NewNet 3", "Unique", "real"]
        write_redistributable(tmp_path / "whole", tmp_path / "part", (), dataset_card)
        complete(tmp_path / "part", tmp_path / "new")
        assert read_annotations(tmp_path / "new").vocabulary.generator == tuple(whole["class_names"]["generator"])

    def test_damaged_files_are_put_right_and_kept(self, root: Path, tmp_path: Path) -> None:
        build(root, tmp_path / "whole")
        write_redistributable(tmp_path / "whole", tmp_path / "part", ["all"], dataset_card)
        complete(tmp_path / "part", tmp_path / "new")
        there = tmp_path / "new" / "pictures" / "10.png"
        there.write_bytes(b"something else")
        complete(tmp_path / "part", tmp_path / "new")
        assert there.read_bytes() == (root / "pictures" / "10.png").read_bytes()
        kept = tmp_path / "new" / ".imaginet" / "replaced" / "pictures" / "10.png"
        assert kept.read_bytes() == b"something else"
        assert len(read_ledger(tmp_path / "new")) == 24

    def test_interrupted_goes_on(self, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = build(root, tmp_path / "whole")
        write_redistributable(tmp_path / "whole", tmp_path / "part", ["all"], dataset_card)
        place, count = module.Keeper.place, 0

        def placed(self: Any, *args: Any) -> None:
            nonlocal count
            count += 1
            if count == 5:
                raise KeyboardInterrupt
            place(self, *args)

        monkeypatch.setattr(module.Keeper, "place", placed)
        with pytest.raises(KeyboardInterrupt):
            complete(tmp_path / "part", tmp_path / "new")
        assert len(read_ledger(tmp_path / "new")) == 4
        complete(tmp_path / "part", tmp_path / "new")
        assert count == 5 + 20
        assert build(tmp_path / "new", tmp_path / "again")["fingerprint"] == whole["fingerprint"]

    def test_a_root_with_its_own_annotations(self, root: Path, tmp_path: Path) -> None:
        build(root, tmp_path / "whole")
        before = files(root)
        with pytest.raises(UsageError, match="annotations of its own"):
            complete(tmp_path / "whole", root)
        assert {n: d for n, d in files(root).items() if not n.startswith(".imaginet")} == before

    def test_parts_of_different_datasets(self, root: Path, tmp_path: Path) -> None:
        build(root, tmp_path / "whole")
        write_redistributable(tmp_path / "whole", tmp_path / "part", (), dataset_card)
        table = tmp_path / "part" / "withheld.csv"
        text = table.read_text(encoding="utf-8")
        table.write_text(text.replace("SD v2.1", "SD v2.2"), encoding="utf-8")
        with pytest.raises(BuildError, match="of different versions"):
            complete(tmp_path / "part", tmp_path / "new")
        table.unlink()
        with pytest.raises(BuildError, match="of different versions"):
            complete(tmp_path / "part", tmp_path / "new")
        table.write_text(text.replace("größe", "other"), encoding="utf-8")
        with pytest.raises(AnnotationError, match="further columns"):
            complete(tmp_path / "part", tmp_path / "new")
        assert not (tmp_path / "new").exists()

    @pytest.mark.parametrize("change", ["moved", "swapped"])
    def test_the_same_images_in_other_splits(self, change: str, root: Path, tmp_path: Path) -> None:
        """The fingerprint of all of them does not tell; those of the splits do, whatever their sizes."""
        build(root, tmp_path / "whole")
        part = write_redistributable(tmp_path / "whole", tmp_path / "part", (), dataset_card)
        table = tmp_path / "part" / "withheld.csv"
        records = list(read_annotations(table).records)
        train, test = (next(n for n, r in enumerate(records) if r.split == split) for split in ("train", "test"))
        records[train] = replace(records[train], split="test")
        if change == "swapped":
            records[test] = replace(records[test], split="train")
        write_annotations(table, records, ("note", "größe"))
        with pytest.raises(BuildError, match="of different versions"):
            complete(tmp_path / "part", tmp_path / "new")
        assert not (tmp_path / "new").exists()
        # Of a report that does not tell, as older ones do not, any split is taken.
        del part["original"]["splits"]
        (tmp_path / "part" / "build_report.json").write_text(json.dumps(part))
        complete(tmp_path / "part", tmp_path / "new")
        assert {r.path: r.split for r in read_annotations(tmp_path / "new" / "annotations.csv").records}.items() >= {
            (r.path, r.split) for r in records
        }


def rewritten(folder: Path, change: Any) -> None:
    """Another's dataset: rows changed behind the report's back."""
    report = folder / "build_report.json"
    values = json.loads(report.read_text())
    values.pop("original", None)
    report.write_text(json.dumps(values))
    for file in folder.glob("data/*.parquet"):
        table = pq.read_table(file)
        rows = table.to_pylist()
        change(rows)
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), file)


class TestHostile:
    @pytest.mark.parametrize(
        "path",
        [
            "../out.png",
            "/tmp/out.png",
            "a/../../out.png",
            "C:out.png",
            "a\\b.png",
            ".imaginet/ledger.jsonl",
            "./.imaginet/lock",
            ".IMAGINET/x.png",
            "annotations.csv",
            "annotations.parquet",
            "annotations/train_annotations.txt",
            "",
            "a\0b",
        ],
    )
    def test_paths(self, path: str, root: Path, tmp_path: Path) -> None:
        build(root, tmp_path / "part")

        def change(rows: list[dict[str, Any]]) -> None:
            rows[0]["path"] = path

        rewritten(tmp_path / "part", change)
        (tmp_path / "deep" / "er").mkdir(parents=True)
        with pytest.raises(ImagiNetError):
            complete(tmp_path / "part", tmp_path / "deep" / "er" / "new")
        assert [p.name for p in (tmp_path / "deep").rglob("*")] == ["er"]

    def test_other_bytes_than_the_row_says(self, root: Path, tmp_path: Path) -> None:
        build(root, tmp_path / "part")

        def change(rows: list[dict[str, Any]]) -> None:
            rows[0]["image"]["bytes"] = image_bytes(999)

        rewritten(tmp_path / "part", change)
        with pytest.raises(BuildError, match="expected SHA-256"):
            complete(tmp_path / "part", tmp_path / "new")
        for file in (tmp_path / "new").rglob("*.png"):
            assert file.read_bytes() == (root / file.relative_to(tmp_path / "new")).read_bytes()

    def test_no_image_at_all(self, root: Path, tmp_path: Path) -> None:
        build(root, tmp_path / "part")

        def change(rows: list[dict[str, Any]]) -> None:
            rows[0]["image"] = {"bytes": b"<script>", "path": "x.png"}
            rows[0]["sha256"] = hashlib.sha256(b"<script>").hexdigest()

        rewritten(tmp_path / "part", change)
        with pytest.raises(ImagiNetError, match="decodes completely"):
            complete(tmp_path / "part", tmp_path / "new")

    @pytest.mark.parametrize("column", ["sha256", "label", "path", "image", "width"])
    def test_nulls(self, column: str, root: Path, tmp_path: Path) -> None:
        build(root, tmp_path / "part")

        def change(rows: list[dict[str, Any]]) -> None:
            rows[0][column] = None

        rewritten(tmp_path / "part", change)
        if column == "width":  # nobody needs it
            assert complete(tmp_path / "part", tmp_path / "new").complete
            return
        with pytest.raises(ImagiNetError):
            complete(tmp_path / "part", tmp_path / "new")

    def test_twice_the_same_path(self, root: Path, tmp_path: Path) -> None:
        build(root, tmp_path / "part")

        def change(rows: list[dict[str, Any]]) -> None:
            rows[1]["path"] = f"./{rows[0]['path'].removeprefix('./')}"

        rewritten(tmp_path / "part", change)
        with pytest.raises(AnnotationError, match="each image once"):
            complete(tmp_path / "part", tmp_path / "new")


class TestHub:
    def test_as_it_was_pushed(self, root: Path, tmp_path: Path) -> None:
        whole = build(root, tmp_path / "whole")
        write_redistributable(tmp_path / "whole", tmp_path / "part", (), dataset_card)
        code = (
            "import sys; from imaginet_hub.data.withheld import complete\n"
            "from imaginet_hub.errors import DataNotFoundError\n"
            "try: print(len(complete(*sys.argv[1:]).missing))\n"
            "except DataNotFoundError as error: print(error)"
        )

        def run(hub: Hub, repo_id: str, new: str, token: str | None) -> str:
            argv = [sys.executable, "-c", code, repo_id, str(tmp_path / new)]
            environment = hub.environ(tmp_path / f"home of {token}", token)
            done = subprocess.run(argv, env=environment, cwd=PROJECT, capture_output=True, text=True, check=True)
            return done.stdout.strip()

        with Hub() as hub:
            hub.repo("dataset", "me/data", files(tmp_path / "part"), private=True)
            theirs = sum(redistributable(tmp_path / "whole").withheld.values())
            assert run(hub, "me/data", "new", WRITE) == str(theirs)
            for name, token in (("me/other", WRITE), ("me/data", None)):
                said = run(hub, name, "none", token)
                assert said.startswith(
                    f"'{name}' is no folder here, and the Hub has no such dataset, or a private one"
                )
                assert "hf auth login" in said and said.endswith("What came already is kept")
        for record in read_annotations(root).records:
            if record.source == "theirs":
                shutil.copy(root / record.file, tmp_path / "new" / record.file)
        assert build(tmp_path / "new", tmp_path / "again")["fingerprint"] == whole["fingerprint"]
        assert not (tmp_path / "none").exists()

    @pytest.mark.parametrize("name", ["./nowhere", "a/b/c", "mini"])
    def test_no_such_place(self, name: str, tmp_path: Path) -> None:
        with pytest.raises(DataNotFoundError, match="expected a folder that `imaginet build` wrote, or a Hub id"):
            complete(name, tmp_path / "new")
        assert not (tmp_path / "new").exists()


def test_a_name_of_a_licence_and_of_a_source_frees_neither(tmp_path: Path) -> None:
    rows = table_rows(real=6, synthetic=4)
    for number, row in enumerate(rows):
        row["license"], row["source"] = ("unknown", "a") if number % 2 else ("all rights reserved", "unknown")
    (tmp_path / "root").mkdir()
    build_repository(write_root(tmp_path / "root", rows), tmp_path / "built", render_card=lambda report: "")
    with pytest.raises(UsageError, match="of a licence and of a source"):
        redistributable(tmp_path / "built", ["unknown"])
    assert redistributable(tmp_path / "built", ["a"]).kept == {("a", "unknown"): 5}


@pytest.mark.parametrize("path", ["Makefile", ".ssh/authorized_keys.png", ".bashrc", "notes.txt"])
def test_paths_that_may_be_files_of_yours(tmp_path: Path, path: str) -> None:
    rows = table_rows(real=3, synthetic=2)
    rows[0]["path"] = path
    root = tmp_path / "root"
    root.mkdir()
    for number, row in enumerate(rows):
        (root / row["path"]).parent.mkdir(parents=True, exist_ok=True)
        (root / row["path"]).write_bytes(image_bytes(number))
    with (root / "annotations.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    build_repository(root, tmp_path / "built", render_card=lambda report: "")
    with pytest.raises(BuildError, match="perhaps a file of yours"):
        complete(tmp_path / "built", tmp_path / "home")
    assert not (tmp_path / "home" / path).exists()


def test_a_file_of_yours_in_an_images_place_is_left_alone(tmp_path: Path) -> None:
    rows = table_rows(real=3, synthetic=2)
    (tmp_path / "root").mkdir()
    build_repository(write_root(tmp_path / "root", rows), tmp_path / "built", render_card=lambda report: "")
    mine = tmp_path / "home" / rows[0]["path"]
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    with pytest.raises(BuildError, match="move it away"):
        complete(tmp_path / "built", tmp_path / "home")
    assert mine.read_bytes() == b"mine"
