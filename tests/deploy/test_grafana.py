"""The shipped dashboards and alert rules: built by the SDK, valid, known metrics, sound habits."""

import json
import re
import subprocess
import sys

import jsonschema
import pytest
import yaml

from phasewatch.monitor.core import metrics as m
from phasewatch.monitor.grafana.shipped import SHIPPED
from support.dashboards import (
    all_queries,
    boards,
    fill_in,
    panels,
    provisioned_files,
    shipped_rules,
    variables,
)
from support.needs import need_binary, need_test_data

NAMES = sorted(boards())
EVERY_VALUE = dict.fromkeys(("run", "run_id", "llc", "family", "observable", "datasource"), "x")


@pytest.fixture(params=NAMES)
def board(request):
    return boards()[request.param]


# ---- built by the SDK


def test_what_is_committed_is_what_the_builder_builds(tmp_path):
    builder = [sys.executable, str(SHIPPED / "build.py"), str(tmp_path)]
    subprocess.run(builder, check=True, capture_output=True, timeout=120)
    built = {path.relative_to(tmp_path) for path in tmp_path.rglob("*.*")}
    assert {path.relative_to(SHIPPED) for path in SHIPPED.rglob("*.json")} <= built
    for name in built:
        committed = (SHIPPED / name).read_text(encoding="utf-8")
        assert committed == (tmp_path / name).read_text(encoding="utf-8"), (
            f"{name} differs: run `make dashboards` and commit"
        )


# ---- valid by Grafana's schemas


def schema(name):
    """A schema of Grafana's. "Anything" is written as an object in it; it means anything."""
    path = need_test_data("grafana", f"{name}.next.jsonschema.json")
    return loosen(json.loads(path.read_text(encoding="utf-8")))


def loosen(node):
    if isinstance(node, list):
        return [loosen(item) for item in node]
    if not isinstance(node, dict):
        return node
    if node.get("type") == "object" and node.get("additionalProperties") == {}:
        return {key: value for key, value in node.items() if key == "description"}
    return {key: loosen(value) for key, value in node.items()}


def faults(content, schema, definition=None):
    if definition is not None:
        schema = {**schema, "$ref": f"#/definitions/{definition}"}
    validator = jsonschema.validators.validator_for(schema)(schema)
    return [(list(fault.absolute_path), fault.message) for fault in validator.iter_errors(content)]


def test_a_dashboard_is_valid(board):
    assert faults(board, schema("dashboard")) == []


def test_the_schema_knows_what_is_wrong(board):
    assert faults({**board, "colour": "red"}, schema("dashboard"))
    wrong = json.loads(json.dumps(board))
    wrong["panels"][-1]["gridPos"]["w"] = "wide"
    assert faults(wrong, schema("dashboard"))


@pytest.mark.parametrize("kind", ["timeseries", "xychart"])
def test_options_and_fields_of_a_panel_are_valid(kind):
    found = [
        panel for board in boards().values() for panel in panels(board) if panel["type"] == kind
    ]
    assert found
    for panel in found:
        assert faults(panel["options"], schema(kind), "Options") == [], panel["title"]
        custom = panel["fieldConfig"]["defaults"]["custom"]
        definition = "FieldConfig" if kind == "xychart" else "GraphFieldConfig"
        assert faults(custom, schema(kind), definition) == [], panel["title"]


def test_queries_are_valid(board):
    for panel in panels(board):
        for target in panel["targets"]:
            assert faults(target, schema("prometheus")) == [], panel["title"]


def test_alert_rules_are_valid():
    for rule in shipped_rules()["rules"]:
        as_api = rule | {"folderUID": "f", "ruleGroup": "g", "orgID": 1}
        assert faults(as_api, schema("alerting"), "Rule") == [], rule["title"]


