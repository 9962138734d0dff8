"""Everything that may break between a run and whoever is told, broken at the real servers."""

import json
import os
import re
import signal
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler

import pytest
import yaml

from phasewatch.monitor.core.bounded_http import fetch
from phasewatch.monitor.operations.doctor import examine
from phasewatch.monitor.operations.doctor_end import EndToEnd
from phasewatch.monitor.operations.doctor_links import BrokenError, LinkState
from phasewatch.monitor.operations.doctor_runs import Runs
from support.alerting import LiveRun, QuickStack, need_servers, open_inbox
from support.records import wait_until
from support.scraping import free_port
from support.stand_in import StandInServer
from support.targets import Answer, http_target

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
RUN = 'grok "p=53"\\'
PATIENCE = {"seconds": 90.0}


class Chain:
    """A run, Prometheus, Alertmanager and a web hook, in order until a test breaks a link."""

    def __init__(self, folder, stack, servers, run):
        self.folder, self.stack, self.run = folder, stack, run
        self.manager, self.prometheus = servers
        self.targets = stack.targets

    def look(self, **changes):
        given = {"addresses": (), "targets": self.targets}
        runs = Runs(**given | {k: v for k, v in changes.items() if k in given})
        prometheus = changes.get("prometheus", self.stack.prometheus_url)
        return list(examine(runs, prometheus, changes.get("alertmanager")))

    def broken(self, **changes):
        links = self.look(**changes)
        return {link.name: link for link in links if link.state is LinkState.BROKEN}

    def path(self, name):
        return self.stack.folder / name

    @contextmanager
    def edited(self, name, change, *, loads=True):
        """A changed configuration; loaded, and in the end put back."""
        path = self.path(name)
        before = path.read_text("utf-8")
        content = yaml.safe_load(before)
        changed = change(content)
        path.write_text(changed if isinstance(changed, str) else yaml.safe_dump(content), "utf-8")
        try:
            if loads:
                self.reload()
            yield
        finally:
            path.write_text(before, "utf-8")
            self.reload()

    def reload(self):
        """Have both servers load their configuration, and wait until they have tried."""
        before = [self.loaded(server) for server in (self.manager, self.prometheus)]
        for server, at_first in zip((self.manager, self.prometheus), before, strict=True):
            os.kill(server._process.pid, signal.SIGHUP)
            wait_until(lambda: self.loaded(server) != at_first, what="a reload", **PATIENCE)  # noqa: B023

    @staticmethod
    def loaded(server):
        """Whether a server's last load went well, and when one last did."""
        page = fetch(f"{server.url}/metrics", max_bytes=2**24).text
        return re.findall(r"^\w+_config_last_reload_success\w* (\S+)", page, re.MULTILINE)

    def post(self, labels, seconds=30):
        now = datetime.now(UTC)
        alert = {
            "labels": labels,
            "startsAt": now.isoformat(),
            "endsAt": (now + timedelta(seconds=seconds)).isoformat(),
        }
        self.ask_manager("alerts", [alert])

    def ask_manager(self, path, body):
        answer = fetch(
            f"{self.stack.alertmanager_url}/api/v2/{path}",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        assert answer.status == 200
        return json.loads(answer.text or "null")


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """The chain, made once: every test puts back what it broke."""
    need_servers()
    folder = tmp_path_factory.mktemp("chain")
    with open_inbox() as inbox:
        stack = QuickStack(
            folder=folder / "stack",
            prometheus_port=free_port(),
            alertmanager_port=free_port(),
            interval_seconds=1,
            webhook=inbox.url,
        )
        with stack.running() as processes:
            run = LiveRun(RUN, folder, targets_dir=str(stack.targets))
            yield Chain(folder, stack, processes, run)
            run.kill()


@pytest.fixture
def chain(servers):
    wait_until(lambda: not servers.broken(), what="a chain in order", **PATIENCE)
    return servers


def silence(chain, *matchers):
    now = time.time()
    times = [time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now + s)) for s in (-5, 600)]
    made = chain.ask_manager(
        "silences",
        {
            "matchers": [{"name": n, "value": v, "isRegex": r} for n, v, r in matchers],
            "startsAt": times[0],
            "endsAt": times[1],
            "createdBy": "somebody",
            "comment": "a test",
        },
    )
    return made["silenceID"]


def prometheus(change, **more):
    """Break prometheus.yml."""
    return lambda chain: chain.edited("prometheus.yml", change, **more)


