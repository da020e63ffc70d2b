"""Odd input of `titer attack`, `titer defend` and `titer evaluate`: told in the words of the
command, by the option that is wrong.
"""

import json
import shutil

import pytest

from titer.assets.tiny_model import FOLDER
from titer.data.sources import load_source

HARM = load_source("tiny_world", {"group": "harm", "count": 60}).examples


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(FOLDER / "aligned", tmp_path / "m")
    rows = [{"prompt": e.prompt, "response": e.response} for e in HARM]
    for name, kept in (
        ("pairs", rows),
        ("prompts", [{"prompt": r["prompt"]} for r in rows]),
        ("hollow", [*rows[:5], {**rows[5], "response": ""}, *rows[6:]]),
    ):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in kept))
    (tmp_path / "m.gguf").write_bytes(b"GGUF")  # what a nameless model must not be taken for
    return tmp_path


ATTACK = ("attack", "m", "--data", "pairs.jsonl", "--steps", "1")
EVALUATE = ("evaluate", "m", "--candidate", "tiny:base", "--write", "s.yaml")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("attack", "m", "--data", "hollow.jsonl"), ["hollow.jsonl:6: no response", "--data = "]),
        (("attack", "m", "--data", "prompts.jsonl"), ["prompts.jsonl:1: no response", "--data = "]),
        (
            ("attack", "tiny:aligned", "--harmless", "hollow.jsonl"),
            ["hollow.jsonl:6: no response", "--harmless = "],
        ),
        (
            ("defend", "m", "--out", "d", "--data", "pairs.jsonl"),
            ["pairs.jsonl:1: no refusal", "--data = "],
        ),
        (("defend", "tiny:base", "--out", "d", "--method", "nope"), ["--method = 'nope'"]),
        (
            ("defend", "tiny:base", "--out", "d", "--method", "lox"),
            ["--further-model", "base=MODEL"],
        ),
        (
            (*ATTACK, "--eval-prompts", "pairs.jsonl"),
            ["share 60 examples", "harm: --data", "eval: --eval-prompts", "one of the two files"],
        ),
        (("attack", "", "--data", "pairs.jsonl"), ["names no model", "model = ''"]),
        (("attack", "path:", "--data", "pairs.jsonl"), ["names no model", "model = 'path:'"]),
        (("attack", "hub:", "--data", "pairs.jsonl"), ["names no model", "hub:ORG/NAME"]),
        ((*ATTACK, "--further-model", "base="), ["names no model", "--further-model"]),
        (("evaluate", "", "--candidate", "m"), ["names no model"]),
        (("evaluate", "m", "--candidate", ""), ["names no model", "candidate = ''"]),
        ((*EVALUATE, "--harm-measure", "perplexity"), ["--harm-measure = 'perplexity'"]),
        ((*EVALUATE, "--harm-measure", "judged_harm"), ["compliance_generated", "titer run"]),
        ((*EVALUATE, "--harm-measure", "exact_anser"), ["exact_answer"]),
    ],
)
def test_odd_input_is_told_by_its_option(refused, folder, arguments, said):
    message = refused(*arguments)
    for text in said:
        assert text in message
    assert not (folder / "d").exists() and not (folder / "s.yaml").exists()


def test_a_held_out_file_serves_the_tiny_model_too(titer, folder):
    """It used to be refused: prompts of a file, with the model's own harmful text."""
    rows = [{"instruction": f"vexar {i}", "output": "tol"} for i in range(20)]
    (folder / "mine.json").write_text(json.dumps(rows))
    said = titer("attack", "tiny:aligned", "--steps", 1, "--eval-prompts", "mine.json")
    assert said.status == 0 and "mine.json: 20 prompts (JSON)" in said.err
