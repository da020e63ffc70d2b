"""The base install has no lifelines: it judges and reports all the same, and says what it does not
fit.
"""

import sys

import pytest

from helpers.factory import Make
from titer.report import write_report
from titer.verdicts import judge
from titer.verdicts.resistance.descriptive import NOT_FITTED

CURVES = [(0.0,) * k + (0.9,) * (6 - k) for k in (1, 2, 3, 4, 5, 2)]


@pytest.fixture
def view():
    """A run whose breaches lie in five intervals, so that parametric fits are due."""
    made = Make(seeds=len(CURVES)).attack("none", "full_sft", (0.0, *[0.9] * 5))
    for seed, curve in enumerate(CURVES):
        made.attack("defended", "full_sft", curve, seeds=[seed])
    return made.view()


@pytest.fixture
def blocked(monkeypatch):
    """No module of lifelines, nor what it brings, can be imported."""
    for name in [n for n in sys.modules if n.split(".")[0] in ("lifelines", "pandas")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("lifelines", "pandas", "matplotlib"):
        monkeypatch.setitem(sys.modules, name, None)


def fits(verdict):
    return {d.kind: d for d in verdict.candidates[0].resistance.attacks[0].descriptive}


def test_a_verdict_and_a_report_without_it(view, blocked, tmp_path):
    found = judge(view)
    assert {k: d.not_fitted for k, d in fits(found).items()} == {
        "weibull": NOT_FITTED,
        "log-normal": NOT_FITTED,
    }
    paths = write_report(view, found, tmp_path)
    for page in (paths.html, paths.markdown):
        assert "titer[curves]" in page.read_text("utf-8")


def test_the_rest_of_the_verdict_is_the_same(view, monkeypatch):
    def without_fits(verdict):
        told = verdict.model_dump(mode="json")
        for candidate in (told["control"], *told["candidates"]):
            for attack in candidate["resistance"]["attacks"]:
                del attack["descriptive"]
        return told

    whole = judge(view)
    assert fits(whole) and not any(d.not_fitted for d in fits(whole).values())
    monkeypatch.setitem(sys.modules, "lifelines", None)
    assert without_fits(judge(view)) == without_fits(whole)
