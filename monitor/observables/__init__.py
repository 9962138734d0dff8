"""The observables: those that come with phasewatch, and users' own through an entry point.

`BUILTIN` names them all; each lies in the file of its family. A package adds one with the
entry-point group `phasewatch.observables`: the entry point names a class or function that returns
an `Observable`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from phasewatch.monitor.config.monitor import MonitorConfig
from phasewatch.monitor.core.contracts import Observable
from phasewatch.monitor.core.errors import ConfigError, UnknownNameError
from phasewatch.monitor.core.work import Cost
from phasewatch.monitor.observables.costs import MeasuredCost, measured_costs

__all__ = [
    "BUILTIN",
    "Entry",
    "catalogue",
    "create",
    "factory_of",
    "names",
    "needs_params_before",
    "needs_record",
    "reads_live",
    "register",
    "selected",
]

ENTRY_POINT_GROUP = "phasewatch.observables"

ALL = "all"
"""In place of a name: every observable that can be made without arguments."""

Factory = Callable[..., Observable]

BUILTIN: Mapping[str, tuple[str, str]] = {
    "gradient_norm": ("weights.gradient_norm", "GradientNorm"),
    "weight_norm": ("weights.weight_norm", "WeightNorm"),
    "update_ratio": ("weights.update_ratio", "UpdateRatio"),
    "llc": ("llc.llc", "LLC"),
    "grokking": ("toy_models.grokking", "GrokkingProgress"),
    "squared_weights": ("weights.squared_weights", "SquaredWeights"),
    "mask_overlap": ("toy_models.mask_overlap", "MaskOverlap"),
    "kept_weights": ("toy_models.kept_weights", "KeptWeights"),
    "frequency_entropy": ("toy_models.frequency_entropy", "FrequencyEntropy"),
    "prefix_matching": ("attention.prefix_matching", "PrefixMatching"),
    "previous_token": ("attention.previous_token", "PreviousToken"),
    "copying_score": ("attention.copying_score", "CopyingScore"),
    "composition": ("attention.composition", "Composition"),
    "head_ablation": ("attention.ablation", "HeadAblation"),
    "icl_score": ("tokens.icl_score", "IclScore"),
    "dloss_dlog_token": ("tokens.icl_score", "DlossDlogToken"),
    "token_loss": ("tokens.token_loss", "TokenLoss"),
    "component_loss": ("tokens.components", "ComponentLoss"),
    "essential_dynamics": ("tokens.essential_dynamics", "EssentialDynamics"),
    "feature_dimensionality": ("toy_models.feature_dimensionality", "FeatureDimensionality"),
    "represented_features": ("toy_models.represented_features", "RepresentedFeatures"),
    "polygon": ("toy_models.polygon", "Polygon"),
    "singular_values": ("weights.singular_values", "SingularValues"),
    "effective_rank": ("weights.effective_rank", "EffectiveRank"),
    "distance_from_init": ("weights.distance_from_init", "DistanceFromInit"),
    "distance_moved": ("weights.distance_moved", "DistanceMoved"),
    "update_angle": ("weights.update_angle", "UpdateAngle"),
    "spectral_norm": ("weights.spectral_norm", "SpectralNorm"),
    "dead_units": ("weights.dead_units", "DeadUnits"),
    "gradient_noise_scale": ("curvature.noise_scale", "GradientNoiseScale"),
    "hessian_top": ("curvature.hessian_top", "HessianTop"),
    "hessian_trace": ("curvature.hessian_trace", "HessianTrace"),
    "hessian_rank": ("curvature.hessian_rank", "HessianRank"),
    "basin_broadness": ("curvature.basin", "BasinBroadness"),
    "llc_validation": ("llc.data", "LLCValidation"),
    "llc_slices": ("llc.data", "LLCSlices"),
    "refined_llc": ("llc.refined_llc", "RefinedLLC"),
}
"""Module and class of each, by name. A parameter `config` is given the run's `SamplerConfig`.

"all" begins with the first: what is expensive waits for those before it, so λ̂ comes early.
"""

_registered: dict[str, Factory] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What is known of an observable before it is made.

    Attributes:
        name: Its name.
        unit: Unit of its value.
        cost: What a measurement takes.
        needs: What it looks for in the model, the probe or its arguments; empty: nothing.
        source: Paper and equation.
        arguments: Arguments it cannot be made without.
        measured: What its measurements were seen to take; None where nobody has looked.
    """

    name: str
    unit: str
    cost: Cost
    needs: str
    source: str
    arguments: tuple[str, ...]
    measured: MeasuredCost | None = None


