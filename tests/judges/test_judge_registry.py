"""Judges by name, built in and from plug-ins; the settings of a study checked."""

from types import SimpleNamespace

import pytest

from titer.errors import StudyError, UnknownNameError
from titer.judges.http import ChatJudge
from titer.judges.judge import Judge, filled
from titer.judges.registry import _judges, judges, resolve_judge
from titer.study import plugins

CHAT = {"base_url": "http://127.0.0.1:1/v1", "model": "m"}


@pytest.fixture
def plugin(monkeypatch):
    def install(name, value):
        entry = SimpleNamespace(name=name, value=f"package:{name}", load=lambda: value)
        monkeypatch.setattr(
            plugins, "entry_points", lambda group: [entry] if group == "titer.judges" else []
        )
        _judges.cache_clear()

    yield install
    monkeypatch.undo()
    _judges.cache_clear()


def test_the_built_in_judges():
    assert {"chat", "classifier"} <= set(judges())
    assert all(cls.name == name and cls.__doc__ for name, cls in judges().items())
    assert not ChatJudge.calibrated


def test_settings_are_checked():
    assert resolve_judge("chat", CHAT) == ChatJudge(**CHAT)
    with pytest.raises(UnknownNameError, match=r"second\.name = 'chatt'.*did you mean chat"):
        resolve_judge("chatt", CHAT, field="second")
    with pytest.raises(StudyError, match=r"second\.settings\.retries = -1"):
        resolve_judge("chat", CHAT | {"retries": -1}, field="second")
    with pytest.raises(StudyError, match=r"judge\.settings\.base_url = 'ftp://x'"):
        resolve_judge("chat", CHAT | {"base_url": "ftp://x"})
    with pytest.raises(StudyError, match=r"judge\.settings\.model"):
        resolve_judge("chat", {"base_url": CHAT["base_url"]})


def test_a_key_among_the_settings_is_refused_and_not_shown():
    with pytest.raises(StudyError, match=r"judge\.settings\.api_key") as error:
        resolve_judge("chat", CHAT | {"api_key": "sk-secret"})
    assert "sk-secret" not in str(error.value)


def test_plug_ins(plugin):
    class Mine(Judge):
        """A judge of mine."""

        name = "mine"

        def judge(self, pairs):
            return [0.0 for _ in pairs]

    class Abstract(Judge):
        name = "abstract"

    plugin("mine", Mine)
    assert resolve_judge("mine", {}) == Mine()
    plugin("abstract", Abstract)
    assert "abstract" not in judges()
    plugin("dict", dict)
    with pytest.raises(StudyError, match=r"dict is not what its group holds"):
        judges()


def test_filling_in_is_done_once():
    assert filled("{prompt}|{reply}", "{reply}", "{prompt}") == "{reply}|{prompt}"
    assert filled("{reply} {reply} {other}", "p", "r") == "r r {other}"
