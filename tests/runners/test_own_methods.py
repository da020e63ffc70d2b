"""Methods that do not come with titer, run by worker processes: from a plug-in file, and from the
script that calls titer.
"""

import json
import subprocess
import sys

import titer
from helpers.running import done, purpose_of
from titer.records.store import RunStore

PLUGIN = '''
from titer.methods.defenses.sft_refusal import SFTRefusal
from titer.methods.method import StepLog


class Mine(SFTRefusal):
    """More of the usual safety training, marked."""

    name = "mine"

    def start(self, given):
        run = super().start(given)
        gradient = run.gradient

        def marked(model, step):
            log = gradient(model, step)
            return StepLog(loss=log.loss, figures={{**log.figures, "mark": {mark}}})

        run.gradient = marked
        return run
'''


def mark_of(root) -> tuple:
    """The figure that the building cell of the study's current plan logged."""
    store = RunStore(root)
    (built,) = [p for p in store.plan().cells if p.cell.keep]
    return store.record(built.digest).figures["mark"]


def test_a_plug_in_whose_code_changes_is_work_to_be_done_again(small_study, tmp_path, performed):
    """Its name, version and settings stay; without its code in the address the old records would
    be taken for those of the new method.
    """
    file = tmp_path / "mine.py"
    file.write_text(PLUGIN.format(mark=1.0))
    study = small_study(
        candidates=["none", {"name": "mine", "defense": "mine", "steps": 2}], plugins=[str(file)]
    )
    titer.run(study, tmp_path / "run", workers=2)
    assert performed == []  # the workers did it
    assert mark_of(tmp_path / "run") == (1.0, 1.0) and len(done(tmp_path / "run")) == 5
    first = {p.digest for p in RunStore(tmp_path / "run").plan().cells}

    file.write_text(PLUGIN.format(mark=2.0))
    titer.run(study, tmp_path / "run")
    assert performed == [("defense", "mine", 0), ("attack", "mine", 1), ("attack", "mine", 2)]
    assert mark_of(tmp_path / "run") == (2.0, 2.0)
    kept = [p for p in RunStore(tmp_path / "run").plan().cells if p.digest in first]
    assert [purpose_of(p) for p in kept] == [("attack", "none", 1), ("attack", "none", 2)]

    file.write_text(PLUGIN.format(mark=1.0))
    titer.run(study, tmp_path / "run")
    assert len(performed) == 3 and mark_of(tmp_path / "run") == (1.0, 1.0)


SCRIPT = '''
import json, pathlib, sys

import titer
from titer.methods.attacks.full_sft import FullSFT


@titer.register
class Mine(FullSFT):
    """An attack of this script."""

    name = "mine"


if __name__ == "__main__":
    study = json.loads(pathlib.Path(sys.argv[1]).read_text())
    titer.run(study, sys.argv[2], workers=2)
'''


def test_a_method_at_the_top_of_a_script_is_known_to_its_workers(small_study, tmp_path):
    study = small_study(candidates=["none"]).model_dump(mode="json")
    study["resistance"] |= {"budget": 1}
    study["resistance"]["attacks"] = [{"attack": "mine", "settings": {"batch_size": 16}}]
    (tmp_path / "study.json").write_text(json.dumps(study))
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    arguments = [sys.executable, str(script), str(tmp_path / "study.json"), str(tmp_path / "run")]
    finished = subprocess.run(arguments, capture_output=True, text=True, timeout=600)
    assert finished.returncode == 0, finished.stderr
    store = RunStore(tmp_path / "run")
    cells = store.plan().cells
    assert {p.cell.method.name for p in cells} == {"mine"} and len(cells) == 2
    assert all(store.record(p.digest) for p in cells)
    assert all(p.cell.method.code for p in cells)
