"""Target files: who answers behind each, and when a dead one may go."""

import json
import os
import platform
import socket
import threading
import time
from functools import partial

import pytest

from phasewatch.monitor.config.exports import ExporterConfig
from phasewatch.monitor.core.ending import RunState
from phasewatch.monitor.core.health import Health
from phasewatch.monitor.prometheus import reaper
from phasewatch.monitor.prometheus.reaper import RESUMED_SECONDS, STALE_SECONDS, TargetState
from phasewatch.monitor.prometheus.sink import PrometheusSink
from phasewatch.monitor.prometheus.target_files import TargetFile
from support.records import start_python
from support.scraping import free_port

RUN = 'grok "p=53"\\'
PATIENT = 20.0


class Clock:
    """The time, as the module under test sees it."""

    def __init__(self):
        self.offset = 0.0

    def time(self):
        return time.time() + self.offset


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(reaper, "time", clock)
    return clock


@pytest.fixture
def serve(tmp_path):
    """Starts runs that serve and register."""
    sinks = []

    def start(run=RUN, *, port=0, **health):
        values = {"last_step_timestamp": time.time(), "steps_per_second": 10.0} | health
        sink = PrometheusSink(
            run, ExporterConfig(port=port, targets_dir=tmp_path), Health(**values)
        )
        sinks.append(sink)
        return sink

    yield start
    for sink in sinks:
        sink.close()


def crash(sink):
    """End serving as a killed process does: without a word, the file stays."""
    sink.close()


def leave(folder, run=RUN, address="", **labels):
    """The file of a process that is gone."""
    address = address or f"127.0.0.1:{free_port()}"
    return TargetFile(folder, address, {"run": run, "host": platform.node()} | labels).path


def states(folder):
    return [(target.run, target.state) for target in reaper.examine(folder, timeout=PATIENT)]


def reaped(folder):
    return [target.path for target in reaper.reap(reaper.examine(folder, timeout=PATIENT))]


@pytest.mark.parametrize("state", RunState)
def test_states_of_runs_that_answer_are_told_apart(serve, tmp_path, state):
    serve(state=state)
    assert states(tmp_path) == [(RUN, TargetState(state.value))]
    assert reaped(tmp_path) == []


def test_a_run_that_answers_and_stands_still_is_stalled(serve, tmp_path):
    serve(last_step_timestamp=time.time() - 400)
    (target,) = reaper.examine(tmp_path, timeout=PATIENT)
    assert target.state is TargetState.STALLED
    assert "its last step was 40" in target.reason
    assert target.dead_since is None


def test_a_slow_run_has_thirty_steps_before_it_counts_as_stalled(serve, tmp_path):
    serve(last_step_timestamp=time.time() - 400, steps_per_second=0.05)
    assert states(tmp_path) == [(RUN, TargetState.RUNNING)]


def test_a_killed_run_is_dead_and_its_file_stays_for_fifteen_minutes(serve, tmp_path, clock):
    sink = serve()
    crash(sink)
    (file,) = tmp_path.glob("*.json")
    assert states(tmp_path) == [(RUN, TargetState.DEAD)]
    clock.offset = STALE_SECONDS - 5
    assert reaped(tmp_path) == []
    clock.offset = STALE_SECONDS + 5
    assert reaped(tmp_path) == [file]
    assert list(tmp_path.iterdir()) == []


def test_a_supervisor_that_restarts_at_once_does_not_wipe_out_the_evidence(serve, tmp_path, clock):
    first = serve()
    crash(first)
    (file,) = tmp_path.glob("*.json")
    os.utime(file, (time.time() - 60,) * 2)
    serve()  # the same run, at another address
    assert len(list(tmp_path.glob("*.json"))) == 2
    assert reaped(tmp_path) == []
    clock.offset = RESUMED_SECONDS - 5
    assert reaped(tmp_path) == []
    clock.offset = RESUMED_SECONDS + 5
    assert reaped(tmp_path) == [file]
    clock.offset = 0.0
    assert states(tmp_path) == [(RUN, TargetState.RUNNING)]


def test_another_run_is_no_resumption(serve, tmp_path, clock):
    file = leave(tmp_path)
    os.utime(file, (time.time() - 60,) * 2)
    serve("another")
    reaped(tmp_path)
    clock.offset = RESUMED_SECONDS + 5
    assert reaped(tmp_path) == []


def test_an_earlier_process_of_the_run_is_no_resumption(serve, tmp_path, clock):
    serve()
    file = leave(tmp_path)
    os.utime(file, (time.time() + 1,) * 2)
    reaped(tmp_path)
    clock.offset = RESUMED_SECONDS + 5
    assert reaped(tmp_path) == []


def test_another_run_at_the_same_port_leaves_the_first_dead(serve, tmp_path, clock):
    file = leave(tmp_path, "first", f"127.0.0.1:{(port := free_port())}")
    serve("second", port=port)
    assert sorted(states(tmp_path)) == [
        ("first", TargetState.DEAD),
        ("second", TargetState.RUNNING),
    ]
    clock.offset = STALE_SECONDS + 5
    assert reaped(tmp_path) == [file]


