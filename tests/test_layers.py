"""Imports go one way, and each outside library has its rooms."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARTS = ("detectors", "monitor", "callbacks")
LAYER = {name: level for level, name in enumerate(PARTS)}

ROOMS = {
    "lightning": ("callbacks/",),
    "pytorch_lightning": ("callbacks/",),
    "ruptures": ("detectors/",),
    "grafana_client": ("monitor/grafana/client.py",),
    "prometheus_client": ("monitor/prometheus/",),
    "tensorboard": ("monitor/readers/formats.py",),
    "apprise": ("monitor/alerts/apprise.py",),
    "requests": ("monitor/alerts/apprise.py",),
    "torch": (
        "monitor/sampling/",
        "monitor/observables/",
        "monitor/isolation/",
        "monitor/isolation/probe.py",
        "callbacks/",
    ),
}


def imports_at_run_time(path: Path) -> set[str]:
    """Every module a file imports, but for those that only the type checker sees."""
    found: set[str] = set()

    def walk(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                walk(child)
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            walk(child)

    walk(ast.parse(path.read_text(encoding="utf-8")))
    return found


FILES = [path for part in PARTS for path in sorted((ROOT / part).rglob("*.py"))]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down_and_stay_in_their_rooms(path: Path) -> None:
    relative = path.relative_to(ROOT).as_posix()
    own_layer = LAYER[relative.split("/")[0]]
    for module in imports_at_run_time(path):
        parts = module.split(".")
        if parts[0] == "phasewatch":
            assert LAYER[parts[1]] <= own_layer, f"{relative} imports {module}: that is upwards"
        if rooms := ROOMS.get(parts[0]):
            assert relative.startswith(rooms), f"{relative} imports {module}; its rooms: {rooms}"


def test_every_part_was_walked() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == set(PARTS)
