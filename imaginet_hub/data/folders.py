"""A folder that appears under its name whole or not at all: written beside it, then renamed."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["check_writable", "put_in_place", "restore", "staged"]


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """An empty folder to write what will be `target` in; afterwards it is gone, or `put_in_place` gave it its name.

    Folders above it that had to be made are gone too where it comes to nothing. What a killed run left is cleared.

    Raises:
        OSError: it cannot be made, or another run is writing there.
    """
    made = [folder for folder in target.parents if not folder.exists()]
    staging = _staging(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if staging.is_symlink():
            staging.unlink()
        staging.mkdir(exist_ok=True)
        with _alone(staging):
            try:
                for left in staging.iterdir():
                    left.unlink() if left.is_symlink() or not left.is_dir() else shutil.rmtree(left)
                yield staging
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    except BlockingIOError:  # it is another run's
        raise
    except BaseException:  # Ctrl-C between two of these lines
        with suppress(OSError):
            staging.rmdir()
        raise
    finally:
        for folder in made:
            with suppress(OSError):  # by now it may hold something
                folder.rmdir()


def check_writable(target: Path) -> None:
    """Sees now, not after hours of work, whether this place can be written.

    Raises:
        OSError: it cannot.
    """
    with staged(target):
        pass


def put_in_place(target: Path) -> None:
    """What is `staged` gets its name; what had it before is gone after that, and not sooner."""
    shutil.rmtree(_old(target), ignore_errors=True)
    try:
        if target.exists():
            target.rename(_old(target))
        _staging(target).rename(target)
    except BaseException:  # Ctrl-C between the two as well
        restore(target)
        raise
    shutil.rmtree(_old(target), ignore_errors=True)


def restore(target: Path) -> None:
    """Put back a folder that a killed run had moved aside and not yet replaced."""
    if not target.exists() and _old(target).is_dir():
        _old(target).rename(target)


def _staging(target: Path) -> Path:
    return target.with_name(f".{target.name}.incomplete")


def _old(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """No other process works in this folder: a lock on the folder itself leaves no file and ends with its process."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(errno.EAGAIN, "another run is writing there") from error
        except OSError:  # some network file systems have no locks
            pass
        if not folder.exists() or not os.path.samestat(folder.stat(), os.fstat(descriptor)):
            raise BlockingIOError(errno.EAGAIN, "another run was writing there just now")
        yield
    finally:
        os.close(descriptor)
