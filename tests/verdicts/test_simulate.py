"""The array rules used for calibration say what the judging code says; and a small calibration
keeps every promise.
"""

import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
import pytest

import simulate as sim
from titer.verdicts.evidence.trajectories import Probe, SeedTrajectory, proportion
from titer.verdicts.resistance.attack import find
from titer.verdicts.resistance.judged import Setting
from titer.verdicts.statistics.seeds import order_limits

GRID = (0, 1, 2, 4, 8, 16)
PROMPTS = 60
STATUS = {"holds": sim.HOLDS, "fails": sim.FAILS, "inconclusive": sim.INCONCLUSIVE}


def judged_one_by_one(plan, harm_NK, confirm_NK):
    """The real judging code on one study, from counts."""
    trajectories = []
    for seed, (row, other) in enumerate(zip(harm_NK, confirm_NK, strict=True)):
        probes = []
        for step, k, c in zip(GRID, row, other, strict=True):
            low, high = proportion(int(k), PROMPTS, plan.level)
            probes.append(
                Probe(
                    step=step,
                    flops=float(step),
                    harm=k / PROMPTS,
                    low=low,
                    high=high,
                    confirm_low=proportion(int(c), PROMPTS, plan.level)[0],
                )
            )
        trajectories.append(
            SeedTrajectory(
                seed=seed,
                digests=("x",),
                outcome="reached_budget",
                probes=tuple(probes),
                finished=True,
            )
        )
    broken = tuple(
        SeedTrajectory(
            seed=s,
            digests=("c",),
            outcome="reached_budget",
            finished=True,
            probes=tuple(
                Probe(
                    step=g,
                    flops=float(g),
                    harm=float(g > 0),
                    low=float(g > 0),
                    high=float(g > 0),
                    confirm_low=float(g > 0),
                )
                for g in GRID
            ),
        )
        for s in plan.seeds
    )
    return find(
        "a", trajectories, broken, Setting(design=plan, phi=0.5, role="attack", on_control=False)
    ), trajectories


@pytest.mark.parametrize(("n", "delta"), [(5, 0.5), (4, 0.5), (14, 0.2)])
def test_arrays_and_judging_code_agree(n, delta):
    rng, plan = np.random.default_rng(n), sim.design(n, delta, GRID)
    studies = 120
    top = rng.choice(
        [0.1, 0.25, 0.5, 0.65, 0.95], size=(studies, n, 1)
    )  # every state occurs, at every probe
    shape = np.where(rng.random((studies, 1, 1)) < 0.4, 0.0, np.linspace(0, 1, len(GRID)))
    harm, confirm = (rng.binomial(PROMPTS, np.clip(top * shape + 0.02, 0, 1)) for _ in "ab")
    many = sim.judge_many(plan, 0.5, harm, confirm, PROMPTS)
    seen = set()
    for s in range(studies):
        found, _ = judged_one_by_one(plan, harm[s], confirm[s])
        assert STATUS[found.status] == many.status_S[s]
        assert (found.limit is None) == math.isnan(many.limit_S[s])
        assert found.limit is None or found.limit[0] == many.limit_S[s]
        for i, t in enumerate(found.times):
            assert many.last_SN[s, i] == (GRID[t.last] if t.last is not None else -1)
            assert many.first_SN[s, i] == (GRID[t.first] if t.first is not None else math.inf)
            assert many.possible_SN[s, i] == (not t.resisted)
        seen.add(found.status)
    assert seen >= ({"holds", "fails", "inconclusive"} if n != 4 else {"fails", "inconclusive"})


def test_order_limits_agree():
    rng = np.random.default_rng(0)
    last = rng.integers(0, 9, (50, 14)).astype(float)
    first = np.where(rng.random((50, 14)) < 0.2, math.inf, last + 2)
    low, high = sim.order_limits_many(last, first, 0.5, 0.05, 0.05)
    for s in range(50):
        assert order_limits(list(zip(last[s], first[s], strict=True)), 0.5, 0.05, 0.05) == (
            low[s],
            high[s],
        )
    assert (
        sim.order_limits_many(last[:, :3], first[:, :3], 0.5, 0.05, 0.05)[1].tolist()
        == [math.inf] * 50
    )


def test_shared_prompts_give_binomial_counts_that_err_together():
    rng = np.random.default_rng(1)
    counts = sim.read_shared(rng, np.full((4000, 3, 1), 0.3), 40)[..., 0]
    assert (counts == counts[:, :1]).all()
    assert counts[:, 0].mean() == pytest.approx(12, abs=0.2)
    assert counts[:, 0].var() == pytest.approx(40 * 0.3 * 0.7, rel=0.1)


@pytest.fixture(scope="module")
def calibration():
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "calibration.py"
    spec = importlib.util.spec_from_file_location("calibration", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["calibration"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["calibration"]


def test_small_calibration(calibration):
    """300 studies per scenario: every promise is kept within three Monte-Carlo errors, every
    shortcut does worse than titer.
    """
    rows, pairs = calibration.run(300)
    assert [r for r in rows if not r.kept] == []
    assert {r.seeds for r in rows} >= {5, 14, 30}
    for shortcut, ours in pairs:
        assert shortcut.rate > 0.2, shortcut
        assert ours is None or (ours.kept and ours.rate < 0.1), shortcut


def test_a_broken_promise_would_be_seen(calibration):
    """Judging at ten times the level must show."""
    rng, (n, delta) = np.random.default_rng(0), (5, 0.5)
    few = sim.design(3, 0.8, GRID)  # three seeds are enough only for a larger δ
    breaks = rng.random((2000, 3)) < delta
    harm = sim.true_harm(np.where(breaks, 4.0, math.inf), GRID, 0.05, 0.9)
    wrong = calibration.row(
        "too few seeds", n, sim.judge_exact(few, 0.5, harm).status_S == sim.HOLDS, "at most", 0.05
    )
    assert not wrong.kept
