"""Ways to train with `transformers.Trainer`: training stays equal bit for bit, and is measured."""

import numpy as np
import pytest

pytest.importorskip("transformers", reason="run by `make hf`")

from support.bitwise import differences, quietly
from support.hf import CASES, Kept, make_callback, record_case
from support.observers import Rude

PARAMETERS = [pytest.param(case, id=case.name) for case in CASES]
pytestmark = [pytest.mark.hf, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("case", PARAMETERS)
def test_training_is_not_touched_by_measuring(case, tmp_path):
    if case.needs:
        pytest.importorskip(case.needs)
    made, kept = [], Kept()

    def callbacks():
        made.append(make_callback(tmp_path / "watched", sinks=[kept]))
        return made

    plain, _, losses = quietly(lambda: record_case(case, tmp_path / "plain"))
    watched, trainer, _ = quietly(lambda: record_case(case, tmp_path / "watched", callbacks))
    assert len(plain.events) > 10
    assert differences(plain, watched) == []

    (callback,) = made
    health = callback.watch.health
    steps, values, _ = callback.history("train_loss")
    assert steps.tolist() == list(range(1, trainer.state.global_step + 1))
    np.testing.assert_allclose(values, losses, rtol=1e-6)  # summed in fp32 where it accumulates
    for name in ("gradient_norm", "weight_norm"):
        assert health.measurements[name] >= 2, health
    if case.name == "loss that turns into NaN":
        assert health.measurement_failures["llc"] >= 1  # its loss at w* is NaN
        return
    assert health.measurements["llc"] >= 2, health
    assert health.measurement_failures.total() == 0, health
    evaluated = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    steps, values, _ = callback.history("eval_loss")
    assert steps.tolist() == [entry["step"] for entry in evaluated]
    np.testing.assert_array_equal(values, [entry["eval_loss"] for entry in evaluated])
    if case.terms:
        assert {o.detail.n_samples for o in kept.seen if o.name == "llc"} == {case.terms}


@pytest.mark.parametrize("when", ["early", "middle", "late"])
def test_training_is_not_touched_when_a_measurement_raises(when, tmp_path):
    case = next(case for case in CASES if case.name == "net of one's own")
    rude, made = Rude(when), []

    def callbacks():
        made.append(make_callback(tmp_path / "watched", observables=["weight_norm", rude]))
        return made

    plain, _, _ = quietly(lambda: record_case(case, tmp_path / "plain"))
    watched, _, _ = quietly(lambda: record_case(case, tmp_path / "watched", callbacks))
    assert differences(plain, watched) == []
    assert when in rude.reached
    assert made[0].watch.health.measurement_failures["rude"] >= 1
