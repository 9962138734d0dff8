"""Full runs of examples/superposition.py, replayed: polygons, their λ̂, and the transitions.

A polygon is told from the loss at rest alone: those of the closed forms, and for the square 1/9
with two dead features, 5/48 and 7/72 with one and two of them at positive bias.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from phasewatch.monitor.core.transitions import TransitionKind, TransitionStatus
from phasewatch.monitor.sampling.closed_forms import POLYGONS
from support.recorded import GOLDEN, read, transitions_of

LEVELS = {p.name: p.loss for p in POLYGONS} | {"4": 1 / 9, "4+": 5 / 48, "4++": 7 / 72}
CLOSED_FORMS = {p.name: p.truth for p in POLYGONS}
EVERY = 300  # steps between measurements of λ̂


def history(seed):
    streams = {}
    for o in read(GOLDEN / f"superposition_{seed}.npz"):
        streams.setdefault(o.name, {})[o.step] = (o.value, o.stderr)
    return streams


def stages(streams):
    """Polygon at each step, by the loss; None where it is that of no polygon."""
    found = {}
    for step, (loss, _) in streams["quenched_loss"].items():
        near = [name for name, level in LEVELS.items() if abs(loss / level - 1) < 0.01]
        found[step] = near[0] if near else None
    return found


SEEDS = {
    0: ["4", "5-gon", "5-gon+"],
    1: ["4", "4+", "5-gon", "5-gon+", "6-gon"],
    2: ["4"],
}
"""The polygons that each run went through; the last never left the square."""


@pytest.mark.parametrize("seed", SEEDS)
def test_a_run_goes_from_polygon_to_polygon_downhill(seed) -> None:
    streams = history(seed)
    found = stages(streams)
    order = [name for name in found.values() if name is not None]
    visits = [order[0], *(b for a, b in pairwise(order) if a != b)]
    assert visits == SEEDS[seed]
    for step, name in found.items():
        if name is not None:
            assert streams["polygon"][step][0] == int(name[0]), step


@pytest.mark.parametrize("seed", [0, 1])
def test_the_llc_on_a_plateau_is_the_closed_form_of_its_polygon(seed) -> None:
    streams = history(seed)
    found = stages(streams)
    compared = 0
    for name in set(found.values()) & set(CLOSED_FORMS):
        there = [found.get(step) == name for step in streams["llc"]]
        measured = np.array(list(streams["llc"].values()))[there]
        if len(measured) >= 3:
            assert abs(measured[:, 0].mean() - CLOSED_FORMS[name]) < 0.5, name
            compared += 1
    assert compared == 2


@pytest.mark.parametrize(("seed", "number"), [(0, 2), (1, 3)])
def test_each_transition_is_an_acquisition_where_the_polygon_changes(seed, number) -> None:
    found = stages(history(seed))
    changes = [b for a, b in pairwise(found) if found[a] != found[b]]
    transitions = transitions_of(GOLDEN / f"superposition_{seed}.npz")
    assert [t.kind for t in transitions] == [TransitionKind.ACQUISITION] * number
    assert {t.status for t in transitions} == {TransitionStatus.ENDED}
    for transition in transitions:
        assert min(abs(transition.onset_step - change) for change in changes) <= EVERY


def test_a_run_that_stays_at_the_square_has_no_transition() -> None:
    assert transitions_of(GOLDEN / "superposition_2.npz") == []
