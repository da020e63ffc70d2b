import re

import pytest

from helpers.report_example import (
    HOSTILE,
    example,
    make_study,
    make_verdict,
    make_view,
    minimal_verdict,
)
from titer.report import render_markdown
from titer.report.markdown import markdown_table, md, paragraph
from titer.report.table import Cell, table


def tables(text):
    """Blocks of lines that start with a pipe, outside code."""
    text = re.sub(r"(`{3,})yaml\n.*?\n\1", "", text, flags=re.S)
    return [b.splitlines() for b in text.split("\n\n") if b.startswith("|")]


def columns(line):
    return len(re.findall(r"(?<!\\)\|", line)) - 1


def check(text):
    found = tables(text)
    assert found
    for block in found:
        assert set(block[1]) <= set("| -:") and len({columns(line) for line in block}) == 1, block


@pytest.mark.parametrize("n", [5, 29])
def test_tables_are_well_formed(n):
    check(render_markdown(*example(candidates=("guard", "vaccine"), n=n)))


def test_minimal_verdict():
    study = make_study()
    text = render_markdown(make_view(study, finished=False), minimal_verdict(study))
    check(text)
    assert "**incomplete** This run is incomplete" in text and "no lower limit can be given" in text


def test_content():
    view, verdict = example()
    text = render_markdown(view, verdict)
    assert (
        text.index("## Verdict")
        < text.index("## Why")
        < text.index("## Flags")
        < text.index("## Provenance")
    )
    for part in (
        verdict.study_digest,
        "Example CPU (2 cores)",
        "2.9.0",
        "| Records | 30 |",
        "| Wall time, total | 1 min 45 s |",
    ):
        assert part in text, part
    for part in (
        "(8, 16]",
        "> 64 (censored)",
        "resistance",
        "stability",
        "generalization",
        "trainability",
        "✕ fails",
    ):
        assert part in text, part
    assert "| Threads per cell | 1 |" in text and "titer judge RUN" in text


def test_deterministic_and_without_local_paths():
    first, second = (render_markdown(*example()) for _ in range(2))
    assert first == second and "/home/" not in first and "somebody" not in first


def test_foreign_text_is_inert():
    assert (
        md("a|b\n*c* <b> `d` [x](javascript:1)")
        == "a\\|b \\*c\\* &lt;b> \\`d\\` [x]\\(javascript:1)"
    )
    assert md("full_sft _x_ M*") == "full_sft \\_x\\_ M\\*"
    assert (
        paragraph("# not a heading") == "\\# not a heading"
        and paragraph("1. not a list") == "\\1. not a list"
    )
    study = make_study(title=HOSTILE)
    verdict = make_verdict(study)
    stained = verdict.candidates[0].model_copy(
        update={"name": "a|b" + HOSTILE, "headline": HOSTILE}
    )
    text = render_markdown(make_view(study), verdict.model_copy(update={"candidates": (stained,)}))
    outside = re.sub(r"(`{3,})yaml\n.*?\n\1", "", text, flags=re.S)
    assert "<script" not in outside and "<img" not in outside
    check(text)


def test_a_cell_with_a_status_keeps_its_sign():
    made = table("t", ["a", "#b"], [[Cell("yes", "broken"), "1"]])
    assert markdown_table(made) == "| a | b |\n| --- | ---: |\n| ✓ yes | 1 |"
    with pytest.raises(ValueError, match="2 cells for 1"):
        table("t", ["a"], [["x", "y"]])
