"""The results shown under docs/results rest on records that today's code would make again, cell by
cell.
"""

import json
import re
from pathlib import Path

import pytest

from titer.data.pools import Pools
from titer.engine.planning import plan
from titer.records.store import RunStore
from titer.study import load_study
from titer.study.load import builtin_studies

RESULTS = Path(__file__).parent.parent / "docs" / "results"
STUDIES = sorted(p.name for p in (RESULTS / "records").iterdir())
OLDER = "**An older result.**"
"""What a page says whose records today's code cannot read."""


def complete(name):
    """Planning the built-in study with its committed records; every cell must have one, and every
    record a cell.
    """
    store = RunStore(RESULTS / "records" / name)
    asked = {}

    def known(digest):
        asked[digest] = store.record(digest)
        return asked[digest]

    study = load_study(name)
    today = plan(study, Pools(study), known)
    wanted = {p.digest for p in today.cells}
    missing = [p.roles[0] for p in today.cells if store.record(p.digest) is None]
    assert today.complete and not missing, (
        f"{len(missing)} of {len(wanted)} cells have no record, first {missing[:1]}"
    )
    assert {f.stem for f in store.cells.glob("*.json")} == wanted
    committed = store.plan()
    assert committed.study == today.study == study.digest
    assert {p.digest: p.roles for p in committed.cells} == {p.digest: p.roles for p in today.cells}
    assert committed.disjointness["sizes"] == today.disjointness["sizes"]


@pytest.mark.parametrize("name", STUDIES)
def test_records_are_those_of_todays_code(name):
    complete(name)


def test_a_page_without_records_says_so():
    pages = {p.stem for p in RESULTS.glob("*.md")} & set(builtin_studies())
    assert "quickstart" in STUDIES and pages >= set(STUDIES)
    for name in pages:
        older = OLDER in (RESULTS / f"{name}.md").read_text("utf-8")[:600]
        assert older == (name not in STUDIES), name


@pytest.mark.parametrize("name", STUDIES)
def test_pages_are_about_todays_study(name):
    page = (RESULTS / f"{name}.md").read_text("utf-8")
    assert re.search(r"digest `([0-9a-f]+)`", page).group(1) == load_study(name).digest
    assert RunStore(RESULTS / "records" / name).study() == load_study(name)


@pytest.mark.parametrize("name", STUDIES)
def test_records_hold_no_text(name):
    """What models were asked and what they said is not published."""
    store = RunStore(RESULTS / "records" / name)
    assert not store.transcripts.exists() and not store.models.exists() and not store.work.exists()
    for file in store.cells.glob("*.json"):
        record = json.loads(file.read_text("utf-8"))["record"]
        assert not {"prompt", "reply", "response"} & fields(record), file.name


def fields(value):
    if isinstance(value, dict):
        return set(value) | {name for child in value.values() for name in fields(child)}
    return {name for child in value for name in fields(child)} if isinstance(value, list) else set()


@pytest.mark.parametrize("name", STUDIES)
def test_every_committed_record_is_believed(name):
    view = RunStore(RESULTS / "records" / name).view()
    assert view.missing == 0 and view.problems == ()


def test_the_benchmark_page_holds_both_models_within_the_aim():
    page = (RESULTS / "engine_overhead.md").read_text("utf-8")
    rows = re.findall(
        r"^\| (\S+) \| ([\d.]+) \| ([\d.]+) to ([\d.]+) \| .*? \| (\d+) \| \d+ \|", page, re.M
    )
    assert [r[0] for r in rows] == ["tiny:aligned", "package:smollm2-135m-instruct"]
    for _, median, low, high, blocks in rows:
        assert (
            float(low) <= float(median) <= float(high)
            and int(blocks) >= 20
            and float(median) <= 1.05
        )
