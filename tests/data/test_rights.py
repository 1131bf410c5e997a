"""What licences allow, and what follows from it: selections, reports, NOTICE."""

from __future__ import annotations

import random
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

import imaginet_hub  # noqa: F401
from imaginet_hub.cards import dataset_card
from imaginet_hub.data import mini
from imaginet_hub.data.fetch import plan_fetch
from imaginet_hub.data.loading import load_rows
from imaginet_hub.data.repository import build_repository
from imaginet_hub.data.rights import (
    Rights,
    changes_forbidden,
    licenses_report,
    licenses_text,
    notice,
    rights_of,
    rights_rows,
    selection,
)
from imaginet_hub.data.sources import MINI_SOURCE, SOURCES
from imaginet_hub.demo.mirror import Mirror
from imaginet_hub.errors import UsageError
from tests.conftest import table_rows, write_root
from tests.support.published import ACCOUNTS, GATES, Published

Y, N, U = "yes", "no", "unclear"

#: Text -> commercial use, redistribution.
READ = {
    "CC0": (Y, Y),
    "CC0 1.0": (Y, Y),
    "CC0-1.0": (Y, Y),
    "cc0 1.0 Universal": (Y, Y),
    "CC0 1.0 (LAION)": (Y, Y),
    "public domain": (Y, Y),
    "Public Domain Dedication (CC0)": (Y, Y),
    "Public Domain Mark 1.0": (Y, Y),
    "United States Government Work": (Y, Y),
    "CC BY 4.0": (Y, Y),
    "cc-by-4.0": (Y, Y),
    "CC_BY_2.0": (Y, Y),
    "CC BY-SA 3.0 Unported": (Y, Y),
    "CC BY-ND 4.0": (Y, Y),
    "CC BY-NC 4.0": (N, Y),
    "CC BY-NC-SA 4.0": (N, Y),
    "CC BY-NC-SA 4.0 (repo)": (N, Y),
    "CC BY-NC-ND 2.0": (N, Y),
    "CC-BY-ND-NC-1.0": (N, Y),
    "Creative Commons Attribution 4.0 International": (Y, Y),
    "Creative Commons Attribution-NonCommercial-ShareAlike 4.0 International License": (N, Y),
    "https://creativecommons.org/licenses/by-nc-sa/2.0/": (N, Y),
    "http://creativecommons.org/licenses/by/2.0/": (Y, Y),
    "https://creativecommons.org/publicdomain/zero/1.0/": (Y, Y),
    "Attribution License": (Y, Y),
    "Attribution-NonCommercial-NoDerivs License": (N, Y),
    "MIT": (Y, Y),
    "MIT License": (Y, Y),
    "Apache-2.0": (Y, Y),
    "Apache License, Version 2.0": (Y, Y),
    "BSD-3-Clause": (Y, Y),
    "MIT (images)": (Y, Y),
    "No known copyright restrictions": (U, Y),
    # of code
    "Apache-2.0 (code)": (U, U),
    "MIT (code)": (U, U),
    "MIT (repo)": (U, U),
    "CC BY 4.0 (annotations)": (U, U),
    "CC BY 4.0 (code)": (U, U),
    # traps
    "": (U, U),
    " ": (U, U),
    "unknown": (U, U),
    "unknown (no licence file; see the paper)": (U, U),
    "none": (U, U),
    "not CC0": (U, U),
    "CC0 or not": (U, U),
    "CC BY 4.0, except for faces": (U, U),
    "CC BY 4.0; CC BY-NC 4.0": (N, U),
    "CC BY": (Y, Y),
    "CC BYNC 4.0": (U, U),
    "CC BY 5.0": (U, U),
    "CC": (U, U),
    "Attribution": (U, U),
    "public domain?": (U, U),
    "CC0 1.0 (not for commercial use)": (N, U),
    "CC0 (": (U, U),
    "CC0)": (U, U),
    "CC0 (repo) (code)": (U, U),
    "MIT-like": (U, U),
    "no license": (U, U),
    "non-commercial research": (N, U),
    "Noncommercial use": (N, U),
    "GRIP-UNINA non-commercial licence": (N, U),
    "all rights reserved": (N, N),
    "© Somebody. All Rights Reserved.": (N, N),
    "may be used, no redistribution": (U, N),
    "Flickr terms per image (COCO annotations: CC BY 4.0)": (U, U),
}


