"""The plan: what is asked for and what is there decide it, and nothing else."""

from __future__ import annotations

import builtins
import json
import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from imaginet_hub.data.ledger import Entry
from imaginet_hub.data.manifest import Record
from imaginet_hub.data.plan import OWN, OnDisk, Options, human_bytes, make_plan
from imaginet_hub.data.sources import SOURCES, UNKNOWN_MEAN_BYTES, source_of
from imaginet_hub.errors import UsageError

_UUID = "4de7697c-81cc-4eef-a89f-0cb9f211fa6f"
#: A test image and a training image of each source.
PATHS = {
    "imagenet": [
        "imagenet/ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_00000001.JPEG",
        "imagenet/n01440764_1_n01440764.JPEG",
    ],
    "coco": ["val2017/000000000139.jpg", "train2017/000000000009.jpg"],
    "cnndetection": ["progan_val/cat/0_real/00091.png", "progan_train/cat/1_fake/00001.png"],
    "ffhq": [f"ffhq/{_UUID}.png", "ffhq/other.png"],
    "wikiart": ["wikiart/Baroque/a_b.jpg", "wikiart/Realism/a_b.jpg"],
    "danbooru": ["danbooru2021/7339.jpg", "danbooru2021/5018523.jpg"],
    "photozilla": ["photozilla/dataset/nature/1.jpg", "photozilla/other_dataset/portrait/1.jpg"],
    "journeydb": [f"journeydb/{_UUID}.jpg", "journeydb/x.jpg"],
    "imaginet": [f"dalle3/{_UUID}.png", f"sd_faces_fake/{_UUID}.webp"],
}


def record(path: str, split: str = "test") -> Record:
    source, license_ = source_of(path)
    return Record(path, "real", "photos", "real", "real", split, source, license_)


def entry(path: str, size: int, mtime: int) -> Entry:
    return Entry(path, "0" * 64, size, "coco", "s3", "x", "2026-01-01T00:00:00Z", "test", 1, 1, "PNG", mtime)


RECORDS = tuple(
    record(path, split) for n, split in enumerate(("test", "train")) for path in (p[n] for p in PATHS.values())
)
ALL = frozenset({"hf", "kaggle"})


def test_all_nine_sources_and_all_their_routes() -> None:
    """Which file comes by which routes, in which order, on a machine with every account."""
    plan = make_plan(RECORDS, OnDisk(), Options(credentials=ALL))
    assert plan.listed == 18
    assert plan.blocked == ()
    assert {part.source.key: [route.name for route in part.routes] for part in plan.parts} == {
        "imagenet": ["kaggle", "kaggle-zip", "hf-parquet", "packed"],
        "coco": ["s3", "zips", "packed"],
        "cnndetection": ["hf-zip", "hf-7z", "packed"],
        "ffhq": ["drive", "hf-zips", "packed"],
        "wikiart": ["drive", "kaggle", "kaggle-files", "packed"],
        "danbooru": ["drive", "hf-tars", "packed"],
        "photozilla": ["drive", "packed"],
        "journeydb": ["hf-tgz", "packed"],
        "imaginet": ["drive", "packed"],
    }
    assert "hf-tgz: a stream, read up to the last wanted image: up to 15 GB" in plan.text()
    assert "hf-7z: by range if it is stored; if not, all of it: about 75 GB to move" in plan.text()
    assert "packed: by range" not in plan.text()  # a way out, not what was asked for
    forced = make_plan(RECORDS, OnDisk(), Options(only=("coco",), routes={"coco": "packed"}, credentials=ALL))
    assert "packed: by range if it is stored; if not, all of it: about 144 GB to move" in forced.text()


