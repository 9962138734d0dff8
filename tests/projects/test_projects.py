"""Twelve kinds of projects: each trains as if nobody watched, and is measured or says why not."""

import pytest
from projects.table import PROJECTS

from support.bitwise import differences
from support.observers import make_monitor
from support.training import record

CASES = [pytest.param(p, id=p.name, marks=[pytest.mark.slow] if p.slow else []) for p in PROJECTS]


@pytest.mark.parametrize("project", CASES)
def test_a_project_trains_untouched_and_is_measured_or_says_why_not(project, tmp_path):
    made = []

    def monitors():
        made.append(make_monitor(tmp_path, every_n_steps=3))
        return made

    plain = record(project.build, project.data, tmp_path, **project.trainer)
    watched = record(project.build, project.data, tmp_path, monitors=monitors, **project.trainer)
    assert plain.num_steps >= 6
    assert differences(plain, watched) == []
    health = made[0].watch.health
    assert health.measurements["weight_norm"] >= 2
    assert health.measurement_failures.total() == 0, health
    if project.refused:
        assert project.refused in health.skip_reasons["llc"]
        assert health.measurements["llc"] == 0
    else:
        assert health.measurements["llc"] >= 2, health.skip_reasons
