"""Each broken link of the chain is found and named; servers are stood in for."""

import json
import socket
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler

import pytest
import yaml

from phasewatch.monitor import doctor_servers
from phasewatch.monitor.doctor import examine
from phasewatch.monitor.doctor_links import LinkState
from phasewatch.monitor.doctor_runs import Runs
from phasewatch.monitor.doctor_servers import shipped_alerts
from support.stand_in import StandInServer

RUN = 'grok "p=53"\\'
ESCAPED = RUN.replace("\\", "\\\\").replace('"', '\\"')
PAGE = (
    f'phasewatch_run_info{{host="node",pid="1",run="{ESCAPED}"}} 1.0\n'
    f'phasewatch_alert_queue_messages{{run="{ESCAPED}"}} 2.0\n'
    f'phasewatch_alert_failures_total{{run="{ESCAPED}",target="slack"}} 0.0\n'
)


class Place:
    """A server whose answers are a dictionary: path, or path before "?", to text."""

    def __init__(self, **answers):
        self.answers = answers
        place = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                answer = place.answers.get(self.path, place.answers.get(self.path.split("?")[0]))
                answer = answer() if callable(answer) else answer
                self.send_response(200 if answer is not None else 404)
                self.end_headers()
                if answer is not None:
                    text = answer if isinstance(answer, str) else json.dumps(answer)
                    self.wfile.write(text.encode())

            def date_time_string(self, timestamp=None):
                return super().date_time_string(time.time() + place.clock_ahead)

            def log_message(self, *_):
                pass

        self.clock_ahead = 0
        self._server = StandInServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.address = f"127.0.0.1:{self._server.server_port}"
        self.url = f"http://{self.address}"

    def close(self):
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()


class Chain:
    """A chain in which every link is in order, until a test breaks one."""

    def __init__(self, folder):
        self.folder = folder / "targets"
        self.folder.mkdir()
        self.run = Place(**{"/metrics": PAGE})
        self.manager = Place(
            **{
                "/-/ready": "OK",
                "/metrics": "",
                "/api/v2/status": {"config": {"original": yaml.safe_dump(self.told("slack"))}},
                "/api/v2/silences": [],
            }
        )
        self.prometheus = Place(**{"/-/ready": "OK"})
        (self.folder / "run.json").write_text(json.dumps([{"targets": [self.run.address]}]))
        self.say("targets", activeTargets=[self.target("up")])
        self.configure()
        self.say("query", result=[{"metric": {"run": RUN}, "value": [0, "1"]}])
        self.prometheus.answers[
            "/api/v1/query?query=count%28%7B__name__%3D%22phasewatch_run_info%22%2C%20"
            "exported_run%21%3D%22%22%7D%29"
        ] = {"data": {"result": []}}
        self.say("rules", groups=[{"rules": [self.rule(name) for name in shipped_alerts()]}])
        self.say(
            "alertmanagers", activeAlertmanagers=[{"url": f"{self.manager.url}/api/v2/alerts"}]
        )

    def configure(self, **alerting):
        self.say("status/config", yaml=yaml.safe_dump({"global": {}, "alerting": alerting}))

    def manage(self, config):
        self.manager.answers["/api/v2/status"] = {"config": {"original": yaml.safe_dump(config)}}

    def loads(self, *, success=1, at=2e10):
        self.prometheus.answers["/metrics"] = (
            f"prometheus_config_last_reload_successful {success}\n"
            f"prometheus_config_last_reload_success_timestamp_seconds {at}\n"
        )
        self.say("status/flags", **{"config.file": "prometheus.yml"})

    def silence(self, **changes):
        matcher = {"name": "alertname", "value": "Phasewatch.*", "isRegex": True, "isEqual": True}
        silence = {"id": "s1", "createdBy": "me", "endsAt": "2030", "matchers": [matcher]}
        silence |= {"status": {"state": "active"}} | changes
        self.manager.answers["/api/v2/silences"] = [silence]

    @staticmethod
    def told(receiver):
        return {
            "route": {"receiver": receiver, "routes": [{"matchers": ["a=b"]}]},
            "receivers": [{"name": "nobody"}, {"name": "slack", "slack_configs": [{}]}],
        }

    @staticmethod
    def rule(name, **changes):
        return {"name": name, "health": "ok", "state": "inactive"} | changes

    def target(self, health, error=""):
        url = f"{self.run.url}/metrics"
        return {"scrapeUrl": url, "health": health, "lastError": error, "labels": {"run": RUN}}

    def say(self, path, **data):
        self.prometheus.answers[f"/api/v1/{path}"] = {"data": data}

    def examine(self, *, prometheus=None, alertmanager=None, **changes):
        runs = Runs(**{"addresses": (), "targets": self.folder} | changes)
        return list(examine(runs, prometheus or self.prometheus.url, alertmanager))

    def close(self):
        for place in (self.run, self.manager, self.prometheus):
            place.close()


