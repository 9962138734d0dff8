"""Never touch training: the guard, the snapshot of what is alive, the copy to measure on."""

from __future__ import annotations

from phasewatch.monitor.isolation.context import live_context, measure_context
from phasewatch.monitor.isolation.fully_sharded import is_sharded
from phasewatch.monitor.isolation.guard import GuardReport, guard, is_trainable
from phasewatch.monitor.isolation.meta_copy import (
    MetaCopy,
    make_meta_copy,
    original_of,
    refuse_unmeasurable,
)
from phasewatch.monitor.isolation.snapshot import LiveSnapshot

__all__ = [
    "GuardReport",
    "LiveSnapshot",
    "MetaCopy",
    "guard",
    "is_sharded",
    "is_trainable",
    "live_context",
    "make_meta_copy",
    "measure_context",
    "original_of",
    "refuse_unmeasurable",
]