def test_contact_points_are_valid():
    content = yaml.safe_load((SHIPPED / "provisioning/alerting/contact-points.yaml").read_text())
    for point in content["contactPoints"]:
        for receiver in point["receivers"]:
            assert (
                faults({**receiver, "name": point["name"]}, schema("alerting"), "ContactPoint")
                == []
            )
    receivers = {point["name"] for point in content["contactPoints"]}
    used = {rule["notification_settings"]["receiver"] for rule in shipped_rules()["rules"]}
    assert used == receivers


# ---- queries


def test_every_metric_is_one_of_the_table():
    served = {metric.name for metric in m.METRICS}
    for query in all_queries():
        used = metrics_in(query.expr)
        assert used, query.where
        assert used <= served, query.where


def metrics_in(expr):
    """Names of metrics; a histogram's without its suffix."""
    histograms = {metric.name for metric in m.METRICS if metric.type == "histogram"}
    found = {name: name.removesuffix("_sum") for name in re.findall(r"phasewatch_\w+", expr)}
    return {whole if whole in histograms else name for name, whole in found.items()}


def test_every_metric_of_the_table_can_be_seen_but_for_a_few():
    seen = {name for query in all_queries() for name in metrics_in(query.expr)}
    unseen = {metric.name for metric in m.METRICS} - seen
    # Of the latest transition, the onset is enough.
    unseen = {name for name in unseen if not name.startswith("phasewatch_last_transition_")}
    # Who serves a page, figures of the exporter itself, and what another panel says as well.
    assert unseen <= {
        m.BUILD.name,
        m.RUN.name,
        m.RUNBOOK.name,
        m.RUN_EPOCH.name,
        m.MONITOR_SECONDS.name,
        m.MEASUREMENTS.name,
        m.EXPORTER_OMITTED.name,
        m.ALERT_SENT.name,
    }


def test_every_label_matched_is_one_of_its_metric():
    by_name = {metric.name: set(metric.labels) for metric in m.METRICS}
    found = 0
    for query in all_queries():
        for name, matchers in re.findall(r"(phasewatch_\w+)\{([^}]*)\}", query.expr):
            for label in re.findall(r"(\w+)=~?\"", matchers):
                found += 1
                (metric,) = metrics_in(name)
                assert label in by_name[metric], (query.where, name, label)
    assert found > 50


def test_every_query_parses(tmp_path):
    rules = [
        {"record": f"q:{number}", "expr": fill_in(query.expr, EVERY_VALUE)}
        for number, query in enumerate(all_queries())
    ]
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": rules}]}))
    check = subprocess.run(
        [need_binary("promtool"), "check", "rules", str(path)], capture_output=True, text=True
    )
    assert check.returncode == 0, check.stderr
    assert f"{len(rules)} rules found" in check.stdout


# ---- habits


def test_uids_and_titles_are_what_links_and_docs_name():
    assert {board["uid"]: board["title"] for board in boards().values()} == {
        "phasewatch-overview": "phasewatch: Overview",
        "phasewatch-run": "phasewatch: Run",
        "phasewatch-compare": "phasewatch: Compare",
    }


def test_every_panel_has_an_id_a_title_and_a_description(board):
    ids = [panel["id"] for panel in board["panels"]]
    assert sorted(ids) == list(range(1, len(ids) + 1))
    for panel in panels(board):
        assert panel["title"]
        assert len(panel["description"]) > 10, panel["title"]
        assert panel["description"].endswith("."), panel["title"]


def test_panels_fill_the_grid_without_overlap_and_are_no_slivers(board):
    """A phone shows one panel below the other: each must be high enough to be read alone."""
    taken = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert place["w"] >= 4
            assert place["h"] >= (4 if panel["type"] == "stat" else 7)


def test_every_query_asks_the_chosen_prometheus(board):
    sources = [item for item in board["templating"]["list"] if item["type"] == "datasource"]
    assert [item["name"] for item in sources] == ["datasource"]
    wanted = {"type": "prometheus", "uid": "${datasource}"}
    for panel in panels(board):
        assert panel["datasource"] == wanted
        assert all(target["datasource"] == wanted for target in panel["targets"])
    assert all(item["datasource"] == wanted for item in variables(board))


