"""What being scraped costs: 5,000 series every second, while a small network trains.

Another process scrapes in every second window. Windows with and without scrapes alternate, the
order swapped from pair to pair. Printed are the median slowdown and the interval between the 5th
and 95th percentile of its bootstrap, the CPU time of the serving threads, the time of a scrape and
the memory that the series take.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import torch
from torch import nn

from phasewatch.monitor.config.exports import ExporterConfig
from phasewatch.monitor.core import metrics
from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.core.health import Health
from phasewatch.monitor.prometheus.sink import PrometheusSink

SCRAPER = """
import sys, time, urllib.request
url = sys.argv[1]
headers = {"Accept": sys.argv[2], "Accept-Encoding": "gzip"}
for line in sys.stdin:
    for second in range(int(line)):
        begin = time.perf_counter()
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as page:
            size = len(page.read())
        took = time.perf_counter() - begin
        print(took, size, flush=True)
        time.sleep(max(0.0, 1.0 - took))
    print("done", flush=True)
"""
ACCEPT = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2"
"""As a Prometheus asks."""


def fill(sink: PrometheusSink, num_series: int) -> int:
    """Give the sink streams until a scrape has `num_series`; how many streams it took."""
    stream = 0
    while served(sink) < num_series:
        for _ in range(max(1, (num_series - served(sink)) // 2)):
            observation = Observation(
                name=f"weight_rms/block.{stream}", step=1, value=1.0 / (stream + 1), unit="weight"
            )
            sink.emit(observation)
            stream += 1
    return stream


def served(sink: PrometheusSink) -> int:
    """Series of a scrape."""
    return sum(len(family.samples) for family in sink.collector.collect())


class Loop:
    """A network that trains, as small as the examples: the interpreter is busy most of the time."""

    def __init__(self, width: int) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(32, width), nn.ReLU(), nn.Linear(width, 10))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.inputs, self.labels = torch.randn(128, 32), torch.randint(0, 10, (128,))

    def steps_per_second(self, seconds: float) -> float:
        """Train for so long."""
        begin, steps = time.perf_counter(), 0
        while (now := time.perf_counter()) - begin < seconds:
            self.optimizer.zero_grad()
            nn.functional.cross_entropy(self.model(self.inputs), self.labels).backward()
            self.optimizer.step()
            steps += 1
        return steps / (now - begin)


def interval(values: list[float]) -> tuple[float, float, float]:
    """Median and bootstrap interval (5 % to 95 %) of the median."""
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(np.asarray(values), (2000, len(values))), axis=1)
    return statistics.median(values), *(float(q) for q in np.quantile(medians, (0.05, 0.95)))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--series", type=int, default=metrics.MAX_SERIES)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--seconds", type=int, default=1, help="length of a window")
    parser.add_argument("--width", type=int, default=256)
    options = parser.parse_args()
    torch.set_num_threads(1)
    sink = PrometheusSink("benchmark", ExporterConfig(port=0), Health(step=1))
    gc.collect()
    tracemalloc.start()
    num_streams = fill(sink, options.series)
    sink.collector.text(openmetrics=True)  # what the first scrape keeps for the next
    gc.collect()
    megabytes = tracemalloc.get_traced_memory()[0] / 2**20
    tracemalloc.stop()
    command = [sys.executable, "-c", SCRAPER, sink.url, ACCEPT]
    scraper = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert scraper.stdin is not None
    assert scraper.stdout is not None
    loop = Loop(options.width)
    loop.steps_per_second(1.0)
    slowdowns, shares, scrapes, sizes = [], [], [], []

    def scraped() -> float:
        print(options.seconds, file=scraper.stdin, flush=True)
        others = time.process_time() - time.thread_time()
        speed = loop.steps_per_second(options.seconds)
        shares.append((time.process_time() - time.thread_time() - others) / options.seconds)
        while (line := scraper.stdout.readline()) != "done\n":
            took, size = line.split()
            scrapes.append(float(took))
            sizes.append(int(size))
        return speed

    for pair in range(options.pairs):
        if pair % 2:
            quiet = loop.steps_per_second(options.seconds)
            busy = scraped()
        else:
            busy = scraped()
            quiet = loop.steps_per_second(options.seconds)
        slowdowns.append(100 * (quiet / busy - 1))
    scraper.stdin.close()
    scraper.wait()
    sink.close()
    median, low, high = interval(slowdowns)
    print(
        f"{served(sink)} series of {num_streams} streams, a scrape a second, {options.pairs} pairs"
    )
    print(f"slowdown of training  {median:6.2f} % [{low:.2f}, {high:.2f}] (goal: under 3)")
    print(f"CPU of serving        {100 * statistics.median(shares):6.2f} % of a core")
    print(f"time of a scrape      {1000 * statistics.median(scrapes):6.0f} ms, "
          f"{max(scrapes) * 1000:.0f} at most")  # fmt: skip
    print(f"size of a page        {statistics.median(sizes) / 1024:6.0f} KiB, compressed")
    print(f"memory of the series  {megabytes:6.2f} MiB")


if __name__ == "__main__":
    main()