@pytest.fixture
def chain(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor_servers, "RECENT_SECONDS", 0.05)
    chain = Chain(tmp_path)
    yield chain
    chain.close()


def broken(links):
    return {link.name: link for link in links if link.state is LinkState.BROKEN}


def test_a_chain_in_order(chain):
    links = chain.examine()
    assert [link.state for link in links] == [LinkState.OK] * len(links)
    by_name = {link.name: link.found for link in links}
    assert list(by_name) == [
        "target files",
        "exporter",
        "direct alerts",
        "Prometheus",
        "target in Prometheus",
        "run in Prometheus",
        "rules in Prometheus",
        "relabelling of alerts",
        "Alertmanager in Prometheus",
        "Alertmanager",
        "route of alerts",
        "silences",
        "receiver",
    ]
    assert repr(RUN) in by_name["exporter"]
    assert by_name["direct alerts"] == "2 messages wait"
    assert by_name["route of alerts"] == "slack (slack)"


def test_without_target_files_the_address_is_asked(chain):
    chain.run.answers["/metrics"] = PAGE.splitlines()[0]
    links = chain.examine(targets=None, addresses=(chain.run.url,))
    unused = [link.name for link in links if link.state is LinkState.NOT_CHECKED]
    assert unused == ["target files", "direct alerts"]
    assert not broken(links)


def break_folder(chain):
    (chain.folder / "run.json").unlink()
    chain.folder.rmdir()


def break_files(chain):
    (chain.folder / "run.json").unlink()


def break_file(chain):
    (chain.folder / "run.json").write_text("{not json")


def break_exporter(chain):
    chain.run.close()


def break_page(chain):
    chain.run.answers["/metrics"] = "node_load1 0.5\n"


def break_sending(chain):
    chain.run.answers["/metrics"] = PAGE.replace('"slack"} 0.0', '"slack"} 3.0')


def break_prometheus(chain):
    chain.prometheus.close()


def break_discovery(chain):
    chain.say("targets", activeTargets=[])


def break_scrape(chain):
    chain.say("targets", activeTargets=[chain.target("down", "connection refused")])


def break_label(chain):
    renamed = next(path for path in chain.prometheus.answers if "exported_run" in path)
    chain.prometheus.answers[renamed] = {"data": {"result": [{}]}}


def break_samples(chain):
    chain.say("query", result=[])


def break_rules(chain):
    chain.say("rules", groups=[{"rules": [chain.rule(n) for n in shipped_alerts()[1:]]}])


def break_rule(chain):
    first, *others = shipped_alerts()
    ill = chain.rule(first, health="err", lastError="many-to-many")
    chain.say("rules", groups=[{"rules": [ill, *map(chain.rule, others)]}])


def break_alerting(chain):
    chain.say("alertmanagers", activeAlertmanagers=[])


def break_manager(chain):
    chain.manager.close()


def break_receiver(chain):
    config = yaml.safe_dump(chain.told("nobody"))
    chain.manager.answers["/api/v2/status"] = {"config": {"original": config}}


def break_delivery(chain):
    chain.manager.answers["/metrics"] = (
        'alertmanager_notification_requests_total{integration="slack"} 3\n'
        'alertmanager_notification_requests_failed_total{integration="slack"} 3\n'
    )


def break_one_run(chain):
    (chain.folder / "dead.json").write_text(json.dumps([{"targets": ["127.0.0.1:1"]}]))


def break_one_target(chain):
    down = chain.target("down", "refused") | {"scrapeUrl": "http://other:1/metrics"}
    chain.say("targets", activeTargets=[chain.target("up"), down])


