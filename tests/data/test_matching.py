"""Which stored file is which image: every known misspelling of names, and no guesses."""

from __future__ import annotations

import time
import unicodedata
from collections import Counter
from pathlib import Path

import pytest

from imaginet_hub.data.manifest import read_annotations
from imaginet_hub.data.matching import Finder, imagenet_basename, spellings
from imaginet_hub.data.sources import Source, source_named


def source(key: str) -> Source:
    found = source_named(key)
    assert found is not None
    return found


def match(key: str, wanted: list[str], names: list, **options: object) -> dict[str, object]:
    """Wanted path -> the name that was found for it."""
    finder: Finder = Finder(source(key), wanted, **options)  # type: ignore[arg-type]
    for name in names:
        taken = finder.offer(name, name)
        raw = name if isinstance(name, bytes) else name.encode(errors="surrogatepass")
        assert finder.may_want(raw) or not taken  # the quick look never loses a match
    return finder.found()


# --- the WikiArt names ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def paintings(shared: Path) -> list[str]:
    records = read_annotations(shared / "annotations" / "test_annotations.txt").records
    return [record.file for record in records if record.file.startswith("wikiart/")]


@pytest.fixture(scope="module")
def mojibake(paintings: list[str]) -> list[str]:
    names = [path for path in paintings if not path.isascii()]
    assert len(names) == 14
    return names


def _cp437(path: str) -> bytes | str:
    return path.encode().decode("cp437")


SPELLED = {
    "UTF-8 that says so": lambda path: path,
    "UTF-8 that does not say so": lambda path: path.encode(),
    "UTF-8 read as cp437": _cp437,
    "UTF-8 read as cp437, with UTF-8 bytes": lambda path: _cp437(path).encode(),  # type: ignore[union-attr]
    "UTF-8 read as Latin-1": lambda path: path.encode().decode("latin-1"),
    "Latin-1": lambda path: path.encode("latin-1"),
    "NFD": lambda path: unicodedata.normalize("NFD", path),
    "NFD in bytes": lambda path: unicodedata.normalize("NFD", path).encode(),
    "soft hyphen lost": lambda path: path.replace("\u00ad", ""),
    "as the painters spell themselves": lambda path: path.replace("ã", "Ã").encode("latin-1").decode(),
    "not lower-cased": lambda path: path.replace("ã", "Ã"),
    "a file name that is not UTF-8": lambda path: path.encode("latin-1").decode("utf-8", "surrogateescape"),
    "backslashes": lambda path: path.replace("/", "\\"),
}


@pytest.mark.parametrize("spelling", SPELLED)
def test_wikiart_names(paintings: list[str], mojibake: list[str], spelling: str) -> None:
    names = [SPELLED[spelling](path) for path in paintings]  # type: ignore[no-untyped-call]
    found = match("wikiart", paintings, names)
    assert len(found) == 2250
    assert all(found[path] == name for path, name in zip(paintings, names, strict=True))
    assert set(mojibake) <= set(found)


def test_the_14_names_among_all_others_without_their_folder(paintings: list[str], mojibake: list[str]) -> None:
    names = [_cp437(path.removeprefix("wikiart/")) for path in paintings]
    assert len(match("wikiart", mojibake, names)) == 14


def test_no_guess_between_two_that_look_alike() -> None:
    path = "wikiart/Realism/arnold-bã¶cklin_sea.jpg"
    one, two = "Realism/arnold-böcklin_sea.jpg", "Realism/arnold-bücklin_sea.jpg"
    assert match("wikiart", [path], [one]) == {path: one}
    assert match("wikiart", [path], [one, one]) == {path: one}
    assert match("wikiart", [path], [one, two]) == {}
    assert match("wikiart", [path], [one, path, two]) == {path: path}
    other = "wikiart/Realism/arnold-bé¶cklin_sea.jpg"
    assert match("wikiart", [path, other], [one]) == {}
    assert match("wikiart", [path], ["Romanticism/arnold-böcklin_sea.jpg"]) == {}
    assert match("wikiart", [path], ["Realism/arnold-bcklin_sea.jpg"]) == {}  # nothing says that something was lost


