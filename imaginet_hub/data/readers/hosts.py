"""What an address of `sources` stands for: hosts that can be moved, and the manners of each.

`IMAGINET_ENDPOINTS="coco=http://host:1,github=http://...,drive=http://..."` moves a host without touching code: the
base takes the place of everything before `/val2017/<id>.jpg` and `/zips/...` (coco), `/<owner>/<repo>/<commit>/...`
(github), `/uc` and `/download` (drive), `/api/v1/...` (kaggle). Hugging Face moves with `HF_ENDPOINT`, and Kaggle with
`KAGGLE_API_ENDPOINT` or by name with `KAGGLE_API_ENVIRONMENT`, as everywhere; `IMAGINET_ENDPOINTS` comes before them.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import html.parser
import json
import os
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote, urlencode, urljoin, urlsplit

from imaginet_hub.data.access import hub_token, kaggle_authorization
from imaginet_hub.data.readers.http import Http, Remote, Response, TryAgain, origin_of, redacted, shown, split
from imaginet_hub.errors import FetchError, UsageError

__all__ = [
    "DriveFile",
    "Endpoints",
    "HubEntry",
    "HubFile",
    "KaggleFile",
    "PlainFile",
    "hub_files",
    "remote_for",
]

ENDPOINTS_VARIABLE = "IMAGINET_ENDPOINTS"
#: The hosts that have a variable of their own.
_OWN_VARIABLES = {"hf": "HF_ENDPOINT", "kaggle": "KAGGLE_API_ENDPOINT"}
#: Kaggle's other installations, as its own tools name them.
_KAGGLE_VARIABLE = "KAGGLE_API_ENVIRONMENT"
_KAGGLE_ENVIRONMENTS = {
    "PROD": "https://www.kaggle.com",
    "STAGING": "https://staging.kaggle.com",
    "ADMIN": "https://admin.kaggle.com",
    "QA": "https://qa.kaggle.com",
    "LOCALHOST": "http://localhost",
    "TEST": "http://localhost:7777",
}
_DEFAULTS = {
    # The S3 address of the bucket: the host name images.cocodataset.org has no certificate of its own.
    "coco": "https://s3.amazonaws.com/images.cocodataset.org",
    "github": "https://raw.githubusercontent.com",
    "drive": "https://drive.google.com",
    "hf": "https://huggingface.co",
    "kaggle": "https://www.kaggle.com",
}
_MAX_LISTING_BYTES = 64 * 1024**2
_KAGGLE_SETTINGS = "https://www.kaggle.com/settings"
_DRIVE_DOMAINS = (".google.com", ".googleusercontent.com")


@dataclass(frozen=True)
class Endpoints:
    """The base address of each host.

    Attributes:
        bases: by host: coco, github, drive, hf, kaggle.
        moved: the hosts that do not have their usual address.
    """

    bases: Mapping[str, str]
    moved: frozenset[str]

    @classmethod
    def resolve(cls, given: Mapping[str, str] | None = None) -> Endpoints:
        """From the environment and, before it, from `given`.

        Raises:
            UsageError: an unknown host or something that is not an http(s) address.
        """
        said = _from_environment() | {host: (base, "endpoints") for host, base in (given or {}).items()}
        for host, (base, where) in said.items():
            if host not in _DEFAULTS:
                # Not quoted unless it is a word: what stands there may be a piece of an address with a password.
                got = repr(host) if re.fullmatch(r"\w{1,20}", host) else "something else"
                raise UsageError(f"{where}: expected one of {', '.join(_DEFAULTS)}, got {got}")
            parts = split(base)
            if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
                name = "" if where in _OWN_VARIABLES.values() else f"{host}="
                raise UsageError(f"{where}: expected {name}http(s)://host[:port], got an unusable address")
        moved = {host: base for host, (base, _) in said.items()}
        bases = {host: base.rstrip("/").removesuffix("/api/v1") for host, base in (_DEFAULTS | moved).items()}
        return cls(bases, frozenset(host for host in bases if bases[host] != _DEFAULTS[host]))


def _from_environment() -> dict[str, tuple[str, str]]:
    """Host -> its base, and the variable that says so."""
    moved = {}
    if os.environ.get(_KAGGLE_VARIABLE):
        base = _KAGGLE_ENVIRONMENTS.get(os.environ[_KAGGLE_VARIABLE])
        if base is None:
            raise UsageError(
                f"{_KAGGLE_VARIABLE}: expected one of {', '.join(_KAGGLE_ENVIRONMENTS)}, got something else"
            )
        moved["kaggle"] = base, _KAGGLE_VARIABLE
    for host, variable in _OWN_VARIABLES.items():
        if os.environ.get(variable):
            moved[host] = os.environ[variable], variable
    for item in filter(None, (item.strip() for item in os.environ.get(ENDPOINTS_VARIABLE, "").split(","))):
        host, equals, base = item.partition("=")
        if not equals:
            raise UsageError(f"{ENDPOINTS_VARIABLE}: expected host=address,host=address, got an item without '='")
        moved[host.strip()] = base.strip(), ENDPOINTS_VARIABLE
    return moved


def remote_for(address: str, source: str, endpoints: Endpoints) -> Remote:
    """The file that an address of `sources` stands for."""
    host, _, where = address.partition(":")
    base = endpoints.bases[host]
    if host == "drive":
        return DriveFile(source, where, base, moved="drive" in endpoints.moved)
    if host == "hf":
        owner, name, file = where.split("/", 2)
        return HubFile(source, f"{owner}/{name}", file, base)
    if host == "kaggle":
        return KaggleFile(source, where, base)
    return PlainFile(source, f"{base}/{quote(where.lstrip('/'))}")


def hub_files(http: Http, repo: str, source: str, endpoints: Endpoints) -> dict[str, HubEntry]:
    """The files of a dataset repository on the Hub, by path.

    Raises:
        FetchError: the list cannot be had, or is none.
    """
    base = endpoints.bases["hf"]
    remote = HubListing(source, f"{base}/api/datasets/{repo}/revision/main?blobs=true", repo)
    data, _ = http.read(remote, max_bytes=_MAX_LISTING_BYTES)
    try:
        return {
            str(sibling["rfilename"]): HubEntry(
                int(sibling["size"]) if sibling.get("size") is not None else None,
                str(lfs["sha256"]) if (lfs := sibling.get("lfs")) and lfs.get("sha256") else None,
            )
            for sibling in json.loads(data)["siblings"]
        }
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise remote.error("format", "the Hub's list of files", f"{error!r}"[:120], remote.other_ways()) from error


@dataclass(frozen=True)
class HubEntry:
    """A file of a repository: its bytes, and its SHA-256 if it is a large one."""

    size: int | None
    sha256: str | None


class PlainFile(Remote):
    """A file that is simply there."""


class _SignedFile(Remote):
    """A file whose host answers with a redirect to a signed address elsewhere, which expires.

    It is remembered and renewed. Credentials go to the host itself and nowhere else.
    """

    def __init__(self, source: str, url: str) -> None:
        super().__init__(source, url)
        self._authorization: str | None = None
        self._signed: str | None = None
        self._lock = threading.Lock()

    def locate(self) -> tuple[str, dict[str, str]]:
        with self._lock:
            if self._signed is not None:
                return self._signed, {}
        return self._url, {"authorization": self._authorization} if self._authorization else {}

    def _expired(self, response: Response) -> TryAgain:
        """A signed address was refused."""
        with self._lock:
            if self._signed == response.url:  # else another thread has renewed it already
                self._signed = None
        got = f"HTTP {response.status} from {shown(response.url)}"
        return TryAgain(self.error("access", "a signed address that is honoured", got, self.other_ways()))

    def _remember(self, response: Response) -> None:
        if response.redirects and origin_of(response.url) != origin_of(self._url):
            with self._lock:
                self._signed = response.url


class HubFile(_SignedFile):
    """A file of a dataset repository on the Hub."""

    def __init__(self, source: str, repo: str, file: str, endpoint: str) -> None:
        import huggingface_hub

        url = huggingface_hub.hf_hub_url(repo, file, repo_type="dataset", revision="main", endpoint=endpoint)
        super().__init__(source, url)
        self._repo = repo
        self._authorization = _hub_authorization(self)

    def refused(self, response: Response) -> FetchError | TryAgain:
        # The Hub names its reason; a signed address that has expired does not.
        if response.url != self._url and "x-error-code" not in response.headers:
            return self._expired(response)
        gated = response.headers.get("x-error-code", "") == "GatedRepo"
        page = f"{shown(self._url).split('/resolve/')[0]}"
        if self._authorization is None:
            remedy = f"log in with `hf auth login` (or set HF_TOKEN) after accepting the terms on {page}"
        elif gated:
            remedy = f"accept the terms on {page} with the account of your token"
        else:
            remedy = f"check that your token may read {self._repo} (`hf auth whoami`), and the terms on {page}"
        return self.error(
            "access",
            f"access to {self._repo}",
            f"HTTP {response.status}" + (" (gated repository)" if gated else ""),
            f"{remedy}; or bring the files yourself with --from {self.source}=PATH",
        )

    def learn(self, response: Response) -> None:
        for url, headers in response.redirects:
            if origin_of(url) == origin_of(self._url):
                self.same("X-Linked-Etag", headers.get("x-linked-etag"))
        self._remember(response)
        self.same(f"ETag of {urlsplit(response.url).hostname}", response.headers.get("etag"))

    @property
    def version(self) -> str:
        """The Hub's own word where it gives one: which of its CDN's hosts answers, and with what ETag, may vary."""
        linked = self._version.get("X-Linked-Etag")
        return f"X-Linked-Etag={linked}" if linked is not None else super().version


def _hub_authorization(remote: Remote) -> str | None:
    token = hub_token()
    if token is not None and not re.fullmatch(r"[!-~]+", token):
        remedy = f"set HF_TOKEN anew, or log in again with `hf auth login`; or {remote.other_ways()}"
        raise remote.error("access", "a Hugging Face token of printable ASCII characters", "another", remedy)
    return f"Bearer {token}" if token is not None else None


class HubListing(Remote):
    """The Hub's description of a repository; it is another one each time something was pushed."""

    def __init__(self, source: str, url: str, repo: str) -> None:
        super().__init__(source, url)
        self._repo = repo
        self._authorization = _hub_authorization(self)

    def locate(self) -> tuple[str, dict[str, str]]:
        return self._url, {"authorization": self._authorization} if self._authorization else {}

    def refused(self, response: Response) -> FetchError | TryAgain:
        page = shown(self._url).replace("/api/", "/").partition("/revision/")[0]
        remedy = f"check that your token may read {self._repo} (`hf auth whoami`), and the terms on {page}"
        if self._authorization is None:
            remedy = f"log in with `hf auth login` (or set HF_TOKEN) after accepting the terms on {page}"
        remedy += f"; or {self.other_ways()}"
        return self.error("access", f"the list of {self._repo}'s files", f"HTTP {response.status}", remedy)


