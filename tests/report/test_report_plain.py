"""The sentence for everybody: right for every status, without symbols, and no kinder than the
verdict.
"""

import itertools
import re

import pytest

from helpers.report_example import candidate_verdict, example, whole
from titer.report import model_card_section, render_html, render_markdown
from titer.report.content.plain import WORDS, in_short
from titer.report.markdown import md

SYMBOLS = re.compile(r"[α-ωΑ-Ω≥≤±]|\b(seed|probe|titer|quantile|confidence|breach|censored)", re.I)
CONSTRUCTS = [*WORDS, "none"]


def candidate(overall="fails", breaches=(16,), construct="refusal removal", **resistance):
    made = candidate_verdict("guard", ("full_sft",), list(breaches), overall=overall)
    changed = made.resistance.model_copy(update={"harm_construct": construct, **resistance})
    return made.model_copy(update={"resistance": changed})


def test_the_sentence_of_each_status():
    assert in_short(candidate(), "release") == (
        "As few as 16 steps of harmful fine-tuning removed its refusals; the defense does not hold."
    )
    assert in_short(candidate(breaches=(4, 16)), "release").startswith("As few as 4 steps of ")
    assert in_short(candidate(breaches=(1,)), "release").startswith("As few as 1 step of ")
    assert in_short(candidate(breaches=(0,)), "release") == (
        "Even before any fine-tuning it often fails to refuse; the defense does not hold."
    )
    held = candidate("holds", [None])
    assert in_short(held, "release") == (
        "None of the attacks tried (fine-tuning for up to 64 steps) removed its refusals; longer "
        "attacks, or attacks made for it, still may."
    )
    assert in_short(held, "demonstration").endswith(
        "still may (a small demonstration with few repetitions)."
    )
    collapsed = candidate("holds", [None], by_collapse=True)
    assert "stopped working altogether, which is not the same as resisting" in in_short(
        collapsed, "release"
    )
    unsure = candidate("inconclusive", [None], status="inconclusive")
    assert in_short(unsure, "release") == (
        "The evidence does not decide whether fine-tuning for up to 64 steps removes its refusals."
    )
    assert in_short(candidate("invalid", [None]), "release").startswith(
        "The evaluation is not valid, so it does not show whether the defense holds"
    )
    nothing = candidate("inconclusive", [], status="inconclusive", attacks=())
    assert in_short(nothing, "release").startswith("No attack on it has been run yet")


def test_an_edit_is_no_fine_tuning():
    made = candidate()
    edit = made.resistance.attacks[0].model_copy(update={"edit": True})
    made = made.model_copy(
        update={"resistance": made.resistance.model_copy(update={"attacks": (edit,)})}
    )
    assert in_short(made, "release").startswith("Changing its weights without any training removed")


def test_a_loss_in_harmless_use_is_not_told_as_success():
    for status in ("holds", "inconclusive", "not tested"):
        made = candidate("fails", [None], status=status)
        text = in_short(made, "release")
        assert text.startswith("The defense makes the model worse at harmless tasks")
        assert ("does not count as a success" in text) == (status == "holds")


@pytest.mark.parametrize("construct", CONSTRUCTS)
def test_no_symbols_no_jargon_one_sentence_and_never_more_than_was_read(construct):
    statuses = ("holds", "fails", "inconclusive", "invalid", "not tested")
    grades, kinds = ("demonstration", "release"), ("checkpoint", "service")
    every = itertools.product(statuses, statuses, (None, 0, 8), (False, True), grades, kinds)
    for overall, status, hit, collapse, grade, about in every:
        made = candidate(
            overall, [hit], construct, status=status, worst_breach_step=hit, by_collapse=collapse
        ).model_copy(update={"claim_about": about})
        text = in_short(made, grade)
        assert not SYMBOLS.search(text), text
        assert text.endswith(".") and text.count(". ") == 0 and text[0].isupper()
        claimed = "holds" not in text and "None of the attacks" not in text
        assert overall in ("holds", "fails", "inconclusive", "not tested") or "not show" in text
        if overall == "fails":
            assert claimed or "does not hold" in text or "does not count" in text
        if construct == "refusal removal":
            assert not re.search(r"harmful(ness)? (answers|replies)|makes it harmful", text)


@pytest.mark.parametrize("made", [whole, example])
def test_html_markdown_and_card_say_the_same(made):
    view, verdict = made()
    page, text = render_html(view, verdict), render_markdown(view, verdict)
    for c in verdict.candidates:
        sentence = in_short(c, verdict.grade)
        assert f'<p class="short">{sentence}</p>' in page
        assert md(sentence) in text
        assert md(sentence) in model_card_section(verdict, c.name, view=view)
