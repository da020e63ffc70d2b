"""Measures by name, built in and from plug-ins."""

from types import SimpleNamespace

import pytest

from titer.errors import StudyError, UnknownNameError
from titer.measures.exact_answer import ExactAnswer
from titer.measures.registry import measures, resolve_measure
from titer.study import plugins


@pytest.fixture
def plugin(monkeypatch):
    def install(name, value):
        entry = SimpleNamespace(name=name, value=f"package:{name}", load=lambda: value)
        monkeypatch.setattr(
            plugins, "entry_points", lambda group: [entry] if group == "titer.measures" else []
        )
        measures.cache_clear()

    yield install
    measures.cache_clear()


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
