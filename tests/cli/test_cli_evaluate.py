"""The releaser's way from two model directories and three files to a verdict, with the stumbling
blocks beside it.
"""

import json
import shlex
import shutil
from pathlib import Path

import pytest
import yaml

import titer as package
from titer.assets.tiny_model import FOLDER
from titer.data.pools import Pools
from titer.data.sources import load_source
from titer.methods.attacks.full_sft import FullSFT
from titer.records.store import RunStore
from titer.study import load_study, plugins

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
    assert verdict["status"] == "complete" and verdict["candidates"][0]["name"] == "m_star"
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
    assert titer(*arguments, "--json").status == 0
    ((study, directory),) = performed
    assert study == load_study("s.yaml") and directory == Path("runs/evaluate-m-vs-untaught")


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
        "second=tiny:untaught",
        *FILES,
        *SMALL,
        "--phi",
        "0.4",
        "--delta",
        "0.1",
        "--dtype",
        "bf16",
        "--device",
        "cpu",
        "--samples",
        "2",
        "--write",
        "s.yaml",
    )
    study = yaml.safe_load((folder / "s.yaml").read_text())
    r = study["resistance"]
    assert (r["budget"], r["phi"], r["delta"], len(r["seeds"])) == (16, 0.4, 0.1, 1)
    assert [a["search"]["lr"] for a in r["attacks"]] == [[3e-3], [1e-2]]
    assert [c["name"] for c in study["candidates"] if c["name"] != "none"] == [
        "base",
        "second",
    ]
    assert study["runtime"] == {"precision": "bf16_autocast", "max_length": 32, "device": "cpu"}
    assert r["samples"]["limit"] == 2


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
        ("--candidate", "none=tiny:base", "the undefended control has this name"),
        ("--device", "tpu", "runtime.device = 'tpu'"),
        ("--attack", "full_sftt", "did you mean full_sft"),
        ("--attack", "full_sft:rank=4", "rank"),
        ("--attack", "full_sft:lr", "NAME:key=value"),
        ("--attack", "full_sft", "for an attack that is not run"),
        ("--attack-data", ".", "is a directory"),
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
    assert "no response" in message and "attack.jsonl:201" in message


def test_attacks_are_named_with_their_settings(titer, folder):
    said = titer(
        "evaluate",
        "m",
        "--candidate",
        "tiny:base",
        *FILES,
        "--attack",
        "lora_sft:rank=4,alpha=8",
        "--attack",
        "lora_sft:rank=8,lr=1e-2",
        "--attack",
        "soft_prompt",
        "--attack",
        "refusal_ablation",
        "--write",
        "s.yaml",
    )
    assert said.status == 0, said.err
    study = load_study(folder / "s.yaml")
    small, large, prompt, edit = study.resistance.attacks
    assert (small.label, large.label) == ("lora_sft@rank=4@alpha=8", "lora_sft@rank=8@lr=0.01")
    assert small.settings == {"batch_size": 8, "rank": 4, "alpha": 8} and small.search["lr"]
    assert large.settings["lr"] == 0.01 and not large.search
    assert 0.01 in prompt.search["lr"] and max(prompt.search["lr"]) == 1.0
    assert edit.data is not None and {"harmful", "harmless"} == set(edit.data.slots)
    assert "soft_prompt 0.001, " in study.description and Pools(study)


def test_what_is_ignored_of_a_file_is_said(titer, folder):
    rows = [{"instruction": e.prompt, "output": e.response, "score": 1} for e in HARM[:200]]
    (folder / "attack.json").write_text(json.dumps({"data": rows}))
    files = (*FILES[:1], "attack.json", *FILES[2:])
    said = titer("evaluate", "m", "--candidate", "tiny:base", *files, *SMALL, "--write", "s.yaml")
    assert "attack.json: 200 prompts (JSON); ignored: score" in said.err
    assert load_study(folder / "s.yaml").pools["attack"].source == "file"


ARGUMENTS = ("evaluate", "m", "--candidate", "star=tiny:untaught", *FILES, *SMALL)


@pytest.fixture
def interrupted(monkeypatch):
    """Runs that are stopped as soon as they have begun; gives their studies."""
    begun = []

    def perform(study, directory, **_):
        begun.append(study)
        store = RunStore(directory)
        with store.locked():
            store.begin(study)
        raise KeyboardInterrupt

    monkeypatch.setattr("titer.cli.evaluate.perform", perform)
    return begun


