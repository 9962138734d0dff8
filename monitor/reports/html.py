"""What every page shares: its frame, its style and scripts, and its tables."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import Any


def document(title: str, body: Sequence[str], data: Any, *scripts: str) -> str:
    """One self-contained HTML page that needs no network, and is complete without its scripts.

    Names come from users, and a page is passed around: whatever they hold is text, never markup.
    Only `scripts` may run, and nothing may be loaded.

    Args:
        title: Plain text.
        body: HTML, its texts escaped.
        data: What the scripts find as JSON in the element "page-data", and `base.js` as `data`.
        scripts: The page's scripts beside `base.js`, which is the first.
    """
    scripts = (static("base.js"), *scripts)
    allowed = " ".join(f"'{_fingerprint(script)}'" for script in scripts)
    policy = (
        f"default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src {allowed}"
    )
    name = html.escape(title)
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{name} · phasewatch</title><style>{static('page.css')}</style></head><body>",
            f"<main><h1>{name}</h1>",
            *body,
            "</main>",
            f'<script type="application/json" id="page-data">{_json(data)}</script>',
            *(f"<script>{script}</script>" for script in scripts),
            "</body></html>\n",
        ]
    )


def static(name: str) -> str:
    """A style or script that pages are made of."""
    return files(__package__).joinpath("static", name).read_text(encoding="utf-8")


def table(
    caption: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, named: str = ""
) -> str:
    """A table as HTML, in a frame that scrolls where the page is narrow.

    Args:
        caption: What it shows, as plain text.
        columns: Headings, as plain text; one that begins with "#" is of numbers.
        rows: The cells of each row, as HTML; the first one names the row.
        named: Its id on the page.
    """
    classes = [' class="number"' if column.startswith("#") else "" for column in columns]
    head = "".join(
        f'<th scope="col"{look}>{html.escape(column.removeprefix("#"))}</th>'
        for column, look in zip(columns, classes, strict=True)
    )

    def cells(row: Sequence[str]) -> str:
        tags = ['th scope="row"', *("td" for _ in row[1:])]
        return "".join(
            f"<{tag}{look}>{cell}</{tag[:2]}>"
            for tag, look, cell in zip(tags, classes, row, strict=True)
        )

    body = "".join(f"<tr>{cells(row)}</tr>" for row in rows)
    place = f' id="{named}"' if named else ""
    return (
        f'<div class="wide"><table{place}><caption>{html.escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def chain_box(chains: Sequence[Any], summary: str, *, shown: int | None = None) -> str:
    """Where `chains.js` draws the traces in `data.chains`.

    Args:
        chains: The traces; none makes no box.
        summary: HTML that says what they are.
        shown: The trace that is open from the start; None leaves the box closed.
    """
    if not chains:
        return ""
    return (
        f'<h2>Chains</h2><details id="chains"{"" if shown is None else " open"}>'
        f"<summary>{summary}</summary>"
        f'<input id="chain-slider" type="range" min="0" max="{len(chains) - 1}" '
        f'value="{shown or 0}" aria-label="measurement"><div id="chain-title"></div>'
        '<div id="chain-plot"></div><ul id="chain-facts"></ul></details>'
    )


def _fingerprint(script: str) -> str:
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return "sha256-" + base64.b64encode(digest).decode("ascii")


def _json(data: Any) -> str:
    """JSON that may stand inside a script element: it can neither close it nor open another."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def finite(value: float) -> float | None:
    """A number with five digits, more than a screen shows; None for NaN, which JSON lacks."""
    return float(f"{value:.5g}") if math.isfinite(value) else None