def manager(change, **more):
    """Break alertmanager.yml."""
    return lambda chain: chain.edited("alertmanager.yml", change, **more)


def rules(change, **more):
    return lambda chain: chain.edited("rules.yml", change, **more)


def scrape(**settings):
    return prometheus(lambda config: config["scrape_configs"][0].update(settings))


def sends(**settings):
    return prometheus(lambda config: config["alerting"]["alertmanagers"][0].update(settings))


def relabels(*rules):
    return prometheus(lambda config: config["alerting"].update(alert_relabel_configs=[*rules]))


def without(name):
    return prometheus(lambda config: config.pop(name))


def ill(content):
    content["groups"][0]["rules"][1]["expr"] = (
        "phasewatch_run_state * on () group_left phasewatch_run_state"
    )


def to_nobody(config):
    config["route"]["receiver"] = "nobody"
    for route in config["route"]["routes"]:
        route.pop("receiver", None)


def critical_to_nobody(config):
    route = {"matchers": ['severity="critical"'], "receiver": "nobody"}
    config["route"]["routes"].insert(0, route)


def told_at(url):
    def change(config):
        (hook,) = [r for r in config["receivers"] if r["name"] == "webhook"]
        hook["webhook_configs"][0]["url"] = url

    return change


@contextmanager
def two_managers(chain):
    def change(config):
        (entry,) = config["alerting"]["alertmanagers"]
        entry["static_configs"][0]["targets"].append("127.0.0.1:1")

    with chain.edited("prometheus.yml", change):
        yield


@contextmanager
def silenced(chain):
    number = silence(chain, ("alertname", "Phasewatch.*", True))
    yield
    url = f"{chain.stack.alertmanager_url}/api/v2/silence/{number}"
    assert fetch(url, method="DELETE").status == 200


@contextmanager
def one_silenced(chain):
    number = silence(chain, ("run", RUN, False))
    yield
    url = f"{chain.stack.alertmanager_url}/api/v2/silence/{number}"
    assert fetch(url, method="DELETE").status == 200


@contextmanager
def one_killed(chain):
    before = {*chain.targets.glob("*.json")}
    other = LiveRun("other", chain.folder, targets_dir=str(chain.targets))
    other.kill()
    yield
    for file in {*chain.targets.glob("*.json")} - before:
        file.unlink()


@contextmanager
def one_unseen(chain):
    """Of two runs of one name Prometheus scrapes one."""
    other = LiveRun("other", chain.folder, targets_dir=str(chain.targets))
    rule = {"source_labels": ["run"], "regex": "other", "action": "drop"}
    with scrape(relabel_configs=[rule])(chain):
        yield
    other.tell("end")
    assert other.wait() == 0


@contextmanager
def no_run(chain):
    file = chain.targets / "elsewhere.json"
    file.write_text(json.dumps([{"targets": [f"127.0.0.1:{chain.stack.prometheus_port}"]}]))
    yield
    file.unlink()


@contextmanager
def undiscovered(chain):
    """Prometheus looks into another folder. Where no file is, it goes on with what it knows."""
    other = chain.path("nowhere")
    other.mkdir()
    (other / "none.json").write_text('[{"targets": []}]')
    found = [{"files": ["nowhere/*.json"], "refresh_interval": "1s"}]
    with scrape(file_sd_configs=found)(chain):
        yield


@contextmanager
def torn_file(chain):
    file = chain.targets / "torn.json"
    file.write_text('[{"targets": ["127.')
    yield
    file.unlink()


@contextmanager
def hook_refuses(chain):
    """It has worked before, and fails now."""
    with http_target() as target, manager(told_at(f"http://127.0.0.1:{target.port}/"))(chain):
        chain.post({"alertname": "PhasewatchRunStalled", "run": RUN, "severity": "critical"})
        wait_until(lambda: target.taken, what="a message", **PATIENCE)
        target.always = Answer(status=500)
        chain.post({"alertname": "PhasewatchRunFailed", "run": RUN, "severity": "critical"})
        seen = len(target.seen)
        wait_until(lambda: len(target.seen) > seen, what="a try", **PATIENCE)
        yield
        target.always = None


@contextmanager
def vanished_prometheus(chain):
    chain.prometheus._process.send_signal(signal.SIGSTOP)  # it hangs: nothing is as hard to tell
    yield
    chain.prometheus._process.send_signal(signal.SIGCONT)


@contextmanager
def hung_manager(chain):
    chain.manager._process.send_signal(signal.SIGSTOP)
    yield
    chain.manager._process.send_signal(signal.SIGCONT)


