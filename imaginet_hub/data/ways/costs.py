"""Whether moving a whole archive is worth it, and the user's to decide."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from imaginet_hub.data.readers.files import File
from imaginet_hub.data.sources import UNKNOWN_MEAN_BYTES, Source
from imaginet_hub.data.units import human_bytes
from imaginet_hub.data.ways.way import Tools

__all__ = ["allow"]

#: Moved without asking: small archives, and those of which much is wanted.
_SMALL_BYTES = 256 * 1024**2
_MOST_PER_WANTED = 2.0


def allow(
    tools: Tools,
    sources: Sequence[Source],
    route: str,
    what: str,
    cost: int,
    images: int,
    file: File,
    *,
    disk: int,
    wanted_bytes: int | None = None,
) -> None:
    """Say what reading a whole archive costs, before it begins.

    Args:
        tools: knows for which sources the user named the route.
        sources: that want images of it.
        route: its name.
        what: is to be read.
        cost: bytes to move.
        images: how many are wanted of it.
        file: it.
        disk: bytes of disk that it takes until its images are out, besides them.
        wanted_bytes: of the images, where it is known.

    Raises:
        FetchError: reason "cost", if it is much more than what is wanted and the user did not name this route; reason
            "disk", if there is not enough.
    """
    if wanted_bytes is None:
        wanted_bytes = images * max(source.mean_bytes or UNKNOWN_MEAN_BYTES for source in sources)
    chosen = any(source.key in tools.chosen for source in sources)
    price = f"{what}: {human_bytes(cost)} to move for {images:,} images" + (
        f", and {human_bytes(disk)} of disk until they are out" if disk else ""
    )
    if not chosen and cost > max(_SMALL_BYTES, _MOST_PER_WANTED * wanted_bytes):
        names = " ".join(f"--route {source.key}={route}" for source in sources)
        raise file.error(
            "cost",
            "your word for moving a whole archive",
            f"none: {price}",
            f"say {names} if it is worth that, or bring the files yourself with --from {sources[0].key}=PATH",
        )
    tools.say(price)
    free = shutil.disk_usage(tools.root).free
    if disk and disk + wanted_bytes > free:
        raise file.error(
            "disk",
            f"{human_bytes(disk + wanted_bytes)} of free disk for {what}",
            human_bytes(free),
            "free some, or choose another ROOT or --route",
        )
