"""The record of a finished cell: everything a verdict needs, without text or weights."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field, field_serializer, field_validator

from titer.study.base import Strict
from titer.study.cell import Cell
from titer.study.facts import MethodFacts

RECORD_FORMAT: Final = 2

Construct = Literal["refusal removal", "harmfulness", "exact", "capability", "over-refusal", "none"]
Outcome = Literal["reached_budget", "finished", "stopped_broken", "diverged"]


class MeasureFacts(Strict):
    """What a measure declares about itself.

    higher: what a higher value means. sampling: `fixed` (fixed prompts, deterministic decoding and
    scoring: no sampling error) or `population` (the prompts stand for more). scale: `proportion`
    (outcomes are 0 or 1) or `mean` (any real outcomes, `unit` says of what). chance: value expected
    from guessing, None if that has no meaning.
    """

    name: str
    version: int
    settings: dict[str, Any] = {}
    higher: Literal["harmful", "capable", "worse"]
    harm_construct: Construct
    sampling: Literal["fixed", "population"] = "population"
    scale: Literal["proportion", "mean"] = "proportion"
    unit: str = "share"
    chance: float | None = None
    max_new_tokens: int | None = None


class Reading(Strict):
    """One measure at one probe. value: mean of the outcomes, None if any outcome is not finite.

    outcomes: one number per item, in the order of the part (0/1 for proportions). confirm readings
    exist only at probes where the primary reading was suspicious. aspects: further shares or means
    of the same transcripts (`coherent`: share of coherent replies; `refused`: share refused;
    `log_odds`: mean log-odds of compliance against refusal); empty in older records.
    """

    label: str
    value: float | None
    n: int
    se: float | None
    outcomes: tuple[float | None, ...]
    aspects: dict[str, float] = {}

    LATER = frozenset({"aspects"})

    @field_serializer("outcomes", when_used="json")
    def _short(self, outcomes: tuple[float | None, ...]) -> Any:
        """Proportions as a string of 0 and 1: a tenth of the size, and still readable."""
        if outcomes and all(o in (0.0, 1.0) for o in outcomes):
            return "".join("1" if o else "0" for o in outcomes)
        return [o if o is None else float(f"{o:.6g}") for o in outcomes]

    @field_validator("outcomes", mode="before")
    @classmethod
    def _long(cls, outcomes: Any) -> Any:
        if isinstance(outcomes, str):
            if set(outcomes) - {"0", "1"}:
                raise ValueError("a string of outcomes holds only 0 and 1")
            return tuple(float(c) for c in outcomes)
        return outcomes


class Cost(Strict):
    """Metered by the engine, cumulative from the start of the cell's method; probes are not
    included.

    steps: outer optimizer steps. examples, tokens: rows and non-padding tokens of forward passes
    with gradient, whichever model they are of. forward_tokens: non-padding tokens of passes without
    gradient (sampling, reference models, embeddings), not included in tokens. flops: floating-point
    operations of all these passes, forward and backward. setup_flops, search_flops: what of flops
    was spent before the first step, and on choosing among variants. judge_calls: texts scored by a
    judge. seconds: wall time of the method's own work, setup and search included.
    """

    LATER = frozenset({"forward_tokens", "setup_flops", "search_flops", "judge_calls"})

    steps: Annotated[int, Field(ge=0)] = 0
    examples: Annotated[int, Field(ge=0)] = 0
    tokens: Annotated[int, Field(ge=0)] = 0
    forward_tokens: Annotated[int, Field(ge=0)] = 0
    flops: Annotated[float, Field(ge=0)] = 0.0
    setup_flops: Annotated[float, Field(ge=0)] = 0.0
    search_flops: Annotated[float, Field(ge=0)] = 0.0
    judge_calls: Annotated[int, Field(ge=0)] = 0
    seconds: Annotated[float, Field(ge=0)] = 0.0

    def spends(self, budget: float) -> bool:
        """Whether a budget in FLOPs has no room for another step of the average cost so far."""
        step = (self.flops - self.setup_flops) / self.steps if self.steps else 0.0
        return self.flops >= budget or self.flops + step > budget * (1 + 1e-9)


class ProbeRecord(Strict):
    step: int
    cost: Cost
    readings: tuple[Reading, ...]

    def reading(self, label: str) -> Reading | None:
        return next((r for r in self.readings if r.label == label), None)


class Environment(Strict):
    """Where a cell ran. Recorded beside the result; not part of its digest."""

    titer: str
    git: str | None = None
    python: str = ""
    platform: str = ""
    cpu: str = ""
    device: str = ""
    threads: int = 0
    packages: dict[str, str] = {}
    """Versions of torch, transformers, peft, numpy …"""


class Artifact(Strict):
    """A model kept by a building cell (a defender's; never an attacked one).

    sha256: over its tensors. bytes: size of the directory. files: name → sha256 of every file that
    is read when it is loaded.
    """

    sha256: str
    bytes: int
    files: dict[str, str] = {}


class StartFacts(Strict):
    """The model a cell started from, as it was loaded.

    weights: sha256 over its tensors. parameters: their number. neutralised: what was shipped beside
    the weights and could have made the model harder to attack, and what was set instead; the
    attacker holds the weights and chooses such things himself. distance: ‖w − w_control‖ /
    ‖w_control‖ against the study's undefended model, None if it was not compared or the shapes
    differ.
    """

    weights: str = ""
    parameters: int = 0
    neutralised: dict[str, str] = {}
    compared: bool = False
    distance: float | None = None


class CellRecord(Strict):
    """The record of a finished cell.

    outcome: `reached_budget` (all steps done), `finished` (nothing was left to do before the
    budget; the last readings are repeated at the remaining probes, for no budget changes them),
    `stopped_broken` (beyond the largest φ of the sensitivity range, so nothing more can be
    learned), `diverged` (a non-finite loss or gradient; the readings up to then stand). facts: what
    the method declared about itself, with its settings and text. loss, grad_norm: one number per
    step, None where there is none or it is not finite; nonfinite: the steps (0-based) where one of
    them was not finite. figures: further figures by name, one place per step, None where the step
    had none.
    """

    format: Literal[2] = RECORD_FORMAT
    digest: str
    cell: Cell
    outcome: Outcome
    probes: tuple[ProbeRecord, ...]
    facts: MethodFacts | None = None
    measures: dict[str, MeasureFacts] = {}
    loss: tuple[float | None, ...] = ()
    grad_norm: tuple[float | None, ...] = ()
    nonfinite: tuple[int, ...] = ()
    figures: dict[str, tuple[float | None, ...]] = {}
    start: StartFacts = StartFacts()
    wording: dict[str, Any] = {}
    """How the model was asked at its last probe, where that differs from asking plainly."""
    cost: Cost = Cost()
    probe_seconds: float = 0.0
    peak_memory_bytes: int = 0
    parameters: int = 0
    trainable_parameters: int = 0
    artifact: Artifact | None = None
    environment: Environment
    started: str
    finished: str
    resumed: int = 0
    """How many times the cell continued from a rolling checkpoint."""
    items: dict[str, str] = {}
    """label → digest of the items read, so that readings of two cells can be paired only when they
    match.
    """
    transcripts: bool = False
    notes: dict[str, str] = {}

    def probe(self, step: int) -> ProbeRecord | None:
        return next((p for p in self.probes if p.step == step), None)
