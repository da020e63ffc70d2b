"""`titer check STUDY`: problems and cost of a study, found before any work."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from titer.cli.console import err, out, print_json
from titer.study.counting import counted

if TYPE_CHECKING:
    from titer.data.pools import Pools
    from titer.engine.preflight import Preflight
    from titer.study.cell import Plan
    from titer.study.spec import Study

WRONG = 2
"""Exit status if something is found that must be changed before a run."""


def register(app: typer.Typer) -> None:
    app.command("check")(check_command)


def check_command(
    study: Annotated[str, typer.Argument(help="A YAML file, or the name of a built-in study.")],
    preflight: Annotated[
        bool | None,
        typer.Option(
            help="Load each starting model, take one step of every method and one reading of "
            "every measure. Default: for models whose weights are on this machine.",
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not say what is tried.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Validate a study, try what it will do, estimate its cells, steps, time and memory, and say
    the best verdict its design can attain. Exits 2 if something must be changed first.
    """
    from titer.data.pools import Pools
    from titer.engine.estimate import complete_plan, estimate
    from titer.engine.throughput import matmul_throughput
    from titer.runners.placement import place
    from titer.study import load_study
    from titer.verdicts.design.attainable import attainable

    spec = load_study(study)
    pools = Pools(spec)
    plan = complete_plan(spec, pools)
    seen = _preflight(spec, plan, pools, preflight, quiet or as_json)
    device = place(spec.runtime.device).device(0)
    rate = matmul_throughput(spec.runtime.precision, spec.runtime.threads, device)
    cost = estimate(spec, plan, seen.parameters, throughput=rate, timings=seen.timings)
    wrong = any(f.severity == "error" for f in seen.findings)
    facts: dict[str, Any] = {
        "study": spec.name,
        "digest": spec.digest,
        "threat_model": spec.threat_model,
        "models": {str(ref): size for ref, size in seen.parameters.items()},
        "parts": plan.disjointness["sizes"],
        "near_duplicates": plan.disjointness["near_duplicates"],
        "cells": cost.cells,
        "search_cells": cost.search_cells,
        "steps_at_most": cost.steps,
        "judge_calls_at_most": cost.judge_calls,
        "minutes": None if cost.seconds is None else round(cost.seconds / 60, 1),
        "memory_gb": None if cost.memory_bytes is None else round(cost.memory_bytes / 1e9, 2),
        "workers": spec.runtime.workers,
        "device": str(device),
        "tried": seen.tried,
        "findings": [asdict(f) for f in seen.findings],
        "not_checked": list(seen.unchecked),
        "attainable": attainable(spec),
    }
    if as_json:
        print_json(facts)
    else:
        _print(facts, seen, wrong)
    if wrong:
        raise typer.Exit(WRONG)


def _preflight(
    spec: Study, plan: Plan, pools: Pools, wanted: bool | None, quiet: bool
) -> Preflight:
    import torch

    from titer.cli.tryout import TryOut
    from titer.engine.preflight import preflight
    from titer.runners.placement import place

    device = place(spec.runtime.device).device(0)
    with tempfile.TemporaryDirectory(prefix="titer-") as scratch:
        return preflight(
            spec,
            plan,
            pools,
            weights="local" if wanted is None else "all" if wanted else "none",
            bench=TryOut(scratch, pools, spec.runtime, device),
            sketch=TryOut(scratch, pools, spec.runtime, torch.device("meta")),
            say=lambda what: None if quiet else err.print(f"trying {what}", markup=False),
        )


def _print(facts: dict[str, Any], seen: Preflight, wrong: bool) -> None:
    def say(text: str) -> None:
        out.print(text, markup=False)

    verdict = "something must be changed before it is run" if wrong else "the study is valid"
    say(f"{facts['study']} (digest {facts['digest']}): {verdict}.")
    sizes = (
        f"{name} ({'size unknown' if n is None else f'{n / 1e6:.3g} M parameters'})"
        for name, n in facts["models"].items()
    )
    say(f"threat model {facts['threat_model']}; models: {', '.join(sizes)}")
    say("text: " + ", ".join(f"{part} {n}" for part, n in facts["parts"].items()))
    near = facts["near_duplicates"]
    if near:
        say("near-duplicates: " + ", ".join(f"{pair}: {n}" for pair, n in near.items()))
    search = f" ({facts['search_cells']} of them search)" if facts["search_cells"] else ""
    calls = facts["judge_calls_at_most"]
    judged = f", at most {counted(calls, 'judgement')}" if calls else ""
    work = counted(facts["steps_at_most"], "step")
    say(f"work: {counted(facts['cells'], 'cell')}{search}, at most {work}{judged}")
    if facts["minutes"] is None:
        say("time and memory: not known, because the size of a model is not")
    else:
        say(
            f"time: at most about {facts['minutes']} minutes with "
            f"{counted(facts['workers'], 'worker')} on {facts['device']}, "
            f"{facts['memory_gb']} GB (rough)"
        )
    for model, tried in facts["tried"].items():
        say(f"tried on {model}: {', '.join(tried)}")
    for finding in seen.findings:
        say(str(finding))
    for sentence in seen.unchecked:
        say(f"not checked: {sentence}")
    say(f"best verdict attainable: {facts['attainable']}")
