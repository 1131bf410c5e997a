"""Annotation lists: upstream's, and people's own."""

from __future__ import annotations

import csv
import hashlib
import io
import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imaginet_hub.data.manifest import Record, find_annotations, looks_like_root, read_annotations
from imaginet_hub.data.sources import SOURCES, TEST_FOLDER_COUNTS, source_of
from imaginet_hub.errors import AnnotationError, DataNotFoundError, UsageError
from imaginet_hub.labels import Track, Vocabulary
from tests.conftest import table_rows

HEADER = "path,label,content_type,generator_family,generator,split,license,source\n"


def listed(tmp_path: Path, text: str, name: str = "test_annotations.txt") -> Path:
    file = tmp_path / name
    file.write_bytes(text.encode())
    return file


class TestUpstream:
    def test_every_row_of_the_test_list(self, shared: Path) -> None:
        file = shared / "annotations" / "test_annotations.txt"
        manifest = read_annotations(file)
        lines = file.read_bytes().decode().split("\n")[:-1]
        assert len(manifest.records) == len(lines) == 40_000
        assert [record.path for record in manifest.records] == [line.rsplit(",", 4)[0] for line in lines]
        ids = [
            tuple(manifest.vocabulary.names(c).index(getattr(r, c)) for c in vars(manifest.vocabulary))
            for r in manifest.records
        ]
        assert ids == [tuple(map(int, line.rsplit(",", 4)[1:])) for line in lines]

    def test_counts_per_folder(self, shared: Path) -> None:
        manifest = read_annotations(shared / "annotations" / "test_annotations.txt")
        assert Counter(record.file.split("/")[0] for record in manifest.records) == TEST_FOLDER_COUNTS
        assert all(record.source != "unknown" for record in manifest.records)
        known = {source.key for source in SOURCES}
        assert {record.source for record in manifest.records} == known
        assert len(known) == 9

    def test_oddities_stay_byte_for_byte(self, shared: Path) -> None:
        paths = [r.path for r in read_annotations(shared / "annotations").records]
        assert sum("\u00ad" in path or "\u00e3" in path for path in paths) == 14
        assert sum("'" in path for path in paths) == 2
        assert sum("(" in path for path in paths) == 77
        assert max(map(len, paths)) == 149

    def test_group_lists_repeat_reals(self, shared: Path) -> None:
        repeated = {
            group: read_annotations(shared / "annotations" / f"test_annotations_{group}.txt").repeated_rows
            for group in ("gan", "sd", "midjourney", "dalle3")
        }
        assert repeated == {"gan": 29, "sd": 20, "midjourney": 0, "dalle3": 6}

    def test_folder_flags_calibration_rows_of_train(self, tmp_path: Path) -> None:
        listed(tmp_path, "./ffhq/a.png,0,2,4,8\n./ffhq_stylegan/b.png,1,2,0,1\n", "train_annotations.txt")
        listed(tmp_path, "./val2017/c.jpg,0,0,4,8\n")
        listed(tmp_path, "./ffhq/a.png,0,2,4,8\n", "calibration.txt")
        manifest = read_annotations(tmp_path)
        assert [(r.path, r.split, r.calibration) for r in manifest.records] == [
            ("./ffhq/a.png", "train", True),
            ("./ffhq_stylegan/b.png", "train", False),
            ("./val2017/c.jpg", "test", False),
        ]
        assert manifest.splits == ("train", "test")
        assert [r.path for r in read_annotations(tmp_path, splits=["test"]).records] == ["./val2017/c.jpg"]

    def test_only_the_lists_that_a_split_needs_are_read(self, tmp_path: Path) -> None:
        listed(tmp_path, "this is no list\n", "train_annotations.txt")
        listed(tmp_path, "./val2017/c.jpg,0,0,4,8\n")
        assert len(read_annotations(tmp_path, splits=["test"]).records) == 1
        with pytest.raises(AnnotationError):
            read_annotations(tmp_path)

    @pytest.mark.parametrize(
        ("row", "column", "expected", "found"),
        [
            ("./a/b.png,2,0,4,8", "origin", "0 to 1", "'2'"),
            ("./a/b.png,0,9,4,8", "content_type", "0 to 3", "'9'"),
            ("./a/b.png,1,0,0,x", "specific_model", "0 to 8", "'x'"),
            ("./a/b.png,0,0,1,3", "model", "4 for a real image", "'1'"),
            ("./a/b.png,1,0,0,6", "specific_model", "0 or 1 or 2 for model 0", "'6'"),
            ("./a/b.png,1,0", "path", "path,origin,content_type,model,specific_model", "./a/b.png,1,0"),
            ("./a/b.png,0," + "9" * 5000 + ",4,8", "content_type", "0 to 3", "'999"),
            ("/etc/passwd,0,0,4,8", "path", "inside ROOT", "/etc/passwd"),
            ("./a/../../b.png,0,0,4,8", "path", "inside ROOT", "../../b.png"),
            ("a\\b.png,0,0,4,8", "path", "forward slashes", "a\\\\b.png"),
            (",0,0,4,8", "path", "relative to ROOT", "''"),
        ],
    )
    def test_bad_rows_say_where_and_what(
        self, tmp_path: Path, row: str, column: str, expected: str, found: str
    ) -> None:
        file = listed(tmp_path, f"./ffhq/ok.png,0,2,4,8\n{row}\n")
        with pytest.raises(AnnotationError) as caught:
            read_annotations(file)
        message = str(caught.value)
        assert message.startswith(f"{file}, line 2, column '{column}': expected ")
        assert expected in message and found in message

    def test_bytes_that_are_not_utf8(self, tmp_path: Path) -> None:
        file = tmp_path / "test.txt"
        file.write_bytes(b"./ffhq/a.png,0,2,4,8\n./ffhq/\xff.png,0,2,4,8\n")
        with pytest.raises(AnnotationError, match="line 2, column 'path': expected UTF-8"):
            read_annotations(file)

    def test_a_byte_order_mark_is_no_part_of_the_first_path(self, tmp_path: Path) -> None:
        manifest = read_annotations(listed(tmp_path, "\ufeff./ffhq/a.png,0,2,4,8\n"))
        assert manifest.records[0].path == "./ffhq/a.png"

    def test_a_path_may_hold_commas_and_line_separators(self, tmp_path: Path) -> None:
        path = "./wikiart/a, b\u2028c\u0085.jpg"
        manifest = read_annotations(listed(tmp_path, f"{path},0,1,4,8\n"))
        assert [r.path for r in manifest.records] == [path]

    @pytest.mark.parametrize(
        ("name", "split"), [("train.txt", "train"), ("my-test.txt", "test"), ("val_list.txt", "validation"),
                            ("latest.txt", "train")]
    )  # fmt: skip
    def test_split_of_a_single_list(self, tmp_path: Path, name: str, split: str) -> None:
        assert read_annotations(listed(tmp_path, "./ffhq/a.png,0,2,4,8\n", name)).splits == (split,)


