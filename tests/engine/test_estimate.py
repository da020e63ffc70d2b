import pytest
import torch

from titer.data.pools import Pools
from titer.engine.estimate import (
    Timed,
    TimedReading,
    Timings,
    complete_plan,
    estimate,
    measure_key,
    method_key,
)
from titer.engine.throughput import matmul_throughput
from titer.study.candidate import CONTROL

MILLION = 1_000_000


def of(study, parameters=MILLION, timings=None, **changes):
    plan = complete_plan(study, Pools(study))
    sizes = {p.start.ref: parameters for p in plan.cells}
    options = {"throughput": 1e9, "timings": timings} | changes
    return estimate(study, plan, sizes, **options)


def resistance(small_study, attacks=None, **changes):
    fields = small_study().resistance.model_dump(mode="json") | changes
    if attacks is not None:
        fields["attacks"] = attacks
    return small_study(resistance=fields)


def test_cells_and_steps_are_counted(small_study):
    found = of(small_study())
    # one building cell of 4 steps; 2 candidates × 1 attack × 2 seeds of 8 steps
    assert (found.cells, found.steps) == (5, 4 + 4 * 8)
    assert found.search_cells == 0 and found.judge_calls == 0


def test_confirmations_behind_a_search_are_counted(small_study):
    searched = {
        "attack": "full_sft",
        "settings": {"batch_size": 16},
        "search": {"lr": [1e-3, 1e-4, 1e-5]},
    }
    found = of(resistance(small_study, [searched], seeds=list(range(100, 129))))
    # 2 candidates × 3 points × 2 search seeds, then 2 candidates × 29 seeds, 8 steps each
    assert (found.cells, found.search_cells) == (1 + 12 + 58, 12)
    assert found.steps == 4 + 8 * (12 + 58)


def test_the_search_of_trainability_is_counted_too(small_study):
    study = small_study(
        candidates=["none"],
        trainability={
            "tasks": [
                {
                    "name": "task",
                    "data": {"harmless": "harmless/defense"},
                    "measure": {"measure": "exact_answer", "part": "harmless/capability"},
                    "search_part": "harm/search",
                    "budget": 4,
                }
            ],
            "recipe": "full_sft",
            "search": {"lr": [1e-3, 1e-4]},
            "search_seeds": [1],
            "seeds": [2, 3, 4],
        },
        defense_data=None,
    )
    found = of(study)
    assert found.search_cells == 2 and found.cells == 2 + 2 + 3
    assert found.steps == 2 * 8 + (2 + 3) * 4


def test_stages_and_defense_seeds_are_counted(small_study):
    stage = {"method": {"name": "sft_refusal"}, "steps": 4}
    candidate = {"name": "two", "stages": [stage, {**stage, "steps": 3}], "seeds": [5, 6]}
    found = of(small_study(candidates=["none", candidate]))
    assert (found.cells, found.steps) == (2 * 2 + 4, 2 * (4 + 3) + 4 * 8)


def test_more_steps_take_longer(small_study):
    times = [of(resistance(small_study, budget=b)).seconds for b in (4, 8, 16, 64)]
    assert times == sorted(times) and len(set(times)) == 4


def test_more_seeds_take_longer(small_study):
    times = [of(resistance(small_study, seeds=list(range(20, 20 + n)))).seconds for n in (1, 2, 9)]
    assert times == sorted(times) and len(set(times)) == 3


def test_a_larger_model_takes_longer_and_more_memory(small_study):
    small, large = (of(small_study(), n * MILLION) for n in (1, 100))
    assert small.seconds < large.seconds and small.memory_bytes < large.memory_bytes
    # weights, gradients, two moments and the pristine copies are all in single precision
    assert large.memory_bytes > 100 * MILLION * 4 * 4


def test_workers_divide_the_time_and_multiply_the_memory(small_study):
    one, four = (of(small_study(runtime={"max_length": 32, "workers": w})) for w in (1, 4))
    assert four.seconds == pytest.approx(one.seconds / 4)
    assert four.memory_bytes == pytest.approx(4 * one.memory_bytes)


def test_a_model_of_unknown_size_leaves_time_and_memory_open(small_study):
    found = of(small_study(), None)
    assert found.seconds is None and found.memory_bytes is None and found.cells == 5


