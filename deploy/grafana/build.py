"""Builds the dashboards and the alert rules for Grafana, as JSON and YAML beside this file.

    python deploy/grafana/build.py [FOLDER]

What is committed is what this builds: change this, run `make dashboards`, commit both.
"""

from __future__ import annotations

import sys
from pathlib import Path

import alerts
import compare
import overview
import run
import yaml
from grafana_foundation_sdk.builders.dashboard import Dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder

NOTE = "# Built by deploy/grafana/build.py: do not edit.\n"


def build() -> dict[str, str]:
    """Every file to be written, by its path below this folder."""
    files = {
        f"dashboards/{name}.json": _as_json(dashboard)
        for name, dashboard in (
            ("overview", overview.build()),
            ("run", run.build()),
            ("compare", compare.build()),
        )
    }
    files["provisioning/alerting/rules.yaml"] = NOTE + yaml.safe_dump(
        alerts.build(), sort_keys=False, width=100, allow_unicode=True
    )
    return files


def _as_json(dashboard: Dashboard) -> str:
    built = dashboard.build()
    # The SDK puts links and switches into a menu; people should see that they are there.
    for item in (*(built.links or ()), *(built.annotations.list_val or ())):
        item.placement = None
    return JSONEncoder(sort_keys=True, indent=2, ensure_ascii=False).encode(built) + "\n"


def main() -> None:
    """Write them below a folder: the one named, else that of this file."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    for name, content in build().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
        sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
