"""The HTML report: well-formed, self-contained, inert, and true to the verdict."""

import re
from html.parser import HTMLParser

import pytest

from helpers.report_example import (
    example,
    hostile,
    make_study,
    make_verdict,
    make_view,
    minimal_verdict,
)
from titer.report import numbers as f
from titer.report import render_html, render_markdown

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Strict(HTMLParser):
    """Every tag closed in order, ids unique, every in-page link with a target; collects text, tags
    and attributes.
    """

    def __init__(self):
        super().__init__()
        self.stack, self.ids, self.links, self.tags, self.text, self.rows = [], [], [], [], [], []
        self.cell = None

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        assert len(given) == len(attrs), f"repeated attribute in <{tag}>"
        self.tags.append((tag, given))
        self.ids += [given["id"]] if "id" in given else []
        self.links += [given["href"]] if "href" in given else []
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.cell = ""
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.stack and self.stack[-1] == tag, f"</{tag}> closes {self.stack[-3:]}"
        self.stack.pop()
        if tag in ("td", "th"):
            self.rows[-1].append(" ".join(self.cell.split()))
            self.cell = None

    def handle_data(self, data):
        self.text.append(data)
        if self.cell is not None:
            self.cell += data


def parse(text):
    page = Strict()
    page.feed(text)
    page.close()
    assert not page.stack
    assert len(page.ids) == len(set(page.ids)), "an id is used twice"
    assert all(link.removeprefix("#") in page.ids for link in page.links)
    return page


@pytest.fixture(scope="module")
def page_text():
    return render_html(*example(candidates=("guard", "vaccine")))


