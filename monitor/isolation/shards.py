"""Sharded weights (FSDP2): what lies on each process, and how a layer is put together to be run.

A measurement gives each process a part of each parameter, no two of them the same: its shard, and
where several processes hold the same shard, or the whole, an equal share of that. The copy of the
model holds parts where the model holds parameters. When one of its units is run (a module that was
given to `fully_shard`), the parts are gathered; after its forward pass the whole is let go, and in
the backward pass gathered again. The gradient is added up over the processes and each keeps its
part. So no process ever holds the whole model, and the live one, its hooks and its gathered weights
are never used.

Which weights are gathered in which order is noted at the first evaluation of a kind, where each
gathering begins with a message that all are about the same one. Later ones go without: a process
that fails takes part in what is left on the list, with zeros, and then says that it failed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from phasewatch.monitor.core.errors import RefusedError
from phasewatch.monitor.core.work import T
from phasewatch.monitor.isolation.fully_sharded import (
    cast_floats,
    is_dtensor,
    is_spread,
    is_unit,
    local_of,
    managed,
    policy_of,
    refuse_other_sharding,
    sharded_parameters,
)
from phasewatch.monitor.isolation.pieces import Place, Unit
from phasewatch.monitor.isolation.ranks import Ranks


class _StrayedError(Exception):
    """This process asks for other weights than at the first evaluation of the kind."""


class Shards(Ranks):
    """The processes among which a model is spread, and its parts on them; a `Together`.

    Args:
        model: The live module; only read.

    Raises:
        RefusedError: It is spread in a way that cannot be measured; says which and why.

    Attributes:
        kept_bytes: What the last evaluation kept for its backward pass beside gathered weights.
        places: Where the parts of each parameter lie.
        shapes: Of the whole parameters.
    """

    is_spread = True

    def __init__(self, model: nn.Module) -> None:
        refuse_other_sharding(model)
        self._sharded = sharded_parameters(model)
        local = next(iter(self._sharded.values()))
        super().__init__(None, local_of(local).device)
        self.kept_bytes = 0
        self.places = {
            name: self._place_of(name, self._sharded.get(id(p), p))
            for name, p in model.named_parameters()
        }
        self.shapes: Mapping[str, torch.Size] = {n: p.shape for n, p in self.places.items()}
        self._units: list[Unit] = []
        self._rest = Unit(0)
        self._lists: dict[Hashable, list[tuple[str, int]]] = {}
        self._list: list[tuple[str, int]] = []
        self._position = 0
        self._is_careful = True
        self._is_evaluating = False
        self._at_home: dict[int, list[Tensor]] = {}
        self._storages: dict[int, tuple[Unit, int]] = {}
        self._kept: dict[int, int] = {}
        self._again: tuple[Unit, list[Tensor]] | None = None

    def _place_of(self, name: str, parameter: Tensor) -> Place:
        ranks = range(self.size)
        if not is_dtensor(parameter):
            return Place(parameter.shape, 0, (0,) * self.size, tuple(ranks))
        mesh, placements = parameter.device_mesh, parameter.placements  # type: ignore[attr-defined]
        if mesh.mesh.numel() != self.size:
            raise RefusedError(
                f"parameter {name!r} is sharded over {mesh.mesh.numel()} of {self.size} processes; "
                "the chains need all of them to hold a part: shard over all"
            )
        cut = [
            dim for dim, placement in enumerate(placements) if type(placement).__name__ == "Shard"
        ]
        if len(cut) > 1 or any(type(p).__name__ not in ("Shard", "Replicate") for p in placements):
            raise RefusedError(
                f"parameter {name!r} is sharded as {tuple(placements)}: by layers and within them "
                "(tensor parallel), which the chains cannot take apart; shard by fully_shard alone"
            )
        coordinates = [(mesh.mesh == rank).nonzero()[0].tolist() for rank in ranks]
        shards = tuple(c[cut[0]] if cut else 0 for c in coordinates)
        copies = []
        for rank in ranks:
            alike = [other for other in ranks if shards[other] == shards[rank]]
            copies.append(alike.index(rank))
        place = Place(parameter.shape, placements[cut[0]].dim if cut else 0, shards, tuple(copies))
        here = tuple(local_of(parameter).shape)
        if here != tuple(place.shape_of(shards[self.rank])):
            raise RefusedError(
                f"parameter {name!r} of shape {tuple(parameter.shape)} has a shard of shape {here} "
                f"on rank {self.rank}; {tuple(place.shape_of(shards[self.rank]))} was expected"
            )
        return place

    # ---- the copy

    def part(self, name: str, values: Tensor) -> Tensor:
        """The part that lies here, flat, of a tensor of the shape of a parameter."""
        return self.places[name].cut(values, self.rank)

    def part_of(self, name: str, parameter: Tensor) -> Tensor:
        """The part that lies here of a live parameter; a view of its memory."""
        if id(parameter) not in self._sharded:
            return self.part(name, parameter.detach())
        shard = local_of(self._sharded[id(parameter)])
        return shard.reshape(-1)[self.places[name].share(self.rank)]

    def fit_out(self, live: nn.Module, copies: Mapping[int, Any]) -> None:
        """Let the units of a copy gather their parameters when they are run.

        Args:
            live: The module that was copied.
            copies: The copy of each live module, by identity.
        """
        names = {id(p): name for name, p in live.named_parameters()}
        taken: set[int] = set()
        units: dict[nn.Module, Unit] = {}  # an outer one comes before those in it
        for module in live.modules():
            if not is_unit(module):
                continue
            policy = policy_of(module)
            unit = Unit(len(self._units), stays=module is live)
            unit.above = {
                other.index for outer, other in units.items() if module in set(outer.modules())
            }
            units[module] = unit
            for holder, key, parameter in managed(module, self._sharded):
                taken.add(id(parameter))
                spot = (copies[id(holder)], key)
                dtype = policy.param_dtype or parameter.dtype
                self._add(unit, names[id(parameter)], spot, dtype)
            self._units.append(unit)
            self._hook(copies[id(module)], unit, policy)
        rest = Unit(len(self._units), stays=True)
        for module in live.modules():
            for key, own in module._parameters.items():
                if own is not None and id(own) not in taken:
                    spot = (copies[id(module)], key)
                    self._add(rest, names[id(own)], spot, own.dtype)
        self._rest = rest
        self._units.append(rest)

    def _add(self, unit: Unit, name: str, spot: tuple[nn.Module, str], dtype: torch.dtype) -> None:
        if name in unit.names:
            unit.spots[unit.names.index(name)].append(spot)
            return
        unit.names.append(name)
        unit.places.append(self.places[name])
        unit.dtypes.append(dtype)
        unit.spots.append([spot])

    def _hook(self, module: nn.Module, unit: Unit, policy: Any) -> None:
        def before(_: nn.Module, args: Any, kwargs: Any) -> Any:
            if self._is_evaluating:
                self._gather(unit)
            dtype = policy.param_dtype if policy.cast_forward_inputs else None
            return cast_floats(args, dtype), cast_floats(kwargs, dtype)

        def after(_: nn.Module, args: Any, output: Any) -> Any:  # noqa: ARG001
            if self._is_evaluating and not unit.stays:
                # Kept until the next is gathered: the backward pass may begin with it.
                self._again = (unit, self._let_go(unit))
                for leaf in tree_leaves(output):
                    if isinstance(leaf, Tensor) and leaf.requires_grad:
                        leaf.register_hook(lambda _: self._begin_backward(unit))
            return cast_floats(output, policy.output_dtype)

        module.register_forward_pre_hook(before, prepend=True, with_kwargs=True)
        module.register_forward_hook(after)

    def of_first(self, buffers: Mapping[str, Tensor]) -> None:
        """Give all processes the buffers of the first, as a checkpoint would; they are changed."""
        self.exchange("buffers", [float(len(buffers))])
        for buffer in buffers.values():
            dist.broadcast(buffer, 0, group=self._group)

    def _begin_backward(self, unit: Unit) -> None:
        """Gather a unit again: checkpointing runs parts of its forward pass without its hooks."""
        for index in [*self._at_home]:
            other = self._units[index]
            if not (other.stays or index == unit.index or index in unit.above):
                self._let_go(other)
        with torch.enable_grad():
            self._gather(unit)

    # ---- evaluations

    def evaluated(self, kind: Hashable, run: Callable[[], T]) -> T:
        """Run the loss with the whole weights in place, and fail where it failed in any process.

        Args:
            kind: Evaluations of one kind ask for the same weights in the same order.
            run: Calls the loss, and takes its gradient.

        Raises:
            MeasurementError: It failed in one of the processes; all raise the same.
        """
        known = self._lists.get(kind)
        result, strayed = self._tried(run, known)
        if strayed:  # all of them begin again
            del self._lists[kind]
            result, _ = self._tried(run, None)
        if kind not in self._lists:
            self._lists[kind] = self._list
        return result

    def _tried(self, run: Callable[[], T], known: list[tuple[str, int]] | None) -> tuple[T, bool]:
        """What it gave, and whether any process asked for other weights than those on the list."""
        self.exchange("evaluate")  # one that failed meanwhile says so here
        self._is_careful, self._list, self._position = known is None, known or [], 0
        self._kept, self._again, self._is_evaluating = {}, None, True
        error: BaseException | None = None
        result: Any = None
        strayed = False
        try:
            self._gather(self._rest)
            with torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack):
                result = run()
        except _StrayedError:
            strayed = True
        except BaseException as caught:
            error = caught
        finally:
            self._is_evaluating, self._again = False, None
            for unit in self._units:
                self._let_go(unit)
        if error is not None and self.knows(error):
            raise error
        if not self._is_careful:
            strayed = strayed or self._position < len(self._list)
            for step in self._list[self._position :]:
                self._play(*step)
        any_strayed = self.exchange("evaluated", [float(strayed)], error)[0] > 0
        self.kept_bytes = sum(self._kept.values())
        return result, any_strayed

    def _next(self, what: str, unit: Unit) -> None:
        """Note what is gathered or scattered next, or find it on the list."""
        step = (what, unit.index)
        if self._is_careful:
            self.exchange(f"{what} {unit.index}")
            self._list.append(step)
            return
        if self._list[self._position : self._position + 1] != [step]:
            raise _StrayedError
        self._position += 1

    def _play(self, what: str, index: int) -> None:
        """Take part in what the others do, with zeros."""
        unit = self._units[index]
        lengths = [sum(unit.lengths(rank)) for rank in range(self.size)]
        longest = max(lengths)
        if what == "gather":
            zeros = torch.zeros(longest, dtype=unit.wire, device=self._device)
            self._gathered(zeros)
        else:
            zeros = torch.zeros(longest * self.size, dtype=unit.adding, device=self._device)
            self._scattered(zeros)

    # ---- gathering

    def _gather(self, unit: Unit) -> None:
        """Put the whole parameters of a unit in place of their parts."""
        if unit.index in self._at_home or not unit.names:
            return
        parts = [module._parameters[key] for (module, key), *_ in unit.spots]
        apply: Any = _Gather.apply
        whole: list[Tensor] = list(apply(self, unit, *parts))
        self._at_home[unit.index] = parts  # type: ignore[assignment]
        for place, (tensor, spots) in enumerate(zip(whole, unit.spots, strict=True)):
            self._storages[tensor.untyped_storage().data_ptr()] = (unit, place)
            for module, key in spots:
                module._parameters[key] = tensor  # type: ignore[assignment]

    def _let_go(self, unit: Unit) -> list[Tensor]:
        """Put the parts back; gives what was gathered."""
        whole: list[Tensor] = []
        if unit.index not in self._at_home:
            return whole
        for part, spots in zip(self._at_home.pop(unit.index), unit.spots, strict=True):
            (module, key), *_ = spots
            gathered: Any = module._parameters[key]
            self._storages.pop(gathered.untyped_storage().data_ptr(), None)
            whole.append(gathered.detach())
            for module, key in spots:
                module._parameters[key] = part  # type: ignore[assignment]
        return whole

    def _pack(self, tensor: Tensor) -> Any:
        """Keep for the backward pass where weights come from, and not the weights."""
        if tensor.layout is not torch.strided:
            return tensor.detach()
        storage = tensor.untyped_storage()
        found = self._storages.get(storage.data_ptr())
        if found is None or storage.nbytes() == 0:
            self._kept[storage.data_ptr()] = storage.nbytes()
            return tensor.detach()  # itself, it would keep the graph that keeps it alive for ever
        unit, place = found
        if tensor.dtype != unit.dtypes[place]:
            return tensor.detach()
        parts = self._at_home[unit.index]
        offset = int(tensor.storage_offset())
        return _Saved(unit, place, parts, tensor.size(), tensor.stride(), offset)

    def _unpack(self, packed: Any) -> Tensor:
        if not isinstance(packed, _Saved):
            kept: Tensor = packed
            return kept
        unit = packed.unit
        if unit.index in self._at_home:
            (module, key), *_ = unit.spots[packed.place]
            whole: Tensor = module._parameters[key].detach()  # type: ignore[union-attr]
        else:
            if self._again is None or self._again[0] is not unit:
                self._again = (unit, self.gathered(unit, packed.parts))
            whole = self._again[1][packed.place]
        return whole.as_strided(packed.size, packed.stride, packed.offset)

    def gathered(self, unit: Unit, parts: Sequence[Tensor]) -> list[Tensor]:
        """The whole parameters of a unit."""
        again, self._again = self._again, None
        if again is not None and again[0] is unit:
            return again[1]
        self._next("gather", unit)
        longest = max(sum(unit.lengths(rank)) for rank in range(self.size))
        own = torch.zeros(longest, dtype=unit.wire, device=self._device)
        flat = torch.cat([part.detach().to(unit.wire) for part in parts])
        own[: len(flat)] = flat
        rows = self._gathered(own)
        cut = [
            row[: sum(lengths)].split(lengths)
            for row, lengths in ((rows[rank], unit.lengths(rank)) for rank in range(self.size))
        ]
        placed = enumerate(zip(unit.places, unit.dtypes, strict=True))
        return [place.join([row[i] for row in cut]).to(dtype) for i, (place, dtype) in placed]

    def scattered(self, unit: Unit, grads: Sequence[Tensor | None]) -> list[Tensor]:
        """The parts that lie here of the sum of all processes' gradients of a unit."""
        self._next("scatter", unit)
        longest = max(sum(unit.lengths(rank)) for rank in range(self.size))
        rows = torch.zeros((self.size, longest), dtype=unit.adding, device=self._device)
        for rank in range(self.size):
            ends = pairwise(accumulate(unit.lengths(rank), initial=0))
            for grad, place, (first, last) in zip(grads, unit.places, ends, strict=True):
                if grad is not None:
                    rows[rank, first:last] = place.cut(grad, rank)
        own = self._scattered(rows.view(-1))
        lengths = unit.lengths(self.rank)
        return list(own[: sum(lengths)].split(lengths))

    def _gathered(self, own: Tensor) -> Tensor:
        rows = own.new_empty((self.size, len(own)))
        _ALL_GATHER(rows.view(-1), own, group=self._group)
        return rows

    def _scattered(self, rows: Tensor) -> Tensor:
        own = rows.new_empty(len(rows) // self.size)
        _REDUCE_SCATTER(own, rows, group=self._group)
        return own


_ALL_GATHER: Any = getattr(dist, "all_gather_single", None) or getattr(
    dist, "all_gather_into_tensor", None
)
_REDUCE_SCATTER: Any = getattr(dist, "reduce_scatter_single", None) or getattr(
    dist, "reduce_scatter_tensor", None
)
"""Their names changed in torch 2.13."""


@dataclass(frozen=True, slots=True)
class _Saved:
    """A view of gathered weights, by where they come from."""

    unit: Unit
    place: int
    parts: Sequence[Tensor]
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


class _Gather(torch.autograd.Function):
    """The whole parameters of a unit from the parts here; the gradient is summed over processes."""

    @staticmethod
    def forward(ctx: Any, shards: Shards, unit: Unit, *parts: Tensor) -> tuple[Tensor, ...]:
        ctx.shards, ctx.unit = shards, unit
        ctx.dtypes = [part.dtype for part in parts]
        ctx.set_materialize_grads(False)
        whole = tuple(shards.gathered(unit, parts))
        trained = zip(whole, ctx.needs_input_grad[2:], strict=True)
        ctx.mark_non_differentiable(*(tensor for tensor, needs in trained if not needs))
        return whole

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        parts = ctx.shards.scattered(ctx.unit, grads)
        cast = (part.to(dtype) for part, dtype in zip(parts, ctx.dtypes, strict=True))
        return None, None, *cast


def shards_of(model: nn.Module) -> Shards | None:
    """What all processes of a sharded model need to measure it together; None for a whole one.

    Args:
        model: The live module.

    Raises:
        RefusedError: It is spread in a way that cannot be measured; says which and why.
    """
    return Shards(model) if is_spread(model) else None
