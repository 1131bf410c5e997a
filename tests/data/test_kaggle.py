"""Kaggle: who asks, what it says when it refuses, what it sends, and both kinds of archives."""

from __future__ import annotations

import base64
import gzip
import io
import json
import re
import shutil
import struct
import tarfile
import traceback
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from imaginet_hub.data.access import kaggle_authorization
from imaginet_hub.data.fetch import Summary
from imaginet_hub.data.ledger import FOLDER, read_ledger
from imaginet_hub.data.matching import kaggle_name, shown
from imaginet_hub.data.readers.hosts import Endpoints, KaggleFile, remote_for
from imaginet_hub.data.readers.http import Http
from imaginet_hub.data.ways import zipped as zipped_way
from imaginet_hub.demo.mirror import Fault, Mirror, Request, always, chain
from imaginet_hub.demo.staging import Member, write_zip
from imaginet_hub.errors import FetchError, UsageError
from tests.conftest import image_bytes
from tests.support.published import ACCOUNTS, FAST, GATES, Published

SECRET = "0123456789abcdef"
BASIC = "Basic " + base64.b64encode(f"reader:{SECRET}".encode()).decode()
IMAGENET = "kaggle/competitions/imagenet-object-localization-challenge"
WIKIART = "kaggle/datasets/steubk/wikiart"
RULES = "https://www.kaggle.com/competitions/imagenet-object-localization-challenge/rules"
SETTINGS = "https://www.kaggle.com/settings"
ACCENTED = "wikiart/Impressionism/joaquã\u00adn-sorolla_the-net-1893.jpg"
NAMES = [
    *(f"imagenet/ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_{n:08d}.JPEG" for n in range(1, 6)),
    *(f"imagenet/ILSVRC/Data/CLS-LOC/train/n01440764/n01440764_{n}.JPEG" for n in range(1, 4)),
    *(f"imagenet/n01443537_{n}_n01443537.JPEG" for n in range(1, 3)),
    *(f"wikiart/Baroque/painter_picture-{n}.jpg" for n in range(1, 4)),
    ACCENTED,
    "wikiart/Realism/antã³nio-de-carvalho-da-silva-porto_carro-de-bois.jpg",
    "wikiart/Realism/a_o'keeffe-s-(first)-100%.jpg",
    *(f"val2017/{n:012d}.jpg" for n in range(1, 4)),
]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    return Published.make(tmp_path_factory.mktemp("published"), names=NAMES)


@pytest.fixture
def mirror(published: Published) -> Iterator[Mirror]:
    with Mirror(published.origin, **GATES) as running:
        yield running


