"""Fetching where nothing goes wrong: every source and route, people's own files, going on, and files already there."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from imaginet_hub.cli import main
from imaginet_hub.data.fetch import Summary, fetch
from imaginet_hub.data.ledger import FOLDER, read_ledger
from imaginet_hub.data.readers.http import Limits
from imaginet_hub.data.sources import KNOWN_CORRUPT, SOURCES, source_of
from imaginet_hub.demo.mirror import Fault, Mirror, Request, always
from imaginet_hub.demo.staging import DRIVE_IDS, FFHQ_INDEX_ID, Member, drive_id, stage, write_zip
from imaginet_hub.errors import DataNotFoundError, UsageError
from tests.conftest import image_bytes
from tests.support.published import ACCOUNTS, GATES

FAST = Limits(timeout_s=10.0, retries=2, backoff_s=0.01, max_backoff_s=0.05)
REMBRANDT = "wikiart/Baroque/rembrandt_woman-standing-with-raised-hands.jpg"
_UUID = "{:08x}-81cc-4eef-a89f-0cb9f211fa6f"
#: Train and test images of every source, with the names that make trouble.
PATHS = {
    "train": [
        "imagenet/ILSVRC/Data/CLS-LOC/train/n01440764/n01440764_10026.JPEG",
        "imagenet/train/n01443537_2_n01443537.JPEG",
        *(f"train2017/{n:012d}.jpg" for n in (9, 25, 30)),
        *(f"progan_train/cat/{kind}/00091.png" for kind in ("0_real", "1_fake")),
        *(f"ffhq/{_UUID.format(n)}.png" for n in range(3)),
        "wikiart/Realism/antã³nio-de-carvalho-da-silva-porto_carro-de-bois.jpg",
        "danbooru2021/5018523.jpg",
        "photozilla/dataset/nature/12221.jpg",
        *(f"journeydb/{_UUID.format(n)}.jpg" for n in range(2)),
        *(f"sd_faces_fake/{_UUID.format(n)}.webp" for n in range(2)),
        f"dalle3_addition2/{_UUID.format(0)}.png",
    ],
    "test": [
        "imagenet/ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_00000001.JPEG",
        *(f"val2017/{n:012d}.jpg" for n in (139, 285, 632)),
        *(f"progan_val/cat/{kind}/00091.png" for kind in ("0_real", "1_fake")),
        *(f"ffhq/{_UUID.format(n)}.png" for n in range(3, 6)),
        "wikiart/Impressionism/joaquã\u00adn-sorolla_the-net-1893.jpg",
        "wikiart/Baroque/a_o'keeffe-s-(first)-picture.jpg",
        REMBRANDT,
        "danbooru2021/7339.jpg",
        "danbooru2021/1007339.jpg",
        "photozilla/dataset/nature/1.jpg",
        "photozilla/dataset/bokeh/1.jpg",
        "photozilla/other_dataset/landscape/1.jpg",
        f"journeydb/{_UUID.format(2)}.jpg",
        "wikiart_stylegan/seed13884.png",
        f"dalle3/{_UUID.format(9)}.png",
    ],
}
EVERY = PATHS["train"] + PATHS["test"]
_FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP"}


def of(key: str, *splits: str) -> list[str]:
    return [path for split in splits or PATHS for path in PATHS[split] if source_of(path)[0] == key]


@dataclass(frozen=True)
class World:
    """The images, and what is published of them."""

    truth: Path
    origin: Path
    lists: Path

    def check(self, root: Path, paths: list[str]) -> None:
        """These images, and no others, are here; the ledger knows each."""
        here = {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file() and FOLDER not in p.parts}
        assert {path for path in here if not path.startswith("annotations/")} == set(paths)
        assert all((root / path).read_bytes() == (self.truth / path).read_bytes() for path in paths)
        entries = read_ledger(root)
        assert set(entries) == set(paths)
        for path, entry in entries.items():
            status = (root / path).stat()
            assert (entry.bytes, entry.mtime_ns) == (status.st_size, status.st_mtime_ns)

    def fetch(self, root: Path, mirror: Mirror | None = None, **options: object) -> Summary:
        nowhere = dict.fromkeys(("coco", "github", "drive", "hf", "kaggle"), "http://127.0.0.1:9")
        options = {"annotations": self.lists, "endpoints": mirror.endpoints if mirror else nowhere, **options}
        return fetch(root, limits=FAST, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    base = tmp_path_factory.mktemp("world")
    truth = base / "truth"
    (truth / "annotations").mkdir(parents=True)
    for split, paths in PATHS.items():
        rows = []
        for path in paths:
            file = truth / path
            file.parent.mkdir(parents=True, exist_ok=True)
            data = image_bytes(EVERY.index(path), (80, 60), _FORMATS[file.suffix.lower()])
            file.write_bytes(data)
            rows.append(f"./{path},0,0,4,8\n")
        (truth / "annotations" / f"{split}_annotations.txt").write_text("".join(rows))
    stage(truth, base / "origin", base / "own")
    return World(truth, base / "origin", base / "own" / "annotations")


@pytest.fixture
def mirror(world: World) -> Iterator[Mirror]:
    with Mirror(world.origin, virus_scan_over=20_000, **GATES) as mirror:
        yield mirror


@pytest.fixture
def accounts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ACCOUNTS.items():
        monkeypatch.setenv(name, value)


def copy_of(world: World, paths: list[str], folder: Path, strip: int = 0) -> Path:
    for path in paths:
        target = folder / Path(*Path(path).parts[strip:])
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(world.truth / path, target)
    return folder


# --- everything -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("accounts")
def test_everything(world: World, mirror: Mirror, tmp_path: Path) -> None:
    """Nine sources by their first routes, and nothing twice."""
    said: list[str] = []
    root = tmp_path / "root"
    summary = world.fetch(root, mirror, show=said.append)
    assert summary.complete
    assert not summary.known_corrupt
    world.check(root, EVERY)
    assert summary.fetched == Counter({source.key: len(of(source.key)) for source in SOURCES})
    entries = read_ledger(root)
    routes = {(entry.source, path.split("/")[0]): entry.route for path, entry in entries.items()}
    assert {key[0]: route for key, route in routes.items() if key[1] != "progan_train"} == {
        "imagenet": "kaggle",
        "coco": "s3",
        "cnndetection": "hf-zip",
        "ffhq": "drive",
        "wikiart": "drive",
        "danbooru": "drive",
        "photozilla": "drive",
        "journeydb": "hf-tgz",
        "imaginet": "drive",
    }
    assert routes["cnndetection", "progan_train"] == "hf-7z"
    for path, entry in entries.items():
        assert entry.license == source_of(path)[1]
        assert entry.split == ("train" if path in PATHS["train"] else "test")
        assert entry.when.endswith("Z")
        assert (entry.width, entry.height) == (80, 60)
    assert summary.bytes_moved == mirror.sent
    assert any(f"{len(EVERY)} images are listed" in text for text in said)
    before = mirror.sent
    again = world.fetch(root, mirror)
    assert again.complete
    assert (again.fetched, again.found, again.bytes_moved) == (Counter(), 0, 0)
    assert mirror.sent == before
    assert json.loads(json.dumps(again.to_json()))["verified_before"] == len(EVERY)


def test_without_accounts_two_sources_wait_and_the_others_go_on(
    world: World, mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = world.fetch(tmp_path / "root", mirror)
    waiting = [*of("imagenet"), *of("journeydb")]
    assert set(summary.missing) == set(waiting)
    assert {error.reason for error in summary.missing.values()} == {"access"}
    assert all("imaginet sources" in str(error) and "--from" in str(error) for error in summary.missing.values())
    world.check(tmp_path / "root", [path for path in EVERY if path not in waiting])
    listed = (tmp_path / "root" / FOLDER / "missing.txt").read_text().splitlines()
    assert {line.split("\t")[0] for line in listed} == set(waiting)
    assert f"missing: {len(waiting)}" in summary.text()
    # Once nothing is missing, nothing is listed.
    for name, value in ACCOUNTS.items():
        monkeypatch.setenv(name, value)
    assert world.fetch(tmp_path / "root", mirror).complete
    assert not (tmp_path / "root" / FOLDER / "missing.txt").exists()


@pytest.mark.usefixtures("accounts")
@pytest.mark.parametrize("split", ["train", "test"])
def test_split(world: World, mirror: Mirror, tmp_path: Path, split: str) -> None:
    assert world.fetch(tmp_path, mirror, split=split).complete
    world.check(tmp_path, PATHS[split])


def test_only_and_limit(world: World, mirror: Mirror, tmp_path: Path) -> None:
    summary = world.fetch(tmp_path, mirror, only=("coco", "wikiart"), limit=2)
    assert summary.complete
    world.check(tmp_path, [*of("coco")[:2], *of("wikiart")[:2]])
    assert summary.plan.beyond_limit == len(of("coco")) + len(of("wikiart")) - 4
    # The next ones.
    world.fetch(tmp_path, mirror, only=("coco",), limit=2)
    world.check(tmp_path, [*of("coco")[:4], *of("wikiart")[:2]])
    assert len([r for r in mirror.requests if r.host == "coco"]) == 4


# --- routes ---------------------------------------------------------------------------------------------------------

REMOTE = [(s.key, route) for s in SOURCES for route in s.routes]


@pytest.mark.usefixtures("accounts")
@pytest.mark.parametrize(("key", "route"), REMOTE, ids=[f"{key}-{route.name}" for key, route in REMOTE])
def test_each_route_by_force(world: World, mirror: Mirror, tmp_path: Path, key: str, route) -> None:  # type: ignore[no-untyped-def]
    summary = world.fetch(tmp_path, mirror, only=(key,), routes={key: route.name})
    wanted = [path for path in of(key) if path.split("/")[0] in route.folders]
    world.check(tmp_path, wanted)
    assert {entry.route for entry in read_ledger(tmp_path).values()} == {route.name}
    assert set(summary.missing) == set(of(key)) - set(wanted)
    asked = [request for request in mirror.requests if request.host != "github"]
    if key == "coco":
        assert all(("zips" in request.path) == (route.name == "zips") for request in asked)
    if key == "ffhq" and route.name != "packed":
        ids = {request.query["id"] for request in asked if request.host == "drive"}
        files = {drive_id(Path(path).name) for path in of("ffhq")}
        assert ids == (files if route.name == "drive" else {FFHQ_INDEX_ID})
        assert {request.host for request in asked} == ({"drive"} if route.name == "drive" else {"drive", "hf", "cdn"})


def test_routes_are_tried_in_order(world: World, mirror: Mirror, tmp_path: Path) -> None:
    """What the first one does not give comes by the second, and only that."""
    gone = of("coco")[1::2]
    mirror.fault = lambda request: Fault(status=404) if request.path.lstrip("/") in gone else None
    assert world.fetch(tmp_path / "coco", mirror, only=("coco",)).complete
    world.check(tmp_path / "coco", of("coco"))
    routes = {path: entry.route for path, entry in read_ledger(tmp_path / "coco").items()}
    assert routes == {path: "zips" if path in gone else "s3" for path in of("coco")}
    single = drive_id(Path(of("ffhq")[0]).name)
    mirror.fault = always(single, Fault(page="quota"))
    assert world.fetch(tmp_path / "ffhq", mirror, only=("ffhq",)).complete
    world.check(tmp_path / "ffhq", of("ffhq"))
    routes = {path: entry.route for path, entry in read_ledger(tmp_path / "ffhq").items()}
    assert routes == {path: "hf-zips" if path == of("ffhq")[0] else "drive" for path in of("ffhq")}


def test_wrong_pixels_are_not_a_face(world: World, tmp_path: Path) -> None:
    """A good picture, of the right size, under the wrong id."""
    origin = shutil.copytree(world.origin, tmp_path / "origin", copy_function=os.link)
    ids = [origin / "drive" / drive_id(Path(path).name) for path in of("ffhq")]
    other = ids[1].read_bytes()
    ids[0].unlink()
    ids[0].write_bytes(other)
    stream = io.BytesIO()
    with Image.open(ids[2]) as image:
        image.save(stream, "WEBP", lossless=True)
    ids[2].unlink()
    ids[2].write_bytes(stream.getvalue())  # the same pixels in other bytes: a face by its pixels
    with Mirror(origin) as mirror:
        summary = world.fetch(tmp_path / "root", mirror, only=("ffhq",), routes={"ffhq": "drive"})
        (error,) = summary.missing.values()
        assert list(summary.missing) == [of("ffhq")[0]]
        assert error.reason == "corrupt"
        assert "pixels with MD5" in str(error)
        assert (tmp_path / "root" / of("ffhq")[2]).read_bytes() == stream.getvalue()
        assert world.fetch(tmp_path / "root", mirror, only=("ffhq",)).complete  # by the other route


# --- what people have -----------------------------------------------------------------------------------------------


def pack(folder: Path, file: Path) -> Path:
    """A folder's files in an archive, without the folder's own name."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if file.suffix == ".zip":
        return write_zip(file, [(path.relative_to(folder).as_posix(), path) for path in files])
    with tarfile.open(file, "w:gz" if file.suffix == ".tgz" else "w") as archive:
        for path in files:
            archive.add(path, path.relative_to(folder).as_posix())
    return file


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "tgz", "folder of archives"])
def test_own_files_of_every_source(world: World, tmp_path: Path, kind: str) -> None:
    """No network at all."""
    own: dict[str, object] = {}
    for source in SOURCES:
        folder = copy_of(world, of(source.key), tmp_path / "have" / source.key)
        if kind == "folder":
            own[source.key] = folder
        elif kind == "folder of archives":
            (tmp_path / "packed" / source.key).mkdir(parents=True)
            for top in folder.iterdir():
                pack(top, tmp_path / "packed" / source.key / f"{top.name}.{'zip' if len(top.name) % 2 else 'tar'}")
            own[source.key] = tmp_path / "packed" / source.key
        else:
            own[source.key] = pack(folder, tmp_path / f"{source.key}.{kind}")
    summary = world.fetch(tmp_path / "root", own=own, routes=dict.fromkeys(own, "own"))
    assert summary.missing == {}
    world.check(tmp_path / "root", EVERY)
    assert summary.bytes_moved == 0
    assert {entry.route for entry in read_ledger(tmp_path / "root").values()} == {"own"}