class KaggleFile(_SignedFile):
    """A file of a Kaggle competition or dataset, or all of it in one ZIP archive.

    Kaggle answers with a redirect to a signed address at Google's storage, which honours ranges and expires; for an
    archive it is remembered and renewed. Credentials go to Kaggle itself and nowhere else.

    Args:
        source: the key of the source it belongs to.
        where: `competitions/<slug>[/<file>]` or `datasets/<owner>/<slug>[/<file>]`.
        base: of Kaggle.
    """

    def __init__(self, source: str, where: str, base: str) -> None:
        kind, _, rest = where.partition("/")
        slug, _, file = rest.partition("/")
        if kind == "competitions":
            self._page = f"competitions/{slug}"
            path = f"download/{slug}/{quote(file)}" if file else f"download-all/{slug}"
            path = f"competitions/data/{path}"
        else:
            name, _, file = file.partition("/")
            self._page = f"datasets/{slug}/{name}"
            path = f"datasets/download/{slug}/{name}" + (f"/{quote(file)}" if file else "")
        super().__init__(source, f"{base}/api/v1/{path}")
        self._single = bool(file)
        self._competition = kind == "competitions"
        self._authorization = kaggle_authorization()
        if self._authorization is not None and not re.fullmatch(r"[ -~]+", self._authorization):
            remedy = f"create a new token at {_KAGGLE_SETTINGS}; or {self.other_ways()}"
            raise self.error("access", "Kaggle credentials of printable ASCII characters", "others", remedy)

    def refuses_with_400(self, response: Response) -> bool:
        return origin_of(response.url) != origin_of(self._url)  # Google's storage, of an address that has expired

    def refused(self, response: Response) -> FetchError | TryAgain:
        if origin_of(response.url) != origin_of(self._url):
            return self._expired(response)
        said = _kaggle_message(response.body, self._authorization)
        got = f"HTTP {response.status}" + (f" ({said})" if said else "")
        rules = f"https://www.kaggle.com/{self._page}/rules"
        of_rules = self._competition and re.search(r"\brules?\b", said, re.IGNORECASE) is not None
        unknown = response.status == 401 or re.search(r"authenti|credential|unauthori[sz]ed", said, re.IGNORECASE)
        if self._authorization is None:
            remedy = f"create a token at {_KAGGLE_SETTINGS}; set KAGGLE_API_TOKEN, or KAGGLE_USERNAME and KAGGLE_KEY"
            remedy += f"; accept the rules once on {rules}" if self._competition else ""
        elif "phone" in said.lower():
            remedy = f"verify a phone number at {_KAGGLE_SETTINGS} with the account of your token"
        elif unknown and not of_rules:
            remedy = (
                f"Kaggle does not know these credentials: create a new token at {_KAGGLE_SETTINGS}; set "
                "KAGGLE_API_TOKEN (which comes first), or KAGGLE_USERNAME and KAGGLE_KEY"
            )
        elif self._competition:
            remedy = (
                f"accept the rules once on {rules} with the account of your token (Kaggle may want a phone number of "
                f"it first: {_KAGGLE_SETTINGS})"
            )
        else:
            remedy = f"check on https://www.kaggle.com/{self._page} that your account may download it"
        remedy += f"; or bring the files yourself with --from {self.source}=PATH"
        return self.error("access", f"access to Kaggle's {self._page}", got, remedy)

    def learn(self, response: Response) -> None:
        if not self._single:
            self._remember(response)
        self.same(f"ETag of {urlsplit(response.url).hostname}", response.headers.get("etag"))

    def check(self, data: bytes, response: Response) -> None:
        """Compare a whole file with what Google's storage promises.

        Raises:
            FetchError: reason "corrupt".
        """
        hashes = re.findall(r"md5=([A-Za-z0-9+/]{22}==)", response.headers.get("x-goog-hash", ""))
        found = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
        if hashes and found not in hashes:
            raise self.error("corrupt", f"MD5 {hashes[0]} (of X-Goog-Hash)", found, self.other_ways())


