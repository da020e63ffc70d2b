"""Reading studies: YAML as researchers write it, paths, names, and what cannot be read."""

import math
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from titer.errors import StudyError, UnknownNameError
from titer.study import Study, builtin_studies, load_study
from titer.study.load import parse_study

SMALL = """
name: small
threat_model: open_weights
model: tiny:aligned
pools:
  harm: {source: tiny_world, options: {count: 400}, parts: {attack: 100, judge: 50, confirm: 50}}
candidates: [none]
resistance:
  attacks:
    - {attack: full_sft, settings: {lr: LR}}
  data: {harmful: harm/attack}
  budget: 8
  harm: {measure: exact_answer, settings: {reads: harm}, part: harm/judge}
  confirm: harm/confirm
  seeds: [1]
"""


def small(text: str = SMALL, base: Path = Path(".")) -> Study:
    return parse_study(text.replace("LR", "1e-4"), base=base, where="small.yaml")


@given(
    st.floats(min_value=1e-30, max_value=1e30),
    st.sampled_from(["{:.0e}", "{:.3e}", "{:E}", "{!r}"]),
)
def test_numbers_in_scientific_notation_are_numbers(number, style):
    text = style.format(number)
    lr = (
        parse_study(SMALL.replace("LR", text), base=Path("."), where="x")
        .resistance.attacks[0]
        .settings["lr"]
    )
    assert isinstance(lr, float) and math.isclose(lr, float(text), rel_tol=1e-12)


@pytest.mark.parametrize(
    "written", ["1e-4", "1E-4", "1.e-4", "+1e-4", "10e-5", "0.0001", "1.0e-04"]
)
def test_one_ten_thousandth_however_written(written):
    study = parse_study(SMALL.replace("LR", written), base=Path("."), where="x")
    assert study.resistance.attacks[0].settings["lr"] == pytest.approx(1e-4, rel=1e-12)
    assert study.digest == small().digest


@pytest.mark.parametrize("text", ["e4", "1e", "a1e4", "hello"])
def test_text_that_only_resembles_a_number_stays_text(text):
    study = parse_study(SMALL.replace("LR", text), base=Path("."), where="x")
    assert study.resistance.attacks[0].settings["lr"] == text


def test_the_four_kinds_of_source_give_the_same_study(tmp_path):
    file = tmp_path / "small.yaml"
    file.write_text(SMALL.replace("LR", "1e-4"))
    from_file = load_study(file)
    from_text = load_study(str(file))
    from_dictionary = load_study({**yaml.safe_load(SMALL.replace("LR", "1.0e-4"))})
    assert from_file == from_text == from_dictionary and load_study(from_file) is from_file
    assert load_study("quickstart") == parse_study(
        builtin_studies()["quickstart"], base=tmp_path, where="x"
    )


def test_relative_paths_are_relative_to_the_file_not_to_the_working_directory(
    tmp_path, monkeypatch
):
    text = (
        SMALL.replace("LR", "1e-4")
        .replace("model: tiny:aligned", "model: ./m")
        .replace(
            "candidates: [none]",
            "candidates: [{name: a, model: stars/a}, {name: b, model: 'path:../b'}, "
            "{name: c, model: 'hub:o/n'}]",
        )
        .replace(
            "source: tiny_world, options: {count: 400}",
            "source: jsonl, options: {path: text/h.jsonl}",
        )
    )
    folder = tmp_path / "studies"
    folder.mkdir()
    (folder / "s.yaml").write_text(text)
    monkeypatch.chdir("/")
    study = load_study(folder / "s.yaml")
    assert study.model.name == str(folder / "m")
    assert [str(c.model) for c in study.candidates[1:]] == [
        f"path:{folder / 'stars/a'}",
        f"path:{tmp_path / 'b'}",
        "hub:o/n",
    ]
    assert study.pools["harm"].options["path"] == str(folder / "text/h.jsonl")
    mapped = text.replace("model: ./m", "model: {source: path, name: m}")
    assert parse_study(mapped, base=folder, where="x") == study


