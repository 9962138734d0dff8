"""Settings of every test."""

import os
import sys

import pytest

from support.json_schemas import faults_of

# The models are small: a second thread costs more than it brings, above all beside other workers.
# Set before torch is imported, and inherited by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _no_secrets_of_other_tests(monkeypatch):
    """What one test gave as a secret may be part of another's path."""
    from phasewatch.monitor.core import redaction

    monkeypatch.setattr(redaction, "_known", {})


@pytest.fixture
def phasewatch(monkeypatch, capfd):
    """Runs the command line as a user's shell does: exit code, standard output, standard error."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("PHASEWATCH_STORE", raising=False)

    def call(*arguments):
        from phasewatch.monitor.cli import main

        monkeypatch.setattr(sys, "argv", ["phasewatch", *map(str, arguments)])
        try:
            main.main()
            code = 0
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        if "--json" in arguments and out:
            assert faults_of(arguments, out) == []
        return code, out, err

    return call