@pytest.fixture
def changing(published: Published, tmp_path: Path) -> Iterator[Mirror]:
    """A mirror of a copy, whose files may be replaced."""
    shutil.copytree(published.origin, tmp_path / "origin")
    with Mirror(tmp_path / "origin", **GATES) as running:
        yield running


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without any account."""
    for name in ("KAGGLE_CONFIG_DIR", "XDG_CONFIG_HOME", "KAGGLE_API_TOKEN", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ACCOUNTS.items():
        if name.startswith("KAGGLE"):
            monkeypatch.setenv(name, value)


def fetched(published: Published, mirror: Mirror, root: Path, key: str, route: str, **options: Any) -> Summary:
    return published.fetch(mirror, root, (key, "coco"), routes={key: route}, **options)


def file(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


# --- who asks -------------------------------------------------------------------------------------------------------

PAIR = json.dumps({"username": "reader", "key": SECRET})
#: Variables and files ({} is the home folder) -> the header.
PLACES: dict[str, tuple[dict[str, str], dict[str, str], str | None]] = {
    "nothing": ({}, {}, None),
    "a token": ({"KAGGLE_API_TOKEN": " KGAT_1 "}, {}, "Bearer KGAT_1"),
    "a long token": ({"KAGGLE_API_TOKEN": "K" * 5000}, {}, "Bearer " + "K" * 5000),
    "a file of a token": ({"KAGGLE_API_TOKEN": "{}/t"}, {"t": "KGAT_2\n"}, "Bearer KGAT_2"),
    "an empty file of a token": ({"KAGGLE_API_TOKEN": "{}/t"}, {"t": "\n", ".kaggle/kaggle.json": PAIR}, BASIC),
    "access_token": ({}, {".kaggle/access_token": "KGAT_3\n"}, "Bearer KGAT_3"),
    "access_token.txt": ({}, {".kaggle/access_token.txt": "KGAT_3\r\n"}, "Bearer KGAT_3"),
    "name and key": ({"KAGGLE_USERNAME": "reader", "KAGGLE_KEY": SECRET}, {}, BASIC),
    "a name alone": ({"KAGGLE_USERNAME": "reader"}, {}, None),
    "a key alone": ({"KAGGLE_KEY": SECRET}, {}, None),
    "a key alone and a file": ({"KAGGLE_KEY": "other"}, {".kaggle/kaggle.json": PAIR}, BASIC),
    "kaggle.json": ({}, {".kaggle/kaggle.json": PAIR}, BASIC),
    "kaggle.json below .config": ({}, {".config/kaggle/kaggle.json": PAIR}, BASIC),
    "kaggle.json below XDG_CONFIG_HOME": ({"XDG_CONFIG_HOME": "{}/x"}, {"x/kaggle/kaggle.json": PAIR}, BASIC),
    "kaggle.json elsewhere": ({"KAGGLE_CONFIG_DIR": "{}/k"}, {"k/kaggle.json": PAIR}, BASIC),
    "kaggle.json not where it should be": ({"KAGGLE_CONFIG_DIR": "{}/k"}, {".kaggle/kaggle.json": PAIR}, None),
    "the token comes first": (
        {"KAGGLE_API_TOKEN": "KGAT_1", "KAGGLE_USERNAME": "a", "KAGGLE_KEY": "b"},
        {".kaggle/access_token": "KGAT_3", ".kaggle/kaggle.json": PAIR},
        "Bearer KGAT_1",
    ),
    "its file comes before names": (
        {"KAGGLE_USERNAME": "a", "KAGGLE_KEY": "b"},
        {".kaggle/access_token": "KGAT_3"},
        "Bearer KGAT_3",
    ),
    "names come before files": (
        {"KAGGLE_USERNAME": "reader", "KAGGLE_KEY": SECRET},
        {".kaggle/kaggle.json": '{"username": "a", "key": "b"}'},
        BASIC,
    ),
    "an accent": (
        {"KAGGLE_USERNAME": "é", "KAGGLE_KEY": "k"},
        {},
        "Basic " + base64.b64encode("é:k".encode()).decode(),
    ),
    "not UTF-8": (
        {"KAGGLE_USERNAME": "\udce9", "KAGGLE_KEY": "k"},
        {},
        "Basic " + base64.b64encode(b"\xe9:k").decode(),
    ),
    **{
        f"kaggle.json: {text[:20]}": ({}, {".kaggle/kaggle.json": text}, None)
        for text in ("", "{", "[]", "7", '{"username": "a"}', '{"username": null, "key": null}', "[" * 60_000, "\0")
    },
}


@pytest.mark.parametrize("where", PLACES)
def test_credentials_are_looked_for_where_kaggles_tools_look(
    where: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables, files, expected = PLACES[where]
    for name, text in files.items():
        file(home / name, text)
    for name, value in variables.items():
        monkeypatch.setenv(name, value.replace("{}", str(home)))
    assert kaggle_authorization() == expected


@pytest.mark.parametrize("suffix", ["", "/", "/api/v1", "/api/v1/"])
def test_the_host_moves(suffix: str, mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    base = mirror.endpoints["kaggle"]
    usual = Endpoints.resolve()
    assert usual.bases["kaggle"] == "https://www.kaggle.com" and "kaggle" not in usual.moved
    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "TEST")
    assert Endpoints.resolve().bases["kaggle"] == "http://localhost:7777"
    monkeypatch.setenv("KAGGLE_API_ENDPOINT", base + suffix)
    assert Endpoints.resolve().bases["kaggle"] == base
    monkeypatch.setenv("IMAGINET_ENDPOINTS", f"kaggle=http://h:1{suffix}")
    assert Endpoints.resolve().bases["kaggle"] == "http://h:1", "what is ours comes first"
    assert Endpoints.resolve({"kaggle": f"http://h:2{suffix}"}).bases["kaggle"] == "http://h:2"
    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "SOMEWHERE")
    with pytest.raises(UsageError, match=r"^KAGGLE_API_ENVIRONMENT: expected one of PROD"):
        Endpoints.resolve()
    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "PROD")
    monkeypatch.delenv("IMAGINET_ENDPOINTS")
    for wrong in ("ftp://h", "h", "http://u:SECRET@h:port"):
        monkeypatch.setenv("KAGGLE_API_ENDPOINT", wrong)
        with pytest.raises(UsageError, match=r"^KAGGLE_API_ENDPOINT: expected http") as caught:
            Endpoints.resolve()
        assert "SECRET" not in str(caught.value)


# --- what it says when it refuses -----------------------------------------------------------------------------------


def said(status: int, message: str) -> Fault:
    return Fault(status=status, body=json.dumps({"code": status, "message": message}).encode())


#: What is wrong -> (credentials, the fault, words of the error, words that would mislead).
REFUSALS: dict[str, tuple[dict[str, str], Fault | None, tuple[str, ...], tuple[str, ...]]] = {
    "no credentials": (
        {},
        None,
        ("an account is needed", SETTINGS, "KAGGLE_API_TOKEN", RULES),
        ("does not know",),
    ),
    "a wrong key": (
        {"KAGGLE_USERNAME": "reader", "KAGGLE_KEY": "SENTINEL"},
        None,
        ("HTTP 401 (Unauthenticated)", "does not know these credentials", f"create a new token at {SETTINGS}"),
        ("accept the rules",),
    ),
    "a wrong token": (
        {"KAGGLE_API_TOKEN": "KGAT_SENTINEL"},
        None,
        ("HTTP 401 (Unauthenticated)", "does not know these credentials", "KAGGLE_API_TOKEN"),
        ("accept the rules",),
    ),
    "the rules": (
        ACCOUNTS,
        said(403, "You must accept this competition's rules before you'll be able to download files."),
        ("You must accept", f"accept the rules once on {RULES}", "phone number"),
        ("does not know", "create a"),
    ),
    "the rules, said otherwise": (ACCOUNTS, said(401, "Rules not accepted"), (RULES,), ("does not know",)),
    "403 and nothing else": (ACCOUNTS, Fault(status=403), ("HTTP 403", RULES), ("does not know",)),
    "403 and a web page": (ACCOUNTS, Fault(status=403, body=b"<html>" * 9000), ("HTTP 403", RULES), ("<html>",)),
    "403 of credentials": (ACCOUNTS, said(403, "Could not authenticate"), ("does not know",), ("accept the rules",)),
    "a phone number": (
        ACCOUNTS,
        said(403, "Please verify your phone number to continue"),
        (f"verify a phone number at {SETTINGS}",),
        ("does not know",),
    ),
    "an echo": (ACCOUNTS, said(403, f"no {BASIC}"), ("HTTP 403", RULES), (BASIC[6:],)),
    "an echo of the key": (ACCOUNTS, said(403, f"key {SECRET} may not"), ("HTTP 403", RULES), (SECRET,)),
    "an echo of an address": (
        ACCOUNTS,
        said(403, "see https://u:p4ss@h/?sig=s3cret"),
        ("see https://h/",),
        ("s3cret", "p4ss"),
    ),
    "not printable": ({"KAGGLE_API_TOKEN": "KGAT_SENTINEL\x01"}, None, ("printable ASCII", SETTINGS), ("\x01",)),
}


@pytest.mark.parametrize("route", ["kaggle", "kaggle-zip"])
@pytest.mark.parametrize("what", REFUSALS)
def test_refusals_are_told_apart(
    what: str, route: str, published: Published, mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables, fault, words, others = REFUSALS[what]
    for name, value in variables.items():
        if name.startswith("KAGGLE"):
            monkeypatch.setenv(name, value)
    if fault is not None:
        mirror.fault = always("/api/v1/", fault, host="kaggle")
    summary = fetched(published, mirror, tmp_path, "imagenet", route)
    assert set(summary.missing) == set(published.paths["imagenet"])
    for error in summary.missing.values():
        assert error.reason == "access"
        for word in (*words, "--from imagenet=PATH"):
            assert word in str(error), f"{word!r} is not in {error}"
        told = "".join(traceback.format_exception(error)) + repr(error) + json.dumps(summary.to_json())
        for word in (*others, "SENTINEL", SECRET):
            assert word not in told
    assert published.here(tmp_path) == set(published.paths["coco"])
    assert not any(request.host == "gcs" for request in mirror.requests)


def test_a_refusal_without_credentials(published: Published, mirror: Mirror) -> None:
    """The plan does not ask then; but a file may."""
    remote = remote_for(f"kaggle:{IMAGENET.partition('/')[2]}/x.jpg", "imagenet", Endpoints.resolve(mirror.endpoints))
    with Http(limits=FAST) as http, pytest.raises(FetchError) as caught:
        http.read(remote, max_bytes=100)
    for word in ("HTTP 401", f"create a token at {SETTINGS}", "KAGGLE_USERNAME and KAGGLE_KEY", RULES):
        assert word in str(caught.value)


def test_a_dataset_that_is_refused(published: Published, mirror: Mirror, tmp_path: Path, account: None) -> None:
    mirror.fault = always("/datasets/", said(403, "Permission denied"), host="kaggle")
    for route in ("kaggle", "kaggle-files"):
        summary = fetched(published, mirror, tmp_path / route, "wikiart", route)
        for error in summary.missing.values():
            assert "https://www.kaggle.com/datasets/steubk/wikiart" in str(error)
            assert "rules" not in str(error)


# --- where credentials go -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", [None, "KGAT_x"])
@pytest.mark.parametrize(("key", "route"), [("imagenet", "kaggle"), ("imagenet", "kaggle-zip"), ("wikiart", "kaggle")])
def test_credentials_go_to_kaggle_alone(
    key: str,
    route: str,
    token: str | None,
    published: Published,
    mirror: Mirror,
    tmp_path: Path,
    account: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if token:
        mirror.kaggle_tokens = frozenset({token})
        monkeypatch.setenv("KAGGLE_API_TOKEN", token)
    elsewhere = f"{mirror.endpoints['coco']}/elsewhere?sig=x"
    mirror.fault = chain(
        lambda r: Fault(redirect_to=elsewhere) if r.host == "kaggle" and r.number == 1 and "_1.J" in r.path else None,
    )
    summary = fetched(published, mirror, tmp_path, key, route)
    known = f"Bearer {token}" if token else BASIC
    for request in mirror.requests:
        given = request.headers.get("authorization")
        assert given == (known if request.host == "kaggle" else None), request
    assert {"kaggle", "gcs"} <= {request.host for request in mirror.requests}
    if route == "kaggle-zip" or key == "wikiart":
        assert summary.complete, summary.text()
        assert len([r for r in mirror.requests if r.host == "kaggle"]) == 1, "the signed address is remembered"
    for path in tmp_path.rglob("*"):
        if path.is_file() and FOLDER in path.parts:
            assert SECRET not in path.read_text() and BASIC not in path.read_text()


# --- what it sends --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("account")
@pytest.mark.parametrize(("key", "route"), [("imagenet", "kaggle"), ("wikiart", "kaggle-files")])
def test_zipped_files_are_unwrapped(
    key: str, route: str, published: Published, mirror: Mirror, tmp_path: Path
) -> None:
    mirror.kaggle_zips = r"."
    summary = fetched(published, mirror, tmp_path, key, route)
    assert summary.complete, summary.text()
    published.complete(tmp_path, (key, "coco"))
    assert {r.path.rpartition(".")[2] for r in mirror.requests if r.host == "gcs"} == {"zip"}


def zipped(members: list[Any], tmp_path: Path) -> bytes:
    return write_zip(tmp_path / "made.zip", members).read_bytes()


@pytest.mark.usefixtures("account")
def test_kinds_of_zips_around_a_file(published: Published, mirror: Mirror, tmp_path: Path) -> None:
    """However the name is spelled in it."""
    image = published.root / ACCENTED
    name = Path(ACCENTED).name
    kinds: dict[str, list[Any]] = {
        "its name": [(name, image)],
        "bytes of UTF-8": [(name.encode(), image)],
        "bytes of cp437": [("x\xe9.jpg".encode("cp437"), image)],
        "another name": [("y.jpg", image)],
        "a folder": [("folder/", b""), (f"folder/{name}", image)],
        "beside others": [("README", b"text"), (name, image)],
        "deflated, with a descriptor": [Member(name, image, deflate=True, descriptor=True)],
    }
    for kind, members in kinds.items():
        mirror.fault = always(name, Fault(status=200, body=zipped(members, tmp_path)), host="gcs")
        root = tmp_path / kind
        summary = fetched(published, mirror, root, "wikiart", "kaggle-files")
        assert summary.complete, f"{kind}: {summary.text()}"
        published.complete(root, ("wikiart", "coco"))


@pytest.mark.usefixtures("account")
def test_zips_that_are_none(published: Published, mirror: Mirror, tmp_path: Path) -> None:
    name, image = Path(ACCENTED).name, published.root / ACCENTED
    good = zipped([Member(name, image, deflate=True)], tmp_path)
    end = good.rindex(b"PK\5\6")
    start = struct.unpack_from("<I", good, end + 16)[0]
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr(name, bytes(300 << 20))
    kinds = {
        "cut": (good[:-30], "a ZIP archive"),
        "rubbish": (good[:200] + b"\xff" * 200 + good[400:], "deflated data"),
        "another sum": (good[: start + 16] + b"\0\0\0\0" + good[start + 20 :], "CRC32"),
        "a lie about its size": (good[: start + 24] + b"\1\0\0\0" + good[start + 28 :], "1 bytes"),
        "other files": (zipped([("a.jpg", image), ("b.jpg", image)], tmp_path), f"a ZIP archive that holds {name}"),
        "nothing": (zipped([("a/", b"")], tmp_path)[:-1] + b"\0", f"a ZIP archive that holds {name}"),
        "a bomb": (bomb.getvalue(), "314,572,800 bytes"),
        "encrypted": (good[: start + 8] + b"\1" + good[start + 9 :], "an encrypted member"),
        "nothing but its beginning": (b"PK\3\4", "a ZIP archive"),
    }
    for kind, (data, word) in kinds.items():
        mirror.fault = always(name, Fault(status=200, body=data), host="gcs")
        summary = fetched(published, mirror, tmp_path / kind, "wikiart", "kaggle-files")
        assert list(summary.missing) == [ACCENTED], kind
        error = summary.missing[ACCENTED]
        assert error.reason == "corrupt", f"{kind}: {error}"
        assert word in str(error), f"{kind}: {error}"
        published.here(tmp_path / kind)


@pytest.mark.usefixtures("account")
@pytest.mark.parametrize("lines", ["one", "two", "none", "other"])
def test_the_promised_sum_is_verified(lines: str, published: Published, mirror: Mirror, tmp_path: Path) -> None:
    """In one line or two; another image, complete, does not pass for the one that was asked for."""
    one, other = published.paths["imagenet"][:2]
    name = kaggle_name(one).rpartition("/")[2]  # type: ignore[union-attr]
    headers = {
        "one": {"X-Goog-Hash": "crc32c=AAAAAA==,md5=1B2M2Y8AsgTpgAmY7PhCfg=="},
        "two": {},
        "none": {"X-Goog-Hash": None},
        "other": {"X-Goog-Hash": "md5=!"},
    }[lines]
    if lines == "two":
        mirror.fault = always(name, Fault(wrong_bytes=True), host="gcs")
    else:
        body = (published.root / (one if lines != "one" else other)).read_bytes()
        mirror.fault = always(name, Fault(status=200, headers=headers, body=body), host="gcs")
    summary = fetched(published, mirror, tmp_path, "imagenet", "kaggle")
    if lines in ("none", "other"):
        assert summary.complete
    else:
        assert list(summary.missing) == [one]
        assert "MD5 " in str(summary.missing[one]) and "of X-Goog-Hash" in str(summary.missing[one])
        assert len([r for r in mirror.requests if r.host == "gcs" and r.path.endswith(name)]) == 3
    published.here(tmp_path)


# --- archives -------------------------------------------------------------------------------------------------------


def tar_gz(published: Published, names: list[str]) -> bytes:
    stream = io.BytesIO()
    with gzip.GzipFile(fileobj=stream, mode="wb", mtime=0) as packed, tarfile.open(fileobj=packed, mode="w") as tar:
        for name in names:
            tar.add(published.root / name, f"ILSVRC/Data/CLS-LOC/{kaggle_name(name)}")
    return stream.getvalue()


PATCHED = "imagenet_object_localization_patched2019.tar.gz"


@pytest.mark.usefixtures("account")
@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("parts", [1, 2])
def test_the_older_layout(deflate: bool, parts: int, published: Published, changing: Mirror, tmp_path: Path) -> None:
    """An archive in the archive is read as a stream, and told before."""
    names = published.paths["imagenet"]
    members: list[Any] = [("LOC_synset_mapping.txt", b"n01440764 tench\n")]
    for part in range(parts):
        inner = tmp_path / f"{part}.tar.gz"
        inner.write_bytes(tar_gz(published, names[part::parts]))
        members.append(Member(PATCHED if part == 0 else f"more {part}.tar.gz", inner, deflate=deflate))
    archive = write_zip(changing.origin / IMAGENET / "archive.zip", members)
    notes: list[str] = []
    root = tmp_path / "root"
    summary = fetched(published, changing, root, "imagenet", "kaggle-zip", show=notes.append)
    assert summary.complete, summary.text()
    published.complete(root, ("imagenet", "coco"))
    assert any(PATCHED in note and "which can only be read as a stream" in note for note in notes)
    moved = sum(r.sent for r in changing.requests if r.host == "gcs")
    assert moved < 1.1 * archive.stat().st_size + 70_000
    changing.forget()
    assert fetched(published, changing, root, "imagenet", "kaggle-zip").complete
    assert not changing.requests


@pytest.mark.usefixtures("account")
def test_a_stream_is_not_gone_on_with_in_another_archive(
    published: Published, changing: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept of how far a stream was read is of one archive's one version."""
    names, versions = published.paths["imagenet"], []
    real = zipped_way.stream_jobs

    def stream_jobs(tools: Any, source: Any, files: Any, *rest: Any) -> Any:
        versions.append([version for version, _ in files])
        return real(tools, source, files, *rest)

    monkeypatch.setattr(zipped_way, "stream_jobs", stream_jobs)
    halves = [tar_gz(published, names[::2]), tar_gz(published, names[1::2])]
    size = max(map(len, halves))
    for order in (halves, halves, halves[::-1]):  # of the same size
        members = [(PATCHED, order[0].ljust(size, b"\0")), ("a more.tar.gz", order[1].ljust(size, b"\0"))]
        write_zip(changing.origin / IMAGENET / "archive.zip", members)
        root = tmp_path / f"root{len(versions)}"
        summary = fetched(published, changing, root, "imagenet", "kaggle-zip")
        assert summary.complete, summary.text()
        published.complete(root, ("imagenet", "coco"))
    first, again, other = versions
    assert first == again
    assert not set(first) & set(other)
    places = [{version.split()[0] for version in each} for each in (first, other)]
    assert places[0] == places[1] and len(places[0]) == 2, "each has a place of its own, and keeps it"


