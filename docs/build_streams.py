"""Write monitor/core/streams.json, what the observables declare of their streams: `make docs`.

So who reads a stored run, or a file of curves, knows what a stream means without importing torch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from phasewatch.monitor.core import meaning
from phasewatch.monitor.observables import BUILTIN, factory_of

PAGE = Path(meaning.__file__).with_name(meaning.TABLE)


def render() -> str:
    """The whole file: settings by name or pattern of the stream, one a line."""
    streams: dict[str, Any] = {}
    for name in sorted(BUILTIN):
        observable: Any = factory_of(name)
        for stream, means in observable.streams.items():
            streams[stream] = means.settings()
    lines = [f'  "{name}": {json.dumps(streams[name])}' for name in sorted(streams)]
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
