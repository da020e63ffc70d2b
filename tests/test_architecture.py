"""The rooms of docs/architecture.md, read from its table and enforced on the imports; what may not
be loaded or named.
"""

import ast
import json
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import titer

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "titer"
EVERYTHING = "everything"
FREE = {"errors", "version"}
"""Importable by all, as the page says."""


def table() -> dict[str, set[str]]:
    """room → rooms it may import."""
    rows = re.findall(
        r"^\| (`[^|]+) \|[^|]+\| ([^|]+) \|$",
        (ROOT / "docs/architecture.md").read_text("utf-8"),
        re.M,
    )
    allowed = {}
    for rooms, may in rows:
        for room in re.findall(r"`(\w+)`", rooms):
            allowed[room] = set() if may == "–" else {m.strip() for m in may.split(",")}
    return allowed


def modules() -> dict[str, Path]:
    """dotted name → file."""
    found = {}
    for file in SOURCE.rglob("*.py"):
        parts = ("titer", *file.relative_to(SOURCE).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports(name: str, source: str) -> set[str]:
    """Every module of titer that a module imports: at the top, inside functions, for type checkers;
    dotted names.

    `from titer.a import b` counts as titer.a.b: whether b is a module or a name in one, the room is
    the same.
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name != "titer"}
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "titer"
        ):
            found.add(f"titer.{node.attr}")  # what is taken of a plain `import titer`
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively; say the whole name"
            found |= {f"{node.module}.{a.name}" for a in node.names}
    return {f for f in found if f.split(".")[0] == "titer"}


def room(name: str) -> str:
    return (*name.split("."), "titer")[1]


def violations(name: str, found: set[str], allowed: dict[str, set[str]]) -> list[str]:
    """Imports a module may not have."""
    mine = room(name)
    may = allowed.get(mine, set())
    if EVERYTHING in may or name == "titer":
        return []
    return sorted(f for f in found if room(f) not in may | FREE | {mine})


SHARED = {
    "measures": {"measure", "requests", "ask", "abilities", "generate", "likelihood", "registry"},
    "judges": {"judge", "cache", "registry"},
}
"""What all measures, or judges, may use of their room; the registry in turn knows them all."""


def siblings(name: str, found: set[str]) -> list[str]:
    """Imports of one method, judge or family of measures by another one."""
    parts = name.split(".")
    shared = SHARED.get(room(name))
    if shared and len(parts) == 3 and parts[2] not in shared:
        own = {name, *(f"titer.{parts[1]}.{m}" for m in shared)}
        return [
            f
            for f in found
            if f.startswith(f"titer.{parts[1]}.") and ".".join(f.split(".")[:3]) not in own
        ]
    if parts[:2] != ["titer", "methods"] or len(parts) < 4:
        return []
    return [
        f
        for f in found
        if re.match(r"titer\.methods\.(attacks|defenses|services)\.", f)
        and f.split(".")[:4] != parts[:4]
    ]


def test_the_table_names_the_rooms_that_exist():
    rooms = {room(n) for n, f in modules().items() if f.read_text("utf-8").strip()} - {
        "titer",
        *FREE,
    }
    assert rooms <= set(table()), "a room is missing from the table of docs/architecture.md"
    assert set(table()) <= {room(n) for n in modules()}, (
        "the table names a room that does not exist"
    )


@pytest.mark.parametrize("name", sorted(modules()))
def test_a_module_imports_only_what_its_room_may(name):
    found = imports(name, modules()[name].read_text("utf-8"))
    assert not violations(name, found, table())
    assert not siblings(name, found)


def test_the_rules_catch_what_they_should():
    allowed = table()
    assert violations("titer.study.load", {"titer.data.pools.Pools"}, allowed)
    assert violations("titer.verdicts.judge", {"titer.engine.run_cell"}, allowed)
    assert not violations(
        "titer.engine.run_cell", {"titer.methods.method", "titer.errors.RunError"}, allowed
    )
    assert siblings("titer.methods.attacks.a", {"titer.methods.attacks.b.B"})
    assert siblings("titer.methods.attacks.a", {"titer.methods.defenses.b.B"})
    assert not siblings("titer.methods.attacks.a", {"titer.methods.losses.response_ce"})
    assert siblings("titer.measures.compliance", {"titer.measures.exact_answer.ExactAnswer"})
    assert not siblings("titer.measures.compliance", {"titer.measures.generate.generate"})
    assert siblings("titer.methods.services.a", {"titer.methods.attacks.b.B"})
    assert siblings("titer.judges.http", {"titer.judges.classifier.ClassifierJudge"})
    assert not siblings("titer.judges.http", {"titer.judges.judge.Judge"})
    assert violations("titer.judges.http", {"titer.measures.measure.Measure"}, allowed)
    assert not violations("titer.measures.judged", {"titer.judges.registry.judges"}, allowed)
    assert imports("x", "def f():\n    from titer.data import pools\n") == {"titer.data.pools"}
    assert violations(
        "titer.verdicts.judge", imports("x", "import titer\ntiter.run('s', 'd')"), allowed
    )
    assert not violations(
        "titer.verdicts.judge", imports("x", "from titer.version import __version__"), allowed
    )


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Sets of modules that reach one another, each sorted."""

    def reached(start: str) -> set[str]:
        found: set[str] = set()
        waiting = [start]
        while waiting:
            for target in graph[waiting.pop()] - found:
                found.add(target)
                waiting.append(target)
        return found

    beyond = {name: reached(name) for name in graph}
    loops = {
        tuple(sorted({name} | {other for other in found if name in beyond[other]}))
        for name, found in beyond.items()
        if name in found
    }
    return sorted(map(list, loops))


def module_graph() -> dict[str, set[str]]:
    """Module → modules it imports, imports inside functions and for type checkers included."""
    known = modules()
    graph = {}
    for name, file in known.items():
        targets = set()
        for found in imports(name, file.read_text("utf-8")):
            module = found if found in known else found.rpartition(".")[0]
            targets |= {module} & known.keys()
        graph[name] = targets - {name}
    return graph


def test_no_modules_import_one_another():
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]
    assert cycles(module_graph()) == []


