"""Progress bars that obey the switches of `datasets`, without a second spent on importing it."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any

__all__ = ["progress_bar", "progress_paused"]


def progress_bar(*args: Any, **options: Any) -> Any:
    """A tqdm bar, unless HF_DATASETS_DISABLE_PROGRESS_BARS or `datasets.disable_progress_bars()` says no."""
    if "datasets" in sys.modules:
        from datasets.utils import tqdm

        return tqdm(*args, **options)
    from tqdm.auto import tqdm as plain

    if os.environ.get("HF_DATASETS_DISABLE_PROGRESS_BARS", "").upper() in ("1", "ON", "YES", "TRUE"):
        options["disable"] = True
    return plain(*args, **options)


def progress_paused() -> contextlib.AbstractContextManager[None]:
    """Bars make way for a line while the block runs."""
    from tqdm import tqdm

    return tqdm.external_write_mode()
