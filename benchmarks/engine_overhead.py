"""Overhead of the engine against a bare PyTorch loop that does the same optimizer steps, probes
excluded.

    python benchmarks/engine_overhead.py [--model tiny|smollm2|both] [--blocks 20] [--steps 64]
        [--write FILE]

The two are interleaved in blocks of one process, in alternating order, and compared block by block:
absolute times are noise, their ratio is not. Prints the median ratio with a 95 % bootstrap interval
over blocks; --write makes a Markdown page of it.
"""

from __future__ import annotations

import argparse
import copy
import shlex
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from titer.assets.models import load_model
from titer.data.bundle import ModelBundle
from titer.data.examples import Example
from titer.data.sources import load_source
from titer.data.texts import Texts
from titer.engine.environment import environment
from titer.engine.run_cell import run_cell
from titer.engine.work import CellWork
from titer.methods.attacks.full_sft import FullSFT
from titer.study.cell import Cell
from titer.study.reference import ModelRef

TARGET = 1.05
"""What the project promises: at most 5 % on top of a bare loop."""


@dataclass(frozen=True)
class Work:
    """One model with what it trains on. steps: optimizer steps of a block."""

    model: str
    ref: ModelRef
    source: str
    options: dict
    batch_size: int
    max_length: int
    precision: str
    steps: int


WORKS = {
    "tiny": Work(
        "tiny",
        ModelRef(source="tiny", name="aligned"),
        "tiny_world",
        {"group": "harm", "count": 240},
        batch_size=16,
        max_length=32,
        precision="fp32",
        steps=64,
    ),
    "smollm2": Work(
        "smollm2",
        ModelRef(source="package", name="smollm2-135m-instruct"),
        "alpaca",
        {"max_chars": 300},
        batch_size=4,
        max_length=64,
        precision="fp32",
        steps=2,
    ),
}


@dataclass(frozen=True)
class Result:
    """Overhead of the engine over blocks: median ratio with its interval, and the seconds of a step
    of either.
    """

    work: Work
    steps: int
    ratios: tuple[float, ...]
    interval: tuple[float, float]
    seconds: tuple[float, float]

    @property
    def median(self) -> float:
        return float(np.median(self.ratios))

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"{self.work.model}: engine / bare loop = {self.median:.3f}, 95 % interval "
            f"[{low:.3f}, {high:.3f}], {len(self.ratios)} blocks of {self.steps} steps"
        )


def bare(bundle: ModelBundle, examples: tuple[Example, ...], method: FullSFT, steps: int) -> float:
    """Seconds of a plain loop: the same batches, AdamW, clipping, and the loss and gradient norm
    read every step.
    """
    text = Texts({"harmful": examples}, bundle)
    batches = text.stream("response", of="harmful", batch_size=method.batch_size, seed=0)
    model = bundle.model.requires_grad_(True).eval()
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=method.lr, weight_decay=0.0, fused=True)
    begun = time.perf_counter()
    for step in range(steps):
        batch = batches.one(step)
        with bundle.autocast():
            logits = model(
                input_ids=batch.input_BT, attention_mask=batch.mask_BT, use_cache=False
            ).logits
            loss = functional.cross_entropy(
                logits[:, :-1].flatten(0, 1).float(), batch.labels_BT[:, 1:].flatten()
            )
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, method.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item(), norm.item()
    return time.perf_counter() - begun


def engine(
    bundle: ModelBundle, examples: tuple[Example, ...], method: FullSFT, steps: int
) -> float:
    """Seconds the engine takes for all steps, everything it does between them included; encoding of
    text is not.
    """
    marks: list[float] = []
    cell = Cell(model="benchmark", steps=steps)
    result = run_cell(
        CellWork(cell=cell, bundle=bundle, method=method, texts={"harmful": examples}),
        progress=lambda done, total: marks.append(time.perf_counter()),
    )
    end = time.perf_counter()
    if result.record.cost.steps != steps:
        raise SystemExit("the engine did not do all steps")
    return end - marks[0]


