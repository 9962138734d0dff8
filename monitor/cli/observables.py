"""`phasewatch observables`: everything that can be measured, and what each needs and costs."""

from __future__ import annotations

from phasewatch.monitor.cli.output import JsonOption, add_row, new_table, plain, print_json, say

LEGEND = (
    "time (of the processor) and memory: of one measurement, beside the copy of the model, on "
    "models of\nup to 10³, some 10⁵ and some 10⁶ parameters (--json says how many); {conditions}"
)


def observables(as_json: JsonOption = False) -> None:
    """List the observables: unit, cost, what each needs, and where it comes from."""
    from phasewatch.monitor.observables import catalogue  # imports torch
    from phasewatch.monitor.observables.costs import conditions

    found = list(catalogue())
    if as_json:
        print_json([plain(entry) for entry in found])
        return
    table = new_table("", "observable", "unit", "cost", "time", "memory", "needs", "source")
    for entry in found:
        arguments = f"arguments {', '.join(entry.arguments)}" if entry.arguments else ""
        needs = "; ".join(filter(None, (entry.needs, arguments)))
        spent = entry.measured
        add_row(
            table,
            entry.name,
            entry.unit,
            entry.cost.value,
            spent.duration if spent else "not measured",
            spent.memory if spent else "",
            needs or "nothing",
            entry.source,
        )
    say(table)
    say(LEGEND.format(conditions=conditions()))
