"""What a loss averages over: counted, tried on a cut, and told."""

from collections import UserDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from phasewatch.monitor.core.estimates import EstimateStatus
from phasewatch.monitor.isolation.batches import count_samples, leading_size
from phasewatch.monitor.sampling import SamplerConfig, estimate_llc
from phasewatch.monitor.sampling.terms import candidates, counted, halves, joined

V, D, N, T = 6, 3, 48, 12
IGNORED = -100


class Reader(nn.Module):
    """Guesses the next letter from the last."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(V, D)
        self.out = nn.Linear(D, V)

    def forward(self, letters):
        return self.out(self.embed(letters))


def mean_loss(model, batch):
    return F.cross_entropy(model(batch[0]).reshape(-1, V), batch[1].reshape(-1))


def each_loss(model, batch):
    losses = F.cross_entropy(model(batch[0]).reshape(-1, V), batch[1].reshape(-1), reduction="none")
    return losses[batch[1].reshape(-1) != IGNORED]


def sum_and_count(model, batch):
    losses = each_loss(model, batch)
    return losses.sum(), torch.tensor(len(losses))


@pytest.fixture(scope="module")
def letters():
    """A reader at its minimum; half of the rows are nearly all masked."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.cat([torch.full((N // 2,), 2), torch.full((N // 2,), T)])
    x = torch.randint(0, V, (N, T), generator=generator)
    chain = torch.softmax(2 * torch.randn(V, V, generator=generator), -1)
    y = torch.multinomial(chain[x.reshape(-1)], 1, generator=generator).view(N, T)
    y = torch.where(torch.arange(T)[None] < lengths[:, None], y, torch.tensor(IGNORED))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Reader().double()  # rounding would part the chains of one cut from another's
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        value = mean_loss(model, (x, y))
        value.backward()
        return value

    optimizer.step(closure)
    return model, x, y