class TestReading:
    @pytest.mark.parametrize("text", READ)
    def test_names(self, text: str) -> None:
        assert rights_of(text) == rights_of(text, "me") == Rights(*READ[text])

    @given(
        st.sampled_from([text for text, read in READ.items() if Y in read]),
        st.sampled_from(["not", "un", "code:", "except", "?", "5", "x", "and", "\u202e", "no"]),
        st.booleans(),
    )
    def test_only_a_whole_name_gives_a_yes(self, text: str, more: str, before: bool) -> None:
        for space in ("", " "):
            read = rights_of(f"{more}{space}{text}" if before else f"{text}{space}{more}")
            assert Y not in (read.commercial, read.redistribution)

    @given(st.sampled_from(list(READ)), st.sampled_from(["  ", "\t", " \n"]))
    def test_case_and_spaces_say_nothing(self, text: str, space: str) -> None:
        assert rights_of(space + text.upper().replace(" ", space) + space) == rights_of(text)

    @given(st.text())
    def test_any_text(self, text: str) -> None:
        read = rights_of(text)
        assert {read.commercial, read.redistribution} <= {Y, N, U}

    def test_long_texts_are_quick(self) -> None:
        begun = time.perf_counter()
        for text in ("CC BY " * 1_000_000, "(" * 1_000_000, "non-" * 1_000_000, "CC0" + " " * 1_000_000 + "not"):
            assert Y not in (rights_of(text).commercial, rights_of(text).redistribution)
        assert time.perf_counter() - begun < 2

    def test_no_derivatives(self) -> None:
        assert changes_forbidden("CC BY-ND 4.0") and changes_forbidden("Attribution-NoDerivs License")
        assert not changes_forbidden("CC BY 4.0") and not changes_forbidden("land and sand")


class TestSources:
    @pytest.mark.parametrize("key", [source.key for source in SOURCES])
    def test_as_the_table_says(self, key: str) -> None:
        source = next(source for source in SOURCES if source.key == key)
        said = {"per image": U}
        expected = Rights(
            said.get(source.commercial_use, source.commercial_use),
            said.get(source.redistribution, source.redistribution),
        )
        assert rights_of(source.license, key) == rights_of(source.license) == expected

    def test_another_licence_counts_as_it_is(self) -> None:
        assert rights_of("CC BY 4.0", "imagenet") == Rights(Y, Y)
        assert rights_of("CC0 1.0 (LAION)", "imaginet") == Rights(Y, Y)
        assert rights_of("all rights reserved", "imaginet") == Rights(N, N)
        assert rights_of("", "imaginet") == Rights(U, U)

    def test_a_source_s_text_is_no_other_s(self) -> None:
        ffhq = next(source for source in SOURCES if source.key == "ffhq")
        assert rights_of(ffhq.license, "ffhq").redistribution == Y
        assert rights_of(ffhq.license, "me").redistribution != Y

    def test_mini_is_as_careful_as_its_photographs(self) -> None:
        each = {name: rights_of(photo.licence) for name, photo in mini.PHOTOGRAPHS.items()}
        assert {name for name, read in each.items() if read != Rights(Y, Y)} == {"ihc"}
        assert rights_of(mini.LICENSE, MINI_SOURCE) == Rights(U, Y) == each["ihc"]


class TestSelections:
    def test_words_and_names(self) -> None:
        means = selection(["commercial", "GRIP"])
        assert means("CC0", "me") and means("GRIP", "me") and not means("CC BY-NC 4.0", "me")
        assert selection("redistributable")("CC BY-NC 4.0", "me")
        assert not selection("CC0")("CC0 1.0", "me")  # names are exact

    @pytest.mark.parametrize("wrong", [(), [], "", [""], [1], 7, [None]], ids=repr)
    def test_what_is_no_selection(self, wrong: Any) -> None:
        with pytest.raises((UsageError, TypeError)):
            selection(wrong)


MakeRoot = Callable[..., Path]


