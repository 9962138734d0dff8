"""A real Prometheus finds a run by its target file and reads it."""

import json
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
import yaml

from phasewatch.monitor.config.exports import ExporterConfig
from phasewatch.monitor.core.ending import RunState
from phasewatch.monitor.core.health import Health
from phasewatch.monitor.core.transitions import TransitionKind
from phasewatch.monitor.prometheus.sink import PrometheusSink
from support.needs import need_binary
from support.records import make_estimate, make_observation, wait_until
from support.scraping import free_port, scrape

SHIPPED = Path(__file__).parents[2] / "deploy" / "prometheus" / "prometheus.yml"
RUN = 'grok "p=53"\\'


@pytest.fixture
def sink(tmp_path):
    health = Health(step=100, leads={"val_loss": None})
    sink = PrometheusSink(RUN, ExporterConfig(port=0, targets_dir=tmp_path / "targets"), health)
    sink.emit(make_observation(100, 0.25))
    sink.emit(make_observation(100, 12.5, name="llc", unit="1", detail=make_estimate()))
    yield sink
    sink.close()


@pytest.fixture
def query(tmp_path, sink):
    """Queries a Prometheus that runs the shipped configuration, quicker."""
    binary = need_binary("prometheus")
    config = yaml.safe_load(SHIPPED.read_text())
    config["global"]["scrape_interval"] = "200ms"
    config["scrape_configs"][0]["file_sd_configs"][0]["refresh_interval"] = "200ms"
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    server = subprocess.Popen(
        [
            binary,
            f"--config.file={tmp_path / 'prometheus.yml'}",
            f"--storage.tsdb.path={tmp_path / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def ask(expression):
        url = f"http://127.0.0.1:{port}/api/v1/query?query={urllib.parse.quote(expression)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as response:
                return json.load(response)["data"]["result"]
        except (urllib.error.URLError, ConnectionError):
            assert server.poll() is None, "Prometheus has ended"
            return []

    yield ask
    server.terminate()
    server.wait(timeout=30)


@pytest.mark.slow  # Prometheus looks at changed targets every five seconds
def test_a_run_is_found_and_read_with_its_own_label(query, sink):
    wait_until(lambda: query("phasewatch_loss_nats"), what="the first sample")
    (loss,) = query("phasewatch_loss_nats")
    assert loss["value"][1] == "0.25"
    assert loss["metric"]["run"] == RUN
    assert loss["metric"]["split"] == "train"
    assert "exported_run" not in loss["metric"]
    (up,) = query("up")
    assert (up["value"][1], up["metric"]["run"]) == ("1", RUN)
    (estimate,) = query("phasewatch_lambda_hat")
    assert estimate["value"][1] == "12.5"

    # A counter born at zero: its first step is seen as a step.
    born = query('phasewatch_transitions_total{kind="generalisation"}')
    assert [sample["value"][1] for sample in born] == ["0"]
    sink._health.transitions[TransitionKind.GENERALISATION, "val_loss"] = 1
    risen = 'increase(phasewatch_transitions_total{kind="generalisation"}[1m]) > 0'
    wait_until(lambda: query(risen), what="the transition")

    # A clean end takes the target away.
    sink._health.state = RunState.FINISHED
    wait_until(lambda: query('phasewatch_run_state{state="finished"} == 1'), what="the end")
    sink.close()
    wait_until(lambda: not query("up"), what="the target's removal")


def test_the_shipped_configuration_is_valid_and_keeps_the_label():
    check = subprocess.run(
        [need_binary("promtool"), "check", "config", str(SHIPPED)], capture_output=True, text=True
    )
    assert check.returncode == 0, check.stdout + check.stderr
    for job in yaml.safe_load(SHIPPED.read_text())["scrape_configs"]:
        assert job["honor_labels"] is True


def test_the_page_passes_promtools_lint(sink):
    check = subprocess.run(
        [need_binary("promtool"), "check", "metrics"],
        input=scrape(sink.url),
        capture_output=True,
        text=True,
    )
    assert (check.returncode, check.stdout, check.stderr) == (0, "", "")
