"""Full runs of examples/deep_linear.py, replayed: each singular value is an acquisition."""

from __future__ import annotations

import numpy as np
import pytest

from phasewatch.monitor.core.estimates import EstimateStatus
from phasewatch.monitor.core.transitions import TransitionKind
from phasewatch.monitor.sampling.closed_forms import deep_linear_lambda
from support.recorded import GOLDEN, read, transitions_of

WIDTHS, TARGET, HIDDEN = (10, 4, 10), (4.0, 2.0, 1.0), 0.03
SEEDS = (0, 1, 2)


def history(seed):
    streams = {}
    for o in read(GOLDEN / f"deep_linear_{seed}.npz"):
        streams.setdefault(o.name, {})[o.step] = o
    return streams


def first_above(stream, level):
    return min(step for step, o in stream.items() if o.value > level)


@pytest.mark.parametrize("seed", SEEDS)
def test_there_is_one_acquisition_for_each_singular_value_while_it_is_learnt(seed) -> None:
    streams = history(seed)
    transitions = transitions_of(GOLDEN / f"deep_linear_{seed}.npz")
    assert [t.kind for t in transitions] == [TransitionKind.ACQUISITION] * len(TARGET)
    for i, (transition, goal) in enumerate(zip(transitions, TARGET, strict=True), start=1):
        stream = streams[f"singular_value_{i}"]
        # from where it first shows to where half of it is learnt
        assert first_above(stream, HIDDEN) - 25 <= transition.onset_step, i
        assert transition.onset_step <= first_above(stream, goal / 2), i
        assert f"singular_value_{i}" in transition.evidence


@pytest.mark.parametrize("seed", SEEDS)
def test_the_llc_of_the_function_climbs_the_closed_forms(seed) -> None:
    streams = history(seed)
    learnt = {
        step: [streams[f"singular_value_{i}"][step].value for i in (1, 2, 3)]
        for step in streams["singular_value_1"]
    }
    means = []
    for rank in range(len(TARGET) + 1):
        there = [
            o.value
            for step, o in streams["function_llc"].items()
            if all(
                value > 0.95 * goal if i < rank else value < HIDDEN
                for i, (value, goal) in enumerate(zip(learnt[step], TARGET, strict=True))
            )
        ]
        if len(there) >= 2:
            means.append(np.mean(there))
            truth, multiplicity = deep_linear_lambda(WIDTHS, rank)
            expected = truth - (multiplicity - 1) / np.log(10_000)
            assert abs(means[-1] - expected) < 0.06 * expected, rank
    assert len(means) == 4
    assert min(np.diff(means)) > 2.0  # the closed forms are 3.5 or 4 apart


@pytest.mark.parametrize("seed", SEEDS)
def test_at_a_saddle_the_llc_of_the_loss_is_marked_negative(seed) -> None:
    streams = history(seed)
    there = [
        o for step, o in streams["llc"].items() if streams["singular_value_3"][step].value < 0.5
    ]
    assert len(there) >= 20
    assert {o.status for o in there} == {EstimateStatus.UNCONVERGED}  # what is recorded: not OK
    assert max(o.value for o in there) < -20.0
