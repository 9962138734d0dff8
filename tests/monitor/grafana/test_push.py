"""`phasewatch grafana push` against a stand-in that is held to Grafana's published API."""

import json
import subprocess
import sys
import urllib.request

import pytest
from typer.testing import CliRunner

from phasewatch.monitor.cli.main import app
from phasewatch.monitor.core.errors import ConfigError, GrafanaError
from phasewatch.monitor.grafana.access import base_url, find_token
from phasewatch.monitor.grafana.push import Grafana, holds
from phasewatch.monitor.grafana.shipped import shipped_dashboards, shipped_rules
from support.grafana import TOKEN, FakeGrafana
from support.scraping import free_port


@pytest.fixture
def server():
    fake = FakeGrafana()
    yield fake
    fake.close()
    assert fake.faults == []


def push(server, **options):
    keys = ("dry_run", "timeout_seconds")
    settings = {key: options.pop(key) for key in keys if key in options}
    return [*Grafana(server.url, TOKEN, **settings).push(**options)]


def delete(server, **settings):
    return [*Grafana(server.url, TOKEN, **settings).delete()]


def outcomes(done):
    return {item.outcome.value for item in done}


# ---- pushing


def test_a_push_into_an_empty_grafana_creates_everything(server):
    done = push(server, prometheus_url="http://prometheus:9090")
    assert outcomes(done) == {"created"}
    assert [item.what for item in done] == [
        "folder",
        "data source",
        *["dashboard"] * len(shipped_dashboards()),
        *["alert rule"] * len(shipped_rules()["rules"]),
    ]
    assert server.folders["phasewatch"]["title"] == "phasewatch"
    assert server.sources["phasewatch-prometheus"]["url"] == "http://prometheus:9090"
    for wanted in shipped_dashboards().values():
        stored = server.dashboards[wanted["uid"]]
        assert stored["meta"]["folderUid"] == "phasewatch"
        assert stored["dashboard"]["panels"] == wanted["panels"]
    for wanted in shipped_rules()["rules"]:
        stored = server.rules[wanted["uid"]]
        assert stored["data"] == wanted["data"]
        assert stored["folderUID"] == "phasewatch"
        assert "notification_settings" not in stored


def test_a_second_push_leaves_everything_and_writes_nothing(server):
    push(server)
    server.requests.clear()
    assert outcomes(push(server)) == {"left"}
    assert server.writes == []


def test_a_push_changes_only_what_differs(server):
    push(server)
    server.dashboards["phasewatch-run"]["dashboard"]["title"] = "Changed by hand"
    server.rules["phasewatch-stalled"]["for"] = "1h"
    server.requests.clear()
    changed = [item.uid for item in push(server) if item.outcome == "changed"]
    assert changed == ["phasewatch-run", "phasewatch-stalled"]
    assert len(server.writes) == 2
    assert server.dashboards["phasewatch-run"]["dashboard"]["title"] == "phasewatch: Run"
    assert server.rules["phasewatch-stalled"]["for"] == "0s"


def test_what_the_user_has_set_beside_ours_stays(server):
    push(server)
    server.folders["phasewatch"]["title"] = "Training"
    server.folders["elsewhere"] = {"uid": "elsewhere", "title": "Elsewhere"}
    server.dashboards["phasewatch-run"]["meta"]["folderUid"] = "elsewhere"
    server.dashboards["phasewatch-run"]["dashboard"]["title"] = "old"
    rule = server.rules["phasewatch-stalled"]
    rule |= {"isPaused": True, "for": "1h", "notification_settings": {"receiver": "mine"}}
    push(server)
    assert server.folders["phasewatch"]["title"] == "Training"
    assert server.dashboards["phasewatch-run"]["meta"]["folderUid"] == "elsewhere"
    stored = server.rules["phasewatch-stalled"]
    assert stored["isPaused"] is True
    assert stored["notification_settings"] == {"receiver": "mine"}


