"""One example for each kind of loop that is watched without a callback, and the Trainer's."""

import numpy as np
import pytest

from phasewatch.monitor.store.store import Store


def stored(tmp_path, run):
    with Store(tmp_path / "demo" / "phasewatch.db", create=False) as store:
        info = store.run(run)
        return {
            name: store.history(info.id, name, include_unconverged=True)
            for name in store.names(info.id)
        }


@pytest.mark.parametrize(
    ("script", "needs"),
    [
        ("scaler_loop", "torch"),
        ("fabric_loop", "lightning"),
        pytest.param("accelerate_loop", "accelerate", marks=pytest.mark.hf),
    ],
)
def test_every_step_is_counted_and_the_norm_is_that_of_the_loss(rehearse, tmp_path, script, needs):
    pytest.importorskip(needs, reason="run by `make hf`")
    rehearse(f"{script}.py")
    found = stored(tmp_path, script.replace("_loop", "-seed0"))
    assert found["train_loss"][0].tolist() == list(range(1, 61))
    assert found["gradient_norm"][0].tolist() == [20, 40, 60]
    assert found["llc"][0].tolist() == [20, 40, 60]
    # The loss is about 60 nats there: 65536 times as large a gradient would be seen.
    assert (found["gradient_norm"][1] < 100).all()
    assert np.isfinite(found["llc"][1]).all()


@pytest.mark.hf
@pytest.mark.filterwarnings("ignore")
def test_the_trainer_of_transformers_is_watched(rehearse, tmp_path):
    pytest.importorskip("transformers", reason="run by `make hf`")
    said = rehearse("hf_grokking.py")
    assert "report: demo/report.html" in said
    found = stored(tmp_path, "hf-grokking-seed0")
    assert found["train_loss"][0].tolist() == list(range(1, 61))
    assert {"eval_loss", "eval_accuracy", "llc", "weight_norm"} <= found.keys()
