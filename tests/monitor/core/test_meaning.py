"""What streams mean: guessed from names, declared by observables, said by the configuration."""

from __future__ import annotations

import pytest

from phasewatch.detectors.types import Direction
from phasewatch.monitor.config.monitor import MonitorConfig
from phasewatch.monitor.core.errors import ConfigError
from phasewatch.monitor.core.meaning import (
    FORMATION,
    Meanings,
    Panel,
    Role,
    StreamMeaning,
    Tells,
    builtin,
    guess,
)
from phasewatch.monitor.core.metrics import BY_NAME
from phasewatch.monitor.observables import BUILTIN, factory_of
from phasewatch.monitor.transitions.streams import Streams

DOWN, UP = Direction.DOWN, Direction.UP


def test_held_out_data_is_told_by_whole_words() -> None:
    held_out = ("val_loss", "valid/loss", "Test-acc", "loss_val", "valLoss", "val2/loss", "dev_nll")
    assert [name for name in held_out if not guess(name).held_out] == []
    others = ("value_loss", "interval_loss", "train_loss", "latest_loss", "devices", "retrieval")
    others += ("llc_validation", "llc_validation/nu_hat")  # no measure of how well it does there
    assert [name for name in others if guess(name).held_out] == []


@pytest.mark.parametrize(
    ("names", "better"),
    [
        ("train_loss trainloss val/lm_loss MSELoss loss losses/total loss_1 mseloss", DOWN),
        ("val/nll val_ce cross_entropy eval/crossEntropy token_cross_entropy", DOWN),
        ("perplexity trainPPL eval_ppl val/bpb bpc bits_per_byte", DOWN),
        ("val_mse_epoch rmse mae relative_error val_err wer cer fid val/FID", DOWN),
        ("cost objective elbo energy", DOWN),
        ("val_acc1 accuracy MulticlassAccuracy topAcc5 acc@1 testacc", UP),
        ("val_F1 F1Score auc BinaryAUROC val/mAP mAP50 map bleu rouge iou", UP),
        ("precision recall reward episode_return score win_rate", UP),
        ("reward_loss score_loss accuracy_loss", DOWN),
        ("glossary_size feature_map lossy_ratio mapper accent errand costume scores_kept", None),
        ("momentum llc weight_norm lr rank feature_map_norm loss_scale", None),
    ],
)
def test_which_way_is_better_is_told_by_whole_words_or_left_open(names, better) -> None:
    assert {name: guess(name).better for name in names.split()} == dict.fromkeys(
        names.split(), better
    )


@pytest.mark.parametrize(
    ("names", "role"),
    [
        ("my_gradient_norm grad_norm feature_map_norm l2_norm_total", Role.SUPPORTING),
        ("lr lr-AdamW lr-AdamW/pg1 optim/lr epoch step trainer/global_step", Role.DIAGNOSTIC),
        ("momentum learning_rate loss_scale", Role.DIAGNOSTIC),
        ("train_loss loss_step loss_epoch train/epoch_loss my_metric glossary_size", Role.LEADING),
        ("norm_loss layer_norm_loss", Role.LEADING),
    ],
)
def test_what_a_stream_may_do_is_told_by_whole_words(names, role) -> None:
    assert {name: guess(name).role for name in names.split()} == dict.fromkeys(names.split(), role)


@pytest.mark.parametrize(
    ("name", "tells"),
    [
        ("llc", Tells.LLC),
        ("train_llc", Tells.LLC),
        ("llc_val", Tells.NOTHING),
        ("my_restricted_loss", Tells.RESTRICTED_LOSS),
        ("excluded_loss/3", Tells.EXCLUDED_LOSS),
        ("val_loss", Tells.QUALITY),
        ("glossary_size", Tells.NOTHING),
    ],
)
def test_what_a_move_says(name, tells) -> None:
    assert guess(name).tells is tells


