"""The attacks that `titer evaluate` runs: what --attack says, and what the models allow."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from titer.cli.options import value_of
from titer.errors import UnknownNameError, UsageError

if TYPE_CHECKING:
    from titer.data.pools import Pools
    from titer.engine.preflight import Finding
    from titer.study.cell import Plan
    from titer.study.resistance import LeftOut
    from titer.study.spec import Study

EXAMPLE = "NAME or NAME:key=value,key=value, for example lora_sft:rank=8"
AROUND = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Learning rates tried, in units of the method's default."""


def battery(
    attacks: Sequence[str] | None,
    *,
    batch_size: int,
    full_lr: Sequence[float] | None,
    lora_lr: Sequence[float] | None,
) -> list[dict[str, Any]]:
    """The attacks as a study names them. Named batteries belong here too: whatever names several
    attacks at once. Raises UnknownNameError, UsageError.
    """
    from titer.study.releaser import FULL_LR, LORA_LR, default_battery

    if not attacks:
        return default_battery(batch_size, full_lr, lora_lr)
    rates = {"full_sft": full_lr or FULL_LR, "lora_sft": lora_lr or LORA_LR}
    uses = [_use(text, batch_size, rates) for text in attacks]
    if lora_lr and not any(u["attack"] == "lora_sft" for u in uses):
        raise UsageError(
            "these learning rates are for an attack that is not run",
            field="--lora-lr",
            value=list(lora_lr),
            expected="--attack lora_sft beside it",
        )
    return _told_apart(uses, attacks)


def _use(text: str, batch_size: int, rates: dict[str, Sequence[float]]) -> dict[str, Any]:
    from titer.methods.registry import methods, resolve
    from titer.study.releaser import searched

    name, _, told = text.partition(":")
    known = methods("attack")
    if name not in known:
        raise UnknownNameError.among("attack", name, known, field="--attack")
    own = _settings(told, text)
    method = resolve("attack", name, own, field="--attack")
    fields = type(method).model_fields
    common = {"batch_size": batch_size} if "batch_size" in fields else {}
    use: dict[str, Any] = {"attack": name, "settings": {**common, **own}}
    if any(need.partition(".")[0] == "harmless" for need in method.needed()):
        use["data"] = {"harmful": "attack/train", "harmless": "benign/train"}
    if "lr" not in fields or "lr" in own:
        return use
    return searched(use, rates.get(name) or [float(f"{f * method.lr:.1g}") for f in AROUND])


def _settings(told: str, text: str) -> dict[str, Any]:
    """`key=value,key=value`; commas inside brackets and braces are part of a value."""
    found: dict[str, Any] = {}
    for item in re.findall(r"(?:\[[^\]]*\]|\{[^}]*\}|[^,\[{])+", told):
        key, equals, value = item.partition("=")
        if not (equals and key.strip()):
            raise UsageError(
                "this is not an attack with settings",
                field="--attack",
                value=text,
                expected=EXAMPLE,
            )
        found[key.strip()] = value_of(value)
    return found


def _told_apart(uses: list[dict[str, Any]], given: Sequence[str]) -> list[dict[str, Any]]:
    """Labels for methods that occur more than once, from the settings that were given."""
    from titer.study.resistance import point_label

    names = [u["attack"] for u in uses]
    for use, text in zip(uses, given, strict=True):
        own = _settings(text.partition(":")[2], text)
        if names.count(use["attack"]) > 1 and own:
            use["name"] = point_label(use["attack"], own)
    labels = [u.get("name", u["attack"]) for u in uses]
    if twice := next((x for x in labels if labels.count(x) > 1), None):
        raise UsageError(
            "the same attack is named twice",
            field="--attack",
            value=twice,
            expected="attacks that differ in their settings",
        )
    return uses


# -- what does not fit a model --------------------------------------------------------------------


def misfits(
    study: Study, pools: Pools, say: Callable[[str], None], warn: Callable[[str], None]
) -> list[LeftOut]:
    """Attacks that cannot be run on the control or on a candidate, found by taking a step of each
    on every model whose weights are on this machine, and by beginning it on the others'
    configuration. What else a preflight finds is said to `warn`.

    Raises UsageError where an attack fits a model but not the machine's memory: leaving it out
    would be the user's decision. Raises AssetError if a model cannot be loaded.
    """
    import torch

    from titer.cli.tryout import TryOut
    from titer.engine.estimate import complete_plan
    from titer.engine.preflight import preflight
    from titer.runners.placement import place

    plan = _one_of_each(complete_plan(study, pools))
    device = place(study.runtime.device).device(0)
    with tempfile.TemporaryDirectory(prefix="titer-") as scratch:
        seen = preflight(
            study,
            plan,
            pools,
            weights="local",
            bench=TryOut(scratch, pools, study.runtime, device),
            sketch=TryOut(scratch, pools, study.runtime, torch.device("meta")),
            say=say,
        )
    found: list[LeftOut] = []
    for finding in seen.findings:
        gone = _misfit(study, plan, finding)
        if gone is None and finding.severity == "error":
            warn(str(finding))
        found += gone or ()
    for_all = {g.attack for g in found if g.candidate is None}
    return [g for g in found if g.candidate is None or g.attack not in for_all]


def _one_of_each(plan: Plan) -> Plan:
    """Every attack once on every model."""
    seen: set[tuple[str, str]] = set()
    cells = []
    for planned in plan.cells:
        keys = {(r.candidate, r.attack) for r in planned.roles if r.purpose == "attack"}
        if keys - seen:
            seen |= keys
            cells.append(planned)
    return plan.model_copy(update={"cells": tuple(cells)})


def _misfit(study: Study, plan: Plan, finding: Finding) -> list[LeftOut] | None:
    """The attacks that a finding bars, for whom; None if it is about something else."""
    from titer.engine.preflight.trial import called
    from titer.study.candidate import CONTROL
    from titer.study.resistance import LeftOut

    cells = [
        p for p in plan.cells if str(p.start.ref) == finding.model and called(p) == finding.about
    ]
    if finding.severity != "error" or not cells:
        return None
    if "memory ran out" in finding.problem:
        raise UsageError(
            finding.problem,
            field="--attack",
            value=finding.about,
            expected=finding.expected,
            remedy="give a smaller --batch-size or --max-length, or name the attacks to be run "
            "with --attack",
        )
    roles = [r for p in cells for r in p.roles if r.purpose == "attack"]
    reason = finding.problem.rstrip(".")
    everywhere = {r.attack for r in roles if r.candidate == CONTROL}
    pairs = dict.fromkeys(
        (r.attack, None if r.attack in everywhere else r.candidate) for r in roles
    )
    return [LeftOut(attack=a, candidate=c, reason=reason) for a, c in pairs]
