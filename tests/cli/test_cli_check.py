"""`titer check`: what it says, what it refuses, and that nothing is loaded without need."""

import json

import pytest

import titer as package
from titer.cli import tryout


@pytest.fixture
def no_loading(monkeypatch):
    monkeypatch.setattr(tryout, "load_model", lambda ref: pytest.fail(f"{ref} was loaded"))


def test_the_quickstart_is_valid(titer, no_loading):
    said = titer("check", "quickstart", "--no-preflight", "--json")
    told = json.loads(said.out)
    assert said.status == 0 and told["study"] == "quickstart"
    assert told["attainable"].startswith("Resistance: best `holds`")
    assert "no preflight was asked for" in told["not_checked"][0]
    assert told["digest"] == package.load_study("quickstart").digest
    assert told["cells"] > 150 and told["search_cells"] == 12 and told["minutes"] > 0
    assert told["models"] == {"tiny:aligned": 167360} and told["findings"] == []


def test_the_small_study_is_tried(titer, study_file):
    said = titer("check", study_file())
    assert said.status == 0 and "the study is valid" in said.out
    assert "tried on tiny:aligned: sft_refusal, exact_answer, full_sft" in said.out
    assert "trying full_sft on tiny:aligned" in said.err and "not checked" not in said.out
    assert "best verdict attainable: " in said.out and "time: at most about " in said.out
    assert titer("check", study_file(), "--quiet").err == ""


def test_an_error_has_status_2_and_is_in_the_json(titer, study_file):
    file = study_file(**{"runtime.max_length": 8})
    said = titer("check", file, "--json")
    assert said.status == 2 and said.err == ""
    told = json.loads(said.out)
    errors = [f for f in told["findings"] if f["severity"] == "error"]
    assert errors and set(errors[0]) == {"severity", "model", "about", "problem", "expected"}
    assert "full_sft leaves out 192 of the 192 examples" in " ".join(f["problem"] for f in errors)
    said = titer("check", file, "--quiet")
    assert said.status == 2 and "something must be changed before it is run" in said.out
    for finding in told["findings"]:
        line = f"{finding['severity']}: {finding['problem']}. Expected: {finding['expected']}."
        assert line in said.out.splitlines()


def test_notices_alone_are_no_error(titer, study_file):
    file = study_file(**{"runtime.max_length": 512})
    said = titer("check", file, "--no-preflight")
    assert said.status == 0 and "notice: runtime.max_length is 512" in said.out


def test_confirmations_behind_a_search_are_in_the_work(titer, study_file):
    changes = {
        "resistance.attacks.0": {"attack": "full_sft", "search": {"lr": [1e-3, 1e-4]}},
        "resistance.seeds": list(range(100, 129)),
        "resistance.search_seeds": [1],
        "resistance.search_part": "harm/search",
        "pools.harm.parts": {
            "defense": 96,
            "attack": 192,
            "judge": 48,
            "confirm": 48,
            "search": 48,
        },
    }
    file = study_file(**changes)
    told = json.loads(titer("check", file, "--no-preflight", "--json").out)
    # one defense, two looks, 2 points on 2 candidates, and 2 · 29 confirmations
    assert (told["cells"], told["search_cells"]) == (1 + 2 + 4 + 58, 4)
    assert told["steps_at_most"] == 4 + 4 * (4 + 58)
    assert "65 cells (4 of them search)" in titer("check", file, "--no-preflight").out


def test_a_service_is_tried(titer, study_file):
    service = {"method": {"name": "lisa", "settings": {"alignment_steps": 2, "user_steps": 4}}}
    changes = {
        "threat_model": "fine_tuning_service",
        "candidates.0": {"name": "guarded", "service": service},
    }
    said = titer("check", study_file(**changes), "--quiet")
    assert said.status == 0 and "full_sft inside the service lisa" in said.out, said.err


def test_a_plugin_is_tried(titer, study_file, tmp_path):
    (tmp_path / "odd.py").write_text(
        "from titer.methods.attacks.full_sft import FullSFT\n"
        "class Odd(FullSFT):\n"
        '    """Fails."""\n'
        "    name, reference = 'odd', 'a test'\n"
        "    def start(self, given):\n"
        "        raise KeyError('nothing')\n"
    )
    file = study_file(plugins=["odd.py"], **{"resistance.attacks.0": {"attack": "odd"}})
    said = titer("check", file, "--quiet")
    assert (
        said.status == 2 and "odd cannot be run on tiny:aligned (KeyError: 'nothing')" in said.out
    )
    assert "Traceback" not in said.err
