"""The releaser's study: what it contains, and what is said of files that will not do."""

import inspect
import json

import pytest
import yaml

from titer.data.sources.files import own_text
from titer.errors import StudyError
from titer.study import load_study
from titer.study.load import parse_study
from titer.study.naming import called, short_name, study_name
from titer.study.releaser import releaser_study
from titer.study.resistance import LeftOut
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
        "attack_data": own_text(tmp_path / "attack.jsonl", field="attack_data"),
        "eval_prompts": own_text(tmp_path / "prompts.jsonl", field="eval_prompts"),
        "benign_data": own_text(tmp_path / "benign.jsonl", field="benign_data"),
    }


def test_two_models_and_three_files_make_a_whole_study(files):
    study = releaser_study(
        model="tiny:aligned", candidates=["tiny:base", "tiny:untaught"], budget=16, seeds=3, **files
    )
    assert [(c.name, str(c.model)) for c in study.candidates[1:]] == [
        ("base", "tiny:base"),
        ("untaught", "tiny:untaught"),
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


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (["tiny:base"], ["base"]),
        (["star=tiny:base", "hub:org/My-Model"], ["star", "My-Model"]),
        (["/a/m", "/b/m", "/c/m/"], ["m", "m-2", "m-3"]),
        (["/a/m", "m=/b/m"], ["m-2", "m"]),
        (["/a/none"], ["none-2"]),
        (["/a/ü b*c"], ["b-c"]),
        (["/a/***"], ["model"]),
        (["/a/w.gguf"], ["w"]),
        (["./x=1/m"], ["m"]),
        (["a=b=c"], ["a"]),
    ],
)
def test_candidates_are_called_as_asked_or_as_their_directories(given, names):
    found = called(given)
    assert list(found) == names
    study_names = study_name("tiny:aligned", names)
    assert len(study_names) <= 80 and all(c.isascii() and c not in "/ *" for c in study_names)


@pytest.mark.parametrize("given", [["none=m"], ["a=m", "a=n"], ["a b=m"], ["a="], ["=m"]])
def test_a_name_that_will_not_do_is_told(given):
    with pytest.raises(StudyError) as caught:
        called(given)
    assert caught.value.field == "candidate" and caught.value.expected


def test_the_present_directory_has_the_name_it_has_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert short_name(".") == short_name(str(tmp_path))


def test_every_candidate_climbs_the_controls_whole_ladder(files):
    """Declared before anything is run, three decades of it, and never less than the control got."""
    study = releaser_study(model="tiny:aligned", candidates=["tiny:base"], **files)
    for attack in study.resistance.attacks:
        rates = attack.search["lr"]
        assert max(rates) / min(rates) == pytest.approx(1000) and attack.control_point
        assert f"{attack.label} {min(rates):g}, " in study.description
    assert study.resistance.search_part not in (
        study.resistance.harm.part,
        study.resistance.confirm,
    )
    assert not {*study.resistance.search_seeds} & {*study.resistance.seeds}


def test_what_cannot_be_run_is_left_out_and_said(files):
    gone = LeftOut(attack="lora_sft", reason="it has no layers that lora_sft can change")
    study = releaser_study(model="tiny:aligned", candidates=["tiny:base"], left_out=[gone], **files)
    assert [a.label for a in study.resistance.attacks] == ["full_sft"]
    assert study.resistance.left_out == (gone,) and gone.reason in study.description
    barred = LeftOut(attack="lora_sft", candidate="base", reason="it cannot be changed")
    study = releaser_study(
        model="tiny:aligned", candidates=["tiny:base"], left_out=[barred], **files
    )
    assert [a.label for a in study.resistance.attacks] == ["full_sft", "lora_sft"]
    assert study.resistance.leaves_out("lora_sft", "base") and "cannot hold" in study.description
    both = [gone, LeftOut(attack="full_sft", reason="nothing fits")]
    assert complaint(files, left_out=both).field == "attack"


def test_samples_are_replies_to_few_harmful_prompts(files):
    study = releaser_study(model="tiny:aligned", candidates=["tiny:base"], **files)
    assert study.resistance.samples is None
    study = releaser_study(model="tiny:aligned", candidates=["tiny:base"], samples=3, **files)
    samples = study.resistance.samples
    assert (samples.measure, samples.limit) == ("compliance_generated", 3)


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
    study = releaser_study(model="m", candidates=["./m"], **files)
    text = yaml.safe_dump(study.model_dump(mode="json", exclude_defaults=True))
    monkeypatch.chdir("/")
    assert parse_study(text, base=tmp_path / "elsewhere", where="x").digest == study.digest
    assert load_study(study.model_dump(mode="json")).digest == study.digest


def test_the_command_line_has_the_same_defaults():
    from titer.cli.evaluate import evaluate_command

    mine, theirs = (inspect.signature(f).parameters for f in (releaser_study, evaluate_command))
    for name, parameter in mine.items():
        if name in ("model", "candidates", "attacks", "left_out", "harm_measure"):
            continue
        assert theirs[name].default == parameter.default, name


def complaint(files, **changes) -> StudyError:
    with pytest.raises(StudyError) as caught:
        releaser_study(**({"model": "tiny:aligned", "candidates": ["tiny:base"]} | files | changes))
    assert caught.value.field and caught.value.expected
    return caught.value


@pytest.mark.parametrize(("name", "count"), [("eval_prompts", 2), ("benign_data", 2)])
def test_a_file_too_short_is_told(files, tmp_path, name, count):
    file = tmp_path / "short.jsonl"
    file.write_text(lines(count, response="yes"))
    error = complaint(files, **{name: own_text(file, field=name)})
    assert (
        error.field == name
        and "short" in error.problem
        and f"{count} distinct prompts" in error.value
    )


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
