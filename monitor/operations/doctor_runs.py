"""The runs' side of the chain: target files, what runs serve, alerts that wait in them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from phasewatch.monitor.operations.doctor_links import (
    BrokenError,
    check_clock,
    get_with_headers,
    names,
    reason,
)


@dataclass(slots=True, kw_only=True)
class Runs:
    """What can be learnt from the runs themselves.

    Attributes:
        addresses: Where runs are expected to serve, as "http://host:port".
        targets: Folder of target files; None if there is none.
        found: Names of the runs found serving.
        labels: What each of them says of itself: `run`, `run_id`.
        answering: Those of the addresses that answer.
        pages: What they serve.
    """

    addresses: tuple[str, ...]
    targets: Path | None
    found: set[str] = field(default_factory=set)
    labels: list[dict[str, str]] = field(default_factory=list)
    answering: set[str] = field(default_factory=set)
    pages: list[str] = field(default_factory=list)

    def target_files(self) -> str | None:
        """The files that Prometheus is to find; from here on their addresses count."""
        if self.targets is None:
            return None
        if not self.targets.is_dir():
            raise BrokenError(
                f"folder {self.targets} does not exist",
                "start a run with exporter.targets_dir set to it, or give --targets the folder "
                "that your runs use",
            )
        files = sorted(self.targets.glob("*.json"))
        found: list[str] = []
        for file in files:
            try:
                for group in json.loads(file.read_text("utf-8")):
                    scheme = group.get("labels", {}).get("__scheme__", "http")
                    found += [f"{scheme}://{target}" for target in group["targets"]]
            except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
                raise BrokenError(
                    f"{file} is not a target file: {type(error).__name__}: {error}", "remove it"
                ) from error
        if not found:
            raise BrokenError(
                f"no target file in {self.targets}",
                "start a run with exporter.targets_dir set to this folder",
            )
        self.addresses = tuple(dict.fromkeys(found))
        return f"{len(files)} in {self.targets}"

    def exporter(self) -> str:
        """What answers at the addresses."""
        silent = []
        for address in self.addresses:
            try:
                answer = get_with_headers(f"{address}/metrics")
            except OSError as error:
                silent.append(f"{address}: {reason(error)}")
                continue
            check_clock(answer.headers, f"{address}: ")
            page = answer.text
            own = [
                {k: _unescaped(v) for k, v in re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', labels)}
                for labels in re.findall(r"^phasewatch_run_info\{(.*)\} ", page, re.MULTILINE)
            ]
            served = {labels["run"] for labels in own if "run" in labels}
            self.labels += [
                {"run": labels.get("run", ""), "run_id": labels.get("run_id", "")} for labels in own
            ]
            if served:
                self.found |= served
                self.answering.add(address)
                self.pages.append(page)
            else:
                silent.append(f"{address}: answers, but no run is served there")
        if not self.found:
            raise BrokenError(
                "; ".join(silent) or "no address to ask",
                "start a run, or give --metrics the address that its log names; a target file "
                "whose run is dead goes with `phasewatch targets --reap`",
            )
        told = f"{', '.join(sorted(self.answering))}: {names(self.found)}"
        if silent:
            raise BrokenError(
                f"{len(silent)} of {len(self.addresses)} runs do not answer: {'; '.join(silent)} "
                f"(in order: {told})",
                "see whether their processes live: `phasewatch runs`. A target file whose run is "
                "dead goes with `phasewatch targets --reap`",
            )
        return told

    def direct_alerts(self) -> str | None:
        """Messages that runs cannot get rid of."""
        waiting = self._sum("phasewatch_alert_queue_messages")
        if waiting is None:
            return None
        failed = self._sum("phasewatch_alert_failures_total")
        if waiting and failed:
            raise BrokenError(
                f"{waiting:g} messages wait, and {failed:g} attempts to send have failed",
                "`phasewatch test-alert` says which target fails and why",
            )
        return f"{waiting:g} messages wait"

    def _sum(self, metric: str) -> float | None:
        """Sum of a metric over everything that the runs serve; None if they serve no such thing."""
        found = re.findall(rf"^{metric}\{{.*\}} (\S+)", "\n".join(self.pages), re.MULTILINE)
        return sum(map(float, found)) if found else None


def _unescaped(text: str) -> str:
    """A label's value as it was before it was written into a page."""
    return re.sub(r"\\(.)", lambda m: {"n": "\n"}.get(m[1], m[1]), text)
