"""What may be done with an image, as far as its `license` and `source` columns tell. Help, not legal advice.

Only the whole name of a licence that is known here gives a "yes"; words in a text that nobody knows can only take
something away. What a source of ImagiNet states is in `data.sources`.
"""

from __future__ import annotations

import difflib
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from imaginet_hub.data.manifest import Record
from imaginet_hub.data.mini import LICENSE, PHOTOGRAPHS, mini_splits
from imaginet_hub.data.sources import MINI_SOURCE, SOURCES, UNKNOWN_LICENSE, Source, source_named
from imaginet_hub.data.units import one_line
from imaginet_hub.errors import UsageError

__all__ = [
    "COMMERCIAL",
    "NOTICE",
    "REDISTRIBUTABLE",
    "Rights",
    "allowed",
    "changes_forbidden",
    "licenses_report",
    "licenses_text",
    "names_of",
    "notice",
    "rights_of",
    "rights_rows",
    "select",
    "selection",
    "unknown_name",
]

#: Beside the rows of a dataset: the terms of its images.
NOTICE = "NOTICE"
#: Words that select rows by what may be done with them; any other is the name of a licence.
COMMERCIAL, REDISTRIBUTABLE = "commercial", "redistributable"

_CAREFUL = ("no", "unclear", "yes")
#: Of texts that rows bring along (one licence an image, a novel for a licence): how much is shown.
_MOST_SOURCES, _MOST_LICENSES, _MOST_CHARACTERS = 50, 20, 200
#: A longer text is no name; of a book the beginning is read.
_MOST_READ = 2000
#: Among how many names the one that was meant is looked for.
_MOST_MEANT = 1000


@dataclass(frozen=True)
class Rights:
    """What may be done with an image.

    Attributes:
        commercial: "yes", "no" or "unclear"; use for money.
        redistribution: likewise; passing the unchanged file on. Conditions (credit, the same licence) are the
            licence's.
    """

    commercial: str
    redistribution: str


def _least(*several: Rights) -> Rights:
    """The most careful of several readings."""
    return Rights(
        min((r.commercial for r in several), key=_CAREFUL.index),
        min((r.redistribution for r in several), key=_CAREFUL.index),
    )


_FREE, _NONCOMMERCIAL, _UNCLEAR = Rights("yes", "yes"), Rights("no", "yes"), Rights("unclear", "unclear")

