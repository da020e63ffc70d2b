"""What the command line is given wrongly: one message naming field, value and expectation, status
2, no work.
"""

import shutil

import pytest
import yaml

from titer.assets import tiny_model
from titer.cli.options import value_of

COMMANDS = ("check", "run")


@pytest.fixture(params=COMMANDS)
def command(request, tmp_path):
    """The beginning of a command that reads a study; nothing may be left behind that looks like a
    result.
    """
    extra = ("--run", tmp_path / "run") if request.param == "run" else ()
    yield lambda file: (request.param, file, *extra)
    assert not list(tmp_path.glob("run/cells/*")), "work was done before the study was refused"


WRONG = {
    "unknown field": ({"resistance.buget": 3}, ["resistance.buget = 3", "did you mean budget?"]),
    "unknown attack": ({"resistance.attacks.0.attack": "ful_sft"}, ["'ful_sft'", "full_sft"]),
    "unknown defense": ({"candidates.0.defense": "sft_refuse"}, ["'sft_refuse'", "sft_refusal"]),
    "unknown measure": (
        {"resistance.harm.measure": "exact_anser"},
        ["'exact_anser'", "exact_answer"],
    ),
    "unknown setting": (
        {"resistance.attacks.0.settings.momentun": 1},
        ["momentun = 1", "weight_decay"],
    ),
    "setting out of range": (
        {"resistance.attacks.0.settings.lr": -1.0},
        ["settings.lr = -1.0", "greater than 0"],
    ),
    "unknown source": ({"pools.harm.source": "tiny_word"}, ["'tiny_word'", "tiny_world"]),
    "unknown source option": ({"pools.harm.options": {"counts": 9}}, ["counts = 9", "count"]),
    "negative budget": ({"resistance.budget": -4}, ["resistance.budget = -4", "greater than 0"]),
    "phi too small": ({"resistance.phi": 0.0}, ["resistance.phi = 0.0", "greater than 0"]),
    "phi too large": (
        {"resistance.phi": 1.01},
        ["resistance.phi = 1.01", "less than or equal to 1"],
    ),
    "domain without data": (
        {"defense_data.domains": ["volcano"]},
        ["harm/defense = 'volcano'", "vexar"],
    ),
    "too little text": ({"pools.harm.options.count": 100}, ["pools.harm.parts", "at most 100"]),
    "more examples than there are": ({"resistance.data.examples": 500}, ["= 500", "at most 192"]),
    "unknown tiny model": ({"model": "tiny:alined"}, ["'alined'", "aligned"]),
    "missing model directory": (
        {"candidates.0": {"name": "m", "model": "no/such"}},
        ["no/such", "directory"],
    ),
    "missing answers": (
        {"resistance.data": {"harmful": "text/all"}, "pools.text": None},
        ["response", "text/all"],
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_study_is_refused_before_any_work(command, refused, study_file, tmp_path, name):
    changes, said = WRONG[name]
    if "pools.text" in changes:
        (tmp_path / "t.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
        changes = changes | {
            "pools.text": {"source": "jsonl", "options": {"path": "t.jsonl"}, "parts": {"all": 2}}
        }
    message = refused(*command(study_file(**changes)))
    for text in said:
        assert text in message


def test_attack_and_defense_text_that_overlap_exactly(command, refused, study_file):
    again = {
        "source": "tiny_world",
        "options": {"group": "harm", "count": 60},
        "parts": {"attack": 60},
    }
    message = refused(
        *command(
            study_file(**{"pools.stolen": again, "resistance.data": {"harmful": "stolen/attack"}})
        )
    )
    assert "'harm' and 'stolen' share 60 examples exactly" in message and "drop_near" in message


def test_a_truncated_gguf(command, refused, study_file, tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"GGUF\x03\x00\x00\x00" + b"\x01" * 40)
    message = refused(*command(study_file(model="m.gguf")), status=2)
    assert "truncated" in message and "m.gguf" in message


def test_a_truncated_model_directory(command, refused, study_file, tmp_path):
    shutil.copytree(tiny_model.FOLDER / "aligned", tmp_path / "m")
    weights = tmp_path / "m" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    message = refused(*command(study_file(model="m")))
    assert "truncated" in message and str(weights) in message


def test_shipped_weights_that_were_altered(command, refused, study_file, tmp_path, monkeypatch):
    folder = shutil.copytree(tiny_model.FOLDER, tmp_path / "tiny")
    weights = folder / "aligned" / "model.safetensors"
    body = bytearray(weights.read_bytes())
    body[-1] ^= 1
    weights.write_bytes(bytes(body))
    monkeypatch.setitem(tiny_model.load_tiny.__kwdefaults__, "folder", folder)
    message = refused(*command(study_file()))
    assert "altered" in message and "sha256" in message and str(weights) in message


@pytest.mark.parametrize("how", ["service", "defense"])
def test_a_defense_of_another_threat_model(command, refused, study_file, how):
    """The attacker of open weights does not fine-tune at the defender's, and a service builds no
    model, so `lisa` has no place in the study, however it is given."""
    candidate = (
        {"name": "guarded", "service": {"method": "lisa"}}
        if how == "service"
        else {"name": "guarded", "defense": "lisa", "steps": 4}
    )
    message = refused(*command(study_file(**{"candidates.0": candidate})))
    assert "lisa" in message and "fine_tuning_service" in message


def test_a_study_that_is_no_yaml_names_the_line(command, refused, tmp_path):
    file = tmp_path / "broken.yaml"
    file.write_text("name: a\nmodel: [1, 2\nbudget: 3\n")
    assert "broken.yaml, line 3" in refused(*command(file))


def test_a_key_given_twice(command, refused, tmp_path, study_file):
    file = study_file()
    file.write_text(file.read_text() + "name: other\n")
    assert "given twice" in refused(*command(file))


def test_a_study_nobody_knows(command, refused):
    message = refused(*command("quickstrt"))
    assert "'quickstrt'" in message and "did you mean quickstart" in message


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["frobnicate"], ["frobnicate"]),
        (["run"], ["study"]),
        (["list", "foo"], ["foo", "attacks"]),
        (
            ["attack", "tiny:aligned", "--steps", "-3"],
            ["--steps", "-3", "greater than or equal to 1"],
        ),
        (["run", "quickstart", "--workers", "x"], ["--workers", "'x'", "integer"]),
        (["evaluate", "tiny:aligned"], ["--candidate"]),
        (["run", "quickstart", "--wrokers", "2"], ["--wrokers", "--workers"]),
    ],
)
def test_wrong_usage_is_one_line_with_status_2(titer, arguments, said):
    result = titer(*arguments)
    assert result.status == 2 and result.out == "" and len(result.err.splitlines()) == 1
    assert result.err.startswith("titer: ") and "--help`" in result.err
    for text in said:
        assert text in result.err