def test_runs_are_chosen_one_or_many():
    multi = {
        name: item["multi"]
        for name, board in boards().items()
        for item in variables(board)
        if item["name"] == "run"
    }
    assert multi == {"overview": True, "run": False, "compare": True}


def test_dashboards_lead_to_each_other(board):
    (link,) = board["links"]
    assert (link["type"], link["tags"]) == ("dashboards", ["phasewatch"])
    assert link["keepTime"]
    assert link["includeVars"]
    assert "phasewatch" in board["tags"]


def test_losses_have_a_logarithmic_scale():
    found = 0
    for board in boards().values():
        for panel in panels(board):
            if panel["type"] == "timeseries" and "loss" in panel["title"].lower():
                scale = panel["fieldConfig"]["defaults"]["custom"]["scaleDistribution"]
                assert scale == {"type": "log", "log": 10}, panel["title"]
                found += 1
    assert found == 5


def test_fixed_colours_are_those_of_okabe_and_ito():
    text = json.dumps(list(boards().values())).upper()
    okabe_ito = {"0072B2", "D55E00", "009E73", "E69F00", "CC79A7", "56B4E9", "F0E442", "999999"}
    shades = {"00734F", "B04A00", "8F6200"}  # of three of them, behind white letters
    assert set(re.findall(r"#([0-9A-F]{6})", text)) <= okabe_ito | shades
    assert not re.search(r'"(RED|GREEN|YELLOW|ORANGE)"', text)


def test_the_error_band_lies_between_its_edges():
    (panel,) = [p for p in panels(boards()["run"]) if p["title"].startswith("λ̂ of")]
    legends = [target["legendFormat"] for target in panel["targets"]]
    upper, lower = legends[2:]
    properties = {
        override["matcher"]["options"]: {
            item["id"]: item["value"] for item in override["properties"]
        }
        for override in panel["fieldConfig"]["overrides"]
    }
    assert properties[upper]["custom.fillBelowTo"] == lower
    assert "+ 2 *" in panel["targets"][2]["expr"]
    assert "- 2 *" in panel["targets"][3]["expr"]


# ---- alerting and provisioning


def test_a_rule_is_a_query_and_a_threshold_with_the_words_for_a_message():
    rules = shipped_rules()["rules"]
    assert len({rule["uid"] for rule in rules}) == len(rules)
    for rule in rules:
        query, threshold = rule["data"]
        assert (query["refId"], threshold["refId"], rule["condition"]) == ("A", "C", "C")
        assert query["datasourceUid"] == "phasewatch-prometheus"
        assert query["model"]["instant"] is True
        assert threshold["model"]["type"] == "threshold"
        assert threshold["model"]["expression"] == "A"
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert "{{ $labels.run }}" in rule["annotations"]["summary"]
        assert rule["annotations"]["description"]
        assert rule["noDataState"] == "OK"


def test_provisioning_names_fit_each_other():
    read = {
        path.parent.name + "/" + path.name: yaml.safe_load(path.read_text(encoding="utf-8"))
        for path in (SHIPPED / "provisioning").rglob("*.yaml")
    }
    (source,) = read["datasources/prometheus.yaml"]["datasources"]
    (provider,) = read["dashboards/phasewatch.yaml"]["providers"]
    assert source["uid"] == "phasewatch-prometheus"
    assert provider["folder"] == shipped_rules()["folder"]
    assert all(content["apiVersion"] == 1 for content in read.values())


def test_no_secret_is_in_any_file():
    for text in provisioned_files():
        assert not re.search(r"(?i)(password|token|secret|api_?key)\s*[:=]", text)
        for url in re.findall(r"(?m)^\s*url:\s*(\S+)", text):
            assert url.startswith("$")
