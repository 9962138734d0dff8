"""Servers and runs of the end-to-end tests."""

import pytest

from support.alerting import LiveRun, need_servers, open_inbox, quick_stack


@pytest.fixture
def inbox():
    need_servers()
    with open_inbox() as inbox:
        yield inbox


@pytest.fixture
def stack(tmp_path, inbox):
    """Prometheus and Alertmanager with the shipped configuration at a quicker pace."""
    with quick_stack(tmp_path / "stack", inbox) as stack:
        yield stack


@pytest.fixture
def start(tmp_path):
    """Starts runs, and ends what is left of them."""
    runs = []

    def start(name="demo", **exporter):
        runs.append(LiveRun(name, tmp_path, **exporter))
        return runs[-1]

    yield start
    for run in runs:
        if run.process.poll() is None:
            run.kill()
