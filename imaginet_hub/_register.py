"""How `load_dataset("imaginet")` and the Auto classes come to know this package.

Both libraries take seconds to import, so nothing is imported here: post-import hooks act when (or if) the user's
program imports them.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

import wrapt

from imaginet_hub.selfcon import AUTO_MODULES, register_in

__all__ = ["register_on_import"]

_DATASET = "imaginet"


def register_on_import() -> None:
    """Register with datasets and transformers as soon as each is imported (at once if it already is)."""
    # `datasets.inspect` holds its own reference to the function; whichever is imported first, both get wrapped.
    for module in ("datasets.load", "datasets.inspect"):
        wrapt.register_post_import_hook(_teach_datasets, module)
    for module in AUTO_MODULES:
        wrapt.register_post_import_hook(register_in, module)


def _teach_datasets(module: ModuleType) -> None:
    original: Callable[..., Any] = vars(module)["dataset_module_factory"]
    if not getattr(original, "knows_imaginet", False):
        vars(module)["dataset_module_factory"] = _knowing(original)


def _knowing(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def dataset_module_factory(path: str, *args: Any, **kwargs: Any) -> Any:
        if str(path) == _DATASET and kwargs.get("data_files") is None and not args:
            module = _imaginet_module(kwargs.get("data_dir"))
            if module is not None:
                return module
        return original(path, *args, **kwargs)

    dataset_module_factory.knows_imaginet = True  # type: ignore[attr-defined]
    return dataset_module_factory


def _imaginet_module(data_dir: str | None) -> Any | None:
    """What `load_dataset("imaginet")` stands for here, or None to leave it to datasets.

    A folder of that name in the current directory matters as it does to datasets: a built dataset is loaded as such,
    a ROOT becomes `data_dir`.
    """
    from datasets.load import DatasetModule
    from datasets.utils.logging import get_logger

    from imaginet_hub import __version__
    from imaginet_hub.data.manifest import looks_like_root

    logger = get_logger(__name__)
    builder_kwargs: dict[str, Any] = {"dataset_name": _DATASET}
    if os.path.isdir(_DATASET):  # noqa: PTH112 - the same question as datasets asks
        folder = os.path.abspath(_DATASET)  # noqa: PTH100
        if data_dir is not None:
            logger.warning(f"imaginet: the folder {folder} is not used, because data_dir={data_dir!r} is given")
        elif _holds_built_dataset(folder):
            logger.warning(f"imaginet: loading the built dataset in the folder {folder}")
            return None
        elif looks_like_root(folder):
            logger.warning(f"imaginet: the folder {folder} is used as data_dir")
            builder_kwargs["data_dir"] = folder
        else:
            logger.warning(f"imaginet: the folder {folder} holds neither a built dataset nor a ROOT; it is not used")
    return DatasetModule("imaginet_hub.data.builder", __version__, builder_kwargs)


def _holds_built_dataset(folder: str) -> bool:
    from pathlib import Path

    card = Path(folder) / "README.md"
    if card.is_file() and "\nconfigs:" in card.read_text(encoding="utf-8", errors="replace")[:65536]:
        return True
    tables = [*Path(folder).glob("data/*.parquet"), *Path(folder).glob("*.parquet")]
    return any(table.name != "annotations.parquet" for table in tables)  # that one describes a ROOT
