import math

import pytest

from helpers.report_example import trajectory
from titer.report import numbers as f
from titer.verdicts.output.verdict import Interval


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "—"),
        (math.nan, "—"),
        (0, "0"),
        (8, "8"),
        (0.12345, "0.123"),
        (-0.5, "−0.500"),
        (1234.5, "1234"),
        (12345, "12\u202f345"),
        (2.5e7, "2.50\u00a0×\u00a010⁷"),
        (1e-7, "1.00\u00a0×\u00a010⁻⁷"),
    ],
)
def test_number(value, text):
    assert f.number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "—"),
        (0.0, "0\u00a0FLOP"),
        (1.2e10, "12.0\u00a0×\u00a010⁹\u00a0FLOP"),
        (999_999.0, "1.00\u00a0×\u00a010⁶\u00a0FLOP"),
        (1e12, "1.00\u00a0×\u00a010¹²\u00a0FLOP"),
        (512.0, "512\u00a0FLOP"),
    ],
)
def test_flops_have_exponents_in_threes(value, text):
    assert f.flops(value) == text


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (8, 16, "(8, 16]"),
        (64, None, "> 64 (censored)"),
        (None, 0, "0 (broken before training)"),
        (None, 4, "≤ 4"),
        (None, None, "—"),
        (0, 1, "(0, 1]"),
        (0, None, "> 0 (censored)"),
    ],
)
def test_steps_interval(low, high, text):
    assert f.steps_interval(low, high) == text


def test_a_censored_run_says_what_makes_it_unsure():
    run = trajectory(0).model_copy(
        update={"ambiguous": (32, 64), "last_resisting": 16, "collapsed_at": 64}
    )
    assert f.breach_interval(run) == "> 16 (censored); ambiguous at 32, 64; collapsed at 64"
    assert f.breach_interval(
        run.model_copy(update={"last_resisting": None, "outcome": "diverged"})
    ).startswith("undecided")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.95, "95\u00a0%"),
        (0.999, "99.9\u00a0%"),
        (1.0, "100\u00a0%"),
        (0.0004, "0.04\u00a0%"),
        (0.0, "0\u00a0%"),
        (None, "—"),
    ],
)
def test_percent_never_rounds_to_certainty(value, text):
    assert f.percent(value) == text


def test_interval():
    assert f.interval(Interval(low=-0.1, high=0.25, level=0.95), 2) == "[−0.10, 0.25] (95\u00a0%)"
    assert f.interval(Interval(low=4.0, high=None, level=0.9), 2) == "≥ 4.00 (90\u00a0%)"
    assert f.interval(Interval(low=None, high=2.0, level=0.9), 2) == "≤ 2.00 (90\u00a0%)"
    assert f.interval(Interval(low=None, high=None, level=0.9)) == "unbounded (90\u00a0%)"
    assert f.interval(None) == "—"


def test_seconds_and_size():
    assert f.seconds(4.25) == "4.2\u00a0s" and f.seconds(750) == "12\u00a0min 30\u00a0s"
    assert (
        f.seconds(11_100) == "3\u00a0h 05\u00a0min"
        and f.size(3 * 2**29) == "1.50\u00a0GiB"
        and f.size(0) == "—"
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("path:/home/me/x/model", "path:…/model"),
        ("see /var/tmp/run-1/records", "see …/records"),
        ("harm/attack", "harm/attack"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("1/2 and I/O", "1/2 and I/O"),
        ("~/runs/a/b", "…/b"),
        (r"C:\Users\me\model", "…/model"),
        ("hub:org/name", "hub:org/name"),
    ],
)
def test_local_paths_are_shortened(text, shown):
    assert f.without_paths(text) == shown


def test_seeds():
    assert f.seeds(()) == "—" and f.seeds((0, 1, 2, 7, 9, 10)) == "0–2, 7, 9–10"