def test_parentheses_and_apostrophes(paintings: list[str]) -> None:
    odd = [path for path in paintings if "(" in path or "'" in path]
    assert len([path for path in odd if "'" in path]) == 2
    assert len([path for path in odd if "(" in path]) == 77
    assert match("wikiart", odd, [f"./x/{path}" for path in paintings]).keys() == set(odd)


def test_spellings() -> None:
    assert spellings("a\\b") == ["a/b"]
    assert spellings(b"plain") == ["plain"]
    assert spellings("ü".encode())[0] == "ü"
    assert spellings("ü".encode("latin-1")) == ["ⁿ", "ü"]
    assert spellings(b"\xfc".decode("utf-8", "surrogateescape")) == ["ⁿ", "ü"]
    assert spellings("\ud800") == ["\ud800"]
    assert spellings(unicodedata.normalize("NFD", "ü")) == ["ü"]


# --- folders --------------------------------------------------------------------------------------------------------


def test_photozilla_without_its_folder() -> None:
    wanted = ["photozilla/dataset/nature/1.jpg", "photozilla/other_dataset/nature/1.jpg"]
    names = ["dataset/nature/1.jpg", "other_dataset/nature/1.jpg", "nature/1.jpg", "1.jpg", "third/nature/1.jpg"]
    assert match("photozilla", wanted, names) == dict(zip(wanted, names[:2], strict=True))
    assert match("photozilla", wanted, [f"photozilla/{name}" for name in names]).keys() == set(wanted)
    assert match("photozilla", wanted, ["nature/1.jpg", "1.jpg"]) == {}


def test_311_names_repeat(shared: Path) -> None:
    """Every image of the test list is found in an archive that holds them all, and none for another."""
    records = read_annotations(shared / "annotations" / "test_annotations.txt").records
    by_source: dict[str, list[str]] = {}
    for record in records:
        by_source.setdefault(record.source, []).append(record.file)
    basenames = Counter(path.rpartition("/")[2] for paths in by_source.values() for path in paths)
    assert sum(count > 1 for count in basenames.values()) == 311
    for key, paths in by_source.items():
        found = match(key, paths, paths)
        assert found == {path: path for path in paths}, key


def test_progan_train_is_not_progan_val() -> None:
    val, train = "progan_val/cat/0_real/00001.png", "progan_train/cat/0_real/00001.png"
    assert match("cnndetection", [val], [train]) == {}
    assert match("cnndetection", [val, train], [train]) == {train: train}
    assert match("cnndetection", [val, train], [val, f"x/{train}"]) == {val: val, train: f"x/{train}"}
    assert match("cnndetection", [val], ["progan_val/dog/0_real/00001.png", "progan_val/cat/1_fake/00001.png"]) == {}
    # The nearest folder tells.
    assert match("cnndetection", [val], [f"progan_val/{train}"]) == {}
    assert match("cnndetection", [val], [f"progan_train/{val}"]) == {val: f"progan_train/{val}"}


def test_progan_without_its_folder_is_what_its_archive_says() -> None:
    """progan_train.zip holds cat/0_real/00001.png, and so does progan_val.zip."""
    val, train, name = "progan_val/cat/0_real/00001.png", "progan_train/cat/0_real/00001.png", "cat/0_real/00001.png"
    assert match("cnndetection", [val, train], [name]) == {}
    assert match("cnndetection", [val], [name]) == {}
    assert match("cnndetection", [val, train], [name], inside="/data/progan_train") == {train: name}
    assert match("cnndetection", [val, train], [name], inside="progan_val") == {val: name}
    assert match("cnndetection", [train], [name], inside="progan_val") == {}
    assert match("cnndetection", [val, train], [train], inside="progan_val") == {train: train}


