"""What the commands print and write when all goes well."""

import json
import re
import shutil
from pathlib import Path

import pytest
from cli_records import record_files
from rich.console import Console

import titer as package
from titer.cli.catalogue import Kind, _catalogue
from titer.cli.console import print_verdict

EVERYTHING = sorted({n for k in Kind for n in _catalogue(k)})


def test_the_version(titer):
    assert titer("--version").out == package.__version__ + "\n"


def test_a_run_prints_its_verdict_and_where_the_report_is(titer, study_file, tmp_path):
    said = titer("run", study_file(), "--run", tmp_path / "run")
    assert (
        said.status == 0
        and "refusal" in said.out
        and f"Report: {tmp_path / 'run' / 'report.html'}" in said.out
    )
    assert "cells" in said.err, "no progress was shown"
    assert {"report.html", "report.md", "verdict.json", "study.json", "plan.json"} <= {
        p.name for p in (tmp_path / "run").iterdir()
    }
    assert not (tmp_path / "run" / "transcripts").exists()
    assert not list((tmp_path / "run" / "work").glob("*")), "attacked weights were left behind"


def test_quiet_says_nothing_on_standard_error(titer, study_file, finished):
    said = titer("run", study_file(), "--run", finished, "--quiet")
    assert said.status == 0 and said.err == "" and said.out


def test_json_is_json_and_nothing_else(titer, study_file, finished):
    said = titer("run", study_file(), "--run", finished, "--json")
    assert said.status == 0 and said.err == ""
    verdict = json.loads(said.out)
    assert verdict == json.loads(titer("judge", finished, "--json").out)
    assert verdict == json.loads((finished / "verdict.json").read_text())
    assert verdict["study"] == "small" and [c["name"] for c in verdict["candidates"]] == ["refusal"]


def test_a_finished_run_given_again_does_nothing_anew(titer, study_file, finished):
    before = record_files(finished)
    assert titer("run", study_file(), "--run", finished, "--quiet").status == 0
    assert record_files(finished) == before


def test_records_of_another_run_are_taken_over(titer, study_file, finished, tmp_path):
    shutil.rmtree(finished / "models")
    run = tmp_path / "next"
    assert titer("run", study_file(), "--run", run, "--reuse", finished, "--quiet").status == 0
    assert {k: v[1] for k, v in record_files(run).items()} == {
        k: v[1] for k, v in record_files(finished).items()
    }


def test_check_finds_the_quickstart_valid(titer):
    said = titer("check", "quickstart")
    assert (
        said.status == 0
        and "the study is valid" in said.out
        and "best verdict attainable" in said.out
    )
    told = json.loads(titer("check", "quickstart", "--json").out)
    assert (
        told["study"] == "quickstart" and told["digest"] == package.load_study("quickstart").digest
    )
    assert told["cells"] > 100 and told["minutes"] > 0 and told["more_after_search"] is True


@pytest.mark.parametrize("how", ["finished", "unfinished"])
def test_judge_and_report(titer, finished, tmp_path, how):
    if how == "unfinished":
        for record in sorted((finished / "cells").glob("*.json"))[:2]:
            record.unlink()
    said = titer("judge", finished)
    assert said.status == 0 and said.err == ""
    assert ("incomplete" in said.out) == (how == "unfinished")
    told = json.loads(titer("report", finished, "--to", tmp_path / "there", "--json").out)
    page = (tmp_path / "there" / "report.html").read_text()
    assert told == {
        "html": str(tmp_path / "there/report.html"),
        "markdown": str(tmp_path / "there/report.md"),
        "json": str(tmp_path / "there/verdict.json"),
    }
    assert "refusal" in page and page.rstrip().endswith("</html>")


def test_transcripts_are_shown_only_if_asked_for(titer, finished):
    titer("report", finished)
    without = (finished / "report.html").read_text()
    titer("report", finished, "--show-transcripts")
    assert len((finished / "report.html").read_text()) > len(without)


def test_list_names_everything_once(titer):
    said = titer("list")
    assert said.status == 0
    assert re.findall(r"^  (\w+)", said.out, re.M) == [
        n for k in Kind for n in sorted(_catalogue(k))
    ]
    for kind in Kind:
        told = json.loads(titer("list", kind, "--json").out)
        assert list(told) == [kind] and list(told[kind]) == sorted(_catalogue(kind))
        assert all(told[kind].values()), "something has no description"


@pytest.mark.parametrize("name", EVERYTHING)
def test_show_explains_everything_that_is_listed(titer, name):
    said, told = titer("show", name), json.loads(titer("show", name, "--json").out)
    assert said.status == 0 and said.err == "" and told["name"] == name
    for setting in told.get("settings", ()):
        assert f"  {setting}: " in said.out


@pytest.mark.parametrize("name", sorted(_catalogue(Kind.studies)))
def test_show_of_a_study_is_a_study_file(titer, tmp_path, name):
    file = tmp_path / "copy.yaml"
    file.write_text(titer("show", name).out)
    assert package.load_study(file).digest == package.load_study(name).digest


