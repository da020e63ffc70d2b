"""The model-card section: valid inside a card, honest when read alone."""

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from helpers.report_example import (
    HOSTILE,
    example,
    hostile,
    make_study,
    make_verdict,
    minimal_verdict,
    save,
    whole,
)
from titer.cli.main import main
from titer.errors import UsageError
from titer.report import model_card_section
from titer.report import numbers as f
from titer.report.card import TITLE
from titer.verdicts import judge


def blocks(text):
    """(type, content) of every inline block and table cell, as an independent Markdown parser reads
    them.
    """
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    return tokens, [t.content for t in tokens if t.type == "inline"]


def test_it_is_valid_markdown_inside_a_model_card():
    view, verdict = whole()
    section = model_card_section(verdict, "immune", view=view)
    card = ModelCard(
        f"---\nlicense: apache-2.0\nlanguage: en\n---\n\n# A model\n\nAbout it.\n\n{section}"
    )
    assert (
        card.data.to_dict() == {"license": "apache-2.0", "language": "en"}
        and section.strip() in card.text
    )
    tokens, _ = blocks(card.text)
    headings = [tokens[i + 1].content for i, t in enumerate(tokens) if t.type == "heading_open"]
    assert headings == ["A model", "Safety: fine-tuning resistance"]
    assert sum(t.type == "table_open" for t in tokens) == 3 and not [
        t for t in tokens if t.type.startswith("html")
    ]
    rows = "".join(
        {"tr_open": " ", "td_open": "x", "th_open": "x"}.get(t.type, "") for t in tokens
    ).split()
    widths = [len(row) for row in rows]  # conditions, attacks, design
    assert widths[:10] == [3] * 5 + [6] * 5 and set(widths[10:]) == {2}


def test_read_alone_it_names_what_limits_the_claim():
    view, verdict = whole()
    c = verdict.candidates[0]
    text = model_card_section(verdict, "immune", view=view)
    r = c.resistance
    wanted = [
        c.headline,
        "Demonstration grade",
        "open weights",
        f"{r.budget} optimizer steps",
        "refusal removal",
        "φ = 0.5, α = 0.05, δ = 0.5",
        "Seeds per attack\n5",
        "non-adaptive",
        verdict.study_digest,
        verdict.titer_version,
        "titer judge RUN",
        "without a model",
        f"resistance beyond T = {r.budget} steps",
        "resistance to an attacker who adapts",
        "the method that made this checkpoint",
        "refusal removal is not harmfulness",
        "strong resistance, which no experiment can show",
        *{
            p.cell.model
            for p in view.plan.cells
            for role in p.roles
            if role.purpose == "attack" and role.candidate == "immune"
        },
    ]
    _, texts = blocks(text)
    plain = "\n".join(texts)
    for part in wanted:
        assert part in plain, part
    for a in r.attacks:  # every attack, and how it ended
        assert any(
            line.startswith(f"| {a.attack} | {a.role} |")
            and f"{a.breaches} of {a.n}" in line
            and f.percent(a.breach_upper).replace("\u00a0", " ") in line
            for line in text.splitlines()
        ), a.attack
    assert (
        "mute" not in text and "sft_refusal" not in text
    )  # neither the neighbours nor their flags


def test_a_failure_is_no_claim_up_to_the_budget_either():
    _, verdict = whole()
    text = model_card_section(verdict, "sft_refusal")
    assert (
        text.startswith(f"{TITLE}\n\n**✕ fails**")
        and "up to or beyond T = 16 steps" in text
        and "Broken by 8 steps" in text
    )


def test_an_unfinished_study_says_so():
    text = model_card_section(minimal_verdict(make_study()), "guard")
    assert (
        "The study is **incomplete**" in text
        and "No attack was run yet." in text
        and "none yet" in text
    )


def test_flags_of_this_candidate_only_and_an_unknown_name():
    _, verdict = example(candidates=("guard", "vaccine"))
    text = model_card_section(verdict, "guard")
    assert "guard / full_sft" in text and "vaccine" not in text and verdict.study_digest in text
    with pytest.raises(UsageError, match="no such candidate"):
        model_card_section(verdict, "gard")


def test_hostile_text_stays_text():
    view, verdict, _ = hostile()
    tokens, _ = blocks(model_card_section(verdict, HOSTILE, view=view))
    inline = [child.type for t in tokens for child in t.children or ()]
    assert not [t for t in tokens if t.type.startswith("html")] and not {
        "html_inline",
        "link_open",
        "image",
    } & set(inline)


def test_the_exact_construct_is_not_sold_as_harm():
    verdict = make_verdict(make_study())
    c = verdict.candidates[0]
    exact = c.model_copy(
        update={"resistance": c.resistance.model_copy(update={"harm_construct": "exact"})}
    )
    text = model_card_section(verdict.model_copy(update={"candidates": (exact,)}), "guard")
    assert "a made-up world" in text and "refusal removal" not in text


def test_the_command_prints_or_writes_and_spares_a_whole_card(capsys, tmp_path):
    store = save(whole()[0], tmp_path / "run")

    def command(*more):
        status = main(["report", str(store.root), "--card", "immune", *more])
        return status, capsys.readouterr()

    view = store.view()
    section = model_card_section(judge(view), "immune", view=view)
    before = sorted(p.name for p in store.root.iterdir())
    assert view.problems == ()
    status, said = command()
    assert (status, said.out) == (0, section)
    target = tmp_path / "new" / "safety.md"
    for _ in range(2):  # the second time an earlier section is replaced
        assert command("--to", str(target))[0] == 0 and target.read_text("utf-8") == section
    card = tmp_path / "README.md"
    card.write_text("# My model\n")
    status, said = command("--to", str(card))
    assert (
        status == 2
        and "not a section written here" in said.err
        and card.read_text() == "# My model\n"
    )
    assert command("--to", str(tmp_path))[0] != 0
    assert sorted(p.name for p in store.root.iterdir()) == before
