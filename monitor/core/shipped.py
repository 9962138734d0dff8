"""Where the files lie that phasewatch ships for other programs."""

from __future__ import annotations

from pathlib import Path

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
"""In a checkout as in an installed package, `deploy` lies beside `monitor`."""
