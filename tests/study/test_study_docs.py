"""docs/studies.md against the code: every field with its default; every example is a study that
loads.
"""

import re
from pathlib import Path

import pytest
import yaml
from pydantic_core import PydanticUndefined

from titer.data.pools import Pools
from titer.engine.planning import plan
from titer.study import candidate, conditions, resistance, spec, uses
from titer.study.base import Strict
from titer.study.candidate import Candidate
from titer.study.load import parse_study
from titer.study.uses import DataUse

PAGE = (Path(__file__).parents[2] / "docs/studies.md").read_text("utf-8")
MODELS = {
    m.__name__: m
    for room in (spec, candidate, uses, resistance, conditions)
    for m in vars(room).values()
    if isinstance(m, type) and issubclass(m, Strict) and m is not Strict
}
CODE = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.S | re.M)
EXAMPLES = [text for text in CODE if "threat_model:" in text]
PIECES = [yaml.safe_load(text) for text in CODE if "threat_model:" not in text]


def documented(name: str) -> dict[str, str]:
    """field → default as the page says, from the section of one model."""
    section = re.search(rf"^### `{name}`.*?\n(.*?)(?=^##|\Z)", PAGE, re.S | re.M)
    assert section, f"docs/studies.md has no section for {name}"
    return dict(re.findall(r"^\| `(\w+)` \| `?([^|]*?)`? \|", section[1], re.M))


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_field_is_documented_with_its_default(name):
    said = documented(name)
    assert set(said) == set(MODELS[name].model_fields)
    for field, info in MODELS[name].model_fields.items():
        if info.is_required():
            assert said[field] == "required", field
            continue
        default = info.get_default(call_default_factory=True)
        if isinstance(default, Strict):
            default = default.model_dump(exclude_defaults=True)
        assert default is not PydanticUndefined
        shown = yaml.safe_load(said[field])
        assert shown == (list(default) if isinstance(default, tuple) else default), field


def test_the_page_documents_no_part_that_does_not_exist():
    assert set(re.findall(r"^### `(\w+)`", PAGE, re.M)) == set(MODELS)


def test_links_lead_to_headings():
    anchors = {
        re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-")
        for h in re.findall(r"^#+ (.*)$", PAGE, re.M)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE)) <= anchors


@pytest.mark.parametrize("text", EXAMPLES, ids=lambda t: yaml.safe_load(t)["name"])
def test_every_example_loads(text, tmp_path):
    study = parse_study(text, base=tmp_path, where="docs/studies.md")
    assert study.name == yaml.safe_load(text)["name"]


def test_the_complete_example_uses_every_field_and_can_be_planned(tmp_path):
    text = next(t for t in EXAMPLES if "name: annotated" in t)
    used = set(re.findall(r"(\w+):", text))
    every = {f for m in MODELS.values() for f in m.model_fields}
    # Left to the tables: they need a hub, a bigger text, another threat model or another method.
    left = {"revision", "trust_remote_code", "drop_near", "near_threshold", "service", "reward"}
    assert every - used == left | {"slots"}  # the last one stands in its own section
    (tmp_path / "my_methods.py").write_text("")
    study = parse_study(text, base=tmp_path, where="docs/studies.md")
    cells = plan(study, Pools(study), lambda digest: None)
    purposes = {r.purpose for p in cells.cells for r in p.roles}
    assert {
        "align",
        "defense",
        "stability",
        "search",
        "attack",
        "generalization",
        "trainability_search",
    } <= purposes


def test_the_example_of_a_service_can_be_planned(tmp_path):
    text = next(t for t in EXAMPLES if "name: hosted" in t)
    study = parse_study(text, base=tmp_path, where="docs/studies.md")
    planned = plan(study, Pools(study), lambda digest: None).cells
    hosts = {
        role.candidate: p.cell.host and p.cell.host.method.name
        for p in planned
        for role in p.roles
        if role.purpose == "attack"
    }
    assert hosts == {"none": None, "lisa": "lisa", "refusal_and_lisa": "lisa"}


def test_what_is_called_the_same_is_the_same():
    short, full, (flat, staged) = PIECES
    assert DataUse.model_validate(short["data"]) == DataUse.model_validate(full["data"])
    assert Candidate.model_validate(flat) == Candidate.model_validate(staged)


def test_the_page_lists_every_source():
    from titer.data.sources import SOURCES

    table = PAGE.split("## Text sources")[1].split("## Identity")[0]
    assert set(re.findall(r"`(\w+)`", "\n".join(re.findall(r"^\| (`.*?) \|", table, re.M)))) == set(
        SOURCES
    )