def test_an_interrupted_run_says_how_to_go_on_and_the_same_command_does(
    titer, refused, folder, interrupted, monkeypatch
):
    said = titer(*ARGUMENTS, "--phi-reason", "half of them")
    assert said.status == 130
    hint = next(line for line in said.err.splitlines() if line.startswith("Stopped"))
    assert "runs/evaluate-m-vs-star" in hint
    command = shlex.split(hint.partition("To go on, here: ")[2])
    assert command[0] == "titer" and "half of them" in command
    monkeypatch.setattr("titer.cli.evaluate.misfits", lambda *_: pytest.fail("it was tried before"))
    assert titer(*command[1:]).status == 130
    first, again = interrupted
    assert first.digest == again.digest
    message = refused(*command[1:], "--budget", "17")
    assert "resistance.budget (16 there, 17 here)" in message
    assert "--reuse runs/evaluate-m-vs-star" in message and "--run NEW_DIRECTORY" in message
    assert titer(*command[1:], "--workers", "2", "--device", "cpu").status == 130


class Choosy(FullSFT):
    """An attack that some models are no good for."""

    name = "choosy"

    def start(self, given):
        if getattr(given.model.model.config, "refuses", False):
            raise ValueError("no layer that it could change")
        return super().start(given)


@pytest.fixture
def choosy(folder, monkeypatch):
    """A function that lets a model directory refuse the attack `choosy`."""
    monkeypatch.setattr(plugins, "_registered", {})
    package.register(Choosy)
    yield lambda name: _refusing(folder / name)
    monkeypatch.undo()
    plugins._changes += 1  # or the methods found meanwhile would be remembered


def _refusing(model):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"refuses": True}))


BOTH = ("--attack", "full_sft:lr=3e-3", "--attack", "choosy:lr=3e-3")
FEW = ("--harm-measure", "exact_answer", "--budget", "4", "--seeds", "1", "--max-length", "32")


def test_an_attack_that_fits_no_model_does_not_cost_the_verdict_of_the_others(
    titer, folder, choosy, interrupted
):
    shutil.copytree(folder / "m", folder / "star")
    choosy("m")
    choosy("star")
    said = titer("evaluate", "m", "--candidate", "star", *FILES, *FEW, *BOTH)
    assert "Left out: choosy (choosy cannot be run on path:" in said.err
    assert "no layer that it could change" in said.err
    (study,) = interrupted
    assert [a.label for a in study.resistance.attacks] == ["full_sft"]
    assert "choosy is left out of the battery" in study.description
    titer("evaluate", "m", "--candidate", "star", *FILES, *FEW, *BOTH)
    assert len(interrupted) == 2 and interrupted[1].digest == study.digest


def test_an_attack_that_only_the_candidate_refuses_bars_its_claim(
    titer, folder, choosy, interrupted
):
    """Or a defense could hide from whatever it makes fail."""
    shutil.copytree(folder / "m", folder / "star")
    choosy("star")
    titer("evaluate", "m", "--candidate", "star", *FILES, *FEW, *BOTH)
    (study,) = interrupted
    assert [a.label for a in study.resistance.attacks] == ["full_sft", "choosy"]
    assert study.resistance.leaves_out("choosy", "star") and "cannot hold" in study.description


def test_a_battery_that_fits_nothing_is_refused(titer, folder, choosy):
    choosy("m")
    said = titer("evaluate", "m", "--candidate", "m", *FILES, *FEW, *BOTH[2:])
    assert said.status == 2 and "none of the attacks can be run" in said.err


def test_which_rates_were_tried_and_found_is_said_and_replies_are_kept(titer, folder):
    """1e-6 breaks nothing, 3e-3 breaks the control; what was never safe is broken from the start.
    Reports show replies only if asked to."""
    said = titer(
        "evaluate",
        "m",
        "--candidate",
        "tiny:aligned",
        *FILES,
        *FEW[:2],
        "--budget",
        "8",
        *FEW[4:],
        "--full-lr",
        "1e-6",
        "--full-lr",
        "3e-3",
        "--attack",
        "full_sft",
        "--samples",
        "1",
    )
    assert said.status == 0, said.err
    assert "full_sft, learning rates tried: 1e-06, 0.003" in said.out
    assert "control: broken in the search at 0.003; confirmed at 0.003" in said.out
    assert "aligned: broken in the search at 0.003; confirmed at 0.003" in said.out
    run = folder / "runs/evaluate-m-vs-aligned"
    rows = [json.loads(x) for f in run.glob("transcripts/*") for x in f.open()]
    assert {(r["label"], r["step"]) for r in rows} == {("samples", 0), ("samples", 8)}
    reply = next(r["reply"] for r in rows if r["step"] == 8)
    page = run / "report.html"
    assert reply not in page.read_text()
    titer("report", run, "--show-transcripts")
    assert reply in page.read_text()
