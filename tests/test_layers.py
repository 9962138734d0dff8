"""Each room imports only lower rooms, and each outside library has its rooms."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARTS = ("detectors", "monitor", "callbacks", "phasewatch")

# A room imports only rooms of a lower number: those of one number do not know each other.
ROOMS = {
    "detectors": 0,
    "detectors/statistics": 1,
    "detectors/online": 2,
    "detectors/offline": 3,
    "detectors/error_control": 3,
    "detectors/__init__.py": 4,
    "detectors/evaluation": 4,
    "monitor/core": 5,
    "monitor/store/migrations/versions": 5,
    "monitor/store/migrations": 5,
    "monitor/config": 6,
    "monitor/grafana": 6,
    "monitor/readers": 6,
    "monitor/store": 6,
    "monitor/isolation": 7,
    "monitor/operations": 7,
    "monitor/prometheus": 7,
    "monitor/sampling": 8,
    "monitor/transitions": 8,
    "monitor/observables": 9,
    "monitor/replay": 9,
    "monitor/observables/weights": 10,
    "monitor/observables/attention": 11,
    "monitor/observables/curvature": 11,
    "monitor/observables/llc": 11,
    "monitor/observables/tokens": 11,
    "monitor/observables/toy_models": 11,
    "monitor/reports": 12,
    "monitor/alerts": 13,
    "monitor/serve": 13,
    "monitor/run": 14,
    "callbacks/shared": 15,
    "monitor/__init__.py": 15,
    "monitor/backfill": 15,
    "callbacks/huggingface": 16,
    "callbacks/lightning": 16,
    "monitor/cli": 16,
    "callbacks/__init__.py": 17,
    "phasewatch": 18,
}
"""Folders, and the front doors of the packages, which only hand out names of their rooms."""

WORKSHOP = ("detectors/evaluation", "detectors/checks.py")
"""For who makes detectors; no run needs it, so nothing else imports it."""

LIBRARIES = {
    "lightning": ("callbacks/lightning/",),
    "pytorch_lightning": ("callbacks/lightning/",),
    "transformers": ("callbacks/huggingface/",),
    "ruptures": ("detectors/",),
    "grafana_client": ("monitor/grafana/client.py",),
    "prometheus_client": ("monitor/prometheus/",),
    "tensorboard": ("monitor/readers/formats.py",),
    "aiohttp": ("monitor/serve/",),
    "apprise": ("monitor/alerts/apprise.py",),
    "ray": ("monitor/backfill/ray_executor.py",),
    "requests": ("monitor/alerts/apprise.py",),
    "torch": (
        "monitor/sampling/",
        "monitor/observables/",
        "monitor/isolation/",
        "monitor/backfill/checkpoints.py",
        "callbacks/",
    ),
}

FILES = [path for part in PARTS for path in sorted((ROOT / part).rglob("*.py"))]
NAMES = [path.relative_to(ROOT).as_posix() for path in FILES]


def imports(path: Path) -> set[tuple[str, bool]]:
    """Every module a file imports, late ones too, and whether only the type checker sees it."""
    found: set[tuple[str, bool]] = set()

    def walk(node: ast.AST, typing: bool) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                walk(child, True)
            for child in node.orelse:
                walk(child, typing)
            return
        if isinstance(node, ast.Import):
            found.update((alias.name, typing) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.update((f"{node.module}.{alias.name}", typing) for alias in node.names)
        for child in ast.iter_child_nodes(node):
            walk(child, typing)

    walk(ast.parse(path.read_text(encoding="utf-8")), False)
    return found


def file_of(module: str) -> str:
    """The file that is imported by a dotted name, whose end may be a name in that file."""
    parts = module.split(".")[1:]
    for end in range(len(parts), 0, -1):
        stem = "/".join(parts[:end])
        for name in (f"{stem}.py", f"{stem}/__init__.py"):
            if (ROOT / name).is_file():
                return name
    if len(parts) <= 1:
        return "phasewatch/__init__.py"
    raise AssertionError(f"{module} is not in this repository")


def room_of(name: str) -> str:
    return name if name in ROOMS else name.rpartition("/")[0]


def edges() -> dict[tuple[str, str], set[str]]:
    """Pairs of rooms, the second imported by the first, with the files that do so."""
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    for path, name in zip(FILES, NAMES, strict=True):
        for module, _ in imports(path):
            if module.split(".")[0] == "phasewatch":
                pair = room_of(name), room_of(file_of(module))
                if pair[0] != pair[1]:
                    found[pair].add(f"{name} imports {module}")
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_file_lies_in_a_room(name: str) -> None:
    assert room_of(name) in ROOMS, "no room: name it in ROOMS"


def test_every_room_is_there() -> None:
    assert [room for room in ROOMS if not (ROOT / room).exists()] == []


def test_a_room_imports_only_lower_rooms() -> None:
    upwards = [
        f"{file}: {above} ({ROOMS[above]}) may not know {below} ({ROOMS[below]})"
        for (above, below), files in sorted(edges().items())
        if ROOMS[below] >= ROOMS[above]
        for file in sorted(files)
    ]
    assert upwards == []


def test_nothing_that_runs_imports_the_workshop() -> None:
    users = [
        f"{name} imports {module}"
        for path, name in zip(FILES, NAMES, strict=True)
        for module, _ in imports(path)
        if module.startswith("phasewatch.")
        and file_of(module).startswith(WORKSHOP)
        and not name.startswith(WORKSHOP)
    ]
    assert users == []


@pytest.mark.parametrize(("path", "name"), list(zip(FILES, NAMES, strict=True)), ids=NAMES)
def test_outside_libraries_stay_in_their_rooms(path: Path, name: str) -> None:
    for module, typing in imports(path):
        if not typing and (rooms := LIBRARIES.get(module.split(".")[0])):
            assert name.startswith(rooms), f"{name} imports {module}; its rooms: {rooms}"


def test_the_walk_sees_late_imports_and_those_of_the_type_checker() -> None:
    found = edges()
    assert found["detectors/__init__.py", "detectors/online"]  # under TYPE_CHECKING
    assert found["monitor/cli", "monitor/replay"]  # inside a function


def test_the_page_of_the_house_lists_the_rooms_and_what_they_are_for() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    listed = {room.strip("`"): (int(number), text) for number, room, text in rows[2:]}
    assert {room: number for room, (number, _) in listed.items()} == ROOMS
    assert [int(row[0]) for row in rows[2:]] == sorted(ROOMS.values())
    for room, (_, text) in listed.items():
        init = ROOT / room / "__init__.py"
        if room not in ("detectors", "phasewatch") and init.is_file():
            said = ast.get_docstring(ast.parse(init.read_text(encoding="utf-8"))) or ""
            assert text == said.partition("\n")[0], f"{room}: page and docstring differ"