def test_several_places_of_ones_own_and_the_network_for_the_rest(world: World, mirror: Mirror, tmp_path: Path) -> None:
    coco = of("coco")
    a = copy_of(world, coco[:2], tmp_path / "a")
    b = pack(copy_of(world, coco[1:3], tmp_path / "b"), tmp_path / "b.zip")
    (a / coco[0]).write_bytes(b"damaged")
    summary = world.fetch(tmp_path / "root", mirror, only=("coco",), own={"coco": [a, b]})
    assert summary.complete
    world.check(tmp_path / "root", coco)
    routes = [read_ledger(tmp_path / "root")[path].route for path in coco]
    assert routes == ["s3", "own", "own", "s3", "s3", "s3"]
    assert len([request for request in mirror.requests if request.host == "coco"]) == 4


def test_progan_train_never_passes_for_progan_val(world: World, mirror: Mirror, tmp_path: Path) -> None:
    """Its archive holds members of the same names, without the folder that would tell."""
    train, val = (f"progan_{half}/cat/0_real/00091.png" for half in ("train", "val"))
    assert (world.truth / train).read_bytes() != (world.truth / val).read_bytes()
    names = [path for path in of("cnndetection") if path.startswith("progan_train")]
    folder = copy_of(world, names, tmp_path / "have", strip=1)
    own = {"cnndetection": pack(folder, tmp_path / "progan_train.zip")}
    world.fetch(tmp_path / "a", only=("cnndetection",), own=own)
    world.check(tmp_path / "a", [path for path in of("cnndetection") if path.startswith("progan_train")])
    nameless = shutil.copy(own["cnndetection"], tmp_path / "download.zip")
    summary = world.fetch(tmp_path / "b", mirror, only=("cnndetection",), own={"cnndetection": nameless})
    assert summary.complete
    world.check(tmp_path / "b", of("cnndetection"))
    routes = {path: entry.route for path, entry in read_ledger(tmp_path / "b").items()}
    assert {route for path, route in routes.items() if path.startswith("progan_train")} == {"hf-7z"}