def cut(x, y, size=N // 4):
    return [(x[i : i + size], y[i : i + size]) for i in range(0, N, size)]


def measured(model, batches, loss, y, **changes):
    config = SamplerConfig(engine="loop", **{"num_draws": 48, "max_draws": 0} | changes)
    return estimate_llc(model, batches, loss, n_samples=int((y != IGNORED).sum()), config=config)


def test_ignored_labels_are_not_counted_and_a_cut_changes_nothing(letters):
    model, x, y = letters
    whole = measured(model, [(x, y)], each_loss, y)
    for loss in (mean_loss, each_loss, sum_and_count):
        found = measured(model, cut(x, y), loss, y)
        assert found.init_loss == pytest.approx(whole.init_loss, rel=1e-5)
        assert found.lambda_hat == pytest.approx(whole.lambda_hat, rel=1e-3)
    assert measured(model, cut(x, y), mean_loss, y).counted == (
        "labels other than -100, tried on a cut"
    )
    assert measured(model, cut(x, y), sum_and_count, y).counted == "counts that the loss gives"


@pytest.mark.slow
def test_cut_and_uncut_are_both_ok_and_agree(letters):
    model, x, y = letters
    count = int((y != IGNORED).sum())
    whole = estimate_llc(model, [(x, y)], mean_loss, n_samples=count)
    parts = estimate_llc(model, cut(x, y), mean_loss, n_samples=count)
    assert whole.status is parts.status is EstimateStatus.OK
    assert parts.lambda_hat == pytest.approx(whole.lambda_hat, rel=0.03)


def test_a_batch_that_is_all_masked_is_left_out(letters):
    model, x, y = letters
    masked = y.clone()
    masked[12:24] = IGNORED
    kept = torch.cat([torch.arange(12), torch.arange(24, N)])
    for loss in (mean_loss, each_loss):
        found = measured(model, cut(x, masked), loss, masked)
        rest = measured(model, [(x[kept], masked[kept])], loss, masked)
        assert found.init_loss == pytest.approx(rest.init_loss, rel=1e-5)
        assert "1 batches without a term left out" in found.counted or loss is mean_loss


def test_a_loss_that_no_count_explains_is_told_and_not_ok(letters):
    """The largest loss of a batch is no mean of its parts."""
    model, x, y = letters

    def worst(model, batch):
        return each_loss(model, batch).max()

    found = measured(model, cut(x, y), worst, y)
    assert found.status is not EstimateStatus.OK
    assert "how the probe is cut into batches changes the loss" in found.reason
    assert "how the probe is cut" not in measured(model, [(x, y)], worst, y).reason


def test_a_sum_is_named(model, data, loss, quick):
    found = estimate_llc(
        model, [data], lambda m, b: loss(m, b).sum(), n_samples=200, config=quick()
    )
    assert found.status is not EstimateStatus.OK
    assert found.reason.startswith("the loss is a sum over its samples")
    mended = estimate_llc(
        model, [data], lambda m, b: loss(m, b).mean(), n_samples=200, config=quick()
    )
    assert "sum" not in mended.reason


def test_a_large_constant_is_named_and_float64_mends_it(model, data, loss, quick):
    def lifted(model, batch):
        return loss(model, batch).mean() + 1e6

    found = estimate_llc(model, [data], lifted, n_samples=200, config=quick())
    assert found.status is not EstimateStatus.OK
    assert "take the constant out of the loss" in found.reason
    double = tuple(part.double() for part in data)
    mended = estimate_llc(model.double(), [double], lifted, n_samples=200, config=quick())
    assert "constant" not in mended.reason


class Graphs(UserDict):
    """As a batch of graphs looks: its tensors lead with nodes."""

    def __init__(self, x, of, y):
        super().__init__(x=x, of=of, y=y)
        self.num_graphs = len(y)


def test_graphs_are_counted_by_graphs():
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(2, 20, (300,), generator=generator).sort().values
    y = torch.randn(300, 1, generator=generator)
    nodes = [torch.randn(int(size), 4, generator=generator) for size in sizes]

    def batch(first, last):
        of = torch.repeat_interleave(torch.arange(last - first), sizes[first:last])
        return Graphs(torch.cat(nodes[first:last]), of, y[first:last])

    def pooled(graphs):
        total = torch.zeros(graphs.num_graphs, 4).index_add(0, graphs["of"], graphs["x"])
        return total / torch.bincount(graphs["of"], minlength=graphs.num_graphs)[:, None]

    model = nn.Linear(4, 1)
    whole = batch(0, 300)
    rows = torch.cat([pooled(whole), torch.ones(300, 1)], dim=1)
    solution = torch.linalg.lstsq(rows, y).solution
    with torch.no_grad():
        model.weight.copy_(solution[:4].T)
        model.bias.copy_(solution[4])

    def loss(model, graphs):
        return 5.0 * F.mse_loss(model(pooled(graphs)), graphs["y"])

    assert leading_size(whole) == count_samples(whole) == 300
    one, two = (
        estimate_llc(
            model, batches, loss, n_samples=300, config=SamplerConfig(num_draws=64, max_draws=0)
        )
        for batches in ([whole], [batch(0, 220), batch(220, 300)])
    )
    assert two.init_loss == pytest.approx(one.init_loss, rel=1e-5)
    assert two.counted == "graphs (num_graphs), not tried"


def test_ways_to_count():
    marked = torch.tensor([[1, 2, IGNORED], [3, IGNORED, IGNORED]])
    assert counted([(marked, marked)])[0] == 3
    shifted = candidates([{"input_ids": marked.abs(), "labels": marked}])[1]
    assert shifted.of({"labels": marked}) == 1
    plain = (torch.zeros(5, 2), torch.zeros(5))
    assert counted([plain, plain])[0] == 10
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert counted([{"x": torch.zeros(2, 3), "attention_mask": mask}])[0] == 3


def test_halves_and_their_joint():
    batch = {"x": torch.arange(10).view(5, 2), "scale": torch.tensor(3.0)}
    first, second = halves(batch)
    assert (len(first["x"]), len(second["x"])) == (2, 3)
    assert torch.equal(joined(first, second)["x"], batch["x"])
    assert halves({"x": torch.zeros(1, 2)}) is None
    assert joined((torch.zeros(2, 3),), (torch.zeros(2, 4),)) is None
