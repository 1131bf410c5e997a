"""Predictions for files on disk: one answer a file, whatever the others are like."""

from __future__ import annotations

import glob
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from imaginet_hub.data.images import IMAGE_SUFFIXES, open_image
from imaginet_hub.data.loading import track_of
from imaginet_hub.errors import ImageError, UsageError
from imaginet_hub.labels import Origin, Track

if TYPE_CHECKING:
    from PIL import Image

    from imaginet_hub.inference.detector import Detector

__all__ = ["UNKNOWN", "Prediction", "expand_paths", "names_generators", "predict_paths"]

#: The generator of an image that is unlike those of all known ones.
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Prediction:
    """The answer for one file.

    Attributes:
        path: as given or found.
        label: "real" or "synthetic", or a class of another column that the model was trained on; None when the file
            could not be read or no such model was given.
        probability: of `label`, 0.5 to 1 for two classes.
        generator: the likeliest generator family, or "unknown" where the image is unlike those of all families that
            the model was trained on; when an identification model was given and the image is not judged real.
        generator_probability: of the likeliest family, given that one of them is right.
        likeliest: the likeliest family where `generator` is "unknown".
        error: why there is no answer.
    """

    path: str
    label: str | None = None
    probability: float | None = None
    generator: str | None = None
    generator_probability: float | None = None
    likeliest: str | None = None
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields that say something."""
        return {key: value for key, value in vars(self).items() if value is not None}


def expand_paths(patterns: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Files, folders (searched through for image file names) and glob patterns, as a list of files in order.

    A name that is not there stays in the list, so that it gets its own error.
    """
    files: dict[Path, None] = {}
    for name in patterns:
        pattern = os.fspath(name)
        given = Path(pattern).expanduser()
        if given.is_dir():
            found = sorted(p for p in given.rglob("*") if _looks_like_an_image(p))
        elif not given.exists() and glob.has_magic(pattern):
            found = sorted(Path(p) for p in glob.glob(str(given), recursive=True) if Path(p).is_file())  # noqa: PTH207
            found = found or [given]
        else:
            found = [given]
        files.update(dict.fromkeys(found))
    return list(files)


def _looks_like_an_image(path: Path) -> bool:
    # A broken link with an image's name stays, so that it gets its own error.
    return path.suffix.lower() in IMAGE_SUFFIXES and (path.is_file() or path.is_symlink())


def predict_paths(
    paths: Sequence[Path],
    *,
    detector: Detector | None = None,
    identifier: Detector | None = None,
    batch_size: int = 16,
    num_workers: int | None = None,
    open_set: bool = True,
) -> Iterator[Prediction]:
    """Answers in the order of the files; memory holds two batches.

    Args:
        paths: image files.
        detector: a detection model, or one for a column that has nothing to do with generators.
        identifier: an identification model; alone it names a generator for every image.
        batch_size: images per forward pass.
        num_workers: threads that read and decode the next batch meanwhile; 0: none, one file after the other. Default:
            one per core.
        open_set: answer "unknown" where the identification model stores what is needed for that; without, always name
            the likeliest.

    Raises:
        UsageError: no model, or one of the wrong track.
    """
    if detector is None and identifier is None:
        raise UsageError("expected a detection model, an identification model, or both")
    if detector is not None and names_generators(detector):
        raise UsageError(f"{detector.name}: expected a detection model, found one for {detector.track}")
    if identifier is not None and not names_generators(identifier):
        what = identifier.track if identifier.track is Track.DETECTION else f"the column {identifier.label_column}"
        raise UsageError(f"{identifier.name}: expected an identification model, found one for {what}")
    if batch_size < 1:
        raise UsageError(f"batch_size: expected at least 1, got {batch_size}")
    if num_workers is not None and num_workers < 0:
        raise UsageError(f"num_workers: expected 0 or more, got {num_workers}")
    batches = [paths[start : start + batch_size] for start in range(0, len(paths), batch_size)]
    for batch, opened in zip(batches, _opened(batches, num_workers), strict=True):
        yield from _answered(batch, opened, detector, identifier, open_set)


def names_generators(model: Detector) -> bool:
    """Whether its answer is who made an image."""
    return track_of(model.label_column) is Track.IDENTIFICATION


def _opened(batches: Sequence[Sequence[Path]], num_workers: int | None) -> Iterator[list[Image.Image | str]]:
    """The images of each batch, or why there is none; with threads, one batch ahead of who asks."""
    threads = (os.cpu_count() or 1) if num_workers is None else num_workers
    if threads == 0:
        for batch in batches:
            yield [_open(path) for path in batch]
        return
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[list[Future[Image.Image | str]]] = deque()
        try:
            for batch in batches:
                waiting.append([pool.submit(_open, path) for path in batch])
                if len(waiting) > 1:
                    yield [future.result() for future in waiting.popleft()]
            for futures in waiting:
                yield [future.result() for future in futures]
        finally:  # Ctrl-C, or nobody wants the rest
            pool.shutdown(cancel_futures=True)


def _open(path: Path) -> Image.Image | str:
    try:
        return open_image(path)
    except ImageError as error:
        return error.message


def _answered(
    paths: Sequence[Path],
    opened: Sequence[Image.Image | str],
    detector: Detector | None,
    identifier: Detector | None,
    open_set: bool,
) -> Iterator[Prediction]:
    images = [image for image in opened if not isinstance(image, str)]
    detected = iter(_answers(detector, images))
    identified = iter(_answers(identifier, images))
    for path, image in zip(paths, opened, strict=True):
        if isinstance(image, str):
            yield Prediction(path=str(path), error=image)
            continue
        label, probability, _ = next(detected)
        generator, generator_probability, known = next(identified)
        likeliest = None
        if label == Origin.REAL:
            generator = generator_probability = None
        elif open_set and not known:
            generator, likeliest = UNKNOWN, generator
        yield Prediction(str(path), label, probability, generator, generator_probability, likeliest)


def _answers(model: Detector | None, images: Sequence[Image.Image]) -> list[tuple[str | None, float | None, bool]]:
    if model is None:
        return [(None, None, True)] * len(images)
    answers = model.answers(images)
    probabilities, best = answers.probabilities, answers.probabilities.argmax(axis=1)
    known = np.ones(len(images), np.bool_) if answers.known is None else answers.known
    return [
        (model.names[k], float(row[k]), bool(like)) for row, k, like in zip(probabilities, best, known, strict=True)
    ]