class TestTables:
    def test_own_generators(self, tmp_path: Path) -> None:
        file = tmp_path / "mine.csv"
        rows = table_rows()
        with file.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        manifest = read_annotations(file)
        assert manifest.vocabulary == Vocabulary(
            label=("real", "synthetic"),
            content_type=("faces", "maps"),
            generator_family=("SD", "NewNet", "real"),
            generator=("SD v2.1", "NewNet 3", "real"),
        )
        assert manifest.vocabulary.track_names(Track.IDENTIFICATION) == ("SD", "NewNet")
        assert manifest.carried_columns == ("group",)
        assert [r.carried for r in manifest.records] == [(row["group"],) for row in rows]

    def test_parquet_and_csv_agree(self, tmp_path: Path) -> None:
        rows = table_rows()
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
        stream = io.StringIO()
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        (tmp_path / "a.csv").write_text(stream.getvalue())
        from_csv, from_parquet = (read_annotations(tmp_path / name) for name in ("a.csv", "a.parquet"))
        assert from_csv.records == from_parquet.records
        assert from_csv.vocabulary == from_parquet.vocabulary

    def test_path_and_label_are_enough(self, tmp_path: Path) -> None:
        manifest = read_annotations(
            listed(tmp_path, "\ufeffpath,label\r\nx/a.png,real\r\nb.png,synthetic\r\n", "a.csv")
        )
        first, second = manifest.records
        assert (first.generator, first.split, first.source, first.license) == ("real", "train", "x", "unknown")
        assert (second.generator, second.generator_family, second.content_type) == (
            "unknown",
            "unknown",
            "uncategorized",
        )

    def test_quoted_fields_keep_line_numbers(self, tmp_path: Path) -> None:
        text = 'path,label,note\n"a,1.png",real,"two\nlines"\nb.png,fake,\n'
        with pytest.raises(AnnotationError, match=r"line 4, column 'label': expected real or synthetic, found 'fake'"):
            read_annotations(listed(tmp_path, text, "a.csv"))

    @pytest.mark.parametrize(
        ("text", "where", "expected"),
        [
            (HEADER + "a.png,real,faces,real,real,train,x\n", "line 2, column 'source'", "8 fields"),
            (HEADER + "a.png,real,faces,real,real,train,x,y,z\n", "line 2, column 'source'", "8 fields"),
            (HEADER + "a.png,real,faces,GAN,real,train,x,y\n", "line 2, column 'generator_family'", "real"),
            (HEADER + "a.png,synthetic,faces,real,real,train,x,y\n", "line 2, column 'generator_family'", "a name"),
            (HEADER + "a.png,synthetic,faces,GAN,,train,x,y\n", "line 2, column 'generator'", "a name"),
            (HEADER + "a.png,real,faces,real,real,,x,y\n", "line 2, column 'split'", "a split name"),
            (HEADER + "a.png,real,faces,real,real,te st,x,y\n", "line 2, column 'split'", "a split name"),
            (HEADER + "a.png,real,,real,real,train,x,y\n", "line 2, column 'content_type'", "a name"),
            ("path,label,sha256\na.png,real,xyz\n", "line 2, column 'sha256'", "64 hexadecimal digits"),
            ("path,label,calibration\na.png,real,maybe\n", "line 2, column 'calibration'", "true or false"),
            ("a.png,real\n", "line 1, column 'path'", "a header"),
            ("path,label,path\na.png,real,b\n", "line 1, column 'path'", "each column once"),
            ('path,label\n"a.png,real\n', "line 2, column 'row'", "well-formed CSV"),
            ("path,label,split \na.png,real,test\n", "line 1, column 'split '", "the column name 'split'"),
            ("path,label,Generator\na.png,real,real\n", "line 1, column 'Generator'", "the column name 'generator'"),
            (HEADER + "a.png,synthetic, faces,GAN,X,train,x,y\n", "line 2, column 'content_type'", "no spaces"),
            (HEADER + "a.png,synthetic,faces,GAN,Real,train,x,y\n", "line 2, column 'generator'", "a name"),
            ("path,label\n", "", "at least one row"),
            ("", "line 1, column 'path'", "a header"),
        ],
    )
    def test_bad_tables_say_where_and_what(self, tmp_path: Path, text: str, where: str, expected: str) -> None:
        file = listed(tmp_path, text, "a.csv")
        with pytest.raises(AnnotationError) as caught:
            read_annotations(file)
        assert str(caught.value).startswith(str(file))
        assert where in str(caught.value) and expected in str(caught.value)

    def test_contradictions_name_both_rows(self, tmp_path: Path) -> None:
        text = "path,label,split\na.png,real,train\nb.png,real,train\n./a.png,real,test\n"
        with pytest.raises(AnnotationError, match=r"line 4.*each image once.*line 2"):
            read_annotations(listed(tmp_path, text, "a.csv"))

    def test_class_names_beside_it(self, tmp_path: Path) -> None:
        """They give the ids where rows do not show all names, and have to fit the rows."""
        file = listed(
            tmp_path, HEADER + "a.png,synthetic,faces,GAN,X,train,x,y\nb.png,real,faces,real,real,train,x,y\n", "a.csv"
        )
        plain = read_annotations(file)
        names = tmp_path / "a.classes.json"
        names.write_text('{"generator": ["Z", "X", "real"], "content_type": ["maps", "faces"]}')
        manifest = read_annotations(file)
        assert manifest.records == plain.records and manifest.lists[:1] == plain.lists
        assert manifest.vocabulary == replace(
            plain.vocabulary, generator=("Z", "X", "real"), content_type=("maps", "faces")
        )
        assert manifest.lists[1] == (str(names), hashlib.sha256(names.read_bytes()).hexdigest())
        for text, expected in {
            "[": "a JSON object",
            "[]": "an object",
            '{"path": []}': "an object with some of label",
            '{"generator": "X"}': "a list of names",
            '{"generator": ["X", 1, "real"]}': "a list of names",
            '{"generator": ["X", "X", "real"]}': "each name once",
            '{"generator": ["real"]}': "such as 'X'",
            '{"generator": ["real", "X"]}': "real as the last name",
            '{"label": ["synthetic", "real"]}': "real and synthetic",
            "[" * 100_000: "a JSON object",
        }.items():
            names.write_text(text)
            with pytest.raises(AnnotationError, match=re.escape(expected)) as caught:
                read_annotations(file)
            assert str(names) in str(caught.value) and len(str(caught.value)) < 600
        names.write_bytes(b"\xff\xfe\x00")
        with pytest.raises(AnnotationError):
            read_annotations(file)

    def test_broken_parquet(self, tmp_path: Path) -> None:
        (tmp_path / "a.parquet").write_bytes(b"PAR1 not really PAR1")
        with pytest.raises(AnnotationError, match="expected a Parquet table"):
            read_annotations(tmp_path / "a.parquet")

    @given(
        st.lists(
            st.tuples(
                st.text(
                    st.characters(exclude_characters="\\\0:/", exclude_categories=("Cs",)), min_size=1, max_size=20
                ),
                st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), min_size=1, max_size=9),
            ),
            min_size=1,
            max_size=8,
            unique_by=lambda pair: pair[0],
        )
    )
    def test_any_text_survives_a_csv(self, pairs: list[tuple[str, str]]) -> None:
        import tempfile

        rows = [(f"p/x{path}.png", note) for path, note in pairs]
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "a.csv"
            with file.open("w", newline="", encoding="utf-8") as stream:
                writer = csv.writer(stream)
                writer.writerow(["path", "label", "note"])
                writer.writerows((path, "real", note) for path, note in rows)
            manifest = read_annotations(file)
        assert [(r.path, *r.carried) for r in manifest.records] == rows


