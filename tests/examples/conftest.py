"""Running an example fast."""

from __future__ import annotations

import contextlib
import io
import logging
import runpy
import warnings
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
LIGHTNING = ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "pytorch_lightning")


@pytest.fixture
def rehearse(tmp_path, monkeypatch):
    """Runs an example fast, in this process: half of its time would go into imports."""

    def run(script: str, *arguments: str) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("PHASEWATCH_STORE", raising=False)
        monkeypatch.syspath_prepend(str(EXAMPLES))
        for left_behind in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
            monkeypatch.setenv(left_behind, "0")  # so that it is put back
        said = io.StringIO()
        # Warnings are for whoever runs the script, not for its tests.
        with contextlib.redirect_stdout(said), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            main = runpy.run_path(str(EXAMPLES / script))["main"]
            main(["--fast", "--out", "demo", *arguments])
        return said.getvalue()

    levels = {name: logging.getLogger(name).level for name in LIGHTNING}
    yield run
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
