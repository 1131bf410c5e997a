"""The nine sources of ImagiNet as data: which folders of ROOT each one fills, under which terms. No logic but look-up.

ROOT is the folder tree that upstream's training code reads; the top folder of a path names its source. Counts are
those of upstream's test list; terms are as stated by each source (see `homepage`), quoted as help, not legal advice.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath

__all__ = [
    "KNOWN_CORRUPT",
    "MINI_SOURCE",
    "SOURCES",
    "TEST_FOLDER_COUNTS",
    "UNKNOWN_LICENSE",
    "Source",
    "corpus_of",
    "source_of",
]

UNKNOWN_LICENSE = "unknown"
#: `source` of the made corpus, whose folders are named like ImagiNet's.
MINI_SOURCE = "mini (simulated)"


@dataclass(frozen=True)
class Source:
    """One origin of images.

    Attributes:
        key: the name used in the `source` column.
        title: the name people use.
        folders: top folders of ROOT that hold its images.
        license: what its publisher states; goes into the `license` column.
        homepage: where that is stated.
        citation: the work to cite.
        folder_licenses: folders whose terms differ from `license`.
    """

    key: str
    title: str
    folders: tuple[str, ...]
    license: str
    homepage: str
    citation: str
    folder_licenses: dict[str, str] = field(default_factory=dict)


SOURCES: tuple[Source, ...] = (
    Source(
        key="imagenet",
        title="ImageNet (ILSVRC 2012)",
        folders=("imagenet",),
        license="ImageNet terms of access (non-commercial research)",
        homepage="https://www.image-net.org/download.php",
        citation="Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, IJCV 2015",
    ),
    Source(
        key="coco",
        title="COCO 2017",
        folders=("train2017", "val2017"),
        license="Flickr terms per image (COCO annotations: CC BY 4.0)",
        homepage="https://cocodataset.org/#termsofuse",
        citation="Lin et al., Microsoft COCO: Common Objects in Context, ECCV 2014",
    ),
    Source(
        key="cnndetection",
        title="LSUN and ProGAN images of CNNDetection",
        folders=("progan_train", "progan_val"),
        license="CC BY-NC-SA 4.0",
        homepage="https://huggingface.co/datasets/sywang/CNNDetection",
        citation="Wang et al., CNN-generated images are surprisingly easy to spot... for now, CVPR 2020; "
        "Yu et al., LSUN, arXiv 1506.03365",
    ),
    Source(
        key="ffhq",
        title="Flickr-Faces-HQ",
        folders=("ffhq",),
        license="CC BY-NC-SA 4.0 (dataset); per-image Flickr licences",
        homepage="https://github.com/NVlabs/ffhq-dataset",
        citation="Karras et al., A Style-Based Generator Architecture for Generative Adversarial Networks, CVPR 2019",
    ),
    Source(
        key="wikiart",
        title="WikiArt (refined, ArtGAN)",
        folders=("wikiart",),
        license="non-commercial research; WikiArt.org terms",
        homepage="https://github.com/cs-chan/ArtGAN/tree/master/WikiArt%20Dataset",
        citation="Tan et al., Improved ArtGAN for Conditional Synthesis of Natural Image and Artwork, IEEE TIP 2019",
    ),
    Source(
        key="danbooru",
        title="Danbooru2021",
        folders=("danbooru2021",),
        license="unclear; rights stay with the artists",
        homepage="https://gwern.net/danbooru2021",
        citation="Anonymous et al., Danbooru2021: A Large-Scale Crowdsourced and Tagged Anime Illustration Dataset",
    ),
    Source(
        key="photozilla",
        title="Photozilla",
        folders=("photozilla",),
        license="no licence stated (Flickr images)",
        homepage="https://arxiv.org/abs/2106.11359",
        citation="Singhal et al., Photozilla: A Large-Scale Photography Dataset, arXiv 2106.11359",
    ),
    Source(
        key="journeydb",
        title="JourneyDB (Midjourney)",
        folders=("journeydb",),
        license="JourneyDB terms of use (gated)",
        homepage="https://huggingface.co/datasets/JourneyDB/JourneyDB",
        citation="Sun et al., JourneyDB: A Benchmark for Generative Image Understanding, NeurIPS 2023",
    ),
    Source(
        key="imaginet",
        title="ImagiNet synthetic images",
        folders=(
            "imagenet_stylegan",
            "wikiart_stylegan",
            "ffhq_stylegan",
            "sd_photos_fake",
            "sdxl_photos_fake",
            "sd_paintings_fake",
            "sdxl_paintings_fake",
            "sd_faces_fake",
            "sdxl_faces_fake",
            "animaginexl_paintings_fake",
            "dalle3",
            "dalle3_addition",
            "dalle3_addition2",
        ),
        license="CC BY 4.0",
        homepage="https://github.com/delyan-boychev/imaginet",
        citation="Boychev and Cholakov, ImagiNet: A Multi-Content Benchmark for Synthetic Image Detection, "
        "arXiv 2407.20020",
        folder_licenses={"dalle3": "CC0 1.0 (LAION)"},
    ),
)

#: Rows of upstream's test list per top folder (40,000 in all; half of progan_val is real, half ProGAN).
TEST_FOLDER_COUNTS: dict[str, int] = {
    "imagenet": 1500,
    "progan_val": 3000,
    "val2017": 3000,
    "wikiart": 2250,
    "danbooru2021": 2250,
    "ffhq": 4500,
    "photozilla": 5000,
    "imagenet_stylegan": 1500,
    "sd_photos_fake": 1521,
    "sdxl_photos_fake": 1479,
    "wikiart_stylegan": 2250,
    "sd_paintings_fake": 548,
    "sdxl_paintings_fake": 577,
    "animaginexl_paintings_fake": 1125,
    "ffhq_stylegan": 2250,
    "sd_faces_fake": 1128,
    "sdxl_faces_fake": 1122,
    "journeydb": 2500,
    "dalle3": 2371,
    "dalle3_addition": 27,
    "dalle3_addition2": 102,
}

#: Files that are damaged in every known copy of their source's archive, and why we say so. Policy (see the builder):
#: such a file is left out and reported instead of failing the build; an intact copy is taken in like any other file.
KNOWN_CORRUPT: dict[str, str] = {
    "wikiart/Baroque/rembrandt_woman-standing-with-raised-hands.jpg": (
        "the distributed WikiArt archive holds this member with a bad CRC; upstream decodes what is left of it"
    ),
    "wikiart/Post_Impressionism/vincent-van-gogh_l-arlesienne-portrait-of-madame-ginoux-1890.jpg": (
        "the distributed WikiArt archive holds this member with a bad CRC"
    ),
}

_BY_FOLDER: dict[str, Source] = {folder: source for source in SOURCES for folder in source.folders}


def corpus_of(sources: Iterable[str]) -> str:
    """What a set of images is, by the values of their `source` column.

    Returns:
        "ImagiNet" (nothing but its nine sources), "mini" (the made corpus, simulations) or "own images".
    """
    present = set(sources)
    if present == {MINI_SOURCE}:
        return "mini"
    return "ImagiNet" if present and present <= {source.key for source in SOURCES} else "own images"


def source_of(path: str) -> tuple[str, str]:
    """The (source, license) of a path in upstream's layout, by its top folder.

    An unknown top folder is its own source, with the license `UNKNOWN_LICENSE`.
    """
    parts = PurePosixPath(path).parts
    folder = parts[0] if len(parts) > 1 else ""
    source = _BY_FOLDER.get(folder)
    if source is None:
        return folder or "unknown", UNKNOWN_LICENSE
    return source.key, source.folder_licenses.get(folder, source.license)