class TestWhereAnnotationsAre:
    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(DataNotFoundError, match="no annotations at"):
            read_annotations(tmp_path / "nothing.csv")
        with pytest.raises(DataNotFoundError, match=r"train_annotations\.txt"):
            read_annotations(tmp_path)

    def test_another_kind_of_file(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"\.txt"):
            read_annotations(listed(tmp_path, "{}", "a.json"))

    def test_missing_split_says_which_there_are(self, tmp_path: Path) -> None:
        with pytest.raises(DataNotFoundError, match="splits that occur: train"):
            read_annotations(listed(tmp_path, "path,label\na.png,real\n", "a.csv"), splits=["test"])

    def test_what_a_root_carries(self, tmp_path: Path) -> None:
        assert find_annotations(tmp_path) is None
        assert not looks_like_root(tmp_path)
        listed(tmp_path, "./val2017/c.jpg,0,0,4,8\n")
        assert find_annotations(tmp_path) == tmp_path
        (tmp_path / "annotations").mkdir()
        listed(tmp_path / "annotations", "./val2017/c.jpg,0,0,4,8\n")
        assert find_annotations(tmp_path) == tmp_path / "annotations"
        listed(tmp_path, "path,label\na.png,real\n", "annotations.csv")
        assert find_annotations(tmp_path) == tmp_path / "annotations.csv"
        assert looks_like_root(tmp_path)

    def test_upstreams_folders_are_a_root(self, tmp_path: Path) -> None:
        (tmp_path / "val2017").mkdir()
        assert looks_like_root(tmp_path)

    @pytest.mark.parametrize(
        ("path", "source"),
        [("ffhq/a.png", "ffhq"), ("ffhq", "unknown"), ("mine/x/a.png", "mine"), ("dalle3/x.png", "imaginet")],
    )
    def test_source_by_top_folder(self, path: str, source: str) -> None:
        assert source_of(path)[0] == source


def test_the_file_of_a_path_is_its_simplest_form() -> None:
    rng = random.Random(0)
    for _ in range(20_000):
        path = "".join(rng.choice("a./") for _ in range(rng.randint(1, 8)))
        pure = PurePosixPath(path)
        if pure.parts and not pure.is_absolute() and ".." not in pure.parts:
            assert replace(_RECORD, path=path).file == str(pure)


_RECORD = Record("x", "real", "photos", "real", "real", "test", "coco", "none")
