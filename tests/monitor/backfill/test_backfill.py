"""Checkpoints measured afterwards: the same numbers as live, once each, in whatever order."""

import json

import numpy as np
import pytest
import torch

from phasewatch.monitor import Watch
from phasewatch.monitor.backfill.backfill import backfill
from phasewatch.monitor.backfill.checkpoints import find_checkpoints, step_of
from phasewatch.monitor.backfill.measuring import Block, Plan
from phasewatch.monitor.core.ending import RunState
from phasewatch.monitor.core.errors import ConfigError, UnreadableError
from phasewatch.monitor.sampling.factory import check_readable
from phasewatch.monitor.store.store import Store
from support.backfilled import CONFIG, factory, train

PLAN = Plan("support.backfilled:factory", CONFIG)


@pytest.fixture
def saved(tmp_path):
    """A live run of 40 steps, its store, and its four checkpoints."""
    folder = tmp_path / "checkpoints"
    _, batches, loss_fn, n_samples = factory()
    config = {**CONFIG, "store": str(tmp_path / "live.db"), "run_name": "live"}
    with Watch(config, probe=batches, loss_fn=loss_fn, n_samples=n_samples) as watch:
        train(
            folder,
            40,
            lambda step, net: torch.save(net.state_dict(), folder / f"step-{step}.pt"),
            watch,
        )
        history = {
            name: watch.history(name, include_unconverged=True) for name in ("llc", "weight_norm")
        }
    return folder, history


def filled(tmp_path, folder, pattern="*.pt", plan=PLAN, name="later", **more):
    with Store(tmp_path / "later.db") as store:
        done = backfill(store, name, plan, find_checkpoints([str(folder / pattern)]), **more)
        histories = {
            n: store.history(done.run_id, n, include_unconverged=True)
            for n in ("llc", "weight_norm")
        }
        return done, histories, store.run(done.run_id)


def equal(one, other):
    for name in one:
        for a, b in zip(one[name], other[name], strict=True):
            np.testing.assert_array_equal(a, b)


def agree(one, other):
    """Steps and what is exact are equal; what is sampled is so within its errors.

    Chains that begin anew know less of the curvature than those that have measured before.
    """
    for name in one:
        np.testing.assert_array_equal(one[name][0], other[name][0])
    np.testing.assert_array_equal(one["weight_norm"][1], other["weight_norm"][1])
    (_, first, error), (_, second, other_error) = one["llc"], other["llc"]
    assert (np.abs(first - second) <= 3 * np.hypot(error, other_error)).all()


def test_backfilled_numbers_are_those_of_the_live_run(tmp_path, saved):
    folder, live = saved
    done, later, run = filled(tmp_path, folder)
    assert live["llc"][0].tolist() == [10, 20, 30, 40]
    equal(live, later)
    assert (done.measured, done.known, run.state) == (4, 0, RunState.FINISHED)


def test_what_the_store_has_is_not_measured_again(tmp_path, saved):
    folder, live = saved
    filled(tmp_path, folder)
    done, later, run = filled(tmp_path, folder)
    assert (done.measured, done.known, run.attempt) == (0, 4, 1)
    equal(live, later)


def test_one_that_was_stopped_goes_on_where_it_was(tmp_path, saved, monkeypatch):
    folder, live = saved
    whole = Block.measure

    def dies(block, checkpoint):
        if checkpoint.step == 30:
            raise KeyboardInterrupt
        return whole(block, checkpoint)

    monkeypatch.setattr(Block, "measure", dies)
    with pytest.raises(KeyboardInterrupt):
        filled(tmp_path, folder)
    monkeypatch.undo()
    done, later, run = filled(tmp_path, folder)
    assert (done.measured, done.known, run.attempt) == (2, 2, 2)
    agree(live, later)


def test_a_checkpoint_that_comes_later_is_measured_alone_in_its_place(tmp_path, saved):
    folder, live = saved
    (folder / "step-20.pt").rename(tmp_path / "kept")
    filled(tmp_path, folder)
    (tmp_path / "kept").rename(folder / "step-20.pt")
    done, later, _ = filled(tmp_path, folder)
    assert (done.measured, done.known) == (1, 3)
    agree(live, later)


@pytest.mark.slow
def test_two_processes_give_the_same_numbers(tmp_path, saved):
    folder, live = saved
    seen = []
    done, later, _ = filled(tmp_path, folder, jobs=2, progress=lambda *count: seen.append(count))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert done.measured == 4
    agree(live, later)


def test_values_can_be_added_to_a_live_run_and_its_own_stay(tmp_path, saved):
    folder, _ = saved
    plan = Plan(PLAN.factory, {**CONFIG, "observables": ["effective_rank"]})
    with Store(tmp_path / "live.db") as store:
        done = backfill(store, "live", plan, find_checkpoints([str(folder / "*.pt")]))
        run = store.run("live")
        assert (run.attempt, done.measured) == (2, 4)
        assert store.history(run.id, "llc")[0].tolist() == [10, 20, 30, 40]
        assert any(name.startswith("effective_rank") for name in store.names(run.id))


def test_a_run_that_is_being_written_is_left_alone(tmp_path, saved):
    folder, _ = saved
    with Store(tmp_path / "later.db") as store:
        store.begin_run(name="later")
    with pytest.raises(ConfigError, match="is being written"):
        filled(tmp_path, folder)


