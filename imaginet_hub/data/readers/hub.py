"""Repositories of the Hub, by its own client: a dataset's files, and what to say where one cannot be had."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import httpx2
import huggingface_hub
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    XetDownloadError,
)

from imaginet_hub.data.units import one_line
from imaginet_hub.errors import DataNotFoundError

__all__ = ["CLIENT_ERRORS", "download_dataset", "hub_trouble"]

#: What the Hub's client raises, and the libraries that ask by it.
CLIENT_ERRORS = (httpx2.HTTPError, XetDownloadError, OSError, ValueError)
#: Where the way to the Hub fails. (`ConnectionError` is all that `datasets` tells.)
_UNREACHED = (httpx2.TransportError, LocalEntryNotFoundError, ConnectionError)
_LOG_IN = "log in (`hf auth login`)"


def download_dataset(repo_id: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """Files of a repository in the client's cache, from which what is there already is taken.

    Args:
        repo_id: OWNER/NAME.
        revision: branch, tag or commit; by default main.
        patterns: of the files.

    Raises:
        DataNotFoundError: it could not be had.
    """
    try:
        place = huggingface_hub.snapshot_download(
            repo_id, repo_type="dataset", revision=revision, allow_patterns=list(patterns)
        )
    except CLIENT_ERRORS as error:
        said = one_line(" ".join(str(error).split())[:300]) or type(error).__name__
        trouble = hub_trouble(error, repo_id, "dataset") or (
            f"the dataset {repo_id!r} could not be had from the Hub ({said}); check the name and the disk"
        )
        raise DataNotFoundError(f"{trouble}. What came already is kept") from error
    return Path(place)


def hub_trouble(error: BaseException, name: str, repo_type: str) -> str | None:
    """Why a repository could not be had from the Hub, in a line with what to do.

    Args:
        error: what the Hub's client raised, or a library that asked by it. What it came of is looked at too, since
            libraries wrap what they meet.
        name: what was asked for.
        repo_type: "dataset" or "model".

    Returns:
        None if neither the Hub's answer nor the way to it was the trouble, or `name` is a path that is there.
    """
    from datasets.exceptions import DatasetNotFoundError

    if Path(name).expanduser().exists():
        return None
    met = [error]
    while (earlier := met[-1].__cause__ or met[-1].__context__) is not None and earlier not in met:
        met.append(earlier)
    # `datasets` drops the client's error and keeps its meaning in words.
    hidden = next((str(one) for one in met if isinstance(one, DatasetNotFoundError)), None)
    kind, shown = repo_type, repr(one_line(name))
    nowhere = f"{shown} is no folder here, and"

    if any(isinstance(one, GatedRepoError) for one in met) or "is a gated dataset" in (hidden or ""):
        page = f"{huggingface_hub.constants.ENDPOINT}/{'datasets/' * (kind == 'dataset')}{one_line(name)}"
        return f"the {kind} {shown} is gated: accept its terms on its page, {page}, and {_LOG_IN} with that account"
    if any(isinstance(one, RepositoryNotFoundError) for one in met) or hidden is not None:
        return f"{nowhere} the Hub has no such {kind}, or a private one; check the name, and {_LOG_IN}, if private"
    if any(isinstance(one, RevisionNotFoundError) for one in met):
        return f"the {kind} {shown} has no such revision on the Hub; name a branch, a tag or a commit of it"
    for one in met:
        if isinstance(one, HfHubHTTPError) and not isinstance(one, EntryNotFoundError):
            return f"the {kind} {shown} could not be had: {_answered(one)}"
    if any(isinstance(one, _UNREACHED) for one in met):
        if huggingface_hub.constants.is_offline_mode():
            return f"{nowhere} not in the Hub's cache, which is all there is offline; unset HF_HUB_OFFLINE"
        said = [one_line(str(one)[:200]) for one in met if isinstance(one, httpx2.TransportError) and str(one)]
        reason = f" ({said[-1]})" if said else ""
        return f"{nowhere} the Hub could not be asked for it{reason}; check the name and the network"
    return None


def _answered(error: HfHubHTTPError) -> str:
    """What the Hub said, and what to do."""
    status = error.response.status_code
    said = one_line((error.server_message or error.response.reason_phrase)[:200])
    if status == 401:
        remedy = f"the token is not valid: {_LOG_IN}, or mend HF_TOKEN"
    elif status == 429 or status >= 500:
        remedy = "try again later"
    else:
        remedy = "see its page there, and whether the token may read it"
    return f"the Hub answered {status} ({said}); {remedy}"
