"""What is logged reaches a user who set up no logging, and nobody twice."""

import subprocess
import sys

import pytest

PROGRAM = """
import logging
{setup}
from phasewatch.monitor.run.console import ensure_heard
ensure_heard()
ensure_heard()
logging.getLogger("phasewatch").info("a transition")
"""


@pytest.mark.parametrize(
    ("setup", "lines"),
    [
        ("", ["a transition"]),
        ("logging.basicConfig(format='mine: %(message)s', level='INFO')", ["mine: a transition"]),
        ("logging.basicConfig()", []),  # handlers of the user's own, and their level
        ("logging.getLogger('phasewatch').setLevel('ERROR')", []),
    ],
)
def test_it_is_heard_once_where_nobody_listens(setup, lines):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(setup=setup)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr.splitlines() == lines
