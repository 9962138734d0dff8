"""How much memory the chains will take, before any of it is taken.

With C chains of d parameters, S = d s the bytes of one vector of state (s bytes a number: fp32 or
wider), W = d p those of the weights themselves, and a the bytes that one chain's forward pass keeps
for its backward pass, a measurement takes beyond its context, which holds w* (S):

    vmap:     5 C S + 2 C S + 5 S + C a   all chains at once
    vmap, k:  5 C S + 3 k S + 5 S + k a   k chains at a time, for k < C
    loop:     5 C S + 3 S + 5 S + a       one chain at a time
    inplace:  5 S + 4 S + G + a           one chain from beginning to end, then the next

The five are displacement, velocity, sharpest direction, and two gradients while the sharpness is
measured. Then, for the chains that are evaluated together: their weights, the gradient of each
parameter, and these joined; and w* once more, flat. Four vectors are the mass of each weight: √P,
the squares of the forces, and two while it is renewed. In place the weights are moved where they
are, so only the gradient of the largest parameter (G) is added, and W where no weights are lent.
A probe of several batches adds one gradient of the chains that are evaluated together. With
minibatches, "lm" keeps the gradient of each of the probe's M batches at w*: M S more. Where the
chains of R restrictions share their gradients, C is R times as large. Between two measurements of
a live run the displacements stay: C S.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch

from phasewatch.monitor.config.measuring import SamplerConfig
from phasewatch.monitor.core.errors import RefusedError
from phasewatch.monitor.core.together import in_all
from phasewatch.monitor.sampling.engine import Wanted
from phasewatch.monitor.sampling.posterior import Problem

STATE_COPIES, MASS_COPIES = 5, 4
FREE_SHARE = 0.25
"""Share of the free memory that a measurement may take: training goes on in the same process."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What fits.

    Attributes:
        engine: What to try.
        width: How many chains to evaluate at a time.
        reason: Why, in words.
    """

    engine: Wanted
    width: int = 1
    reason: str = field(default="", compare=False)


def plan_memory(problem: Problem, config: SamplerConfig, num_restrictions: int = 1) -> Plan:
    """Choose the fastest engine that fits into `config.max_bytes`.

    In this order: all chains in one vmap, some at a time, a loop over chains, chains in place.

    Args:
        problem: What is sampled.
        config: How.
        num_restrictions: Restrictions that share their gradients, each with chains of its own.

    Raises:
        RefusedError: Nothing that `config.engine` allows fits.
    """
    wanted, together = config.engine, problem.together
    hard = config.max_bytes or int(FREE_SHARE * free_bytes(problem.device))
    # What one chain takes is about what a training step takes: only more of them at a time would
    # raise the training's own peak, so only they stay below it.
    limit = min(hard, problem.max_bytes or hard) if wanted == "auto" else hard
    if config.scheme == "lm" and config.batch_size is not None:
        limit -= len(problem.batches) * problem.state_bytes
        hard -= len(problem.batches) * problem.state_bytes
    masses = (num_restrictions - 1) * MASS_COPIES * problem.state_bytes
    limit, hard = limit - masses, hard - masses
    num_chains = num_restrictions * config.num_chains
    said = "the configuration asks for it" if wanted != "auto" else ""
    smallest = inplace_bytes(problem)
    if wanted == "vmap" and together.is_spread:
        raise RefusedError(
            "engine='vmap' runs all chains in one forward pass, and weights that are spread over "
            "processes are gathered for one chain at a time; take engine='auto'"
        )
    if wanted in ("auto", "vmap") and not together.is_spread:
        width = _widest(problem, num_chains, limit)
        if width == num_chains or width > 1 or (width and wanted == "vmap"):
            some = f"{width} of {num_chains} chains at a time stay below {mebibytes(limit)}"
            everything = said or f"all chains fit into {mebibytes(limit)}"
            return Plan(wanted, width, everything if width == num_chains else some)
        smallest = vmap_bytes(problem, num_chains, 1)
    if wanted in ("auto", "loop"):
        smallest = loop_bytes(problem, num_chains)
        if in_all(together, smallest <= limit):
            few = f"more than one chain at a time would exceed {mebibytes(limit)}"
            if together.is_spread:
                few = f"the weights are spread over {together.size} processes"
            return Plan("loop", reason=said or few)
    if wanted in ("auto", "inplace"):
        smallest = inplace_bytes(problem)
        if in_all(together, smallest <= hard):
            stacked = f"{num_chains} chains side by side would exceed {mebibytes(limit)}"
            return Plan("inplace", reason=said or stacked)
    raise RefusedError(
        f"the chains need about {mebibytes(smallest)} for {problem.layout.num_parameters} "
        f"parameters with engine={wanted!r}, and may take {mebibytes(hard)}; raise "
        "sampler.max_bytes, take a smaller probe batch, or restrict the measurement with "
        "parameters=" + ("" if wanted in ("auto", "inplace") else "; or take engine='auto'")
    )


def _widest(problem: Problem, num_chains: int, limit: int) -> int:
    """How many chains vmap can take at a time, in parts of about one size; 0 if not even one."""
    for parts in range(1, num_chains + 1):
        width = math.ceil(num_chains / parts)
        if vmap_bytes(problem, num_chains, width) <= limit:
            return width
    return 0


def vmap_bytes(problem: Problem, num_chains: int, width: int) -> int:
    """Bytes of vectorised chains, `width` at a time.

    Args:
        problem: What is sampled.
        num_chains: Chains in all.
        width: Chains that run side by side.
    """
    copies = (2 if width == num_chains else 3) * width + _several(problem) * width
    return _stacked(problem, num_chains, copies) + width * problem.kept_bytes


def loop_bytes(problem: Problem, num_chains: int) -> int:
    """Bytes of a loop over chains."""
    return _stacked(problem, num_chains, 3 + _several(problem)) + problem.kept_bytes


def inplace_bytes(problem: Problem) -> int:
    """Bytes of chains in place."""
    widths = [dtype.itemsize for dtype in problem.layout.dtypes]
    sizes = [size * width for size, width in zip(problem.layout.sizes, widths, strict=True)]
    own = 0 if problem.lent else sum(sizes)
    vectors = (STATE_COPIES + MASS_COPIES + _several(problem)) * problem.state_bytes
    return vectors + own + max(sizes) + problem.kept_bytes


def _stacked(problem: Problem, num_chains: int, copies: int) -> int:
    """Bytes of the chains' own state, `copies` more vectors, and w*."""
    return (STATE_COPIES * num_chains + copies + MASS_COPIES + 1) * problem.state_bytes


def _several(problem: Problem) -> int:
    return int(len(problem.batches) > 1)


def peak_bytes(device: torch.device) -> int:
    """Most memory that was taken so far: on an accelerator by tensors, else by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return free_bytes(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


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
