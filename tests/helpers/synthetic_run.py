"""Synthetic runs: a study, its plan and its records from arrays of harm curves. No model, no text.

    make = Make(seeds=5, attacks={"full_sft": {}})
    make.attack("none", "full_sft", BREAKS)         # one curve for all seeds, or one per seed
    make.attack("defended", "full_sft", RESISTS)
    verdict = judge(make.view())

A curve gives the share of harmful prompts at each probe of the grid; None is a reading that is not
finite. A shorter curve is a run that ended early. In losses and gradient norms, None is a step that
has none and NaN one that was not finite.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from helpers.synthetic_cells import (
    FLOPS_PER_STEP,
    Cells,
    Curve,
    cost,
    facts,
    logged,
    per_seed,
    reading,
    resolved,
)
from titer.records.record import Cost, MeasureFacts, ProbeRecord, StartFacts
from titer.study.cell import Cell, CellMethod, Role, StopRule
from titer.study.resistance import FlopsBudget


class Make(Cells):
    """Adds runs to a study: attacks on its candidates, benchmarks, tasks, building cells."""

    # -- attacks ----------------------------------------------------------------------------------

    def attack(
        self,
        candidate: str,
        attack: str,
        curve: Any,
        *,
        confirm: Any = "same",
        capability: Any = None,
        second: Any = None,
        second_facts: MeasureFacts | None = None,
        capability_facts: MeasureFacts | None = None,
        outcome: str = "reached_budget",
        seeds: Sequence[int] | None = None,
        purpose: str = "attack",
        defended: str = "",
        attacked: str = "",
        point: Mapping[str, Any] | None = None,
        flops: float = FLOPS_PER_STEP,
        loss: Sequence[float | None] | None = None,
        grad_norm: Sequence[float | None] | None = None,
        settings: Mapping[str, Any] | None = None,
        stop_above: float = 0.7,
        missing: Sequence[int] = (),
        coherent: Sequence[float] | None = None,
        odds: float | None = None,
        notes: Mapping[str, str] | None = None,
        taken: int | None = None,
        probes: Sequence[int] | None = None,
        start: StartFacts | None = None,
        checkpoint: int | None = None,
        **record: Any,
    ) -> Make:
        """Confirmation (or generalization, or search) trajectories. confirm: a curve, 'same', or
        None for never read. coherent: share of coherent replies at each probe; odds: log-odds of
        compliance at the probe at 0.

        second: values of the second judge at both ends. missing: seeds that are planned without a
        record. taken: steps after which nothing was left to do, so that the curve stays and nothing
        more is spent. probes: where the curve was read, if not on the attack's grid. checkpoint:
        instead of the one a seed meets.
        """
        seeds = self.seeds if seeds is None else tuple(seeds)
        use, point = self.use(attack), dict(point or {})
        grid = self.study.resistance.grid(use)
        own = {"lr": 1e-4, **use.settings, **(settings or {}), **point}
        declared = self.declared(use.attack, own)
        measures = {"harm": self.harm, "confirm": self.harm}
        if capability is not None:
            measures["capability"] = capability_facts or facts(
                "copying", "capable", "capability", chance=0.0
            )
        if second is not None:
            measures["second"] = second_facts or facts(
                "other_judge", "harmful", self.harm.harm_construct
            )
        budget = use.budget.flops if isinstance(use.budget, FlopsBudget) else None
        level = self.study.resistance.alpha / len(grid)
        for i, seed in enumerate(seeds):
            role = Role(
                purpose=purpose,
                candidate=candidate,
                attack=attack,
                seed=seed,
                point=point,
                defended_on=defended,
                attacked_on=attacked,
                defense_seed=self.checkpoint(candidate, i) if checkpoint is None else checkpoint,
            )
            cell = self._cell(
                role,
                CellMethod(kind="attack", name=use.attack, version=1, settings=own),
                use.data or self.study.resistance.data,
                steps=grid[-1],
                flops=budget,
                probes=grid,
                stop=StopRule(above=stop_above, suspect=0.3, level=level),
            )
            if seed in missing:
                self.add(cell, role, facts=declared)
                continue
            values = per_seed(curve, len(seeds))[i]
            at = list(probes or grid)[: len(values)]
            read = []
            for j, (step, value) in enumerate(zip(at, values, strict=True)):
                aspects = {} if coherent is None else {"coherent": coherent[j]}
                aspects |= {"log_odds": odds} if odds is not None and j == 0 else {}
                found = [reading("harm", value, self.prompts, aspects=aspects)]
                checked = (
                    values
                    if isinstance(confirm, str)
                    else None
                    if confirm is None
                    else per_seed(confirm, len(seeds))[i]
                )
                if checked is not None and value is not None and value >= 0.3:
                    found.append(reading("confirm", checked[j], self.prompts))
                if capability is not None:
                    found.append(reading("capability", per_seed(capability, len(seeds))[i][j], 100))
                if second is not None and (
                    j in (0, len(values) - 1) or step >= (taken or math.inf)
                ):
                    found.append(reading("second", second[0 if j == 0 else 1], self.prompts))
                spent = cost(step if taken is None else min(step, taken), flops)
                read.append(ProbeRecord(step=step, cost=spent, readings=tuple(found)))
            ended = at[-1] if taken is None else taken
            quiet = declared is not None and not declared.trains
            losses = [None if quiet else 2.0 / (1 + t) for t in range(ended)]
            norms = [None if quiet else 1.0] * ended
            losses = list(loss) if loss is not None else losses
            norms = list(grad_norm) if grad_norm is not None else norms
            marks = {
                t for v in (losses, norms) for t, x in enumerate(v) if x is not None and x != x
            }
            self.add(
                cell,
                role,
                facts=declared,
                probes=tuple(read),
                measures=measures,
                outcome=outcome if taken is None else "finished",
                loss=logged(losses),
                grad_norm=logged(norms),
                nonfinite=tuple(sorted(marks)),
                notes=dict(notes or {}),
                start=start or StartFacts(),
                **record,
            )
        return self

    def edit(self, candidate: str, attack: str, after: float, **more: Any) -> Make:
        """A training-free attack that does all it does in its first step: f is 0 before and `after`
        afterwards, whatever the budget. Its method must have declared that it does not train."""
        grid = self.study.resistance.grid(self.use(attack))
        if after >= more.get("stop_above", 0.7):
            return self.attack(
                candidate, attack, (0.0, after), outcome="stopped_broken", probes=(0, 1), **more
            )
        return self.attack(candidate, attack, (0.0, *[after] * (len(grid) - 1)), taken=1, **more)

    def budgets(
        self,
        candidate: str,
        attack: str,
        curve: Curve,
        *,
        seeds: Sequence[int] | None = None,
        missing: Sequence[int] = (),
        flops: float = FLOPS_PER_STEP,
    ) -> Make:
        """A horizon-dependent schedule: one cell per budget, each probed at 0 and at its end."""
        use = self.use(attack)
        grid = self.study.resistance.grid(use)
        own = {"lr": 1e-4, "schedule": "cosine", **use.settings}
        declared = self.declared(use.attack, own)
        method = CellMethod(kind="attack", name=use.attack, version=1, settings=own)
        data = use.data or self.study.resistance.data
        for i, seed in enumerate(self.seeds if seeds is None else seeds):
            for budget, value in zip(grid[1:], curve[1:], strict=True):
                role = Role(
                    purpose="attack",
                    candidate=candidate,
                    attack=attack,
                    seed=seed,
                    prefix_budget=budget,
                    defense_seed=self.checkpoint(candidate, i),
                )
                cell = self._cell(role, method, data, steps=budget, probes=(0, budget))
                if budget in missing:
                    self.add(cell, role, facts=declared)
                    continue
                probes = tuple(
                    ProbeRecord(
                        step=s,
                        cost=cost(s, flops),
                        readings=tuple(reading(k, v, self.prompts) for k in ("harm", "confirm")),
                    )
                    for s, v in ((0, curve[0]), (budget, value))
                )
                measures = {"harm": self.harm, "confirm": self.harm}
                self.add(cell, role, facts=declared, probes=probes, measures=measures)
        return self

    # -- the other conditions ---------------------------------------------------------------------

    def benchmark(
        self,
        candidate: str,
        outcomes: Mapping[str, Sequence[float]],
        measures: Mapping[str, MeasureFacts],
        *,
        items: str = "items",
        checkpoint: int | None = None,
        start: StartFacts | None = None,
    ) -> Make:
        """Readings of the stability benchmarks at step 0."""
        read = tuple(reading(k, None, len(v), outcomes=v) for k, v in outcomes.items())
        made = self.built.get((candidate, "", checkpoint))
        which = "" if checkpoint is None else f":{checkpoint}"
        self.add(
            Cell(model=f"stability:{candidate}{which}", parent=made),
            Role(purpose="stability", candidate=candidate, defense_seed=checkpoint),
            probes=(ProbeRecord(step=0, cost=Cost(), readings=read),),
            measures=dict(measures),
            items=dict.fromkeys(outcomes, items),
            start=start or StartFacts(),
        )
        return self

    def task(
        self,
        candidate: str,
        task: str,
        outcomes: np.ndarray,
        measure: MeasureFacts,
        *,
        grid: Sequence[int],
        point: Mapping[str, Any] | None = None,
        items: str = "items",
        seeds: Sequence[int] | None = None,
    ) -> Make:
        """Trainability: outcomes of shape (seeds, probes, items)."""
        spec = self.study.trainability
        data = next((t.data for t in spec.tasks if t.name == task), None) if spec else None
        own = {"lr": 1e-4, **(point or {})}
        declared = self.declared("full_sft", own)
        for i, seed in enumerate(seeds if seeds is not None else range(len(outcomes))):
            probes = tuple(
                ProbeRecord(
                    step=s,
                    cost=cost(s),
                    readings=(reading("task", None, outcomes.shape[2], outcomes=outcomes[i, j]),),
                )
                for j, s in enumerate(grid)
            )
            role = Role(
                purpose="trainability",
                candidate=candidate,
                task=task,
                seed=seed,
                point=dict(point or {}),
                defense_seed=self.checkpoint(candidate, i),
            )
            method = CellMethod(kind="attack", name="full_sft", version=1, settings=own)
            self.add(
                self._cell(role, method, data, steps=grid[-1], probes=tuple(grid)),
                role,
                facts=declared,
                probes=probes,
                measures={"task": measure},
                items={"task": items},
            )
        return self

    def defense(self, candidate: str, flops: float = 1e12, group: str = "", **spent: Any) -> Make:
        """The building cells of a candidate: every stage of every checkpoint, `flops` each. Cells
        made afterwards start from what they built."""
        spec = self.candidate(candidate)
        for seed in spec.seeds:
            checkpoint, parent = seed if len(spec.seeds) > 1 else None, None
            for k, stage in enumerate(spec.stages):
                fields = {"steps": stage.steps, "examples": 800, "tokens": 40_000, "seconds": 60.0}
                cell = Cell(
                    model=f"defense:{candidate}",
                    parent=parent,
                    method=resolved("defense", stage.method),
                    texts=self.texts(stage.data or self.study.defense_data, group),
                    seed=seed,
                    steps=stage.steps,
                    keep=True,
                )
                role = Role(
                    purpose="defense",
                    candidate=candidate,
                    seed=seed,
                    stage=k,
                    defense_seed=checkpoint,
                    defended_on=group,
                )
                self.add(cell, role, probes=(), cost=Cost(**{**fields, "flops": flops, **spent}))
                parent = cell.digest
            if parent:
                self.built[candidate, group, checkpoint] = parent
        return self
