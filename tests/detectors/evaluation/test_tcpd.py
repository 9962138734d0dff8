"""The scores of the Turing Change Point Dataset by their definitions, worked out by hand."""

import json

import numpy as np
import pytest

from phasewatch.detectors.evaluation.tcpd import cover, f1, load_tcpd


def test_what_every_annotator_says_scores_one():
    annotations = {"6": [20, 60], "7": [20, 60]}
    assert f1(annotations, [20, 60]) == 1.0
    assert cover(annotations, [20, 60], 100) == 1.0


def test_nothing_found_still_finds_the_start():
    # P = 1/1; R = (1/1 + 1/3) / 2 = 2/3; F1 = 2 · 2/3 / (5/3) = 0.8
    assert f1({"6": [], "7": [20, 60]}, []) == pytest.approx(0.8)


def test_precision_is_over_the_union_and_recall_the_mean_over_annotators():
    # X = {0, 20, 50}: the union {0, 20, 60, 80} has 0 and 20 of it, P = 2/3.
    # R = (2/2 + 1/3) / 2 = 2/3.
    assert f1({"6": [20], "7": [60, 80]}, [20, 50]) == pytest.approx(2 / 3)


@pytest.mark.parametrize(("distance", "score"), [(5, 1.0), (-5, 1.0), (6, 0.5)])
def test_the_margin_is_five_points_both_ways(distance, score):
    assert f1({"6": [50]}, [50 + distance]) == pytest.approx(score)


def test_a_found_point_serves_one_known_point_only():
    # 52 is taken by 50, so 54 is missed: P = 2/2, R = 2/3, F1 = 0.8
    assert f1({"6": [50, 54]}, [52]) == pytest.approx(0.8)


def test_cover_weighs_each_annotated_segment_by_its_length():
    # Segments [0, 40), [40, 100) against [0, 50), [50, 100): 40/50 and 50/60.
    expected = (40 * 40 / 50 + 60 * 50 / 60) / 100
    assert cover({"6": [40]}, [50], 100) == pytest.approx(expected)


def test_cover_is_the_mean_over_annotators():
    # Without annotations: the larger of two halves covers half of the whole.
    assert cover({"6": [50], "7": []}, [50], 100) == pytest.approx((1.0 + 0.5) / 2)


def test_a_change_at_either_end_makes_no_empty_segment():
    assert cover({"6": []}, [0, 100], 100) == 1.0


def series(name, raw, n_dim=1, n_obs=None):
    dimensions = [{"label": f"V{i}", "type": "float", "raw": raw} for i in range(n_dim)]
    count = len(raw) if n_obs is None else n_obs
    return {"name": name, "n_obs": count, "n_dim": n_dim, "time": {}, "series": dimensions}


def write(folder, annotations, *records):
    (folder / "annotations.json").write_text(json.dumps(annotations))
    for record in records:
        place = folder / "datasets" / record["name"]
        place.mkdir(parents=True)
        (place / f"{record['name']}.json").write_text(json.dumps(record))


def test_a_local_copy_is_read(tmp_path):
    write(
        tmp_path,
        {"river": {"6": [2]}, "two": {"6": []}, "vendor": {"6": []}},
        series("river", [1, None, 3.5]),
        series("two", [1.0, 2.0], n_dim=2),
        series("unlabelled", [1.0]),
    )
    (river,) = load_tcpd(tmp_path)
    assert river.name == "river"
    assert river.annotations == {"6": [2]}
    np.testing.assert_array_equal(river.values, [1.0, np.nan, 3.5])


def test_a_folder_without_annotations_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no annotations\.json; give a copy"):
        load_tcpd(tmp_path)


def test_a_file_that_lost_points_is_refused(tmp_path):
    write(tmp_path, {"river": {"6": []}}, series("river", [1.0, 2.0], n_obs=3))
    with pytest.raises(ValueError, match=r"river\.json says 3 observations and holds 2"):
        load_tcpd(tmp_path)


def test_a_file_of_another_format_is_refused(tmp_path):
    write(tmp_path, {"river": {"6": []}}, {"name": "river", "values": []})
    with pytest.raises(ValueError, match=r"river\.json is no series of this data set"):
        load_tcpd(tmp_path)
