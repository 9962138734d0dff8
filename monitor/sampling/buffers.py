"""Passes over the chains' buffers, a block at a time."""

from __future__ import annotations

import torch
from torch import Tensor


def row_dots(left: Tensor, right: Tensor) -> Tensor:
    """Scalar products of the rows, in double: energies are compared with them."""
    product: Tensor = torch.linalg.vecdot(left, right)
    return product.cpu().double()


BLOCK, ACCELERATOR_BLOCK = 1 << 17, 1 << 24
"""Numbers updated at a time: few enough to stay in a processor's cache through all updates, and to
make their noise small beside the chains."""


def block_size(buffer: Tensor) -> int:
    """Numbers in a block."""
    return BLOCK if buffer.device.type == "cpu" else ACCELERATOR_BLOCK


def blocks(*buffers: Tensor) -> list[tuple[Tensor, ...]]:
    """The buffers, cut alike."""
    size = block_size(buffers[0])
    if buffers[0].numel() <= size:
        return [buffers]
    return list(zip(*(buffer.reshape(-1).split(size) for buffer in buffers), strict=True))
