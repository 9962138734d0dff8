"""The table of cases in which monitored training must equal unmonitored training bit for bit.

The names are the ones docs/untouched.md lists. A case says how to build its run and what measuring
it must come to: an LLC estimate, or a refusal with a reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import lightning.pytorch as pl
import torch

from support import zoo_data as data
from support import zoo_layers as layers
from support import zoo_modules as modules
from support import zoo_optimization as optimization


@dataclass(frozen=True)
class Case:
    """One way to train.

    Attributes:
        name: What docs/untouched.md calls it.
        build: Makes the module.
        loaders: Makes what `fit` gets beside the module.
        trainer: Options of the Trainer.
        llc: "measured": estimates must exist; "refused": none may, and the reason is recorded.
        norms: Which of the cheap observables can be measured at all.
        monitor: Options of the monitor that this case needs.
        callbacks: Makes further callbacks.
        slow: Runs in the long part.
        error: What `fit` itself raises.
    """

    name: str
    build: Callable[[], pl.LightningModule]
    loaders: Callable[[], dict[str, Any]] = field(
        default=lambda: {
            "train_dataloaders": data.loader(),
            "val_dataloaders": data.val_loader(),
        }
    )
    trainer: Mapping[str, Any] = field(default_factory=dict)
    llc: Literal["measured", "refused"] = "measured"
    norms: tuple[str, ...] = ("gradient_norm", "weight_norm", "update_ratio")
    monitor: Mapping[str, Any] = field(default_factory=dict)
    callbacks: Callable[[], list[Any]] = list
    slow: bool = False

    @property
    def is_slow(self) -> bool:
        return self.slow or self.name in LONG_PART


def _loaders(make: Callable[[], Any]) -> Callable[[], dict[str, Any]]:
    return lambda: {"train_dataloaders": make(), "val_dataloaders": data.val_loader()}


def _of(make: Callable[[], Any], **options: Any) -> Callable[[], dict[str, Any]]:
    return _loaders(lambda: data.loader(make(), **options))


def _workers(**options: Any) -> Callable[[], dict[str, Any]]:
    return _of(data.dataset, num_workers=2, multiprocessing_context="fork", **options)


def _checkpointed(use_reentrant: bool) -> Callable[[], pl.LightningModule]:
    return lambda: layers.Checkpointed(use_reentrant)


def compiled_whole() -> pl.LightningModule:
    return torch.compile(modules.Silent(), backend="eager")


LONG_PART = frozenset(
    {
        "clipping by value",
        "shuffling by the loader's own generator",
        "weighted sampler",
        "named tuples",
        "dataset of whole batches",
        "tuple of loaders",
        "loaders made anew each epoch",
        "accumulation that changes with the epoch",
        "two parameter groups and a scheduler",
        "deterministic algorithms",
        "part of an iterable dataset",
        "explicit sampler that draws globally",
        "gradients zeroed by the user",
        "batch sampler",
        "weight_norm by parametrization",
        "one block under two names",
        "generators of the instance",
        "reads itself through a global",
        "manual optimization with probe_loss",
    }
)
"""Cases close to another one; they run in the long part, as those marked slow do."""

KINDS: tuple[Case, ...] = (
    Case("multilayer perceptron", modules.Plain),
    Case("dropout and BatchNorm", layers.DropoutBatchNorm),
    Case("frozen BatchNorm", layers.FrozenBatchNorm),
    Case("synchronised BatchNorm", layers.SynchronisedBatchNorm),
    Case("noise in the step, direct logger calls", modules.NoisyStep),
    Case("torchmetrics", layers.WithTorchmetrics),
    Case("state in plain attributes", modules.StateInAttributes),
    Case("lock, open file, running generator, tensor with a graph", modules.UncopyableAttributes),
    Case("weight_norm by hook", layers.OldWeightNorm),
    Case("weight_norm by parametrization", layers.NewWeightNorm),
    Case("spectral_norm by hook", layers.OldSpectralNorm),
    Case("reads .item() and branches on it", modules.ReadsItem),
    Case("activation checkpointing, non-reentrant", _checkpointed(False)),
    Case("activation checkpointing, reentrant", _checkpointed(True)),
    Case("forward hook that closes over self", modules.HookClosure),
    Case("lambda that closes over self", modules.LambdaClosure),
    Case("reads itself through a global", modules.ReadsGlobal, llc="refused"),
    Case("refuses to be copied", modules.RefusesCopies, llc="refused", norms=()),
    Case("bound methods and partials of self", modules.BoundMethods),
    Case("sets trainer.should_stop on an unusual batch", modules.StopsOnWideBatch),
    Case("reads self.optimizers() in the step", modules.ReadsOptimizers),
    Case("manual optimization", optimization.Manual),
    Case("manual optimization with probe_loss", optimization.ManualWithProbeLoss),
    Case("manual optimization, two losses", optimization.TwoOptimizers, llc="refused"),
    Case("changes its batch in place", modules.MutatesBatch),
    Case("generator of the class", modules.ClassGenerator),
    Case("generators of the instance", modules.InstanceGenerators),
    Case("generator of the script", modules.ScriptGenerator),
    Case("tied weights", layers.Tied),
    Case("LSTM", layers.Recurrent),
    Case("attention", layers.Attention),
    Case("frozen layers", layers.Frozen),
    Case("gradient hooks, weights edited after the batch", modules.HookedParameters),
    Case("embedding with max_norm", layers.MaxNormEmbedding),
    Case("child LightningModule, stored trainer", modules.ChildModules),
    Case("reads trainer, schedulers and hyperparameters", modules.ReadsTrainer),
    Case("keeps tensors of inference mode", modules.KeepsInferenceTensor),
    Case("layers made in setup and configure_model", modules.MadeInSetup),
    Case("seeds the global generators in its step", modules.ReseedsItself),
    Case("one block under two names", layers.SharedBlock),
    Case("complex parameters", layers.ComplexParameters, llc="refused"),
    Case("scripted network", layers.Scripted, llc="refused", norms=()),
    Case("logs nothing", modules.Silent),
    Case("catches exceptions in its step", modules.SwallowsFailures),
    Case("step takes the loader's iterator", modules.DataloaderIter, llc="refused"),
    Case("compiled network", layers.CompiledNet, slow=True),
    Case("compiled LightningModule", compiled_whole, slow=True),
)

PRECISION: tuple[Case, ...] = tuple(
    Case(f"precision {name}", build, trainer={"precision": name})
    for name, build in (
        ("32-true", layers.DropoutBatchNorm),
        ("bf16-mixed", layers.DropoutBatchNorm),
        ("bf16-true", modules.Plain),
        ("16-true", optimization.PlainDescent),
        ("64-true", layers.DropoutBatchNorm),
    )
)

OPTIMIZATION: tuple[Case, ...] = (
    Case(
        "gradient accumulation with a remainder",
        modules.Plain,
        trainer={"accumulate_grad_batches": 2},
    ),
    Case(
        "accumulation that changes with the epoch",
        modules.Plain,
        callbacks=lambda: [pl.callbacks.GradientAccumulationScheduler({0: 1, 1: 3})],
    ),
    Case("clipping by norm", modules.Plain, trainer={"gradient_clip_val": 0.05}),
    Case(
        "clipping by value",
        modules.Plain,
        trainer={"gradient_clip_val": 0.05, "gradient_clip_algorithm": "value"},
    ),
    Case("LBFGS", optimization.UsesLBFGS),
    Case("fused AdamW", optimization.FusedAdamW),
    Case("two parameter groups and a scheduler", optimization.TwoGroups),
    Case("scheduler that reads a validation metric", optimization.Plateau),
    Case("two manual optimizers, measured every third step", optimization.TwoOptimizers,
         llc="refused", monitor={"every_n_steps": 3}),
    Case("two manual optimizers with a loss_fn", optimization.TwoOptimizers,
         monitor={"every_n_steps": 3, "loss_fn": lambda model, batch: model.loss(batch)}),
    Case("manual optimization with accumulation", optimization.ManualAccumulation,
         monitor={"every_n_steps": 2}),
    Case("raw optimizer, global_step stays 0", optimization.RawOptimizer,
         _of(data.dataset, batch_size=2), norms=("weight_norm",)),
    Case("steps that return None", optimization.SkipsSteps),
    Case("gradients zeroed by the user", optimization.ZeroesItself),
    Case("sparse gradients", layers.SparseGradients),
    Case("a backbone thawed in the second epoch", layers.Backbone,
         callbacks=lambda: [pl.callbacks.BackboneFinetuning(1, lambda epoch: 1.0)]),
    Case("pruning", modules.Plain,
         callbacks=lambda: [pl.callbacks.ModelPruning("l1_unstructured", amount=0.2)]),
    Case("anomaly detection", modules.Plain, trainer={"detect_anomaly": True}),
    Case("deterministic algorithms", modules.Plain, trainer={"deterministic": True}),
    Case("loss that turns into NaN", optimization.NonfiniteLoss, monitor={"every_n_steps": 2}),
)  # fmt: skip

DATA: tuple[Case, ...] = (
    Case("no shuffling", modules.Plain, _of(data.dataset, shuffle=False)),
    Case("shuffling by the loader's own generator", modules.Plain,
         lambda: _of(data.dataset, generator=torch.Generator().manual_seed(9))()),
    Case("explicit sampler that draws globally", modules.Plain, _loaders(data.global_sampler)),
    Case("weighted sampler", modules.Plain, _loaders(data.weighted_sampler)),
    Case("worker processes", modules.Plain, _workers(), slow=True),
    Case("persistent workers", modules.Plain, _workers(persistent_workers=True), slow=True),
    Case("random transforms in workers", modules.Plain,
         _of(data.RandomTransform, num_workers=1, multiprocessing_context="fork"), slow=True),
    Case("random transforms from three generators", modules.Plain, _of(data.RandomTransform)),
    Case("dataset with counters, caches and generators", modules.Plain, _of(data.Stateful)),
    Case("the same dataset behind a lock", modules.Plain, _of(data.StatefulUncopyable)),
    Case("collate function that draws", modules.Plain,
         _of(data.dataset, collate_fn=data.random_collate)),
    Case("batch sampler", modules.Plain, _loaders(data.batch_sampler)),
    Case("dataset of whole batches", modules.Plain,
         _of(data.WholeBatches, batch_size=None)),
    Case("named tuples", modules.Plain, _of(data.NamedTuples)),
    Case("iterable dataset", modules.Plain, _of(data.Stream, shuffle=False)),
    Case("part of an iterable dataset", modules.Plain,
         _of(lambda: data.Stream(10**4), shuffle=False), trainer={"limit_train_batches": 5}),
    Case("nested dict batches, step without an index", modules.DictResult,
         lambda: {"train_dataloaders": data.loader(data.Nested())}),
    Case("dict of loaders", data.TwoLoaders,
         _loaders(lambda: {"a": data.loader(), "b": data.loader(data.dataset(24, seed=2))})),
    Case("tuple of loaders", data.TupleOfLoaders,
         lambda: {"train_dataloaders": [data.loader(), data.loader(data.dataset(40, seed=3))]}),
    Case("combined loader with an iterable", data.TwoLoaders,
         _loaders(lambda: pl.utilities.CombinedLoader(
             {"a": data.loader(), "b": data.loader(data.Stream(), shuffle=False)}, "min_size"))),
    Case("loaders made by the module", data.OwnLoaders, dict),
    Case("loaders made anew each epoch", data.OwnLoaders, dict,
         trainer={"reload_dataloaders_every_n_epochs": 1}),
    Case("datamodule with random split and random transfer", modules.Plain,
         lambda: {"datamodule": data.RandomTransfer()}),
    Case("random transfer hook of the module", data.TransferInModule),
)  # fmt: skip

LIFE_CYCLE: tuple[str, ...] = (
    "fit called twice",
    "validate alone",
    "fast_dev_run",
    "sanity check",
    "resume after an epoch",
    "resume in the middle of an epoch",
    "checkpoint loads with weights_only",
    "two monitors",
    "learning-rate finder",
    "batch-size finder",
    "weight averaging, monitor first",
    "weight averaging, monitor last",
    "stochastic weight averaging, monitor first",
    "stochastic weight averaging, monitor last",
    "early stopping and checkpoints",
    "max_steps",
    "no training batches",
    "exception in training",
    "exception in validation",
    "Ctrl-C in training",
    "Ctrl-C in a measurement",
    "barebones",
    "validation in the middle of an epoch",
    "measured at every step",
    "overhead budget",
    "disabled by the environment",
    "progress bar",
)

OUTCOMES: tuple[str, ...] = (
    "measured",
    "measured while another raises in the middle",
    "measured in a plain loop",
    "measured by vmap",
    "raises early",
    "raises in the middle",
    "raises late",
    "interrupted",
    "diverges",
)
"""What becomes of the measurements; every module kind meets each of them."""


def find(name: str) -> Case:
    return next(c for c in (*KINDS, *PRECISION, *OPTIMIZATION, *DATA) if c.name == name)
