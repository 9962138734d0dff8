import pytest

from phasewatch import detectors
from phasewatch.detectors import UnknownDetectorError, registry
from phasewatch.detectors.online.slope_shift import SlopeShift


@pytest.fixture
def own_names(monkeypatch):
    monkeypatch.setattr(registry, "_FACTORIES", dict(registry._FACTORIES))


def test_everything_exported_exists():
    assert sorted(detectors.__all__) == list(detectors.__all__)
    for name in detectors.__all__:
        assert hasattr(detectors, name)


def test_a_detector_is_made_by_name_with_its_parameters():
    detector = detectors.create("slope_shift", gate=0.3)
    assert isinstance(detector, SlopeShift)
    assert detector.parameters["gate"] == 0.3


def test_an_unknown_name_says_what_there_is():
    with pytest.raises(UnknownDetectorError, match=r"'cusumm'.*slope_shift.*register") as caught:
        detectors.create("cusumm")
    assert caught.value.known == detectors.names()
    assert isinstance(caught.value, ValueError)


def test_an_unknown_parameter_is_refused():
    with pytest.raises(TypeError, match="gaet"):
        detectors.create("slope_shift", gaet=0.3)


def test_names_are_sorted():
    assert list(detectors.names()) == sorted(detectors.names())


@pytest.mark.parametrize(
    ("stream", "name"),
    [("loss", "abrupt_change"), ("measured", "level_shift"), ("scalar", "abrupt_change")],
)
def test_each_kind_of_stream_has_its_default(stream, name):
    assert detectors.default(stream).name == name


def test_the_default_takes_parameters():
    assert detectors.default("loss", certainty=4.0).parameters["certainty"] == 4.0


def test_an_unknown_kind_of_stream_says_what_there_is():
    with pytest.raises(ValueError, match=r"'los'.*loss, measured, scalar"):
        detectors.default("los")


def test_users_add_their_own(own_names):
    detectors.register("mine", SlopeShift)
    assert "mine" in detectors.names()
    assert isinstance(detectors.create("mine"), SlopeShift)
    detectors.register("mine", SlopeShift)  # the same again is no mistake


def test_a_taken_name_is_refused(own_names):
    with pytest.raises(ValueError, match="'slope_shift' is already registered"):
        detectors.register("slope_shift", object)


def test_an_empty_name_is_refused(own_names):
    with pytest.raises(ValueError, match="name is ''"):
        detectors.register("", SlopeShift)


def test_what_cannot_be_called_is_refused(own_names):
    with pytest.raises(TypeError, match="'mine' is 3"):
        detectors.register("mine", 3)