def _kaggle_message(body: bytes, authorization: str | None) -> str:
    """What Kaggle says when it refuses, in a line; nothing if it repeats what was sent."""
    try:
        message = str(json.loads(body)["message"])
    except (ValueError, TypeError, LookupError, RecursionError):
        return ""
    secrets = (authorization or "").split(" ")[1:]
    with contextlib.suppress(binascii.Error, UnicodeDecodeError):
        secrets += [base64.b64decode(secret).decode().partition(":")[2] for secret in secrets]
    if any(secret and secret in message for secret in secrets):
        return ""
    return " ".join(redacted(message).split())[:200]


class DriveFile(Remote):
    """A file on Google Drive.

    A large file's first answer is a page that warns of unscanned content and holds a form; its address, once
    confirmed, serves ranges. Other pages (quota, sign-in) come with status 200 too.
    """

    def __init__(self, source: str, file_id: str, base: str, *, moved: bool) -> None:
        super().__init__(source, f"{base}/uc?{urlencode({'id': file_id, 'export': 'download'})}")
        self.address = f"{shown(base)}/uc?id={file_id}"
        self._base = base
        self._moved = moved
        self._confirmed: str | None = None
        self._lock = threading.Lock()

    def locate(self) -> tuple[str, dict[str, str]]:
        with self._lock:
            return self._confirmed or self._url, {}

    def refused(self, response: Response) -> FetchError | TryAgain:
        error = self.error("access", "a file that anybody may read", f"HTTP {response.status}", self.other_ways())
        return TryAgain(error, most=2) if self._forget(response) else error

    def _forget(self, response: Response) -> bool:
        """Whether it was the confirmed address that was asked; it has had its day then."""
        asked = response.redirects[0][0] if response.redirects else response.url
        with self._lock:
            if self._confirmed == asked:  # else another thread has renewed it already
                self._confirmed = None
        return asked != self._url

    def judge(self, response: Response, head: bytes | None) -> None:
        if "accounts.google." in (urlsplit(response.url).hostname or ""):
            raise self.error("access", "a file that anybody may read", "a sign-in page", self.other_ways())
        kind = response.headers.get("content-type", "").lower()
        if head is None or not (kind.startswith("text/html") or head[:64].lstrip().lower().startswith(b"<!doctype")):
            return
        text = head.decode("utf-8", errors="replace")
        form = _Form.find(text)
        confirmed = self._forget(response)
        if form is not None:
            if not confirmed:
                address = self._confirm(form, response.url)
                with self._lock:
                    self._confirmed = self._confirmed or address
            nothing = self.error("format", "the file", "a form to confirm, again and again", self.other_ways())
            raise TryAgain(nothing, counts=confirmed, most=2)
        lowered = text.lower()
        if "too many users" in lowered or "quota" in lowered:
            raise self.error(
                "quota",
                "the file",
                "Google Drive's page about its download quota",
                f"it is lifted within 24 hours: run the same command again then, or {self.other_ways()}",
            )
        if "accounts.google." in lowered or "sign in" in lowered or "need access" in lowered:
            raise self.error("access", "a file that anybody may read", "a sign-in page", self.other_ways())
        if "not found" in lowered or "does not exist" in lowered or "can't be found" in lowered:
            raise self.error("missing", "the file", "Google Drive's page that it is gone", self.other_ways())
        raise TryAgain(self.error("format", "the file", "a web page with status 200", self.other_ways()), most=2)

    def _confirm(self, form: _Form, page: str) -> str:
        """Where the form leads: to the moved host if there is one, else to Google alone."""
        query = urlencode(form.fields)
        if self._moved:
            return f"{self._base}/download?{query}"
        try:
            action = urljoin(page, form.action)
            parts = urlsplit(action)
            ours = origin_of(action)[0] == "https" and f".{parts.hostname}".endswith(_DRIVE_DOMAINS)
            leads = shown(action)
        except ValueError:
            ours, leads = False, "no address"
        if not ours:
            expected, got = "a form that leads to Google Drive", f"one that leads to {leads}"
            raise self.error("format", expected, got, self.other_ways())
        return f"{action}{'&' if parts.query else '?'}{query}"

    def learn(self, response: Response) -> None:
        self.same("ETag", response.headers.get("etag"))


class _Form(html.parser.HTMLParser):
    """The form with id `download-form`, if the page has one."""

    def __init__(self) -> None:
        super().__init__()
        self.action = ""
        self.fields: list[tuple[str, str]] = []
        self._inside = False
        self._seen = False

    @classmethod
    def find(cls, text: str) -> _Form | None:
        form = cls()
        # The parser gives up on some malformed declarations; a page like that is not Drive's.
        with contextlib.suppress(AssertionError, NotImplementedError):
            form.feed(text)
        return form if form._seen else None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {key: value or "" for key, value in attrs}
        if tag == "form" and values.get("id") == "download-form":
            self._inside = self._seen = True
            self.action = values.get("action", "")
        elif tag == "input" and self._inside and values.get("name"):
            self.fields.append((values["name"], values.get("value", "")))

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self._inside = False