def test_imagenet_with_the_hubs_names(world: World, tmp_path: Path) -> None:
    for path in of("imagenet"):
        name = Path(path).stem.removesuffix("_n01443537")
        wnid = name.split("_")[0] if name[0] == "n" else "n01751748"
        target = tmp_path / "have" / f"{name}_{wnid}.JPEG"
        target.parent.mkdir(exist_ok=True)
        shutil.copy(world.truth / path, target)
    assert world.fetch(tmp_path / "root", only=("imagenet",), own={"imagenet": tmp_path / "have"}).complete
    world.check(tmp_path / "root", of("imagenet"))


@pytest.mark.parametrize("name", ["imagenet_object_localization_patched2019.tar.gz", "a.tar"])
def test_imagenet_as_a_tar_inside_a_zip(world: World, tmp_path: Path, name: str) -> None:
    """As Kaggle once packed it; today its ZIP holds the files themselves."""
    folder = copy_of(world, of("imagenet"), tmp_path / "have", strip=1)
    with tarfile.open(tmp_path / name, "w:gz" if name.endswith("gz") else "w") as archive:
        archive.add(folder, "")
    outer = write_zip(tmp_path / "outer.zip", [Member("LICENSE", b""), Member(name, tmp_path / name, deflate=True)])
    assert world.fetch(tmp_path / "root", only=("imagenet",), own={"imagenet": outer}).complete
    world.check(tmp_path / "root", of("imagenet"))
    with outer.open("r+b") as stream:  # damaged inside, or no longer a ZIP archive
        stream.seek(600)
        stream.write(b"\xff" * 900)
    summary = world.fetch(tmp_path / "damaged", only=("imagenet",), own={"imagenet": outer})
    assert {error.reason for error in summary.missing.values()} <= {"corrupt", "missing"}