def measure(work: Work, blocks: int, steps: int) -> Result:
    """`blocks` pairs of measurements after one that warms caches up."""
    loaded = load_model(work.ref)
    examples = load_source(work.source, work.options).examples[:240]
    method = FullSFT(lr=1e-4, batch_size=work.batch_size)

    def bundle() -> ModelBundle:
        return ModelBundle(
            model=copy.deepcopy(loaded.model),
            tokenizer=loaded.tokenizer,
            device=torch.device("cpu"),
            precision=work.precision,
            max_length=work.max_length,
        )

    seconds = np.zeros((blocks + 1, 2))
    for block in range(blocks + 1):
        pair = [(engine, 0), (bare, 1)] if block % 2 else [(bare, 1), (engine, 0)]
        for run, place in pair:
            seconds[block, place] = run(bundle(), examples, method, steps)
    ratios = seconds[1:, 0] / seconds[1:, 1]
    draws = np.random.default_rng(0).choice(ratios, size=(10_000, blocks))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    each = np.median(seconds[1:], axis=0) / steps
    return Result(
        work,
        steps,
        tuple(ratios.tolist()),
        (float(low), float(high)),
        (float(each[0]), float(each[1])),
    )


def page(results: list[Result]) -> str:
    """The results as Markdown, with all that is needed to repeat them."""
    here = environment(torch.device("cpu"))
    lines = [
        "# Overhead of the engine",
        "",
        "Written by the benchmark itself; do not edit. Seconds of the engine divided by seconds of",
        "a bare PyTorch loop that does the same optimizer steps (same batches, AdamW, clipping,",
        "loss and gradient norm read every step), probes excluded. Blocks of the two are",
        "interleaved in one process in alternating order; the ratio is taken block by block. The",
        f"aim is at most {TARGET:.2f}.",
        "Seconds depend on what else the machine does; the ratio hardly does.",
        "",
        "| model | engine / bare loop, median | 95 % interval | smallest, largest block | blocks | "
        "steps a block | batch × longest | precision | ms a step, engine and bare |",
        "| --- | ---: | --- | --- | ---: | ---: | --- | --- | --- |",
    ]
    for r in results:
        w, (low, high) = r.work, r.interval
        cells = [
            str(w.ref),
            f"{r.median:.3f}",
            f"{low:.3f} to {high:.3f}",
            f"{min(r.ratios):.3f}, {max(r.ratios):.3f}",
            str(len(r.ratios)),
            str(r.steps),
            f"{w.batch_size} × {w.max_length}",
            w.precision,
            f"{1000 * r.seconds[0]:.1f} and {1000 * r.seconds[1]:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    versions = ", ".join(f"{name} {version}" for name, version in here.packages.items())
    lines += [
        "",
        "Interval: percentile bootstrap of the median over blocks, 10,000 resamples. One further",
        "block before them warms caches up and is not counted.",
        "",
        f"- Command: `python {shlex.join([Path(sys.argv[0]).as_posix(), *sys.argv[1:]])}`",
        f"- Machine: {here.cpu}, {here.platform}, {here.threads} thread",
        f"- Versions: titer {here.titer} ({here.git or 'no revision'}), Python {here.python}, "
        f"{versions}",
        f"- Day: {datetime.now(UTC):%Y-%m-%d}",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", choices=(*WORKS, "both"), default="tiny")
    parser.add_argument("--blocks", type=int, default=20)
    parser.add_argument(
        "--steps",
        type=int,
        help="optimizer steps of a block; by default 64 for tiny, 2 for smollm2",
    )
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the result as Markdown")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    chosen = list(WORKS) if arguments.model == "both" else [arguments.model]
    results = []
    for name in chosen:
        results.append(measure(WORKS[name], arguments.blocks, arguments.steps or WORKS[name].steps))
        print(results[-1], flush=True)
    if arguments.write:
        arguments.write.write_text(page(results), "utf-8")


if __name__ == "__main__":
    main()