def test_a_run_whose_name_only_begins_so_is_another(tmp_path, saved):
    folder, _ = saved
    with Store(tmp_path / "later.db") as store:
        other, attempt = store.begin_run(name="later-and-longer")
        store.end_run(other, attempt, RunState.FINISHED)
    done, _, run = filled(tmp_path, folder)
    assert (run.name, run.id == other, done.measured) == ("later", False, 4)


def test_a_damaged_checkpoint_ends_it_and_what_came_before_is_kept(tmp_path, saved):
    folder, _ = saved
    (folder / "step-30.pt").write_bytes(b"torn")
    with pytest.raises(ConfigError, match=r"step-30\.pt.* cannot be read"):
        filled(tmp_path, folder)
    with Store(tmp_path / "later.db", create=False) as store:
        run = store.run("later")
        assert (run.state, store.history(run.id, "weight_norm")[0].tolist()) == (
            RunState.FAILED, [10, 20],
        )  # fmt: skip


def test_what_needs_an_optimizer_step_is_refused_if_named_and_left_out_if_not(tmp_path, saved):
    folder, _ = saved
    named = Plan(PLAN.factory, {**CONFIG, "observables": ["gradient_norm"]})
    with pytest.raises(ConfigError, match=r"gradient_norm.*optimizer step"):
        filled(tmp_path, folder, plan=named)
    default = {key: value for key, value in CONFIG.items() if key != "observables"}
    done, later, _ = filled(tmp_path, folder, plan=Plan(PLAN.factory, default))
    assert done.measured == 4
    assert len(later["llc"][0]) == len(later["weight_norm"][0]) == 4


def test_what_remembers_is_measured_in_one_row_or_not_at_all(tmp_path, saved):
    folder, _ = saved
    plan = Plan(PLAN.factory, {**CONFIG, "observables": ["distance_from_init"]})
    with pytest.raises(ConfigError, match=r"distance_from_init.*--jobs 1"):
        filled(tmp_path, folder, plan=plan, jobs=2)
    done, _, _ = filled(tmp_path, folder, plan=plan)
    assert done.measured == 4
    assert filled(tmp_path, folder, plan=plan)[0].known >= 3  # at the first there is no distance


def test_every_kind_of_checkpoint_gives_the_same_numbers(tmp_path, saved):
    folder, live = saved
    states = {step: torch.load(folder / f"step-{step}.pt") for step in (10, 20, 30, 40)}
    kinds = tmp_path / "kinds"
    kinds.mkdir()
    prefixed = {f"model.{key}": value for key, value in states[10].items()}
    torch.save({"global_step": 10, "state_dict": prefixed, "epoch": 0}, kinds / "last.ckpt")
    plan = Plan(PLAN.factory, CONFIG, prefix="model.")
    filled(tmp_path, kinds, "*.ckpt", plan)
    huggingface = kinds / "checkpoint-20"
    huggingface.mkdir()
    torch.save(states[20], huggingface / "pytorch_model.bin")
    (huggingface / "trainer_state.json").write_text(json.dumps({"global_step": 20}))
    torch.save({"iteration": torch.tensor(30), "state_dict": states[30]}, kinds / "best.pth")
    torch.save(states[40], kinds / "epoch=3-step=40.pt")
    done, later, _ = filled(tmp_path, kinds, "[!l]*")
    assert (done.measured, done.known) == (3, 0)
    agree(live, later)


def test_safetensors_tell_their_step_in_their_head(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    path = tmp_path / "model.safetensors"
    safetensors.save_file(factory()[0].state_dict(), path, metadata={"step": "120"})
    assert step_of(path) == 120


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_file_that_is_not_all_there_cannot_be_read(tmp_path, kind):
    path = tmp_path / ("model.safetensors" if kind == "safetensors" else "model.pt")
    state = factory()[0].state_dict()
    if kind == "safetensors":
        pytest.importorskip("safetensors.torch").save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    check_readable(path)
    whole = path.read_bytes()
    for size in (0, 5, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(UnreadableError, match=r"model\."):
            check_readable(path)
    path.unlink()
    with pytest.raises(UnreadableError, match="No such file"):
        check_readable(path)


def test_a_checkpoint_without_a_step_is_told(tmp_path):
    torch.save(factory()[0].state_dict(), tmp_path / "best.pt")
    with pytest.raises(ConfigError, match=r"step of checkpoint .*best\.pt.* is not known"):
        find_checkpoints([str(tmp_path / "*.pt")])
    with pytest.raises(ConfigError, match="no checkpoint matches"):
        find_checkpoints([str(tmp_path / "*.ckpt")])


def test_the_command_measures_and_says_what_it_did(tmp_path, saved, phasewatch):
    folder, live = saved
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({k: v for k, v in CONFIG.items() if k != "observables"}))
    arguments = [
        "backfill", "support.backfilled:factory", folder / "*.pt", "--run", "later",
        "--observables", "llc,weight_norm", "--config", config, "--store", tmp_path / "later.db",
    ]  # fmt: skip
    code, out, err = phasewatch(*arguments)
    assert (code, err.strip()) == (0, "")
    assert "4 of 4 checkpoints measured, 0 were known; steps 10 to 40" in out
    code, out, _ = phasewatch(*arguments, "--json")
    assert (code, json.loads(out)["known"]) == (0, 4)
    with Store(tmp_path / "later.db", create=False) as store:
        np.testing.assert_array_equal(
            store.history(store.run("later").id, "llc", include_unconverged=True)[1],
            live["llc"][1],
        )
