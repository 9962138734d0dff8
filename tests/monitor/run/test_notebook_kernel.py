"""The table in a real kernel of Jupyter: one display that follows the training."""

from __future__ import annotations

import pytest

pytest.importorskip("ipykernel", reason="run by `make trackers`")
pytest.importorskip("nbclient", reason="run by `make trackers`")

import nbclient
import nbformat

pytestmark = [pytest.mark.trackers, pytest.mark.filterwarnings("ignore")]

BEGIN = """
import hashlib, time, torch, lightning.pytorch as pl
from phasewatch.callbacks import TransitionMonitor

class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)
    def training_step(self, batch, batch_idx):
        time.sleep(0.02)
        loss = torch.nn.functional.mse_loss(self.layer(batch[0])[:, 0], batch[1])
        self.log("my_loss", loss)
        return loss
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)

def fit(name, **settings):
    pl.seed_everything(1)
    data = torch.utils.data.TensorDataset(torch.randn(64, 3), torch.randn(64))
    net = Net()
    monitor = TransitionMonitor(
        {"run_name": name, "exporter": {"enabled": False}, "every_n_steps": 50,
         "observables": ["weight_norm"], **settings}
    )
    pl.Trainer(
        accelerator="cpu", max_steps=200, callbacks=[monitor], logger=False, num_sanity_val_steps=0,
        enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False,
    ).fit(net, torch.utils.data.DataLoader(data, batch_size=8))
    weights = torch.cat([p.detach().flatten() for p in net.parameters()])
    assert monitor.watch.health.sink_failures["LiveTable"] == 0
    return hashlib.sha256(weights.numpy().tobytes()).hexdigest()
"""


class Following(nbclient.NotebookClient):
    """Keeps every message about a table of ours, as a front end gets them."""

    def process_message(self, msg, cell, cell_index):
        display = msg["content"].get("transient", {}).get("display_id", "")
        if display.startswith("phasewatch-"):
            self.seen.append((cell_index, msg["msg_type"], msg["content"]))
        return super().process_message(msg, cell, cell_index)


def test_a_fit_in_a_notebook_shows_one_table_that_follows_it(tmp_path):
    cells = [BEGIN, "print(fit('shown'))", "print(fit('hidden', notebook=False))"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    client = Following(
        notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.seen = []
    client.execute()

    kinds = [kind for cell, kind, _ in client.seen if cell == 1]
    assert kinds[0] == "display_data"
    assert {*kinds[1:]} == {"update_display_data"}
    assert len(kinds) >= 3, "during training, and at its end"
    assert len({said["transient"]["display_id"] for _, _, said in client.seen}) == 1
    assert "running" in client.seen[0][2]["data"]["text/html"]
    assert not [cell for cell, _, _ in client.seen if cell == 2], "the setting leaves it out"

    shown, hidden = notebook.cells[1].outputs, notebook.cells[2].outputs
    (table,) = [o for o in shown if "shown" in o.get("data", {}).get("text/html", "")]
    assert "finished, step 200" in table["data"]["text/html"]
    assert "<td>my_loss</td>" in table["data"]["text/html"]
    assert "finished at step 200" in table["data"]["text/plain"]

    def said(outputs):
        return [o["text"].split()[-1] for o in outputs if o.get("name") == "stdout"][-1]

    assert len(said(shown)) == 64
    assert said(shown) == said(hidden), "training is the same bit for bit"
