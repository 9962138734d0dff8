"""How the lottery-ticket example prunes and trains again, against the plain way of doing it."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("lottery_tickets")


@pytest.fixture
def data() -> tuple[torch.Tensor, torch.Tensor]:
    pairs = torch.cartesian_prod(torch.arange(7), torch.arange(7))
    return pairs, pairs.sum(dim=1) % 7


def test_tickets_trained_side_by_side_are_as_if_trained_alone(example, data) -> None:
    task = example.FAST
    model = example.new_model(task, 0)
    start = example.weights_of(model)
    masks = {"large": example.magnitude(start), "any": example.at_random(start, 3)}
    steps, curves = example.rewind_and_train(model, start, masks, task, data, data)
    assert steps == list(range(10, 61, 10))
    for name, mask in masks.items():
        alone = example.new_model(task, 0)
        parameters = dict(alone.named_parameters())
        optimizer, warmup = example.optimizer_for(list(parameters.values()), task)
        found = []
        for step in range(1, task.steps + 1):
            with torch.no_grad():
                for matrix, keep in mask.items():
                    parameters[matrix].mul_(keep)
            optimizer.zero_grad()
            example.loss_fn(alone, data).backward()
            optimizer.step()
            warmup.step()
            if step % task.val_every == 0:
                pruned = {n: p * mask.get(n, torch.ones(())) for n, p in parameters.items()}
                logits = torch.func.functional_call(alone, pruned, (data[0],))
                found.append(float(example.accuracy(logits, data[1])))
        assert curves[name] == pytest.approx(found, abs=0.03), name  # of one pair in 49
        assert found[-1] > found[0] + 0.1


def test_every_ticket_keeps_the_same_number_of_weights(example, data) -> None:
    model = example.new_model(example.FAST, 0)
    weights = example.weights_of(model)
    num = sum(w.numel() for w in example.matrices(weights).values())
    for masks in (
        example.magnitude(weights),
        example.at_random(weights, 0),
        example.snip(model, data),
        example.synflow(model),
    ):
        assert masks.keys() == {"embed.weight", "hidden.weight", "unembed.weight"}
        assert sum(int(m.sum()) for m in masks.values()) == pytest.approx(example.KEEP * num, abs=1)
        assert all(m.any() for m in masks.values())


def test_snip_keeps_what_the_loss_depends_on(example, data) -> None:
    """|w ∂L/∂w| is how fast the loss changes as the weight is scaled."""
    model = example.new_model(example.FAST, 0).double()
    masks = example.snip(model, data)
    weights = example.weights_of(model)

    def loss_with(name: str, index: int, factor: float) -> float:
        changed = weights[name].clone()
        changed.view(-1)[index] *= factor
        logits = torch.func.functional_call(model, {**weights, name: changed}, (data[0],))
        return float(nn.functional.cross_entropy(logits, data[1]))

    kept, pruned = [], []
    for name, mask in masks.items():
        for index in range(0, mask.numel(), 7):
            change = loss_with(name, index, 1.001) - loss_with(name, index, 0.999)
            (kept if mask.view(-1)[index] else pruned).append(abs(change))
    assert len(kept) > 10
    assert min(kept) > max(pruned) * 0.99


def test_synflow_keeps_the_weights_through_which_most_flows(example) -> None:
    """Of a network of equal weights, the outputs of the hidden unit with the strongest inputs."""
    model = example.new_model(example.FAST, 0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.fill_(1.0) if name.endswith("weight") else p.zero_()
        p = model.hidden.weight
        p[:] = torch.linspace(1.0, 2.0, len(p))[:, None]
    kept = example.synflow(model)["unembed.weight"].any(dim=0).tolist()
    assert kept == sorted(kept)
    assert 0 < sum(kept) < len(kept)


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_only_a_ticket_taken_after_generalisation_is_sooner_than_the_network(
    example, tmp_path, capsys
) -> None:
    example.main(["--json", "--out", str(tmp_path)])
    facts = json.loads(capsys.readouterr().out)["facts"]
    taken = facts.pop("tickets taken at steps")
    assert taken["before"] < taken["at"] / 5
    reached = {name: one["generalises at step"] for name, one in facts.items()}
    whole = reached.pop("whole network")
    assert reached.pop("magnitude, after generalisation") < 0.9 * whole
    assert all(step is None or step > 1.1 * whole for step in reached.values()), reached
    for name in ("magnitude, before generalisation", "SNIP", "random"):
        assert facts[name]["final accuracy"] < 0.1
