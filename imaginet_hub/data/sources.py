"""The nine sources of ImagiNet as data: which folders of ROOT each one fills, by which routes, under which terms.

ROOT is the folder tree that upstream's training code reads; the top folder of a path names its source. Counts are
those of upstream's test list and of the paper (Table 2, 80 % for training); terms are as stated by each source (see
`homepage`), quoted as help, not legal advice. No logic but look-up.

Addresses are `host:where`, and hosts can be moved (see `data.readers.hosts`): `coco:/val2017/...`, `drive:<file id>`,
`hf:<owner>/<dataset>/<file>`, `github:<owner>/<repository>/<commit>/<file>`, `kaggle:competitions/<slug>` and
`kaggle:datasets/<owner>/<slug>` (all of it in one archive) with `/<file>` behind it for one file.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath

__all__ = [
    "FFHQ_INDEX",
    "FFHQ_LIST",
    "IMAGINET",
    "KNOWN_CORRUPT",
    "LISTS",
    "MINI_SOURCE",
    "PACKED",
    "SOURCES",
    "TEST_FOLDER_COUNTS",
    "UNKNOWN_LICENSE",
    "UNKNOWN_MEAN_BYTES",
    "Archive",
    "PinnedList",
    "Route",
    "Source",
    "corpus_of",
    "source_named",
    "source_of",
]

UNKNOWN_LICENSE = "unknown"
#: The route that every source has.
PACKED = "packed"
#: `source` of the made corpus, whose folders are named like ImagiNet's.
MINI_SOURCE = "mini (simulated)"


@dataclass(frozen=True)
class Archive:
    """A file at a host that holds many images.

    Attributes:
        address: `host:where`; of several volumes the first; of Parquet and of tar archives their folder.
        folders: top folders of ROOT that it fills.
        bytes: its size where it is known; of all volumes.
        index: folder of the JSON files that say where the members of tar archives are.
    """

    address: str
    folders: tuple[str, ...]
    bytes: int | None = None
    index: str | None = None


@dataclass(frozen=True)
class Route:
    """One way to get (some of) a source's images.

    Attributes:
        name: as in `--route source=NAME`.
        reader: `files` (one request an image), `drive-files` (one request an image, by the ids of upstream's FFHQ
            list), `kaggle-files` (one request an image, by Kaggle's name of it), `zip` (members by range), `7z` (a 7z
            archive, perhaps in volumes: by range if it is stored, else whole), `parquet` (row groups by range), `tars`
            (members of indexed tar archives by range), `tgz` (a stream).
        gives: what is transferred, in a line.
        folders: top folders of ROOT that it can fill.
        archives: what `zip` reads.
        address: what `files` and `kaggle-files` put before an image's path.
        credential: `hf` or `kaggle` if an account is needed.
        click: the page on which terms have to be accepted first.
    """

    name: str
    reader: str
    gives: str
    folders: tuple[str, ...]
    archives: tuple[Archive, ...] = ()
    address: str = ""
    credential: str | None = None
    click: str | None = None


@dataclass(frozen=True)
class Source:
    """One origin of images.

    Attributes:
        key: the name used in the `source` column.
        title: the name people use.
        folders: top folders of ROOT that hold its images.
        license: what its publisher states; goes into the `license` column.
        commercial_use, redistribution: yes | no | unclear | per image, as far as the publisher states it.
        homepage: where that is stated.
        citation: the work to cite.
        tail: how many last parts of a path identify an image within the source, whatever folders come before.
        train_images, test_images: how many of ImagiNet's images it gives.
        mean_bytes: mean size of its images, from the sizes of its archives; None if nobody says.
        exercised: against which stand-ins its routes were run, and what only the real hosts can show.
        routes: in the order in which they are tried.
        folder_licenses: folders whose terms differ from `license`.
    """

    key: str
    title: str
    folders: tuple[str, ...]
    license: str
    commercial_use: str
    redistribution: str
    homepage: str
    citation: str
    tail: int
    train_images: int
    test_images: int
    mean_bytes: int | None
    exercised: str
    routes: tuple[Route, ...] = ()
    folder_licenses: dict[str, str] = field(default_factory=dict)


def _packed(*folders: str) -> Route:
    """The authors' own packed release holds every image; one route of every source."""
    return Route(
        PACKED,
        "7z",
        "the authors' packed release (7z in volumes, all 200,000 images, about 144 GB)",
        folders,
        (Archive("hf:delyanboychev/imaginet/imaginet.7z.001", folders, 144_000_000_000),),
        credential="hf",
        click="https://huggingface.co/datasets/delyanboychev/imaginet",
    )


