"""The page of a vocabulary report, and its pictures.

Owns the choice and wording of what is shown; `report.html.j2` owns how. The file is whole in
itself: no script, no foreign address, pictures inline. Everything that comes from data is escaped
by the template engine, and a content security policy stands behind it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from genrec.html_page import render_page
from genrec.tokenizers.measures.categories import Categories
from genrec.tokenizers.measures.code_tree import build_arcs
from genrec.tokenizers.measures.code_use import CodeTable
from genrec.tokenizers.measures.report_plots import (
    Line,
    Picture,
    draw_code_use,
    draw_lines,
    draw_map,
    draw_tree,
)
from genrec.types import FloatArray, IndexArray

PAGE_FILE = "report.html"
_TEMPLATE = Path(__file__).with_name("report.html.j2")
_ARROWS = {"higher": "↑", "lower": "↓", "neither": ""}


@dataclass(frozen=True)
class Section:
    """One vocabulary of the page.

    Shapes:
        codes: (N, L) int32.
        places: (n,) int64 items and (n, 2) float32 where they lie; None without vectors.
    """

    measured: dict[str, Any]
    codes: CodeTable
    codebook_sizes: tuple[int, ...]
    root: Categories | None
    places: tuple[IndexArray, FloatArray] | None


def write_page(out: Path, result: dict[str, Any], sections: Sequence[Section]) -> None:
    """Write `report.html` and the pictures as PNG files; older pictures are removed."""
    for old in out.glob("*.png"):
        if re.fullmatch(r"(compare|v\d+)-[a-z]+", old.stem):
            old.unlink()
    compared = list(_compare_pictures([section.measured for section in sections]))
    own = [list(_draw_section(row, section)) for row, section in enumerate(sections, start=1)]
    for picture in [*compared, *(picture for pictures in own for picture in pictures)]:
        picture.write_png(out)
    page = render_page(
        _TEMPLATE,
        result=result,
        names=[section.measured["name"] for section in sections],
        arrows=_ARROWS,
        pictures=[_place_picture(picture) for picture in compared],
        sections=[
            {"measured": section.measured, "pictures": [_place_picture(p) for p in pictures]}
            for section, pictures in zip(sections, own, strict=True)
        ],
        notes=list(list_notes(result)),
    )
    (out / PAGE_FILE).write_text(page, encoding="utf-8")


def _place_picture(picture: Picture) -> dict[str, Any]:
    return {
        "title": picture.title,
        "note": picture.note,
        "svg": Markup(picture.render_svg()),
    }


def list_notes(result: dict[str, Any]) -> Iterator[str]:
    """What a reader must know before comparing."""
    rows = result["vocabularies"]
    bases = [row["basis"] for row in rows]
    if len({basis["items"] for basis in bases}) > 1:
        yield (
            "These vocabularies name different items, so rows are shown beside each other and no "
            "best is marked."
        )
    used = {basis["vectors"] for basis in bases} - {None}
    if len(used) > 1:
        yield "Neighbours were looked for in different embeddings, which do not compare."
    foreign = [row["name"] for row in rows if row["neighbours"] and not row["basis"]["own_vectors"]]
    if foreign:
        yield (
            f"{', '.join(foreign)}: made from other embeddings than those in which neighbours are "
            f"looked for, which counts against it there. Where categories were part of the text "
            f"that was embedded, they count for the vocabularies made from it."
        )


def _compare_pictures(rows: Sequence[dict[str, Any]]) -> Iterator[Picture]:
    near: list[Line] = [
        (row["name"], [depth["agreement"] for depth in row["neighbours"]["prefixes"]])
        for row in rows
        if row["neighbours"]
    ]
    if near:
        yield Picture(
            "compare-neighbours",
            "Neighbours within a prefix",
            "How many of an item's nearest neighbours share its prefix: 0 is chance, 1 the most "
            "that group sizes allow. A line ends where every item is alone.",
            lambda palette: draw_lines(palette, near, "agreement"),
        )
    for depth, title in (("root", "Main categories"), ("leaf", "Fine categories")):
        known: list[Line] = [
            (row["name"], [prefix["ami"] for prefix in row["categories"][depth]["prefixes"]])
            for row in rows
            if row["categories"]
        ]
        if known:
            yield Picture(
                f"compare-{depth}",
                f"{title} within a prefix",
                "Adjusted mutual information of prefixes and categories: 0 is chance, 1 the same "
                "division. Longer prefixes divide more finely than categories do, so it falls.",
                lambda palette, known=known: draw_lines(palette, known, "AMI"),  # type: ignore[misc]
            )
    groups: list[Line] = [
        (row["name"], [group["item_mean"] for group in row["groups"]]) for row in rows
    ]
    yield Picture(
        "compare-groups",
        "Items that share a prefix",
        "How many items the group has that an item finds itself in, itself included, mean over "
        "items. At the full length, 1 means that every item has an ID of its own.",
        lambda palette: draw_lines(palette, groups, "items a group", log=True),
    )


def _draw_section(row: int, section: Section) -> Iterator[Picture]:
    name = section.measured["name"]
    names = section.root.names if section.root is not None else ()
    arcs = build_arcs(section.codes, section.root)
    yield Picture(
        f"v{row}-tree",
        f"Code tree of {name}",
        "Inner ring: first codes, as wide as they have items. Outer ring: first two codes. "
        + (
            "The colour is the commonest main category, paler where others are mixed in."
            if names
            else "Categories are not known."
        ),
        lambda palette: draw_tree(palette, arcs, names),
    )
    yield Picture(
        f"v{row}-codes",
        f"Code use of {name}",
        "Flat is even use; steep means that few codes carry most items.",
        lambda palette: draw_code_use(palette, section.codes, section.codebook_sizes),
    )
    if section.places is not None:
        rows, places = section.places
        yield Picture(
            f"v{row}-map",
            f"Items by first code in {name}",
            f"{len(rows):,} items; near by embedding is near on the map (t-SNE). Each first code "
            f"has one colour, by the side on which its items lie: tidy patches mean that a first "
            f"code gathers like items, confetti that it does not.",
            lambda palette: draw_map(palette, places, section.codes[rows, 0]),
        )
