"""Measures by name, built in and from plug-ins."""

from types import SimpleNamespace

import pytest

from titer.errors import StudyError, UnknownNameError
from titer.measures import exact_answer
from titer.measures.exact_answer import ExactAnswer
from titer.measures.measure import Measure
from titer.measures.registry import _measures, measures, resolve_measure
from titer.study import plugins


@pytest.fixture
def plugin(monkeypatch):
    def install(name, value):
        entry = SimpleNamespace(name=name, value=f"package:{name}", load=lambda: value)
        monkeypatch.setattr(
            plugins, "entry_points", lambda group: [entry] if group == "titer.measures" else []
        )
        _measures.cache_clear()

    yield install
    _measures.cache_clear()


def test_every_measure_is_found_under_its_own_name():
    assert set(measures()) == {
        "exact_answer",
        "compliance_likelihood",
        "compliance_generated",
        "refusal_rate",
        "perplexity",
        "next_token_accuracy",
        "response_likelihood",
        "response_accuracy",
        "multiple_choice",
        "judged_harm",
    }
    assert all(cls.name == name for name, cls in measures().items())


def test_settings_are_checked():
    assert resolve_measure("exact_answer", {"reads": "harm"}) == ExactAnswer(reads="harm")
    with pytest.raises(
        StudyError, match=r"judge\.settings\.reads = 'evil'.*titer show exact_answer"
    ):
        resolve_measure("exact_answer", {"reads": "evil"}, field="judge")
    with pytest.raises(StudyError, match=r"measure\.settings\.read = 'harm'"):
        resolve_measure("exact_answer", {"read": "harm"})
    with pytest.raises(StudyError, match=r"settings\.floor"):
        resolve_measure("compliance_likelihood", {"floor": float("nan")})
    with pytest.raises(StudyError, match=r"harm\.settings\.wrap = 'x'.*\{prompt\}"):
        resolve_measure("compliance_likelihood", {"wrap": "x"}, field="harm")
    with pytest.raises(UnknownNameError, match="did you mean exact_answer"):
        resolve_measure("exact_answr", {})


def test_a_plug_in_is_found(plugin):
    class Mine(ExactAnswer):
        """A measure of mine."""

        name = "mine"

    plugin("mine", Mine)
    assert resolve_measure("mine", {}) == Mine()


@pytest.mark.parametrize("value", [dict, ExactAnswer(), "a text"])
def test_a_plug_in_that_is_no_measure(plugin, value):
    plugin("mine", value)
    with pytest.raises(StudyError, match=r"mine is not what its group holds.*package:mine"):
        resolve_measure("mine", {})


def test_a_registered_measure_is_found_at_once(monkeypatch):
    monkeypatch.setattr(plugins, "_registered", {})
    assert "late" not in measures()

    @plugins.register
    class Late(ExactAnswer):
        """Made after the measures were looked up."""

        name = "late"

    assert resolve_measure("late", {}) == Late()
    monkeypatch.undo()
    _measures.cache_clear()


def test_bases_of_measures_are_not_measures(monkeypatch):
    """Neither an abstract class, nor one without a name of its own, be it that of its parent."""

    class Nameless(Measure):
        def facts(self): ...
        def request(self): ...
        def score(self, transcripts): ...

    class Inheriting(ExactAnswer):
        """Has no name but its parent's."""

    class Abstract(Measure):
        name = "abstract"

    for cls in (Nameless, Inheriting, Abstract):
        monkeypatch.setattr(exact_answer, cls.__name__, cls, raising=False)
    _measures.cache_clear()
    try:
        assert measures()["exact_answer"] is ExactAnswer
        assert "abstract" not in measures()
        assert not {Nameless, Inheriting, Abstract} & set(measures().values())
    finally:
        _measures.cache_clear()