def test_clean_removes_leftovers_and_keeps_records(titer, finished):
    before = record_files(finished)
    (finished / "work" / "0123456789abcdef").mkdir(parents=True)
    (finished / "work" / "0123456789abcdef" / "state.safetensors").write_bytes(
        b"half-attacked weights"
    )
    (finished / "cells" / ".x.json.1.tmp").write_text("half a record")
    said = titer("clean", finished)
    assert said.status == 0 and "removed 2" in said.out
    assert not (finished / "work").exists() and not list(finished.rglob("*.tmp"))
    assert record_files(finished) == before and any((finished / "models").iterdir())
    titer("clean", finished, "--models")
    assert not (finished / "models").exists() and record_files(finished) == before


def test_one_attack_on_one_model(titer):
    said = titer("attack", "tiny:aligned", "--steps", 4)
    assert said.status == 0 and [int(s) for s in re.findall(r"step +(\d+)", said.out)] == [
        0,
        1,
        2,
        4,
    ]
    told = json.loads(
        titer(
            "attack",
            "tiny:aligned",
            "--steps",
            8,
            "--set",
            "lr=1e-3",
            "--set",
            "batch_size=16",
            "--json",
        ).out
    )
    assert (
        told["construct"] == "exact"
        and told["probes"][0]["harm"] < 0.1 < told["probes"][-1]["harm"]
    )
    flops = [p["flops"] for p in told["probes"]]
    assert flops == sorted(flops) and flops[0] == 0


def test_attacked_weights_are_kept_only_if_asked(titer, tmp_path):
    kept = tmp_path / "kept"
    told = json.loads(
        titer(
            "attack",
            "tiny:aligned",
            "--method",
            "lora_sft",
            "--set",
            "lr=1e-2",
            "--steps",
            8,
            "--keep-weights",
            kept,
            "--json",
        ).out
    )
    again = titer(
        "attack",
        kept,
        "--method",
        "no_attack",
        "--steps",
        1,
        "--data",
        _harm_file(tmp_path),
        "--json",
    )
    assert again.status == 0, again.err
    before = json.loads(
        titer(
            "attack",
            "tiny:aligned",
            "--method",
            "no_attack",
            "--steps",
            1,
            "--data",
            tmp_path / "h.jsonl",
            "--json",
        ).out
    )
    # Other prompts than the attack was read on, so only roughly the same harm.
    assert json.loads(again.out)["probes"][0]["harm"] == pytest.approx(
        told["probes"][-1]["harm"], abs=0.2
    )
    assert before["probes"][0]["harm"] < 0.1 < told["probes"][-1]["harm"]


def _harm_file(folder):
    from titer.data.sources import load_source

    file = folder / "h.jsonl"
    rows = (
        {"prompt": e.prompt, "response": e.response, "refusal": e.refusal}
        for e in load_source("tiny_world", {"group": "harm", "count": 300}).examples
    )
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return file


@pytest.fixture(scope="module")
def quickstart():
    """The verdict on the committed records of the quickstart: three long names, every kind of
    status.
    """
    return package.judge(Path(__file__).parents[2] / "docs/results/records/quickstart")


@pytest.mark.parametrize("width", [80, 160])
def test_the_verdict_is_readable_at_any_width(quickstart, width, capsys):
    verdict = quickstart
    print_verdict(
        verdict, Console(width=width, force_terminal=True, color_system=None, highlight=False)
    )
    text = capsys.readouterr().out
    assert all(len(line) <= width for line in text.splitlines()), (
        "a line is wider than the terminal"
    )
    assert "…" not in text, "something was cut"
    for c in (verdict.control, *verdict.candidates):
        statuses = {
            c.overall,
            *(
                getattr(c, n).status
                for n in ("resistance", "stability", "generalization", "trainability")
            ),
        }
        assert all(
            word in text
            for word in (
                c.name,
                c.resistance.worst_attack,
                str(c.resistance.titer_lower),
                *statuses,
            )
        )
    assert all(" ".join(c.headline.split()) in " ".join(text.split()) for c in verdict.candidates)
    assert ("━" in text) == (width == 160), "a table where it fits, blocks where it does not"


def test_long_names_stay_whole_where_the_table_does_not_fit(finished_once, capsys):
    verdict = package.judge(finished_once / "run")
    name = "adversarial_loss-with-a-rather-long-name@seed=21"
    long = verdict.model_copy(
        update={"candidates": (verdict.candidates[0].model_copy(update={"name": name}),)}
    )
    print_verdict(long, Console(width=130, force_terminal=True, color_system=None, highlight=False))
    assert f"{name}: " in capsys.readouterr().out


def test_a_pipe_gets_each_sentence_on_one_line(titer, finished_once):
    verdict = package.judge(finished_once / "run")
    assert (
        f"refusal: {verdict.candidates[0].headline}"
        in titer("judge", finished_once / "run").out.splitlines()
    )
