"""Plug-ins cannot pass for something else."""

from types import SimpleNamespace

import pytest

from titer.errors import StudyError
from titer.study import plugins


class Base:
    name = "base"


class Mine(Base):
    name = "mine"


@pytest.fixture
def installed(monkeypatch):
    def install(*pairs):
        entries = [
            SimpleNamespace(name=n, value=f"package:{n}", load=lambda v=v: v) for n, v in pairs
        ]
        monkeypatch.setattr(plugins, "entry_points", lambda group: entries)

    return install


def test_found(installed):
    installed(("mine", Mine))
    assert plugins.plugged("g", Base, {"base": Base}) == {"mine": Mine}


@pytest.mark.parametrize(
    ("pairs", "says"),
    [
        ([("mine", object())], "not what its group holds"),
        ([("mine", dict)], "not what its group holds"),
        ([("yours", Mine)], "has another name"),
        ([("base", Base)], "name that is taken"),
        ([("mine", Mine), ("mine", Mine)], "name that is taken"),
    ],
)
def test_refused(installed, pairs, says):
    installed(*pairs)
    with pytest.raises(StudyError, match=says):
        plugins.plugged("g", Base, {"base": Base})
