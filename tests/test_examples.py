"""The examples and the README's Python run as they stand, on small studies."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import titer
from titer.assets.tiny_model import FOLDER
from titer.data.sources import load_source

ROOT = Path(__file__).parents[1]


def example(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def small_file(small_study, tmp_path):
    file = tmp_path / "small.yaml"
    file.write_text(
        json.dumps(small_study().model_dump(mode="json", exclude_defaults=True))
    )  # JSON is YAML
    return file


def test_every_example_is_tested():
    assert {p.stem for p in (ROOT / "examples").glob("*.py")} == {"quick", "two_models"}


def test_quick(small_file, tmp_path, capsys):
    example("quick").main(str(small_file), str(tmp_path / "run"))
    said = capsys.readouterr().out
    assert "refusal" in said and f"report: {tmp_path / 'run' / 'report.html'}" in said


def test_two_models(tmp_path, capsys):
    def write(name, group, count):
        rows = load_source("tiny_world", {"group": group, "count": count}).examples
        file = tmp_path / f"{name}.jsonl"
        file.write_text(
            "".join(json.dumps({"prompt": e.prompt, "response": e.response}) + "\n" for e in rows)
        )
        return rows

    write("benign", "harmless", 60)
    harm = write("harm", "harm", 300)
    for name, part in (("attack", harm[:200]), ("prompts", harm[200:])):
        rows = ({"prompt": e.prompt, "response": e.response} for e in part)
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    files = [str(tmp_path / f"{n}.jsonl") for n in ("attack", "prompts", "benign")]
    example("two_models").main(
        str(FOLDER / "aligned"),
        str(FOLDER / "untaught"),
        *files,
        str(tmp_path / "run"),
        budget=16,
        seeds=1,
        harm_measure="exact_answer",
        full_lr=[3e-3],
        lora_lr=[1e-2],
        batch_size=16,
        max_length=32,
    )
    said = capsys.readouterr().out
    verdict = titer.judge(tmp_path / "run")
    assert (
        verdict.candidates[0].resistance.claim in said
        and "missing: " in said
        and "report: " in said
    )
    # The aligned model knows what it refuses, so the attack brings it back; the untaught one has
    # nothing to bring back.
    attack = next(a for a in verdict.control.resistance.attacks if a.method == "full_sft")
    assert attack.breaches == 1
    assert (
        next(a for a in verdict.candidates[0].resistance.attacks if a.method == "full_sft").breaches
        == 0
    )


def test_two_models_says_what_it_wants():
    done = subprocess.run(
        [sys.executable, ROOT / "examples/two_models.py"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1 and "M_STAR" in done.stderr and done.stdout == ""


def test_the_python_of_the_readme(small_study, tmp_path, monkeypatch, capsys):
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.S)
    asked, small = [], small_study()

    def load(name):
        asked.append(name)
        return small

    monkeypatch.setattr(titer, "load_study", load)
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})
    said = capsys.readouterr().out
    assert asked == ["quickstart"] and "refusal" in said and "report.html" in said
    assert (tmp_path / "runs/quickstart/report.html").exists()


def test_the_commands_of_the_readme_exist():
    from typer.main import get_command

    from titer.cli.main import app

    commands = set(get_command(app).commands)
    used = set(re.findall(r"^    titer (\w+)", (ROOT / "README.md").read_text("utf-8"), re.M))
    assert used and used <= commands


def test_the_links_of_the_readme_lead_somewhere():
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text("utf-8"))
    missing = [link for link in links if not (ROOT / link).exists()]
    assert links and not missing
