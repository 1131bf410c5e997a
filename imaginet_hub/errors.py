"""One exception tree: `except ImagiNetError` catches everything this package raises on purpose.

Every message says what was expected, what was got and what to do. Each class also derives from the built-in
exception that a caller would already be catching (`ValueError`, `FileNotFoundError`, `ImportError`).
"""

from __future__ import annotations

import importlib.util

__all__ = [
    "AnnotationError",
    "BuildError",
    "DataNotFoundError",
    "FetchError",
    "ImageError",
    "ImagiNetError",
    "MissingExtraError",
    "ModelError",
    "PublishError",
    "UsageError",
    "require",
]


class ImagiNetError(Exception):
    """Base of every error raised by imaginet_hub."""


class UsageError(ImagiNetError, ValueError):
    """An argument or an option has a value that cannot be used."""


class AnnotationError(ImagiNetError, ValueError):
    """An annotation list has a row, a header or an encoding that cannot be read as documented."""


class DataNotFoundError(ImagiNetError, FileNotFoundError):
    """A folder, a file or a list that was asked for is not there."""


class ImageError(ImagiNetError, ValueError):
    """One image is missing, unreadable, truncated, too large, or not what its list says.

    Attributes:
        reason: a short machine-readable word: missing | unreadable | truncated | oversized | checksum | unsupported.
    """

    def __init__(self, reason: str, message: str | None = None) -> None:
        if message is None:  # torch's DataLoader makes a worker's error again, from the text of its traceback
            reason, message = "unreadable", reason.rstrip().rpartition("\n")[2].rpartition("ImageError: ")[2]
        super().__init__(reason, message)
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return self.message


class BuildError(ImagiNetError):
    """A dataset build found images that it may not take in, or cannot write where it was told to."""


class FetchError(ImagiNetError):
    """A file could not be fetched, or what came is not what it should be.

    The message names source, address (without secrets), what was expected, what was got and what to do.

    Attributes:
        reason: a short word: network | status | missing | access | quota | range | changed | corrupt |
            format | disk | offline | busy | cost | incomplete.
        source: the key of the source.
    """

    def __init__(self, reason: str, source: str, address: str, expected: str, got: str, remedy: str) -> None:
        super().__init__(reason, source, address, expected, got, remedy)
        self.reason = reason
        self.source = source
        self.address = address
        self.expected = expected
        self.got = got
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.source}: {self.address}: expected {self.expected}, got {self.got}; {self.remedy}"


class ModelError(ImagiNetError, ValueError):
    """A model folder, a checkpoint or a configuration is not what the operation needs."""


class PublishError(ImagiNetError):
    """Something may not be published, or the Hub did not take it."""


class MissingExtraError(ImagiNetError, ImportError):
    """A feature needs packages of an extra that is not installed."""


def require(extra: str, *modules: str) -> None:
    """Check, without importing them, that the modules of an extra are installed.

    Raises:
        MissingExtraError: names the missing modules and the command that installs them.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"this needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed; "
            f'install the extra with: pip install "imaginet_hub[{extra}]"'
        )
