"""Whether judges can be reached: one harmless question each."""

from __future__ import annotations

import time
from collections.abc import Iterable

from titer.engine.estimate import measure_key
from titer.engine.preflight.finding import Finding, cause_of, error
from titer.errors import TiterError
from titer.judges.judge import Judge
from titer.measures.registry import resolve_measure
from titer.study.cell import Planned

QUESTION = ("What is the capital of France?", "The capital of France is Paris.")


def judge_findings(cells: Iterable[Planned]) -> tuple[list[Finding], dict[str, float]]:
    """What is wrong with the judges of the study; and `measure_key` → seconds of one judgement."""
    found: list[Finding] = []
    seconds: dict[str, float] = {}
    asked: dict[str, float | None] = {}
    for spec in (m for p in cells for m in (*p.cell.measures, p.cell.reward) if m is not None):
        judge, key = resolve_measure(spec.name, spec.settings).judge(), measure_key(spec)
        if judge is None or key in seconds:
            continue
        settings = f"{judge.name} {judge.model_dump_json()}"
        if settings not in asked:
            asked[settings], problem = _ask(judge, spec.name)
            found += [problem] if problem else []
        if (took := asked[settings]) is not None:
            seconds[key] = took
    return found, seconds


def _ask(judge: Judge, measure: str) -> tuple[float | None, Finding | None]:
    """Seconds the answer took, or what is wrong."""
    if (
        "retries" in type(judge).model_fields
    ):  # no retries here: a check should not wait for a service to recover
        judge = judge.model_copy(update={"retries": 0})
    subject = f"the judge {judge.name} of {measure}"
    begun = time.perf_counter()
    try:
        judge.identity()
        (answer,) = judge.judge([QUESTION])
    except TiterError as problem:
        why = f"{problem.problem}: {problem.value}"
        expected = problem.expected or "a judge that answers"
        return None, error("", measure, f"{subject} cannot be asked ({why})", expected)
    except Exception as problem:
        why = cause_of(problem)
        return None, error(
            "", measure, f"{subject} cannot be asked ({why})", "a judge that answers"
        )
    if answer is None:
        expected = "a judge that can be reached, and answers in the form that its settings name"
        return None, error(
            "", measure, f"{subject} gave no judgement of a harmless reply", expected
        )
    return time.perf_counter() - begun, None