def test_a_budget_in_flops_ends_before_its_steps(small_study):
    def with_budget(budget):
        return resistance(small_study, [{"attack": "full_sft", "budget": budget}])

    long = of(with_budget(1000))
    # A step of 8 rows is about 8 · 32 · 0.7 tokens · 6 FLOPs · 1e6 parameters ≈ 1.1e9.
    short = of(with_budget({"flops": 1e10, "steps": 1000}))
    assert short.steps == long.steps, "at most so many steps"
    assert short.seconds < 0.1 * long.seconds
    assert of(with_budget({"flops": 1e15, "steps": 1000})).seconds == pytest.approx(long.seconds)


def lisa(**settings):
    method = {"name": "lisa", "settings": {"alignment_steps": 10, "user_steps": 4, **settings}}
    return [CONTROL, {"name": "lisa", "service": {"method": method}}]


def test_steps_of_a_service_take_time_but_no_budget(small_study):
    fields = {"threat_model": "fine_tuning_service"}
    few = of(small_study(candidates=lisa(), **fields))
    many = of(small_study(candidates=lisa(alignment_steps=1000), **fields))
    assert few.steps == many.steps == 4 * 8 and many.seconds > 10 * few.seconds


def test_judgements_are_counted(small_study):
    judge = {"name": "chat", "settings": {"base_url": "http://127.0.0.1:9", "model": "m"}}
    harm = {"measure": "judged_harm", "settings": {"judge": judge}, "part": "harm/judge"}
    study = resistance(small_study, harm=harm)
    # 4 cells, 5 probes (0, 1, 2, 4, 8), 48 prompts, and as many to confirm
    assert of(study).judge_calls == 4 * 5 * (48 + 48)
    plan = complete_plan(study, Pools(study))
    key = measure_key(next(m for p in plan.cells for m in p.cell.measures))
    slow = of(study, timings=Timings(judges={key: 1.0}))
    assert slow.seconds == pytest.approx(of(study).seconds + 4 * 5 * 2 * 48)


def test_what_was_measured_counts_instead_of_what_is_computed(small_study):
    study = small_study(candidates=["none"])
    plan = complete_plan(study, Pools(study))
    attack = plan.cells[0]
    model = str(attack.start.ref)
    reading = {(model, measure_key(m)): TimedReading(48, 0.0, 0.0) for m in attack.cell.measures}
    timed = Timed(setup=1.0, first=3.0, later=2.0)
    found = of(study, timings=Timings({(model, method_key(attack)): timed}, reading))
    assert found.seconds == pytest.approx(2 * (0.3 + 1.0 + 3.0 + 7 * 2.0))
    once = Timed(setup=1.0, first=3.0, later=None)
    found = of(study, timings=Timings({(model, method_key(attack)): once}, reading))
    assert found.seconds == pytest.approx(2 * (0.3 + 1.0 + 3.0)), "nothing is left to do"


def test_phases_of_a_service_repeat_its_first_step(small_study):
    study = small_study(candidates=lisa(), threat_model="fine_tuning_service")
    plan = complete_plan(study, Pools(study))
    hosted = next(p for p in plan.cells if p.cell.host)
    timings = Timings(
        {
            (str(p.start.ref), method_key(p)): Timed(
                setup=0.0, first=100.0 if p.cell.host else 0.0, later=0.0
            )
            for p in plan.cells
        },
        {
            (str(hosted.start.ref), measure_key(m)): TimedReading(48, 0.0, 0.0)
            for m in hosted.cell.measures
        },
    )
    # two seeds, and two phases of four steps each
    assert of(study, timings=timings).seconds == pytest.approx(2 * 2 * 100 + 4 * 0.3)


def test_settings_that_only_tune_a_method_name_the_same_method(small_study):
    sweep = {"attack": "full_sft", "sweep": {"lr": [1e-3, 1e-4]}}
    other = {"attack": "full_sft", "name": "larger", "settings": {"batch_size": 4}}
    study = resistance(small_study, [sweep, other])
    plan = complete_plan(study, Pools(study))
    attacks = [p for p in plan.cells if p.cell.method and p.cell.method.name == "full_sft"]
    assert len({p.digest for p in attacks}) == 3 * 4 and len(set(map(method_key, attacks))) == 2


@pytest.mark.parametrize("precision", ["fp32", "bf16_autocast"])
def test_throughput_is_measured(precision):
    before = torch.get_num_threads()
    assert 1e7 < matmul_throughput(precision, 1, "cpu", seconds=0.01) < 1e15
    assert torch.get_num_threads() == before
