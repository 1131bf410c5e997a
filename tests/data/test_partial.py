"""Part of the images is a valid state: it is built, counted, and what it cannot be compared with is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from imaginet_hub.cards import dataset_card
from imaginet_hub.cli import main
from imaginet_hub.data.builder import BUILD_REPORT
from imaginet_hub.data.images import examine
from imaginet_hub.data.manifest import Manifest, read_annotations
from imaginet_hub.data.partial import partial_report
from imaginet_hub.data.repository import build_repository
from imaginet_hub.data.scan import scan
from imaginet_hub.data.sources import KNOWN_CORRUPT
from imaginet_hub.errors import BuildError
from tests.conftest import image_bytes, table_rows, write_root

MakeRoot = Callable[..., Path]

# A path of each kind with upstream's numbers.
LISTED = {
    "./imagenet/ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_00000001.JPEG": "0,0,4,8",
    "./progan_val/cat/0_real/00091.png": "0,0,4,8",
    "./progan_val/cat/1_fake/00091.png": "1,0,0,0",
    "./val2017/000000000139.jpg": "0,0,4,8",
    "./wikiart/Baroque/rembrandt_woman-standing-with-raised-hands.jpg": "0,1,4,8",
    "./ffhq/a.png": "0,2,4,8",
    "./photozilla/dataset/city/1.jpg": "0,3,4,8",
    "./imagenet_stylegan/a.png": "1,0,0,1",
    "./wikiart_stylegan/seed3.png": "1,1,0,2",
    "./sd_faces_fake/a.webp": "1,2,1,3",
    "./sdxl_photos_fake/a.webp": "1,0,1,4",
    "./animaginexl_paintings_fake/a.webp": "1,1,1,5",
    "./journeydb/a.jpg": "1,3,2,6",
    "./dalle3/a.png": "1,3,3,7",
    "./dalle3_addition/a.png": "1,3,3,7",
}
TABLE_3, CONTENT, MODEL, TABLE_7 = "Table 3", "detection by content type", "detection by specific model", "Table 7"
EVERY_GENERATOR = {
    (MODEL, name)
    for name in (
        "ProGAN",
        "StyleGAN-XL",
        "StyleGAN3",
        "SD v2.1",
        "SDXL v1.0",
        "Animagine XL",
        "Midjourney",
        "DALL-E 3",
    )
}
EVERY_MEAN = {(TABLE_3, "Mean"), (CONTENT, "Mean"), (MODEL, "Mean")}
OF_ANY_REAL = {
    *((TABLE_3, family) for family in ("GAN", "SD", "Midjourney", "DALL-E 3")),
    *EVERY_GENERATOR,
    *EVERY_MEAN,
}


def lists(folder: Path) -> Path:
    """A ROOT folder with upstream's lists and no image."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [f"{path},{numbers}\n" for path, numbers in LISTED.items()]
    (folder / "test_annotations.txt").write_text("".join(rows))
    rows = ["./train2017/000000000009.jpg,0,0,4,8\n", "./sd_faces_fake/t.webp,1,2,1,3\n"]
    (folder / "train_annotations.txt").write_text("".join(rows))
    return folder


def without(manifest: Manifest, *tops: str) -> dict[str, Any]:
    kept = [record for record in manifest.records if not record.file.startswith(tops)]
    report = partial_report(manifest.records, kept)
    assert report is not None
    return report


def rows_named(report: dict[str, Any]) -> set[tuple[str, str]]:
    return {(row["table"].partition(" (")[0], row["row"]) for row in report["not_comparable"]}


def fill(root: Path, *but: str) -> None:
    """Every image that ROOT's lists name, but those whose path starts so."""
    formats = {".jpg": "JPEG", ".JPEG": "JPEG", ".webp": "WEBP", ".png": "PNG"}
    for number, record in enumerate(read_annotations(root).records):
        file = root / record.file
        if not record.file.startswith(but or ("no such",)):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(image_bytes(number, format_=formats[file.suffix]))


def build(root: Path, out: Path, **options: Any) -> dict[str, Any]:
    return build_repository(root, out, render_card=dataset_card, **options)


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