def test_ffhq_in_its_own_numbering_with_its_index_beside_it(world: World, tmp_path: Path) -> None:
    index = json.loads((world.origin / "drive" / FFHQ_INDEX_ID).read_text())
    (tmp_path / "have").mkdir()
    shutil.copy(world.origin / "drive" / FFHQ_INDEX_ID, tmp_path / "have" / "ffhq-dataset-v2.json")
    for entry in index.values():
        file = tmp_path / "have" / entry["image"]["file_path"]
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(world.origin / "drive" / entry["image"]["file_url"].split("id=")[1], file)
        small = Path(str(file).replace("images1024x1024", "thumbnails128x128"))
        small.parent.mkdir(parents=True, exist_ok=True)
        small.write_bytes(image_bytes(1000))
    assert world.fetch(tmp_path / "root", only=("ffhq",), own={"ffhq": tmp_path / "have"}).complete
    world.check(tmp_path / "root", of("ffhq"))


def test_two_sizes_of_a_picture_are_named_and_not_guessed(world: World, tmp_path: Path) -> None:
    path = of("danbooru")[0]
    for size in ("original", "512px"):
        file = tmp_path / "have" / size / "0523" / Path(path).name
        file.parent.mkdir(parents=True)
        file.write_bytes(image_bytes(500 + len(size), format_="JPEG"))
    own = {"danbooru": tmp_path / "have"}
    summary = world.fetch(tmp_path / "root", only=("danbooru",), own=own, routes={"danbooru": "own"})
    assert "two: " in str(summary.missing[path])
    assert "original" in str(summary.missing[path])
    own = {"danbooru": tmp_path / "have" / "original"}
    summary = world.fetch(tmp_path / "root", only=("danbooru",), own=own, routes={"danbooru": "own"})
    assert path not in summary.missing


