"""The verbs from Python do what the commands do, and refuse what they refuse."""

import pytest

import titer
from titer.errors import RecordError, StudyError, UsageError


def test_what_is_offered_is_there():
    assert all(hasattr(titer, name) for name in titer.__all__)


def test_run_judge_and_report(small_study, tmp_path):
    steps = []
    store = titer.run(small_study(), tmp_path / "run", report=lambda *told: steps.append(told))
    assert store.root == tmp_path / "run" and steps[0][0] == "planned"
    assert steps[-1][1] == steps[-1][3], "all cells are done at the end"
    verdict = titer.judge(tmp_path / "run")
    assert (
        verdict.study == "small"
        and verdict.status == "complete"
        and [c.name for c in verdict.candidates] == ["refusal"]
    )
    paths = titer.write_report(tmp_path / "run", to=tmp_path / "there")
    assert {p.parent for p in (paths.html, paths.markdown, paths.json)} == {tmp_path / "there"}
    assert titer.write_report(tmp_path / "run").html.parent == tmp_path / "run"


def test_a_run_may_be_done_in_pieces(small_study, tmp_path):
    study = small_study()
    titer.run(study, tmp_path / "pieces", stop_after=1)
    first = titer.judge(tmp_path / "pieces")
    assert first.status == "incomplete" and first.missing_cells > 0
    titer.run(study, str(tmp_path / "pieces"))
    titer.run(study, tmp_path / "whole", reuse=(tmp_path / "pieces",))
    assert titer.judge(tmp_path / "pieces") == titer.judge(tmp_path / "whole")


def test_transcripts_are_kept_and_shown_only_if_asked(small_study, tmp_path):
    titer.run(small_study(), tmp_path / "run", keep_transcripts=True)
    hidden = titer.write_report(tmp_path / "run").html.read_text()
    shown = titer.write_report(tmp_path / "run", show_transcripts=True).html.read_text()
    assert len(shown) > len(hidden)


def test_a_wrong_study_is_refused_before_a_directory_is_made(tmp_path):
    with pytest.raises(StudyError):
        titer.run({"name": "x"}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_is_no_run(tmp_path):
    for verb in (titer.judge, titer.write_report):
        with pytest.raises(UsageError, match="not a run directory"):
            verb(tmp_path)


def test_a_plan_that_cannot_be_believed(small_study, tmp_path):
    titer.run(small_study(), tmp_path / "run", stop_after=1)
    (tmp_path / "run" / "plan.json").write_text("{")
    with pytest.raises(RecordError, match=r"plan\.json"):
        titer.judge(tmp_path / "run")
