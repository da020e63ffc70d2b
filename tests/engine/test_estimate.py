import pytest

from titer.data.pools import Pools
from titer.engine.estimate import estimate, matmul_throughput
from titer.engine.planning import plan

MILLION = 1_000_000


def of(study, parameters=MILLION):
    return estimate(
        study, plan(study, Pools(study), lambda digest: None), parameters, throughput=1e9
    )


def resistance(small_study, **changes):
    fields = small_study().resistance.model_dump(mode="json") | changes
    return small_study(resistance=fields)


def test_cells_and_steps_are_counted(small_study):
    found = of(small_study())
    # one building cell of 4 steps; 2 candidates × 1 attack × 2 seeds of 8 steps
    assert (found.cells, found.steps) == (5, 4 + 4 * 8)
    assert not found.waiting_for_search


def test_more_steps_take_longer(small_study):
    times = [of(resistance(small_study, budget=b)).seconds for b in (4, 8, 16, 64)]
    assert times == sorted(times) and len(set(times)) == 4


def test_more_seeds_take_longer(small_study):
    times = [of(resistance(small_study, seeds=list(range(n)))).seconds for n in (1, 2, 5, 9)]
    assert times == sorted(times) and len(set(times)) == 4


def test_a_larger_model_takes_longer_and_more_memory(small_study):
    small, large = (of(small_study(), n * MILLION) for n in (1, 100))
    assert small.seconds < large.seconds and small.memory_bytes < large.memory_bytes
    # weights, gradients, two moments and the pristine copies are all in single precision
    assert large.memory_bytes > 100 * MILLION * 4 * 4


def test_workers_divide_the_time_and_multiply_the_memory(small_study):
    one, four = (of(small_study(runtime={"max_length": 32, "workers": w})) for w in (1, 4))
    assert four.seconds == pytest.approx(one.seconds / 4)
    assert four.memory_bytes == pytest.approx(4 * one.memory_bytes)


def test_a_search_is_announced(small_study):
    attack = {"attack": "full_sft", "settings": {"batch_size": 16}, "search": {"lr": [1e-3, 1e-4]}}
    assert of(resistance(small_study, attacks=[attack])).waiting_for_search


def test_throughput_is_measured(monkeypatch):
    import torch

    before = torch.get_num_threads()
    assert 1e7 < matmul_throughput("fp32", 1) < 1e15
    assert torch.get_num_threads() == before
