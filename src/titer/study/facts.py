"""What a method declares about itself, for reports and verdicts that do not import it."""

from __future__ import annotations

from typing import Literal

from titer.study.base import Strict

MethodKind = Literal["attack", "defense", "service"]
AttackRole = Literal["attack", "reference"]
Stage = Literal["pre", "weights", "during", "after"]


class MethodFacts(Strict):
    """Facts of one method with its settings and its text; two uses of one class may differ in them.

    horizon_free: the first t steps do not depend on how many follow, so a prefix is a t-step run.
    trains: takes gradient steps (an edit does not). starts_as_parent: at step 0 the run's model
    gives exactly the outputs of the model it was handed.

    Of attacks: role (`attack` must break the undefended control to be evidence; a `reference` is
    exempt), adapter (trains few parameters beside the weights), mixes (harmless text among the
    harmful), repairs (restores usefulness after the attack), adaptive (adapts to the defense by
    itself). Of defenses: stage (`pre` and `weights` act before release; `during` and `after` need
    control over the attacker's fine-tuning).
    """

    kind: MethodKind
    name: str
    version: int
    reference: str
    cost: str
    horizon_free: bool = True
    trains: bool = True
    starts_as_parent: bool = False
    role: AttackRole = "attack"
    adapter: bool = False
    mixes: bool = False
    repairs: bool = False
    adaptive: bool = False
    stage: Stage = "pre"
