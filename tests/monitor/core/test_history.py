"""The values of a stream never come without their status."""

from __future__ import annotations

import copy
import sys

import numpy as np
import pytest

from phasewatch.monitor.core.errors import MissingPackageError
from phasewatch.monitor.core.estimates import EstimateStatus
from phasewatch.monitor.core.history import STATUSES, History, codes_of


def make(**options):
    return History("llc", "1", [1, 2, 3], [5.0, 903.0, -4.0], [0.1, 32.0, 1.0],
                   codes=codes_of(["ok", "unconverged", "negative"]), **options)  # fmt: skip


def test_it_unpacks_with_what_is_not_ok_masked():
    steps, values, stderrs = make()
    assert steps.tolist() == [1, 2, 3]
    np.testing.assert_array_equal(values, [5.0, np.nan, np.nan])
    np.testing.assert_array_equal(stderrs, [0.1, np.nan, np.nan])
    assert [len(column) for column in make()] == [3, 3, 3]


def test_everything_is_there_when_it_is_asked_for():
    history = make(include_unconverged=True)
    assert history.values.tolist() == [5.0, 903.0, -4.0]
    assert history.stderrs.tolist() == [0.1, 32.0, 1.0]
    assert history.statuses.tolist() == ["ok", "unconverged", "negative"]
    assert history.ok.tolist() == [True, False, False]


def test_zero_is_the_code_of_ok():
    assert STATUSES[0] is EstimateStatus.OK


def test_it_says_what_it_is():
    assert repr(make()) == ("<History of 'llc' [1]: 1 ok, 1 unconverged, 1 negative, steps 1 to 3>")
    assert repr(History.empty("x")) == "<History of 'x' [1]: no values>"


def test_a_copy_is_the_same_and_stays_masked():
    history = copy.deepcopy(make())
    assert (history.name, history.unit) == ("llc", "1")
    np.testing.assert_array_equal(history.values, [5.0, np.nan, np.nan])
    assert history.statuses.tolist() == ["ok", "unconverged", "negative"]


@pytest.mark.parametrize(("method", "package"), [("to_pandas", "pandas"), ("to_arrow", "pyarrow")])
def test_a_package_that_is_not_installed_is_named_with_the_way_to_get_it(
    method, package, monkeypatch
):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match=f"pip install {package}") as raised:
        getattr(make(), method)()
    assert isinstance(raised.value, ImportError)


def test_a_table_of_pandas_has_the_status_of_every_value():
    pytest.importorskip("pandas")
    frame = make().to_pandas()
    assert [*frame.columns] == ["step", "value", "stderr", "status"]
    assert frame["status"].tolist() == ["ok", "unconverged", "negative"]
    assert frame.attrs == {"name": "llc", "unit": "1"}
    assert frame["value"].isna().tolist() == [False, True, True]


def test_a_table_of_arrow_has_the_status_of_every_value():
    pytest.importorskip("pyarrow")
    table = make(include_unconverged=True).to_arrow()
    assert table.column_names == ["step", "value", "stderr", "status"]
    assert table["status"].to_pylist() == ["ok", "unconverged", "negative"]
    assert table["value"].to_pylist() == [5.0, 903.0, -4.0]
    assert table.schema.metadata == {b"name": b"llc", b"unit": b"1"}
