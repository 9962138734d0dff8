"""Write docs/observables.md from the observables themselves: `make docs`."""

from __future__ import annotations

import inspect
from pathlib import Path

from phasewatch.monitor.core.work import Cost
from phasewatch.monitor.observables import catalogue, factory_of

PAGE = Path(__file__).with_name("observables.md")

COSTS = {
    Cost.STEP: "reads what was recorded at the optimizer step",
    Cost.WEIGHTS: "reads the weights",
    Cost.FORWARD: "forward passes over its data, no gradients",
    Cost.GRADIENT: "tens of gradients or Hessian-vector products, at most a hundred",
    Cost.SAMPLING: "hundreds of gradients: Markov chains",
}


def definition(observable: object) -> str:
    """What the docstring says before it comes to arguments and errors."""
    text = inspect.getdoc(observable) or ""
    for heading in ("\nArgs:", "\nAttributes:", "\nRaises:", "\nExample:"):
        text = text.partition(heading)[0]
    return text.strip()


def render() -> str:
    """The whole page."""
    entries = list(catalogue())
    lines = [
        "# Observables",
        "",
        "This page is made from `monitor/observables` by `make docs`. Change it there.",
        "`phasewatch observables` prints the table with what each costs in seconds and memory.",
        "",
        'Ask for them by name: `TransitionMonitor(observables=["llc", "hessian_trace"])`, or in',
        "YAML with arguments: `observables: {hessian_trace: {every_n_steps: 9, parameters: {…}}}`.",
        '`observables="all"` measures everything that needs no arguments and fits the model. An',
        "observable that you name and that the model lacks is an error before the first step.",
        "What needs a function or data takes its place as an object, made in your code.",
        "",
        "| Observable | Unit | Cost | Needs | Source |",
        "| --- | --- | --- | --- | --- |",
    ]
    for entry in entries:
        arguments = ", ".join(f"`{argument}`" for argument in entry.arguments)
        needs = "; ".join(filter(None, (entry.needs, arguments and f"arguments {arguments}")))
        cells = (f"[`{entry.name}`](#{entry.name})", entry.unit, entry.cost.value, needs or "–")
        lines.append(f"| {' | '.join(cells)} | {entry.source} |")
    lines += [
        "",
        "| Cost | What a measurement takes |",
        "| --- | --- |",
        *(f"| {cost.value} | {meaning} |" for cost, meaning in COSTS.items()),
        "",
    ]
    for entry in entries:
        lines += [f"## {entry.name}", "", "```text", definition(factory_of(entry.name)), "```", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