def break_one_scrape(chain):
    """A second run of the same name is served and not scraped."""
    page = PAGE.replace('pid="1"', 'pid="1",run_id="a"')
    chain.run.answers["/metrics"] = page + page.replace('run_id="a"', 'run_id="b"')
    chain.say("query", result=[{"metric": {"run": RUN, "run_id": "a"}, "value": [0, "1"]}])


def break_reload(chain):
    chain.loads(success=0)


def break_freshness(chain):
    file = chain.folder.parent / "rules.yml"
    file.write_text("groups: []")
    chain.loads(at=file.stat().st_mtime - 60)
    rules = [chain.rule(name) for name in shipped_alerts()]
    chain.say("rules", groups=[{"file": str(file), "rules": rules}])


def break_relabelling(chain):
    rule = {"source_labels": ["severity"], "regex": "info|warning|critical", "action": "drop"}
    chain.configure(alert_relabel_configs=[rule])


def break_relabelled_name(chain):
    chain.configure(alert_relabel_configs=[{"regex": "alertname", "action": "labeldrop"}])


def break_root(chain):
    config = chain.told("nobody")
    config["route"]["routes"] = [{"matchers": ['team="other"'], "receiver": "slack"}]
    chain.manage(config)


def break_severity(chain):
    config = chain.told("slack")
    config["route"]["routes"] = [{"match": {"severity": "critical"}, "receiver": "nobody"}]
    chain.manage(config)


def break_silence(chain):
    chain.silence()


def break_silence_of_a_run(chain):
    chain.silence(matchers=[{"name": "run", "value": RUN, "isRegex": False, "isEqual": True}])


def break_hook(chain):
    config = chain.told("hook")
    config["receivers"].append(
        {"name": "hook", "webhook_configs": [{"url": "http://127.0.0.1:1/hook"}]}
    )
    chain.manage(config)


def break_recent_delivery(chain):
    counts = iter(["1", "2"])

    def page():
        return (
            'alertmanager_notification_requests_total{integration="slack"} 9\n'
            'alertmanager_notification_requests_failed_total{integration="slack"} '
            f"{next(counts, 9)}\n"
        )

    chain.manager.answers["/metrics"] = page


def break_manager_reload(chain):
    chain.manager.answers["/metrics"] = "alertmanager_config_last_reload_successful 0\n"


def break_clock(chain):
    chain.manager.clock_ahead = 600