def test_an_archive_that_several_sources_share_is_told_of_once() -> None:
    packed = {key: "packed" for key in ("coco", "ffhq", "wikiart")}
    plan = make_plan(RECORDS, OnDisk(free=10**9), Options(only=tuple(packed), routes=packed, credentials=ALL))
    assert plan.text().count("144 GB to move") == 1
    assert "until its images are out (once for all 3 sources)" in plan.text()
    disk = plan.text().splitlines()[-1]
    assert disk.endswith(" needed, and as much as an archive that has to be moved whole, see above; 1 GB are free")
    costs = [item["costs"] for item in plan.to_json()["fetch"]]  # type: ignore[attr-defined]
    assert len(costs) == 3 and all("144 GB" in cost for (cost,) in costs)
    one = make_plan(RECORDS, OnDisk(), Options(only=("ffhq",), routes=packed, credentials=ALL)).text()
    assert "144 GB to move" in one and "once for all" not in one
    usual = make_plan(RECORDS, OnDisk(free=10**9), Options(credentials=ALL)).text()
    assert "moved whole" not in usual and usual.endswith(" needed, 1 GB are free")


def test_a_path_forges_no_line_of_the_plan() -> None:
    plan = make_plan(RECORDS, OnDisk(), Options(only=("coco",), own={"coco": (Path("/x\n  ffhq\x1b[2J"),)}))
    assert "own (/x\\n  ffhq\\x1b[2J)" in plan.text()
    assert "\x1b" not in plan.text()


@pytest.mark.parametrize(
    ("known", "lost"),
    [
        ("", {"imagenet": "kaggle, kaggle-zip, hf-parquet", "journeydb": "hf-tgz"}),
        ("hf", {"imagenet": "kaggle, kaggle-zip"}),
        ("kaggle", {"imagenet": "hf-parquet", "journeydb": "hf-tgz"}),
    ],
)
def test_routes_without_the_account_that_they_need_are_left_out(known: str, lost: dict[str, str]) -> None:
    plan = make_plan(RECORDS, OnDisk(), Options(credentials=frozenset(filter(None, [known]))))
    got = {part.source.key: [route.name for route in part.routes] for part in plan.parts}
    for source in SOURCES:
        gone = [*lost.get(source.key, "").split(", "), *(["packed"] if known != "hf" else [])]
        left = [route.name for route in source.routes if route.name not in gone]
        assert got.get(source.key, []) == left
    for block in plan.blocked:
        assert got.get(block.source) is None
        assert block.reason == "access"
        assert "an account is needed (hf" in block.why
        assert f"--from {block.source}=PATH" in block.remedy


@pytest.mark.parametrize(("key", "route"), [(s.key, route) for s in SOURCES for route in s.routes])
def test_each_route_when_it_is_forced(key: str, route) -> None:  # type: ignore[no-untyped-def]
    plan = make_plan(RECORDS, OnDisk(), Options(only=(key,), routes={key: route.name}, credentials=ALL))
    got = {r.file: [way.name for way in part.routes] for part in plan.parts for r in part.records}
    refused = {r.file: block.reason for block in plan.blocked for r in block.records}
    for path in PATHS[key]:
        if path.split("/")[0] not in route.folders:
            assert refused[path] == "unknown"
        else:
            assert got[path] == [route.name]


def test_what_an_account_takes_is_told_where_one_lacks() -> None:
    """Each account's token and page, at the one place that stops the user."""
    plan = make_plan(RECORDS, OnDisk(), Options(only=("imagenet", "journeydb")))
    remedies = {block.source: block.remedy for block in plan.blocked}
    pages = {
        "imagenet": (
            "https://www.kaggle.com/settings",
            "KAGGLE_API_TOKEN",
            "https://www.kaggle.com/competitions/imagenet-object-localization-challenge/rules",
            "https://huggingface.co/settings/tokens",
            "https://huggingface.co/datasets/ILSVRC/imagenet-1k",
        ),
        "journeydb": ("hf auth login", "HF_TOKEN", "https://huggingface.co/datasets/JourneyDB/JourneyDB"),
    }
    for key, words in pages.items():
        assert all(word in remedies[key] for word in (*words, f"--from {key}=PATH"))
        assert remedies[key] in plan.text()
    assert "kaggle" not in remedies["journeydb"]
    forced = make_plan(RECORDS, OnDisk(), Options(only=("imagenet",), routes={"imagenet": "hf-parquet"}))
    assert forced.blocked[0].why == "an account is needed (hf)"


