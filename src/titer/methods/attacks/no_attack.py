"""The reference that does nothing."""

from __future__ import annotations

from titer.methods.method import Attack, Given
from titer.methods.runs import EditRun


class NoAttack(Attack):
    """Leaves the model as it is: harm at any budget is the harm at 0. A reference, never evidence
    of resistance.
    """

    name = "no_attack"
    role = "reference"
    reference = "titer"
    starts_as_parent = True
    trains = False
    cost = "0"

    def start(self, given: Given) -> EditRun:
        return EditRun(given.model, lambda model, step: {}, edits=0)
