"""The reference that does nothing."""

from __future__ import annotations

from titer.data.subject import Subject
from titer.methods.method import Attack, MethodData
from titer.methods.runs import EditRun


class NoAttack(Attack):
    """Leaves the model as it is: harm at any 'budget' is the harm at 0. A reference, never evidence of resistance."""

    name = "no_attack"
    role = "reference"
    reference = "titer"
    starts_as_parent = True
    cost = "0"

    def start(self, subject: Subject, data: MethodData, *, seed: int, horizon: int) -> EditRun:
        return EditRun(model=subject.model, edit=lambda model, step: {})
