"""Docstring examples run, and every public name is documented and importable."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import runpy
from pathlib import Path

import pytest

import phasewatch
import phasewatch.callbacks
import phasewatch.detectors
import phasewatch.monitor

DOCS = Path(__file__).parents[1] / "docs"
PACKAGES = (phasewatch, phasewatch.callbacks, phasewatch.detectors, phasewatch.monitor)


def modules() -> list[str]:
    names = []
    for package in PACKAGES:
        names.append(package.__name__)
        names += [
            info.name for info in pkgutil.walk_packages(package.__path__, package.__name__ + ".")
        ]
    return names


@pytest.mark.parametrize("name", modules())
def test_docstring_examples_of(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


@pytest.mark.parametrize("name", modules())
def test_public_names_of_exist_and_are_documented(name: str) -> None:
    module = importlib.import_module(name)
    for public in getattr(module, "__all__", ()):
        value = getattr(module, public)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), f"{name}.{public} has no docstring"


@pytest.mark.parametrize("builder", sorted(path.name for path in DOCS.glob("build_*.py")))
def test_the_page_that_is_made_from_code_is_up_to_date(builder: str) -> None:
    page = runpy.run_path(str(DOCS / builder))
    assert page["PAGE"].read_text(encoding="utf-8") == page["render"](), "run `make docs`"