def test_a_folder_with_the_same_archive_twice(world: World, tmp_path: Path) -> None:
    """Each file is taken once, and nothing is put aside; a broken archive beside them is no harm."""
    folder = copy_of(world, of("coco"), tmp_path / "have")
    (tmp_path / "packed").mkdir()
    for name in ("a.zip", "b.zip", "c.tar", "e.tgz"):
        pack(folder, tmp_path / "packed" / name)
    (tmp_path / "packed" / "d.zip").write_bytes(b"PK\3\4 cut")
    own = {"coco": tmp_path / "packed"}
    assert world.fetch(tmp_path / "root", only=("coco",), own=own, routes={"coco": "own"}).complete
    world.check(tmp_path / "root", of("coco"))
    assert not (tmp_path / "root" / FOLDER / "replaced").exists()


def test_own_files_that_are_nothing(world: World, mirror: Mirror, tmp_path: Path) -> None:
    """Something else than was meant is told, and the network gives the files."""
    for name, data in (("a.7z", b"7z\xbc\xaf\x27\x1c..."), ("b.zip", b"PK\3\4 cut"), ("c.tgz", b"\x1f\x8b cut")):
        (tmp_path / name).write_bytes(data)
        own = {"coco": tmp_path / name}
        alone = world.fetch(tmp_path / f"{name} alone", only=("coco",), own=own, routes={"coco": "own"})
        assert len(alone.missing) == 6
        assert all(str(tmp_path / name) in str(error) for error in alone.missing.values())
        assert world.fetch(tmp_path / f"{name} root", mirror, only=("coco",), own=own).complete
    with pytest.raises(DataNotFoundError, match=r"--from coco="):
        world.fetch(tmp_path / "root", own={"coco": tmp_path / "absent"})


# --- what is there already ------------------------------------------------------------------------------------------


def test_files_that_are_there_are_taken_in(world: World, mirror: Mirror, tmp_path: Path) -> None:
    root = copy_of(world, EVERY, tmp_path / "root")
    summary = world.fetch(root, mirror)
    assert summary.complete
    assert summary.found == len(EVERY)
    assert sum(summary.fetched.values()) == 0
    assert {request.host for request in mirror.requests} <= {"github"}
    world.check(root, EVERY)
    assert {entry.route for entry in read_ledger(root).values()} == {"found"}


def test_going_on(world: World, mirror: Mirror, tmp_path: Path) -> None:
    """What a killed run left half-done is swept away, and only what is missing is fetched."""
    coco = of("coco")
    world.fetch(tmp_path, mirror, only=("coco",), limit=3)
    temporary = tmp_path / "val2017" / ".0123456789abcdef.incomplete"
    temporary.parent.mkdir(exist_ok=True)
    temporary.write_bytes(b"half")
    theirs = tmp_path / "val2017" / ".theirs.incomplete"
    theirs.write_bytes(b"not ours")
    ledger = tmp_path / FOLDER / "ledger.jsonl"
    ledger.write_bytes(ledger.read_bytes()[:-40])  # and the last line is cut
    mirror.forget()
    summary = world.fetch(tmp_path, mirror, only=("coco",))
    assert (summary.found, summary.fetched["coco"]) == (1, 3)
    assert sorted(request.path for request in mirror.requests) == sorted(f"/{path}" for path in coco[3:])
    assert not temporary.exists()
    assert theirs.exists()
    theirs.unlink()
    world.check(tmp_path, coco)