DROP = {"source_labels": ["severity"], "regex": "info|warning|critical", "action": "drop"}
NO_INFO = {"source_labels": ["__name__"], "regex": "phasewatch_run_info", "action": "drop"}

BREAKAGES = {
    "a torn target file": (torn_file, "target files", "torn.json is not a target file", "remove"),
    "one of two runs killed": (one_killed, "exporter", "1 of 2 runs do not answer", "--reap"),
    "a target that is no run": (no_run, "exporter", "no run is served there", "--reap"),
    "Prometheus hangs": (vanished_prometheus, "Prometheus", "no full answer", "stack up"),
    "targets not discovered": (
        undiscovered,
        "target in Prometheus",
        "none of its 0 targets",
        "file_sd_configs",
    ),
    "a scrape by the wrong scheme": (
        scrape(scheme="https"),
        "target in Prometheus",
        "is down",
        "exporter.host",
    ),
    "a limit of samples": (
        scrape(sample_limit=3),
        "target in Prometheus",
        "sample limit exceeded",
        "exporter.host",
    ),
    "labels not honoured": (
        scrape(honor_labels=False),
        "run in Prometheus",
        "exported_run",
        "honor_labels: true",
    ),
    "metrics relabelled away": (
        scrape(metric_relabel_configs=[NO_INFO]),
        "run in Prometheus",
        "no samples of",
        "two scrapes",
    ),
    "one of two runs unseen": (one_unseen, "run in Prometheus", "'other", "two scrapes"),
    "no rules": (without("rule_files"), "rules in Prometheus", "not loaded", "rule_files"),
    "a rule that fails": (rules(ill), "rules in Prometheus", "cannot be evaluated", "compare"),
    "rules not reloaded": (
        rules(lambda content: content["groups"].pop(), loads=False),
        "rules in Prometheus",
        "rules.yml was changed after it was loaded",
        "/-/reload",
    ),
    "a configuration not reloaded": (
        prometheus(lambda config: config.pop("rule_files"), loads=False),
        "rules in Prometheus",
        "prometheus.yml was changed after it was loaded",
        "/-/reload",
    ),
    "a reload that failed": (
        prometheus(lambda config: "scrape_configs: {"),
        "rules in Prometheus",
        "last reload of its configuration failed",
        "promtool check config",
    ),
    "alerts relabelled away": (
        relabels(DROP),
        "relabelling of alerts",
        "drops PhasewatchTransition",
        "keep alerts",
    ),
    "names of alerts relabelled away": (
        relabels({"regex": "alertname", "action": "labeldrop"}),
        "relabelling of alerts",
        "drops PhasewatchTransition",
        "keep alerts",
    ),
    "no Alertmanager": (
        without("alerting"),
        "Alertmanager in Prometheus",
        "no Alertmanager",
        "alertmanagers:",
    ),
    "Alertmanager elsewhere": (
        sends(static_configs=[{"targets": ["127.0.0.1:1"]}]),
        "Alertmanager",
        "refused",
        "prometheus.yml",
    ),
    "Alertmanager below another path": (
        sends(path_prefix="/alerts"),
        "Alertmanager",
        "404",
        "prometheus.yml",
    ),
    "Alertmanager hangs": (hung_manager, "Alertmanager", "no full answer", "stack up"),
    "one of two Alertmanagers": (
        two_managers,
        "Alertmanager 127.0.0.1:1",
        "refused",
        "prometheus.yml",
    ),
    "a root route to nobody": (
        manager(to_nobody),
        "route of alerts",
        "'nobody', which tells nobody",
        "name a receiver",
    ),
    "critical alerts to nobody": (
        manager(critical_to_nobody),
        "route of alerts",
        "PhasewatchRunCrashed",
        "name a receiver",
    ),
    "routes not reloaded": (
        manager(to_nobody, loads=False),
        "receiver",
        "alertmanager.yml was changed after it was loaded",
        "/-/reload",
    ),
    "routes whose reload failed": (
        manager(lambda config: "route: {"),
        "receiver",
        "last reload of its configuration failed",
        "amtool check-config",
    ),
    "a silence": (silenced, "silences", "by somebody mutes PhasewatchTransition", "amtool silence"),
    "a silence of one run": (one_silenced, "silences", "by somebody mutes", "amtool silence"),
    "nobody listens": (
        manager(told_at("http://127.0.0.1:1/")),
        "receiver",
        "cannot be reached: 127.0.0.1:1",
        "start what listens",
    ),
    "a receiver that fails now": (
        hook_refuses,
        "receiver",
        "notifications fail now: webhook",
        "secret",
    ),
}


