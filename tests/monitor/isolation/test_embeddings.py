"""Embeddings with `max_norm` on a copy: torch's function, without its writing in place."""

import copy

import pytest
import torch
from torch import nn

from phasewatch.monitor.isolation.embeddings import prepare_embedding

INDICES = torch.tensor([[0, 1, 2], [3, 3, 4]])


def _pair(**options):
    torch.manual_seed(0)
    live = nn.Embedding(5, 4, dtype=torch.float64, **options)
    copied = copy.deepcopy(live)
    prepare_embedding(copied)
    return live, copied


@pytest.mark.parametrize("norm_type", [1.0, 2.0])
def test_rows_come_out_as_torch_gives_them_and_the_weights_stay(norm_type):
    live, copied = _pair(max_norm=1.5, norm_type=norm_type, padding_idx=1)
    before = copied.weight.detach().clone()
    assert torch.allclose(copied(INDICES), live(INDICES), rtol=0, atol=1e-12)
    assert torch.equal(copied.weight, before)
    assert not torch.equal(live.weight, before)  # or the case would show nothing


def test_the_gradient_is_that_of_the_function():
    _, copied = _pair(max_norm=1.5)

    def rows(weight):
        return torch.func.functional_call(copied, {"weight": weight}, (INDICES,))

    assert torch.autograd.gradcheck(rows, copied.weight.detach().clone().requires_grad_())


def test_the_gradient_is_dense():
    _, copied = _pair(sparse=True)
    copied(INDICES).sum().backward()
    assert not copied.weight.grad.is_sparse
