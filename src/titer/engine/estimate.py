"""What a plan will cost, before any of it is done: cells, steps, time, memory. Rough on purpose,
and said so.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from titer.study.cell import Cell, Plan
from titer.study.spec import Study

STEP_OVERHEAD_S = 0.008
"""Seconds of a step that do not shrink with the model (Python, optimizer, kernel launches), one CPU
thread.
"""
CELL_OVERHEAD_S = 0.3


@dataclass(frozen=True)
class Estimate:
    """cells, steps: counts, upper limits (a broken model stops early; searched confirmations are
    counted once found).

    seconds: wall time with the study's workers on this machine; memory_bytes: of all workers
    together.
    """

    cells: int
    steps: int
    seconds: float
    memory_bytes: float
    waiting_for_search: bool


def estimate(
    study: Study, plan: Plan, parameters: int, *, throughput: float | None = None
) -> Estimate:
    """Estimate a plan for models of `parameters` weights. throughput: FLOP/s of one worker;
    measured if omitted.
    """
    runtime = study.runtime
    rate = throughput or matmul_throughput(runtime.precision, runtime.threads)
    seconds = sum(_seconds(p.cell, parameters, rate) for p in plan.cells)
    # weights, gradient and two AdamW moments in fp32, copies of a small starting model, activations
    # of one batch
    one_worker = (
        16.0 * parameters
        + min(8.0 * parameters, 5e8)
        + 3e8
        + 64.0 * parameters**0.5 * runtime.max_length * 32
    )
    return Estimate(
        cells=len(plan.cells),
        steps=sum(p.cell.steps for p in plan.cells),
        seconds=seconds / runtime.workers,
        memory_bytes=one_worker * runtime.workers,
        waiting_for_search=not plan.complete,
    )


def _seconds(cell: Cell, parameters: int, rate: float) -> float:
    settings = cell.method.settings if cell.method else {}
    texts = (
        max(1, (cell.harmful is not None) + (cell.harmless is not None))
        if cell.method and cell.method.kind == "defense"
        else 1
    )
    tokens = settings.get("batch_size", 0) * texts * cell.max_length * 0.7
    flops = cell.steps * 6.0 * parameters * tokens
    for measure in cell.measures:
        times = {
            "probes": max(1, len(cell.probes)),
            "ends": 2,
            "suspected_breach": max(1, len(cell.probes) // 2),
        }[measure.at]
        per_item = 48 + 4.0 * measure.settings.get(
            "max_new_tokens", 0
        )  # decoding is slower per token than reading
        flops += times * (measure.text.examples or 100) * per_item * 2.0 * parameters
    return flops / rate + cell.steps * STEP_OVERHEAD_S + CELL_OVERHEAD_S


def matmul_throughput(precision: str, threads: int) -> float:
    """FLOP/s of a 512×512×2048 product with `threads` threads, halved: what training reaches of it
    in practice.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        dtype = torch.bfloat16 if precision == "bf16_autocast" else torch.float32
        a, b = torch.ones(512, 512, dtype=dtype), torch.ones(512, 2048, dtype=dtype)
        a @ b
        begun, count = time.perf_counter(), 0
        while time.perf_counter() - begun < 0.2:
            a @ b
            count += 1
        return 0.5 * count * 2.0 * 512 * 512 * 2048 / (time.perf_counter() - begun)
    finally:
        torch.set_num_threads(before)
