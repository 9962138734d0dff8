"""Every kind of module, whatever becomes of its measurements: training stays equal bit for bit."""

import functools

import lightning.pytorch as pl
import numpy as np
import pytest

from phasewatch.monitor.core.ending import RunState
from phasewatch.monitor.core.errors import ConfigError
from phasewatch.monitor.core.estimates import EstimateStatus
from support.bitwise import differences
from support.observers import NORMS, Rude, make_monitor, stop_at
from support.training import record_case, unmonitored
from support.zoo import KINDS, OUTCOMES, find

QUICK = ("measured while another raises in the middle",)
ENGINES = {"measured": "auto", "measured in a plain loop": "loop", "measured by vmap": "vmap"}
DEFAULTS = (*ENGINES, "diverges")
MOMENTS = {
    "measured while another raises in the middle": "middle",
    "raises early": "early",
    "raises in the middle": "middle",
    "raises late": "late",
}
STOP_STEP = 6
EVERY = 3
WAYS_OUT = ("loss_fn", "parameters=", "copy.deepcopy")


@functools.cache
def _interrupted(name, folder):
    return record_case(find(name), folder, monitors=lambda: [stop_at(pl, STOP_STEP)])


def _options(case, outcome, rude):
    if outcome in ENGINES:
        return {"sampler": {"engine": ENGINES[outcome]}}
    if outcome == "diverges":
        return {"sampler": {"scheme": "sgld", "step_size": 1e30}}
    if outcome in QUICK:
        named = [*NORMS, *(["llc"] if case.llc == "measured" else [])]
        return {"observables": [*named, rude], "sampler": {"engine": "auto"}}
    return {"observables": ["weight_norm", rude]}


def _rude(outcome):
    if outcome == "interrupted":
        return Rude("middle", KeyboardInterrupt, from_step=STOP_STEP)
    return Rude(MOMENTS.get(outcome, "never"))


def _check_measured(case, outcome, monitor, rude):
    """What the run was compared for: measuring really took place, or was refused with a reason."""
    health = monitor.watch.health
    if outcome in MOMENTS:
        assert MOMENTS[outcome] in rude.reached
        assert health.measurement_failures["rude"] > 0
        assert health.measurements["weight_norm"] >= 3
        if outcome in QUICK and case.llc == "measured":
            assert health.measurements["llc"] >= 3, health
        return
    if outcome == "interrupted":
        assert rude.steps[-1] == STOP_STEP
        assert health.state is RunState.INTERRUPTED
        return
    for name in case.norms:
        assert health.measurements[name] >= 3, health
        assert np.isfinite(monitor.history(name)[1]).all()
    for name in set(NORMS) - set(case.norms):
        assert health.skip_reasons[name]
    assert health.measurement_failures.total() == 0, health
    if outcome == "measured by vmap" and health.skipped["llc"]:
        assert case.llc == "refused" or "vmap" in health.skip_reasons["llc"]
        return
    if case.llc == "refused":
        assert health.skipped["llc"] == 1
        assert any(way in health.skip_reasons["llc"] for way in WAYS_OUT)
        assert health.measurements["llc"] == 0
        return
    assert health.measurements["llc"] >= 3, health
    if outcome == "diverges":
        assert health.estimates[EstimateStatus.DIVERGED] >= 3
    else:
        steps, values, _ = monitor.history("llc", include_unconverged=True)
        assert len(steps) == health.measurements["llc"]
        assert np.isfinite(values).all()


def _marked(case, outcome):
    slow = case.is_slow or outcome not in QUICK
    marks = [pytest.mark.slow] if slow else []
    return pytest.param(case, outcome, marks=marks, id=f"{case.name}, {outcome}")


def _measures_anything(case, outcome):
    """Where nothing can be measured, naming an observable is an error: there is no run."""
    return case.norms or outcome in DEFAULTS


@pytest.mark.parametrize(
    ("case", "outcome"),
    [
        _marked(case, outcome)
        for case in KINDS
        for outcome in OUTCOMES
        if _measures_anything(case, outcome)
    ],
)
def test_training_is_not_touched(case, outcome, tmp_path, tmp_path_factory):
    rude = _rude(outcome)
    made = []

    def monitors():
        made.append(
            make_monitor(tmp_path, **({"every_n_steps": EVERY} | _options(case, outcome, rude)))
        )
        return made

    watched = record_case(case, tmp_path, monitors=monitors)
    if outcome == "interrupted":
        clean = _interrupted(case.name, tmp_path_factory.getbasetemp())
    else:
        clean = unmonitored(case.name)
    assert differences(clean, watched) == []
    _check_measured(case, outcome, made[0], rude)


@pytest.mark.parametrize("case", [c for c in KINDS if c.llc == "refused"], ids=lambda c: c.name)
def test_naming_what_cannot_be_measured_is_an_error_before_the_first_step(case, tmp_path):
    record = None
    with pytest.raises(ConfigError, match="|".join(WAYS_OUT)):
        record = record_case(
            case,
            tmp_path,
            monitors=lambda: [make_monitor(tmp_path, observables=["weight_norm", "llc"])],
        )
    assert record is None


@pytest.mark.parametrize("name", ["dropout and BatchNorm", "frozen BatchNorm"])
def test_a_probe_in_train_mode_does_not_touch_training_either(name, tmp_path):
    made = []

    def monitors():
        made.append(make_monitor(tmp_path, every_n_steps=EVERY, probe_config={"mode": "train"}))
        return made

    watched = record_case(find(name), tmp_path, monitors=monitors)
    assert differences(unmonitored(name), watched) == []
    assert made[0].watch.health.measurements["llc"] == 3