def test_a_loss_in_nats_is_no_other_error() -> None:
    assert [guess(name).unit for name in ("val_nll", "val_mse", "glossary_size")] == [
        "nats",
        "1",
        "1",
    ]
    assert guess("val_nll").panel is Panel.LOSSES
    assert guess("val_mse").panel is Panel.OWN
    assert [guess(name).detector for name in ("val_nll", "val_mse", "elbo", "acc")] == [
        "loss",
        "loss",
        "scalar",
        "scalar",
    ]


def test_a_score_must_change_by_a_twentieth_and_another_scalar_need_not() -> None:
    streams = Streams({})
    effects = [streams.get(name).detector.parameters["min_effect"] for name in ("val_acc", "rank")]
    assert effects == [0.05, 0.0]


# ---- declared


@pytest.mark.parametrize("name", sorted(BUILTIN))
def test_every_observable_declares_its_streams_and_the_table_has_them(name) -> None:
    declared = factory_of(name).streams
    assert declared
    for stream, meaning in declared.items():
        assert builtin()[stream] == meaning
        assert meaning.metric is None or meaning.metric in BY_NAME


def test_a_part_means_what_its_whole_means_unless_it_is_declared() -> None:
    meanings = Meanings()
    assert meanings.of("weight_norm/net.0").role is Role.SUPPORTING
    assert meanings.of("llc/net.0").tells is Tells.LLC
    assert meanings.of("llc/wbic").tells is Tells.NOTHING
    assert meanings.of("polygon/llc").tells is Tells.FORMATION
    assert meanings.of("singular_value_3").tells is Tells.FORMATION
    assert meanings.of("val_icl_score_1_16").held_out
    assert meanings.of("llc_validation").tells is Tells.NOTHING


def test_a_run_knows_what_its_own_observables_declare() -> None:
    meanings = Meanings(declared={"head_*": FORMATION})
    assert meanings.of("head_3") == FORMATION
    assert meanings.of("other") == StreamMeaning()


# ---- said


def test_the_configuration_has_the_last_word_and_leaves_the_rest() -> None:
    config = MonitorConfig.load(
        {
            "streams": {
                "val_loss": {"role": "supporting"},
                "my_metric": {"better": "up", "held_out": True},
            },
            "better": {"other": "down", "my_metric": "down"},
        }
    )
    meanings = Meanings(config.stream_settings, {"my_metric": FORMATION})
    loss = meanings.of("val_loss")
    assert (loss.role, loss.better, loss.held_out) == (Role.SUPPORTING, DOWN, True)
    mine = meanings.of("my_metric")
    assert (mine.better, mine.held_out, mine.tells) == (UP, True, Tells.FORMATION)
    assert meanings.of("other").better is DOWN


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"role": "sideways"}, "streams.x.role: got 'sideways'.*'leading', 'supporting'"),
        (
            {"beter": "up"},
            r"streams.x.beter: unknown key \(did you mean 'better'",
        ),
        ({"better": "left"}, "streams.x.better: got 'left'.*'up' or 'down'"),
    ],
)
def test_a_wrong_word_is_told(given, message) -> None:
    with pytest.raises(ConfigError, match=message):
        MonitorConfig.load({"streams": {"x": given}})


def test_what_is_stored_with_a_run_gives_the_same_meanings() -> None:
    config = MonitorConfig.load({"streams": {"a": {"role": "supporting"}}, "better": {"b": "up"}})
    live = Meanings(config.stream_settings, {"c_*": FORMATION, "a": FORMATION})
    kept = {"streams": live.settings()}
    again = Meanings.stored(MonitorConfig.load(kept).model_dump(mode="json", exclude_unset=True))
    for name in ("a", "b", "c_1", "val_loss", "gradient_norm"):
        assert again.of(name) == Meanings.stored(kept).of(name) == live.of(name)


def test_a_stored_run_of_an_older_version_says_which_way_is_better() -> None:
    assert Meanings.stored({"better": {"quality": "up"}}).of("quality").better is UP
    assert Meanings.stored(None).of("val_loss").better is DOWN