LONGEST = 350
"""Lines of a module; a longer one holds more than one thing."""


@pytest.mark.parametrize("name", sorted(modules()))
def test_a_module_is_short_and_formatted_like_the_others(name):
    text = modules()[name].read_text("utf-8")
    assert len(text.splitlines()) <= LONGEST
    assert "fmt: skip" not in text and "fmt: off" not in text


def in_a_fresh_process(code: str, *arguments: str) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


HEAVY = "torch", "transformers", "peft", "datasets"


def test_judging_and_reporting_need_no_torch(small_study, tmp_path):
    store = titer.run(small_study(), tmp_path / "run")
    code = f"""
import json, sys
import titer, titer.records.store, titer.study, titer.verdicts, titer.report
run, to = sys.argv[1:]
verdict = titer.judge(run)
paths = titer.write_report(run, to=to)
heavy = [m for m in {HEAVY} if m in sys.modules]
print(json.dumps({{"heavy": heavy, "study": verdict.study, "html": str(paths.html)}}))
"""
    told = in_a_fresh_process(code, str(store.root), str(tmp_path))
    assert told["study"] == "small" and Path(told["html"]).stat().st_size > 1000
    assert told["heavy"] == []


def test_importing_is_quick_and_needs_no_network():
    code = f"""
import json, socket, sys
def refuse(*_, **__):
    raise AssertionError("importing titer opened a socket")
socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
import titer, titer.cli.main
print(json.dumps([m for m in {(*HEAVY, "matplotlib", "optuna")} if m in sys.modules]))
"""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert in_a_fresh_process(code) == []
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Processor time, so that a busy machine does not count against it.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 5


# Written in pieces, so that this file does not name one itself.
REGISTRIES = [
    ".".join(p)
    for p in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("npmjs", "org"),
        ("npmjs", "com"),
        ("yarnpkg", "com"),
        ("crates", "io"),
        ("rubygems", "org"),
        ("anaconda", "org"),
        ("golang", "org"),
        ("maven", "org"),
        ("packagist", "org"),
        ("nuget", "org"),
        ("jsdelivr", "net"),
        ("unpkg", "com"),
    )
]


def test_no_registry_host_is_named():
    """What is fetched comes through the registry the user has configured; an address written down
    would go round it.
    """
    if (ROOT / ".git").exists():
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True
        ).stdout.decode()
        paths = list(filter(None, listed.split("\0")))
    else:
        # An unpacked archive holds nothing but what was tracked, and what tests and installation
        # add under known names.
        made = {".venv", "runs", "build", "dist"}
        paths = [
            str(p.relative_to(ROOT))
            for p in ROOT.rglob("*")
            if not made & set(p.relative_to(ROOT).parts)
        ]
    assert "README.md" in paths
    named = []
    for path in paths:
        file = ROOT / path
        if not file.is_file() or file.suffix in (".safetensors", ".png"):
            continue
        text = file.read_text("utf-8", errors="ignore")
        named += [f"{path}: {host}" for host in REGISTRIES if host in text]
    assert not named
