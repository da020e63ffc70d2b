"""Paired non-inferiority, and what it does at the edges."""

import numpy as np
import pytest
from scipy.stats import bootstrap

from helpers.factory import BENCH_FACTS, STABILITY, Make, bench, facts
from titer.records.bounds import upper_bound
from titer.verdicts import judge
from titer.verdicts.statistics.paired import discordant_limits, paired_limits

RNG = np.random.default_rng(0)


def verdict(candidate, control=None, *, measures=None, items=("items", "items"), spec=None):
    control = bench(np.random.default_rng(2)) if control is None else control
    make = Make(stability=spec or STABILITY)
    make.benchmark("none", control, measures or BENCH_FACTS, items=items[0])
    if candidate is not None:
        make.benchmark("defended", candidate, measures or BENCH_FACTS, items=items[1])
    found = judge(make.view()).candidates[0].stability
    return found, {b.name: b for b in found.benchmarks}


def test_the_bootstrap_agrees_with_scipy():
    gaps = RNG.gamma(2.0, 0.5, 300)
    low, high = paired_limits(gaps, 0.05, proportion=False)
    theirs = bootstrap(
        (gaps,), np.mean, confidence_level=0.9, method="BCa", n_resamples=10_000, rng=1
    )
    assert low == pytest.approx(theirs.confidence_interval.low, abs=0.01)
    assert high == pytest.approx(theirs.confidence_interval.high, abs=0.01)


def test_no_difference_is_not_certainty():
    low, high = paired_limits(np.zeros(100), 0.05, proportion=True)
    assert low == -upper_bound(0, 100, 0.05) == pytest.approx(-0.0295, abs=1e-3)
    assert high == -low
    low, high = paired_limits(np.zeros(100), 0.05, proportion=False, spread=2.0)
    assert (low, high) == pytest.approx((-0.059, 0.059), abs=1e-3)


def test_few_discordant_items_are_bounded_exactly():
    assert discordant_limits(2, 0, 100, 0.05) == pytest.approx(
        (-upper_bound(2, 100, 0.05), upper_bound(0, 100, 0.025) - 0.00243), abs=1e-3
    )
    low, high = discordant_limits(3, 4, 100, 0.05)
    assert low < 0.01 < high


def test_holds():
    found, by = verdict(bench(np.random.default_rng(3)))
    assert found.status == "holds"
    assert all(b.status == "holds" and b.interval.low > -b.margin for b in by.values())
    assert found.claim.startswith("Not worse than the undefended model")


def test_fails_and_is_oriented_so_that_negative_is_worse():
    found, by = verdict(bench(np.random.default_rng(3), loss=0.3))
    assert found.status == "fails"
    assert all(b.difference < -b.margin for name, b in by.items() if name != "wrapped")
    _, by = verdict(bench(np.random.default_rng(2)), bench(np.random.default_rng(3), loss=0.3))
    assert all(b.difference > 0 for name, b in by.items() if name != "wrapped")


def test_too_few_items_are_inconclusive():
    few = {k: v[:30] for k, v in bench(np.random.default_rng(2)).items()}
    found, by = verdict(few, few)
    assert found.status == "inconclusive"
    assert by["recall"].status == "inconclusive"
    assert "30 items cannot tell" in by["recall"].reason


def test_unpaired_items_missing_models_and_nan_are_inconclusive():
    good = bench(np.random.default_rng(3))
    assert verdict(good, items=("a", "b"))[0].status == "inconclusive"
    assert verdict(None)[0].status == "inconclusive"
    assert verdict({**good, "text": good["text"][:-1]})[1]["text"].status == "inconclusive"
    make = (
        Make(stability=STABILITY)
        .benchmark("none", good, BENCH_FACTS)
        .benchmark("defended", good, BENCH_FACTS)
    )
    digest = next(d for d, (c, _) in make.cells.items() if c.model == "stability:defended")
    record = make.records[digest]
    broken = record.probes[0].readings[1].model_copy(update={"value": None})
    probe = record.probes[0].model_copy(
        update={"readings": (record.probes[0].readings[0], broken, record.probes[0].readings[2])}
    )
    make.records[digest] = record.model_copy(update={"probes": (probe,)})
    assert judge(make.view()).candidates[0].stability.benchmarks[1].status == "inconclusive"


def test_a_benchmark_at_chance_is_no_evidence_but_another_of_its_kind_may_stand_in():
    guess = {"recall": (np.arange(400) % 9 == 0).astype(float)}
    rest = {k: v for k, v in bench(np.random.default_rng(2)).items() if k != "recall"}
    found, by = verdict({**guess, **rest}, {**guess, **rest})
    assert (by["recall"].status, found.status) == ("invalid", "inconclusive")
    spec = {
        "benchmarks": [*STABILITY["benchmarks"], {**STABILITY["benchmarks"][0], "name": "second"}]
    }
    full = {**guess, **rest, "second": (np.arange(400) % 5 != 0).astype(float)}
    found, by = verdict(
        full, full, measures={**BENCH_FACTS, "second": BENCH_FACTS["recall"]}, spec=spec
    )
    assert (by["recall"].status, found.status) == ("invalid", "holds")
    assert "recall not counted" in found.claim
    only = {"benchmarks": STABILITY["benchmarks"][:1]}
    assert verdict(guess, guess, spec=only)[0].status == "invalid"


def test_a_control_that_refuses_everything_has_nothing_to_lose():
    everything = {**bench(np.random.default_rng(2)), "refusals": np.ones(400)}
    assert verdict(everything, everything)[1]["refusals"].status == "invalid"


def test_fixed_items_have_no_sampling_error():
    exact = {
        **BENCH_FACTS,
        "recall": facts("copying", "capable", "capability", chance=0.1, sampling="fixed"),
    }
    same = bench(np.random.default_rng(2))
    interval = verdict(same, same, measures=exact)[1]["recall"].interval
    assert (interval.low, interval.high) == (0, 0)


def test_without_benchmarks_stability_is_not_tested():
    assert judge(Make().view()).candidates[0].stability.status == "not tested"


@pytest.mark.parametrize("items", [2, 5, 19])
def test_a_mean_over_few_documents_is_not_judged(items):
    base = bench(np.random.default_rng(1))
    few = {**base, "text": base["text"][:items]}
    found, by = verdict(few, few)
    assert (by["text"].status, found.status) == ("inconclusive", "inconclusive")
    assert "too few" in by["text"].reason
