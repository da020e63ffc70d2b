"""What comes from outside is found, told apart by its code, and cannot pass for something else."""

import abc
import hashlib
import pickle
import sys
from types import SimpleNamespace

import pytest

from titer.errors import StudyError
from titer.study import plugins


class Base:
    name = "base"


class Mine(Base):
    name = "mine"


@pytest.fixture(autouse=True)
def nothing_registered(monkeypatch):
    """Every test begins with an empty registry, and leaves none of its modules behind."""
    monkeypatch.setattr(plugins, "_registered", {})
    monkeypatch.setattr(plugins, "_loaded", {})
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("titer_plugin_"):
            del sys.modules[name]


@pytest.fixture
def installed(monkeypatch):
    def install(*pairs):
        entries = [
            SimpleNamespace(name=n, value=f"package:{n}", load=lambda v=v: v) for n, v in pairs
        ]
        monkeypatch.setattr(plugins, "entry_points", lambda group: entries)

    return install


@pytest.fixture
def written(tmp_path):
    """A function: text of a plug-in file to its path."""

    def write(text, name="mine.py"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def known(base=object, taken=()):
    return plugins.plugged("no such group", base, dict.fromkeys(taken, object))


# -- packages --------------------------------------------------------------------------------------


def test_found(installed):
    installed(("mine", Mine))
    assert plugins.plugged("g", Base, {"base": Base}) == {"mine": Mine}


@pytest.mark.parametrize(
    ("pairs", "says"),
    [
        ([("mine", object())], "not what its group holds"),
        ([("mine", dict)], "not what its group holds"),
        ([("yours", Mine)], "has another name"),
        ([("base", Base)], "name that is taken"),
        ([("mine", Mine), ("mine", Mine)], "name that is taken"),
    ],
)
def test_refused(installed, pairs, says):
    installed(*pairs)
    with pytest.raises(StudyError, match=says):
        plugins.plugged("g", Base, {"base": Base})


@pytest.mark.parametrize("error", [ImportError("gone"), SystemExit(3), RuntimeError("boom")])
def test_a_package_that_fails_is_named(monkeypatch, error):
    def load():
        raise error

    entry = SimpleNamespace(name="mine", value="package:mine", load=load)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [entry])
    with pytest.raises(StudyError, match="mine fails when it is imported") as caught:
        plugins.plugged("g", Base, {})
    assert caught.value.field == "g" and caught.value.value == "package:mine"


# -- classes registered in this process ------------------------------------------------------------


def test_registered_by_hand_or_as_a_decorator():
    before = plugins.changes()

    @plugins.register
    class Decorated(Base):
        name = "decorated"

    assert plugins.register(Mine) is Mine and plugins.changes() == before + 2
    assert known(Base) == {"decorated": Decorated, "mine": Mine}
    assert known(Mine) == {"mine": Mine}


def test_defined_again_the_last_one_counts():
    def define(version):
        @plugins.register
        class Again(Base):
            name = "again"

        Again.version = version
        return Again

    define(1)
    plugins.register(Mine)
    last = define(2)
    assert known(Base) == {"again": last, "mine": Mine}


def test_a_name_that_comes_with_titer_is_taken():
    plugins.register(Mine)
    with pytest.raises(StudyError, match="comes with titer") as caught:
        known(Base, taken=["mine"])
    assert caught.value.value == "mine"
    assert known(Base, taken=["mine"]) == {}  # later studies of this process are not refused


@pytest.mark.parametrize("thing", [type("Nameless", (), {}), type("Numbered", (), {"name": 3}), 7])
def test_a_class_without_a_name_cannot_be_registered(thing):
    with pytest.raises(StudyError, match="without a name"):
        plugins.register(thing)


# -- files -----------------------------------------------------------------------------------------

FILE = """
from abc import ABC, abstractmethod
from collections import OrderedDict

class Shared:
    pass

class Half(ABC):
    name = "half"
    @abstractmethod
    def step(self): ...

class One(Shared):
    name = "one"

class Two(Shared):
    name = "two"
"""


