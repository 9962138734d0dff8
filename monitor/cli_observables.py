"""`phasewatch observables`: everything that can be measured, and what each needs and costs."""

from __future__ import annotations

from phasewatch.monitor.cli_common import JsonOption, add_row, new_table, plain, print_json, say


def observables(as_json: JsonOption = False) -> None:
    """List the observables: unit, cost, what each needs, and where it comes from."""
    from phasewatch.monitor.observables import catalogue  # imports torch

    found = list(catalogue())
    if as_json:
        print_json([plain(entry) for entry in found])
        return
    table = new_table("", "observable", "unit", "cost", "needs", "source")
    for entry in found:
        arguments = f"arguments {', '.join(entry.arguments)}" if entry.arguments else ""
        needs = "; ".join(filter(None, (entry.needs, arguments)))
        add_row(table, entry.name, entry.unit, entry.cost.value, needs or "nothing", entry.source)
    say(table)
