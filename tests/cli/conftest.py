"""What the tests of commands share: a function that runs one, and a small study as a file, once run
to its end.
"""

import copy
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from titer.cli.main import main

STUDY = {
    "name": "small",
    "title": "A small study",
    "threat_model": "open_weights",
    "model": "tiny:aligned",
    "pools": {
        "harm": {
            "source": "tiny_world",
            "options": {"group": "harm", "count": 480},
            "parts": {"defense": 96, "attack": 192, "judge": 48, "confirm": 48},
        },
        "harmless": {
            "source": "tiny_world",
            "options": {"group": "harmless", "count": 240},
            "parts": {"defense": 96, "look": 48},
        },
    },
    "defense_data": {"harmful": "harm/defense", "harmless": "harmless/defense"},
    "candidates": [
        {
            "name": "refusal",
            "defense": {"name": "sft_refusal", "settings": {"lr": 1e-3}},
            "steps": 4,
        }
    ],
    "resistance": {
        "attacks": [{"attack": "full_sft", "settings": {"lr": 1e-3, "batch_size": 16}}],
        "data": {"harmful": "harm/attack", "examples": 64},
        "budget": 4,
        "harm": {"measure": "exact_answer", "settings": {"reads": "harm"}, "part": "harm/judge"},
        "confirm": "harm/confirm",
        "seeds": [1, 2],
    },
    "stability": {
        "benchmarks": [
            {
                "name": "accuracy",
                "kind": "accuracy",
                "margin": 0.1,
                "measure": {"measure": "exact_answer", "part": "harmless/look"},
            }
        ]
    },
    "runtime": {"max_length": 32, "eval_batch": 512},
}


@dataclass(frozen=True)
class Said:
    """What a command did: exit status, standard output, standard error."""

    status: int
    out: str
    err: str


@pytest.fixture
def titer(capsys):
    """A function that runs a command in this process."""

    def run(*arguments: object) -> Said:
        capsys.readouterr()
        status = main([str(a) for a in arguments])
        return Said(status, *capsys.readouterr())

    return run


@pytest.fixture
def refused(titer):
    """A function that runs a command and insists on one message that says what is wrong and what
    would be right; gives the message.
    """

    def run(*arguments: object, status: int = 2) -> str:
        said = titer(*arguments)
        assert said.status == status, said
        assert said.out == "" and "Traceback" not in said.err
        message = [line for line in said.err.splitlines() if line.startswith("titer: ")]
        assert len(message) == 1 and said.err.rstrip().endswith(message[0]), said.err
        for part in ("Field: ", "Expected: "):
            assert part in message[0]
        return message[0]

    return run


@pytest.fixture
def study_file(tmp_path):
    """A function that writes the small study with values replaced (dotted paths) and gives the
    file.
    """

    def write(**changes) -> Path:
        study = copy.deepcopy(STUDY)
        for path, value in changes.items():
            here = study
            *steps, last = (int(p) if p.isdigit() else p for p in path.split("."))
            for step in steps:
                here = here[step]
            here[last] = value
        file = tmp_path / "small.yaml"
        file.write_text(yaml.safe_dump(study, sort_keys=False))
        return file

    return write


@pytest.fixture(scope="session")
def finished_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    file = folder / "small.yaml"
    file.write_text(yaml.safe_dump(STUDY, sort_keys=False))
    assert main(["run", str(file), "--run", str(folder / "run"), "--quiet", "--transcripts"]) == 0
    return folder


@pytest.fixture
def finished(finished_once, tmp_path):
    """A copy of the small study's finished run directory."""
    return Path(shutil.copytree(finished_once / "run", tmp_path / "finished"))
