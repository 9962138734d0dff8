"""How one flat vector of weights is cut into named parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from phasewatch.monitor.core.errors import RefusedError

PREFIX = "model."


@dataclass(frozen=True, slots=True)
class Layout:
    """How a flat vector of d numbers is cut into named parameters.

    Attributes:
        names: Parameter names, as the model knows them.
        shapes: Their shapes.
        dtypes: Their training dtypes.
        sizes: Their numbers of elements; they sum to d.
        state_dtype: dtype of the flat vector: fp32, or wider where the parameters are.
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    dtypes: tuple[torch.dtype, ...]
    sizes: tuple[int, ...]
    state_dtype: torch.dtype

    @classmethod
    def of(cls, model: nn.Module, params: Mapping[str, Tensor]) -> Layout:
        """Layout of `params`, with the dtypes that the parameters have in `model`."""
        declared = dict(model.named_parameters())
        unknown = sorted(set(params) - set(declared))
        if unknown:
            raise RefusedError(f"parameters {unknown} are not in the model; it has {[*declared]}")
        dtypes = tuple(declared[name].dtype for name in params)
        odd = sorted({str(dtype) for dtype in dtypes if not dtype.is_floating_point})
        if odd:
            raise RefusedError(
                f"parameters of dtype {', '.join(odd)} cannot be sampled; leave them out with "
                "parameters="
            )
        widest = torch.float32
        for tensor in params.values():
            widest = torch.promote_types(widest, tensor.dtype)
        return cls(
            names=tuple(params),
            shapes=tuple(tensor.shape for tensor in params.values()),
            dtypes=dtypes,
            sizes=tuple(tensor.numel() for tensor in params.values()),
            state_dtype=widest,
        )

    @property
    def num_parameters(self) -> int:
        """Number of parameters d."""
        return sum(self.sizes)

    def flatten(self, params: Mapping[str, Tensor]) -> Tensor:
        """One new vector of shape (d,)."""
        parts = [params[name].detach().reshape(-1).to(self.state_dtype) for name in self.names]
        return torch.cat(parts)

    def unflatten(self, flat: Tensor) -> dict[str, Tensor]:
        """Parameters by prefixed name, in their training dtypes. `flat` is (d,) or (chains, d).

        They are views or casts, never leaves: autocast caches leaves only, so it can never serve
        the weights of an earlier step.
        """
        cut = zip(self.cut(flat).items(), self.dtypes, strict=True)
        return {PREFIX + name: part.to(dtype) for (name, part), dtype in cut}

    def adopt(self, parts: Mapping[str, Tensor], like: Tensor) -> Tensor:
        """Flat vectors of the parts that are cut from others; zero where there is none that fits.

        Args:
            parts: By name, with or without a leading dimension of chains.
            like: The flat vectors they were cut from, (d',) or (chains, d').
        """
        lead = like.shape[:-1]
        pieces = []
        for name, shape, size in zip(self.names, self.shapes, self.sizes, strict=True):
            part = parts.get(name)
            if part is None or part.shape != lead + shape:
                part = like.new_zeros(lead + shape)
            pieces.append(part.reshape(*lead, size))
        return torch.cat(pieces, dim=-1)

    def cut(self, flat: Tensor) -> dict[str, Tensor]:
        """Views of `flat`, (d,) or (chains, d), by parameter name."""
        lead = flat.shape[:-1]
        parts = zip(self.names, flat.split(self.sizes, dim=-1), self.shapes, strict=True)
        return {name: part.view(lead + shape) for name, part, shape in parts}