def test_well_formed_and_self_contained(page_text):
    page = parse(page_text)
    assert not re.search(r"""(src|href|action|data)\s*=\s*["']?\s*(https?:)?//""", page_text)
    assert "url(" not in page_text and "@import" not in page_text
    assert not {"script", "link", "img", "iframe", "object", "form"} & {tag for tag, _ in page.tags}
    policy = next(
        a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:")


def test_sections_in_order_verdict_first(page_text):
    order = [a["id"] for t, a in parse(page_text).tags if t == "section"]
    assert order == [
        "verdict",
        "why",
        "harm",
        "share",
        "factor",
        "sensitivity",
        "flags",
        "missing",
        "generalization",
        "stability",
        "trainability",
        "guidelines",
        "cost",
        "provenance",
        "reproduce",
        "limits",
    ]


def test_every_figure_has_a_text_alternative_and_tables_are_reachable(page_text):
    page = parse(page_text)
    drawn = [a for t, a in page.tags if t == "svg"]
    assert drawn and all(
        a["role"] == "img" and all(i in page.ids for i in a["aria-labelledby"].split())
        for a in drawn
    )
    assert all(
        a.get("tabindex") == "0" and a.get("aria-label")
        for t, a in page.tags
        if a.get("class") == "scroll"
    )
    assert page_text.count("<table") == page_text.count("<caption")


def test_status_is_a_word_not_only_a_colour(page_text):
    text = re.sub(r"\s+", " ", "".join(parse(page_text).text))
    for word in (
        "✕ fails",
        "✓ holds",
        "? inconclusive",
        "– not tested",
        "✓ met",
        "✕ not met",
        "? blocks",
        "! warns",
    ):
        assert word in text


def test_tables_show_the_numbers_of_the_verdict():
    view, verdict = example()
    rows = parse(render_html(view, verdict)).rows
    attack = verdict.candidates[0].resistance.attacks[0]
    for run in attack.trajectories:  # behind the harm curves
        assert [str(run.seed), *(f"{f.fixed(p.harm)} {p.state[0]}" for p in run.probes)] in rows
    for p in attack.curve:  # behind the survival curves
        band = f"[{f.fixed(1 - p.high)}, {f.fixed(1 - p.low)}]"
        assert [
            str(p.step),
            str(p.n),
            str(p.breached),
            f.fixed(1 - p.breached / p.n),
            band,
            str(p.collapsed),
        ] in rows
    task = verdict.candidates[0].trainability.tasks[0]  # behind the learning curves
    for (step, m), (_, star) in zip(task.curve_control, task.curve_candidate, strict=True):
        assert [task.name, str(step), f.number(m), f.number(star)] in rows
    b = verdict.candidates[0].stability.benchmarks[1]
    assert any(
        r[0] == b.name
        and "−0.123" in r
        and "[−0.171, −0.075] (95\u00a0%)".replace("\u00a0", " ") in r
        for r in rows
    )


def test_curves_are_drawn_where_the_numbers_say():
    view, verdict = example(attacks=("full_sft",))
    text = render_html(view, verdict)
    panel = re.search(r'<svg[^>]*aria-labelledby="harm-.*?</svg>', text, re.S).group()
    lines = re.findall(r'class="candidate thin" points="([^"]+)"', panel)
    runs = verdict.candidates[0].resistance.attacks[0].trajectories
    assert len(lines) == len(runs)
    for line, run in zip(lines, runs, strict=True):
        heights = [float(p.split(",")[1]) for p in line.split()]
        assert len(heights) == len(run.probes)
        for y, p in zip(heights, run.probes, strict=True):
            assert y == pytest.approx(
                176 - 166 * p.harm, abs=0.06
            )  # plot area: f = 0 at y = 176, f = 1 at y = 10
    assert panel.count('class="candidate full"') == sum(r.first_breached is not None for r in runs)
    assert panel.count('class="candidate open"') == sum(r.first_breached is None for r in runs)


def test_everything_foreign_is_escaped():
    view, verdict, rows = hostile()
    text = render_html(view, verdict, transcripts=rows)
    assert "<script" not in text and "<img" not in text and "&lt;script&gt;" in text
    assert not any(name.startswith("on") for _, given in parse(text).tags for name in given)


def test_transcripts_only_when_given():
    view, verdict = example()
    row = {"cell": "abc", "step": 4, "label": "harm", "prompt": "p", "output": "a secret output"}
    assert "a secret output" not in render_html(view, verdict)
    shown = render_html(view, verdict, transcripts=[row])
    assert "a secret output" in shown and "They may be harmful" in shown
    before = shown[: shown.index("a secret output")]
    assert before.rindex("<details") > before.rfind("</details")
    assert "kept no transcript" in render_html(view, verdict, transcripts=[])


def test_deterministic_and_without_local_paths():
    first, second = (render_html(*example()) for _ in range(2))
    assert first == second and "/home/" not in first and "somebody" not in first


def test_minimal_verdict_of_an_unfinished_run():
    study = make_study()
    text = render_html(make_view(study, finished=False), minimal_verdict(study))
    parse(text)
    assert (
        "This run is incomplete: 3 cells of 30 missing." in text
        and "no lower limit can be given" in text
    )


def test_large_study_stays_small():
    text = render_html(
        *example(candidates=[f"c{k}" for k in range(6)], attacks=[f"a{k}" for k in range(8)], n=29)
    )
    assert len(text.encode()) < 3_000_000
    parse(text)


def test_invalid_study_says_so_before_any_number():
    study = make_study()
    verdict = make_verdict(
        study, status="invalid", status_reason="The control is harmful at t = 0."
    )
    text = render_html(make_view(study), verdict)
    assert text.index("This study is invalid. The control is harmful") < text.index('id="verdict"')


def test_nothing_can_take_over_a_terminal_or_reorder_the_page():
    study = make_study(title="\x1b[31mevil\x1b[2J \u202etxet")
    view, verdict = make_view(study), make_verdict(study)
    rows = [{"cell": "c", "step": 0, "label": "harm", "reply": "x\x1b]0;owned\x07\x9b2J\u2066y"}]
    for text in (render_html(view, verdict, transcripts=rows), render_markdown(view, verdict)):
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)
        assert "\\x1b[31mevil" in text
