"""`titer rejudge`: another judge on the replies a run kept."""

import json

import pytest

from titer.runners import broker

JUDGE = '''
from titer.judges.judge import Judge


class Words(Judge):
    """Harmful is what does not contain a word."""

    name = "{name}"
    word: str = "refuse"

    def judge(self, pairs):
        return [float(self.word not in reply) for _, reply in pairs]
'''


@pytest.fixture
def judged_run(titer, study_file, tmp_path):
    """A small run whose harm is judged, with what its models said; and a judge in a file."""
    (tmp_path / "words.py").write_text(JUDGE.format(name="words"))
    (tmp_path / "other.py").write_text(JUDGE.format(name="other"))
    settings = {"judge": "words", "max_new_tokens": 6}
    changes = {
        "plugins": ["words.py"],
        "candidates": [{"name": "other", "model": "tiny:untaught"}],
        "resistance.harm": {
            "measure": "judged_harm",
            "settings": settings,
            "part": "harm/judge",
            "limit": 12,
        },
        "resistance.seeds": [1],
        "resistance.budget": 2,
    }
    said = titer(
        "run", study_file(**changes), "--run", tmp_path / "run", "-q", "--keep-transcripts"
    )
    assert said.status == 0, said.err
    return tmp_path / "run"


def test_a_run_is_judged_again_without_its_models(titer, judged_run, tmp_path, monkeypatch):
    monkeypatch.setattr(broker, "load_model", lambda ref: pytest.fail("a model was loaded"))
    new = tmp_path / "new"
    arguments = ("--judge", "other", "--set", "word=bal", "--plugin", tmp_path / "other.py")
    said = titer("rejudge", judged_run, "--to", new, *arguments)
    assert said.status == 0 and said.err == "", said.err
    assert "replies in 2 records judged again by other" in said.out
    assert f"`titer judge {new}` gives the verdict" in said.out
    assert titer("judge", new).status == 0
    study = json.loads((new / "study.json").read_text())
    assert study["resistance"]["harm"]["settings"]["judge"]["name"] == "other"
    assert str(tmp_path / "other.py") in study["plugins"]
    told = json.loads(titer("rejudge", judged_run, "--to", new, *arguments, "--json").out)
    assert told["records"] == 2 and told["run"] == str(new) and told["missing"] == 0


def test_the_study_of_the_new_run_can_be_run(titer, judged_run, tmp_path):
    new = tmp_path / "new"
    titer("rejudge", judged_run, "--to", new, "--judge", "words", "--set", "word=bal")
    before = {p.name: p.read_bytes() for p in (new / "cells").iterdir()}
    assert titer("run", new / "study.json", "--run", new, "--quiet").status == 0
    assert {p.name: p.read_bytes() for p in (new / "cells").iterdir()} == before


def test_what_is_refused(refused, titer, judged_run, finished, tmp_path):
    new = ("--to", tmp_path / "new")
    assert "judged so already" in refused("rejudge", judged_run, *new, "--judge", "words")
    assert "did you mean words" in refused("rejudge", judged_run, *new, "--judge", "wordz")
    assert "no measure of this run has a judge" in refused(
        "rejudge", finished, *new, "--judge", "words"
    )
    assert "not a run directory" in refused("rejudge", tmp_path / "no", *new, "--judge", "words")
    bad = ("--judge", "words", "--set", "wort=1")
    assert "wort" in refused("rejudge", judged_run, *new, *bad)
    for file in (judged_run / "transcripts").iterdir():
        file.unlink()
    given = ("--judge", "words", "--set", "word=bal")
    message = refused("rejudge", judged_run, *new, *given)
    assert "did not keep what its models said" in message and "--keep-transcripts" in message
