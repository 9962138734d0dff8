"""Precision, ways to step and kinds of data: training stays equal bit for bit."""

import numpy as np
import pytest

from support.bitwise import differences
from support.observers import NORMS, Rude, make_monitor
from support.training import record_case, unmonitored
from support.zoo import DATA, OPTIMIZATION, PRECISION

FIXED_STEP = {"step_size": 1e-4}  # saves the search for one
CASES = (*PRECISION, *OPTIMIZATION, *DATA)
PARAMETERS = [
    pytest.param(case, id=case.name, marks=[pytest.mark.slow] if case.is_slow else [])
    for case in CASES
]


@pytest.mark.parametrize("case", PARAMETERS)
def test_training_is_not_touched_by_measuring(case, tmp_path):
    made = []

    def monitors():
        made.append(
            make_monitor(tmp_path, sampler=FIXED_STEP, **({"every_n_steps": 3} | case.monitor))
        )
        return made

    watched = record_case(case, tmp_path, monitors=monitors)
    assert differences(unmonitored(case.name), watched) == []

    health = made[0].watch.health
    for name in case.norms:
        assert health.measurements[name] >= 2, health
    for name in set(NORMS) - set(case.norms):
        assert health.skip_reasons[name]
    if case.llc == "refused":
        assert "loss_fn" in health.skip_reasons["llc"]
    else:
        assert health.measurements["llc"] >= 2, health
    if case.name == "loss that turns into NaN":
        assert health.measurement_failures["llc"] >= 1  # its loss at w* is NaN
    else:
        assert health.measurement_failures.total() == 0, health
        assert all(np.isfinite(made[0].history(name)[1]).all() for name in case.norms)


@pytest.mark.slow
@pytest.mark.parametrize("case", PARAMETERS)
def test_training_is_not_touched_when_a_measurement_raises(case, tmp_path):
    rude = Rude("middle")
    made = []

    def monitors():
        observables = ["weight_norm", "gradient_norm", rude]
        made.append(make_monitor(tmp_path, **(dict(case.monitor) | {"observables": observables})))
        return made

    watched = record_case(case, tmp_path, monitors=monitors)
    assert differences(unmonitored(case.name), watched) == []
    health = made[0].watch.health
    assert "middle" in rude.reached
    assert health.measurement_failures["rude"] >= 1
    assert health.measurements["weight_norm"] >= 2