def test_a_data_source_keeps_its_address_until_another_is_named(server):
    push(server, prometheus_url="http://one:9090")
    assert outcomes(push(server)) == {"left"}
    (changed,) = [
        item for item in push(server, prometheus_url="http://two:9090") if item.outcome != "left"
    ]
    assert (changed.what, changed.outcome) == ("data source", "changed")
    assert server.sources["phasewatch-prometheus"]["url"] == "http://two:9090"
    assert server.sources["phasewatch-prometheus"]["jsonData"]["timeInterval"] == "5s"


def test_a_data_source_of_the_user_is_used_and_chosen_in_the_dashboards(server):
    server.sources["abc"] = {"uid": "abc", "name": "Main", "type": "prometheus", "url": "u"}
    push(server, source_uid="abc", contact_point="team")
    assert list(server.sources) == ["abc"]
    for stored in server.dashboards.values():
        variables = stored["dashboard"]["templating"]["list"]
        (chosen,) = [v["current"] for v in variables if v["type"] == "datasource"]
        assert (chosen["text"], chosen["value"]) == ("Main", "abc")
    for rule in server.rules.values():
        assert [query["datasourceUid"] for query in rule["data"]] == ["abc", "__expr__"]
        assert rule["notification_settings"] == {"receiver": "team"}
    assert outcomes(push(server, source_uid="abc", contact_point="team")) == {"left"}


def test_a_token_that_may_not_read_data_sources_may_still_name_one(server):
    server.forbidden = [("GET", "/datasources")]
    done = push(server, source_uid="abc")
    assert [item.note for item in done if item.what == "data source"] == [
        "not looked at: the token may not read data sources"
    ]
    with pytest.raises(GrafanaError, match="403"):
        push(server)


def test_rules_can_be_left_to_prometheus(server):
    done = push(server, with_rules=False)
    assert "alert rule" not in {item.what for item in done}
    assert server.rules == {}


def test_a_data_source_that_cannot_serve_is_refused(server):
    with pytest.raises(GrafanaError, match="no data source with uid 'abc'"):
        push(server, source_uid="abc")
    server.sources["abc"] = {"uid": "abc", "name": "Logs", "type": "loki"}
    with pytest.raises(GrafanaError, match="of type 'loki'; the dashboards ask a Prometheus"):
        push(server, source_uid="abc")


def test_what_a_file_provisions_is_never_touched(server):
    push(server)
    server.dashboards["phasewatch-run"]["meta"]["provisioned"] = True
    server.dashboards["phasewatch-run"]["dashboard"]["title"] = "from a file"
    server.rules["phasewatch-stalled"] |= {"provenance": "file", "for": "1h"}
    server.sources["phasewatch-prometheus"]["readOnly"] = True
    server.requests.clear()
    done = push(server, prometheus_url="http://other:9090")
    notes = {item.uid: item.note for item in done if item.note}
    assert outcomes(done) == {"left"}
    assert server.writes == []
    for uid in ("phasewatch-run", "phasewatch-stalled", "phasewatch-prometheus"):
        assert "provisions it" in notes[uid]
    kept = {item.uid for item in delete(server) if item.outcome == "left"}
    assert kept == {"phasewatch-run", "phasewatch-stalled", "phasewatch-prometheus", "phasewatch"}


def test_a_dry_run_says_the_same_and_writes_nothing(server):
    assert outcomes(push(server, dry_run=True)) == {"created"}
    assert server.writes == []
    push(server)
    server.requests.clear()
    assert outcomes(delete(server, dry_run=True)) == {"deleted"}
    assert server.writes == []


# ---- deleting


def test_delete_takes_away_what_was_pushed_and_can_be_repeated(server):
    push(server)
    assert outcomes(delete(server)) == {"deleted"}
    assert [*server.folders, *server.sources, *server.dashboards, *server.rules] == []
    assert outcomes(delete(server)) == {"not there"}