@pytest.mark.parametrize(
    ("harm", "link", "found", "remedy"),
    [
        (break_folder, "target files", "does not exist", "exporter.targets_dir"),
        (break_files, "target files", "no target file", "exporter.targets_dir"),
        (break_file, "target files", "not a target file", "remove it"),
        (break_exporter, "exporter", "refused", "start a run"),
        (break_page, "exporter", "no run is served there", "--metrics"),
        (break_sending, "direct alerts", "2 messages wait, and 3 attempts", "test-alert"),
        (break_prometheus, "Prometheus", "refused", "phasewatch stack up"),
        (break_discovery, "target in Prometheus", "none of its 0 targets", "file_sd_configs"),
        (break_scrape, "target in Prometheus", "down: connection refused", "exporter.host"),
        (break_label, "run in Prometheus", "exported_run", "honor_labels: true"),
        (break_samples, "run in Prometheus", "no samples of", "wait"),
        (break_rules, "rules in Prometheus", "not loaded: PhasewatchTransition", "rule_files"),
        (break_rule, "rules in Prometheus", "many-to-many", "compare"),
        (break_alerting, "Alertmanager in Prometheus", "no Alertmanager", "alertmanagers:"),
        (break_manager, "Alertmanager", "refused", "phasewatch stack up"),
        (break_receiver, "route of alerts", "'nobody', which tells nobody", "name a receiver"),
        (break_delivery, "receiver", "notifications fail now: slack", "secret"),
        (break_one_run, "exporter", "1 of 2 runs do not answer", "targets --reap"),
        (break_one_target, "target in Prometheus", "is down", "exporter.host"),
        (break_one_scrape, "run in Prometheus", "no samples of", "wait"),
        (
            break_reload,
            "rules in Prometheus",
            "last reload of its configuration failed",
            "/-/reload",
        ),
        (break_freshness, "rules in Prometheus", "was changed after it was loaded", "/-/reload"),
        (break_relabelling, "relabelling of alerts", "drops PhasewatchTransition", "keep alerts"),
        (break_relabelled_name, "relabelling of alerts", "drops", "keep alerts"),
        (break_root, "route of alerts", "'nobody', which tells nobody", "name a receiver"),
        (break_severity, "route of alerts", "PhasewatchRunCrashed", "name a receiver"),
        (break_silence, "silences", "silence s1 by me mutes PhasewatchTransition", "expire s1"),
        (break_silence_of_a_run, "silences", "silence s1", "expire s1"),
        (break_hook, "receiver", "cannot be reached: 127.0.0.1:1", "start what listens"),
        (break_recent_delivery, "receiver", "notifications fail now: slack", "secret"),
        (break_manager_reload, "receiver", "last reload of its configuration failed", "amtool"),
        (break_clock, "Alertmanager", "s ahead of this machine's", "chrony"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_broken_link_is_named_with_what_to_do(chain, harm, link, found, remedy):
    harm(chain)
    told = broken(chain.examine())
    assert found in told[link].found
    assert remedy in told[link].remedy
    first = next(iter(told))
    assert first == link, "what is broken further on may follow from it, never the other way"


def test_what_hangs_on_a_missing_server_is_not_checked(chain):
    chain.prometheus.close()
    links = {link.name: link.state for link in chain.examine()}
    assert links["rules in Prometheus"] is LinkState.NOT_CHECKED
    assert links["Alertmanager"] is LinkState.NOT_CHECKED
    links = {link.name: link.state for link in chain.examine(alertmanager=chain.manager.url)}
    assert links["receiver"] is LinkState.OK


def test_programs_that_are_something_else_are_told_apart(chain):
    chain.prometheus.answers = {"/-/ready": "OK", "/api/v1/alertmanagers": "<html>"}
    chain.manager.answers = {"/-/ready": "OK", "/api/v2/status": {"config": 1}}
    told = broken(chain.examine(alertmanager=chain.manager.url))
    assert "is this a Prometheus?" in told["rules in Prometheus"].remedy
    assert "is this a Prometheus?" in told["Alertmanager in Prometheus"].remedy
    assert "not understood" in told["receiver"].found


def test_what_speaks_no_http_is_told(chain):
    def greet():
        with server.accept()[0] as client:
            client.recv(1000)
            client.sendall(b"SSH-2.0\r\n")

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=greet)
        thread.start()
        told = broken(chain.examine(prometheus=f"http://127.0.0.1:{server.getsockname()[1]}"))
        thread.join()
    assert told["Prometheus"].found.endswith("answers, but not by HTTP (BadStatusLine)")


# The command --------------------------------------------------------------------------------------


@pytest.fixture
def shell(phasewatch):
    return partial(phasewatch, "doctor")


def test_the_command_ends_with_0_when_all_is_well(shell, chain):
    code, out, _ = shell("--targets", chain.folder, "--prometheus", chain.prometheus.url)
    assert code == 0
    assert "every link checked is in order" in out


def test_the_command_ends_with_1_and_says_what_to_do(shell, chain):
    break_receiver(chain)
    code, out, _ = shell("--metrics", chain.run.address, "--prometheus", chain.prometheus.url)
    assert code == 1
    assert "what to do: name a receiver" in out
    assert out.endswith("broken: route of alerts\n")


def test_the_command_prints_json(shell, chain):
    break_manager(chain)
    code, out, _ = shell(
        "--targets", chain.folder, "--prometheus", chain.prometheus.url + "/", "--json"
    )
    told = json.loads(out)
    assert (code, told["ok"]) == (1, False)
    assert [link["name"] for link in told["links"] if link["state"] == "broken"] == ["Alertmanager"]


def test_the_folder_may_come_from_the_configuration_of_the_run(shell, chain, tmp_path):
    config = tmp_path / "watch.yaml"
    config.write_text(yaml.safe_dump({"exporter": {"targets_dir": str(chain.folder)}}))
    code, out, _ = shell("--config", config, "--prometheus", chain.prometheus.url)
    assert code == 0
    assert f"1 in {chain.folder}" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prometheus", "localhost:9090"], "--prometheus is 'localhost:9090'; it must be a URL"),
        (["--metrics", "here"], "--metrics is 'here'; it must be host:port"),
    ],
)
def test_an_address_that_is_none_is_refused(shell, arguments, message):
    code, _, err = shell(*arguments)
    assert code == 1
    assert message in err
