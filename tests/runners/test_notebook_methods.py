"""A method that was defined in a notebook, whose main module has no file."""

import json
import subprocess
import sys

import pytest

from titer.errors import UnknownNameError
from titer.records.store import RunStore

CELL = '''
from titer.methods.attacks.full_sft import FullSFT


@titer.register
class Mine(FullSFT):
    """An attack of a notebook."""

    name = "mine"

    def start(self, given):
        return super().start(given)
'''

NOTEBOOK = """
import json, linecache, sys
import titer
from titer.errors import TiterError

study, cell, directory, workers = json.loads(sys.argv[1])
if cell:  # as IPython does it: the text of a cell is kept under the name it is compiled with
    linecache.cache["<cell 1>"] = (len(cell), None, cell.splitlines(True), "<cell 1>")
    exec(compile(cell, "<cell 1>", "exec"))
else:
    exec(sys.argv[2])
try:
    titer.run(study, directory, workers=workers)
except TiterError as error:
    print(error)
"""


@pytest.fixture
def notebook(small_study, tmp_path):
    """A function: run a study with the cell's attack in a process without a main file."""
    study = small_study(candidates=["none"]).model_dump(mode="json")
    study["resistance"] |= {"budget": 1, "seeds": [1]}
    study["resistance"]["attacks"] = [{"attack": "mine", "settings": {"batch_size": 16}}]

    def run(cell, workers):
        given = json.dumps([study, cell, str(tmp_path / "run"), workers])
        done = subprocess.run(
            [sys.executable, "-c", NOTEBOOK, given, CELL],
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_it_runs_in_one_process(notebook, tmp_path):
    assert notebook(CELL, 1) == ""
    (planned,) = RunStore(tmp_path / "run").plan().cells
    assert planned.cell.method.name == "mine" and len(planned.cell.method.code) == 16
    assert RunStore(tmp_path / "run").record(planned.digest)


def test_with_workers_the_error_says_what_to_do(notebook, tmp_path):
    said = notebook(CELL, 2)
    assert "worker processes cannot import Mine" in said and "workers=1" in said
    assert "%%writefile mine.py" in said and "`plugins` in the study" in said.replace("under ", "")
    assert not (tmp_path / "run" / "study.json").exists()


def test_a_class_without_any_source_is_refused(notebook):
    said = notebook("", 1)
    assert "source of a plug-in class cannot be read" in said and "%%writefile" in said


def test_an_unknown_name_says_how_ones_own_is_made_known():
    for kind in ("attack", "defense", "service", "measure", "judge"):
        remedy = UnknownNameError.among(kind, "mien", ["mine"]).remedy
        assert remedy.startswith("did you mean mine? For a")
        assert all(s in remedy for s in ("plugins: [FILE.py]", "--plugin", "titer.register(CLASS)"))
    far = UnknownNameError.among("defense", "xyz", ["mine"])
    assert "`titer list defenses` shows all" in far.remedy and "titer.register" in str(far)
    assert UnknownNameError.among("domain", "xyz", ["mine"]).remedy is None  # no command lists them
