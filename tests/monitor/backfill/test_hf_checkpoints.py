"""Checkpoint folders of transformers, of which tied weights are saved once."""

import json

import pytest

pytest.importorskip("transformers", reason="run by `make hf`")

import torch

from phasewatch.monitor.backfill.checkpoints import find_checkpoints
from phasewatch.monitor.core.errors import ConfigError
from phasewatch.monitor.sampling.factory import load_checkpoint
from support.hf import gpt

pytestmark = [pytest.mark.hf, pytest.mark.filterwarnings("ignore")]


def test_the_folder_of_a_trainer_is_read_with_its_tied_weights(tmp_path):
    torch.manual_seed(1)
    saved = gpt()
    for step in (20, 100):
        folder = tmp_path / f"checkpoint-{step}"
        saved.save_pretrained(folder)
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    found = find_checkpoints([str(tmp_path / "checkpoint-*")])
    assert [checkpoint.step for checkpoint in found] == [20, 100]
    model = gpt()
    load_checkpoint(model, found[0].path)
    for key, value in saved.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key
    assert model.lm_head.weight is model.transformer.wte.weight


def test_weights_in_several_files_are_refused_with_what_is_there(tmp_path):
    folder = tmp_path / "checkpoint-20"
    folder.mkdir()
    (folder / "model-00001-of-00002.safetensors").touch()
    with pytest.raises(ConfigError, match="model-00001-of-00002"):
        find_checkpoints([str(folder)])
