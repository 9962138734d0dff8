"""Prometheus and Alertmanager from local programs: how they are set up, started and stopped."""

import os
import signal
import socket
import stat
import subprocess
import sys
import urllib.request

import pytest
import yaml

from phasewatch.monitor.core.errors import PhasewatchError
from phasewatch.monitor.operations import stack as module
from phasewatch.monitor.operations.stack import Stack, find_program
from support.alerting import need_servers
from support.records import wait_until
from support.scraping import free_port


@pytest.fixture
def stack(tmp_path):
    return Stack(
        folder=tmp_path / "stack",
        prometheus_port=free_port(),
        alertmanager_port=free_port(),
        interval_seconds=2,
    )


def program(folder, name, does):
    file = folder / name
    file.write_text(f"#!/bin/sh\n{does}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return file


def test_the_configuration_is_the_shipped_one_with_our_addresses(stack):
    stack.configure()
    shipped = yaml.safe_load((module.DEPLOY / "prometheus" / "prometheus.yml").read_text())
    written = yaml.safe_load((stack.folder / "prometheus.yml").read_text())
    assert written["global"] == {"scrape_interval": "2s", "evaluation_interval": "2s"}
    (manager,) = written["alerting"]["alertmanagers"]
    assert manager["static_configs"] == [{"targets": [f"127.0.0.1:{stack.alertmanager_port}"]}]
    assert written["rule_files"] == shipped["rule_files"]
    assert written["scrape_configs"][0]["honor_labels"] is True
    assert written["scrape_configs"][0]["file_sd_configs"][0]["files"] == ["targets/*.json"]
    assert stack.targets.is_dir()


def test_who_is_told_is_the_users_to_say_and_stays(stack):
    stack.configure()
    stack.alertmanager_config.write_text("mine")
    (stack.folder / "rules.yml").write_text("old")
    stack.configure()
    assert stack.alertmanager_config.read_text() == "mine"
    assert (stack.folder / "rules.yml").read_text() != "old"


def test_a_folder_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PhasewatchError, match=r"cannot be written: .*give --folder"):
        Stack(folder=tmp_path / "file").configure()


def test_the_first_program_found_is_taken(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PhasewatchError, match="alertmanager or prometheus-alertmanager is not"):
        find_program(module.ALERTMANAGER)
    debian = program(tmp_path, "prometheus-alertmanager", "exit 0")
    assert find_program(module.ALERTMANAGER) == str(debian)
    upstream = program(tmp_path, "alertmanager", "exit 0")
    assert find_program(module.ALERTMANAGER) == str(upstream)


def test_a_missing_program_is_told_before_anything_is_written(stack, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PhasewatchError, match=r"prometheus is not installed.*apt install"):
        stack.running().__enter__()
    assert not stack.folder.exists()


def test_a_port_that_is_taken_is_told(stack, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("prometheus", "alertmanager"):
        program(tmp_path, name, "exit 0")
    with socket.socket() as other:
        other.bind(("127.0.0.1", stack.alertmanager_port))
        other.listen()
        with pytest.raises(PhasewatchError, match="--alertmanager-port another"):
            stack.running().__enter__()


def test_a_server_that_does_not_start_is_told_with_its_last_words(stack, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    program(tmp_path, "prometheus", "exec sleep 60")
    program(tmp_path, "alertmanager", "echo first; echo no such secret >&2; exit 3")
    with pytest.raises(
        PhasewatchError, match=r"Alertmanager has ended with code 3: no such secret; its log is"
    ):
        stack.running().__enter__()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_starts_both_and_stops_both(stack, number):
    need_servers()
    # What a script starts in the background inherits this.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    command = subprocess.Popen(
        [sys.executable, "-m", "phasewatch.monitor.cli.main", "stack", "up",
         f"--folder={stack.folder}", f"--prometheus-port={stack.prometheus_port}",
         f"--alertmanager-port={stack.alertmanager_port}", "--interval=1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    signal.signal(signal.SIGINT, before)
    said = ""
    while "Ctrl-C stops both" not in said:
        line = command.stdout.readline()
        assert line, command.stderr.read()
        said += line
    for url in (stack.prometheus_url, stack.alertmanager_url):
        assert url in said
        with urllib.request.urlopen(f"{url}/-/ready", timeout=10) as answer:
            assert answer.status == 200
    assert f'exporter: {{targets_dir: "{stack.targets}"}}' in said
    command.send_signal(number)
    out, err = command.communicate(timeout=60)
    assert (command.returncode, out, err) == (0, "stopped\n", "")
    for port in (stack.prometheus_port, stack.alertmanager_port):
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.slow
def test_a_server_that_dies_later_ends_the_command(stack):
    need_servers()
    with stack.running() as servers:
        servers[0].check()
        servers[0].stop()
        wait_until(lambda: servers[0]._process.poll() is not None, what="its end")
        with pytest.raises(PhasewatchError, match="Alertmanager has ended with code 0"):
            servers[0].check()
