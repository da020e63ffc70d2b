"""The releaser's study: what it contains, and what is said of files that will not do."""

import inspect
import json

import pytest
import yaml

from titer.errors import StudyError
from titer.study import load_study
from titer.study.load import parse_study
from titer.study.releaser import file_pool, releaser_study
from titer.study.uses import TextUse


def lines(count, **fields):
    return "".join(
        json.dumps({"prompt": f"question {i}", **fields}, ensure_ascii=False) + "\n"
        for i in range(count)
    )


@pytest.fixture
def files(tmp_path):
    (tmp_path / "attack.jsonl").write_text(lines(100, response="yes"))
    (tmp_path / "prompts.jsonl").write_text(lines(50))
    (tmp_path / "benign.jsonl").write_text(lines(40, response="yes"))
    return {
        "attack_data": tmp_path / "attack.jsonl",
        "eval_prompts": tmp_path / "prompts.jsonl",
        "benign_data": tmp_path / "benign.jsonl",
    }


def test_two_models_and_three_files_make_a_whole_study(files):
    study = releaser_study(
        model="tiny:aligned", candidates=["tiny:base", "tiny:untaught"], budget=16, seeds=3, **files
    )
    assert [(c.name, str(c.model)) for c in study.candidates[1:]] == [
        ("candidate1", "tiny:base"),
        ("candidate2", "tiny:untaught"),
    ]
    assert study.pools["attack"].parts == {"train": 99}
    assert study.resistance.data.slots == {"harmful": TextUse(part="attack/train", examples=49)}
    assert study.trainability.tasks[0].data.slots == {"harmless": TextUse(part="benign/train")}
    assert not any(c.stages or c.service for c in study.candidates) and not study.plugins
    assert (
        sum(study.pools["judge"].parts.values()) <= 50
        and sum(study.pools["benign"].parts.values()) <= 40
    )
    assert {a.attack for a in study.resistance.attacks} == {"full_sft", "lora_sft"}
    assert len(study.resistance.seeds) == 3 and study.stability and study.trainability
    assert study.threat_model == "open_weights" and study.resistance.budget == 16


def test_one_candidate_is_called_so(files):
    study = releaser_study(model="tiny:aligned", candidates=["tiny:base"], **files)
    assert [c.name for c in study.candidates] == ["none", "candidate"]


def test_without_files_packaged_text_is_taken():
    study = releaser_study(model="tiny:aligned", candidates=["tiny:base"])
    assert {n: p.source for n, p in study.pools.items()} == {
        "attack": "advbench",
        "judge": "strongreject",
        "benign": "alpaca",
    }
    assert (
        study.pools["judge"].drop_near == ("attack",)
        and study.pools["attack"].respond == "content_free"
    )


