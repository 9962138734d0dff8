"""Refined learning coefficients: which part of the weights the chains may move.

A weight-restricted (refined) LLC samples some coordinates only, and keeps the rest at w* (Wang et
al. 2024, arXiv 2410.02984, §2.2). A restriction is given as

- a name or shell pattern of parameters: "blocks.0.*";
- a module of the model: all its parameters;
- masks by parameter name: tensors that are true, or not zero, where a coordinate is sampled, and
  broadcast to the parameter's shape (`attention_heads` makes them);
- several names, patterns and modules in a list; None is all of them.
"""

from __future__ import annotations

import fnmatch
import glob
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from phasewatch.monitor.core.errors import RefusedError
from phasewatch.monitor.core.together import ALONE, Together, in_all, in_any
from phasewatch.monitor.sampling.layout import Layout

Selection = str | Sequence[str] | Mapping[str, Tensor] | None
"""Names or patterns, or masks by name; None is all."""

Restriction = Selection | nn.Module | Sequence[str | nn.Module]
"""A selection, or one that names modules of the live model."""


def resolve(model: nn.Module, restriction: Restriction) -> Selection:
    """Modules replaced by the names of their parameters.

    Raises:
        RefusedError: A module is not part of the model, or has no parameters.
    """
    if restriction is None or isinstance(restriction, (str, Mapping)):
        return restriction
    parts = [restriction] if isinstance(restriction, nn.Module) else restriction
    names: list[str] = []
    for part in parts:
        names += [part] if isinstance(part, str) else _names_in(model, part)
    return names


def _names_in(model: nn.Module, part: nn.Module) -> list[str]:
    wanted = set(part.parameters())
    names = [glob.escape(name) for name, p in model.named_parameters() if p in wanted]
    if not names:
        raise RefusedError(
            f"parameters= holds a {type(part).__name__} none of whose parameters belong to the "
            "measured model; give a submodule of it, or names"
        )
    return names


def names_of(params: Iterable[str], selection: Selection) -> list[str]:
    """Parameters that a selection touches, in the model's order.

    Args:
        params: Names of all parameters that could be sampled.
        selection: Which of them.

    Raises:
        RefusedError: A name or pattern matches nothing, or nothing is selected.
    """
    known = list(params)
    if selection is None:
        return known
    given = [selection] if isinstance(selection, str) else list(selection)
    chosen: set[str] = set()
    for pattern in given:
        if isinstance(selection, Mapping):
            matched = [name for name in known if name == pattern]
        else:
            matched = fnmatch.filter(known, pattern)
        if not matched:
            raise RefusedError(
                f"parameters= names {pattern!r}, which matches none of {', '.join(known)}"
            )
        chosen.update(matched)
    if not chosen:
        raise RefusedError("parameters= is empty; name at least one, or give None for all")
    return [name for name in known if name in chosen]


def mask_of(
    layout: Layout, selection: Selection, device: torch.device, together: Together = ALONE
) -> Tensor | None:
    """Ones where a coordinate of the flat vector is sampled, zeros elsewhere; None for all ones.

    Args:
        layout: How the flat vector is cut.
        selection: What is sampled.
        device: Where the mask shall be.
        together: The processes among which the coordinates are spread.

    Raises:
        RefusedError: A mask does not fit its parameter, or masks leave nothing.
    """
    chosen = set(names_of(layout.names, selection))
    masks = selection if isinstance(selection, Mapping) else {}
    parts = []
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        part = torch.full(shape, float(name in chosen), dtype=layout.state_dtype, device=device)
        if name in masks:
            part *= _fitting(name, masks[name], shape).to(part)
        parts.append(part.reshape(-1))
    mask = torch.cat(parts)
    if not in_any(together, bool(mask.any())):
        raise RefusedError(
            f"the masks of {', '.join(masks)} are zero everywhere: nothing is left to sample"
        )
    return None if in_all(together, bool(mask.all())) else mask