@pytest.mark.parametrize("prefix", ["", "ILSVRC/Data/CLS-LOC/", "imagenet/", "deep/er/"])
def test_imagenet_in_both_conventions(prefix: str) -> None:
    val = "imagenet/ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_00000001.JPEG"
    train = "imagenet/ILSVRC/Data/CLS-LOC/train/n01440764/n01440764_10026.JPEG"
    hf_train = "imagenet/train/n01440764_10027_n01440764.JPEG"
    wanted = [val, train, hf_train]
    kaggle = ["val/ILSVRC2012_val_00000001.JPEG", "train/n01440764/n01440764_10026.JPEG", "train/n01440764_10027.JPEG"]
    hf = [
        "val/ILSVRC2012_val_00000001_n01751748.JPEG",
        "train/n01440764_10026_n01440764.JPEG",
        "n01440764_10027_n01440764.JPEG",
    ]
    other = ["val/ILSVRC2012_val_00000002.JPEG", "train/n01440765_10026.JPEG", "test/ILSVRC2012_test_00000001.JPEG"]
    for names in (kaggle, hf):
        found = match("imagenet", wanted, [prefix + name for name in (*other, *names)])
        assert found == {path: prefix + name for path, name in zip(wanted, names, strict=True)}


def test_imagenet_names() -> None:
    assert imagenet_basename("x/n01440764_10026.JPEG") == "n01440764_10026.JPEG"
    assert imagenet_basename("ILSVRC2012_val_00000001_n01751748.JPEG") == "ILSVRC2012_val_00000001.JPEG"
    assert imagenet_basename("ILSVRC2012_val_00000001.jpeg") == "ILSVRC2012_val_00000001.JPEG"
    for name in ("1.JPEG", "n1_1.JPEG", "ILSVRC2012_val_1.JPEG", "ILSVRC2012_val_00000001.png", "n01440764_x.JPEG"):
        assert imagenet_basename(name) is None


def test_imagenet_in_a_third_convention_goes_by_its_folders() -> None:
    wanted = ["imagenet/train/tench/0001.JPEG", "imagenet/train/shark/0001.JPEG"]
    names = ["train/tench/0001.JPEG", "train/shark/0001.JPEG", "0001.JPEG"]
    assert match("imagenet", wanted, names) == dict(zip(wanted, names, strict=False))


def test_ffhq_in_its_own_numbering() -> None:
    wanted = [f"ffhq/{n}.png" for n in "abc"]
    numbers = {f"ffhq/{n}.png": f"images1024x1024/00000/0000{i}.png" for i, n in enumerate("ab")}
    archive = ["00000.png", "00001.png", "00002.png"]
    assert match("ffhq", wanted, archive, aliases=numbers) == {wanted[0]: "00000.png", wanted[1]: "00001.png"}
    whole = [f"ffhq/{top}/00000/0000{n}.png" for top in ("thumbnails128x128", "images1024x1024") for n in range(9)]
    found = match("ffhq", wanted, [*whole, "in-the-wild-images/00000/00000.png"], aliases=numbers)
    assert list(found.values()) == [f"ffhq/images1024x1024/00000/0000{n}.png" for n in range(2)]


def test_danbooru_buckets() -> None:
    wanted = ["danbooru2021/274591.jpg", "danbooru2021/5000274591.jpg"]
    for size in ("original", "512px"):
        names = [f"danbooru2021/{size}/0591/274591.jpg", f"{size}/0591/5000274591.jpg", f"{size}/0591/591.jpg"]
        assert match("danbooru", wanted, names) == dict(zip(wanted, names, strict=False))
    finder: Finder[str] = Finder(source("danbooru"), wanted)
    for size in ("original", "512px"):
        finder.offer(f"{size}/0591/274591.jpg", size)
    assert finder.found() == {}
    assert finder.ambiguous() == {wanted[0]: ("original/0591/274591.jpg", "512px/0591/274591.jpg")}
    finder.offer("danbooru2021/274591.jpg", "flat")  # as in the list: no doubt
    assert finder.found() == {wanted[0]: "flat"}
    assert not finder.ambiguous()


def test_synthetic_images_need_their_folder() -> None:
    name = "0f0f0f0f-81cc-4eef-a89f-0cb9f211fa6f.png"
    assert match("imaginet", [f"dalle3/{name}"], [name, f"dalle3_addition/{name}", f"ffhq_stylegan/{name}"]) == {}
    assert match("imaginet", [f"dalle3/{name}"], [f"x/dalle3/{name}"])


def test_strange_names_match_nothing_and_lead_nowhere() -> None:
    wanted = ["val2017/000000000139.jpg"]
    names = ["", "/", ".", "..", "\\", b"", b"\xff", "../../val2017/000000000139.jpg", "a" * 70_000, "\0", "\ud800"]
    assert match("coco", wanted, names) == {}


