"""The target file: whole or absent, one per run and address, gone after a clean end."""

import json
import socket
from pathlib import Path

import pytest

from phasewatch.monitor.prometheus.target_files import TargetFile, address

TARGET = "127.0.0.1:9877"


def test_the_file_names_target_and_run(tmp_path):
    target = TargetFile(tmp_path / "sd", TARGET, {"run": "demo", "experiment": ""})
    assert json.loads(target.path.read_text()) == [
        {"targets": ["127.0.0.1:9877"], "labels": {"run": "demo"}}
    ]
    assert [path.name for path in (tmp_path / "sd").iterdir()] == [target.path.name]


def test_a_resumed_run_writes_over_the_file_that_was_left(tmp_path):
    first = TargetFile(tmp_path, TARGET, {"run": "demo"})
    again = TargetFile(tmp_path, TARGET, {"run": "demo"})
    assert first.path == again.path


def test_hostile_names_make_files_of_their_own_inside_the_folder(tmp_path):
    names = ["../../etc/passwd", "\udcff", "a\nb", "a/b", "a b", "a-b", "", "..", "x" * 500]
    paths = {TargetFile(tmp_path, TARGET, {"run": name}).path for name in names}
    assert len(paths) == len(names)
    assert {path.parent.resolve() for path in paths} == {tmp_path.resolve()}


def test_removing_leaves_the_file_of_another_alone(tmp_path):
    target = TargetFile(tmp_path, TARGET, {"run": "demo"})
    target.path.write_text("[]")
    target.remove()
    assert target.path.read_text() == "[]"


def test_removing_twice_is_no_error(tmp_path):
    target = TargetFile(tmp_path, TARGET, {"run": "demo"})
    target.remove()
    target.remove()
    assert list(tmp_path.iterdir()) == []


def test_addresses_can_be_reached_from_elsewhere():
    assert address("127.0.0.1", 1) == "127.0.0.1:1"
    assert address("::1", 1) == "[::1]:1"
    assert address("0.0.0.0", 1) == f"{socket.gethostname()}:1"


def test_a_file_that_cannot_be_written_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        TargetFile(tmp_path, TARGET, {"run": "demo"})
    assert list(tmp_path.iterdir()) == []
