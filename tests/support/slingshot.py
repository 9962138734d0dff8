"""Record slingshots: `python tests/support/slingshot.py` writes tests/golden/slingshot.npz.

Addition modulo 11, 60 % of the pairs, a ReLU network of 64 + 64 units, full-batch AdamW with rate
0.03 and no weight decay in float32: long after the fit the loss shoots up by six dex, about steps
640 and 10 040 (Thilak et al. 2022, "The slingshot mechanism"). Two minutes on one core; another
version of torch may shoot at other steps.
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn

GOLDEN = Path(__file__).parents[1] / "golden" / "slingshot.npz"
MODULUS, WIDTH, SHARE, RATE, STEPS = 11, 64, 0.6, 0.03, 12_000


def record() -> np.ndarray:
    """Training loss (nats) before each step."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    pairs = torch.cartesian_prod(torch.arange(MODULUS), torch.arange(MODULUS))
    chosen = pairs[torch.randperm(MODULUS**2)[: int(SHARE * MODULUS**2)]]
    inputs = nn.functional.one_hot(chosen, MODULUS).float().flatten(1)
    targets = chosen.sum(1) % MODULUS
    net = nn.Sequential(
        nn.Linear(2 * MODULUS, WIDTH), nn.ReLU(),
        nn.Linear(WIDTH, WIDTH), nn.ReLU(),
        nn.Linear(WIDTH, MODULUS),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=0.0)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(inputs), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return np.array(losses, dtype=np.float32)


if __name__ == "__main__":
    np.savez_compressed(GOLDEN, loss=record())