def test_no_command_shows_the_help(titer):
    result = titer()
    assert result.status == 2 and "Commands:" in result.err and "evaluate" in result.err


@pytest.mark.parametrize("command", ["judge", "report", "clean"])
def test_what_is_no_run_directory(refused, tmp_path, command):
    assert str(tmp_path) in refused(command, tmp_path)
    assert not list(tmp_path.iterdir()), "something was left in a directory that is none of ours"


def test_a_misspelt_reuse_is_told_before_all_is_done_anew(refused, study_file, tmp_path):
    message = refused(
        "run", study_file(), "--run", tmp_path / "run", "--reuse", tmp_path / "nothing"
    )
    assert "--reuse" in message and not (tmp_path / "run").exists()


def test_another_study_in_the_same_directory(refused, study_file, finished):
    before = yaml.safe_load((finished / "study.json").read_text())
    assert "another study" in refused(
        "run", study_file(**{"resistance.budget": 8}), "--run", finished
    )
    assert yaml.safe_load((finished / "study.json").read_text()) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--method", "fullsft"], ["'fullsft'", "full_sft"]),
        (["--set", "lr"], ["--set = 'lr'", "lr=1e-4"]),
        (["--set", "lrr=1e-3"], ["lrr = 0.001"]),
        (["--set", "lr=[1"], ["lr = '[1'"]),
        (["--set", "lr=-1"], ["lr = -1"]),
        (["--data", "no.jsonl"], ["--data = 'no.jsonl'"]),
        (["--harm-measure", "exact"], ["'exact'", "exact_answer"]),
    ],
)
def test_a_single_attack_given_wrongly(refused, arguments, said):
    message = refused("attack", "tiny:aligned", *arguments)
    for text in said:
        assert text in message


def test_a_model_of_ones_own_needs_data(refused, tmp_path):
    assert "--data" in refused("attack", tmp_path)


def test_a_hub_id_taken_for_a_directory(refused):
    assert "hub:org/name" in refused("attack", "org/name")
    assert "hub:org/name" in refused("evaluate", "tiny:aligned", "--candidate", "org/name")


@pytest.mark.parametrize("what", ["file", "directory"])
def test_nothing_that_exists_is_saved_over(refused, tmp_path, what):
    """Saving a model replaces the directory it is saved to."""
    mine = tmp_path / "mine"
    if what == "directory":
        mine.mkdir()
        (mine / "thesis.tex").write_text("years of work")
    else:
        mine.write_text("years of work")
    before = sorted(tmp_path.rglob("*"))
    assert str(mine) in refused("defend", "tiny:aligned", "--out", mine)
    assert str(mine) in refused("attack", "tiny:aligned", "--keep-weights", mine)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("8", 8),
        ("[9e-1, 0.999]", [0.9, 0.999]),
        ("{lr: 1e-3, name: here}", {"lr": 1e-3, "name": "here"}),
        ("[{attack: full_sft, steps: 2}]", [{"attack": "full_sft", "steps": 2}]),
        ("cosine", "cosine"),
        ("[never closed", "[never closed"),
    ],
)
def test_a_setting_on_the_command_line_is_yaml(text, value):
    assert value_of(text) == value