#: Ways to write the same thing, before names are compared; in this order.
_SPELLINGS: tuple[tuple[str, str], ...] = (
    (r"^https?://(www\.)?creativecommons\.org/licenses/", "cc "),
    (r"^https?://(www\.)?creativecommons\.org/publicdomain/zero/", "cc0 "),
    (r"^https?://(www\.)?creativecommons\.org/publicdomain/mark/", "public domain mark "),
    (r"\bcreative commons\b", "cc"),
    (r"\battribution\b", "by"),
    (r"\bnon[- ]?commercial\b", "nc"),
    (r"\bno[- ]?deriv(ative)?s\b", "nd"),
    (r"\bshare[- ]?alike\b", "sa"),
    (r"\blicence\b", "license"),
    (r"[\s,_/-]+", " "),
)
#: Clauses of Creative Commons licences. Those without derivatives (nd) let unchanged files be passed on.
_CLAUSES = {
    "by": _FREE,
    "by sa": _FREE,
    "by nd": _FREE,
    "by nc": _NONCOMMERCIAL,
    "by nc sa": _NONCOMMERCIAL,
    "by nc nd": _NONCOMMERCIAL,
    "by nd nc": _NONCOMMERCIAL,
}
_VERSIONS = ("", " 1.0", " 2.0", " 2.5", " 3.0", " 4.0")
_SCOPES = ("", " international", " unported", " generic")
#: Terms of content, as `_key` spells them.
_OF_CONTENT: Mapping[str, Rights] = {
    **{f"cc {c}{v}{s}": rights for c, rights in _CLAUSES.items() for v in _VERSIONS for s in _SCOPES},
    # as Flickr names them, and with it the lists of COCO and FFHQ
    **{f"{clauses} license": rights for clauses, rights in _CLAUSES.items()},
    **dict.fromkeys(
        (
            "cc0",
            "cc0 1.0",
            "cc0 1.0 universal",
            "cc zero",
            "public domain",
            "public domain dedication",
            "public domain dedication (cc0)",
            "public domain mark",
            "public domain mark 1.0",
            "united states government work",
            "us government work",
            "pddl",
            "pddl 1.0",
            "odc by",
            "odc by 1.0",
            "cdla permissive 1.0",
            "cdla permissive 2.0",
        ),
        _FREE,
    ),
    # No licence: those who have the picture know of nobody who could object. That is said so that it may be passed on.
    "no known copyright restrictions": Rights("unclear", "yes"),
}
#: Licences made for software. For images only where nothing says that they are those of code.
_OF_SOFTWARE: Mapping[str, Rights] = dict.fromkeys(
    (
        "mit",
        "apache 2.0",
        "apache license 2.0",
        "apache license version 2.0",
        "bsd",
        "bsd 2 clause",
        "bsd 3 clause",
        "0bsd",
        "isc",
        "zlib",
        "unlicense",
    ),
    _FREE,
)
#: What may stand in brackets behind a name, and the names it may stand behind.
_REMARKS: Mapping[str, tuple[Mapping[str, Rights], ...]] = {
    "": (_OF_CONTENT, _OF_SOFTWARE),
    "images": (_OF_CONTENT, _OF_SOFTWARE),
    "dataset": (_OF_CONTENT, _OF_SOFTWARE),
    "data": (_OF_CONTENT, _OF_SOFTWARE),
    "repo": (_OF_CONTENT,),
    "repository": (_OF_CONTENT,),
    "laion": (_OF_CONTENT,),
}
#: What words anywhere in a text leave of what was read otherwise.
_WORDS: tuple[tuple[re.Pattern[str], Rights], ...] = (
    (re.compile(r"\bnc\b|\b(no|not for) commercial\b"), _NONCOMMERCIAL),
    (re.compile(r"\ball rights reserved\b"), Rights("no", "no")),
    (re.compile(r"\b(no|not|not be|without) redistribut"), Rights("yes", "no")),
)


def _key(text: str) -> str:
    text = " ".join(text.casefold().split())
    for pattern, short in _SPELLINGS:
        text = re.sub(pattern, short, text)
    return text.strip()


def _named(key: str) -> Rights | None:
    """The rights of a licence by its whole name."""
    if key in _OF_CONTENT:
        return _OF_CONTENT[key]
    name, bracket, remark = key.removesuffix(")").partition(" (")
    if bool(bracket) != key.endswith(")"):
        return None
    for names in _REMARKS.get(remark, ()):
        for each in (name, name.removesuffix(" license")):
            if each in names:
                return names[each]
    return None


@lru_cache(maxsize=4096)
def _read(text: str) -> Rights:
    key = _key(text[:_MOST_READ])
    known = _named(key) if len(text) <= _MOST_READ else None
    return known or _least(_UNCLEAR, *(left for words, left in _WORDS if words.search(key)))


def _stated(source: Source) -> Rights:
    given = (source.commercial_use, source.redistribution)
    return Rights(*(word if word in _CAREFUL else "unclear" for word in given))  # some say "per image"


#: (source, license) -> rights, where a source's own entries say more than the name.
#: The made corpus consists of crops of photographs and of what filters made of them; a row does not say of which one,
#: so the most careful reading of all of them counts. Public domain, CC0 and CC BY 2.0 allow changing and passing on,
#: for money too, with credit (which NOTICE gives). One photograph has no licence but "no known copyright
#: restrictions"; so passing on is fine, and for money it is unclear. Some show people, who may have a say in that too.
_OWN: Mapping[tuple[str, str], Rights] = {
    **{(source.key, source.license): _stated(source) for source in SOURCES},
    (MINI_SOURCE, LICENSE): _least(*(_read(photograph.licence) for photograph in PHOTOGRAPHS.values())),
}
_OWN_TEXTS = {license_: rights for (_, license_), rights in _OWN.items()}


