"""The target file: whole or absent, one per run and address, gone after a clean end."""

import json
import socket

from phasewatch.monitor.sinks.file_sd import TargetFile, address


def test_the_file_names_target_and_run(tmp_path):
    target = TargetFile(tmp_path / "sd", "demo", "127.0.0.1:9877")
    assert json.loads(target.path.read_text()) == [
        {"targets": ["127.0.0.1:9877"], "labels": {"run": "demo"}}
    ]
    assert [path.name for path in (tmp_path / "sd").iterdir()] == [target.path.name]


def test_a_resumed_run_writes_over_the_file_that_was_left(tmp_path):
    first = TargetFile(tmp_path, "demo", "127.0.0.1:9877")
    again = TargetFile(tmp_path, "demo", "127.0.0.1:9877")
    assert first.path == again.path


def test_hostile_names_make_files_of_their_own_inside_the_folder(tmp_path):
    names = ["../../etc/passwd", "a/b", "a b", "a-b", "", "..", "x" * 500]
    paths = {TargetFile(tmp_path, name, "127.0.0.1:9877").path for name in names}
    assert len(paths) == len(names)
    assert {path.parent.resolve() for path in paths} == {tmp_path.resolve()}


def test_removing_leaves_the_file_of_another_alone(tmp_path):
    target = TargetFile(tmp_path, "demo", "127.0.0.1:9877")
    target.path.write_text("[]")
    target.remove()
    assert target.path.read_text() == "[]"


def test_removing_twice_is_no_error(tmp_path):
    target = TargetFile(tmp_path, "demo", "127.0.0.1:9877")
    target.remove()
    target.remove()
    assert list(tmp_path.iterdir()) == []


def test_addresses_can_be_reached_from_elsewhere():
    assert address("127.0.0.1", 1) == "127.0.0.1:1"
    assert address("::1", 1) == "[::1]:1"
    assert address("0.0.0.0", 1) == f"{socket.gethostname()}:1"