def register(name: str, factory: Factory) -> None:
    """Make an observable known by name.

    Args:
        name: Its name in configurations.
        factory: Called with the `parameters` of its configuration; returns the observable.

    Raises:
        ConfigError: The name is taken.
    """
    if name in BUILTIN or name in _registered:
        raise ConfigError(f"observable {name!r} exists already; register yours under another name")
    _registered[name] = factory


def names() -> list[str]:
    """Every name `create` knows."""
    return sorted({*BUILTIN, *_registered, *entry_points(group=ENTRY_POINT_GROUP).names})


def selected(name: str) -> list[str]:
    """The names that a name in a configuration stands for: itself, but for "all"."""
    if name != ALL:
        return [name]
    every = dict.fromkeys([*BUILTIN, *names()])
    return [one for one in every if not _required(factory_of(one))]


def create(name: str, config: MonitorConfig) -> Observable:
    """Make the observable of that name, with the parameters that the configuration gives it.

    Raises:
        UnknownNameError: Nobody registered the name.
        ConfigError: Its parameters are wrong, or one that it needs is missing.
    """
    factory = factory_of(name)
    settings = config.observables.get(name)
    parameters = dict(settings.parameters) if settings else {}
    given = {"config": config.sampler, **parameters} if _samples(factory) else parameters
    try:
        inspect.signature(factory).bind(**given)
    except TypeError as error:
        raise ConfigError(
            f"observable {name!r}: {error}; it takes {_described(factory)}. Give them under "
            f"observables.{name}.parameters, or pass the observable itself, made in your code"
        ) from None
    return factory(**given)


def catalogue() -> Iterator[Entry]:
    """Everything that comes with phasewatch, by name."""
    costs = measured_costs()
    for name in sorted(BUILTIN):
        made: Any = factory_of(name)
        yield Entry(
            name=name,
            unit=made.unit,
            cost=made.cost,
            needs=getattr(made, "needs", ""),
            source=made.source,
            arguments=_required(made),
            measured=costs.get(name),
        )


def factory_of(name: str) -> Factory:
    """The class or function that makes the observable of that name.

    Raises:
        UnknownNameError: Nobody registered the name.
    """
    if name in BUILTIN:  # imported when asked for: names are listed without waiting for torch
        module, attribute = BUILTIN[name]
        found: Factory = getattr(
            import_module(f"phasewatch.monitor.observables.{module}"), attribute
        )
        return found
    if name in _registered:
        return _registered[name]
    for entry_point in entry_points(group=ENTRY_POINT_GROUP, name=name):
        loaded: Factory = entry_point.load()
        return loaded
    raise UnknownNameError(
        "observable",
        name,
        names(),
        f"pass your own as an object, or install one under the entry point {ENTRY_POINT_GROUP!r}",
    )


def reads_live(observable: Observable) -> bool:
    """Whether it may be measured in a `live_context`: it reads weights, and is one of ours."""
    return _is_ours(observable) and bool(getattr(observable, "reads_live", False))


def needs_record(observable: Observable) -> bool:
    """Whether it looks at what was seen before the step; of one that is not ours nobody knows."""
    if not _is_ours(observable):
        return True
    seen = getattr(observable, "cost", None) is Cost.STEP
    return seen or bool(getattr(observable, "needs_record", False))


def needs_params_before(observable: Observable) -> bool:
    """Whether it looks at the weights before the step; of one that is not ours nobody knows."""
    return not _is_ours(observable) or bool(getattr(observable, "needs_params_before", False))


def _is_ours(observable: Observable) -> bool:
    return type(observable).__module__.startswith(f"{__name__}.")


def _parameters(factory: Factory) -> list[inspect.Parameter]:
    return list(inspect.signature(factory).parameters.values())


def _required(factory: Factory) -> tuple[str, ...]:
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return tuple(
        p.name for p in _parameters(factory) if p.default is p.empty and p.kind not in variadic
    )


def _samples(factory: Factory) -> bool:
    """Whether it is one of ours that takes the run's sampler settings."""
    return factory.__module__.startswith(__name__) and any(
        p.name == "config" for p in _parameters(factory)
    )


def _described(factory: Factory) -> str:
    return ", ".join(map(str, _parameters(factory))) or "no parameters"
