"""Several processes that work together, started and awaited."""

import json
import os
import socket
import subprocess
import sys


def free_port():
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_workers(script, size, folder, cases, seconds=280):
    """What each of `size` processes wrote to `folder`, by rank; none may fail or hang.

    The script is run as `python SCRIPT RANK SIZE PORT FOLDER CASES`, and writes rankN.json.
    """
    arguments = [str(size), str(free_port()), str(folder), ",".join(cases)]
    workers = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), *arguments],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        outputs = [worker.communicate(timeout=seconds)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    for worker, output in zip(workers, outputs, strict=True):
        assert worker.returncode == 0, output[-3000:]
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(size)]
