"""How much memory the chains will take, before any of it is taken.

For C chains of d parameters with a state of s bytes a number, and a bytes of activations that one
chain's forward pass keeps for its backward pass:

    loop:  5 C d s + 3 d s + a      (x, velocity, spare, points, gradients; one chain's graph)
    vmap:  5 C d s + 3 C d s + C a  (the graphs of all chains at once)
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from phasewatch.monitor.config import SamplerConfig
from phasewatch.monitor.errors import RefusedError
from phasewatch.monitor.sampling.engine import Wanted
from phasewatch.monitor.sampling.posterior import Problem

logger = logging.getLogger("phasewatch.monitor.sampling")

STATE_COPIES = 5
GRAPH_COPIES = 3
FREE_SHARE = 0.25
"""Share of the free memory that a measurement may take: training goes on in the same process."""

MIN_CHAINS = 2
"""Fewer chains than this cannot tell their own error."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What fits.

    Attributes:
        engine: What to try.
        num_chains: How many chains.
    """

    engine: Wanted
    num_chains: int


def plan_memory(problem: Problem, config: SamplerConfig) -> Plan:
    """Choose engine and number of chains that fit into `config.max_bytes`.

    Raises:
        RefusedError: Not even two chains in a loop fit.
    """
    limit = config.max_bytes or int(FREE_SHARE * free_bytes(problem.center.device))
    state = problem.center.numel() * problem.center.element_size()
    fewest = min(MIN_CHAINS, config.num_chains)
    kept = problem.kept_bytes
    if config.engine != "loop" and vmap_bytes(state, kept, config.num_chains) <= limit:
        return Plan(config.engine, config.num_chains)
    if config.engine == "vmap":
        raise _too_large(vmap_bytes(state, kept, config.num_chains), limit, problem)
    for num_chains in range(config.num_chains, fewest - 1, -1):
        if loop_bytes(state, kept, num_chains) <= limit:
            _tell(config, num_chains, limit)
            return Plan("loop", num_chains)
    raise _too_large(loop_bytes(state, kept, fewest), limit, problem)


def _tell(config: SamplerConfig, num_chains: int, limit: int) -> None:
    if config.engine != "loop" or num_chains < config.num_chains:
        logger.info(
            "%d LLC chains run one after another to stay below %s", num_chains, mebibytes(limit)
        )


def loop_bytes(state: int, kept: int, num_chains: int) -> int:
    """Bytes of a loop over chains; `state` is d·s, `kept` the activations of one chain."""
    return STATE_COPIES * num_chains * state + GRAPH_COPIES * state + kept


def vmap_bytes(state: int, kept: int, num_chains: int) -> int:
    """Bytes of vectorised chains."""
    return num_chains * ((STATE_COPIES + GRAPH_COPIES) * state + kept)


def free_bytes(device: torch.device) -> int:
    """Memory that is free on the device: of the accelerator, or of this machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = [_available(Path("/proc/meminfo")), _cgroup_left(Path("/sys/fs/cgroup"))]
    known = [size for size in found if size is not None]
    return min(known) if known else 4 * 2**30


def _available(meminfo: Path) -> int | None:
    """`MemAvailable`, in bytes."""
    if not meminfo.exists():
        return None
    for line in meminfo.read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _cgroup_left(root: Path) -> int | None:
    """What a container may still take, in bytes."""
    limit, used = root / "memory.max", root / "memory.current"
    if not (limit.exists() and used.exists()):
        return None
    text = limit.read_text(encoding="ascii").strip()
    if text == "max":
        return None
    left = int(text) - int(used.read_text(encoding="ascii"))
    stat = root / "memory.stat"
    if stat.exists():  # the page cache counts as used, and is given back on demand
        fields = dict(line.split() for line in stat.read_text(encoding="ascii").splitlines())
        left += int(fields.get("inactive_file", 0))
    return max(left, 0)


def mebibytes(size: int) -> str:
    """A size in words."""
    return f"{size / 2**20:.1f} MiB"


def _too_large(needed: int, limit: int, problem: Problem) -> RefusedError:
    return RefusedError(
        f"the chains need about {mebibytes(needed)} for {problem.center.numel()} parameters, and "
        f"may take {mebibytes(limit)}; raise sampler.max_bytes, take a smaller probe batch, or "
        "restrict the measurement with parameters="
    )
