"""`phasewatch observables`: the list of everything that can be measured."""

import json

from phasewatch.monitor.observables import BUILTIN, catalogue
from phasewatch.monitor.observables.costs import conditions


def test_every_observable_has_a_row_with_unit_cost_needs_and_source(phasewatch, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    code, out, _ = phasewatch("observables")
    assert code == 0
    lines = out.splitlines()
    rows = {line.split()[0]: line for line in lines if line.strip().startswith(tuple(BUILTIN))}
    assert set(rows) == set(BUILTIN)
    for entry in catalogue():
        row = rows[entry.name]
        for said in (entry.unit, entry.cost.value, entry.needs, entry.source):
            assert said in row, (entry.name, said)
        spent = (entry.measured.duration, entry.measured.memory) if entry.measured else ()
        assert all(said in row for said in spent), entry.name
    assert "arguments slices" in rows["llc_slices"]
    assert "nothing" in rows["weight_norm"]


def test_below_it_is_said_what_the_costs_were_taken_on(phasewatch):
    code, out, _ = phasewatch("observables")
    assert code == 0
    assert conditions() in out
    assert "up to 10³, some 10⁵ and some 10⁶ parameters" in out


def test_a_narrow_terminal_still_shows_every_name(phasewatch, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = phasewatch("observables")
    assert code == 0
    assert [name for name in BUILTIN if name not in out] == []


def test_as_json_it_holds_the_same_for_scripts(phasewatch):
    code, out, _ = phasewatch("observables", "--json")
    assert code == 0
    found = {entry["name"]: entry for entry in json.loads(out)}
    assert set(found) == set(BUILTIN)
    for entry in catalogue():
        listed = found[entry.name]
        assert listed["cost"] == entry.cost
        assert (listed["unit"], listed["needs"]) == (entry.unit, entry.needs)
        assert listed["arguments"] == list(entry.arguments)
        if entry.measured is not None:
            assert listed["measured"]["cpu_seconds"] == list(entry.measured.cpu_seconds)
            assert listed["measured"]["parameters"] == list(entry.measured.parameters)
            assert listed["measured"]["bytes"] == list(entry.measured.bytes)
    assert found["llc"]["measured"] is not None
