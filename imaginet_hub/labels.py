"""ImagiNet's labels and the codec of upstream's annotation rows (paper, Table 2; names as in upstream's scripts).

Upstream encodes a row as `path,origin,content,model,specific_model` with small integers. The enums below list the
names in the order of those integers, so that `list(Generator).index(...)` is upstream's id. "real" is the last name
of both generator vocabularies: dropping it leaves the identification classes with unchanged ids.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

__all__ = [
    "LABEL_COLUMNS",
    "ContentType",
    "Generator",
    "GeneratorFamily",
    "Origin",
    "Track",
    "Vocabulary",
    "id2label",
    "origin_named",
]


class Track(StrEnum):
    """The two tasks: real against synthetic, and which generator family made a synthetic image."""

    DETECTION = "detection"
    IDENTIFICATION = "identification"

    @property
    def label_column(self) -> str:
        """The dataset column that holds this track's class."""
        return "label" if self is Track.DETECTION else "generator_family"


class Origin(StrEnum):
    REAL = "real"
    SYNTHETIC = "synthetic"


class ContentType(StrEnum):
    PHOTOS = "photos"
    PAINTINGS = "paintings"
    FACES = "faces"
    UNCATEGORIZED = "uncategorized"


class GeneratorFamily(StrEnum):
    GAN = "GAN"
    SD = "SD"
    MIDJOURNEY = "Midjourney"
    DALLE3 = "DALL-E 3"
    REAL = "real"


class Generator(StrEnum):
    PROGAN = "ProGAN"
    STYLEGAN_XL = "StyleGAN-XL"
    STYLEGAN3 = "StyleGAN3"
    SD_2_1 = "SD v2.1"
    SDXL_1_0 = "SDXL v1.0"
    ANIMAGINE_XL = "Animagine XL"
    MIDJOURNEY = "Midjourney"
    DALLE3 = "DALL-E 3"
    REAL = "real"


#: The label columns of a dataset, in upstream's column order, with upstream's vocabulary for each.
LABEL_COLUMNS: dict[str, type[StrEnum]] = {
    "label": Origin,
    "content_type": ContentType,
    "generator_family": GeneratorFamily,
    "generator": Generator,
}


@dataclass(frozen=True)
class Vocabulary:
    """The class names of the four label columns, each in the order of its integer ids."""

    label: tuple[str, ...]
    content_type: tuple[str, ...]
    generator_family: tuple[str, ...]
    generator: tuple[str, ...]

    @classmethod
    def upstream(cls) -> Vocabulary:
        """ImagiNet's own vocabulary; ids equal the integers of upstream's lists."""
        return cls(**{column: tuple(map(str, names)) for column, names in LABEL_COLUMNS.items()})

    @classmethod
    def from_values(cls, **values: Iterable[str]) -> Vocabulary:
        """The vocabulary of other people's data: what occurs in it, in an order that does not depend on row order.

        ImagiNet's names come first in upstream's order, the others follow alphabetically, "real" is last. `label`
        is closed: always ("real", "synthetic").

        Args:
            **values: for each of content_type, generator_family and generator, the names that occur.
        """

        def ordered(column: str) -> tuple[str, ...]:
            known = [str(name) for name in LABEL_COLUMNS[column]]
            present = set(values[column])
            if column != "content_type":
                present.add(str(Origin.REAL))
            new = sorted(present.difference(known))
            ours = [name for name in known if name in present and name != Origin.REAL]
            return (*ours, *new, *([str(Origin.REAL)] if Origin.REAL in present else []))

        return cls(
            label=tuple(map(str, Origin)),
            content_type=ordered("content_type"),
            generator_family=ordered("generator_family"),
            generator=ordered("generator"),
        )

    def names(self, column: str) -> tuple[str, ...]:
        """The class names of one label column."""
        return tuple(getattr(self, column))

    def track_names(self, track: Track) -> tuple[str, ...]:
        """The classes of a track: ("real", "synthetic"), or the generator families without "real"."""
        return tuple(n for n in self.names(track.label_column) if track is Track.DETECTION or n != Origin.REAL)


def id2label(names: Iterable[str]) -> dict[int, str]:
    """Names in id order as the mapping that transformers' configurations take."""
    return dict(enumerate(names))


#: Words by which other people's data sets and detectors name the two classes, and words that say nothing of them.
_WORDS = {
    Origin.REAL: "real human hum authentic natural nature original genuine photograph photographs pristine camera",
    Origin.SYNTHETIC: "synthetic synth fake fakes ai aigc aiart artificial generated deepfake deepfakes gan progan "
    "stylegan biggan cyclegan diffusion sd sdxl midjourney dalle flux glide adm ldm vqdm wukong imagen",
}
_ORIGIN_OF_WORD = {word: origin for origin, words in _WORDS.items() for word in words.split()}
_NEUTRAL = {"image", "images", "picture", "pictures", "photo", "photos", "img", "art", "face", "faces", "by", "made"}


def origin_named(name: str) -> Origin | None:
    """What a class of other people's naming means: "1_fake" and "AI-generated" are synthetic, "Human" is real.

    Returns:
        None unless every word of the name is known, and says the same: "realistic vision v5" or "AI-free" may mean
        anything.
    """
    words = [word for word in re.findall(r"[^\W\d_]+", name.lower()) if word not in _NEUTRAL]
    found = {_ORIGIN_OF_WORD.get(word) for word in words}
    return found.pop() if len(found) == 1 else None
