"""The manifests hold the rules that Prometheus reads elsewhere, and are what the operator takes."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml

from phasewatch.monitor.config.exports import ExporterConfig
from support.promtool import DEPLOY, RULES

FOLDER = DEPLOY / "kubernetes"
SCHEMAS = Path(__file__).parents[1] / "support" / "schemas"


def load(name):
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


def build():
    spec = importlib.util.spec_from_file_location("build_kubernetes", FOLDER / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_manifest_holds_the_rules_as_they_are():
    assert load("prometheusrule.yaml")["spec"] == yaml.safe_load(RULES.read_text(encoding="utf-8"))


def test_the_manifest_is_as_its_builder_writes_it():
    written = (FOLDER / "prometheusrule.yaml").read_text(encoding="utf-8")
    assert written == build().manifest(), "run python deploy/kubernetes/build.py"


@pytest.mark.parametrize("kind", ["podmonitor", "prometheusrule"])
def test_the_manifest_is_what_the_operator_takes(kind):
    crd = yaml.safe_load((SCHEMAS / f"{kind}.crd.yaml").read_text(encoding="utf-8"))
    (version,) = [v for v in crd["spec"]["versions"] if v["name"] == "v1"]
    schema = closed(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    manifest = load(f"{kind}.yaml")
    assert manifest["kind"] == crd["spec"]["names"]["kind"]
    jsonschema.Draft202012Validator(schema).validate(manifest)


def closed(schema):
    """The schema, refusing fields that it does not know: the server would drop them unsaid."""
    if isinstance(schema, dict):
        found = {key: closed(value) for key, value in schema.items()}
        if isinstance(found.get("properties"), dict) and found.get("type") == "object":
            found.setdefault("additionalProperties", False)
        return found
    return [closed(item) for item in schema] if isinstance(schema, list) else schema


def test_pods_are_scraped_at_the_exporters_port_with_their_own_labels():
    (endpoint,) = load("podmonitor.yaml")["spec"]["podMetricsEndpoints"]
    assert endpoint["honorLabels"] is True
    port = ExporterConfig().port
    assert f"containerPort: {port}" in (FOLDER / "podmonitor.yaml").read_text(encoding="utf-8")


def test_every_resource_exists_and_every_dashboard_is_a_config_map():
    for resource in load("kustomization.yaml")["resources"]:
        assert (FOLDER / resource).exists()
    grafana = DEPLOY / "grafana"
    maps = yaml.safe_load((grafana / "kustomization.yml").read_text(encoding="utf-8"))
    files = {file for one in maps["configMapGenerator"] for file in one["files"]}
    dashboards = {f"dashboards/{path.name}" for path in (grafana / "dashboards").glob("*.json")}
    assert dashboards <= files


@pytest.mark.skipif(
    shutil.which("kubectl") is None or not (DEPLOY / "grafana" / "dashboards").is_dir(),
    reason="kubectl is not installed, or there are no dashboards",
)
def test_kustomize_renders_everything():
    done = subprocess.run(["kubectl", "kustomize", str(FOLDER)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kinds = [document["kind"] for document in yaml.safe_load_all(done.stdout)]
    assert kinds.count("ConfigMap") == 3
    assert {"PodMonitor", "PrometheusRule"} <= set(kinds)
