"""A dataset repository of the Hub, by the Hub's own client."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import httpx2
import huggingface_hub
from huggingface_hub.errors import GatedRepoError

from imaginet_hub.data.units import one_line
from imaginet_hub.errors import DataNotFoundError

__all__ = ["download_dataset"]


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
    except (httpx2.HTTPError, OSError, ValueError) as error:
        said = one_line(" ".join(str(error).split())[:300]) or type(error).__name__
        remedy = "check the name, the network and, if it is private, that you are logged in (`hf auth login`)"
        if isinstance(error, GatedRepoError):
            remedy = "accept its terms on its page, and log in (`hf auth login`)"
        raise DataNotFoundError(
            f"the dataset {repo_id!r} could not be had from the Hub ({said}); {remedy}. What came already is kept"
        ) from error
    return Path(place)
