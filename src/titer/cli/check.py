"""`titer check STUDY`: everything that can be found wrong, and what it will cost, before any work."""

from __future__ import annotations

from typing import Annotated

import typer

from titer.cli.console import out, print_json


def register(app: typer.Typer) -> None:
    app.command("check")(check_command)


def check_command(
    study: Annotated[str, typer.Argument(help="A YAML file, or the name of a built-in study.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Validate a study, estimate cells, steps, time and memory, and say the best verdict its design
    can attain.
    """
    from titer.assets.models import load_model
    from titer.data.pools import Pools
    from titer.engine.estimate import estimate
    from titer.engine.planning import plan
    from titer.study import load_study
    from titer.verdicts.attainable import attainable

    spec = load_study(study)
    pools = Pools(spec)
    first = plan(spec, pools, lambda digest: None)
    models = {
        str(m): load_model(m).model
        for m in (spec.model, *(c.model for c in spec.candidates if c.model))
    }
    parameters = max(sum(p.numel() for p in m.parameters()) for m in models.values())
    cost = estimate(spec, first, parameters)
    findings = {
        "study": spec.name,
        "digest": spec.digest,
        "threat_model": spec.threat_model,
        "models": {name: sum(p.numel() for p in m.parameters()) for name, m in models.items()},
        "parts": first.disjointness["sizes"],
        "near_duplicates": first.disjointness["near_duplicates"],
        "cells": cost.cells,
        "steps_at_most": cost.steps,
        "more_after_search": cost.waiting_for_search,
        "minutes": round(cost.seconds / 60, 1),
        "memory_gb": round(cost.memory_bytes / 1e9, 2),
        "workers": spec.runtime.workers,
        "attainable": attainable(spec),
    }
    if as_json:
        print_json(findings)
        return
    out.print(f"{spec.name} (digest {spec.digest}): the study is valid.", markup=False)
    out.print(
        f"threat model {spec.threat_model}; models: "
        + ", ".join(f"{n} ({p / 1e6:.3g} M parameters)" for n, p in findings["models"].items()),
        markup=False,
    )
    out.print("text: " + ", ".join(f"{a} {n}" for a, n in findings["parts"].items()), markup=False)
    if findings["near_duplicates"]:
        out.print(
            "near-duplicates: "
            + ", ".join(f"{a}: {n}" for a, n in findings["near_duplicates"].items()),
            markup=False,
        )
    more = ", and the confirmations of a search" if cost.waiting_for_search else ""
    out.print(
        f"work: {cost.cells} cells{more}, at most {cost.steps} steps; about {findings['minutes']} minutes with "
        f"{spec.runtime.workers} worker(s) on this machine, {findings['memory_gb']} GB (rough)",
        markup=False,
    )
    out.print(f"best verdict attainable: {findings['attainable']}", markup=False)
