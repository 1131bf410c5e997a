"""A few images as their sources publish them, for tests of what can go wrong on the way."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imaginet_hub.data.fetch import Summary, fetch
from imaginet_hub.data.ledger import FOLDER, read_ledger
from imaginet_hub.data.readers.http import Limits
from imaginet_hub.data.sources import source_of
from imaginet_hub.demo.mirror import Mirror
from imaginet_hub.demo.staging import GATED, stage
from tests.conftest import image_bytes

#: Pauses that nobody notices.
FAST = Limits(timeout_s=5.0, backoff_s=0.005, max_backoff_s=0.02)
#: What those who have accepted all terms have, and the hosts ask for.
ACCOUNTS = {"HF_TOKEN": "hf_reader", "KAGGLE_USERNAME": "reader", "KAGGLE_KEY": "0123456789abcdef"}
GATES: dict[str, Any] = {
    "gated": dict.fromkeys(GATED, "hf_reader"),
    "kaggle": {"reader": "0123456789abcdef"},
}
SOURCES = ("coco", "cnndetection", "ffhq", "wikiart", "danbooru", "photozilla", "imaginet")
_UUID = "{:08x}-81cc-4eef-a89f-0cb9f211fa6f"
_FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP"}


def listed(count: int) -> list[str]:
    """Paths of `count` images of each source that a mirror can serve."""
    numbers = range(1, count + 1)
    return [
        *(f"val2017/{n:012d}.jpg" for n in numbers),
        *(f"progan_val/cat/{'0_real' if n % 2 else '1_fake'}/{n:05d}.png" for n in numbers),
        *(f"ffhq/{_UUID.format(n)}.png" for n in numbers),
        *(f"wikiart/Baroque/painter_picture-{n}.jpg" for n in numbers),
        *(f"danbooru2021/{n}.jpg" for n in numbers),
        *(f"photozilla/dataset/bokeh/{n}.jpg" for n in numbers),
        *(f"sd_faces_fake/{_UUID.format(n)}.png" for n in numbers),
    ]


@dataclass(frozen=True)
class Published:
    """The truth, and what is served of it.

    Attributes:
        root: every image in its place, as a fetch should leave it.
        origin: what `Mirror` serves.
        lists: the folder of annotations.
        paths: of all images, by source.
    """

    root: Path
    origin: Path
    lists: Path
    paths: dict[str, list[str]]

    @classmethod
    def make(
        cls, base: Path, count: int = 6, size: tuple[int, int] = (96, 72), names: Sequence[str] | None = None
    ) -> Published:
        """Generate it below `base`: `names`, or `count` images of each source."""
        names = listed(count) if names is None else names
        root = base / "truth"
        (root / "annotations").mkdir(parents=True)
        paths: dict[str, list[str]] = {}
        for number, path in enumerate(names):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(image_bytes(number, size, _FORMATS[Path(path).suffix.lower()]))
            paths.setdefault(source_of(path)[0], []).append(path)
        rows = [f"./{path},{'1,2,1,3' if '_fake' in path else '0,2,4,8'}\n" for path in names]
        (root / "annotations" / "test_annotations.txt").write_text("".join(rows))
        stage(root, base / "origin", base / "own")
        return cls(root, base / "origin", base / "own" / "annotations", paths)

    def fetch(self, mirror: Mirror, root: Path, only: Sequence[str], **options: Any) -> Summary:
        """Fetch from the mirror, with little patience, by one route each where there would be others to turn to."""
        alone = {"wikiart": "drive", "danbooru": "drive", "cnndetection": "hf-zip"}
        routes = {key: name for key, name in alone.items() if key in only} | options.pop("routes", {})
        options = {"endpoints": mirror.endpoints, "limits": FAST, **options}
        return fetch(root, annotations=self.lists, only=only, routes=routes, **options)

    def here(self, root: Path) -> set[str]:
        """What is in a ROOT, having made sure that nothing is there that should not be.

        Every file with an image's name is that image, nothing half-written is left, and the ledger tells the truth.
        """
        names = {
            path.relative_to(root).as_posix()
            for path in root.rglob("*")
            if path.is_file() and path.relative_to(root).parts[0] not in (FOLDER, "annotations")
        }
        for name in names:
            assert (root / name).read_bytes() == (self.root / name).read_bytes(), f"{name} is not the image"
        left = [path.name for path in root.rglob("*incomplete*")]
        assert not left, f"left behind: {left}"
        for path, entry in read_ledger(root).items():
            assert (root / path).stat().st_size == entry.bytes, f"the ledger errs about {path}"
        assert names == set(read_ledger(root)), "the ledger does not know every file"
        return names

    def complete(self, root: Path, sources: Iterable[str]) -> None:
        """Assert that these sources, and no others, are here entirely."""
        assert self.here(root) == {path for source in sources for path in self.paths[source]}