def rights_of(license: str | None, source: str | None = None) -> Rights:
    """What may be done with a row's image.

    Args:
        license, source: its columns. A licence that is the source's own has what the source states; any other is
            read by its name. Without a source, texts that one of ImagiNet's sources uses are taken for that source's.
    """
    text = license or ""
    known = _OWN_TEXTS.get(text) if source is None else _OWN.get((source, text))
    if known is not None:
        return known
    return _read(text if len(text) <= _MOST_READ else text[: _MOST_READ + 1])


def changes_forbidden(license: str | None) -> bool:
    """Whether a licence lets files be passed on unchanged only (no derivatives)."""
    return re.search(r"\bnd\b", _key(license or "")) is not None


# --- selections ------------------------------------------------------------------------------------------------------


def names_of(licenses: str | Sequence[str]) -> tuple[str, ...]:
    """A selection as its words: each once, in order of the alphabet.

    Raises:
        UsageError: something else than a text or several.
    """
    words = (licenses,) if isinstance(licenses, str) else tuple(licenses)
    if not words or not all(isinstance(word, str) and word for word in words):
        raise UsageError(
            f"licenses: expected {COMMERCIAL!r}, {REDISTRIBUTABLE!r}, or names of licences as in the rows, got "
            f"{licenses!r}"
        )
    return tuple(sorted(set(words)))


def selection(licenses: str | Sequence[str]) -> Callable[[str, str], bool]:
    """Which rows a selection means.

    Args:
        licenses: "commercial" or "redistributable" (rows whose rights say "yes"), or the name of a licence as it is in
            the rows; or several, of which one is enough.

    Returns:
        A function of a row's license and source.
    """
    words = frozenset(names_of(licenses))

    def means(license: str, source: str) -> bool:
        rights = rights_of(license, source)
        return (
            license in words
            or (COMMERCIAL in words and rights.commercial == "yes")
            or (REDISTRIBUTABLE in words and rights.redistribution == "yes")
        )

    return means


def allowed(pairs: Iterable[tuple[str, str]], licenses: str | Sequence[str]) -> frozenset[tuple[str, str]]:
    """Of the (license, source) that occur, those that a selection takes in.

    Raises:
        UsageError: a licence that no row has, or no row is left.
    """
    occurring = Counter(pairs)
    known = Counter[str]()
    for (license_, _), count in occurring.items():
        known[license_] += count
    for word in names_of(licenses):
        if word not in (COMMERCIAL, REDISTRIBUTABLE) and word not in known:
            words = (COMMERCIAL, REDISTRIBUTABLE)
            raise UsageError(f"licenses: {unknown_name(word, known, words, 'licence')}")
    means = selection(licenses)
    kept = frozenset(pair for pair in occurring if means(*pair))
    if not kept:
        raise UsageError(
            f"licenses={', '.join(names_of(licenses))} leaves nothing of {occurring.total():,} images, whose licences "
            f"are {_some(known)}; select others, or ask for other images"
        )
    return kept


def select(
    records: Sequence[Record], licenses: str | Sequence[str] | None
) -> tuple[tuple[Record, ...], list[dict[str, Any]]]:
    """The records that a selection takes in, and what it leaves out, as in a build's report.

    Raises:
        UsageError: see `allowed`.
    """
    if licenses is None:
        return tuple(records), []
    kept = allowed(((r.license, r.source) for r in records), licenses)
    out = Counter((r.source, r.license) for r in records if (r.license, r.source) not in kept)
    left_out = [
        {"source": source, "license": name, "images": images} for (source, name), images in sorted(out.items())
    ]
    return tuple(r for r in records if (r.license, r.source) in kept), left_out


def unknown_name(word: str, known: Mapping[str, int], words: Collection[str], what: str) -> str:
    """What to say of a name that no row has.

    Args:
        word: the name.
        known: names -> images that have it.
        words: that could stand in a name's place.
        what: the name is one of.
    """
    names = [name for name, _ in Counter(known).most_common(_MOST_MEANT)]
    near = difflib.get_close_matches(word, [*words, *names], n=1)
    told = f"did you mean {_short(near[0])!r}?" if near else f"expected {', '.join(words)}, or one of {_some(known)}"
    return f"no row has the {what} {_short(word)!r}; {told}"


