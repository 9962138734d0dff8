"""Print how large the house is and how its rooms depend on each other.

    python tests/house_numbers.py [CHECKOUT]

Modules with their lengths; rooms, edges between them, cycles; and the road of a number: functions,
and files they lie in, that run from `train_loss` in a hook to an alert delivered. The road is not
counted from the source but walked, by `support/road.py`; it needs the checkout's own environment.
"""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

PARTS = ("callbacks", "detectors", "monitor", "phasewatch")
ROOT = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1]).resolve()


def modules() -> dict[str, Path]:
    """Files by dotted name."""
    found = {}
    for part in PARTS:
        for path in sorted((ROOT / part).rglob("*.py")):
            parts = list(path.relative_to(ROOT).with_suffix("").parts)
            if parts[-1] == "__init__":
                parts.pop()
            top = [] if part == "phasewatch" else ["phasewatch"]
            found[".".join([*top, *parts])] = path
    return found


def imported(path: Path) -> Iterator[str]:
    """Dotted names that a file imports of phasewatch, late ones and those for typing too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith("phasewatch."))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("phasewatch"):
            yield from (f"{node.module}.{a.name}" for a in node.names)


def room_of(path: Path) -> str:
    """The folder; a package's front door, which only hands out names, is a room of its own."""
    relative = path.relative_to(ROOT)
    is_door = relative.name == "__init__.py" and len(relative.parts) == 2
    return relative.as_posix() if is_door else relative.parent.as_posix()


def edges(files: dict[str, Path]) -> tuple[int, dict[str, set[str]]]:
    """How many imports there are between modules, and the rooms that each room imports."""
    count, found = 0, defaultdict(set)
    for name, path in files.items():
        targets = set()
        for full in imported(path):
            target = full
            while target and target not in files:
                target = target.rpartition(".")[0]
            if target and target != name:
                targets.add(target)
        count += len(targets)
        room = room_of(path)
        found[room] |= {room_of(files[target]) for target in targets} - {room}
    return count, found


def cycles(found: dict[str, set[str]]) -> list[str]:
    """Rooms that come back to themselves."""

    def reach(room: str) -> set[str]:
        seen, left = set(), [room]
        while left:
            for other in found[left.pop()] - seen:
                seen.add(other)
                left.append(other)
        return seen

    return sorted(room for room in list(found) if room in reach(room))


def walk_the_road() -> tuple[int, int]:
    """Named functions and files between the hook that sees a loss and the alert that was sent."""
    with tempfile.TemporaryDirectory() as folder:
        result = subprocess.run(
            [sys.executable, str(Path(__file__).parent / "support" / "road.py"), str(ROOT), folder],
            capture_output=True,
            text=True,
            check=True,
        )
    functions, files = result.stdout.split()[-2:]
    return int(functions), int(files)


def main() -> None:
    """Print the numbers."""
    files = modules()
    sizes = sorted(len(p.read_text(encoding="utf-8").splitlines()) for p in files.values())
    real = [size for size in sizes if size > 3]
    count, found = edges(files)
    rooms = {room_of(path) for path in files.values()}
    p90 = real[int(0.9 * len(real))]
    print(f"modules {len(sizes)}, with more than a docstring {len(real)}")
    print(f"lines: median {statistics.median(real):.0f}, p90 {p90}, max {real[-1]}")
    print(f"imports between modules {count}")
    print(f"rooms {len(rooms)}, edges {sum(map(len, found.values()))}, cycles {len(cycles(found))}")
    functions, road = walk_the_road()
    print(f"from train_loss to a delivered alert: {functions} named functions in {road} files")


if __name__ == "__main__":
    main()
