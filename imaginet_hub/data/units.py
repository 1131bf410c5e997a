"""Numbers and foreign text for people."""

from __future__ import annotations

__all__ = ["human_bytes", "one_line"]


def human_bytes(count: int) -> str:
    """Decimal units, three digits: 815 MB."""
    value, unit = float(count), "B"
    for bigger in ("kB", "MB", "GB", "TB"):
        if value < 999.5:
            break
        value, unit = value / 1000, bigger
    return f"{value:.3g} {unit}" if unit != "B" else f"{count} B"


def one_line(text: str) -> str:
    """Text for people on one line: control characters, which steer terminals and forge lines, are spelt out."""
    return "".join(c if c.isprintable() or c == "\u00ad" else ascii(c)[1:-1] for c in text)