def test_a_run_that_comes_back_and_dies_again_starts_anew(tmp_path, clock):
    file = leave(tmp_path)
    reaped(tmp_path)
    clock.offset = STALE_SECONDS + 5
    os.utime(file, (clock.time() - 1,) * 2)  # written again since it was seen dead
    assert reaped(tmp_path) == []


def test_a_file_written_while_it_was_looked_at_stays(tmp_path, clock):
    file = leave(tmp_path)
    reaped(tmp_path)
    clock.offset = STALE_SECONDS + 5
    found = reaper.examine(tmp_path, timeout=PATIENT)
    file.write_text("[]")
    assert reaper.reap(found) == []
    assert file.exists()


def test_a_process_that_takes_connections_and_hangs_is_not_dead(tmp_path, clock):
    with socket.create_server(("127.0.0.1", 0)) as hung:
        leave(tmp_path, address=f"127.0.0.1:{hung.getsockname()[1]}")
        (target,) = reaper.examine(tmp_path, timeout=0.3)
        assert target.state is TargetState.SILENT
        clock.offset = STALE_SECONDS + 5
        assert reaper.reap(reaper.examine(tmp_path, timeout=0.3)) == []


def test_a_loopback_address_of_another_machine_is_left_alone(tmp_path, clock):
    leave(tmp_path, host="elsewhere")
    assert states(tmp_path) == [(RUN, TargetState.ELSEWHERE)]
    clock.offset = STALE_SECONDS + 5
    assert reaped(tmp_path) == []


@pytest.mark.parametrize(
    "content",
    ["", "[]", "[1]", '[{"targets": []}]', '[{"targets": [1], "labels": {"run": "a"}}]', b"\xff"],
)
def test_what_is_no_target_file_is_named_and_left(tmp_path, clock, content):
    file = tmp_path / "phasewatch-broken.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    clock.offset = STALE_SECONDS + 5
    (target,) = reaper.examine(tmp_path, timeout=PATIENT)
    assert target.state is TargetState.UNREADABLE
    assert target.reason
    assert reaper.reap([target]) == []
    assert file.exists()


def test_files_of_others_are_not_looked_at(tmp_path):
    (tmp_path / "node.json").write_text("[]")
    assert reaper.examine(tmp_path, timeout=PATIENT) == []


def test_a_page_of_something_else_is_dead(tmp_path):
    server = socket.create_server(("127.0.0.1", 0))

    def answer():
        connection, _ = server.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(b"HTTP/1.0 404 Not Found\r\n\r\n")

    thread = threading.Thread(target=answer)
    thread.start()
    leave(tmp_path, address=f"127.0.0.1:{server.getsockname()[1]}")
    (target,) = reaper.examine(tmp_path, timeout=PATIENT)
    thread.join()
    server.close()
    assert (target.state, target.reason) == (
        TargetState.DEAD,
        "something else answers there: HTTP 404",
    )


@pytest.mark.slow  # three processes
def test_kill_9_leaves_the_file_and_an_exception_takes_it_away(tmp_path):
    code = """
import os, sys, time
from phasewatch.monitor import Watch
config = {"run_name": sys.argv[2], "store": sys.argv[1] + "/runs.db",
          "exporter": {"port": 0, "targets_dir": sys.argv[1] + "/targets"}}
with Watch(config, observables=[]) as watch:
    watch.observe(1, {"train_loss": 0.5})
    watch.drain()
    print("ready", flush=True)
    sys.stdin.readline()
    raise SystemExit(3) if sys.argv[2] == "left" else ValueError("boom")
"""
    ended = {}
    for run, signal in (("killed", True), ("left", False), ("raised", False)):
        child = start_python(code, tmp_path, run)
        assert child.stdout.readline() == "ready\n"
        assert (run, TargetState.RUNNING) in states(tmp_path / "targets")
        if signal:
            child.kill()
        child.communicate("\n" if not signal else None)
        ended[run] = child.returncode
    assert ended == {"killed": -9, "left": 3, "raised": 1}
    assert states(tmp_path / "targets") == [("killed", TargetState.DEAD)]


# The command --------------------------------------------------------------------------------------


@pytest.fixture
def shell(phasewatch, monkeypatch, tmp_path):
    monkeypatch.setenv("PHASEWATCH_TARGETS", str(tmp_path))
    return partial(phasewatch, "targets")


def test_the_command_lists_targets(shell, serve, tmp_path):
    assert shell() == (0, f"no target files in {tmp_path}\n", "")
    sink = serve()
    leave(tmp_path, "\x1b[2Jother")
    code, out, err = shell()
    assert (code, err) == (0, "")
    assert RUN in out
    assert f"127.0.0.1:{sink.port}" in out
    assert "running" in out
    assert "connection refused; seen dead for 0 min" in out
    assert "\x1b" not in out


def test_the_command_reaps(shell, tmp_path, clock):
    file = leave(tmp_path)
    assert shell("--reap")[0] == 0
    assert file.exists()
    clock.offset = STALE_SECONDS + 5
    _, out, _ = shell("--reap", "--json")
    (target,) = json.loads(out)
    assert (target["run"], target["state"], target["removed"]) == (RUN, "dead", True)
    assert not file.exists()


def test_a_folder_that_is_missing_is_one_line(shell, tmp_path):
    code, out, err = shell("--targets", tmp_path / "missing")
    assert (code, out) == (1, "")
    assert "does not exist; give --targets" in err