def test_what_moves_beyond_images_is_told() -> None:
    many = [record(f"danbooru2021/{n}.jpg") for n in range(1500)]
    plan = make_plan(many, OnDisk(), Options(credentials=ALL))
    assert "hf-tars: an index of about 1 MB for each archive that holds one: up to about 1 GB" in plan.text()
    few = make_plan(many[:7], OnDisk(), Options(credentials=ALL))
    assert few.to_json()["fetch"][0]["costs"][0].startswith(
        "hf-tars: an index of about 1 MB for each archive that holds one: up to about 7 MB;"
    )  # type: ignore[index]
    tables = make_plan(
        RECORDS, OnDisk(), Options(only=("imagenet",), routes={"imagenet": "hf-parquet"}, credentials=ALL)
    )
    assert (
        "hf-parquet: row groups of about a hundred images, for each that holds one: up to about 22 MB" in tables.text()
    )


def test_names_that_tell_nothing_are_asked_for_where_kaggle_has_its_files() -> None:
    here = record("imagenet/ILSVRC/Data/CLS-LOC/train/00000001.png")
    plan = make_plan([here, record("imagenet/00000002.png")], OnDisk(), Options(credentials=ALL))
    assert [(part.records, [route.name for route in part.routes]) for part in plan.parts] == [((here,), ["kaggle"])]
    assert [block.reason for block in plan.blocked] == ["format"]


def test_nothing_but_its_arguments_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("a plan looks at nothing")

    options = Options(own={"imagenet": (Path("/nowhere"),)}, limit=1)
    first = make_plan(RECORDS, OnDisk(), options)
    for module, name in ((os, "stat"), (os, "scandir"), (os, "listdir"), (builtins, "open"), (socket, "socket")):
        monkeypatch.setattr(module, name, never)
    monkeypatch.setattr(os, "environ", {})
    again = make_plan(RECORDS, OnDisk(), options)
    monkeypatch.undo()
    assert again == first
    assert again.text() == first.text()


def test_what_is_here_is_verified_once() -> None:
    a, b, c = (record(f"val2017/{n:012d}.jpg") for n in range(3))
    disk = OnDisk({a.file: (10, 5), b.file: (10, 6)}, {r.file: entry(r.file, 10, 5) for r in (a, b, c)})
    plan = make_plan((a, b, c), disk, Options())
    assert plan.verified == 1
    assert plan.unverified == (b,)  # touched since
    assert plan.parts[0].records == (c,)  # in the ledger, and gone
    bigger = make_plan((a,), replace(disk, files={a.file: (11, 5)}), Options())
    assert bigger.unverified == (a,)


def test_the_limit_counts_missing_files_of_each_source_in_list_order() -> None:
    coco = [record(f"val2017/{n:012d}.jpg") for n in (5, 3, 9, 1)]
    art = [record(f"wikiart/x/{n}.jpg") for n in (2, 1)]
    mixed = (coco[0], art[0], coco[1], coco[2], art[1], coco[3])
    disk = OnDisk({coco[0].file: (1, 1)}, {coco[0].file: entry(coco[0].file, 1, 1)})
    plan = make_plan(mixed, disk, Options(limit=2))
    assert [r.file for r in plan.parts[0].records] == [coco[1].file, coco[2].file]
    assert [r.file for r in plan.parts[1].records] == [art[0].file, art[1].file]
    assert plan.beyond_limit == 1
    assert make_plan(mixed, disk, Options(limit=0)).files == 0


def test_only() -> None:
    plan = make_plan(RECORDS, OnDisk(), Options(only=("coco", "wikiart")))
    assert plan.listed == 4
    assert [part.source.key for part in plan.parts] == ["coco", "wikiart"]
    assert not plan.blocked


