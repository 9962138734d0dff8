"""A real Pushgateway between a run and a real Prometheus, and the alert on what is old there."""

import subprocess
import urllib.error

import pytest
import yaml

from phasewatch.monitor.config.exports import PushgatewayConfig
from phasewatch.monitor.core.ending import RunState
from phasewatch.monitor.core.health import Health
from phasewatch.monitor.prometheus.push import PushgatewaySink
from support.needs import need_binary
from support.promtool import RULES
from support.records import make_observation, wait_until
from support.scraping import free_port, scrape
from support.servers import running_prometheus

(RULE,) = (
    rule
    for group in yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
    if rule.get("alert") == "PhasewatchPushStale"
)


@pytest.fixture
def gateway():
    port = free_port()
    server = subprocess.Popen(
        [need_binary("prometheus-pushgateway"), f"--web.listen-address=127.0.0.1:{port}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def ready():
        try:
            return scrape(f"http://127.0.0.1:{port}/-/ready")
        except (urllib.error.URLError, ConnectionError):
            return ""

    wait_until(ready, what="the Pushgateway")
    yield f"127.0.0.1:{port}"
    server.terminate()
    server.wait(timeout=30)


@pytest.mark.slow  # two servers
def test_a_pushed_run_is_read_aged_and_withdrawn(tmp_path, gateway):
    config = {
        "global": {"scrape_interval": "200ms"},
        "scrape_configs": [
            {
                "job_name": "gateway",
                "honor_labels": True,
                "static_configs": [{"targets": [gateway]}],
            }
        ],
    }
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    health = Health(step=7)
    sink = PushgatewaySink(
        'grok "p=53"',
        PushgatewayConfig(url=f"http://{gateway}", interval_seconds=0.2, linger_seconds=2.0),
        health,
    )
    with running_prometheus(tmp_path / "prometheus.yml", tmp_path / "data") as query:
        sink.emit(make_observation(7, 0.25))
        wait_until(lambda: query("phasewatch_loss_nats"), what="the first sample")
        (loss,) = query("phasewatch_loss_nats")
        assert (loss["metric"]["job"], loss["metric"]["run"]) == ("phasewatch", 'grok "p=53"')
        assert query(RULE["expr"]) == []
        (old,) = query(RULE["expr"].replace("> 300", "> -60"))  # were it that old
        assert old["metric"]["run"] == 'grok "p=53"'
        health.state = RunState.FINISHED
        sink.close()
        ended = 'last_over_time(phasewatch_run_state{state="finished"}[5m]) == 1'
        assert query(ended)
        wait_until(lambda: not query("push_time_seconds"), what="the deletion")
    assert health.sink_failures["PushgatewaySink"] == 0


@pytest.mark.parametrize(
    ("state", "pushed", "fires"),
    [("running", "0x60", True), ("running", "0+5x60", False), ("finished", "0x60", False)],
)
def test_the_rule_fires_for_a_run_that_no_longer_pushes(tmp_path, state, pushed, fires):
    (tmp_path / "rules.yml").write_text(
        yaml.safe_dump({"groups": [{"name": "push", "rules": [RULE]}]})
    )
    labels = 'job="phasewatch",run="a",instance=""'
    sample = {"labels": f'{{alertname="{RULE["alert"]}",run="a"}}', "value": 1}
    test = {
        "interval": "5s",
        "input_series": [
            {"series": f"push_time_seconds{{{labels}}}", "values": pushed},
            {
                "series": f'phasewatch_run_state{{{labels},state="running"}}',
                "values": f"{int(state == 'running')}x60",
            },
        ],
        "promql_expr_test": [
            {
                "expr": 'group by (alertname, run) (ALERTS{alertstate="firing"})',
                "eval_time": f"{seconds}s",
                "exp_samples": [sample] if expected else [],
            }
            for seconds, expected in ((295, False), (310, fires))
        ],
    }
    file = tmp_path / "scenario.yml"
    file.write_text(
        yaml.safe_dump({"rule_files": ["rules.yml"], "evaluation_interval": "5s", "tests": [test]})
    )
    done = subprocess.run(
        [need_binary("promtool"), "test", "rules", str(file)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