_SYNTHETIC = (
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
)

_KAGGLE_IMAGENET = "kaggle:competitions/imagenet-object-localization-challenge"
_KAGGLE_RULES = "https://www.kaggle.com/competitions/imagenet-object-localization-challenge/rules"

SOURCES: tuple[Source, ...] = (
    Source(
        key="imagenet",
        title="ImageNet (ILSVRC 2012)",
        folders=("imagenet",),
        license="ImageNet terms of access (non-commercial research)",
        commercial_use="no",
        redistribution="no",
        homepage="https://www.image-net.org/download.php",
        citation="Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, IJCV 2015",
        tail=1,
        train_images=6000,
        test_images=1500,
        mean_bytes=126_000,  # 6.3 GB of 50,000 validation images
        exercised="Single files, both layouts of the archive and row groups came from a loopback Kaggle and "
        "a loopback Hub; only the real ones can show their throttling, today's layout and the "
        "size of the row groups.",
        routes=(
            Route(
                "kaggle",
                "kaggle-files",
                "single files of the Kaggle competition",
                ("imagenet",),
                address=f"{_KAGGLE_IMAGENET}/ILSVRC/Data/CLS-LOC",
                credential="kaggle",
                click=_KAGGLE_RULES,
            ),
            Route(
                "kaggle-zip",
                "zip",
                "ranges of the Kaggle competition's archive (about 160 GB)",
                ("imagenet",),
                (Archive(_KAGGLE_IMAGENET, ("imagenet",)),),
                credential="kaggle",
                click=_KAGGLE_RULES,
            ),
            Route(
                "hf-parquet",
                "parquet",
                "row groups of ILSVRC/imagenet-1k",
                ("imagenet",),
                (Archive("hf:ILSVRC/imagenet-1k/data", ("imagenet",)),),
                credential="hf",
                click="https://huggingface.co/datasets/ILSVRC/imagenet-1k",
            ),
            _packed("imagenet"),
        ),
    ),
    Source(
        key="coco",
        title="COCO 2017",
        folders=("train2017", "val2017"),
        license="Flickr terms per image (COCO annotations: CC BY 4.0)",
        commercial_use="per image",
        redistribution="per image",
        homepage="https://cocodataset.org/#termsofuse",
        citation="Lin et al., Microsoft COCO: Common Objects in Context, ECCV 2014",
        tail=1,
        train_images=12000,
        test_images=3000,
        mean_bytes=163_000,  # 815,585,330 bytes of 5,000
        exercised="Single files and both ZIPs came from a loopback S3; only the real bucket can show TLS, "
        "throttling and today's objects.",
        routes=(
            # https://images.cocodataset.org answers with a certificate of another name; the bucket itself does not.
            Route("s3", "files", "single files", ("train2017", "val2017"), address="coco:/"),
            Route(
                "zips",
                "zip",
                "ranges of val2017.zip and train2017.zip",
                ("train2017", "val2017"),
                (
                    Archive("coco:/zips/val2017.zip", ("val2017",), 815_585_330),
                    Archive("coco:/zips/train2017.zip", ("train2017",), 19_336_861_798),
                ),
            ),
            _packed("train2017", "val2017"),
        ),
    ),
    Source(
        key="cnndetection",
        title="LSUN and ProGAN images of CNNDetection",
        folders=("progan_train", "progan_val"),
        license="CC BY-NC-SA 4.0",
        commercial_use="no",
        redistribution="yes",
        homepage="https://huggingface.co/datasets/sywang/CNNDetection",
        citation="Wang et al., CNN-generated images are surprisingly easy to spot... for now, CVPR 2020; "
        "Yu et al., LSUN, arXiv 1506.03365",
        tail=3,
        train_images=12000,
        test_images=3000,
        mean_bytes=104_000,  # 830,792,545 bytes of 8,000
        exercised="A ZIP, and 7z volumes made in the published layout, came by range from a loopback Hub; "
        "only the real volumes can show that they are stored.",
        routes=(
            # The link of upstream's README leads to CNNDetection's test archive; the lists name its validation images.
            Route(
                "hf-zip",
                "zip",
                "ranges of progan_val.zip",
                ("progan_val",),
                (Archive("hf:sywang/CNNDetection/progan_val.zip", ("progan_val",), 830_792_545),),
            ),
            Route(
                "hf-7z",
                "7z",
                "ranges of progan_train.7z.001 to .007",
                ("progan_train",),
                (Archive("hf:sywang/CNNDetection/progan_train.7z.001", ("progan_train",), 75_000_000_000),),
            ),
            _packed("progan_train", "progan_val"),
        ),
    ),
    Source(
        key="ffhq",
        title="Flickr-Faces-HQ",
        folders=("ffhq",),
        license="CC BY-NC-SA 4.0 (dataset); per-image Flickr licences",
        commercial_use="no",
        redistribution="yes",
        homepage="https://github.com/NVlabs/ffhq-dataset",
        citation="Karras et al., A Style-Based Generator Architecture for Generative Adversarial Networks, CVPR 2019",
        tail=1,
        train_images=18000,
        test_images=4500,
        mean_bytes=1_367_000,  # 95.7 GB of 70,000
        exercised="Single files, quota pages and ZIPs came from a loopback Drive and a loopback Hub; only "
        "the real mirror can show how its members are named.",
        routes=(
            Route("drive", "drive-files", "single files by Google Drive id", ("ffhq",)),
            Route(
                "hf-zips",
                "zip",
                "ranges of FFHQ-1024-1.zip and -2.zip, found by FFHQ's own index (268 MB)",
                ("ffhq",),
                (
                    Archive("hf:Iceclear/FFHQ-HQ1024/FFHQ-1024-1.zip", ("ffhq",)),
                    Archive("hf:Iceclear/FFHQ-HQ1024/FFHQ-1024-2.zip", ("ffhq",)),
                ),
            ),
            _packed("ffhq"),
        ),
    ),
    Source(
        key="wikiart",
        title="WikiArt (refined, ArtGAN)",
        folders=("wikiart",),
        license="non-commercial research; WikiArt.org terms",
        commercial_use="no",
        redistribution="no",
        homepage="https://github.com/cs-chan/ArtGAN/tree/master/WikiArt%20Dataset",
        citation="Tan et al., Improved ArtGAN for Conditional Synthesis of Natural Image and Artwork, IEEE TIP 2019",
        tail=2,
        train_images=9000,
        test_images=2250,
        mean_bytes=312_000,  # 25.4 GB of 81,444
        exercised="A loopback Drive and a loopback Kaggle gave ZIPs with names in UTF-8, cp437 and "
        "mojibake; only the real archives can show which of these they hold, and whether Drive's "
        "still opens.",
        routes=(
            Route(
                "drive",
                "zip",
                "ranges of wikiart.zip on Google Drive",
                ("wikiart",),
                (Archive("drive:1vTChp3nU5GQeLkPwotrybpUGUXj12BTK", ("wikiart",)),),
            ),
            Route(
                "kaggle",
                "zip",
                "ranges of the archive of the Kaggle dataset steubk/wikiart",
                ("wikiart",),
                (Archive("kaggle:datasets/steubk/wikiart", ("wikiart",)),),
            ),
            Route(
                "kaggle-files",
                "kaggle-files",
                "single files of the Kaggle dataset steubk/wikiart",
                ("wikiart",),
                address="kaggle:datasets/steubk/wikiart",
            ),
            _packed("wikiart"),
        ),
    ),
    Source(
        key="danbooru",
        title="Danbooru2021",
        folders=("danbooru2021",),
        license="unclear; rights stay with the artists",
        commercial_use="unclear",
        redistribution="unclear",
        homepage="https://gwern.net/danbooru2021",
        citation="Anonymous et al., Danbooru2021: A Large-Scale Crowdsourced and Tagged Anime Illustration Dataset",
        tail=1,
        train_images=9000,
        test_images=2250,
        mean_bytes=None,
        exercised="A loopback Drive gave a ZIP, a loopback Hub indexed tars; only the real ones can show "
        "that the backup is a ZIP, and whether the originals have ImagiNet's pixels.",
        routes=(
            Route(
                "drive",
                "zip",
                "ranges of the ImagiNet authors' backup on Google Drive",
                ("danbooru2021",),
                (Archive("drive:1p0EM6IUAdBhFfdGoLpo0ewhLPXEkA86a", ("danbooru2021",)),),
            ),
            Route(
                "hf-tars",
                "tars",
                "ranges of the indexed tars of nyanko7/danbooru2023 (originals, perhaps of another size)",
                ("danbooru2021",),
                (
                    Archive(
                        "hf:nyanko7/danbooru2023/original",
                        ("danbooru2021",),
                        index="hf:deepghs/danbooru2023_index/original",
                    ),
                ),
            ),
            _packed("danbooru2021"),
        ),
    ),
    Source(
        key="photozilla",
        title="Photozilla",
        folders=("photozilla",),
        license="no licence stated (Flickr images)",
        commercial_use="unclear",
        redistribution="unclear",
        homepage="https://arxiv.org/abs/2106.11359",
        citation="Singhal et al., Photozilla: A Large-Scale Photography Dataset, arXiv 2106.11359",
        tail=3,
        train_images=20000,
        test_images=5000,
        mean_bytes=None,
        exercised="A loopback Drive gave a ZIP of its layout; only the real link can show that the archive "
        "is one, and how large.",
        routes=(
            Route(
                "drive",
                "zip",
                "ranges of the archive (about a million images) on Google Drive",
                ("photozilla",),
                (Archive("drive:1WkY6rcXMnir8nk4obejVq64h_WrtydVg", ("photozilla",)),),
            ),
            _packed("photozilla"),
        ),
    ),
    Source(
        key="journeydb",
        title="JourneyDB (Midjourney)",
        folders=("journeydb",),
        license="JourneyDB terms of use (gated)",
        commercial_use="unclear",
        redistribution="unclear",
        homepage="https://huggingface.co/datasets/JourneyDB/JourneyDB",
        citation="Sun et al., JourneyDB: A Benchmark for Generative Image Understanding, NeurIPS 2023",
        tail=1,
        train_images=10000,
        test_images=2500,
        mean_bytes=178_000,  # about 15 GB of 84,000
        exercised="The gated stream came from a loopback Hub, cut, truncated and gone on with; only the "
        "real one can show where in its 15 GB the wanted images lie.",
        routes=(
            Route(
                "hf-tgz",
                "tgz",
                "the stream of data/train/imgs/000.tgz (about 15 GB)",
                ("journeydb",),
                (Archive("hf:JourneyDB/JourneyDB/data/train/imgs/000.tgz", ("journeydb",), 15_000_000_000),),
                credential="hf",
                click="https://huggingface.co/datasets/JourneyDB/JourneyDB",
            ),
            _packed("journeydb"),
        ),
    ),
    Source(
        key="imaginet",
        title="ImagiNet synthetic images",
        folders=_SYNTHETIC,
        license="CC BY 4.0",
        commercial_use="yes",
        redistribution="yes",
        homepage="https://github.com/delyan-boychev/imaginet",
        citation="Boychev and Cholakov, ImagiNet: A Multi-Content Benchmark for Synthetic Image Detection, "
        "arXiv 2407.20020",
        tail=2,
        train_images=64000,
        test_images=16000,
        mean_bytes=None,
        exercised="A loopback Drive gave a ZIP of its layout; only the real link can show that the archive is one.",
        routes=(
            Route(
                "drive",
                "zip",
                "ranges of the released synthetic archive on Google Drive",
                _SYNTHETIC,
                (Archive("drive:1uUAoVUcAlUX9ltOXBlf3pKDz3rCKoytk", _SYNTHETIC),),
            ),
            _packed(*_SYNTHETIC),
        ),
        folder_licenses={"dalle3": "CC0 1.0 (LAION)"},
    ),
)

