"""The documentation: every example runs as it stands, generated pages are current, the site
builds.

A page is one session in an empty folder. A block with a title is a file; `python` blocks share
their names; in `console` blocks, lines after `$ ` are commands, and each further line must be part
of what the command prints. A block after `<!-- notest: reason -->` is not run.
"""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from titer.cli.main import main
from titer.study import plugins

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
FENCE = re.compile(
    r"^(?:<!-- notest: (?P<reason>.+?) -->\n)?```(?P<lang>\w+)(?: title=\"(?P<title>[^\"]+)\")?\n"
    r"(?P<text>.*?)^```$",
    re.S | re.M,
)
TESTED_ELSEWHERE = {
    "README.md": "tests/test_examples.py runs its Python",
    "docs/studies.md": "tests/study/test_study_docs.py loads and plans its studies",
}
NOT_RUN = {
    ("docs/tutorials/first_verdict.md", "$ python -m pip install -c constraints.txt ."),
    ("docs/tutorials/own_defense.md", "$ titer run my_idea.yaml"),
}
"""(page, first line) of every block that is marked as not run; keep them few."""


def blocks(page: Path) -> list[dict[str, str]]:
    return [m.groupdict() for m in FENCE.finditer(page.read_text("utf-8"))]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


PAGES = [
    p
    for p in sorted(DOCS.rglob("*.md"))
    if any(b["title"] or b["lang"] in ("python", "console") for b in blocks(p))
    and name_of(p) not in TESTED_ELSEWHERE
]


@pytest.fixture(autouse=True)
def forgotten():
    """What examples register is forgotten after every test."""
    known, read = dict(plugins._registered), dict(plugins._loaded)
    yield
    for now, before in ((plugins._registered, known), (plugins._loaded, read)):
        now.clear()
        now.update(before)
    plugins._changes += 1


def flat(text: str) -> str:
    return " ".join(text.split())


def said_by(command: str) -> str:
    """What a command prints. `titer` runs in this process, which has imported torch already."""
    words = shlex.split(command)
    if words[0] == "titer":
        told = io.StringIO()
        with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
            status = main(words[1:])
        assert status == 0, f"{command}: exit status {status}\n{told.getvalue()}"
        return told.getvalue()
    assert words[0] == "python", f"an example may run titer and python, not {words[0]}"
    done = subprocess.run(
        [sys.executable, *words[1:]],
        capture_output=True,
        text=True,
        timeout=900,
        env=os.environ | {"OMP_NUM_THREADS": "1"},  # the tiny model is quickest so
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def run_console(text: str) -> None:
    said = ""
    for line in text.splitlines():
        if line.startswith("$ "):
            said = flat(said_by(line[2:]))
        elif line.strip():
            assert flat(line) in said, f"not printed: {line!r}; printed: {said}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_examples_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    names: dict[str, object] = {"__name__": "example"}
    for block in blocks(page):
        if block["reason"]:
            continue
        if block["title"]:
            (tmp_path / block["title"]).write_text(block["text"])
            if block["lang"] == "yaml":
                yaml.safe_load(block["text"])
        elif block["lang"] == "console":
            run_console(block["text"])
        elif block["lang"] == "python":
            exec(compile(block["text"], name_of(page), "exec"), names)


def test_blocks_that_are_not_run_are_few_and_named():
    marked = {
        (name_of(p), b["text"].splitlines()[0])
        for p in DOCS.rglob("*.md")
        for b in blocks(p)
        if b["reason"]
    }
    assert marked == NOT_RUN


def test_every_fence_is_one_that_is_understood():
    """A fence with a header that the pattern above does not match would be skipped in silence."""
    for page in (p for p in DOCS.rglob("*.md") if p.parent.name != "results"):  # made by reports
        opened = re.findall(r"^```.*$", page.read_text("utf-8"), re.M)
        assert len(opened) == 2 * len(blocks(page)), name_of(page)
    known = {"python", "console", "yaml", "json", "toml", "text"}
    assert {b["lang"] for p in DOCS.rglob("*.md") for b in blocks(p)} <= known


def test_the_command_line_page_is_current():
    code = "import runpy; print(runpy.run_path('scripts/write_command_line.py')['page'](), end='')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    page = (DOCS / "reference" / "command_line.md").read_text("utf-8")
    assert done.stdout == page, "run scripts/write_command_line.py"


def test_every_built_in_method_is_in_the_reference():
    from titer.judges.registry import BUILT_IN
    from titer.measures.registry import measures
    from titer.methods.registry import methods

    page = (DOCS / "reference" / "methods.md").read_text("utf-8")
    for kind in ("attack", "defense", "service"):
        for cls in methods(kind).values():
            if cls.__module__.startswith("titer."):
                assert f"::: {cls.__module__}.{cls.__name__}\n" in page
    for cls in (*measures().values(), *BUILT_IN):
        if cls.__module__.startswith("titer."):
            assert f"::: {cls.__module__}" in page


def test_every_dependency_has_its_line_and_is_imported_or_explained():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    page = (DOCS / "dependencies.md").read_text("utf-8")
    module_of = {"PyYAML": "yaml"}
    source = "\n".join(p.read_text("utf-8") for p in (ROOT / "src").rglob("*.py"))
    extras = project["optional-dependencies"]
    for line in (*project["dependencies"], *(d for e in extras.values() for d in e)):
        name = re.split(r"[>\[]", line)[0]
        assert name == "titer" or f"`{name}`" in page, name
    for line in (*project["dependencies"], *extras["curves"]):
        name = line.split(">")[0]
        module = module_of.get(name, name)
        assert re.search(rf"^\s*(import|from) {module}\b", source, re.M), f"{name} is not imported"


def test_the_site_builds_without_warnings_and_fetches_nothing(tmp_path):
    code = (
        "import socket, sys\n"
        "def refuse(*_, **__): raise AssertionError('the build opened a connection')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n"
        "from mkdocs.__main__ import cli\n"
        "cli(['build', '--strict', '--quiet', '--site-dir', sys.argv[1]])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for page in tmp_path.rglob("*.html"):
        html = page.read_text("utf-8")
        loaded = re.findall(r"<(?:script|img|link|iframe)\b[^>]*(?:src|href)=\"?(\S+)", html)
        assert not [u for u in loaded if u.strip('"').startswith(("http", "//"))], page.name