def test_delete_leaves_a_folder_that_holds_more(server):
    push(server)
    theirs = {"dashboard": {"uid": "theirs"}, "meta": {"folderUid": "phasewatch"}}
    server.dashboards["theirs"] = theirs
    last = delete(server)[-1]
    assert (last.what, last.outcome, last.note) == ("folder", "left", "it still holds 1 dashboard")
    assert list(server.dashboards) == ["theirs"]


# ---- errors


@pytest.mark.parametrize("path", ["/d/abc", "/login", "/api"])
def test_an_address_of_a_page_within_grafana_is_told(server, path):
    with pytest.raises(GrafanaError, match=r"start page"):
        [*Grafana(server.url + path, TOKEN).push()]
    server.faults.clear()  # the specification knows no /api/api


def test_the_stand_in_knows_what_is_wrong(server, monkeypatch):
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    for body in ({"text": 5}, {"tags": []}, {"text": "", "dashboard_uid": "x"}):
        request = urllib.request.Request(
            f"{server.url}/api/annotations", json.dumps(body).encode(), headers
        )
        urllib.request.urlopen(request, timeout=10).close()
    assert [fault.split(":")[0] for fault in server.faults] == ["request POST /annotations"] * 3
    server.faults.clear()
    monkeypatch.setattr(server, "_get_health", lambda query, body: (200, {"database": 5}))
    urllib.request.urlopen(f"{server.url}/api/health", timeout=10).close()
    assert [fault.split(":")[0] for fault in server.faults] == ["answer to GET /health"]
    server.faults.clear()


def test_a_grafana_under_a_path_is_found_with_and_without_a_slash():
    server = FakeGrafana(prefix="/grafana")
    try:
        for url in (server.url, f"{server.url}/"):
            done = [*Grafana(url, TOKEN).push()]
        assert outcomes(done) == {"left"}
        assert server.faults == []
    finally:
        server.close()


def test_an_unknown_token_is_told_and_not_shown(server):
    wrong = "glsa_wrong_1234567890"
    with pytest.raises(GrafanaError, match="does not know the token \\(401\\)") as error:
        [*Grafana(server.url, wrong).push()]
    assert wrong not in str(error.value)


def test_a_token_without_a_permission_is_told_what_it_needs(server):
    server.forbidden = [("POST", "/datasources")]
    done = []
    with pytest.raises(GrafanaError, match=r"create the data source: .*403.*role Admin"):
        done.extend(Grafana(server.url, TOKEN).push())


def test_a_token_that_grafana_repeats_is_masked(server, monkeypatch):
    def repeat(query, body):
        return 500, {"message": f"bad token {TOKEN}"}

    monkeypatch.setattr(server, "_get_health", repeat)
    with pytest.raises(GrafanaError, match=r"bad token \*\*\*"):
        push(server)
    server.faults.clear()  # the specification knows no 500 of /health


def test_nobody_there_is_told():
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(GrafanaError, match="cannot be reached") as error:
        [*Grafana(url, TOKEN).push()]
    assert url in str(error.value)


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "grafana_client.api", None)
    with pytest.raises(GrafanaError, match=r"pip install 'phasewatch\[grafana\]'"):
        Grafana("http://localhost:3000", TOKEN)


def test_one_that_does_not_answer_in_time_is_told(server):
    server.delay_seconds = 3.0
    with pytest.raises(GrafanaError, match="does not answer in time"):
        push(server, timeout_seconds=0.2)


def test_a_failure_in_the_middle_keeps_what_was_done_and_goes_on_next_time(server):
    server.forbidden = [("POST", "/v1/provisioning")]
    with pytest.raises(GrafanaError, match="create the alert rule 'Transition'"):
        push(server)
    server.forbidden = []
    done = push(server)
    assert {item.outcome.value for item in done if item.what == "dashboard"} == {"left"}
    assert {item.outcome.value for item in done if item.what == "alert rule"} == {"created"}


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("localhost:3000", "must be like"),
        ("ftp://host", "must be like"),
        ("http://", "must be like"),
        ("http://host:port", "must be like"),
        ("http://user:hunter2@host", "leave them out"),
        ("http://host/?orgId=1", "leave out what follows"),
    ],
)
def test_what_is_no_address_is_refused(url, message):
    with pytest.raises(ConfigError, match=message) as error:
        base_url(url)
    assert "hunter2" not in str(error.value)