def test_damaged_files_are_replaced_and_kept_aside(world: World, mirror: Mirror, tmp_path: Path) -> None:
    coco = of("coco")
    root = copy_of(world, coco, tmp_path / "root")
    cut = (root / coco[0]).read_bytes()[:-300]
    (root / coco[0]).write_bytes(cut)
    (root / coco[1]).write_bytes(b"<!DOCTYPE html>")
    (root / coco[2]).unlink()
    (root / coco[2]).mkdir()
    (root / coco[2] / "file").write_bytes(b"kept")
    (root / coco[3]).unlink()
    (root / coco[3]).symlink_to(root / "nowhere")
    (root / coco[4]).write_bytes(b"")
    summary = world.fetch(root, mirror, only=("coco",))
    assert summary.complete
    assert (summary.found, summary.fetched["coco"]) == (1, 5)
    world.check(root, coco)
    aside = root / FOLDER / "replaced"
    assert (aside / coco[0]).read_bytes() == cut
    assert (aside / coco[1]).read_bytes() == b"<!DOCTYPE html>"
    assert (aside / coco[2] / "file").read_bytes() == b"kept"
    # Changed after it was verified: looked at again, and replaced again.
    (root / coco[0]).write_bytes(cut[:-1])
    assert world.fetch(root, mirror, only=("coco",)).fetched["coco"] == 1
    world.check(root, coco)
    assert {path.read_bytes() for path in (aside / "train2017").glob(f"{Path(coco[0]).name}*")} == {cut, cut[:-1]}


def test_a_file_of_another_face_is_found_out(world: World, mirror: Mirror, tmp_path: Path) -> None:
    ffhq = of("ffhq")
    root = copy_of(world, ffhq, tmp_path / "root")
    shutil.copy(root / ffhq[1], root / ffhq[0])
    summary = world.fetch(root, mirror, only=("ffhq",))
    assert (summary.found, summary.fetched["ffhq"]) == (5, 1)
    world.check(root, ffhq)


def test_a_table_that_promises_checksums(world: World, tmp_path: Path) -> None:
    import hashlib

    good, bad = of("coco")[:2]
    digest = hashlib.sha256((world.truth / good).read_bytes()).hexdigest()
    table = tmp_path / "annotations.csv"
    table.write_text(f"path,label,split,sha256\n{good},real,train,{digest}\n{bad},real,test,{digest}\n")
    have = copy_of(world, [good, bad], tmp_path / "have")
    summary = world.fetch(tmp_path / "root", annotations=table, own={"coco": have}, routes={"coco": "own"})
    assert list(summary.missing) == [bad]
    assert f"SHA-256 {digest}" in str(summary.missing[bad])
    world.check(tmp_path / "root", [good])


# --- the member that is damaged everywhere --------------------------------------------------------------------------


@pytest.fixture
def corrupt(world: World, tmp_path: Path) -> Path:
    """An origin whose WikiArt archive is as it is: one member of it has another CRC."""
    origin = tmp_path / "origin"
    members = [
        Member(path.encode(), world.truth / path, n % 2 == 1, crc=0x90CCCC50 if path == REMBRANDT else None)
        for n, path in enumerate(of("wikiart"))
    ]
    write_zip(origin / "drive" / DRIVE_IDS["wikiart"], members)
    return origin


