"""Progress measures of grokking on modular addition (Nanda et al. 2023, arXiv 2301.05217)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from phasewatch.monitor.errors import ConfigError, RefusedError
from phasewatch.monitor.observables.evaluation import at_weights, device_of, listed
from phasewatch.monitor.observables.fourier import (
    basis,
    by_frequency,
    component,
    diagonal_means,
    gini,
    spectrum,
)
from phasewatch.monitor.observables.norms import MAX_GROUPS, l2_norm, observed
from phasewatch.monitor.types import Cost, MeasureContext, Observation

AUTO = "auto"
"""In place of a parameter's name: find it."""

KEY_SHARE = 0.25
"""A frequency is key where its norm exceeds this share of the largest."""

ROWS_AT_ONCE = 8192
"""Pairs in one forward pass: bounds its memory for large p."""

Logits = Callable[[nn.Module, Tensor], Tensor]
"""`logits(model, pairs)`: from pairs of shape (N, 2), logits of shape (N, ≥ p)."""

_WAY_OUT = (
    "For other inputs or outputs make GrokkingProgress in your code, with "
    "logits=function(model, pairs) and train_pairs="
)


@dataclass(frozen=True)
class _Task:
    """What was found: p, the pairs trained on, and what stands behind a and b in an input."""

    p: int
    train: Tensor
    suffix: Tensor


