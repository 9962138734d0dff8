"""The Python on the pages runs as it stands, over small things of the names it takes as given."""

from __future__ import annotations

import ast
import functools
import re
import warnings
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = [
    pytest.param(code, id=f"{page.name}-{number}")
    for page in PAGES
    for number, code in enumerate(BLOCK.findall(page.read_text(encoding="utf-8")))
]
NOT_RUN = {
    "MyDetector": "the detector is the reader's own, and judging one takes minutes",
    "TransitionCallback": "transformers is not installed here: `make hf` tests it",
    "full_tensor": "takes several processes: tests/support/sharded_worker.py runs this loop",
}
"""What a block may hold that keeps it from running; its imports are still tried."""


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)

    def forward(self, x):
        return self.layer(x)

    def training_step(self, batch, batch_idx):
        loss = torch.nn.functional.mse_loss(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", torch.nn.functional.mse_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def given():
    """What the pages take as given."""
    torch.manual_seed(0)
    data = torch.utils.data.TensorDataset(torch.randn(64, 3), torch.randn(64, 1))
    loader = torch.utils.data.DataLoader(data, batch_size=16)
    model = Net()
    return {
        "model": model,
        "train_loader": loader,
        "val_loader": loader,
        "loader": [tuple(batch) for batch in loader],
        "batches": [tuple(batch) for batch in loader],
        "loss_fn": lambda model, batch: ((model(batch[0]) - batch[1]) ** 2).mean(dim=1),
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.01),
        "steps": np.arange(400),
        "losses": np.where(np.arange(400) < 200, 2.0, 0.1),
    }


@pytest.mark.parametrize("code", BLOCKS)
def test_the_block_runs(code, tmp_path, monkeypatch):
    reason = next((reason for name, reason in NOT_RUN.items() if name in code), None)
    tree = ast.parse(code)
    if reason is not None:
        tree.body = [
            node
            for node in tree.body
            if isinstance(node, (ast.Import, ast.ImportFrom)) and "huggingface" not in code
        ]
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    monkeypatch.chdir(tmp_path)
    short = functools.partial(
        pl.Trainer, max_epochs=1, accelerator="cpu", enable_progress_bar=False
    )
    monkeypatch.setattr(pl, "Trainer", short)
    names = {"Trainer": short, **given()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice about workers
        exec("from phasewatch import TransitionMonitor", names)
        exec(compile(tree, "block", "exec"), names)


def test_there_are_blocks():
    assert len(BLOCKS) >= 8
