"""The published schema: up to date, complete, true of real verdicts, and strict enough to refuse
what is none.
"""

import copy
import functools
import json
from pathlib import Path

import jsonschema
import pytest

from helpers.report_example import example, hostile, make_study, minimal_verdict, whole
from titer.records.store import RunStore
from titer.report import verdict_schema, write_report
from titer.report.schema import schema_text
from titer.verdicts import judge

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docs" / "schema" / "verdict.schema.json"


COMMITTED = sorted((ROOT / "docs" / "results" / "records").glob("*/study.json"))


def stored(run):
    view = RunStore(run).view()
    return view, judge(view)


RUNS = {
    **{run.parent.name: functools.partial(stored, run.parent) for run in COMMITTED},
    "synthetic": whole,
    "invented": lambda: example(candidates=("guard", "vaccine")),
    "hostile": lambda: hostile()[:2],
    "unfinished": lambda: (example()[0], minimal_verdict(make_study())),
}


@pytest.fixture(scope="module")
def validator():
    schema = json.loads(FILE.read_text("utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_the_committed_file_is_up_to_date():
    assert FILE.read_text("utf-8") == schema_text(), "run scripts/write_schema.py"


@pytest.mark.parametrize("run", RUNS)
def test_verdicts_of_real_and_invented_runs_are_valid(run, validator, tmp_path):
    verdict = json.loads(write_report(*RUNS[run](), tmp_path).json.read_text("utf-8"))
    validator.validate(verdict)
    assert verdict["format"] == 1 and COMMITTED


def test_what_is_no_verdict_is_refused(validator, tmp_path):
    good = json.loads(write_report(*whole(), tmp_path).json.read_text("utf-8"))
    for break_it in (
        lambda v: v.pop("format"),
        lambda v: v.update(format=2),
        lambda v: v.pop("control"),
        lambda v: v.update(surprise=1),
        lambda v: v["candidates"][0].update(overall="immunized"),
        lambda v: v["candidates"][0]["resistance"].update(budget="16 steps"),
        lambda v: v["candidates"][0]["resistance"]["attacks"][0]["trajectories"][0].pop("probes"),
    ):
        bad = copy.deepcopy(good)
        break_it(bad)
        assert not validator.is_valid(bad)


def test_it_has_no_identity_and_says_what_everything_means():
    schema = verdict_schema()
    assert schema["$schema"].endswith("/draft/2020-12/schema") and "$id" not in json.dumps(schema)
    for name, part in {**schema["$defs"], "StudyVerdict": schema}.items():
        assert part.get("description"), name
        for field, body in part.get("properties", {}).items():
            said = body.get("description") or f"{field}:" in part["description"]
            assert said, f"{name}.{field} needs a docstring under it or a line in report/schema.py"
    assert (
        "order statistics"
        in schema["$defs"]["AttackVerdict"]["properties"]["quantile_budget"]["description"]
    )


def test_every_definition_is_used():
    text = json.dumps(verdict_schema())
    assert all(f'"#/$defs/{name}"' in text for name in verdict_schema()["$defs"])
