"""Writes prometheusrule.yaml from ../prometheus/rules.yml: the same rules as Kubernetes wants them.

python deploy/kubernetes/build.py
"""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parent
RULES = HERE.parent / "prometheus" / "rules.yml"
MANIFEST = HERE / "prometheusrule.yaml"

HEAD = """\
# Written by deploy/kubernetes/build.py from deploy/prometheus/rules.yml: change that, not this.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: phasewatch
  labels:
    app.kubernetes.io/name: phasewatch
spec:
"""


def manifest() -> str:
    """The manifest's text; comments and layout are those of the rules."""
    _, rules = RULES.read_text(encoding="utf-8").split("\ngroups:\n")
    lines = ["groups:", *rules.splitlines()]
    return HEAD + "".join(f"  {line}\n" if line else "\n" for line in lines)


if __name__ == "__main__":
    MANIFEST.write_text(manifest(), encoding="utf-8")
