"""The wheel holds the packages and what they ship, and imports from any working directory."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for item in (
        "callbacks",
        "deploy",
        "detectors",
        "monitor",
        "phasewatch",
        "pyproject.toml",
        "README.md",
        "LICENSE",
    ):
        subprocess.run(["cp", "-r", str(ROOT / item), str(source)], check=True)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
         "--wheel-dir", str(folder), str(source)],
        check=True,
        capture_output=True,
    )  # fmt: skip
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory) -> Path:
    """The wheel, unpacked where only this test looks."""
    target = tmp_path_factory.mktemp("site")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target),
         str(wheel)],
        check=True,
        capture_output=True,
    )  # fmt: skip
    return target


def run_python(code: str, installed: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(installed)}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_wheel_holds_the_three_packages_only(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"phasewatch"}
    own = {name.split("/")[1] for name in names if name.startswith("phasewatch/")}
    parts = {"callbacks", "deploy", "detectors", "monitor"}
    assert own == {*parts, "__init__.py", "py.typed"}
    for part in parts - {"deploy"}:
        assert f"phasewatch/{part}/py.typed" in names


def test_every_module_of_the_source_is_in_the_wheel(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for part in ("callbacks", "detectors", "monitor"):
        for path in (ROOT / part).rglob("*.py"):
            assert f"phasewatch/{path.relative_to(ROOT).as_posix()}" in names


def test_tables_that_are_read_at_run_time_are_in_the_wheel(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    tables = (
        "detectors/error_control/false_alarms.json",
        "monitor/core/streams.json",
        "monitor/observables/costs.json",
    )
    assert [table for table in tables if f"phasewatch/{table}" not in names] == []


def test_what_grafana_needs_is_in_the_wheel_without_its_builder(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    folder = ROOT / "deploy" / "grafana"
    shipped = [*folder.glob("dashboards/*.json"), *folder.glob("provisioning/*/*.yaml")]
    assert shipped
    for path in shipped:
        assert f"phasewatch/{path.relative_to(ROOT).as_posix()}" in names
    assert not [name for name in names if "deploy" in name and name.endswith(".py")]


def test_an_installed_phasewatch_finds_its_dashboards(installed, tmp_path) -> None:
    result = run_python(
        "from phasewatch.monitor.grafana.shipped import shipped_dashboards, shipped_rules\n"
        "print(*shipped_dashboards()); print(len(shipped_rules()['rules']))",
        installed,
        tmp_path,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["compare", "overview", "run", "7"]


def test_it_imports_beside_a_users_own_folders_of_the_same_names(installed, tmp_path) -> None:
    for name in ("callbacks", "monitor", "detectors"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise AssertionError('users own {name}')")
    result = run_python(
        "from phasewatch.callbacks import TransitionMonitor\n"
        "from phasewatch.monitor import Watch\n"
        "from phasewatch import detectors\n"
        "import phasewatch.monitor.config.monitor as c; print(c.__file__)\n",
        installed,
        tmp_path,
    )
    assert result.returncode == 0, result.stderr
    assert str(installed) in result.stdout


def test_the_command_line_does_not_wait_for_torch(installed, tmp_path) -> None:
    result = run_python(
        "import sys, phasewatch.monitor.cli.main\nprint('torch' in sys.modules)",
        installed,
        tmp_path,
    )
    assert result.stdout.strip() == "False", result.stderr


def test_an_installed_phasewatch_brings_the_configuration_of_the_servers(installed, tmp_path):
    result = run_python(
        "from pathlib import Path\n"
        "from phasewatch.monitor.operations.stack import Stack\n"
        "from phasewatch.monitor.operations.doctor_servers import shipped_alerts\n"
        "Stack(folder=Path('stack')).configure()\n"
        "print(len(shipped_alerts()))",
        installed,
        tmp_path,
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) >= 10
    written = {path.name for path in (tmp_path / "stack").iterdir()}
    assert written == {"prometheus.yml", "rules.yml", "alertmanager.yml", "targets"}
    assert (tmp_path / "stack" / "rules.yml").read_text() == (
        ROOT / "deploy" / "prometheus" / "rules.yml"
    ).read_text()