def test_the_token_comes_from_argument_file_or_environment(tmp_path, monkeypatch):
    file = tmp_path / "token"
    file.write_text("from-file\n")
    monkeypatch.setenv("PHASEWATCH_GRAFANA_TOKEN", "from-environment")
    assert find_token("given", file) == "given"
    assert find_token(None, file) == "from-file"
    assert find_token(None, None) == "from-environment"
    monkeypatch.delenv("PHASEWATCH_GRAFANA_TOKEN")
    with pytest.raises(ConfigError, match="no token for Grafana; set PHASEWATCH_GRAFANA_TOKEN"):
        find_token(None, None)
    with pytest.raises(ConfigError, match="cannot be read"):
        find_token(None, tmp_path / "absent")
    for strange in ("two words", "glsa_ü", "line\nbreak"):
        with pytest.raises(ConfigError, match="not shown") as error:
            find_token(strange, None)
        assert strange not in str(error.value)


def test_keys_that_grafana_adds_do_not_count_as_changes():
    assert holds({"a": [{"b": 1, "id": 7}], "c": 2}, {"a": [{"b": 1.0}]})
    assert not holds({"a": [{"b": 1}, {}]}, {"a": [{"b": 1}]})
    assert not holds({"a": []}, {"a": {}})
    assert not holds({}, {"a": None})


# ---- the command


def command(*arguments, token=TOKEN):
    environment = {"PHASEWATCH_GRAFANA_TOKEN": token}
    return CliRunner().invoke(app, ["grafana", "push", *arguments], env=environment)


def test_the_command_says_what_it_did(server):
    dry = command("--url", server.url, "--dry-run")
    assert "dashboard phasewatch: Run: would be created" in dry.output
    first = command("--url", server.url)
    assert first.exit_code == 0
    assert "folder phasewatch: created" in first.output
    assert "data source phasewatch: created (http://localhost:9090)" in first.output
    assert "alert rule Run crashed: created" in first.output
    again = command("--url", server.url)
    assert "created" not in again.output
    gone = command("--url", server.url, "--delete")
    assert "dashboard phasewatch: Run: deleted" in gone.output
    assert TOKEN not in dry.output + first.output + again.output + gone.output


def test_the_command_speaks_json(server):
    result = command("--url", server.url, "--json")
    content = json.loads(result.stdout)
    assert content["url"] == server.url
    assert content["dry_run"] is False
    assert {item["outcome"] for item in content["done"]} == {"created"}


def test_a_token_file_goes_before_the_environment(server, tmp_path):
    file = tmp_path / "token"
    file.write_text(TOKEN)
    result = command("--url", server.url, "--token-file", str(file), token="wrong")
    assert result.exit_code == 0


def test_an_error_is_one_line_without_the_token_and_code_one():
    url = f"http://127.0.0.1:{free_port()}"
    result = subprocess.run(
        [sys.executable, "-m", "phasewatch.monitor.cli.main", "grafana", "push", "--url", url,
         "--token", TOKEN],
        capture_output=True,
        text=True,
        timeout=60,
    )  # fmt: skip
    assert result.returncode == 1
    assert result.stderr.startswith(f"phasewatch: Grafana at {url} did not")
    assert result.stderr.count("\n") == 1
    assert TOKEN not in result.stdout + result.stderr


def test_help_does_not_show_the_token():
    result = CliRunner().invoke(
        app, ["grafana", "push", "--help"], env={"PHASEWATCH_GRAFANA_TOKEN": TOKEN}
    )
    assert "--dry-run" in result.output
    assert TOKEN not in result.output
