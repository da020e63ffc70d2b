"""Overhead of the engine against a bare PyTorch loop that does the same optimizer steps, probes excluded.

    python benchmarks/engine_overhead.py [--model tiny|smollm2] [--blocks 20] [--steps 64]

The two are interleaved in blocks of one process, in alternating order, and compared block by block: absolute times are
noise, their ratio is not. Prints the median ratio with a 95 % bootstrap interval over blocks.
"""

from __future__ import annotations

import argparse
import copy
import time

import numpy as np
import torch
from torch.nn import functional

from titer.assets.models import load_model
from titer.data.examples import Example
from titer.data.sources import load_source
from titer.data.subject import Subject
from titer.engine.drive import drive
from titer.methods.attacks.full_sft import FullSFT
from titer.methods.method import MethodData
from titer.methods.runs import Batches
from titer.study.cell import Cell
from titer.study.reference import ModelRef


def bare(subject: Subject, examples: tuple[Example, ...], method: FullSFT, steps: int) -> float:
    """Seconds of a plain loop: the same batches, AdamW, clipping, and the loss and gradient norm read every step."""
    batches = Batches.of(subject, examples, "response", batch_size=method.batch_size, seed=0)
    model = subject.model.requires_grad_(True)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=method.lr, weight_decay=0.0, fused=True)
    begun = time.perf_counter()
    for step in range(steps):
        model.train()
        batch = batches(step)
        with subject.autocast():
            logits = model(input_ids=batch.input_BT, attention_mask=batch.mask_BT, use_cache=False).logits
            loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), batch.labels_BT[:, 1:].flatten())
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, method.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item(), norm.item()
    return time.perf_counter() - begun


def engine(subject: Subject, examples: tuple[Example, ...], method: FullSFT, steps: int) -> float:
    """Seconds the engine takes for all steps, everything it does between them included; encoding of text is not."""
    marks: list[float] = []
    driven = drive(Cell(model="benchmark", steps=steps), method, subject, MethodData(harmful=examples), [],
                   progress=lambda done, total: marks.append(time.perf_counter()))  # fmt: skip
    end = time.perf_counter()
    if driven.record.cost.steps != steps:
        raise SystemExit("the engine did not do all steps")
    return end - marks[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", choices=("tiny", "smollm2"), default="tiny")
    parser.add_argument("--blocks", type=int, default=20)
    parser.add_argument("--steps", type=int)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tiny = arguments.model == "tiny"
    ref = ModelRef(source="tiny", name="aligned") if tiny else ModelRef(source="package", name="smollm2-135m-instruct")
    loaded = load_model(ref)
    steps = arguments.steps or (64 if tiny else 2)
    examples = load_source("tiny_world", {"group": "harm", "count": 240}).examples if tiny else tuple(
        load_source("alpaca", {"max_chars": 300}).examples[:64]
    )  # fmt: skip
    method = FullSFT(lr=1e-4, batch_size=16 if tiny else 4)

    def subject() -> Subject:
        return Subject(model=copy.deepcopy(loaded.model), tokenizer=loaded.tokenizer, device=torch.device("cpu"),
                       precision="fp32" if tiny else "bf16_autocast", max_length=32 if tiny else 64)  # fmt: skip

    ratios = []
    for block in range(arguments.blocks + 1):
        pair = [(engine, 0), (bare, 1)] if block % 2 else [(bare, 1), (engine, 0)]
        seconds = [0.0, 0.0]
        for run, place in pair:
            seconds[place] = run(subject(), examples, method, steps)
        if block:  # the first block warms caches up
            ratios.append(seconds[0] / seconds[1])
    values = np.array(ratios)
    draws = np.random.default_rng(0).choice(values, size=(10_000, len(values)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    print(f"{arguments.model}: engine / bare loop = {np.median(values):.3f}, 95 % interval [{low:.3f}, {high:.3f}], "
          f"{len(values)} blocks of {steps} steps")  # fmt: skip


if __name__ == "__main__":
    main()
