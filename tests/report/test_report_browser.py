"""The HTML report as a browser shows it: contrast, width, keyboard, print, and nothing that runs or
asks the network.
"""

import io
import itertools
import re
import unicodedata

import pytest
from selenium.common.exceptions import NoAlertPresentException
from selenium.webdriver.common.keys import Keys

from helpers.chrome import Page, start
from helpers.report_example import (
    HOSTILE,
    example,
    hostile,
    make_study,
    make_view,
    minimal_verdict,
    whole,
)
from titer.report import write_report

pytestmark = [pytest.mark.real, pytest.mark.timeout(180)]

# Every element with text of its own that is shown: its colour, the colours behind it from the
# inside out, font size.
TEXTS = """
const out = [];
for (const e of document.querySelectorAll('body *')) {
  const own = [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
  if (!own || e.closest('title, desc') || !e.checkVisibility() || !e.getClientRects().length)
  continue; const style = getComputedStyle(e), behind = []; for (let p = e; p; p = p.parentElement)
  behind.push(getComputedStyle(p).backgroundColor); out.push({tag: e.tagName.toLowerCase(), css:
  e.getAttribute('class') || '', text: e.textContent.trim().slice(0, 60), ink: e.closest('svg') ?
  style.fill : style.color, behind, size: parseFloat(style.fontSize), opacity: style.opacity}); }
  return out;
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    driver = start(tmp_path_factory.mktemp("profile"))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """Paths of the reports looked at, by name."""
    view, verdict, rows = hostile()
    unfinished = make_study()
    made = {
        "whole": (*whole(), None),
        "invented": (*example(candidates=("guard", "vaccine")), None),
        "hostile": (view, verdict, rows),
        "unfinished": (make_view(unfinished, finished=False), minimal_verdict(unfinished), None),
    }
    folder = tmp_path_factory.mktemp("reports")
    return {
        name: write_report(view, verdict, folder / name, transcripts=rows).html
        for name, (view, verdict, rows) in made.items()
    }


def rgba(text):
    numbers = [float(x) for x in re.findall(r"[\d.]+", text)]
    assert text.startswith("rgb") and len(numbers) in (3, 4), text
    return [x / 255 for x in numbers[:3]], numbers[3] if len(numbers) == 4 else 1.0


def over(ink, alpha, ground):
    return [alpha * i + (1 - alpha) * g for i, g in zip(ink, ground, strict=True)]


def luminance(colour):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(item):
    """WCAG 2 contrast ratio of a text to what lies behind it."""
    ground = [1.0, 1.0, 1.0]
    for colour, alpha in map(rgba, reversed(item["behind"])):
        ground = over(colour, alpha, ground)
    ink, alpha = rgba(item["ink"])
    light, dark = sorted((luminance(over(ink, alpha, ground)), luminance(ground)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_the_contrast_formula_itself():
    item = {"ink": "rgb(0, 0, 0)", "behind": ["rgba(0, 0, 0, 0)", "rgb(255, 255, 255)"]}
    assert contrast(item) == pytest.approx(21)
    assert contrast({**item, "ink": "rgb(119, 119, 119)"}) == pytest.approx(
        4.478, abs=1e-3
    )  # the well-known #777
    assert contrast({**item, "ink": "rgba(0, 0, 0, 0.5)"}) == pytest.approx(3.95, abs=0.05)


@pytest.mark.parametrize("name", ["whole", "invented", "hostile", "unfinished"])
def test_opens_from_a_file_without_any_request_or_error(browser, reports, name):
    page = Page(browser, reports[name])
    page.open_all()
    assert page.requested() == [page.url]
    assert [e for e in browser.get_log("browser") if e["level"] in ("SEVERE", "WARNING")] == []


@pytest.mark.parametrize("name", ["whole", "hostile", "unfinished"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_of_every_text(browser, reports, name, scheme):
    page = Page(browser, reports[name], scheme=scheme)
    page.open_all()
    texts = page.js(TEXTS)
    assert len(texts) > 100 and all(float(t["opacity"]) == 1 for t in texts)
    kinds = {(t["tag"], t["css"].split(" ")[0]) for t in texts}
    assert {("td", ""), ("th", ""), ("span", "badge"), ("dd", ""), ("p", "note")} <= kinds
    weak = [(round(contrast(t), 2), t) for t in texts if contrast(t) < 4.5]
    assert not weak, weak[:5]
    dark = (
        luminance(rgba(page.js("return getComputedStyle(document.body).backgroundColor"))[0]) < 0.2
    )
    assert dark == (scheme == "dark")


@pytest.mark.parametrize("name", ["whole", "invented", "hostile", "unfinished"])
@pytest.mark.parametrize("width", [320, 360, 768])
def test_narrow_screens_scroll_tables_not_the_page(browser, reports, name, width):
    page = Page(browser, reports[name], width=width, mobile=True)
    page.open_all()
    wide, seen = page.js(
        "const d = document.documentElement; return [d.scrollWidth, d.clientWidth]"
    )
    assert wide <= seen == width
    boxes = page.js(
        "return [...document.querySelectorAll('.scroll')].map(b => [b.scrollWidth > b.clientWidth,"
        " getComputedStyle(b).overflowX, b.getBoundingClientRect().right])"
    )
    assert all(flow == "auto" and right <= width for _, flow, right in boxes)
    if name == "whole" and width == 360:
        assert any(overflows for overflows, _, _ in boxes)  # else this test could not fail
    small = [t for t in page.js(TEXTS) if t["size"] < 14 and t["tag"] != "text"]
    assert not small, small[:3]
    drawn = page.js(
        "return [...document.querySelectorAll('svg text')].filter(t => "
        "t.checkVisibility()).map(t =>"
        " parseFloat(getComputedStyle(t).fontSize) * Math.hypot(t.getScreenCTM().a, "
        "t.getScreenCTM().b))"
    )
    if width >= 360 and name == "whole":
        assert drawn and min(drawn) >= 11


def focus(page):
    """(tag, class, href, label, outline) of what has the focus."""
    return page.js(
        "const e = document.activeElement, s = getComputedStyle(e); return {tag: "
        "e.tagName.toLowerCase(), css: e.className,"
        " href: e.getAttribute('href'), id: e.id, outline: s.outlineStyle !== 'none' && "
        "parseFloat(s.outlineWidth) >= 2,"
        " seen: e.getBoundingClientRect().width > 0, index: "
        "[...document.querySelectorAll('*')].indexOf(e)}"
    )


def press(browser, key):
    browser.switch_to.active_element.send_keys(key)


def test_everything_is_reached_by_keyboard_in_order(browser, reports):
    page = Page(browser, reports["whole"])
    wanted = page.js(
        "return [...document.querySelectorAll('a[href], summary, .scroll')].filter(e => "
        "e.checkVisibility({contentVisibilityAuto: true})"
        " && (e.tagName === 'SUMMARY' || !e.closest('details:not([open])'))).map(e => "
        "[...document.querySelectorAll('*')].indexOf(e))"
    )
    met = []
    for _ in range(len(wanted)):
        press(browser, Keys.TAB)
        met.append(focus(page))
    assert [m["index"] for m in met] == wanted  # document order: nothing skipped, nothing twice
    assert all(m["outline"] and m["seen"] for m in met)
    assert (met[0]["css"], met[0]["href"]) == ("skip", "#verdict")
    links = page.js("return document.querySelectorAll('nav a').length")
    assert (
        links >= 15
        and all(m["tag"] == "a" for m in met[: links + 1])
        and met[links + 1]["tag"] != "a"
    )
    assert {"summary", "div"} <= {m["tag"] for m in met}


def test_the_skip_link_moves_the_focus_and_details_open_with_enter(browser, reports):
    page = Page(browser, reports["whole"])
    press(browser, Keys.TAB)
    left = page.js("return document.activeElement.getBoundingClientRect().left")
    assert left >= 0  # shown once it has the focus
    press(browser, Keys.ENTER)
    assert focus(page)["id"] == "verdict"
    summary = page.js("const s = document.querySelector('summary'); s.focus(); return s")
    assert not page.js("return arguments[0].parentElement.open", summary)
    press(browser, Keys.ENTER)
    assert page.js("return arguments[0].parentElement.open", summary)
    press(browser, Keys.TAB)  # the opened table comes next
    assert page.js(
        "return document.activeElement.closest('details') === arguments[0].parentElement", summary
    )


@pytest.mark.parametrize("bypass", [False, True])
def test_a_script_in_any_foreign_text_stays_text(browser, reports, bypass):
    """Also without the page's own content security policy, which would hide a hole in the
    escaping.
    """
    page = Page(browser, reports["hostile"])
    page.cdp("Page.setBypassCSP", enabled=bypass)
    browser.get(page.url)
    page.open_all()
    with pytest.raises(NoAlertPresentException):
        browser.switch_to.alert.text  # noqa: B018
    assert page.js(
        "return [window.pwned === undefined, document.scripts.length, document.images.length]"
    ) == [
        True,
        0,
        0,
    ]
    assert page.js(
        "return [...document.querySelectorAll('*')].every(e => [...e.attributes].every(a "
        "=> !a.name.startsWith('on')))"
    )
    shown = page.js("return document.body.innerText")
    assert shown.count(HOSTILE) > 20 and page.js("return document.title").startswith(HOSTILE)
    for place in ("#transcripts pre", ".card h3", "h1"):
        texts = page.js(
            "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)", place
        )
        assert any(HOSTILE in t for t in texts), place
    if bypass:  # with the policy off a script does run here: the flag would have been set
        page.js(
            "const s = document.createElement('script'); s.textContent = 'window.pwned = "
            "1'; document.head.append(s)"
        )
        assert page.js("return window.pwned") == 1


@pytest.mark.parametrize("name", ["whole", "invented", "hostile", "unfinished"])
def test_structure_for_readers_who_do_not_see_it(browser, reports, name):
    page = Page(browser, reports[name])
    page.open_all()
    ids = page.js("return [...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    assert page.js("return document.documentElement.lang") == "en"
    assert (
        page.js(
            "return ['header', 'main', 'nav', 'footer'].map(t => "
            "document.querySelectorAll('body > ' + t + ', main > ' + t).length)"
        )
        == [1] * 4
    )
    levels = page.js(
        "return [...document.querySelectorAll('h1, h2, h3, h4, h5, h6')].map(h => +h.tagName[1])"
    )
    assert (
        levels[0] == 1
        and levels.count(1) == 1
        and all(b - a <= 1 for a, b in itertools.pairwise(levels))
    )
    tables = page.js(
        "return [...document.querySelectorAll('table')].map(t => [t.caption && "
        "t.caption.textContent.trim(),"
        " [...t.querySelectorAll('th')].every(h => ['col', 'row'].includes(h.scope)),"
        " [...t.tBodies].every(b => [...b.rows].every(r => r.cells[0].tagName === 'TH'))])"
    )
    assert tables and all(caption and scopes and rows for caption, scopes, rows in tables)
    regions = page.js(
        "return [...document.querySelectorAll('section, article, nav, [role=region]')].length"
    )
    nodes = page.cdp("Accessibility.getFullAXTree")["nodes"]
    named = {
        role: [
            n.get("name", {}).get("value", "")
            for n in nodes
            if n.get("role", {}).get("value") == role and not n["ignored"]
        ]
        for role in ("region", "article", "navigation", "image", "main", "heading")
    }
    assert all(
        name.strip()
        for names in (named["region"], named["article"], named["navigation"], named["heading"])
        for name in names
    )
    assert (
        len(named["region"]) + len(named["article"]) + len(named["navigation"]) == regions
        and len(named["main"]) == 1
    )
    figures = page.js(
        "return [...document.querySelectorAll('svg')].filter(s => s.checkVisibility()).map(s => "
        "[s.getAttribute('role'), "
        "s.querySelector('desc').textContent])"
    )
    assert all(role == "img" and desc.strip() for role, desc in figures)
    # The browser's own accessible names of the figures: title and description both arrive there.
    assert len(named["image"]) == len(figures)
    assert all(
        desc.strip() in name for (_, desc), name in zip(figures, named["image"], strict=True)
    )
    assert bool(figures) == (name != "unfinished")


def squeezed(text):
    """Text without white space and ligatures: a PDF breaks lines, and joins letters, where it
    likes.
    """
    return re.sub(r"\s+", "", unicodedata.normalize("NFKC", text))


@pytest.mark.parametrize("name", ["whole", "hostile"])
def test_print_keeps_every_section_and_opens_what_is_closed(browser, reports, name):
    from pypdf import PdfReader

    page = Page(browser, reports[name])
    assert page.js("return [...document.querySelectorAll('details')].every(d => !d.open)")
    printed = squeezed("".join(p.extract_text() for p in PdfReader(io.BytesIO(page.pdf())).pages))
    headings = page.js(
        "return [...document.querySelectorAll('h1, h2, h3')].map(h => h.textContent)"
    )
    missing = [h for h in headings if squeezed(h) not in printed]
    assert len(headings) > 20 and not missing
    hidden = page.js(
        "return [...document.querySelectorAll('details td, details th, details dd, "
        "details summary')].map(e => e.textContent)"
    )
    cells = {squeezed(t) for t in hidden} - {""}
    lost = [c for c in cells if c not in printed and len(c) < 200]
    assert len(cells) > 50 and not lost, lost[:5]
    assert not page.js(
        "return [...document.querySelectorAll('details')].some(d => d.open)"
    )  # printing changes nothing


def test_the_answer_is_on_the_first_screen(browser, reports):
    """Which candidate, holds or fails, up to which budget, by which attack, how sure: without
    scrolling at 1280 × 800.
    """
    page = Page(browser, reports["whole"])
    _, verdict = whole()
    cards = page.js(
        "return [...document.querySelectorAll('.card')].map(c => "
        "[c.innerText.replace(/\\s+/g, ' '),"
        " c.querySelector('.answer').getBoundingClientRect().bottom])"
    )
    assert len(cards) == len(verdict.candidates)
    for (text, bottom), c in zip(cards, verdict.candidates, strict=True):
        assert (
            text.startswith(c.name)
            and f" {c.overall} " in text
            and f"T = {c.resistance.budget} steps" in text
        )
        assert c.resistance.attacks[0].attack in text and (
            "confidence" in text or "confirmed" in text
        )
        assert bottom <= 800
    phone = Page(browser, reports["whole"], width=360, mobile=True)
    top = phone.js(
        "return document.querySelector('.card .answer "
        "div:nth-child(3)').getBoundingClientRect().bottom"
    )
    assert top <= 800  # the first candidate's budget, attack and certainty
