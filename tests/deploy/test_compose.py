"""The compose file is valid, pinned, closed to others, and what it mounts is valid itself."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from support.needs import need_binary
from support.promtool import DEPLOY

FOLDER = DEPLOY / "compose"
SCHEMAS = Path(__file__).parents[1] / "support" / "schemas"
FILES = {"linux": ["compose.yaml"], "desktop": ["compose.yaml", "compose.desktop.yaml"]}
MADE_BY_THE_USER = {"targets", "secrets"}
OF_GRAFANA = DEPLOY / "grafana"


class Reset:
    """`!reset`: the key is taken away."""


class Override(list[Any]):
    """`!override`: the list replaces the other."""


class Loader(yaml.SafeLoader):
    """Knows the two tags of Compose."""


Loader.add_constructor("!reset", lambda *_: Reset())
Loader.add_constructor("!override", lambda loader, node: Override(loader.construct_sequence(node)))


def merged(base: Any, over: Any, key: str = "") -> Any:
    """What Compose makes of two files."""
    if isinstance(over, Override):
        return list(over)
    if isinstance(base, dict) and isinstance(over, dict):
        joined = {name: merged(base[name], value, name) if name in base else value
                  for name, value in over.items()}  # fmt: skip
        return {
            name: value
            for name, value in {**base, **joined}.items()
            if not isinstance(value, Reset)
        }
    if isinstance(base, list) and isinstance(over, list) and key not in ("command", "entrypoint"):
        return base + over
    return over


@pytest.fixture(params=FILES)
def compose(request: Any) -> Any:
    content: Any = {}
    for name in FILES[request.param]:
        loaded = yaml.load((FOLDER / name).read_text(encoding="utf-8"), Loader)
        content = merged(content, loaded)
    return content


def test_the_file_is_valid_for_compose(compose):
    schema = json.loads((SCHEMAS / "compose-spec.json").read_text(encoding="utf-8"))
    jsonschema.Draft7Validator(schema).validate(compose)


def test_every_image_is_pinned_to_a_version(compose):
    for service in compose["services"].values():
        assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+", service["image"])


def test_nothing_listens_beyond_loopback(compose):
    for name, service in compose["services"].items():
        if service.get("network_mode") == "host":
            flags = " ".join(service.get("command", ()))
            listens = re.findall(r"--web\.listen-address=(\S+)", flags) or [
                service["environment"]["GF_SERVER_HTTP_ADDR"]
            ]
            assert all(address.startswith("127.0.0.1") for address in listens), name
            assert "ports" not in service
        else:
            assert all(port.startswith("127.0.0.1:") for port in service["ports"]), name


def test_no_password_stands_in_the_file_and_none_is_the_default(compose):
    environment = compose["services"]["grafana"]["environment"]
    passwords = {key: value for key, value in environment.items() if "PASSWORD" in key}
    assert passwords == {"GF_SECURITY_ADMIN_PASSWORD__FILE": "/run/secrets/grafana_admin_password"}
    assert compose["services"]["grafana"]["secrets"] == ["grafana_admin_password"]
    (secret,) = compose["secrets"].values()
    assert secret == {"file": "./secrets/grafana_admin_password"}
    assert not (FOLDER / "secrets").exists()
    assert environment["GF_AUTH_ANONYMOUS_ENABLED"] == "false"


def mounts(compose):
    """Where what is mounted lies here, and where in the container; named volumes left out."""
    for name, service in compose["services"].items():
        for volume in service["volumes"]:
            source, target = re.sub(r"\$\{\w+:-(.*?)\}", r"\1", volume).split(":")[:2]
            if source.startswith("."):
                yield name, (FOLDER / source).resolve(), target


def test_every_mounted_file_exists(compose):
    for _, source, _ in mounts(compose):
        if source.name in MADE_BY_THE_USER:
            assert source.parent == FOLDER
        elif OF_GRAFANA not in source.parents or OF_GRAFANA.joinpath("build.py").exists():
            assert source.exists(), source


def test_the_mounted_configurations_are_valid(compose, tmp_path):
    for name, source, target in mounts(compose):
        if source.is_file():
            place = tmp_path / name / target.rsplit("/", 1)[1]
            place.parent.mkdir(exist_ok=True)
            place.write_bytes(source.read_bytes())
    for command in (
        [need_binary("promtool"), "check", "config", str(tmp_path / "prometheus/prometheus.yml")],
        [need_binary("amtool"), "check-config", str(tmp_path / "alertmanager/alertmanager.yml")],
    ):
        check = subprocess.run(command, capture_output=True, text=True)
        assert check.returncode == 0, check.stdout + check.stderr
    assert (
        "1 rule files found"
        in subprocess.run(
            [
                need_binary("promtool"),
                "check",
                "config",
                str(tmp_path / "prometheus/prometheus.yml"),
            ],
            capture_output=True,
            text=True,
        ).stdout
    )


def test_servers_read_what_is_mounted_for_them(compose):
    targets = {name: {target for n, _, target in mounts(compose) if n == name}
               for name in compose["services"]}  # fmt: skip
    for name in ("prometheus", "alertmanager"):
        (config,) = re.findall(
            r"--config\.file=(\S+)", " ".join(compose["services"][name]["command"])
        )
        assert config in targets[name]
    secrets = re.findall(r"_file: (\S+)/\w+$", read("alertmanager/alertmanager.yml"), re.MULTILINE)
    assert set(secrets) <= targets["alertmanager"]
    assert not any(target.endswith("/alerting") for target in targets["grafana"])


def read(name: str) -> str:
    return (DEPLOY / name).read_text(encoding="utf-8")


def test_the_variant_for_docker_desktop_scrapes_as_the_shipped_one_does():
    shipped = yaml.safe_load(read("prometheus/prometheus.yml"))
    desktop = yaml.safe_load(read("compose/prometheus.desktop.yml"))
    (manager,) = desktop["alerting"]["alertmanagers"]
    assert manager["static_configs"] == [{"targets": ["alertmanager:9093"]}]
    manager["static_configs"] = [{"targets": ["127.0.0.1:9093"]}]
    keep, rename = desktop["scrape_configs"][0].pop("relabel_configs")
    assert desktop == shipped
    assert keep == {"source_labels": ["__address__"], "target_label": "instance"}
    pattern, replacement = rename["regex"], rename["replacement"].replace("$", "\\")
    assert re.sub(pattern, replacement, "127.0.0.1:9877") == "host.docker.internal:9877"
    assert not re.fullmatch(pattern, "node17:9877")


def test_linux_and_shipped_configuration_agree_on_addresses():
    shipped = yaml.safe_load(read("prometheus/prometheus.yml"))
    services = yaml.safe_load(read("compose/compose.yaml"))["services"]
    (manager,) = shipped["alerting"]["alertmanagers"]
    (address,) = manager["static_configs"][0]["targets"]
    assert f"--web.listen-address={address}" in services["alertmanager"]["command"]
    assert "--web.listen-address=127.0.0.1:9090" in services["prometheus"]["command"]
    url = services["grafana"]["environment"]["PHASEWATCH_PROMETHEUS_URL"]
    assert url == "http://127.0.0.1:9090"


def test_the_folders_of_the_machine_are_not_committed():
    ignored = (FOLDER / ".gitignore").read_text(encoding="utf-8").split()
    assert {f"{name}/" for name in MADE_BY_THE_USER} <= set(ignored)
    assert Path(FOLDER / "compose.yaml").is_file()
