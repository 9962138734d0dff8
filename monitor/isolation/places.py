"""Where in the user's own code an error came from."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path

_OWN = Path(__file__).resolve().parents[2]
_FOREIGN = tuple(
    str(Path(path).resolve())
    for name in ("stdlib", "platstdlib", "purelib", "platlib")
    if (path := sysconfig.get_path(name))
)
_MAX_CHARACTERS = 200


def place_of(error: BaseException) -> str | None:
    """The innermost line of the user's code that an error passed, as 'file.py, line 3: code'.

    Code of installed packages and of phasewatch is not the user's. None where no line is.
    """
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if frame.filename.startswith("<") or _is_foreign(path):
            continue
        code = f": {frame.line.strip()}" if frame.line else ""
        return f"{path.name}, line {frame.lineno}, in {frame.name}{code}"[:_MAX_CHARACTERS]
    return None


def told_with_place(error: BaseException) -> str:
    """An error in one line: its type, the first line of what it says, and where it came from."""
    first = (str(error).strip().splitlines() or [""])[0][:_MAX_CHARACTERS]
    place = place_of(error)
    return f"{type(error).__name__}: {first}" + (f" [{place}]" if place else "")


def _is_foreign(path: Path) -> bool:
    resolved = path.resolve()
    if resolved.is_relative_to(_OWN) and resolved.relative_to(_OWN).parts[:1] in _PARTS:
        return True
    if "site-packages" in resolved.parts:
        return True
    return str(resolved).startswith(_FOREIGN)


_PARTS = (("monitor",), ("callbacks",), ("detectors",), ("phasewatch",))
