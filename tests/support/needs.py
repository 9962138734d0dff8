"""What some tests need and users do not have: skipped here, an error in CI."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest


def _missing(what: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(f"{what}: CI must not skip this test")
    pytest.skip(what)


def need_test_data(*parts: str) -> Path:
    """Path below the folder named by PHASEWATCH_TEST_DATA."""
    folder = os.environ.get("PHASEWATCH_TEST_DATA")
    if folder is None:
        _missing("PHASEWATCH_TEST_DATA is not set")
    path = Path(str(folder), *parts)
    if not path.exists():
        _missing(f"{path} does not exist")
    return path


def need_binary(name: str) -> str:
    """Path of an installed program."""
    return need_one_of(name)


def need_one_of(*names: str) -> str:
    """Path of the first of these programs that is installed."""
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        _missing(f"{' or '.join(names)} is not installed")
    return str(found)
