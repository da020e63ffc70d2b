"""`titer new`: what it writes works as it stands, and names that cannot work are refused."""

import runpy

import pytest
import yaml

import titer as package
from titer.cli.new import New, class_name
from titer.study import load_study, plugins
from titer.verdicts.design.attainable import attainable


@pytest.fixture(autouse=True)
def forgotten():
    """What plug-in files register is forgotten after every test."""
    known, read = dict(plugins._registered), dict(plugins._loaded)
    yield
    for now, before in ((plugins._registered, known), (plugins._loaded, read)):
        now.clear()
        now.update(before)
    plugins._changes += 1


@pytest.mark.parametrize("kind", New)
def test_the_file_passes_the_conformance_checks(titer, kind, tmp_path, capsys):
    said = titer("new", kind, "first_try", "--to", tmp_path / "mine")
    assert said.status == 0 and said.err == ""
    file = tmp_path / "mine" / "first_try.py"
    assert all(
        part in said.out for part in (str(file), "plugins: [first_try.py]", "titer.register")
    )
    text = file.read_text()
    assert f"class {class_name('first_try')}(" in text and f"my_{kind}" not in text
    runpy.run_path(str(file), run_name="__main__")
    assert capsys.readouterr().out == "first_try passes the conformance checks\n"
    shown = titer("show", "first_try", "--plugin", file)
    assert shown.status == 0 and f"kind: {kind}" in shown.out


@pytest.mark.parametrize("kind", New)
def test_the_study_can_be_run(titer, kind, tmp_path):
    titer("new", kind, "first_try", "--to", tmp_path)
    study = load_study(tmp_path / "first_try.yaml")
    assert study.plugins == (str(tmp_path / "first_try.py"),)
    said = titer("check", tmp_path / "first_try.yaml", "--no-preflight")
    assert said.status == 0 and attainable(study) in said.out
    assert "holds" in attainable(study)


def test_a_defense_reaches_its_verdict_with_two_workers(titer, tmp_path):
    titer("new", "defense", "first_try", "--to", tmp_path)
    study = yaml.safe_load((tmp_path / "first_try.yaml").read_text())
    study["candidates"][1]["steps"] = 4
    study["resistance"] |= {"budget": 4, "seeds": [1]}
    study["resistance"]["attacks"] = study["resistance"]["attacks"][:1]
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(study))
    said = titer("run", tmp_path / "small.yaml", "--run", tmp_path / "run", "--workers", 2, "-q")
    assert said.status == 0, said.err
    (judged,) = package.judge(tmp_path / "run").candidates
    assert judged.name == "first_try" and judged.resistance.status == "invalid"  # 4 steps: M holds
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        ("defense", "My-Defense", "for example my_defense"),
        ("defense", "2nd", "for example nd"),
        ("attack", "class", "lower case letters"),
        ("attack", "full_sft", "an attack with this name comes with titer"),
        ("measure", "exact_answer", "`titer list measures`"),
    ],
)
def test_names_that_cannot_work_are_refused(titer, kind, name, said, tmp_path):
    refused = titer("new", kind, name, "--to", tmp_path)
    assert refused.status == 2 and said in refused.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("there", ["mine.py", "mine.yaml"])
def test_nothing_is_overwritten(titer, there, tmp_path):
    (tmp_path / there).write_text("mine")
    refused = titer("new", "defense", "mine", "--to", tmp_path)
    assert refused.status == 2 and "exists already" in refused.err
    assert [p.read_text() for p in tmp_path.iterdir()] == ["mine"]
