"""Comparisons: only of what asks the same question, with tests that keep their level."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, mannwhitneyu

from helpers.factory import BENCH_FACTS, BREAKS, STABILITY, Make, bench, facts, realistic
from titer.cli.main import main
from titer.errors import UsageError
from titer.records.store import RunStore
from titer.verdicts.comparison.compare import Comparison, compare
from titer.verdicts.comparison.pairs import permutation_test

EARLY, LATE = (0, 0.9, 1, 1, 1, 1), (0, 0, 0, 0, 0.9, 1)


def run(curve, *, control=BREAKS, name="defended", seeds=5, second=None, **fields) -> Make:
    make = Make(seeds=seeds, candidates=(name,), **fields).attack("none", "full_sft", control)
    return make.defense(name).attack(name, "full_sft", curve)


def two(first, second, **fields) -> Comparison:
    return compare(
        [
            ("a", run(first, name="first", **fields).view()),
            ("b", run(second, name="second", **fields).view()),
        ]
    )


# -- the test -------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 10_000), min_size=8, max_size=11, unique=True), st.integers(3, 5))
def test_without_censoring_it_is_the_exact_mann_whitney_test(times, n):
    spans = [(t, t + 0.5) for t in times]  # so narrow that every pair is ordered
    later, p = permutation_test(spans[:n], spans[n:])
    found = mannwhitneyu(times[:n], times[n:], alternative="two-sided", method="exact")
    assert later == pytest.approx(2 * found.statistic - n * (len(times) - n))
    assert p == pytest.approx(min(1.0, found.pvalue))


def test_intervals_that_overlap_say_nothing():
    assert permutation_test([(4, 8)] * 5, [(4, 8)] * 5) == (0, 1.0)
    assert permutation_test([(8, math.inf)] * 5, [(8, math.inf)] * 5) == (0, 1.0)
    later, p = permutation_test([(16, math.inf)] * 5, [(1, 2)] * 5)
    assert (later, p) == (25, pytest.approx(2 / math.comb(10, 5)))


@pytest.mark.parametrize("n", [5, 14])
def test_the_level_is_kept_under_censoring(n):
    """Equal laws, a coarse grid, half the runs censored: exact up to 50 000 arrangements, drawn at
    random above.
    """
    rng, grid, rounds = (
        np.random.default_rng(n),
        np.array([0, 2, 4, 8, 16, math.inf]),
        400 if n == 5 else 60,
    )
    wrong = 0
    for _ in range(rounds):
        tau = np.exp(rng.normal(math.log(16), 1, 2 * n))
        at = np.searchsorted(grid, tau)
        spans = list(zip(grid[at - 1], grid[at], strict=True))
        wrong += permutation_test(spans[:n], spans[n:])[1] <= 0.05
    assert wrong <= binom.ppf(0.9999, rounds, 0.05)


def test_it_has_power():
    rng = np.random.default_rng(0)
    draws = [
        [(max(0, t - 1), t) for t in np.ceil(np.exp(rng.normal(m, 0.5, 14)))] for m in (1.0, 3.0)
    ]
    later, p = permutation_test(draws[1], draws[0])
    assert later > 0 and p < 0.001


# -- statements -----------------------------------------------------------------------------------


def test_a_plain_difference():
    made = two(LATE, EARLY)
    (pair,) = made.attacks
    assert (pair.longer, pair.n, pair.later) == ("first", (5, 5), 25)
    assert "first withstands full_sft for more steps than second" in pair.statement
    assert made.worst[0].estimate == 8 and made.worst[0].interval.low == 0
    assert two(EARLY, LATE).attacks[0].longer == "second"


def test_enough_seeds_give_a_finite_ratio():
    made = two(LATE, EARLY, seeds=14)
    worst = made.worst[0]
    assert (worst.interval.low, worst.interval.high) == (
        4,
        None,
    )  # l = 4 over u = 1; the second's l is 0
    assert "withstands more than second: at least 4 times" in worst.statement


def test_no_difference_says_so_and_not_that_they_are_equal():
    made = two(LATE, LATE)
    assert made.attacks[0].longer is None and "not distinguished" in made.attacks[0].statement
    assert "equal" not in json.dumps(made.model_dump(mode="json"))


def test_statements_are_corrected_for_their_number():
    """Five candidates of which one differs: ten pairs. 2/252 · 10 > 0.05, so five seeds cannot say
    it; 252 is the smallest p's inverse.
    """
    names = [f"c{i}" for i in range(5)]
    make = Make(candidates=names).attack("none", "full_sft", BREAKS)
    for name in names:
        make.attack(name, "full_sft", LATE if name == "c0" else EARLY)
    made = compare([("r", make.view())])
    assert len(made.attacks) == 10 and all(p.longer is None for p in made.attacks)
    assert made.attacks[0].adjusted == pytest.approx(10 * 2 / 252)
    assert "can never distinguish 10 comparisons" in made.attacks[0].statement
    assert made.worst[0].interval.level == pytest.approx(1 - 2 * 0.05 / 20)


def test_missing_seeds_give_no_statement():
    a = (
        Make(candidates=("first",))
        .attack("none", "full_sft", BREAKS)
        .attack("first", "full_sft", LATE, missing=(3,))
    )
    made = compare([("a", a.view()), ("b", run(EARLY, name="second").view())])
    assert made.attacks == () and "share no attack" in made.worst[0].statement
    assert any("unfinished: a" in r for r in made.remarks)


def test_benchmarks_are_paired_by_item():
    base, worse = bench(np.random.default_rng(1)), bench(np.random.default_rng(2), loss=0.3)

    def make(name, outcomes, items="items"):
        m = run(LATE, name=name, stability=STABILITY).benchmark("none", base, BENCH_FACTS)
        return m.benchmark(name, outcomes, BENCH_FACTS, items=items).view()

    made = compare([("a", make("first", base)), ("b", make("second", worse))])
    assert {p.benchmark: p.better for p in made.benchmarks} == {
        "recall": "first",
        "text": "first",
        "refusals": "first",
        "wrapped": None,
    }
    assert all(p.interval.level == pytest.approx(1 - 2 * 0.05 / 8) for p in made.benchmarks)
    other = compare([("a", make("first", base)), ("b", make("second", worse, "others"))])
    assert all(p.interval is None and "same items" in p.statement for p in other.benchmarks)


def test_names_that_occur_twice_carry_their_run():
    made = compare([("a", run(LATE).view()), ("b", run(EARLY).view())])
    assert [s.name for s in made.sides] == ["a:defended", "b:defended"]
    with pytest.raises(UsageError, match="same name"):
        compare([("a", run(LATE).view()), ("a", run(EARLY).view())])


def test_a_whole_study_against_itself_in_another_run():
    made = compare([("r", realistic().view())])
    assert len(made.sides) == 3 and len(made.worst) == 3
    assert {p.attack for p in made.attacks} == {
        "full_sft",
        "lora_sft",
        "elsewhere",
    }  # the reference attack is none
    assert Comparison.model_validate_json(made.model_dump_json()) == made


def test_models_of_different_size_are_compared_in_steps():
    """They break at the same step; in FLOPs the larger one would seem to withstand longer."""
    a = (
        Make(candidates=("big",))
        .attack("none", "full_sft", BREAKS)
        .attack("big", "full_sft", LATE, flops=2e9)
    )
    b = (
        Make(candidates=("small",))
        .attack("none", "full_sft", BREAKS)
        .attack("small", "full_sft", LATE, flops=1e9)
    )
    (pair,) = compare([("a", a.view()), ("b", b.view())]).attacks
    assert (pair.later, pair.p_value, pair.longer) == (0, 1.0, None)


# -- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"resistance": {"phi": 0.6}}, "φ differs"),
        ({"threat_model": "fine_tuning_service"}, "threat model differs"),
        ({"attacks": {"full_sft": {"settings": {"lr": 1.0}}}}, "battery differs"),
        ({"attacks": {"full_sft": {}, "lora_sft": {}}}, "battery differs"),
        ({"grid": (0, 1, 2, 4, 8, 32)}, "budget and probes differs"),
        ({"harm": facts("keywords", "harmful", "harmfulness")}, "construct differs"),
    ],
)
def test_different_questions_are_refused_unless_told_to(other, says):
    runs = [("a", run(LATE, name="first").view()), ("b", run(EARLY, name="second", **other).view())]
    with pytest.raises(UsageError, match=says):
        compare(runs)
    made = compare(runs, force=True)
    assert made.forced and any(says in d for d in made.differences)


def test_one_candidate_is_nothing_to_compare():
    with pytest.raises(UsageError, match="nothing to compare"):
        compare([("a", run(LATE).view())])


def test_different_designs_are_remarked():
    made = compare(
        [("a", run(LATE, name="first").view()), ("b", run(EARLY, name="second", seeds=7).view())]
    )
    assert any("do not mean" in r or "does not mean the same" in r for r in made.remarks)


# -- command line ---------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    """A function that writes a synthetic run to disk."""

    def write(name: str, make: Make):
        store, view = RunStore(tmp_path / name), make.view()
        with store.locked():
            store.begin(view.study)
            store.write_plan(view.plan)
            for record in view.records.values():
                store.write_record(record)
        return str(tmp_path / name)

    return write


def test_command(saved, capsys):
    a, b = saved("a", run(LATE, name="first")), saved("b", run(EARLY, name="second"))
    assert main(["compare", a, b]) == 0
    assert "first withstands full_sft for more steps than second" in capsys.readouterr().out
    assert main(["compare", a, b, "--json"]) == 0
    assert Comparison.model_validate_json(capsys.readouterr().out).attacks[0].longer == "first"
    c = saved("c", run(EARLY, name="third", resistance={"phi": 0.4}))
    assert main(["compare", a, c]) == 2
    assert "φ differs" in capsys.readouterr().err
    assert main(["compare", a, c, "--force"]) == 0
    assert "no line below is a fair comparison" in capsys.readouterr().out


def test_audit_command(saved, capsys):
    a = saved("a", run(LATE))
    assert main(["audit", a]) == 0
    assert "control_broken" in capsys.readouterr().out
    assert main(["audit", a, "--require", "control_broken"]) == 0
    assert main(["audit", a, "--require", "control_broken", "--require", "adapted_attack"]) == 3
    assert "required but not met: adapted_attack" in capsys.readouterr().out
    assert main(["audit", a, "--require", "all", "--json"]) == 3
    card = json.loads(capsys.readouterr().out)
    assert card["not_met"] and len(card["guidelines"]) == 19 == len(
        {g["code"] for g in card["guidelines"]}
    )
    assert main(["audit", a, "--require", "control_brocken"]) == 2
    assert "did you mean control_broken" in capsys.readouterr().err


def test_power_command(capsys):
    assert main(["power", "quickstart"]) == 0
    text = capsys.readouterr().out
    assert "5 needed for `holds`" in text and "7 needed for a cell of the matrix" in text
    assert main(["power", "quickstart", "--breach", "0.2", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["chances"][0]["holds"] == pytest.approx(0.8**5, abs=0.01)
    assert main(["power", "quickstart", "--breach", "2"]) == 2
    assert main(["power", "quickstart", "--at", "1000"]) == 2
    assert main(["power", "no_such_study"]) == 2
    for option in (
        "--breach",
        "--before",
        "--after",
        "--control",
        "--target",
        "--changed",
        "--sd",
        "--seed-sd",
    ):
        for value in ("nan", "inf", "1e300"):
            assert main(["power", "quickstart", option, value]) == 2
            assert "Traceback" not in capsys.readouterr().err