class GrokkingProgress:
    """Restricted and excluded loss, sparsity of the weights in the Fourier basis, key frequencies.

    The network learns (a, b) → (a + b) mod p from some of the p² pairs. It is run on all of them,
    once a measurement; ℓ(a, b, c) are its logits, w_k = 2πk/p. The projection of ℓ on
    cos(w_k(a+b)) and sin(w_k(a+b)) is P_k ℓ; K are the key frequencies. All losses are
    cross-entropies in nats, computed in float64. The streams:

    - `restricted_loss`: over all pairs, of Σ_{k∈K} P_k ℓ plus the mean of ℓ over all pairs, class
      by class. It falls as the trigonometric solution forms.
    - `excluded_loss`: over the train pairs, of ℓ − Σ_{k∈K} P_k ℓ. It rises as the network comes to
      rely on that solution. `excluded_loss/<k>`: of ℓ − P_k ℓ. `excluded_loss_max`: the largest of
      these over all k; it depends on no choice of K.
    - `gini_embedding`, `gini_unembedding`: Gini coefficient of the norms of the Fourier components
      of W_E and W_L over the p inputs and the p classes; the constant is left out, cosine and
      sine are kept apart: 0 all equal, 1 − 1/(p−1) one alone.
    - `key_frequencies`: their number. `key_frequencies/<k>`: norm of frequency k over the largest;
      it is key above 0.25. Parts are of the 32 largest, if there are more.

    K is causal: the frequencies of W_L, cosine and sine together, whose norm exceeds a quarter of
    the largest at the time of the measurement. (The paper takes those of the final weights: give
    them as `frequencies` once they are known.) At initialisation nearly all are key. Without W_L it
    is found from the part of ℓ that is a function of a + b.

    The probe is read as the train pairs: batches (inputs, labels) whose inputs are integers a, b
    and perhaps a constant rest, such as a token "=". A probe of some of the train pairs gives the
    excluded loss over those.

    Args:
        p: The modulus; None takes it from the probe.
        embedding: W_E, (≥ p, d): a path of attributes from the model, such as "embed.weight", or
            "first.weight.T"; "auto" takes the first `nn.Embedding` with p rows or more; None
            goes without.
        unembedding: W_L, (≥ p, neurons), by the same rules; several are multiplied, as W_U W_out
            of a transformer; "auto" takes the last `nn.Linear` with p outputs or more.
        frequencies: K; None finds it at each measurement.
        block: Keep in the restricted loss what is a function of a − b at the key frequencies,
            too, as the paper's text has it; its released code does not.
        logits: `logits(model, pairs)` of shape (N, ≥ p); None calls the model on inputs like those
            of the probe, and takes the last position and the first p classes.
        train_pairs: The pairs trained on, (N, 2); None reads the probe.

    Raises:
        ConfigError: `p` is below 3.
    """

    name = "grokking"
    unit = "nats"
    cost = Cost.FORWARD
    needs = "batches of integers (a, b) with labels (a + b) mod p, an nn.Embedding, an nn.Linear"
    source = "Nanda et al. 2023, arXiv 2301.05217, §5.1 and App. C; Hurley & Rickard 2009, eq. 3"

    def __init__(
        self,
        p: int | None = None,
        *,
        embedding: str | None = AUTO,
        unembedding: str | Sequence[str] | None = AUTO,
        frequencies: Sequence[int] | None = None,
        block: bool = False,
        logits: Logits | None = None,
        train_pairs: Any = None,
    ) -> None:
        if p is not None and p < 3:
            raise ConfigError(f"grokking: p is {p}; it must be 3 or more to have a frequency")
        self._p = p
        self._embedding = embedding
        self._unembedding = unembedding
        self._frequencies = frequencies
        self._block = block
        self._logits = logits
        self._train_pairs = train_pairs

    def check(self, context: MeasureContext) -> None:
        """Refuse before the first step what is not modular addition, or cannot be read.

        Raises:
            RefusedError: Says what was looked for, what there is, and the way out.
        """
        self.measure(context)

    @torch.no_grad()
    def measure(self, context: MeasureContext) -> list[Observation]:
        """All streams at w*, from one pass over the grid.

        Raises:
            RefusedError: The probe, the weights or the logits are not what was looked for.
        """
        task = self._task(context)
        p, rows = task.p, basis(task.p, device_of(context))
        pairs = torch.cartesian_prod(*2 * [torch.arange(p, device=rows.device)])
        logits = self._grid(context, task, pairs)
        sums = pairs.sum(dim=1) % p
        means = diagonal_means(logits, sums, p)

        embedding = self._matrix(context, self._embedding, "embedding", p)
        unembedding = self._matrix(context, self._unembedding, "unembedding", p)
        strength = by_frequency(spectrum(means if unembedding is None else unembedding, rows))
        strength = strength / strength.max()
        key = self._key(strength, p)
        shown = sorted((strength.argsort(descending=True)[:MAX_GROUPS] + 1).tolist())

        restricted = logits.mean(dim=0).expand_as(logits).clone()
        for k in key:
            restricted += component(means, k, rows)[sums]
        if self._block:
            differences = (pairs[:, 0] - pairs[:, 1]) % p
            other = diagonal_means(logits, differences, p)
            for k in key:
                if 2 * k < p:  # at half the modulus a − b and a + b are the same
                    restricted += component(other, k, rows)[differences]

        at = task.train[:, 0] * p + task.train[:, 1]
        own, labels = logits[at], sums[at]
        parts = {k: component(means, k, rows)[labels] for k in range(1, p // 2 + 1)}
        excluded = {k: float(cross_entropy(own - part, labels)) for k, part in parts.items()}
        rest = own - sum(parts[k] for k in key)

        def one(name: str, value: float, unit: str = "nats") -> Observation:
            return observed(context, name, unit, value)

        result = [
            one("restricted_loss", float(cross_entropy(restricted, sums))),
            one("excluded_loss", float(cross_entropy(rest, labels))),
            one("excluded_loss_max", max(excluded.values())),
            one("key_frequencies", len(key), "1"),
        ]
        for name, matrix in (("embedding", embedding), ("unembedding", unembedding)):
            if matrix is not None:
                result.append(one(f"gini_{name}", gini(spectrum(matrix, rows)), "1"))
        for k in shown:
            result.append(one(f"excluded_loss/{k}", excluded[k]))
            result.append(one(f"key_frequencies/{k}", float(strength[k - 1]), "1"))
        return result

    def _key(self, strength: Tensor, p: int) -> list[int]:
        if self._frequencies is None:
            return [int(k) for k in (strength > KEY_SHARE).nonzero()[:, 0] + 1]
        wrong = [k for k in self._frequencies if not 1 <= k <= p // 2]
        if wrong:
            raise RefusedError(
                f"grokking: frequencies {wrong} do not exist mod {p}; they run from 1 to {p // 2}"
            )
        return sorted(set(self._frequencies))

    def _task(self, context: MeasureContext) -> _Task:
        """Find p and the train pairs."""
        device = device_of(context)
        if self._train_pairs is None:
            inputs, labels = _joined(context)
            suffix = inputs[:1, 2:]
            if not (inputs[:, 2:] == suffix).all():
                raise RefusedError(
                    "grokking: what stands behind a and b in the inputs of the probe differs from "
                    f"pair to pair, so inputs for all pairs cannot be made. {_WAY_OUT}"
                )
            train = inputs[:, :2]
        else:
            train, labels = torch.as_tensor(self._train_pairs, device=device), None
            if train.shape != (len(train), 2) or train.is_floating_point() or not len(train):
                raise RefusedError(
                    f"grokking: train_pairs has shape {tuple(train.shape)} and {train.dtype}; it "
                    "must be (N, 2) integers a and b, one pair at least"
                )
            suffix = train[:1, 2:]
        train = train.long()
        largest = int(train.max() if labels is None else torch.maximum(train.max(), labels.max()))
        p = self._p or largest + 1
        if p < 3 or largest >= p or int(train.min()) < 0:
            raise RefusedError(
                f"grokking: looked for integers from 0 to p − 1 = {p - 1}; there are some from "
                f"{int(train.min())} to {largest}. Give p="
            )
        if labels is not None and not (labels == train.sum(dim=1) % p).all():
            raise RefusedError(
                f"grokking: the labels of the probe are not (a + b) mod {p} of the first two "
                f"integers of its inputs. {_WAY_OUT}"
            )
        return _Task(p, train, suffix)

    def _grid(self, context: MeasureContext, task: _Task, pairs: Tensor) -> Tensor:
        """Logits of all pairs, shape (p², p), in float64."""
        function = self._logits or _called
        if self._logits is None:
            suffix = task.suffix.expand(len(pairs), -1)
            pairs = torch.cat([pairs.to(suffix.dtype), suffix], dim=1)
        try:
            found = torch.cat(
                [
                    _classes(at_weights(context, function, some), len(some), task.p)
                    for some in pairs.split(ROWS_AT_ONCE)
                ]
            )
        except RefusedError:
            raise
        except Exception as error:
            raise RefusedError(
                f"grokking: the model cannot be called on all pairs mod {task.p} "
                f"({type(error).__name__}: {error}). {_WAY_OUT}"
            ) from error
        return found

    def _matrix(
        self, context: MeasureContext, wanted: str | Sequence[str] | None, what: str, p: int
    ) -> Tensor | None:
        """W_E or W_L by name, found, or None; (p, n) in float64."""
        if wanted is None:
            return None
        names = [wanted] if isinstance(wanted, str) else list(wanted)
        if wanted == AUTO:
            names = [_found(context.model, what, p)]
        try:
            factors = at_weights(context, lambda model: [_attribute(model, n) for n in names])
            matrix = reduce(torch.matmul, [factor.detach().double() for factor in factors])
        except (AttributeError, RuntimeError) as error:
            raise RefusedError(
                f"grokking: looked for {what}={' @ '.join(names)}: {error}; the model has "
                f"{listed([*context.params, *context.buffers])}"
            ) from error
        if matrix.ndim != 2 or len(matrix) < p:
            raise RefusedError(
                f"grokking: {what}={' @ '.join(names)} has shape {tuple(matrix.shape)}; it must "
                f'be a matrix of p = {p} rows or more. A name that ends in ".T" is transposed'
            )
        rows: Tensor = matrix[:p]
        return rows


def _joined(context: MeasureContext) -> tuple[Tensor, Tensor]:
    """Inputs (N, ≥ 2) and labels (N,) of the whole probe."""
    batches = list(_read(context))
    if not batches:
        raise RefusedError(f"grokking: there is no probe to read the train pairs from. {_WAY_OUT}")
    inputs, labels = zip(*batches, strict=True)
    return torch.cat(inputs), torch.cat(labels)


def _read(context: MeasureContext) -> Iterator[tuple[Tensor, Tensor]]:
    for batch in context.batches:
        tensors = [b for b in batch if isinstance(b, Tensor)] if _is_sequence(batch) else []
        shapes = ", ".join(f"{tuple(t.shape)} {t.dtype}" for t in tensors) or type(batch).__name__
        if len(tensors) != 2 or not _are_pairs(*tensors):
            raise RefusedError(
                "grokking: looked for batches (inputs, labels), inputs (N, 2 or more) and labels "
                f"(N,) of integers, as modular addition has them; the probe has {shapes}. "
                f"{_WAY_OUT}"
            )
        yield tensors[0], tensors[1]


def _is_sequence(batch: object) -> bool:
    return isinstance(batch, (tuple, list))


def _are_pairs(inputs: Tensor, labels: Tensor) -> bool:
    whole = not (inputs.dtype.is_floating_point or labels.dtype.is_floating_point)
    return whole and inputs.ndim == 2 and inputs.shape[1] >= 2 and labels.ndim == 1


def _called(model: nn.Module, inputs: Tensor) -> Any:
    return model(inputs)


def _classes(output: Any, count: int, p: int) -> Tensor:
    """The last position and the first p classes of what the model gave."""
    logits = getattr(output, "logits", output)
    if isinstance(logits, Tensor) and logits.ndim == 3:
        logits = logits[:, -1]
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] < p:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise RefusedError(
            f"grokking: looked for logits of shape ({count}, {p} or more), perhaps with positions "
            f"between; the model gives {shape}. {_WAY_OUT}"
        )
    return logits[:, :p].double()


def _attribute(model: nn.Module, path: str) -> Any:
    return reduce(getattr, path.split("."), model)


def _found(model: nn.Module, what: str, p: int) -> str:
    """Path of the first embedding, or of the last linear layer, that is large enough."""
    kind: type[nn.Module]
    if what == "embedding":
        kind, where, large, index = nn.Embedding, "first", "num_embeddings", 0
    else:
        kind, where, large, index = nn.Linear, "last", "out_features", -1
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, kind)]
    fit = [name for name, module in layers if getattr(module, large) >= p]
    if not fit:
        have = listed(f"{name or 'itself'}: {m}" for name, m in layers)
        raise RefusedError(
            f"grokking: looked for the {where} nn.{kind.__name__} with {large} of p = {p} or more; "
            f"the model has {have}. Name its weight with {what}=, or go without with {what}=None"
        )
    return f"{fit[index]}.weight".lstrip(".")


class SquaredWeights:
    """Sum of the squares of all parameters, Σ_i w_i²: trainable and frozen, biases and embeddings.

    Of complex parameters |w|². With weight decay it shrinks slowly while circuits form, and falls
    sharply in the cleanup that makes a network generalise.
    """

    name = "squared_weights"
    unit = "weight^2"
    cost = Cost.WEIGHTS
    source = "Nanda et al. 2023, arXiv 2301.05217, §5.2"

    def measure(self, context: MeasureContext) -> Observation:
        """The sum at w*."""
        named = {**context.buffers, **context.params}
        norm = l2_norm(named[name] for name, _ in context.model.named_parameters())
        return observed(context, self.name, self.unit, float(norm) ** 2)
