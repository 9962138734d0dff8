"""Docstring examples run, and every public name is documented and importable."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import pkgutil
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest

import phasewatch
import phasewatch.callbacks
import phasewatch.detectors
import phasewatch.monitor
from phasewatch import detectors
from phasewatch.monitor import observables, sampling

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
    if name == "phasewatch.callbacks.huggingface":
        pytest.importorskip("transformers", reason="run by `make hf`")
    module = importlib.import_module(name)
    for public in getattr(module, "__all__", ()):
        value = getattr(module, public)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), f"{name}.{public} has no docstring"


ROOT = DOCS.parent
SOURCES = [p for part in ("callbacks", "detectors", "monitor") for p in (ROOT / part).rglob("*.py")]
HOOKS = ("on_", "setup", "teardown")
"""Hooks of Lightning: their arguments are Lightning's."""


def lacking(node: ast.AST, path: Path) -> Iterator[str]:
    """Public functions of a class or module with three or more arguments and no `Args`."""
    for child in ast.iter_child_nodes(node):
        name = getattr(child, "name", "_")
        if name.startswith("_"):
            continue
        if isinstance(child, ast.ClassDef):
            yield from lacking(child, path)
        elif isinstance(child, ast.FunctionDef):
            given = child.args.posonlyargs + child.args.args + child.args.kwonlyargs
            num = sum(argument.arg not in ("self", "cls") for argument in given)
            is_hook = "callbacks" in path.parts and name.startswith(HOOKS)
            if num >= 3 and not is_hook and "Args:" not in (ast.get_docstring(child) or ""):
                yield f"{path.relative_to(ROOT)}: {name}"


def test_every_public_function_of_three_arguments_says_what_they_are() -> None:
    # Commands of the command line say it in the help of their options.
    found = [
        line
        for path in SOURCES
        if "cli" not in path.parts
        for line in lacking(ast.parse(path.read_text(encoding="utf-8")), path)
    ]
    assert found == []


RESULTS = ("Influence", "Reweighted", "Susceptibility")
"""What functions return, whose examples show it."""

ENTRIES = [
    *((name, observables.factory_of(name)) for name in sorted(observables.BUILTIN)),
    *((name, type(detectors.create(name))) for name in detectors.names()),
    *((name, getattr(sampling, name)) for name in sampling.__all__ if name not in RESULTS),
    *((name, getattr(phasewatch, name)) for name in ("detect", "estimate_llc")),
]


@pytest.mark.parametrize(("name", "entry"), ENTRIES, ids=[name for name, _ in ENTRIES])
def test_every_observable_detector_and_entry_of_the_sampler_has_an_example(name, entry) -> None:
    assert ">>>" in (inspect.getdoc(entry) or "")  # it runs above, with those of its module


@pytest.mark.parametrize("builder", sorted(path.name for path in DOCS.glob("build_*.py")))
def test_the_page_that_is_made_from_code_is_up_to_date(builder: str) -> None:
    page = runpy.run_path(str(DOCS / builder))
    assert page["PAGE"].read_text(encoding="utf-8") == page["render"](), "run `make docs`"