def mixed(root: Path) -> Path:
    """A ROOT of our own with three licences; generators of the free images are a part of all."""
    root.mkdir()
    rows = table_rows()
    for number, row in enumerate(rows):
        row["license"] = ("CC BY 4.0", "CC BY-NC 4.0", "all rights reserved")[number % 3]
    return write_root(root, rows)


def listed(root: Path, license_: str) -> set[str]:
    import csv

    with (root / "annotations.csv").open(newline="") as stream:
        return {row["path"] for row in csv.DictReader(stream) if row["license"] == license_}


class TestLoading:
    def test_a_root(self, tmp_path: Path) -> None:
        root = mixed(tmp_path / "root")
        whole = datasets.load_dataset("imaginet", data_dir=str(root))
        free = datasets.load_dataset("imaginet", data_dir=str(root), licenses="commercial")
        assert {p for rows in free.values() for p in rows["path"]} == listed(root, "CC BY 4.0")
        assert free["train"].features == whole["train"].features  # ids do not depend on the selection
        assert sum(map(len, whole.values())) == 20
        passed_on = datasets.load_dataset("imaginet", data_dir=str(root), licenses=["redistributable"])
        both = listed(root, "CC BY 4.0") | listed(root, "CC BY-NC 4.0")
        assert {p for rows in passed_on.values() for p in rows["path"]} == both
        named = datasets.load_dataset("imaginet", data_dir=str(root), licenses=["CC BY-NC 4.0", "CC BY 4.0"])
        assert {p for rows in named.values() for p in rows["path"]} == both
        stream = datasets.load_dataset(
            "imaginet", data_dir=str(root), licenses="commercial", streaming=True, split="train"
        )
        assert [row["path"] for row in stream] == list(free["train"]["path"])
        made = datasets.load_dataset("imaginet", "identification", data_dir=str(root), licenses="commercial")
        assert {label for rows in made.values() for label in rows["label"]} == {1}

    def test_what_is_not_there(self, tmp_path: Path) -> None:
        root = mixed(tmp_path / "root")
        with pytest.raises(UsageError, match=r"no row has the licence 'CC BY 4'; did you mean 'CC BY 4.0'\?"):
            datasets.load_dataset("imaginet", data_dir=str(root), licenses="CC BY 4")
        with pytest.raises(UsageError, match="did you mean 'commercial'"):
            datasets.load_dataset("imaginet", data_dir=str(root), licenses="comercial")
        with pytest.raises(UsageError, match=r"one of 'CC BY 4.0' \(7\), 'CC BY-NC 4.0' \(7\)"):
            datasets.load_dataset("imaginet", data_dir=str(root), licenses="zzz")
        text = (root / "annotations.csv").read_text().replace("CC BY 4.0", "CC BY-NC 4.0")
        (root / "annotations.csv").write_text(text)
        with pytest.raises(UsageError, match=r"licenses=commercial leaves nothing of 20 images, whose licences are"):
            datasets.load_dataset("imaginet", data_dir=str(root), licenses="commercial")

    def test_mini_says_so_before_it_is_made(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"leaves nothing of 2,400 images, .* \(2,400\);"):  # of both splits
            datasets.load_dataset("imaginet", "mini", licenses="commercial", cache_dir=str(tmp_path))
        with pytest.raises(UsageError, match="no row has the licence 'CC0'"):
            datasets.load_dataset("imaginet", "mini", licenses="CC0", cache_dir=str(tmp_path))
        assert not any(tmp_path.rglob("*.png"))

    def test_rows_of_a_built_folder(self, tmp_path: Path) -> None:
        root = mixed(tmp_path / "root")
        build_repository(root, tmp_path / "out", render_card=dataset_card)
        rows = load_rows(tmp_path / "out", "detection", "train", licenses="commercial")
        assert set(rows["license"]) == {"CC BY 4.0"} and set(rows["path"]) < listed(root, "CC BY 4.0")
        made = load_rows(tmp_path / "out", "identification", "train", licenses="CC BY 4.0")
        assert set(made["path"]) < set(rows["path"])
        with pytest.raises(UsageError, match=r"did you mean .CC BY 4\.0."):
            load_rows(tmp_path / "out", "detection", "train", licenses="CC-BY 4.0")


