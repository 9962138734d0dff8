"""Where an Alertmanager of this machine has its configuration, from its command line."""

import pytest

from phasewatch.monitor.operations.doctor_files import alertmanager_file


@pytest.fixture
def process(tmp_path):
    """Makes a process as the system shows it, in a folder of its own."""
    shown, place = tmp_path / "proc", tmp_path / "place"
    place.mkdir()
    (place / "alertmanager.yml").touch()
    (place / "mine.yml").touch()

    def make(*words, number=17, readable=True):
        folder = shown / str(number)
        folder.mkdir(parents=True)
        (folder / "cmdline").write_text("\0".join(words) + "\0")
        if readable:
            (folder / "cwd").symlink_to(place)
        return shown

    make.place = place
    return make


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["--config.file=mine.yml", "--web.listen-address=127.0.0.1:9100"], "mine.yml"),
        (["--config.file", "mine.yml", "-web.listen-address", ":9100"], "mine.yml"),
        (["--web.listen-address=:9100"], "alertmanager.yml"),
    ],
)
def test_the_file_is_found_whichever_way_it_is_given(process, words, name):
    shown = process("/usr/bin/prometheus-alertmanager", *words)
    assert alertmanager_file("http://127.0.0.1:9100", shown) == process.place / name
    assert alertmanager_file("http://127.0.0.1:9101", shown) is None
    assert alertmanager_file("http://elsewhere:9100", shown) is None


def test_what_cannot_be_known_is_none(process):
    process("/usr/bin/alertmanager", number=3, readable=False)
    process("/usr/bin/prometheus", "--config.file=mine.yml", number=4)
    shown = process("alertmanager", "--config.file=gone.yml", number=5)
    assert alertmanager_file("http://localhost:9093", shown) is None