@pytest.mark.usefixtures("account")
@pytest.mark.parametrize("deflate", [False, True])
def test_a_damaged_archive_in_the_archive_is_read_once(
    deflate: bool, published: Published, changing: Mirror, tmp_path: Path
) -> None:
    """The second has what the first one's damage took; nothing of either is asked for again."""
    names = published.paths["imagenet"]
    broken = tar_gz(published, names[:-1])
    broken = broken[: len(broken) * 3 // 4]
    made = tmp_path / "second"
    made.write_bytes(tar_gz(published, names[-1:]))
    (tmp_path / "first").write_bytes(broken)
    members = [Member(PATCHED, tmp_path / "first", deflate=deflate), Member("b.tgz", made, deflate=deflate)]
    archive = write_zip(changing.origin / IMAGENET / "archive.zip", members)
    notes: list[str] = []
    summary = fetched(published, changing, tmp_path / "root", "imagenet", "kaggle-zip", show=notes.append)
    assert names[-1] not in summary.missing
    assert 0 < len(summary.missing) < len(names)
    assert all("truncated or damaged" in str(error) for error in summary.missing.values())
    moved = sum(r.sent for r in changing.requests if r.host == "gcs")
    assert moved < 1.1 * archive.stat().st_size + 70_000
    assert any("from its beginning each time" in note for note in notes) == deflate
    published.here(tmp_path / "root")


@pytest.mark.usefixtures("account")
def test_other_tar_archives_in_the_archive(published: Published, changing: Mirror, tmp_path: Path) -> None:
    """Which no stream is read from; said before anything is promised."""
    archive, names = changing.origin / IMAGENET / "archive.zip", published.paths["imagenet"]
    for name in ("a.tar", "b.tar.bz2", "c.TAR.XZ", "d\x1b[2J.tar"):
        write_zip(archive, [(name, b"x" * 5000)])
        notes: list[str] = []
        summary = fetched(published, changing, tmp_path / "root", "imagenet", "kaggle-zip", show=notes.append)
        assert set(summary.missing) == set(names)
        for error in summary.missing.values():
            assert f"a tar archive that is not gzip-compressed: {shown(name)}" in str(error)
            assert "\x1b" not in str(error) and "--from imagenet=PATH" in str(error)
        assert not any("as a stream" in note for note in notes)
    write_zip(archive, [("a.tar", b"x" * 5000), ("e\x1b[2J.TGZ", tar_gz(published, names))])
    notes = []
    summary = fetched(published, changing, tmp_path / "root", "imagenet", "kaggle-zip", show=notes.append)
    assert summary.complete, summary.text()
    assert any("left out, a tar archive that is not gzip-compressed: 'a.tar'" in note for note in notes)
    assert any(r"'e\x1b[2J.TGZ'" in note for note in notes) and not any("\x1b" in note for note in notes)


@pytest.mark.usefixtures("account")
@pytest.mark.parametrize("encoding", ["utf-8", "cp437", "latin-1", "flag"])
@pytest.mark.parametrize("folder", ["", "wikiart/", "dataset/wikiart/"])
def test_spellings_in_wikiarts_archive(
    encoding: str, folder: str, published: Published, changing: Mirror, tmp_path: Path
) -> None:
    members: list[Any] = []
    for path in published.paths["wikiart"]:
        name = folder + path.partition("/")[2]
        stored: str | bytes = name
        if encoding != "flag":
            try:
                stored = name.encode(encoding)
            except UnicodeEncodeError:  # cp437 has no such letter: as tools leave it then
                stored = name.encode()
        members.append(Member(stored, published.root / path, deflate=True))
    write_zip(changing.origin / WIKIART / "archive.zip", [("classes.csv", b"a,b\n"), *members])
    summary = fetched(published, changing, tmp_path / "root", "wikiart", "kaggle")
    assert summary.complete, summary.text()
    published.complete(tmp_path / "root", ("wikiart", "coco"))


def test_wikiart_comes_from_kaggle_when_drive_does_not_give_it(
    published: Published, changing: Mirror, tmp_path: Path
) -> None:
    """Without any account: the archive first, and single files for what it lacks."""
    from imaginet_hub.data.fetch import fetch

    some = published.paths["wikiart"][::2]
    archive = changing.origin / WIKIART / "archive.zip"
    write_zip(archive, [(path.partition("/")[2], published.root / path) for path in some])
    changing.fault = always("/uc", Fault(page="quota"), host="drive")
    given = {"annotations": published.lists, "endpoints": changing.endpoints, "limits": FAST}
    summary = fetch(tmp_path / "root", only=("wikiart",), **given)  # type: ignore[arg-type]
    assert summary.complete, summary.text()
    routes = {path: entry.route for path, entry in read_ledger(tmp_path / "root").items()}
    assert routes == {p: "kaggle" if p in some else "kaggle-files" for p in published.paths["wikiart"]}
    asked = {r.path for r in changing.requests if r.host == "kaggle" and not r.path.endswith("/wikiart")}
    assert len(asked) == len(published.paths["wikiart"]) - len(some)


def test_an_archive_that_is_replaced_meanwhile(
    published: Published, changing: Mirror, tmp_path: Path, account: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from imaginet_hub.data.readers import runs

    monkeypatch.setattr(runs, "_RUN_BYTES", 10_000)
    archive = changing.origin / IMAGENET / "archive.zip"
    count = [0]

    def hook(request: Request) -> Fault | None:
        if request.host == "gcs" and request.range not in (None, (0, 0)):
            count[0] += 1
            if count[0] == 4:
                with zipfile.ZipFile(archive) as opened:
                    held = {info.filename: opened.read(info) for info in opened.infolist()}
                write_zip(tmp_path / "new.zip", [("more", b"x" * 99), *reversed(held.items())])
                (tmp_path / "new.zip").replace(archive)
        return None

    changing.fault = hook
    summary = fetched(published, changing, tmp_path / "root", "imagenet", "kaggle-zip", max_workers=2)
    assert summary.complete, summary.text()
    assert count[0] > 4
    published.complete(tmp_path / "root", ("imagenet", "coco"))


def test_addresses() -> None:
    """As Kaggle's own tools ask: folders kept, all else encoded."""
    where = Endpoints.resolve({"kaggle": "http://h/api/v1"})
    for address, expected in {
        "kaggle:competitions/c": "/competitions/data/download-all/c",
        "kaggle:competitions/c/a/b c.JPEG": "/competitions/data/download/c/a/b%20c.JPEG",
        "kaggle:datasets/o/d": "/datasets/download/o/d",
        "kaggle:datasets/o/d/é/100%?#.jpg": "/datasets/download/o/d/%C3%A9/100%25%3F%23.jpg",
    }.items():
        remote = remote_for(address, "x", where)
        assert isinstance(remote, KaggleFile)
        assert remote.locate()[0] == f"http://h/api/v1{expected}"
        assert not re.search(r"[?#]", remote.address)


@pytest.mark.usefixtures("account")
def test_files_by_their_place(published: Published, changing: Mirror, tmp_path: Path) -> None:
    """Names of no convention, where Kaggle has its files."""
    path = "imagenet/ILSVRC/Data/CLS-LOC/val/made up.JPEG"
    data = image_bytes(5, format_="JPEG")
    target = changing.origin / IMAGENET / "files" / path.removeprefix("imagenet/")
    target.write_bytes(data)
    (tmp_path / "lists").mkdir()
    file(tmp_path / "lists" / "test_annotations.txt", f"./{path},0,2,4,8\n")
    from imaginet_hub.data.fetch import fetch

    given = {"annotations": tmp_path / "lists", "endpoints": changing.endpoints, "limits": FAST}
    assert fetch(tmp_path / "root", **given).complete  # type: ignore[arg-type]
    assert (tmp_path / "root" / path).read_bytes() == data