class TestWhatIsNoLongerComparable:
    @pytest.mark.parametrize(
        ("absent", "expected"),
        [
            ("val2017", OF_ANY_REAL | {(CONTENT, "photos")}),
            ("wikiart/", OF_ANY_REAL | {(CONTENT, "paintings")}),
            ("photozilla", OF_ANY_REAL | {(CONTENT, "uncategorized")}),
            (
                "progan_val/cat/1_fake",
                {(TABLE_3, "GAN"), (CONTENT, "photos"), (MODEL, "ProGAN"), (TABLE_7, "GAN"), *EVERY_MEAN}
                | {(TABLE_7, "Mean and AUC")},
            ),
            (
                "wikiart_stylegan",
                {(TABLE_3, "GAN"), (CONTENT, "paintings"), (MODEL, "StyleGAN3"), (TABLE_7, "GAN"), *EVERY_MEAN}
                | {(TABLE_7, "Mean and AUC")},
            ),
            (
                "animaginexl",
                {(TABLE_3, "SD"), (CONTENT, "paintings"), (MODEL, "Animagine XL"), (TABLE_7, "SD"), *EVERY_MEAN}
                | {(TABLE_7, "Mean and AUC")},
            ),
            (
                "journeydb",
                {(TABLE_3, "Midjourney"), (CONTENT, "uncategorized"), (MODEL, "Midjourney"), *EVERY_MEAN}
                | {(TABLE_7, "Midjourney"), (TABLE_7, "Mean and AUC")},
            ),
            (
                "sd_faces_fake/t",
                {
                    (
                        "Tables 3, 4, 5 and 7, by content type, by specific model",
                        "models trained on ImagiNet (Ours*, Corvi2022*)",
                    )
                },
            ),
        ],
    )
    def test_rows(self, tmp_path: Path, absent: str, expected: set[tuple[str, str]]) -> None:
        assert rows_named(without(read_annotations(lists(tmp_path)), absent)) == expected

    def test_nothing_absent(self, tmp_path: Path) -> None:
        records = read_annotations(lists(tmp_path)).records
        assert partial_report(records, reversed(records)) is None

    def test_counts(self, tmp_path: Path) -> None:
        report = without(read_annotations(lists(tmp_path)), "dalle3", "train2017")
        assert (report["annotated"], report["absent"]) == (17, 3)
        assert report["splits"] == {
            "test": {
                "annotated": 15,
                "absent": 2,
                "content_type": {"uncategorized": 2},
                "generator_family": {"DALL-E 3": 2},
            },
            "train": {"annotated": 2, "absent": 1, "content_type": {"photos": 1}, "generator_family": {"real": 1}},
        }
        assert report["sources"] == [
            {
                "split": "test",
                "source": "imaginet",
                "annotated": 7,
                "absent": 2,
                "folders": {"dalle3": 1, "dalle3_addition": 1},
            },
            {"split": "train", "source": "coco", "annotated": 1, "absent": 1, "folders": {"train2017": 1}},
        ]
        assert json.loads(json.dumps(report)) == report

    def test_upstreams_test_list(self, shared: Path) -> None:
        manifest = read_annotations(shared / "annotations" / "test_annotations.txt")
        report = without(manifest, "dalle3")
        by_row = {
            (row["table"].partition(" (")[0], row["row"]): (row["absent"], row["needed"])
            for row in report["not_comparable"]
        }
        assert by_row == {
            (TABLE_3, "DALL-E 3"): (2500, 22500),
            (TABLE_3, "Mean"): (2500, 40000),
            (CONTENT, "uncategorized"): (2500, 10000),
            (CONTENT, "Mean"): (2500, 40000),
            (MODEL, "DALL-E 3"): (2500, 22500),
            (MODEL, "Mean"): (2500, 40000),
            (TABLE_7, "DALL-E 3"): (2500, 2500),
            (TABLE_7, "Mean and AUC"): (2500, 20000),
        }

    def test_own_images_are_only_counted(self, make_root: MakeRoot) -> None:
        records = read_annotations(make_root()).records
        report = partial_report(records, records[1:])
        assert report is not None and report["absent"] == 1 and report["not_comparable"] == []


