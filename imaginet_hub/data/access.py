"""What each source asks for, and what of it is missing on this machine. Tokens are looked for, never shown."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

from imaginet_hub.data.sources import PACKED, SOURCES, UNKNOWN_MEAN_BYTES, Route, Source
from imaginet_hub.data.units import human_bytes

__all__ = ["credentials", "hub_token", "kaggle_authorization", "offline", "sources_json", "sources_text"]

_REMEDIES = {
    "hf": "create a token at https://huggingface.co/settings/tokens, then run `hf auth login` (or set HF_TOKEN)",
    "kaggle": "create a token at https://www.kaggle.com/settings and put it where kaggle looks "
    "(KAGGLE_API_TOKEN, or ~/.kaggle/kaggle.json)",
}


def hub_token() -> str | None:
    """The Hugging Face token of this machine, found as everywhere (HF_TOKEN, `hf auth login`)."""
    import huggingface_hub

    return huggingface_hub.get_token() or None


def credentials() -> frozenset[str]:
    """The accounts that this machine knows: hf, kaggle."""
    known = set()
    if hub_token():
        known.add("hf")
    if kaggle_authorization():
        known.add("kaggle")
    return frozenset(known)


def kaggle_authorization() -> str | None:
    """The Authorization header for Kaggle, from where Kaggle's own tools look, in their order; None if there is none.

    KAGGLE_API_TOKEN (a token, or a file that holds one), ~/.kaggle/access_token, KAGGLE_USERNAME with KAGGLE_KEY,
    kaggle.json in KAGGLE_CONFIG_DIR, or else in ~/.kaggle or ~/.config/kaggle.
    """
    home = _home()
    said = os.environ.get("KAGGLE_API_TOKEN", "").strip()
    token = _text_of(Path(said)) if _is_file(said) else said
    for folder in home:
        for name in ("access_token", "access_token.txt"):
            token = token or _text_of(folder / ".kaggle" / name)
    if token:
        return f"Bearer {token}"
    user, key = os.environ.get("KAGGLE_USERNAME", "").strip(), os.environ.get("KAGGLE_KEY", "").strip()
    given = os.environ.get("KAGGLE_CONFIG_DIR")
    xdg = os.environ.get("XDG_CONFIG_HOME")
    configs = [Path(xdg)] if xdg else [folder / ".config" for folder in home]
    usual = [*(folder / ".kaggle" for folder in home), *(folder / "kaggle" for folder in configs)]
    for folder in [Path(given)] if given else usual:
        if user and key:
            break
        try:
            pair = json.loads(_text_of(folder / "kaggle.json"))
            user, key = pair["username"].strip(), pair["key"].strip()
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            continue
    if not (user and key):
        return None
    try:
        pair = f"{user}:{key}".encode(errors="surrogateescape")
    except UnicodeEncodeError:  # JSON can spell what no text holds
        return None
    return f"Basic {base64.b64encode(pair).decode()}"


def _home() -> list[Path]:
    """The user's home; nothing for a user whom this machine does not know."""
    try:
        return [Path.home()]
    except RuntimeError:
        return []


def _is_file(name: str) -> bool:
    """Whether it names a file; a long token cannot."""
    try:
        return bool(name) and Path(name).is_file()
    except (OSError, ValueError):
        return False


def _text_of(file: Path) -> str:
    """What a small file says; nothing if it is not there."""
    try:
        if not file.is_file() or file.stat().st_size > 64 * 1024:
            return ""
        return file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""


def offline() -> bool:
    """Whether the user asked for no network, in the way of `datasets`: its own variable overrides the others."""
    said = os.environ.get("HF_DATASETS_OFFLINE")
    if said is None:
        said = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return said.upper() in ("1", "TRUE", "YES", "ON")


def sources_json(known: frozenset[str] | None = None) -> list[dict[str, Any]]:
    """Every source as JSON values: what it gives, on which terms, how it is reached, what is missing here.

    Args:
        known: accounts; by default those of this machine.
    """
    known = credentials() if known is None else known
    return [_source_json(source, known) for source in SOURCES]


def _source_json(source: Source, known: frozenset[str]) -> dict[str, Any]:
    images = source.train_images + source.test_images
    size = images * (source.mean_bytes or UNKNOWN_MEAN_BYTES)
    return {
        "source": source.key,
        "title": source.title,
        "folders": list(source.folders),
        "images": {"train": source.train_images, "test": source.test_images},
        "license": source.license,
        "commercial_use": source.commercial_use,
        "redistribution": source.redistribution,
        "homepage": source.homepage,
        "cite": source.citation,
        "bytes_to_move_estimate": size,
        "disk_bytes_estimate": size,
        "estimate_from": "the archive's size" if source.mean_bytes else "the packed release's size",
        "routes": [_route_json(route, known) for route in source.routes],
        "ready": any(route.credential is None or route.credential in known for route in source.routes),
        "bring_your_own": f"--from {source.key}=PATH",
    }


def _route_json(route: Route, known: frozenset[str]) -> dict[str, Any]:
    missing = route.credential if route.credential is not None and route.credential not in known else None
    remedy = []
    if missing:
        remedy.append(_REMEDIES[missing])
    if route.click:
        remedy.append(f"accept the terms once on {route.click}")
    return {
        "route": route.name,
        "gives": route.gives,
        "folders": list(route.folders),
        "needs_account": route.credential,
        "missing_here": missing,
        "click": route.click,
        "remedy": "; ".join(remedy) or None,
    }


def sources_text(known: frozenset[str] | None = None) -> str:
    """The same for people."""
    items, lines = sources_json(known), []
    for item in items:
        images = item["images"]
        lines += [
            f"{item['source']}: {item['title']}",
            f"  images      {images['train']:,} train, {images['test']:,} test in {', '.join(item['folders'][:3])}"
            + (f" and {len(item['folders']) - 3} more folders" if len(item["folders"]) > 3 else ""),
            f"  size        about {human_bytes(item['bytes_to_move_estimate'])} to move and on disk "
            f"(estimated from {item['estimate_from']})",
            f"  licence     {item['license']}; commercial use: {item['commercial_use']}, "
            f"redistribution: {item['redistribution']}",
            f"              {item['homepage']}",
        ]
        for route in item["routes"]:
            if route["route"] == PACKED:
                continue
            state = f"needs an account ({route['missing_here']})" if route["missing_here"] else "ready"
            lines.append(f"  route       {route['route']}: {route['gives']}; {state}")
            if route["remedy"]:
                lines.append(f"                {route['remedy']}")
        lines.append("")
    packed = next(r for r in items[0]["routes"] if r["route"] == PACKED)
    state = f"needs an account ({packed['missing_here']})" if packed["missing_here"] else "ready"
    lines += [f"every source: route {PACKED}: {packed['gives']}; {state}", f"  {packed['remedy']}", ""]
    lines.append("Terms are as stated by the publishers: help, not legal advice.")
    return "\n".join(lines)
