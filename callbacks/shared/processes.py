"""What one process that measures owes to those that wait for it."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch.distributed.constants import default_pg_timeout

LONGEST_TURN_SECONDS = 2.0
SHARE_OF_TIMEOUT = 0.1


def collective_timeout_seconds() -> float:
    """Seconds after which the processes that train together give up waiting for one of them.

    Of the process group that training uses; inf where there is none, or it has one process.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() < 2:
        return math.inf
    group = dist.distributed_c10d._get_default_group()
    known = []
    for kind in ("cpu", "cuda"):
        try:
            options = group._get_backend(torch.device(kind)).options
        except (AttributeError, RuntimeError):  # no backend for this kind, or one without options
            continue
        known.append(options._timeout.total_seconds())
    # What cannot be read is the default, which is at least what torch gives without being asked.
    return min(known, default=default_pg_timeout.total_seconds())


def longest_turn_seconds() -> float:
    """How long one process may measure while others wait for it.

    The least of `LONGEST_TURN_SECONDS` and `SHARE_OF_TIMEOUT` of `collective_timeout_seconds()`;
    inf where nobody waits.
    """
    timeout = collective_timeout_seconds()
    return (
        math.inf if math.isinf(timeout) else min(LONGEST_TURN_SECONDS, SHARE_OF_TIMEOUT * timeout)
    )
