"""The small picture of a run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from phasewatch.monitor.core.ending import RunState
from phasewatch.monitor.core.errors import StoreError
from phasewatch.monitor.core.estimates import EstimateStatus, Observation
from phasewatch.monitor.core.transitions import TransitionStatus
from phasewatch.monitor.reports.data import read_run
from phasewatch.monitor.reports.png import draw, write_picture
from phasewatch.monitor.store.store import Store
from support.history import RUN_ID, fill, transition


@pytest.fixture
def store() -> Iterator[Store]:
    with Store("sqlite://") as opened:
        yield opened


def pixels(path: Path) -> np.ndarray:
    return matplotlib.image.imread(path, format="png")[..., :3]


def test_it_is_a_png_of_the_stated_size(store: Store, tmp_path: Path) -> None:
    fill(store)
    path = write_picture(store, RUN_ID, tmp_path / "new" / "picture.png")
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    height, width, _ = pixels(path).shape
    assert width == 1350
    assert 900 < height < 1200
    assert path.stat().st_size < 300_000


def test_a_transition_is_painted_and_a_withdrawn_one_is_not(store: Store, tmp_path: Path) -> None:
    fill(store, transitions=())
    bare = pixels(write_picture(store, RUN_ID, tmp_path / "bare.png"))
    store.add_transition(transition(status=TransitionStatus.WITHDRAWN))
    withdrawn = pixels(write_picture(store, RUN_ID, tmp_path / "withdrawn.png"))
    assert (withdrawn == bare).all()
    store.add_transition(transition(status=TransitionStatus.ENDED))
    marked = pixels(write_picture(store, RUN_ID, tmp_path / "marked.png"))
    # the band spans 40 % of the width of every panel
    assert (marked != bare).any(axis=-1).mean() > 0.2


@pytest.mark.parametrize("name", ["$x^", "$a_{b <b>& 雪\nnext line " + "n" * 200])
def test_any_name_can_be_drawn(store: Store, tmp_path: Path, name: str) -> None:
    fill(store, name=name, extra=f"{name} loss", steps=100)
    assert write_picture(store, RUN_ID, tmp_path / "picture.png").exists()


def test_a_run_without_numbers_can_be_drawn(store: Store, tmp_path: Path) -> None:
    store.begin_run(name="empty", run_id=RUN_ID, attempt=1)
    store.end_run(RUN_ID, 1, RunState.FAILED, "ValueError")
    assert write_picture(store, RUN_ID, tmp_path / "picture.png").exists()


def test_an_unknown_run_is_an_error(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no run 'other'"):
        write_picture(store, "other", tmp_path / "picture.png")


def test_drawing_leaves_pyplot_alone(store: Store, tmp_path: Path) -> None:
    # pyplot would pick a window system for the whole process of the user
    loaded = "matplotlib.pyplot" in sys.modules
    fill(store, steps=100)
    write_picture(store, RUN_ID, tmp_path / "picture.png")
    assert ("matplotlib.pyplot" in sys.modules) == loaded


def test_several_runs_share_a_picture(store: Store, tmp_path: Path) -> None:
    fill(store)
    one = pixels(write_picture(store, RUN_ID, tmp_path / "one.png"))
    other = fill(store, name="seed $1", run_id="f" * 32, steps=2000, transitions=())
    both = pixels(write_picture(store, [RUN_ID, other], tmp_path / "both.png"))
    assert both.shape[1] == one.shape[1]
    assert both.shape[0] > one.shape[0]  # a row for each stream


def test_runs_that_share_nothing_have_a_picture(store: Store, tmp_path: Path) -> None:
    fill(store)
    store.begin_run(name="empty", run_id="f" * 32, attempt=1)
    assert write_picture(store, [RUN_ID, "f" * 32], tmp_path / "both.png").exists()


def test_a_notebook_shows_the_figure_by_itself(store: Store) -> None:
    fill(store, steps=100)
    figure = draw([read_run(store, RUN_ID)])
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert [axis.get_yscale() for axis in figure.axes] == ["log", "log", "linear"]


def test_what_is_doubtful_and_far_is_drawn_at_the_edge(store: Store) -> None:
    fill(store)
    far = Observation(name="llc", step=7, value=-5648.0, status=EstimateStatus.NEGATIVE)
    store.add_observation(RUN_ID, 1, far)
    axis = draw([read_run(store, RUN_ID)]).axes[1]
    (doubtful,) = (line for line in axis.lines if line.get_label() == "not converged")
    assert doubtful.get_xdata()[0] == 7
    assert doubtful.get_ydata()[0] == pytest.approx(axis.get_ylim()[0])