def test_further_models_and_plug_ins_are_relative_to_the_file_too(tmp_path):
    extra = """
models:
  judge: ./judge
  mapped: {source: path, name: mapped}
  far: hub:org/name
plugins: [mine.py, ../theirs.py, /else/where.py]
"""
    study = small(SMALL + extra, base=tmp_path / "studies")
    assert {name: str(ref) for name, ref in study.models.items()} == {
        "judge": f"path:{tmp_path / 'studies/judge'}",
        "mapped": f"path:{tmp_path / 'studies/mapped'}",
        "far": "hub:org/name",
    }
    assert study.plugins == (
        str(tmp_path / "studies/mine.py"),
        str(tmp_path / "theirs.py"),
        "/else/where.py",
    )


def test_a_home_directory_may_be_written_as_a_tilde(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    study = small(SMALL.replace("model: tiny:aligned", "model: ~/m"), base=Path("/somewhere"))
    assert study.model.name == str(tmp_path / "m")


@pytest.mark.parametrize("twice", ["name: other", "threat_model: open_weights"])
def test_a_key_given_twice_is_an_error(twice):
    with pytest.raises(StudyError, match="given twice") as caught:
        small(SMALL + twice + "\n")
    assert caught.value.field == twice.partition(":")[0] and "lines " in caught.value.value


def test_a_key_given_twice_deep_inside_is_an_error():
    with pytest.raises(StudyError, match="given twice") as caught:
        small(SMALL.replace("part: harm/judge}", "part: harm/judge, part: harm/attack}"))
    assert caught.value.field == "part"


def test_yaml_merging_may_be_overridden():
    text = SMALL.replace(
        "candidates: [none]",
        """candidates:
  - &first {name: a, defense: sft_refusal, steps: 3}
  - &second {<<: *first, name: b}
  - {<<: *second, name: c, steps: 4}
defense_data: {harmful: harm/defense}""".replace("harm/attack}", "harm/attack}"),
    ).replace("{attack: 100, judge", "{attack: 100, defense: 50, judge")
    candidates = small(text).candidates
    assert [(c.name, [s.steps for s in c.stages]) for c in candidates] == [
        ("none", []),
        ("a", [3]),
        ("b", [3]),
        ("c", [4]),
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("name: [1, 2\nmodel: x\n", 2),
        ("name: a\n\tmodel: b\n", 2),
        ("a: 1\nb: 'x\n", 3),
        ("name: a: b\n", 1),
        ("? {a: 1}\n: 2\n", 1),
    ],
)
def test_what_is_no_yaml_is_told_with_its_line(text, line):
    with pytest.raises(StudyError, match=rf"s\.yaml, line {line}: not YAML") as caught:
        parse_study(text, base=Path("."), where="s.yaml")
    assert caught.value.remedy


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just text\n", "42\n", "null\n"])
def test_what_is_no_mapping_is_told(text):
    with pytest.raises(StudyError, match="mapping"):
        parse_study(text, base=Path("."), where="s.yaml")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(StudyError, match="does not exist") as caught:
        load_study(tmp_path / "no.yaml")
    assert caught.value.value == str(tmp_path / "no.yaml")


def test_a_file_that_is_no_text(tmp_path):
    (tmp_path / "s.yaml").write_bytes(b"\xff\xfe\x00name")
    with pytest.raises(StudyError, match="cannot be read"):
        load_study(tmp_path / "s.yaml")
    (tmp_path / "d.yaml").mkdir()
    with pytest.raises(StudyError, match="cannot be read"):
        load_study(tmp_path / "d.yaml")


@pytest.mark.parametrize(("name", "near"), [("quickstrt", "quickstart"), ("smollm", "smollm2")])
def test_an_unknown_name_lists_near_ones(name, near):
    with pytest.raises(UnknownNameError) as caught:
        load_study(name)
    assert near in caught.value.remedy and "studie has" not in str(caught.value)


def test_an_unknown_name_without_a_near_one_says_where_to_look():
    with pytest.raises(UnknownNameError, match="titer list studies"):
        load_study("xyzzy")


@pytest.mark.parametrize("nothing", [None, 3, ["quickstart"]])
def test_what_is_no_study_at_all(nothing):
    with pytest.raises(StudyError, match="not a study"):
        load_study(nothing)


def test_a_dictionary_from_a_plain_yaml_loader_is_the_same_study():
    """PyYAML itself leaves 1e-3 a string."""
    text = builtin_studies()["quickstart"]
    assert load_study(yaml.safe_load(text)) == load_study("quickstart")