def test_a_file_brings_the_named_classes_it_defines(written):
    path = written(FILE)
    plugins.load_plugins([path])
    found = known()
    assert found.keys() == {"one", "two"}
    assert pickle.loads(pickle.dumps(found["one"])) is found["one"]
    before = plugins.changes()
    plugins.load_plugins([path, str(path)])
    assert plugins.changes() == before and known() == found


def test_two_classes_of_one_name_in_a_file_are_refused(written):
    with pytest.raises(StudyError, match="two classes of one name") as caught:
        plugins.load_plugins([written(FILE.replace('name = "two"', 'name = "one"'))])
    assert caught.value.value.endswith(": one")


def test_a_changed_file_is_loaded_anew(written):
    plugins.load_plugins([written(FILE)])
    old = known()
    plugins.load_plugins([written(FILE.replace('name = "two"', 'name = "three"'))])
    new = known()
    assert new.keys() == {"one", "three"} and new["one"] is not old["one"]
    plugins.load_plugins([written(FILE)])
    assert known() == old


def test_two_files_with_one_name_are_two_files(tmp_path):
    paths = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        paths.append(tmp_path / folder / "mine.py")
        paths[-1].write_text(f"class Own:\n    name = {folder!r}\n")
    plugins.load_plugins(paths)
    assert known().keys() == {"a", "b"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def (", "SyntaxError"),
        ("import no_such_module_anywhere", "ModuleNotFoundError"),
        ("raise SystemExit(3)", "SystemExit"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_file_that_fails_is_named_and_forgotten(written, text, says):
    path, before = written(text), set(sys.modules)
    with pytest.raises(StudyError, match=f"fails when it is imported .{says}") as caught:
        plugins.load_plugins([path])
    assert caught.value.field == "plugins" and caught.value.value == str(path)
    assert not {n for n in set(sys.modules) - before if n.startswith("titer_plugin")}


def test_an_interruption_is_not_the_fault_of_a_file(written):
    with pytest.raises(KeyboardInterrupt):
        plugins.load_plugins([written("raise KeyboardInterrupt")])


def test_what_is_no_python_file(written, tmp_path):
    with pytest.raises(StudyError, match="cannot be read"):
        plugins.load_plugins([tmp_path / "gone.py"])
    with pytest.raises(StudyError, match="cannot be read"):
        plugins.load_plugins([tmp_path])
    with pytest.raises(StudyError, match="no Python file"):
        plugins.load_plugins([written("text", "mine.txt")])


# -- which code it is ------------------------------------------------------------------------------


def sha(text):
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def test_what_comes_with_titer_is_told_by_its_version():
    from titer.data.examples import Example

    assert plugins.code_digest(Example) == ""


def test_what_comes_from_a_file_is_told_by_the_file_as_it_was_loaded(written):
    plugins.load_plugins([written(FILE)])
    one = known()["one"]
    assert plugins.code_digest(one) == sha(FILE)
    other = FILE + "\n# another line\n"
    path = written(other)
    assert plugins.code_digest(one) == sha(FILE), "that is not the code that runs"
    plugins.load_plugins([path])
    assert plugins.code_digest(known()["one"]) == sha(other)


def test_what_comes_from_a_script_is_told_by_the_script():
    with open(__file__, "rb") as handle:
        assert plugins.code_digest(Mine) == hashlib.sha256(handle.read()).hexdigest()[:16]


def test_code_nobody_can_read_is_refused():
    namespace = {"__name__": "nowhere"}
    exec("class Made:\n    name = 'made'", namespace)
    with pytest.raises(StudyError, match="cannot be read"):
        plugins.code_digest(namespace["Made"])


def test_an_abstract_class_is_no_method():
    class Half(abc.ABC):
        name = "half"

        @abc.abstractmethod
        def step(self): ...

    assert not plugins._named(Half) and plugins._named(Mine)