def test_a_member_that_is_damaged_everywhere(
    world: World,
    corrupt: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert REMBRANDT in KNOWN_CORRUPT
    rest = [path for path in of("wikiart") if path != REMBRANDT]
    with Mirror(corrupt, virus_scan_over=0) as mirror:
        summary = world.fetch(tmp_path / "root", mirror, only=("wikiart",))
        assert list(summary.known_corrupt) == [REMBRANDT]
        assert "CRC32 90cccc50" in str(summary.known_corrupt[REMBRANDT])
        assert summary.complete
        assert not summary.missing
        world.check(tmp_path / "root", rest)
        assert REMBRANDT in summary.text()
        assert summary.to_json()["known_corrupt"] == [REMBRANDT]
        for name, value in mirror.environ().items():
            monkeypatch.setenv(name, value)
        command = ["fetch", str(tmp_path / "cli"), "--only", "wikiart", "--annotations", str(world.lists)]
        assert main(command) == 0
        assert "damaged in every known copy" in capsys.readouterr().out
    # An intact copy is taken in like any file.
    have = copy_of(world, [REMBRANDT], tmp_path / "have")
    summary = world.fetch(tmp_path / "root", only=("wikiart",), own={"wikiart": have})
    assert summary.complete
    assert not summary.known_corrupt
    world.check(tmp_path / "root", of("wikiart"))


def test_the_same_member_is_missing_for_any_other_reason(world: World, corrupt: Path, tmp_path: Path) -> None:
    """A damaged copy excuses it, and an archive without it (some were mended that way); no host that fails."""
    with Mirror(corrupt, virus_scan_over=0, fault=always("", Fault(page="quota"), host="drive")) as mirror:
        summary = world.fetch(tmp_path / "a", mirror, only=("wikiart",))
    assert summary.missing[REMBRANDT].reason == "quota"
    assert not summary.known_corrupt
    rest = [path for path in of("wikiart") if path != REMBRANDT]
    have = copy_of(world, rest, tmp_path / "have")
    summary = world.fetch(tmp_path / "b", only=("wikiart",), own={"wikiart": have}, routes={"wikiart": "own"})
    assert summary.known_corrupt[REMBRANDT].reason == "missing"
    assert summary.complete


def test_any_other_damaged_member_is_missing(world: World, tmp_path: Path) -> None:
    path = of("danbooru")[0]
    members = [Member(p, world.truth / p, crc=7 if p == path else None) for p in of("danbooru")]
    write_zip(tmp_path / "origin" / "drive" / DRIVE_IDS["danbooru"], members)
    with Mirror(tmp_path / "origin") as mirror:
        summary = world.fetch(tmp_path / "root", mirror, only=("danbooru",))
    assert list(summary.missing) == [path]
    assert summary.missing[path].reason == "corrupt"
    assert not summary.known_corrupt
    assert not summary.complete


# --- the command ----------------------------------------------------------------------------------------------------


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.lstat().st_size, p.lstat().st_mtime_ns) for p in (folder, *folder.rglob("*"))}


@pytest.mark.parametrize("flags", [[], ["--json"]])
@pytest.mark.parametrize("there", [False, True])
def test_a_dry_run_writes_nothing(
    world: World,
    mirror: Mirror,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    there: bool,
) -> None:
    for name, value in mirror.environ().items():
        monkeypatch.setenv(name, value)
    root = tmp_path / "root"
    if there:
        copy_of(world, of("coco")[:2], root)
    before = tree(tmp_path)
    command = ["fetch", str(root), "--annotations", str(world.lists), "--dry-run", "--limit", "3", *flags]
    assert (
        main([*command, "--from", f"journeydb={world.origin / 'hf/JourneyDB/JourneyDB/data/train/imgs/000.tgz'}"]) == 0
    )
    assert tree(tmp_path) == before
    assert mirror.requests == []
    out = capsys.readouterr().out
    if flags:
        value = json.loads(out)
        assert {item["source"]: item["routes"] for item in value["fetch"]}["journeydb"] == ["own"]
        assert [p for item in value["fetch"] if item["source"] == "coco" for p in item["paths"]] == (
            of("coco")[2:5] if there else of("coco")[:3]
        )
        assert value["to_verify"] == 2 * there
        assert {(item["source"], item["reason"]) for item in value["blocked"]} == {("imagenet", "access")}
    else:
        assert f"{len(EVERY)} images are listed" in out
        assert "s3, zips" in out
        assert "not possible here: an account is needed (hf or kaggle)" in out