def test_written_down_and_read_again_it_is_the_same_study(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m").mkdir()
    study = releaser_study(model="m", candidates=["./m"], **{k: v.name for k, v in files.items()})
    text = yaml.safe_dump(study.model_dump(mode="json", exclude_defaults=True))
    monkeypatch.chdir("/")
    assert parse_study(text, base=tmp_path / "elsewhere", where="x").digest == study.digest
    assert load_study(study.model_dump(mode="json")).digest == study.digest


def test_the_command_line_has_the_same_defaults():
    from titer.cli.evaluate import evaluate_command

    mine, theirs = (inspect.signature(f).parameters for f in (releaser_study, evaluate_command))
    for name, parameter in mine.items():
        if name in ("model", "candidates", "full_lr", "lora_lr"):
            continue
        assert theirs[name].default == parameter.default, name


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_line_ends_byte_order_marks_and_odd_separators_are_no_matter(tmp_path, end, mark):
    """U+2028 and U+0085 may stand unescaped in JSON text; they end no line."""
    from titer.data.sources.files import jsonl

    file = tmp_path / "a.jsonl"
    rows = [
        json.dumps({"prompt": f"q {i}\u2028and\u0085so", "response": "é"}, ensure_ascii=False)
        for i in range(20)
    ]
    file.write_bytes((mark + end.join([*rows, "", ""])).encode())
    pool = file_pool(file, "attack_data", {"train": 0.5, "test": 0.5}, ("response",))
    assert pool["parts"] == {"train": 10, "test": 10}
    assert len(jsonl(path=pool["options"]["path"]).examples) == 20


def test_prompts_are_counted_as_pools_tell_them_apart(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text(
        "".join(
            json.dumps({"prompt": p}) + "\n" for p in ("Ask  me", "ask me", " ask\nme ", "ask you")
        )
    )
    assert file_pool(file, "x", {"a": 0.5, "b": 0.5})["parts"] == {"a": 1, "b": 1}


def complaint(files, **changes) -> StudyError:
    with pytest.raises(StudyError) as caught:
        releaser_study(**({"model": "tiny:aligned", "candidates": ["tiny:base"]} | files | changes))
    assert caught.value.field and caught.value.expected
    return caught.value


@pytest.mark.parametrize("name", ["attack_data", "eval_prompts", "benign_data"])
def test_a_file_that_is_not_there_is_named(files, tmp_path, name):
    error = complaint(files, **{name: tmp_path / "no.jsonl"})
    assert (
        error.field == name and "no.jsonl" in str(error.value) and "does not exist" in error.problem
    )


@pytest.mark.parametrize(
    ("content", "problem", "line"),
    [
        ('{"prompt": "a", "response": "b"}\nnot json\n', "not JSON", 2),
        ('["a"]\n', "not a JSON object", 1),
        ('{"prompt": "a", "response": "b"}\n\n{"prompt": "c"}\n', "no response", 3),
        ('{"response": "b"}\n', "no prompt", 1),
        ('{"prompt": " ", "response": "b"}\n', "no prompt", 1),
        ('{"prompt": 3, "response": "b"}\n', "no prompt", 1),
        ('{"prompt": "a", "response": null}\n', "no response", 1),
    ],
)
def test_a_line_that_will_not_do_is_named(files, tmp_path, content, problem, line):
    file = tmp_path / "bad.jsonl"
    file.write_text(content)
    error = complaint(files, attack_data=file)
    assert (
        error.field == "attack_data"
        and problem in error.problem
        and error.value.endswith(f"bad.jsonl, line {line}")
    )
    assert '"response"' in error.expected


def test_a_file_in_another_encoding(files, tmp_path):
    file = tmp_path / "latin.jsonl"
    file.write_bytes('{"prompt": "é"}\n'.encode("latin-1"))
    assert "UTF-8" in complaint(files, eval_prompts=file).expected


@pytest.mark.parametrize(
    ("name", "count"), [("attack_data", 0), ("eval_prompts", 2), ("benign_data", 2)]
)
def test_a_file_too_short_is_told(files, tmp_path, name, count):
    file = tmp_path / "short.jsonl"
    file.write_text(lines(count, response="yes"))
    error = complaint(files, **{name: file})
    assert (
        error.field == name
        and "short" in error.problem
        and f"{count} distinct prompts" in error.value
    )


def test_prompts_need_answers_only_if_answers_are_compared(files):
    assert complaint(files, harm_measure="exact_answer").field == "eval_prompts"
    releaser_study(model="tiny:aligned", candidates=["tiny:base"], **files)


@pytest.mark.parametrize(
    ("changes", "field"),
    [({"model": "org/name"}, "model"), ({"candidates": ["org/name"]}, "candidate")],
)
def test_a_hub_id_taken_for_a_directory_is_explained(files, changes, field):
    error = complaint(files, **changes)
    assert error.field == field and "hub:org/name" in error.remedy


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"phi": 0.0}, "resistance.phi"),
        ({"phi": 1.5}, "resistance.phi"),
        ({"delta": 1.0}, "resistance.delta"),
        ({"budget": -4}, "resistance.budget"),
        ({"precision": "fp8"}, "runtime.precision"),
        ({"seeds": 0}, "resistance.seeds"),
        ({"full_lr": [1e-3, 1e-3]}, "resistance.attacks.0.search.lr"),
        ({"max_length": 2}, "runtime.max_length"),
    ],
)
def test_numbers_out_of_range_name_their_field(files, changes, field):
    assert complaint(files, **changes).field == field
