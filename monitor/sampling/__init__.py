"""The LLC engine: local posterior, integrators, chains, calibration, estimators, diagnostics."""

from __future__ import annotations

from phasewatch.monitor.config.measuring import SamplerConfig
from phasewatch.monitor.core.responses import Influence, Susceptibility
from phasewatch.monitor.sampling.estimate import estimate_llc, estimate_refined_llc
from phasewatch.monitor.sampling.measure import measure_llc, measure_refined_llc
from phasewatch.monitor.sampling.memory import Memory
from phasewatch.monitor.sampling.responses import estimate_influence, estimate_susceptibility
from phasewatch.monitor.sampling.restrictions import attention_heads
from phasewatch.monitor.sampling.temperatures import Reweighted, reweight

__all__ = [
    "Influence",
    "Memory",
    "Reweighted",
    "SamplerConfig",
    "Susceptibility",
    "attention_heads",
    "estimate_influence",
    "estimate_llc",
    "estimate_refined_llc",
    "estimate_susceptibility",
    "measure_llc",
    "measure_refined_llc",
    "reweight",
]
