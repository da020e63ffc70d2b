"""From a study to cells. Nothing is run here, but everything is validated: names, settings, text,
further models, threat model.

`plan` reads as the study does: candidates, then one file per condition. `pieces` makes cells,
`search` chooses settings.
"""

from titer.engine.planning.pieces import Known
from titer.engine.planning.plan import plan

__all__ = ["Known", "plan"]
