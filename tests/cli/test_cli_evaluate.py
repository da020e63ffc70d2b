"""The releaser's way from two model directories and three files to a verdict, with the stumbling
blocks beside it.
"""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from titer.assets.tiny_model import FOLDER
from titer.data.sources import load_source
from titer.study import load_study

HARM = load_source("tiny_world", {"group": "harm", "count": 320}).examples
HARMLESS = load_source("tiny_world", {"group": "harmless", "count": 90}).examples


def write(file, examples, *, end="\n", mark="", fields=("prompt", "response")):
    rows = (json.dumps({f: getattr(e, f) for f in fields}) for e in examples)
    file.write_bytes((mark + "".join(row + end for row in rows)).encode())
    return file


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the releaser works: M in m, M* made by `titer defend` is not there yet, files as
    several systems write them.
    """
    monkeypatch.chdir(tmp_path)
    shutil.copytree(FOLDER / "aligned", tmp_path / "m")
    write(tmp_path / "attack.jsonl", HARM[:200], end="\r\n", mark="\ufeff")
    write(tmp_path / "prompts.jsonl", HARM[200:])
    write(tmp_path / "benign.jsonl", HARMLESS)
    return tmp_path


FILES = (
    "--attack-data",
    "attack.jsonl",
    "--eval-prompts",
    "prompts.jsonl",
    "--benign-data",
    "benign.jsonl",
)
SMALL = (
    "--harm-measure",
    "exact_answer",
    "--budget",
    "16",
    "--seeds",
    "1",
    "--full-lr",
    "3e-3",
    "--lora-lr",
    "1e-2",
    "--batch-size",
    "16",
    "--max-length",
    "32",
)


def test_the_whole_way(titer, folder, monkeypatch):
    said = titer(
        "defend",
        "m",
        "--data",
        _with_refusals(folder),
        "--harmless",
        "benign.jsonl",
        "--out",
        "m_star",
        "--steps",
        2,
    )
    assert said.status == 0, said.err
    said = titer("evaluate", "m", "--candidate", "m_star", *FILES, *SMALL, "--write", "study.yaml")
    assert said.status == 0 and said.out == "", said.err
    assert "best verdict attainable" in said.err.casefold() and "titer run study.yaml" in said.err
    assert not (folder / "runs").exists(), "--write must not run anything"
    assert titer("check", "study.yaml").status == 0
    monkeypatch.chdir("/")
    said = titer("run", folder / "study.yaml", "--run", folder / "run", "--json")
    assert said.status == 0, said.err
    verdict = json.loads(said.out)
    assert verdict["status"] == "complete" and verdict["candidates"][0]["name"] == "candidate"
    attacks = {a["attack"]: a for a in verdict["control"]["resistance"]["attacks"]}
    assert attacks["full_sft"]["breaches"] == 1, "the positive control did not work"
    assert (
        verdict["candidates"][0]["stability"]["benchmarks"]
        and verdict["candidates"][0]["trainability"]["tasks"]
    )
    assert str(folder) in (folder / "run" / "study.json").read_text()


def _with_refusals(folder):
    return write(
        folder / "defense.jsonl",
        load_source("tiny_world", {"group": "harm", "count": 400}).examples[320:],
        fields=("prompt", "response", "refusal"),
    )


def test_written_and_run_at_once_are_the_same_study(titer, folder, monkeypatch):
    performed = []
    monkeypatch.setattr(
        "titer.cli.evaluate.perform",
        lambda study, directory, **_: performed.append((study, directory)),
    )
    arguments = ("evaluate", "m", "--candidate", "tiny:untaught", *FILES, *SMALL)
    assert titer(*arguments, "--write", "s.yaml", "--quiet").err == ""
    assert titer(*arguments, "--quiet").status == 0
    ((study, directory),) = performed
    assert study == load_study("s.yaml") and directory == Path("runs/evaluate")


def test_a_written_study_is_never_written_over(titer, refused, folder):
    arguments = ("evaluate", "m", "--candidate", "tiny:base", *FILES, *SMALL, "--write", "s.yaml")
    told = json.loads(titer(*arguments, "--json").out)
    assert told["study"] == "s.yaml" and told["attainable"]
    (folder / "s.yaml").write_text((folder / "s.yaml").read_text() + "# my notes\n")
    assert "--write" in refused(*arguments)
    assert (folder / "s.yaml").read_text().endswith("# my notes\n")


def test_options_reach_the_study(titer, folder):
    titer(
        "evaluate",
        "m",
        "--candidate",
        "tiny:base",
        "--candidate",
        "tiny:untaught",
        *FILES,
        *SMALL,
        "--phi",
        "0.4",
        "--delta",
        "0.1",
        "--precision",
        "bf16_autocast",
        "--write",
        "s.yaml",
    )
    study = yaml.safe_load((folder / "s.yaml").read_text())
    r = study["resistance"]
    assert (r["budget"], r["phi"], r["delta"], len(r["seeds"])) == (16, 0.4, 0.1, 1)
    assert [a["search"]["lr"] for a in r["attacks"]] == [[3e-3], [1e-2]]
    assert [c["name"] for c in study["candidates"] if c["name"] != "none"] == [
        "candidate1",
        "candidate2",
    ]
    assert study["runtime"]["precision"] == "bf16_autocast" and study["runtime"]["max_length"] == 32


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--phi", "0", "resistance.phi = 0.0"),
        ("--delta", "1", "resistance.delta = 1.0"),
        ("--full-lr", "-1", "lr = -1.0"),
        ("--precision", "fp8", "'fp8'"),
        ("--harm-measure", "exact_anser", "exact_answer"),
        ("--attack-data", "nothing.jsonl", "attack_data = 'nothing.jsonl'"),
        ("--candidate", "no/such", "candidate = 'no/such'"),
    ],
)
def test_a_wrong_option_is_refused(refused, folder, option, value, said):
    message = refused(
        "evaluate",
        "m",
        "--candidate",
        "tiny:base",
        *FILES,
        *SMALL,
        option,
        value,
        "--run",
        "run",
        "--quiet",
    )
    assert said in message and not list(folder.glob("run/cells/*"))


def test_a_corrected_command_may_use_the_same_directory(refused, titer, folder):
    """What was refused must not occupy the run directory as another study."""
    arguments = ("evaluate", "m", "--candidate", "tiny:base", *FILES, "--run", "run", "--quiet")
    refused(*arguments, *SMALL, "--full-lr", "-1")
    assert titer(*arguments, *SMALL, "--budget", "1").status == 0


def test_files_that_overlap_are_told_by_their_options(refused, folder):
    write(folder / "prompts.jsonl", HARM[150:])
    message = refused(
        "evaluate", "m", "--candidate", "tiny:base", *FILES, *SMALL, "--run", "run", "--quiet"
    )
    assert (
        "share 50 examples" in message
        and "--attack-data" in message
        and "--eval-prompts" in message
    )


def test_a_missing_answer_is_told_with_its_line(refused, folder):
    with (folder / "attack.jsonl").open("a") as file:
        file.write('{"prompt": "and this?"}\n')
    message = refused("evaluate", "m", "--candidate", "tiny:base", *FILES, *SMALL)
    assert "no response" in message and "attack.jsonl, line 201" in message