#: For sources that nobody has measured: what the 144 GB of the packed release leave for them, per image.
UNKNOWN_MEAN_BYTES = 890_000


@dataclass(frozen=True)
class PinnedList:
    """A file of upstream's repository, pinned by its content.

    Attributes:
        name: its file name.
        addresses: where it is: at the pinned commit, and at others that hold the same content.
        git_sha1: SHA-1 of "blob <bytes>\\0" and its bytes, as git names it.
    """

    name: str
    addresses: tuple[str, ...]
    git_sha1: str


#: Upstream's repository as of 2025-04-21, and the commit that added the lists, which never changed since.
_COMMITS = ("d87b53a03466a68f5e1910d75c7909b8ba596f99", "3f0efe72a3d080f2d664dc5c700ea27b39acb455")


def _pinned(folder: str, name: str, git_sha1: str) -> PinnedList:
    addresses = tuple(f"github:delyan-boychev/imaginet/{commit}/{folder}/{name}" for commit in _COMMITS)
    return PinnedList(name, addresses, git_sha1)


#: Upstream's lists, by split; `calibration.txt` marks rows of the train list.
LISTS: dict[str, PinnedList] = {
    "train": _pinned("annotations", "train_annotations.txt", "4e6a81be7de775c15ea9cd95c37ef81581524d7b"),
    "calibration": _pinned("annotations", "calibration.txt", "f007140e95530be18e0b429123c933c89af9db40"),
    "test": _pinned("annotations", "test_annotations.txt", "05942b0eee1a1edc196883daeaf0ab08ad4e79e7"),
}
#: `<Drive id>,<uuid>.png,<MD5 of the RGB pixels>` a line, for the 22,500 faces.
FFHQ_LIST = _pinned("download_scripts", "ffhq_filenames.txt", "d3e7ce8fd4a7c0d6c454621aba4824d657970b0f")
#: FFHQ's own index, ffhq-dataset-v2.json: address, bytes, MD5.
FFHQ_INDEX = ("drive:16N0RV4fHI6joBuKbQAoG34V_cQk7vxSA", 267_793_842, "425ae20f06a4da1d4dc0f46d40ba5fd6")

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


#: What `corpus_of` says of ImagiNet's own images.
IMAGINET = "ImagiNet"


def corpus_of(sources: Iterable[str]) -> str:
    """What a set of images is, by the values of their `source` column.

    Returns:
        "ImagiNet" (nothing but its nine sources), "mini" (the made corpus, simulations) or "own images".
    """
    present = set(sources)
    if present == {MINI_SOURCE}:
        return "mini"
    return IMAGINET if present and present <= {source.key for source in SOURCES} else "own images"


def source_named(key: str) -> Source | None:
    """The source of that key, or None."""
    return next((source for source in SOURCES if source.key == key), None)


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