class TestBuild:
    def test_selected_is_not_damaged(self, tmp_path: Path) -> None:
        root = mixed(tmp_path / "root")
        for path in listed(root, "all rights reserved"):
            (root / path).write_bytes(b"damaged, but not asked for")
        report = build_repository(root, tmp_path / "out", licenses="redistributable", render_card=dataset_card)
        assert report["images"] == 14 and report["left_out"] == [] and "partial" not in report
        assert report["selected"] == {
            "licenses": ["redistributable"],
            "left_out": [{"source": "me", "license": "all rights reserved", "images": 6}],
        }
        assert report["rights"] == [
            {"license": "CC BY 4.0", "source": "me", "images": 7, "commercial_use": Y, "redistribution": Y},
            {"license": "CC BY-NC 4.0", "source": "me", "images": 7, "commercial_use": N, "redistribution": Y},
        ]
        assert report["class_names"]["generator"] == ["SD v2.1", "NewNet 3", "real"]
        text = (tmp_path / "out" / "NOTICE").read_text(encoding="utf-8")
        assert text == notice(report["rights"]) and "7 images: CC BY-NC 4.0" in text and "reserved" not in text

    def test_without_a_selection(self, make_root: MakeRoot, tmp_path: Path) -> None:
        report = build_repository(make_root(), tmp_path / "out", render_card=dataset_card)
        assert "selected" not in report and report["rights"][0]["images"] == 20


