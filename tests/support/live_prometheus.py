"""A real Prometheus with the shipped configuration, and small runs for it to scrape."""

from __future__ import annotations

import json
import re
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from phasewatch.monitor import Watch
from support.dashboards import fill_in
from support.needs import need_binary
from support.records import wait_until
from support.scraping import free_port

SHIPPED = Path(__file__).parents[2] / "deploy" / "prometheus" / "prometheus.yml"


class Collecting:
    """A sink of the user's: its failures are a series."""

    def emit(self, observation): ...

    def notify(self, transition): ...

    def flush(self): ...

    def close(self): ...


class Prometheus:
    """A real one, with the shipped configuration, quicker."""

    def __init__(self, folder):
        config = yaml.safe_load(SHIPPED.read_text())
        config["global"]["scrape_interval"] = "500ms"
        config["scrape_configs"][0]["file_sd_configs"][0]["refresh_interval"] = "200ms"
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self.url = f"http://127.0.0.1:{free_port()}"
        self.began = int(time.time())
        self.process = subprocess.Popen(
            [
                need_binary("prometheus"),
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={self.url.removeprefix('http://')}",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def get(self, path, **parameters):
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as response:
                return json.load(response)["data"]
        except urllib.error.HTTPError as error:
            pytest.fail(f"{parameters}: {error.read().decode()}")

    def query(self, expr):
        return self.get("query", query=expr)["result"]

    def ask(self, query, values):
        """A panel's query, with variables filled in, as Grafana asks it."""
        expr = fill_in(query.expr, values)
        if query.is_instant:
            return self.query(expr)
        # All queries of a panel are asked for the same times, however long a busy machine took.
        now = int(time.time())
        begin = min(now - 60, self.began)
        return self.get("query_range", query=expr, start=begin, end=now, step="1s")["result"]

    def values_of(self, definition, values):
        """Values of a variable: `label_values(series, label)`."""
        series, label = re.fullmatch(r"label_values\((.+), (\w+)\)", definition).groups()
        path = f"label/{label}/values"
        return self.get(path, **{"match[]": fill_in(series, values)})


def wait_for_ready(server):
    def ready():
        assert server.process.poll() is None, "Prometheus has ended"
        try:
            with urllib.request.urlopen(f"{server.url}/-/ready", timeout=30):
                return True
        except OSError:  # nobody there yet, or 503 while it starts
            return False

    wait_until(ready, seconds=60, what="Prometheus")


def make_watch(run, seed, folder, *, draws=8192, every=200, **exporter):
    torch.manual_seed(seed)
    inputs = torch.randn(256, 3)
    model = nn.Linear(3, 1, bias=False)
    targets = inputs @ model.weight.detach().T + 0.1 * torch.randn(256, 1)
    solution = torch.linalg.lstsq(inputs, targets).solution
    with torch.no_grad():
        model.weight.copy_(solution.T)

    def loss_fn(model, batch):
        return (model(batch[0]) - batch[1]).square().sum(dim=1) / (2 * 0.1**2)

    loss_fn(model, (inputs, targets)).mean().backward()
    settings = {
        "run_name": run,
        "every_n_steps": every,
        # λ is 1.5: a small number fluctuates by much of itself, and needs more draws than a large.
        "sampler": {"num_draws": draws},
        "store": str(folder / f"{seed}.db"),
        "exporter": {"port": 0, "targets_dir": str(folder / "targets")} | exporter,
    }
    watch = Watch(settings, probe=[(inputs, targets)], loss_fn=loss_fn, sinks=[Collecting()])
    return watch, model, (inputs, targets)
