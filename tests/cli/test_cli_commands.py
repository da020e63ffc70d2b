"""What the commands print and write when all goes well."""

import json
import re
import shutil

import pytest
from rich.console import Console

import titer as package
from helpers.cli_records import record_files
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
    if name in package.study.builtin_studies():
        return
    assert f"kind: {told['kind']}" in said.out and told["version"] >= 1 and told["reference"]
    for setting in told["settings"]:
        assert f"  {setting}: " in said.out
    for setting in told["required"]:
        assert f"  {setting}: required" in said.out


PLUGIN = '''
from titer.methods.attacks.full_sft import FullSFT


class Careful(FullSFT):
    """Full fine-tuning, carefully."""

    name = "careful"
    reference = "a test"
'''


@pytest.fixture
def plugin(tmp_path):
    file = tmp_path / "careful.py"
    file.write_text(PLUGIN)
    return file


def test_a_plugin_is_listed_shown_and_run(titer, plugin):
    told = json.loads(titer("list", "attacks", "--plugin", plugin, "--json").out)
    assert told["attacks"]["careful"] == "Full fine-tuning, carefully"
    assert titer("show", "careful", "--plugin", plugin).out.startswith("Full fine-tuning, care")
    said = titer("attack", "tiny:aligned", "--method", "careful", "--plugin", plugin, "--steps", 1)
    assert said.status == 0 and said.out.startswith("careful on tiny:aligned"), said.err


def test_a_study_names_its_plugins(titer, study_file, plugin, tmp_path):
    """Relative to the file, and known to every command that reads the study."""
    file = study_file(plugins=["careful.py"], **{"resistance.attacks.0": {"attack": "careful"}})
    assert titer("run", file, "--run", tmp_path / "run", "--quiet").status == 0
    verdict = json.loads(titer("judge", tmp_path / "run", "--json").out)
    (attack,) = verdict["candidates"][0]["resistance"]["attacks"]
    assert attack["method"] == "careful"
    assert str(plugin) in (tmp_path / "run" / "study.json").read_text()


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
        "--harm-measure",
        "exact_answer",
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


def test_a_defense_that_asks_for_a_further_model(titer, refused, tmp_path):
    arguments = ("defend", "tiny:aligned", "--method", "lox", "--out")
    assert "lox needs a further model" in refused(*arguments, tmp_path / "without")
    further = ("--further-model", "base=tiny:base", "--json")
    told = json.loads(titer(*arguments, tmp_path / "with", *further).out)
    assert told["steps"] == 1 and told["loss_first"] is None and told["flops"] > 0
    assert (tmp_path / "with" / "model.safetensors").exists()


def test_an_attack_that_edits_weights(titer):
    """It needs harmless prompts too, has nothing left to do after one step, and logs no loss."""
    arguments = ("--method", "refusal_ablation", "--set", "examples=8", "--set", "validation=4")
    told = json.loads(titer("attack", "tiny:aligned", *arguments, "--steps", 4, "--json").out)
    assert told["outcome"] == "finished"
    assert [p["step"] for p in told["probes"]] == [0, 1, 2, 4]


def _harm_file(folder):
    from titer.data.sources import load_source

    file = folder / "h.jsonl"
    rows = (
        {"prompt": e.prompt, "response": e.response, "refusal": e.refusal}
        for e in load_source("tiny_world", {"group": "harm", "count": 300}).examples
    )
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return file


STATUSES = ("holds", "fails", "inconclusive", "invalid")


@pytest.fixture
def several(finished_once):
    """A verdict on candidates with long names and every kind of status."""
    verdict = package.judge(finished_once / "run")
    first = verdict.candidates[0]

    def candidate(k, name):
        status = STATUSES[k]
        attacked = first.resistance.model_copy(
            update={
                "status": status,
                "worst_attack": f"full_sft@lr=0.000{k}",
                "titer_lower": 32 + k,
            }
        )
        rest = {
            n: getattr(first, n).model_copy(update={"status": status})
            for n in ("stability", "generalization", "trainability")
        }
        return first.model_copy(
            update={"name": name, "overall": status, "resistance": attacked, **rest}
        )

    names = ("sft_refusal", "adversarial_loss", "repnoise-then-npo", "booster")
    made = tuple(candidate(k, name) for k, name in enumerate(names))
    return verdict.model_copy(update={"candidates": made})


@pytest.mark.parametrize("width", [80, 160])
def test_the_verdict_is_readable_at_any_width(several, width, capsys):
    verdict = several
    print_verdict(
        verdict, Console(width=width, force_terminal=True, color_system=None, highlight=False)
    )
    text = capsys.readouterr().out
    assert all(len(line) <= width for line in text.splitlines()), (
        "a line is wider than the terminal"
    )
    assert "…" not in text, "something was cut"
    for c in verdict.candidates:
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


def test_the_commands_a_report_names_work_on_the_run(titer, study_file, finished, tmp_path):
    """Each line under "How to reproduce", on the run directory the report is in."""
    assert titer("report", finished).status == 0
    report = (finished / "report.md").read_text("utf-8")
    block = re.search(r"### How to reproduce\n.*?```\n(.*?)\n```", report, re.S).group(1)
    lines = block.splitlines()
    assert len(lines) >= 3 and all(line.startswith("titer ") for line in lines)
    before, new = (finished / "verdict.json").read_bytes(), tmp_path / "again"
    for line in lines:
        words = line.replace("RUN", str(finished)).replace("NEW", str(new)).split()[1:]
        assert titer(*words).status == 0, line
    assert (finished / "verdict.json").read_bytes() == before
    digests = {
        json.loads((d / "verdict.json").read_text())["study_digest"] for d in (finished, new)
    }
    assert len(digests) == 1 and digests.pop() in report
    assert {f.name for f in (finished / "cells").iterdir()} == {
        f.name for f in (new / "cells").iterdir()
    }