class TestFetch:
    def test_nothing_of_the_others(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        published = Published.make(tmp_path, 2)
        for name, value in ACCOUNTS.items():
            monkeypatch.setenv(name, value)
        with Mirror(published.origin, **GATES) as mirror:
            for name, value in mirror.environ().items():
                monkeypatch.setenv(name, value)
            published.fetch(mirror, tmp_path / "root", ["imaginet", "coco"], licenses="commercial")
            published.complete(tmp_path / "root", ["imaginet"])
            assert not any("val2017" in request.path for request in mirror.requests)
            options = {"annotations": str(published.lists), "cache_dir": str(tmp_path / "cache")}
            rows = datasets.load_dataset("imaginet", licenses="commercial", split="test", **options)
            assert set(rows["source"]) == {"imaginet"} and len(rows) == 2
            cached = tmp_path / "cache" / "imaginet-root"
            published.complete(cached, ["imaginet"])
            mirror.forget()
            again = datasets.load_dataset("imaginet", licenses=["commercial"], split="test", **options)
            assert again.cache_files == rows.cache_files and mirror.requests == []
            stream = datasets.load_dataset("imaginet", licenses="commercial", split="test", streaming=True, **options)
            assert [row["path"] for row in stream] == list(rows["path"])
            with pytest.raises(UsageError, match="leaves nothing of 2 images"):
                datasets.load_dataset("imaginet", licenses="commercial", only="coco", **options)
            with pytest.raises(UsageError, match=r"no row has the licence .CC BY 4\.0."):
                plan_fetch(tmp_path / "root", annotations=published.lists, only=["coco"], licenses="CC BY 4.0")
            plan, _ = plan_fetch(
                tmp_path / "new", annotations=published.lists, licenses=["CC BY 4.0", "CC BY-NC-SA 4.0"]
            )
            assert plan.listed == 4


class TestReports:
    def test_of_a_root_and_of_its_build(self, tmp_path: Path) -> None:
        root = mixed(tmp_path / "root")
        build_repository(root, tmp_path / "out", render_card=dataset_card)
        counted: Counter[tuple[str, str]] = Counter()
        for row in table_rows():
            number = int(Path(row["path"]).stem)
            counted[("CC BY 4.0", "CC BY-NC 4.0", "all rights reserved")[number % 3], row["split"]] += 1
        of_build = licenses_report(tmp_path / "out")
        for file in (root / "pictures").iterdir():
            file.unlink()  # no image is read
        of_root = licenses_report(root)
        assert of_root["licenses"] == of_build["licenses"] and of_root["images"] == 20
        assert of_root["dataset"] == "root"
        for row in of_root["licenses"]:
            assert row["splits"] == {s: counted[row["license"], s] for s in ("train", "test")}
            assert row["images"] == sum(row["splits"].values()) and row["homepage"] is None
        text = licenses_text(of_root)
        assert "all rights reserved" in text and "redistribution: yes 14, no 6" in text

    def test_mini_need_not_be_made(self) -> None:
        report = licenses_report("mini")
        assert report["images"] == 2400 and report["licenses"][0]["splits"] == {"train": 1920, "test": 480}

    def test_imaginet_s_sources_are_quoted(self, tmp_path: Path) -> None:
        (tmp_path / "root").mkdir()
        lines = [f"{s.folders[0]}/{'a/' * (s.tail - 1)}x.png,0,0,4,8\n" for s in SOURCES]
        (tmp_path / "root" / "test_annotations.txt").write_text("".join(lines))
        report = licenses_report(tmp_path / "root")
        assert {row["source"]: row["homepage"] for row in report["licenses"]} == {s.key: s.homepage for s in SOURCES}
        text = notice(report["licenses"])
        for source in SOURCES:
            assert source.license in text and source.citation in text and source.homepage in text


HOSTILE = "\x1b[2JCC0\n\nSource: me\n  9 images: CC0\r\u202e# [x](javascript:1) | `" + "x" * 1000


class TestNotice:
    def test_credits_of_mini(self) -> None:
        text = notice(rights_rows(Counter({(mini.LICENSE, MINI_SOURCE): 5})))
        for photo in mini.PHOTOGRAPHS.values():
            assert f"{photo.credit} ({photo.licence})" in text

    def test_what_was_stated(self) -> None:
        rows = rights_rows(Counter({("GRIP", "me"): 5}))
        assert "states the right to redistribute: GRIP; me." in notice(rows, stated=["me", "GRIP"])
        assert "redistribute: everything in it." in notice(rows, stated=["all"])
        assert "states" not in notice(rows).partition("rights holders")[2]
        withheld = [{"source": "a", "license": "b", "images": 1200}]
        assert "1,200 more images belong to it" in notice(rows, withheld=withheld)

    @pytest.mark.parametrize("column", ["license", "source"])
    def test_foreign_text_stays_on_its_line(self, column: str) -> None:
        pair = (HOSTILE, "me") if column == "license" else ("CC0", HOSTILE)
        rows = rights_rows(Counter({pair: 1}))
        report = {"dataset": HOSTILE, "images": 1, "licenses": rows}
        for text in (notice(rows, stated=[HOSTILE]), licenses_text(report)):
            assert all(line.isprintable() for line in text.splitlines())
            assert len(re.findall(r"^Source: ", text, re.MULTILINE)) <= 1
            assert not re.search(r"^  9 images", text, re.MULTILINE)
            assert max(map(len, text.splitlines())) < 1200

    @pytest.mark.parametrize("column", ["license", "source"])
    def test_a_hundred_thousand_of_them(self, column: str) -> None:
        many = {
            (f"licence {n}", "me") if column == "license" else ("CC0", f"me {n}"): n % 7 + 1 for n in range(100_000)
        }
        begun = time.perf_counter()
        rows = rights_rows(many)
        text = notice(rows)
        told = licenses_text({"dataset": "x", "images": sum(many.values()), "licenses": rows})
        with pytest.raises(UsageError) as caught:
            from imaginet_hub.data.rights import allowed

            allowed(many, "licence nobody has")
        assert time.perf_counter() - begun < 20
        assert text.count("\n") < 400 and told.count("\n") < 400 and len(str(caught.value)) < 3000
        hidden = 99_980 if column == "license" else 99_950
        assert f"{hidden:,} more" in text and f"{hidden:,} more" in told
        # nothing is lost from the sums
        listed = sum(int(n.replace(",", "")) for n in re.findall(r"([\d,]+) images(?:: | under)", text))
        assert listed == sum(many.values())

    @given(st.dictionaries(st.tuples(st.text(max_size=20), st.text(max_size=20)), st.integers(1, 9), min_size=1))
    def test_order_of_rows_says_nothing(self, counts: dict[tuple[str, str], int]) -> None:
        shuffled = random.Random(0).sample(list(counts.items()), len(counts))
        rows = rights_rows(dict(shuffled))
        assert notice(rows) == notice(rights_rows(counts)) == notice(rows[::-1])