def _some(known: Mapping[str, int]) -> str:
    names = Counter(known).most_common(10)
    more = f" and {len(known) - len(names):,} more" if len(known) > len(names) else ""
    return ", ".join(f"{_short(name)!r} ({count:,})" for name, count in names) + more


# --- reports ---------------------------------------------------------------------------------------------------------


def rights_rows(counts: Mapping[tuple[str, str], int]) -> list[dict[str, Any]]:
    """The rights of (license, source) -> images, as in a build's report.

    Returns:
        `{license, source, images, commercial_use, redistribution}`, in order of source and license.
    """
    rows = []
    for license_, source in sorted(counts, key=lambda pair: (pair[1], pair[0])):
        rights = rights_of(license_, source)
        rows.append(
            {
                "license": license_,
                "source": source,
                "images": counts[license_, source],
                "commercial_use": rights.commercial,
                "redistribution": rights.redistribution,
            }
        )
    return rows


def licenses_report(dataset: str | os.PathLike[str]) -> dict[str, Any]:
    """The licences of a dataset's images, and what may be done with them; no image is read.

    Args:
        dataset: a built folder, a Hub id, a ROOT or "mini", see `loading.RowStream`.

    Returns:
        `dataset`, `images`, `licenses`: a list of `{license, source, images, splits, commercial_use, redistribution,
        homepage, citation}` in order of source and license, where `splits` is split -> images, and the last two are
        None for images of no source of ImagiNet.

    Raises:
        DataNotFoundError: no such dataset.
        UsageError: it is not one of images with labels.
    """
    splits: dict[tuple[str, str], dict[str, int]] = {}
    for split, counts in _counts(dataset).items():
        for pair, count in counts.items():
            splits.setdefault(pair, {})[split] = count
    rows = rights_rows({pair: sum(by_split.values()) for pair, by_split in splits.items()})
    for row in rows:
        source = source_named(row["source"])
        row |= {
            "splits": splits[row["license"], row["source"]],
            "homepage": source.homepage if source else None,
            "citation": source.citation if source else None,
        }
    name = os.fspath(dataset)
    return {
        "dataset": Path(name).resolve().name if Path(name).is_dir() else name,
        "images": sum(row["images"] for row in rows),
        "licenses": rows,
    }


def _counts(dataset: str | os.PathLike[str]) -> dict[str, Counter[tuple[str, str]]]:
    """(license, source) -> images, by split."""
    from imaginet_hub.data.loading import open_split, splits_of

    if os.fspath(dataset) == "mini":  # known without making it
        return {split: Counter({(LICENSE, MINI_SOURCE): count}) for split, count in mini_splits().items()}
    found = {}
    for split in splits_of(dataset):
        rows = open_split(dataset, split)
        columns = [
            rows.column(column) if column in rows.features else [UNKNOWN_LICENSE] * len(rows)
            for column in ("license", "source")
        ]
        found[split] = Counter(
            (str(license_ or ""), str(source or "")) for license_, source in zip(*columns, strict=True)
        )
    return found


def licenses_text(report: Mapping[str, Any]) -> str:
    """`licenses_report` for people."""
    rows = report["licenses"]
    lines = [
        f"{one_line(report['dataset'])}: {report['images']:,} images; what is stated of them (help, no legal advice):",
        f"  {'images':>9}  {'commercial':<10}  {'pass on':<8}  licence",
    ]
    for source, mine in _by_source(rows)[:_MOST_SOURCES]:
        about = source_named(source)
        lines.append(f"{_short(source) or 'no source stated'}{f' ({about.homepage})' if about else ''}")
        for row in mine[:_MOST_LICENSES]:
            may = f"{row['commercial_use']:<10}  {row['redistribution']:<8}"
            lines.append(f"  {row['images']:>9,}  {may}  {_named_license(row)}")
        lines += _rest(mine[_MOST_LICENSES:], "  ")
    lines += _rest_of_sources(rows)
    lines.append(f"commercial use: {_sums(rows, 'commercial_use')}; redistribution: {_sums(rows, 'redistribution')}")
    return "\n".join(lines)