@pytest.mark.parametrize("name", BREAKAGES)
def test_what_is_broken_is_named_with_its_remedy(chain, name):
    harm, link, found, remedy = BREAKAGES[name]
    with harm(chain):
        told = {}

        def is_named():
            told.clear()
            told.update(chain.broken())
            return link in told and found in told[link].found

        wait_until(is_named, what=f"{found!r} of {link}", **PATIENCE)
    assert remedy in told[link].remedy
    assert next(iter(told)) == link, "what is broken further on may follow from it"


def test_what_is_not_there_at_all_is_named(chain, tmp_path):
    (tmp_path / "empty").mkdir()
    nobody = f"http://127.0.0.1:{free_port()}"
    for changes, link, found in (
        ({"targets": tmp_path / "missing"}, "target files", "does not exist"),
        ({"targets": tmp_path / "empty"}, "target files", "no target file"),
        ({"targets": None, "addresses": (nobody,)}, "exporter", "refused"),
        ({"prometheus": nobody}, "Prometheus", "refused"),
        ({"alertmanager": nobody}, "Alertmanager", "refused"),
    ):
        told = chain.broken(**changes)
        assert found in told[link].found
        assert next(iter(told)) == link


class Skewed(BaseHTTPRequestHandler):
    """Passes on what a server answers, with a clock of its own."""

    def do_GET(self):
        answer = fetch(f"{self.server.behind}{self.path}", max_bytes=2**24)
        self.send_response_only(answer.status)
        self.send_header("Date", formatdate(time.time() + self.server.ahead, usegmt=True))
        self.end_headers()
        self.wfile.write(answer.body)

    def log_message(self, *_):
        pass


@contextmanager
def skewed(url, ahead):
    server = StandInServer(("127.0.0.1", 0), Skewed)
    server.behind, server.ahead = url, ahead
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("ahead", [600, -600])
def test_a_skewed_clock_is_named_wherever_it_is(chain, ahead):
    which = f"600 s {'ahead of' if ahead > 0 else 'behind'} this machine's"
    for place, link in (
        ("prometheus", "Prometheus"),
        ("alertmanager", "Alertmanager"),
        ("run", "exporter"),
    ):
        url = {
            "prometheus": chain.stack.prometheus_url,
            "alertmanager": chain.stack.alertmanager_url,
            "run": f"http://{chain.run.address}",
        }[place]
        with skewed(url, ahead) as behind:
            given = {place: behind}
            if place == "run":
                given = {"targets": None, "addresses": (behind,)}
            told = chain.broken(**given)
        number = which.replace("600", "(599|600|601)")
        assert re.search(number, told[link].found)
        assert "chrony" in told[link].remedy


def test_what_only_a_test_alert_shows(chain):
    """A mute time, and a receiver that refused once: the counts alone cannot tell."""
    always = {"name": "always", "time_intervals": [{"years": ["2020:2100"]}]}

    def mute(config):
        config["mute_time_intervals"] = [always]
        for route in config["route"]["routes"]:
            route["mute_time_intervals"] = ["always"]

    with manager(mute)(chain), pytest.raises(BrokenError) as caught:
        EndToEnd(chain.stack.alertmanager_url, 6.0).run()
    assert "no receiver was told" in caught.value.found
    assert "mute times" in caught.value.remedy
    with http_target() as target, manager(told_at(f"http://127.0.0.1:{target.port}/"))(chain):
        target.always = Answer(status=404)
        with pytest.raises(BrokenError) as caught:
            EndToEnd(chain.stack.alertmanager_url, 10.0).run()
    assert caught.value.found == "webhook did not take the test alert"
    told = EndToEnd(chain.stack.alertmanager_url).run()
    assert told == "a marked test alert was taken by webhook"


def test_alerts_that_a_run_cannot_send_are_named(chain):
    run = LiveRun(
        "direct",
        chain.folder,
        settings={"alerts": {"targets": ["json://127.0.0.1:1/x"], "grace_seconds": 1}},
        targets_dir=str(chain.targets),
    )
    run.tell("drop")
    wait_until(lambda: "direct alerts" in chain.broken(), what="a failed try", **PATIENCE)
    told = chain.broken()
    assert "1 messages wait" in told["direct alerts"].found
    assert "test-alert" in told["direct alerts"].remedy
    run.tell("end")
    assert run.wait() == 0
