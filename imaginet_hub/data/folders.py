"""A folder that appears under its name whole or not at all: written beside it, then renamed."""

from __future__ import annotations

import shutil
from pathlib import Path

__all__ = ["prepare", "put_in_place", "restore", "staging"]


def staging(target: Path) -> Path:
    """Where to write what will be `target`."""
    return target.with_name(f".{target.name}.incomplete")


def restore(target: Path) -> None:
    """Put back a folder that a killed run had moved aside and not yet replaced."""
    if not target.exists() and _old(target).is_dir():
        _old(target).rename(target)


def prepare(target: Path) -> Path:
    """Clear away what killed runs left, and see now, not after hours of work, whether this place can be written.

    Returns:
        `staging(target)`, which does not exist.

    Raises:
        OSError: it cannot.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    probe = staging(target)
    shutil.rmtree(probe, ignore_errors=True)
    probe.mkdir()
    probe.rmdir()
    return probe


def put_in_place(target: Path) -> None:
    """`staging(target)` gets its name; what had it before is gone after that, and not sooner."""
    shutil.rmtree(_old(target), ignore_errors=True)
    try:
        if target.exists():
            target.rename(_old(target))
        staging(target).rename(target)
    except BaseException:  # Ctrl-C between the two as well
        restore(target)
        raise
    shutil.rmtree(_old(target), ignore_errors=True)


def _old(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")