def notice(
    rights_rows: Sequence[Mapping[str, Any]],
    *,
    stated: Sequence[str] = (),
    withheld: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The text of NOTICE.

    Args:
        rights_rows: see `rights_rows`.
        stated: licences and sources that the publisher says may be passed on.
        withheld: `{source, license, images}` that are listed and not here.
    """
    total = sum(row["images"] for row in rights_rows)
    lines = [
        "NOTICE",
        "",
        f"Terms of the {total:,} images of this dataset, by source and licence, as its columns `source` and `license`",
        "state them. This is help, not legal advice: the terms are those of the rights holders, who may differ from",
        "those who published the images, and only what they say counts.",
        "",
        f"Commercial use: {_sums(rights_rows, 'commercial_use')}.",
        f"Redistribution: {_sums(rights_rows, 'redistribution')}.",
    ]
    if stated:
        what = (
            "everything in it"
            if "all" in stated
            else "; ".join(_short(name) for name in sorted(stated)[:_MOST_LICENSES])
        )
        lines += ["", f"The publisher of this dataset states the right to redistribute: {what}."]
    if withheld:
        count = sum(group["images"] for group in withheld)
        lines += [
            "",
            f"{count:,} more images belong to it and are not here, because their terms do not clearly allow that;",
        ]
        lines += ["withheld.csv lists them, and README.md says how to get them."]
    for source, mine in _by_source(rights_rows)[:_MOST_SOURCES]:
        lines += ["", *_notice_of(source, mine)]
    rest = _rest_of_sources(rights_rows)
    return "\n".join([*lines, *([""] if rest else []), *rest]) + "\n"


def _notice_of(source: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    about = source_named(source)
    lines = [f"Source: {_short(source) or 'not stated'}"]
    if about is not None:
        lines[0] += f", {about.title}"
        lines += [f"  Terms: {about.homepage}", f"  Cite: {about.citation}"]
    for row in rows[:_MOST_LICENSES]:
        lines.append(f"  {row['images']:,} images: {_named_license(row)}")
        lines.append(f"    commercial use: {row['commercial_use']}; redistribution: {row['redistribution']}")
    lines += _rest(rows[_MOST_LICENSES:], "  ")
    if source == MINI_SOURCE:
        lines.append("  Crops, most of them altered, of these photographs:")
        lines += [f"    {photo.credit} ({photo.licence})" for photo in PHOTOGRAPHS.values()]
    return lines


def _by_source(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """Rows by source, those with most images first."""
    sources: dict[str, list[Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: (-row["images"], row["license"])):
        sources.setdefault(row["source"], []).append(row)
    return sorted(sources.items(), key=lambda item: (-sum(row["images"] for row in item[1]), item[0]))


def _rest(rows: Sequence[Mapping[str, Any]], indent: str) -> list[str]:
    if not rows:
        return []
    images = sum(row["images"] for row in rows)
    return [
        f"{indent}{images:,} images under {len(rows):,} more licences, see the column `license`:",
        f"{indent}  commercial use: {_sums(rows, 'commercial_use')}; redistribution: {_sums(rows, 'redistribution')}",
    ]


def _rest_of_sources(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    more = _by_source(rows)[_MOST_SOURCES:]
    if not more:
        return []
    return [f"And {len(more):,} more sources:", *_rest([row for _, mine in more for row in mine], "  ")]


def _sums(rows: Iterable[Mapping[str, Any]], column: str) -> str:
    counts = Counter[str]()
    for row in rows:
        counts[row[column]] += row["images"]
    return ", ".join(f"{word} {counts[word]:,}" for word in reversed(_CAREFUL) if counts[word]) or "no images"


def _named_license(row: Mapping[str, Any]) -> str:
    return _short(row["license"]) or "no licence stated"


def _short(text: str) -> str:
    """Foreign text for people: on one line, and no more than fits."""
    cut = text if len(text) <= _MOST_CHARACTERS else text[:_MOST_CHARACTERS] + "..."
    return one_line(" ".join(cut.split()))