class TestBuild:
    def test_what_is_there(self, tmp_path: Path) -> None:
        root, out = lists(tmp_path / "root"), tmp_path / "out"
        fill(root, "dalle3", "train2017")
        report = build(root, out, allow_partial=True)
        assert report["images"] == 14 and report["corpus"] == "ImagiNet" and report["left_out"] == []
        assert report["partial"]["absent"] == 3
        assert json.loads((out / BUILD_REPORT).read_text()) == report
        absent = ["./train2017/000000000009.jpg", "./dalle3/a.png", "./dalle3_addition/a.png"]
        assert (out / "missing.txt").read_text().splitlines() == absent
        loaded = datasets.load_dataset(str(out))
        assert {split: len(rows) for split, rows in loaded.items()} == {"train": 1, "test": 13}
        assert not {path for rows in loaded.values() for path in rows["path"]} & set(absent)
        card = (out / "README.md").read_text()
        assert "3 annotated images were not there when this was built" in card
        assert "| test | imaginet | 2 | 7 |" in card and "| train | coco | 1 | 1 |" in card
        assert "| Table 3 (detection) | DALL-E 3 | 2 | 8 | DALL-E 3 test images against real" in card
        assert "| Table 3 (detection) | GAN |" not in card and "Nothing: every" not in card

    def test_a_complete_root_gives_the_same_files(self, make_root: MakeRoot, tmp_path: Path) -> None:
        root = make_root()
        report = build(root, tmp_path / "a", allow_partial=True)
        build(root, tmp_path / "b")
        assert "partial" not in report and files(tmp_path / "a") == files(tmp_path / "b")
        assert "missing.txt" not in files(tmp_path / "a")

    def test_without_it_the_error_names_it(self, make_root: MakeRoot, tmp_path: Path) -> None:
        root = make_root()
        (root / table_rows()[5]["path"]).write_bytes(b"no image")
        with pytest.raises(BuildError) as caught:
            build(root, tmp_path / "out")
        assert "--allow-partial" not in str(caught.value)  # it would not help
        (root / table_rows()[1]["path"]).unlink()
        with pytest.raises(BuildError, match=r"^2 of 20 images") as caught:
            build(root, tmp_path / "out")
        assert "--allow-partial" in str(caught.value)

    def test_damage_still_follows_on_error(self, make_root: MakeRoot, tmp_path: Path) -> None:
        root = make_root()
        paths = [row["path"] for row in table_rows()]
        (root / paths[5]).write_bytes(b"no image")
        (root / paths[1]).unlink()
        with pytest.raises(BuildError, match=r"^1 of 20 images .*1 unreadable"):
            build(root, tmp_path / "out", allow_partial=True)
        assert not (tmp_path / "out").exists()
        report = build(root, tmp_path / "out", allow_partial=True, on_error="skip")
        assert [(item["path"], item["policy"]) for item in report["left_out"]] == [(paths[5], "on_error")]
        assert report["partial"]["absent"] == 2 and report["partial"]["not_comparable"] == []
        assert (tmp_path / "out" / "missing.txt").read_text() == f"{paths[1]}\n"
        card = (tmp_path / "out" / "README.md").read_text()
        assert "1 annotated images are not in this build" in card and "1 annotated images were not there" in card
        assert "| train | me | 2 | 15 |" in card

    def test_nothing_there_is_an_error(self, make_root: MakeRoot, tmp_path: Path) -> None:
        root = make_root()
        shutil.rmtree(root / "pictures")
        with pytest.raises(BuildError, match="20 of 20 images"):
            build(root, tmp_path / "out", allow_partial=True)
        for streaming in (False, True):
            with pytest.raises(BuildError, match=r"20 of 20|none of the 20"):
                datasets.load_dataset("imaginet", data_dir=str(root), allow_partial=True, streaming=streaming)

    def test_a_known_corrupt_file_is_named_in_one_place(self, tmp_path: Path) -> None:
        root = lists(tmp_path / "root")
        fill(root)
        corrupt = "wikiart/Baroque/rembrandt_woman-standing-with-raised-hands.jpg"
        assert corrupt in KNOWN_CORRUPT
        (root / corrupt).write_bytes((root / corrupt).read_bytes()[:200])
        report = build(root, tmp_path / "out")
        assert [item["policy"] for item in report["left_out"]] == ["known_corrupt"]
        assert rows_named(report["partial"]) == OF_ANY_REAL | {(CONTENT, "paintings")}
        card = (tmp_path / "out" / "README.md").read_text()
        assert card.count("not comparable") == 1 and "missing.txt" not in card
        assert not (tmp_path / "out" / "missing.txt").exists()

    def test_many_missing_images_stay_out_of_the_report(self, tmp_path: Path) -> None:
        rows = table_rows(1, 1)
        root = write_root(tmp_path / "root", rows)
        with (root / "annotations.csv").open("a") as stream:
            for number in range(30_000):
                stream.write(f"absent/{number}.png,real,faces,real,real,train,CC0,me,g\n")
        report = build(root, tmp_path / "out", allow_partial=True)
        assert report["partial"]["sources"][0]["folders"] == {"absent": 30_000}
        assert (tmp_path / "out" / BUILD_REPORT).stat().st_size < 10_000
        assert len((tmp_path / "out" / "README.md").read_text()) < 10_000
        assert len((tmp_path / "out" / "missing.txt").read_text().splitlines()) == 30_000

    def test_command(self, make_root: MakeRoot, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        root = make_root()
        (root / table_rows()[1]["path"]).unlink()
        assert main(["build", str(root), str(tmp_path / "out"), "-q"]) == 1
        assert "--allow-partial" in capsys.readouterr().err
        assert main(["build", str(root), str(tmp_path / "out"), "-q", "--allow-partial"]) == 0
        out = capsys.readouterr().out
        assert f"missing: 1 of 20, listed in {tmp_path / 'out' / 'missing.txt'}" in out
        assert "comparable" not in out
        root = lists(tmp_path / "ours")
        fill(root, "journeydb")
        assert main(["build", str(root), str(tmp_path / "out2"), "-q", "--allow-partial"]) == 0
        assert "8 published rows are not comparable" in capsys.readouterr().out


class TestLoad:
    def test_the_cache_follows_what_arrives(self, make_root: MakeRoot) -> None:
        root = make_root()
        absent = root / table_rows()[1]["path"]
        data = absent.read_bytes()
        absent.unlink()

        def load() -> tuple[int, Path]:
            rows = datasets.load_dataset("imaginet", data_dir=str(root), allow_partial=True, split="train+test")
            return len(rows), Path(rows.cache_files[0]["filename"]).parent

        with pytest.raises(BuildError, match="--allow-partial"):
            datasets.load_dataset("imaginet", data_dir=str(root))
        count, folder = load()
        assert count == 19
        report = json.loads((folder / BUILD_REPORT).read_text())
        assert report["left_out"] == [] and report["partial"]["absent"] == 1
        assert (folder / "missing.txt").read_text() == f"{table_rows()[1]['path']}\n"
        absent.write_bytes(data)
        count, folder = load()
        assert count == 20 and not (folder / BUILD_REPORT).exists()

    def test_streams(self, make_root: MakeRoot, caplog: pytest.LogCaptureFixture) -> None:
        root = make_root()
        paths = [row["path"] for row in table_rows() if row["split"] == "train"]
        (root / paths[0]).unlink()
        datasets.logging.enable_propagation()
        options = {"data_dir": str(root), "allow_partial": True, "split": "train", "streaming": True}
        assert [row["path"] for row in datasets.load_dataset("imaginet", **options)] == paths[1:]
        assert "1 of 20 images are missing" in caplog.text
        (root / paths[1]).write_bytes(b"no image")
        with pytest.raises(Exception, match="found bytes that start with"):
            list(datasets.load_dataset("imaginet", **options))


class TestKnownFacts:
    def known(self, root: Path) -> tuple[Manifest, dict[str, Any]]:
        manifest = read_annotations(root)
        return manifest, {r.file: examine((root / r.file).read_bytes(), r.path) for r in manifest.records}

    def test_files_are_not_opened(self, make_root: MakeRoot, monkeypatch: pytest.MonkeyPatch) -> None:
        root = make_root()
        manifest, known = self.known(root)
        expected = scan(root, manifest)

        def opened(*_: object) -> None:
            raise AssertionError

        monkeypatch.setattr("imaginet_hub.data.scan.examine_file", opened)
        assert scan(root, manifest, known=known) == expected
        with pytest.raises(AssertionError):
            scan(root, manifest, known={file: facts for file, facts in known.items() if "003" not in file})

    def test_another_size_is_looked_at(self, make_root: MakeRoot) -> None:
        root = make_root()
        manifest, known = self.known(root)
        (root / table_rows()[0]["path"]).write_bytes(image_bytes(99, (50, 50)))
        (root / table_rows()[1]["path"]).write_bytes(b"no image")
        (root / table_rows()[2]["path"]).unlink()
        result = scan(root, manifest, known=known, on_error="skip")
        assert [item.reason for item in result.left_out] == ["unreadable", "missing"]
        assert result.facts[table_rows()[0]["path"]].width == 50

    def test_a_promised_checksum_wins(self, tmp_path: Path) -> None:
        root = write_root(
            tmp_path, [{**row, "sha256": "0" * 64 if n == 1 else ""} for n, row in enumerate(table_rows())]
        )
        manifest, known = self.known(root)
        result = scan(root, manifest, known=known, on_error="skip")
        assert [item.reason for item in result.left_out] == ["checksum"]

    def test_a_changed_file_is_noticed_when_it_is_read(
        self, make_root: MakeRoot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from imaginet_hub.data import repository

        root = make_root()
        _, known = self.known(root)
        monkeypatch.setattr(repository, "scan", lambda *a, **k: scan(*a, **{**k, "known": known}))
        assert build(root, tmp_path / "same")["images"] == 20
        file = root / table_rows()[3]["path"]
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1  # the same size
        file.write_bytes(data)
        with pytest.raises(ValueError, match="changed"):
            build(root, tmp_path / "out")
        assert sorted(p.name for p in tmp_path.iterdir()) == ["root", "same"]
