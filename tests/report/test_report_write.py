import pytest
import yaml

from helpers.report_example import example
from titer.errors import StorageError
from titer.report import write_report
from titer.report.content import provenance as facts
from titer.report.drawing import svg
from titer.study import load_study
from titer.verdicts.output.verdict import StudyVerdict


def test_writes_three_files(tmp_path):
    view, verdict = example()
    paths = write_report(view, verdict, tmp_path / "new" / "folder")
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == [
        "report.html",
        "report.md",
        "verdict.json",
    ]
    assert StudyVerdict.model_validate_json(paths.json.read_text("utf-8")) == verdict
    assert paths.html.read_text("utf-8").startswith("<!doctype html>")
    assert paths.markdown.read_text("utf-8").startswith("# Example study")


def test_a_lone_surrogate_in_an_output_does_not_stop_the_report(tmp_path):
    view, verdict = example()
    paths = write_report(view, verdict, tmp_path, transcripts=[{"output": "half \ud83d"}])
    assert "half ?" in paths.html.read_text("utf-8")


def test_a_place_that_cannot_be_written_is_said_so(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="cannot be written"):
        write_report(*example(), tmp_path / "file")


def test_the_study_in_a_report_is_the_study_again():
    view, _ = example()
    body = yaml.safe_load(facts.study_yaml(view))
    body["model"] = str(view.study.model)
    body["pools"]["harm"]["options"]["path"] = "/home/somebody/texts/harm.jsonl"
    assert load_study(body).digest == view.study.digest


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 1, [0, 0.25, 0.5, 0.75, 1]),
        (2, 10, [2, 4, 6, 8, 10]),
        (-0.1, 0.1, [-0.1, -0.05, 0, 0.05, 0.1]),
    ],
)
def test_round_ticks(low, high, ticks):
    assert svg.y_ticks(low, high) == pytest.approx(ticks)


def test_budget_axis_shows_zero_and_grows():
    panel = svg.Panel(64, 0, 1, (0, 1, 2, 64), x_label="x", y_label="y")
    places = [panel.x(s) for s in (0, 1, 2, 64)]
    assert (
        places[0] == svg.LEFT
        and places[-1] == svg.NARROW - svg.RIGHT
        and places == sorted(set(places))
    )
    panel.line([(0, 0.1), (1, None), (2, 0.2), (64, 0.3)], "candidate")
    assert sum("polyline" in p for p in panel.parts) == 1  # a gap is not bridged
