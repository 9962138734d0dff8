"""Models from the command line: factories, checkpoints, and what is wrong with them."""

import sys
import types

import pytest
import torch
from torch import nn

from phasewatch.monitor.core.errors import ConfigError, UnknownNameError
from phasewatch.monitor.sampling.factory import load_checkpoint, load_subject

SOURCE = """
import torch
from torch import nn

def good():
    def loss(model, batch):
        return (model(batch) ** 2).sum(1)
    return nn.Linear(2, 1), [torch.ones(5, 2)], loss, 5

def pair():
    return nn.Linear(2, 1), [torch.ones(5, 2)]

def mapping():
    return {"model": nn.Linear(2, 1)}

def with_model(model): ...

def no_model():
    return "model", [1], print, 5

def no_batches():
    return nn.Linear(2, 1), [], print, 5

def no_loss():
    return nn.Linear(2, 1), [1], None, 5

def no_count():
    return nn.Linear(2, 1), [1], print, 5.0

def fails():
    raise FileNotFoundError("data.csv")

number = 3
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with the module `my_probe`."""
    (tmp_path / "my_probe.py").write_text(SOURCE, encoding="utf-8")
    (tmp_path / "my_broken.py").write_text("import no_such_thing\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in ("my_probe", "my_broken"):
        sys.modules.pop(name, None)


def test_a_factory_in_the_working_directory_is_called(here):
    subject = load_subject("my_probe:good")
    assert isinstance(subject.model, nn.Linear)
    assert (len(subject.batches), subject.n_samples) == (1, 5)
    assert subject.loss_fn(subject.model, subject.batches[0]).shape == (5,)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("my_probe", "must be module:function"),
        (":good", "must be module:function"),
        ("my_probe:", "must be module:function"),
        ("no_such_probe:good", "cannot be imported: ModuleNotFoundError: .*modules are looked for"),
        ("my_broken:good", "'my_broken' .* No module named 'no_such_thing'"),
        ("my_probe:fails", "raised FileNotFoundError: data.csv"),
        ("my_probe:with_model", "raised TypeError: .*takes no arguments and returns"),
        ("my_probe:pair", "returned a tuple of 2; .*returns .model, batches, loss_fn, n_samples."),
        ("my_probe:mapping", "returned a dict; "),
        ("my_probe:no_model", "model of factory .* is 'model'; it must be a torch.nn.Module"),
        ("my_probe:no_batches", "batches of factory .* is \\[\\]; .*at least one batch"),
        ("my_probe:no_loss", "loss_fn of factory .* is None; it must be a function"),
        ("my_probe:no_count", "n_samples of factory .* is 5.0; it must be an integer"),
    ],
)
def test_a_wrong_factory_is_told_with_what_is_right(here, factory, message):
    with pytest.raises(ConfigError, match=message):
        load_subject(factory)


@pytest.mark.parametrize("name", ["god", "number"])
def test_a_missing_function_is_told_with_those_there_are(here, name):
    with pytest.raises(UnknownNameError, match=f"{name!r}.*; known: fails, good, mapping"):
        load_subject(f"my_probe:{name}")


# ---- checkpoints


def network(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def equal(left, right):
    ours, theirs = left.state_dict(), right.state_dict()
    return all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_state_dict_is_loaded(tmp_path):
    source, target = network(1), network(2)
    torch.save(source.state_dict(), tmp_path / "w.pt")
    assert not equal(source, target)
    load_checkpoint(target, tmp_path / "w.pt")
    assert equal(source, target)


def test_a_lightning_checkpoint_is_loaded_and_its_prefix_cut_off(tmp_path):
    source, target = network(1), network(2)
    state = {f"model.{key}": value for key, value in source.state_dict().items()}
    content = {"state_dict": {**state, "metric.total": torch.zeros(1)}, "epoch": 3}
    torch.save(content, tmp_path / "last.ckpt")
    load_checkpoint(target, tmp_path / "last.ckpt", prefix="model.")
    assert equal(source, target)


def test_safetensors_are_read_by_their_own_library(tmp_path, monkeypatch):
    source, target = network(1), network(2)
    module = types.ModuleType("safetensors.torch")
    module.load_file = lambda path: source.state_dict() if path.name == "w.safetensors" else {}
    monkeypatch.setitem(sys.modules, "safetensors", types.ModuleType("safetensors"))
    monkeypatch.setitem(sys.modules, "safetensors.torch", module)
    load_checkpoint(target, tmp_path / "w.safetensors")
    assert equal(source, target)


def test_without_that_library_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ConfigError, match="pip install safetensors"):
        load_checkpoint(network(), tmp_path / "w.safetensors")


def test_keys_that_do_not_match_are_shown_with_the_prefix_that_would(tmp_path):
    state = {f"net.{key}": value for key, value in network().state_dict().items()}
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ConfigError) as caught:
        load_checkpoint(network(), tmp_path / "w.pt")
    message = str(caught.value)
    assert "missing in the file: 0.weight, 0.bias, 2.weight, 2.bias" in message
    assert "unknown to the model: net.0.weight" in message
    assert message.endswith("With --prefix net. they would")


def test_a_key_too_many_is_refused_too(tmp_path):
    torch.save({**network().state_dict(), "more": torch.zeros(1)}, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match="unknown to the model: more") as caught:
        load_checkpoint(network(), tmp_path / "w.pt")
    assert "missing" not in str(caught.value)
    assert "--prefix" not in str(caught.value)


def test_another_shape_is_shown(tmp_path):
    torch.save({**network().state_dict(), "0.bias": torch.zeros(7)}, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match=r"does not fit the model: (?s:.*)0\.bias"):
        load_checkpoint(network(), tmp_path / "w.pt")


def test_a_prefix_that_no_key_has_is_told(tmp_path):
    torch.save(network().state_dict(), tmp_path / "w.pt")
    with pytest.raises(ConfigError, match=r"prefix is 'net.*it has 0\.weight, 0\.bias"):
        load_checkpoint(network(), tmp_path / "w.pt", prefix="net.")


class Anything:
    """An object that weights_only will not unpickle."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": Anything()}, "will not be unpickled; save model.state_dict"),
        ({"epoch": 3, "weights": {}}, "holds epoch, weights; it must be a state_dict"),
        ([torch.zeros(1)], "holds list; it must be a state_dict"),
    ],
)
def test_what_is_no_state_dict_is_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match=message):
        load_checkpoint(network(), tmp_path / "w.pt")


def test_a_missing_or_damaged_file_is_told(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_checkpoint(network(), tmp_path / "none.pt")
    (tmp_path / "w.pt").write_bytes(b"PK\x03\x04 damaged")
    with pytest.raises(ConfigError, match=r"w\.pt"):
        load_checkpoint(network(), tmp_path / "w.pt")