def test_the_command(
    world: World, mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in mirror.environ().items():
        monkeypatch.setenv(name, value)
    root = str(tmp_path / "root")
    base = ["fetch", root, "--annotations", str(world.lists), "--max-workers", "3"]
    assert main([*base, "--only", "coco, ffhq", "--split", "test", "--route", "coco=zips"]) == 0
    assert "6 of 6 images are here" in capsys.readouterr().out
    world.check(tmp_path / "root", [*of("coco", "test"), *of("ffhq", "test")])
    assert main([*base, "--quiet", "--only", "coco"]) == 0
    assert capsys.readouterr().out == ""
    assert main([*base, "--only", "imagenet", "--json"]) == 1
    value = json.loads(capsys.readouterr().out)
    assert value["complete"] is False
    assert {item["path"] for item in value["missing"]} == set(of("imagenet"))
    for name, account in ACCOUNTS.items():
        monkeypatch.setenv(name, account)
    assert main(base) == 0
    world.check(tmp_path / "root", EVERY)
    assert main(["verify", root, "--annotations", str(world.lists)]) == 0


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--only", "cocoo"], 2, "did you mean coco?"),
        (["--only", "coco,fhq"], 2, "did you mean ffhq?"),
        (["--route", "coco=zip"], 2, "did you mean zips?"),
        (["--route", "cocoa=zips"], 2, "did you mean coco?"),
        (["--route", "coco"], 2, "SOURCE=NAME, or the name of a route"),
        (["--route", "pakced"], 2, "SOURCE=NAME, or the name of a route, got 'pakced'; did you mean packed?"),
        (["--route", "s3", "--route", "zips"], 2, "one route for coco"),
        (["--route", "drive", "--only", "coco"], 2, "--route drive: --only leaves out what has such a route (ffhq, "),
        (["--route", "drive", "--only", "cocoo"], 2, "did you mean coco?"),
        (["--route", "coco="], 2, "SOURCE=..."),
        (["--route", "coco=s3", "--route", "coco=zips"], 2, "one route for coco"),
        (["--route", "coco=own"], 2, "--from coco=PATH"),
        (["--from", "coco"], 2, "SOURCE=..."),
        (["--from", "=/tmp"], 2, "SOURCE=..."),
        (["--from", "wikart=."], 2, "did you mean wikiart?"),
        (["--from", "coco=/nowhere/at/all"], 1, "--from coco=/nowhere/at/all"),
        (["--limit", "0"], 2, "positive"),
        (["--limit", "-1"], 2, "positive"),
        (["--limit", "many"], 2, "positive"),
        (["--max-workers", "0"], 2, "positive"),
        (["--split", "validation"], 2, "lists have train and test, got 'validation'"),
        (["--split", ""], 2, "lists have train and test, got ''"),
        (["--only", ""], 2, "expected names with commas"),
        (["--only", ","], 2, "expected names with commas"),
        (["--only", "coco", "--only", "nowhere"], 2, "unknown source 'nowhere'"),
        (["--dryrun"], 2, "did you mean --dry-run?"),
    ],
)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_wrong_command_lines(
    world: World,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    status: int,
    said: str,
    dry: list[str],
) -> None:
    command = ["fetch", str(tmp_path / "root"), "--annotations", str(world.lists), *words, *dry]
    try:
        got = main(command)
    except SystemExit as stopped:
        got = stopped.code  # type: ignore[assignment]
    captured = capsys.readouterr()
    assert got == status
    assert said in captured.err
    assert captured.err.count("\n") <= 3
    assert not (tmp_path / "root").exists() or not list((tmp_path / "root").rglob("*.jpg"))


def test_a_route_alone_stands_for_every_source_that_has_it(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in ACCOUNTS.items():
        monkeypatch.setenv(name, value)
    command = ["fetch", str(tmp_path / "root"), "--annotations", str(world.lists), "--dry-run", "--json", "--route"]
    assert main([*command, "packed"]) == 0
    planned = json.loads(capsys.readouterr().out)["fetch"]
    assert {item["source"]: item["routes"] for item in planned} == {source.key: ["packed"] for source in SOURCES}
    assert main([*command, "kaggle", "--only", "wikiart,coco"]) == 0
    planned = json.loads(capsys.readouterr().out)["fetch"]
    assert {item["source"]: item["routes"][0] for item in planned} == {"coco": "s3", "wikiart": "kaggle"}
    for order in (["packed", "--route", "coco=zips"], ["coco=zips", "--route", "packed"]):  # what names it wins
        assert main([*command, *order]) == 0
        planned = json.loads(capsys.readouterr().out)["fetch"]
        assert {item["source"]: item["routes"] for item in planned} == {
            source.key: ["zips" if source.key == "coco" else "packed"] for source in SOURCES
        }


def test_the_lists_that_are_named_must_be_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", str(tmp_path / "root"), "--annotations", str(tmp_path / "absent.txt")]) == 1
    (tmp_path / "bad.txt").write_text("what is this\n")
    assert main(["fetch", str(tmp_path / "root"), "--annotations", str(tmp_path / "bad.txt")]) == 1
    assert "line 1" in capsys.readouterr().err
    with pytest.raises(UsageError):
        fetch(tmp_path / "root", max_workers=0)


def test_unknown_conventions_of_imagenet_do_not_stop_the_others(world: World, mirror: Mirror, tmp_path: Path) -> None:
    lists = tmp_path / "lists"
    lists.mkdir()
    rows = ["./imagenet/train/tench/0001.JPEG,0,0,4,8\n", f"./{of('coco')[0]},0,0,4,8\n"]
    (lists / "train_annotations.txt").write_text("".join(rows))
    summary = world.fetch(tmp_path / "root", mirror, annotations=lists)
    (error,) = summary.missing.values()
    assert error.reason == "format"
    assert "tench" in str(error)
    assert "ILSVRC2012_val_########.JPEG" in str(error)
    world.check(tmp_path / "root", of("coco")[:1])


def test_one_file_a_connection_and_order(world: World, mirror: Mirror, tmp_path: Path) -> None:
    """With one worker, files are asked for in the order of the lists."""
    world.fetch(tmp_path, mirror, only=("coco",), max_workers=1)
    asked: list[Request] = [request for request in mirror.requests if request.host == "coco"]
    assert [request.path for request in asked] == [f"/{path}" for path in of("coco")]