def here(selection: Selection, shapes: Mapping[str, torch.Size], together: Together) -> Selection:
    """A selection of which the masks are cut as the parameters are.

    Args:
        selection: What is sampled.
        shapes: Of the whole parameters.
        together: The processes among which they are spread.

    Raises:
        RefusedError: A mask does not fit its parameter.
    """
    if not isinstance(selection, Mapping) or not together.is_spread:
        return selection
    return {
        name: together.part(name, _fitting(name, mask, shapes[name])) if name in shapes else mask
        for name, mask in selection.items()
    }


def _fitting(name: str, mask: Tensor, shape: torch.Size) -> Tensor:
    try:
        return (mask != 0).expand(shape)
    except (RuntimeError, AttributeError, TypeError) as error:
        found = f"shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise RefusedError(
            f"the mask of {name!r} has {found}; it must be a tensor that broadcasts to the "
            f"parameter's shape {tuple(shape)}"
        ) from error


def attention_heads(
    model: nn.Module,
    name: str,
    num_heads: int | None = None,
    *,
    reads: Sequence[str] = (),
    writes: str = "",
) -> dict[str, dict[str, Tensor]]:
    """Masks of each head of one attention layer: what it reads with, and what it writes with.

    A head owns rows of the query, key and value maps, and columns of the output map. The output's
    bias belongs to no head.

    Args:
        model: The model.
        name: Name of the attention layer in it, as `named_modules` gives it.
        num_heads: Heads; may be left out for `nn.MultiheadAttention`.
        reads: Names of the linear layers below `name` whose rows are cut into heads; one that holds
            queries, keys and values on top of each other is cut in each third.
        writes: Name of the linear layer below `name` whose columns are cut into heads.

    Returns:
        By head, "<name>.head<i>": masks by parameter name, as `parameters=` takes them.

    Raises:
        RefusedError: The layer is not there, or cannot be cut into so many heads.

    Example:
        >>> import torch
        >>> model = torch.nn.ModuleDict({"attn": torch.nn.MultiheadAttention(8, 2)})
        >>> sorted(attention_heads(model, "attn"))
        ['attn.head0', 'attn.head1']
    """
    modules = dict(model.named_modules())
    if name not in modules:
        raise RefusedError(
            f"the model has no module {name!r}; it has {', '.join(filter(None, modules))}"
        )
    layer = modules[name]
    prefix = f"{name}." if name else ""
    if isinstance(layer, nn.MultiheadAttention):
        num_heads = layer.num_heads
        rows = ["in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias"]
        columns = "out_proj.weight"
    elif num_heads and reads and writes:
        rows = [f"{read}.{kind}" for read in reads for kind in ("weight", "bias")]
        columns = f"{writes}.weight"
    else:
        raise RefusedError(
            f"{name!r} is a {type(layer).__name__}; only nn.MultiheadAttention is known. Give "
            "num_heads=, reads= (names of its query, key and value layers) and writes="
        )
    params = dict(model.named_parameters())
    if prefix + columns not in params:
        raise RefusedError(f"{name!r} has no parameter {columns!r}")
    width = params[prefix + columns].shape[1]
    heads: dict[str, dict[str, Tensor]] = {f"{prefix}head{i}": {} for i in range(num_heads)}
    for row in rows:
        if prefix + row in params:
            parameter = params[prefix + row]
            for i, mask in enumerate(_cut(prefix + row, len(parameter), width, num_heads)):
                column = mask.view(-1, *[1] * (parameter.ndim - 1))
                heads[f"{prefix}head{i}"][prefix + row] = column
    for i, mask in enumerate(_cut(prefix + columns, width, width, num_heads)):
        heads[f"{prefix}head{i}"][prefix + columns] = mask.view(1, -1)
    return heads


def _cut(name: str, size: int, width: int, num_heads: int) -> list[Tensor]:
    """One boolean mask for each head over `size` rows, that hold all heads once or several times.

    Args:
        name: Whose rows, for the refusal.
        size: Rows.
        width: Rows of all heads together. Fewer are keys and values that heads share in groups.
        num_heads: Heads.
    """
    block = min(size, width)
    groups = num_heads * block // width
    if width % num_heads or size % block or not groups or num_heads % groups:
        raise RefusedError(f"{size} rows of {name!r} cannot be cut into {num_heads} heads")
    group = torch.arange(size) % block // (block // groups)
    return [group == head * groups // num_heads for head in range(num_heads)]
