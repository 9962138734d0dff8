"""A stored run becomes blocks, and a real Prometheus answers from them."""

import subprocess
import sys
import time

import pytest

from phasewatch.monitor.core.ending import RunState
from phasewatch.monitor.core.transitions import TransitionStatus
from phasewatch.monitor.store.store import Store
from support.needs import need_binary
from support.records import make_estimate, make_observation, make_transition
from support.servers import running_prometheus


@pytest.mark.slow  # a server and two processes
def test_a_stored_run_is_queried_in_prometheus(tmp_path):
    begin = time.time() - 7200
    path = tmp_path / "runs.db"
    with Store(path) as store:
        store.begin_run(name='grok "p=53"', run_id="aaaa1111")
        for step in range(1, 61):
            at = begin + 10 * step
            store.add_observation("aaaa1111", 1, make_observation(step, 1 / step, timestamp=at))
        estimate = make_estimate(1, rhat=1.01)
        store.add_observation(
            "aaaa1111",
            1,
            make_observation(
                1, 12.5, name="llc", unit="1", stderr=0.25, timestamp=begin + 5, detail=estimate
            ),
        )
        store.add_transition(
            make_transition(
                "aaaa1111",
                detected_step=30,
                detected_at=begin + 300,
                status=TransitionStatus.CONFIRMED,
            )
        )
        store.end_run("aaaa1111", 1, RunState.FINISHED)
    history, data = tmp_path / "history.om", tmp_path / "data"
    command = [sys.executable, "-m", "phasewatch.monitor.cli.main", "export", "aaaa1111"]
    told = subprocess.run(
        [*command, "--openmetrics", "--store", str(path), "--out", str(history)],
        check=True,
        capture_output=True,
        text=True,
    )
    assert "samples of" in told.stderr
    subprocess.run(
        [need_binary("promtool"), "tsdb", "create-blocks-from", "openmetrics", history, data],
        check=True,
        capture_output=True,
    )
    config = tmp_path / "prometheus.yml"
    config.write_text("global: {}\n")
    with running_prometheus(config, data) as query:
        middle = f"{begin + 405:.3f}"
        (loss,) = query("phasewatch_loss_nats", time=middle)
        assert loss["metric"]["run"] == 'grok "p=53"'
        assert float(loss["value"][1]) == pytest.approx(1 / 40)
        # Measured once, 400 s before: Prometheus alone would have forgotten it.
        (estimate,) = query("phasewatch_lambda_hat", time=middle)
        assert estimate["value"][1] == "12.5"
        (count,) = query("count_over_time(phasewatch_loss_nats[20m])", time=f"{begin + 1000:.3f}")
        assert int(count["value"][1]) == 60
        (last,) = query("last_over_time(phasewatch_run_step[20m])", time=f"{begin + 1000:.3f}")
        assert last["value"][1] == "60"
