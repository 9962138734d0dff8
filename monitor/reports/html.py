"""What every page shares: its frame, its style, and the script that draws a report."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
from collections.abc import Sequence
from typing import Any

from plotly.offline import get_plotlyjs


def document(title: str, body: Sequence[str], data: Any, script: str) -> str:
    """One self-contained HTML page that needs no network.

    Names come from users, and a page is passed around: whatever they hold is text, never markup.
    Only plotly.js and `script` may run, and nothing may be loaded.

    Args:
        title: Plain text.
        body: HTML, its texts escaped.
        data: What `script` finds as JSON in the element "page-data".
        script: The page's own script.
    """
    plotly = get_plotlyjs()
    policy = (
        "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; "
        f"script-src '{_fingerprint(plotly)}' '{_fingerprint(script)}'"
    )
    name = html.escape(title)
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{name} · phasewatch</title><style>{STYLE}</style></head><body>",
            f"<h1>{name}</h1>",
            *body,
            f'<script type="application/json" id="page-data">{_json(data)}</script>',
            f"<script>{plotly}</script>",
            f"<script>{script}</script>",
            "</body></html>\n",
        ]
    )


def chain_box(chains: Sequence[Any], summary: str, *, shown: int | None = None) -> str:
    """Where `CHAIN_SCRIPT` draws the traces in `data.chains`.

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


STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
  max-width: 1240px; margin: 0 auto; padding: 1.2rem 1.5rem 3rem; }
h1 { font-size: 1.5rem; margin: 0 0 .2rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
.sub { color: #555; margin: 0 0 1rem; }
.found { font-size: 1.05rem; padding: .6rem .9rem; border-left: 4px solid #009E73;
  background: #f1f8f5; margin: .8rem 0; }
.found.none { border-color: #7f7f7f; background: #f5f5f5; }
table { border-collapse: collapse; font-size: .92rem; }
.wide { overflow-x: auto; }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #e2e2e2;
  vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
td:first-child { white-space: nowrap; }
.card { border: 1px solid #ddd; border-left: 4px solid; border-radius: 6px; margin: .8rem 0;
  padding: .5rem .9rem; }
.card h4 { margin: 0 0 .3rem; font-size: 1rem; }
.card dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem .9rem; margin: 0; }
.card dt { color: #555; }
.card dd { margin: 0; overflow-wrap: anywhere; }
details { margin: .6rem 0; border: 1px solid #ddd; border-radius: 6px; padding: .5rem .9rem; }
summary { cursor: pointer; font-weight: 600; }
pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; font-size: .85rem; }
button { font: inherit; font-size: .88rem; padding: .15rem .7rem; border: 1px solid #999;
  border-radius: 5px; background: #fafafa; cursor: pointer; margin-right: .4rem; }
#chain-slider { width: 100%; margin: .6rem 0; }
#chain-facts { display: flex; flex-wrap: wrap; gap: .1rem 1.4rem; margin: .3rem 0 0; padding: 0;
  font-size: .88rem; color: #444; list-style: none; }
.note { color: #555; font-size: .9rem; }
"""

HEAD_SCRIPT = """
"use strict";
const data = JSON.parse(document.getElementById("page-data").textContent);
const options = { responsive: true, displaylogo: false };
"""

CHAIN_SCRIPT = """
let showChains = () => {};
const box = document.getElementById("chains");
if (box) {
  const slider = document.getElementById("chain-slider");
  const plot = document.getElementById("chain-plot");
  const colours = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"];
  const draw = () => {
    const one = data.chains[Number(slider.value)];
    document.getElementById("chain-title").textContent =
      one.title + " (" + (Number(slider.value) + 1) + " of " + data.chains.length + ")";
    const facts = document.getElementById("chain-facts");
    facts.replaceChildren(...Object.entries(one.facts).map(([key, value]) => {
      const item = document.createElement("li");
      item.textContent = key + ": " + value;
      return item;
    }));
    const traces = one.loss.map((loss, i) => ({
      x: one.draw, y: loss, mode: "lines", name: "chain " + (i + 1),
      line: { color: colours[i % colours.length], width: 1.4 },
    }));
    const ends = [one.draw[0], one.draw[one.draw.length - 1]];
    traces.push({ x: ends, y: [one.init, one.init], mode: "lines", name: "loss at w*",
      line: { color: "#595959", dash: "dash", width: 1.4 } });
    Plotly.react(plot, traces, {
      height: 340, margin: { t: 32, b: 45, l: 75, r: 20 },
      xaxis: { title: { text: "draw after burn-in" } },
      yaxis: { title: { text: "probe loss (nats)" } },
      font: { family: "system-ui, sans-serif", size: 13 },
    }, options);
  };
  slider.addEventListener("input", draw);
  box.addEventListener("toggle", () => { if (box.open) draw(); });
  if (box.open) draw();
  showChains = (at) => {
    slider.value = at; box.open = true; draw();
    box.scrollIntoView({ behavior: "smooth", block: "nearest" });
  };
}
"""

SCRIPT = (
    HEAD_SCRIPT
    + CHAIN_SCRIPT
    + """
const main = document.getElementById("overview");
if (data.figure.data.length) Plotly.newPlot(main, data.figure.data, data.figure.layout, options);
function toggle(id, axes, after) {
  const button = document.getElementById(id);
  if (!button) return;
  button.addEventListener("click", () => {
    const current = main.layout[axes[0]].type;
    const next = current === "log" ? "linear" : "log";
    const change = {};
    for (const axis of axes) { change[axis + ".type"] = next; change[axis + ".autorange"] = true; }
    if (after) after(change, next);
    Plotly.relayout(main, change);
    button.textContent = button.textContent.replace(/(log|linear)$/, current);
  });
}
// Annotations, unlike curves and bands, stand at the logarithm on a logarithmic axis.
toggle("step-scale", ["xaxis"], (change, next) => {
  (data.marks || []).forEach((step, i) => {
    change["annotations[" + i + "].x"] = next === "log" ? Math.log10(Math.max(step, 1)) : step;
  });
});
toggle("llc-scale", data.llc_axes);
main.on && main.on("plotly_click", (event) => {
  const step = event.points[0].x;
  const at = data.chains.findIndex((one) => one.step === step);
  if (at >= 0) showChains(at);
});
"""
)
