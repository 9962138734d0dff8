"""What commands print with `--json` is what docs/schemas.json says."""

from __future__ import annotations

import json

import pytest
from jsonschema import Draft202012Validator
from typer.main import get_command

from phasewatch.monitor.cli.main import app
from phasewatch.monitor.store.store import Store
from support.history import RUN_ID, fill
from support.json_schemas import faults_of, schemas


def commands(group, before=()):
    """Every command with `--json`, by its words."""
    for name, command in group.commands.items():
        words = (*before, name)
        if hasattr(command, "commands"):
            yield from commands(command, words)
        elif any("--json" in parameter.opts for parameter in command.params):
            yield " ".join(words)


def test_every_command_has_a_schema():
    assert sorted(commands(get_command(app))) == sorted(schemas()["commands"])


def test_the_schemas_are_schemas():
    Draft202012Validator.check_schema(schemas())
    assert schemas()["$id"].endswith(f"-{schemas()['version']}")


@pytest.mark.parametrize("command", ["runs", "show", "compare", "follow", "replay"])
def test_what_a_command_prints_fits(phasewatch, tmp_path, command):
    # Of every other test that runs a command with --json, the fixture looks at the output, too.
    path = tmp_path / "runs.db"
    with Store(path) as store:
        fill(store)
    run = [] if command == "runs" else [RUN_ID]
    code, out, _ = phasewatch(command, *run, "--store", path, "--json")
    assert code == 0
    assert out


def test_what_does_not_fit_is_found():
    known = {"device": "cpu", "passed": True, "rule": "", "checks": []}
    assert faults_of(("selfcheck", "--json"), json.dumps(known)) == []
    for wrong in ({"passed": "yes"}, {"more": 1}):
        assert len(faults_of(("selfcheck", "--json"), json.dumps(known | wrong))) == 1
    del known["rule"]
    assert faults_of(("selfcheck", "--json"), json.dumps(known)) == [
        "'rule' is a required property"
    ]