def test_own_files_open_every_source() -> None:
    own = {key: (Path("/have") / key,) for key in PATHS}
    plan = make_plan(RECORDS, OnDisk(), Options(own=own))
    assert not plan.blocked
    assert plan.files == 18
    assert all(part.own == own[part.source.key] for part in plan.parts)
    assert plan.parts[1].ways == f"{OWN} (/have/coco), s3, zips"
    coco = {"coco": own["coco"]}
    forced = make_plan(RECORDS, OnDisk(), Options(only=("coco",), own=coco, routes={"coco": OWN}))
    assert forced.parts[0].routes == ()
    with pytest.raises(UsageError, match="--only leaves"):
        Options(only=("coco",), own=own)


def test_offline() -> None:
    plan = make_plan(RECORDS, OnDisk(), Options(offline=True, own={"coco": (Path("/x"),)}))
    assert [(part.source.key, part.routes) for part in plan.parts] == [("coco", ())]
    assert {block.reason for block in plan.blocked} == {"offline"}
    assert all("HF_HUB_OFFLINE" in block.why for block in plan.blocked)


def test_unknown_conventions_of_imagenet_fail_clearly_and_alone() -> None:
    odd = record("imagenet/train/tench/0001.JPEG", "train")
    plan = make_plan((odd, *RECORDS), OnDisk(), Options())
    block = next(block for block in plan.blocked if block.reason == "format")
    assert block.records == (odd,)
    assert repr(odd.path) in block.why
    assert "n########_#.JPEG" in block.remedy
    assert "coco" in {part.source.key for part in plan.parts}
    # With files of one's own, folders can tell what names do not.
    assert not make_plan((odd,), OnDisk(), Options(own={"imagenet": (Path("/x"),)})).blocked


def test_folders_that_nobody_knows() -> None:
    plan = make_plan((record("pictures/1.png"), record("1.png"), *RECORDS[1:2]), OnDisk(), Options())
    assert {block.reason for block in plan.blocked} == {"unknown"}
    assert plan.files == 1
    assert "'pictures'" in plan.text()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"only": ("cocoo",)}, "unknown source 'cocoo'; did you mean coco?"),
        ({"only": ("",)}, "unknown source ''"),
        ({"own": {"ffqh": ()}}, "did you mean ffhq?"),
        ({"routes": {"imagnet": "kaggle"}}, "did you mean"),
        ({"routes": {"coco": "zip"}}, "coco: unknown route 'zip'; did you mean zips?"),
        ({"routes": {"coco": "drive"}}, "expected one of own, s3, zips, packed"),
        ({"routes": {"coco": "own"}}, "--from coco=PATH"),
        ({"limit": -1}, "limit"),
    ],
)
def test_typing_errors(options: dict, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        Options(**options)
    assert words in str(caught.value)


def test_text_and_json_say_the_same() -> None:
    plan = make_plan(RECORDS, OnDisk(free=10**12), Options(limit=1))
    value = json.loads(json.dumps(plan.to_json()))
    assert sum(item["images"] for item in value["fetch"]) == plan.files == 7
    assert [path for item in value["fetch"] for path in item["paths"]] == [
        r.file for p in plan.parts for r in p.records
    ]
    assert value["bytes_estimate"] == plan.bytes
    text = plan.text()
    for item in (*value["fetch"], *value["blocked"]):
        assert item["source"] in text
    assert "1 TB are free" in text
    assert "18 images are listed" in text
    assert f"{plan.beyond_limit} are left for another time" in text


def test_disk() -> None:
    plan = make_plan(RECORDS, OnDisk(free=1000), Options())
    assert plan.lacks_disk
    assert not make_plan(RECORDS, OnDisk(free=plan.bytes), Options()).lacks_disk
    assert not make_plan(RECORDS, OnDisk(), Options()).lacks_disk
    photozilla = next(part for part in plan.parts if part.source.key == "photozilla")
    assert photozilla.bytes == 2 * UNKNOWN_MEAN_BYTES


def test_human_bytes() -> None:
    given = (0, 999, 1000, 815_585_330, 999_600, 10**12, 10**16)
    assert [human_bytes(n) for n in given] == ["0 B", "999 B", "1 kB", "816 MB", "1 MB", "1 TB", "1e+04 TB"]