OUT = [
    "../val2017/000000000139.jpg",
    "a/../../val2017/000000000139.jpg",
    "/val2017/000000000139.jpg",
    "\\val2017\\000000000139.jpg",
    "..\\val2017\\000000000139.jpg",
    "C:\\val2017\\000000000139.jpg",
    "c:val2017/000000000139.jpg",
    "\\\\server\\share\\val2017\\000000000139.jpg",
    b"x\xff/../val2017/000000000139.jpg",
    "v" * 5000 + "/val2017/000000000139.jpg",
    ("v" * 5000 + "/val2017/000000000139.jpg").encode(),
]


@pytest.mark.parametrize("name", OUT)
def test_names_that_lead_out_are_refused_and_remembered(name: str | bytes) -> None:
    wanted = ["val2017/000000000139.jpg", "val2017/000000000285.jpg"]
    finder: Finder[int] = Finder(source("coco"), wanted)
    raw = name if isinstance(name, bytes) else name.encode()
    assert finder.may_want(raw)
    assert finder.offer(name, 1) == [] and finder.found() == {}
    ((path, (why, handle)),) = finder.refusals().items()
    assert (path, handle) == (wanted[0], 1)
    assert ("leads out of the archive" in why) != (f"{len(name):,} characters" in why)
    assert len(why) < 200
    finder.offer(wanted[0], 2)  # an honest one wins, before or after
    assert finder.found() == {wanted[0]: 2} and finder.refusals() == {}
    finder.offer(name, 3)
    assert finder.found() == {wanted[0]: 2} and finder.refusals() == {}


def test_names_that_only_look_as_if_they_led_out() -> None:
    wanted = ["val2017/000000000139.jpg"]
    for name in (
        "./val2017/000000000139.jpg",
        "x..y/.../000000000139.jpg",
        "a\\val2017\\000000000139.jpg",
        "ab:/" + wanted[0],
    ):
        assert match("coco", wanted, [name]) == {wanted[0]: name}
    finder: Finder[str] = Finder(source("coco"), wanted)
    finder.offer(f"/home/me/{wanted[0]}", "mine", trusted=True)  # the user's own folder
    assert finder.found() == {wanted[0]: "mine"}


def test_thousands_of_refused_names_leave_one_reason_for_each_image() -> None:
    finder: Finder[int] = Finder(source("coco"), ["val2017/000000000139.jpg"])
    for number in range(10_000):
        finder.offer(f"../{number}/000000000139.jpg", number)
        finder.offer(f"../{number}.jpg", number)  # which nobody wants
    ((path, (why, handle)),) = finder.refusals().items()
    assert (path, handle) == ("val2017/000000000139.jpg", 0)
    assert "'../0/000000000139.jpg'" in why


def test_names_that_differ_in_case_are_two() -> None:
    wanted = ["danbooru2021/7.jpg"]
    assert match("danbooru", wanted, ["7.JPG", "7.jpg", "7.Jpg"]) == {wanted[0]: "7.jpg"}
    assert match("danbooru", wanted, ["7.JPG"]) == {}


def test_endless_names_take_no_time() -> None:
    """Normalising such a name takes seconds; an archive may hold thousands."""
    accents = "a" + "\u0315\u0300" * 15_000
    wanted = "wikiart/Realism/ãa.jpg"
    finder: Finder[int] = Finder(source("wikiart"), [wanted])
    started = time.process_time()
    for _ in range(100):
        assert not finder.may_want(f"Realism/{accents}.jpg".encode())
        assert not finder.offer(f"Realism/{accents}.jpg", 1)
    assert time.process_time() - started < 1
    assert finder.offer(f"{'x' * 900}/{wanted}", 1)


def test_speed() -> None:
    """40,000 wanted among 200,000; quick enough that reading them is what takes the time."""
    wanted = [f"danbooru2021/{n}.jpg" for n in range(0, 200_000, 5)]
    started = time.process_time()
    finder: Finder[int] = Finder(source("danbooru"), wanted)
    for n in range(200_000):
        name = b"original/%04d/%d.jpg" % (n % 1000, n)
        if finder.may_want(name):
            finder.offer(name.decode(), n)
    assert len(finder.found()) == 40_000
    assert time.process_time() - started < 6
