"""Runs that finish, fail and die, and one behind TLS, as a real Prometheus sees them."""

import subprocess
import time
from pathlib import Path

import pytest
import yaml

from phasewatch.monitor.config.exports import ExporterConfig
from phasewatch.monitor.core.ending import RunState
from phasewatch.monitor.core.health import Health
from phasewatch.monitor.core.transitions import TransitionKind
from phasewatch.monitor.prometheus.sink import PrometheusSink
from support.needs import need_binary
from support.records import make_observation, make_transition, start_python, wait_until
from support.servers import running_prometheus

SHIPPED = Path(__file__).parents[2] / "deploy" / "prometheus" / "prometheus.yml"

pytestmark = pytest.mark.slow  # Prometheus looks at changed targets every five seconds


@pytest.fixture
def prometheus(tmp_path):
    """Starts a Prometheus that runs the shipped scrape configuration, quicker."""
    stack = []

    def start(*options, **job):
        config = yaml.safe_load(SHIPPED.read_text())
        config["global"] = {"scrape_interval": "200ms"}
        config.pop("rule_files", None)
        config.pop("alerting", None)
        config["scrape_configs"] = config["scrape_configs"][:1]
        config["scrape_configs"][0] |= job
        config["scrape_configs"][0]["file_sd_configs"][0]["refresh_interval"] = "200ms"
        file = tmp_path / "prometheus.yml"
        file.write_text(yaml.safe_dump(config))
        stack.append(running_prometheus(file, tmp_path / "data", *options))
        return stack[-1].__enter__()

    yield start
    for server in stack:
        server.__exit__(None, None, None)


RUN = """
import sys, time
from phasewatch.monitor import Watch
config = {"run_name": sys.argv[2], "store": sys.argv[1] + "/runs.db", "experiment": "primes",
          "exporter": {"port": 0, "targets_dir": sys.argv[1] + "/targets"}}
with Watch(config, observables=[]) as watch:
    watch.observe(1, {"train_loss": 0.5})
    watch.drain()
    print("ready", flush=True)
    sys.stdin.readline()
    if sys.argv[2] == "raised":
        raise ValueError("boom")
"""


def test_how_runs_end_is_seen_by_prometheus_and_only_the_killed_one_is_down(tmp_path, prometheus):
    query = prometheus()
    children = {run: start_python(RUN, tmp_path, run) for run in ("finished", "raised", "killed")}
    for child in children.values():
        assert child.stdout.readline() == "ready\n"
    wait_until(
        lambda: len(query('phasewatch_run_state{state="running"} == 1')) == 3,
        what="the first samples",
        seconds=60,
    )
    (up,) = query('up{run="killed"}')
    assert (up["metric"]["experiment"], bool(up["metric"]["host"])) == ("primes", True)
    children["killed"].kill()
    for child in children.values():
        child.communicate("\n" if child.poll() is None else None)
    # Nobody has told these two to wait: they have seen a Prometheus come, and waited for it.
    for run, state in (("finished", "finished"), ("raised", "failed")):
        ended = f'last_over_time(phasewatch_run_state{{run="{run}",state="{state}"}}[5m]) == 1'
        assert query(ended)
    wait_until(lambda: [s["metric"]["run"] for s in query("up == 0")] == ["killed"], seconds=60)
    wait_until(lambda: len(query("up")) == 1, what="the others' removal", seconds=60)
    assert query('last_over_time(phasewatch_run_state{run="killed",state="running"}[5m]) == 1')


def test_tls_with_client_certificates_and_an_exemplar(tmp_path, prometheus):
    openssl = need_binary("openssl")
    for name in ("server", "client"):
        command = (
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 "
            f"-subj /CN={name} -addext subjectAltName=IP:127.0.0.1 "
            f"-keyout {name}.key -out {name}.pem"
        )
        subprocess.run([openssl, *command.split()], cwd=tmp_path, check=True, capture_output=True)
    health = Health(step=7, leads={"val_loss": None})
    health.transitions[TransitionKind.GENERALISATION, "val_loss"] = 1
    health.last_transition = make_transition("demo", detected_at=time.time())
    config = ExporterConfig(
        port=0,
        targets_dir=tmp_path / "targets",
        certfile=tmp_path / "server.pem",
        keyfile=tmp_path / "server.key",
        client_cafile=tmp_path / "client.pem",
    )
    sink = PrometheusSink("demo", config, health)
    sink.emit(make_observation(7, 0.25))
    query = prometheus(
        "--enable-feature=exemplar-storage",
        tls_config={"ca_file": "server.pem", "cert_file": "client.pem", "key_file": "client.key"},
    )
    wait_until(lambda: query("phasewatch_loss_nats"), what="the first sample", seconds=60)
    (up,) = query("up")
    assert up["value"][1] == "1"
    span = {"start": f"{time.time() - 3600}", "end": f"{time.time() + 3600}"}
    (found,) = query("phasewatch_transitions_total", "query_exemplars", **span)
    (exemplar,) = found["exemplars"]
    assert exemplar["labels"] == {"transition": "t1", "onset_step": "80"}
    health.state = RunState.FINISHED
    sink.close()
    assert query('last_over_time(phasewatch_run_state{state="finished"}[5m]) == 1')
