"""What an address of `sources` stands for: hosts that can be moved, and the manners of each.

`IMAGINET_ENDPOINTS="coco=http://host:1,github=http://...,drive=http://..."` moves a host without touching code: the
base takes the place of everything before `/val2017/<id>.jpg` and `/zips/...` (coco), `/<owner>/<repo>/<commit>/...`
(github), `/uc` and `/download` (drive). Hugging Face moves with `HF_ENDPOINT`, as everywhere.
"""

from __future__ import annotations

import contextlib
import html.parser
import os
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote, urlencode, urljoin, urlsplit

from imaginet_hub.data.access import hub_token
from imaginet_hub.data.readers.http import Remote, Response, TryAgain, origin_of, shown, split
from imaginet_hub.errors import FetchError, UsageError

__all__ = ["DriveFile", "Endpoints", "HubFile", "PlainFile", "remote_for"]

ENDPOINTS_VARIABLE = "IMAGINET_ENDPOINTS"
_HUB_VARIABLE = "HF_ENDPOINT"
_DEFAULTS = {
    # The S3 address of the bucket: the host name images.cocodataset.org has no certificate of its own.
    "coco": "https://s3.amazonaws.com/images.cocodataset.org",
    "github": "https://raw.githubusercontent.com",
    "drive": "https://drive.google.com",
    "hf": "https://huggingface.co",
}
_DRIVE_DOMAINS = (".google.com", ".googleusercontent.com")


@dataclass(frozen=True)
class Endpoints:
    """The base address of each host.

    Attributes:
        bases: by host: coco, github, drive, hf.
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
                name = "" if where == _HUB_VARIABLE else f"{host}="
                raise UsageError(f"{where}: expected {name}http(s)://host[:port], got an unusable address")
        moved = {host: base for host, (base, _) in said.items()}
        bases = {host: base.rstrip("/") for host, base in (_DEFAULTS | moved).items()}
        return cls(bases, frozenset(host for host in bases if bases[host] != _DEFAULTS[host]))


def _from_environment() -> dict[str, tuple[str, str]]:
    """Host -> its base, and the variable that says so."""
    moved = {}
    if os.environ.get(_HUB_VARIABLE):
        moved["hf"] = os.environ[_HUB_VARIABLE], _HUB_VARIABLE
    for item in filter(None, (item.strip() for item in os.environ.get(ENDPOINTS_VARIABLE, "").split(","))):
        host, equals, base = item.partition("=")
        if not equals:
            raise UsageError(f"{ENDPOINTS_VARIABLE}: expected host=address,host=address, got an item without '='")
        moved[host.strip()] = base.strip(), ENDPOINTS_VARIABLE
    return moved


def remote_for(address: str, source: str, endpoints: Endpoints) -> Remote:
    """The file that an address of `sources` stands for."""
    host, _, where = address.partition(":")
    base = endpoints.bases.get(host)
    if base is None:
        raise FetchError("not_yet", source, address, "a host that can be read", host, "use another --route")
    if host == "drive":
        return DriveFile(source, where, base, moved="drive" in endpoints.moved)
    if host == "hf":
        owner, name, file = where.split("/", 2)
        return HubFile(source, f"{owner}/{name}", file, base)
    return PlainFile(source, f"{base}/{quote(where.lstrip('/'))}")


class PlainFile(Remote):
    """A file that is simply there."""


class HubFile(Remote):
    """A file of a dataset repository on the Hub.

    The Hub answers with a redirect to a signed address that expires; it is remembered and renewed. The token goes to
    the Hub itself and nowhere else.
    """

    def __init__(self, source: str, repo: str, file: str, endpoint: str) -> None:
        import huggingface_hub

        url = huggingface_hub.hf_hub_url(repo, file, repo_type="dataset", revision="main", endpoint=endpoint)
        super().__init__(source, url)
        self._repo = repo
        self._token = hub_token()
        if self._token is not None and not re.fullmatch(r"[!-~]+", self._token):
            remedy = "set HF_TOKEN anew, or log in again with `hf auth login`"
            raise self.error("access", "a Hugging Face token of printable ASCII characters", "another", remedy)
        self._signed: str | None = None
        self._lock = threading.Lock()

    def locate(self) -> tuple[str, dict[str, str]]:
        with self._lock:
            if self._signed is not None:
                return self._signed, {}
        return self._url, {"authorization": f"Bearer {self._token}"} if self._token else {}

    def refused(self, response: Response) -> FetchError | TryAgain:
        # The Hub names its reason; a signed address that has expired does not.
        if response.url != self._url and "x-error-code" not in response.headers:
            with self._lock:
                if self._signed == response.url:  # else another thread has renewed it already
                    self._signed = None
            return TryAgain(
                self.error(
                    "access",
                    "a signed address that is honoured",
                    f"HTTP {response.status} from {shown(response.url)}",
                    self.other_ways(),
                )
            )
        gated = response.headers.get("x-error-code", "") == "GatedRepo"
        page = f"{shown(self._url).split('/resolve/')[0]}"
        if self._token is None:
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
        if response.redirects and origin_of(response.url) != origin_of(self._url):
            with self._lock:
                self._signed = response.url
        self.same(f"ETag of {urlsplit(response.url).hostname}", response.headers.get("etag"))


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
