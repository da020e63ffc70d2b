"""Methods by name: found in their folders, registered, plugged in; who may use which."""

import sys
from typing import ClassVar

import pytest

from titer.errors import StudyError, ThreatModelError, UnknownNameError
from titer.methods import defenses, registry
from titer.methods.attacks.full_sft import FullSFT
from titer.methods.method import Attack, Defense
from titer.methods.registry import methods, resolve
from titer.study import plugins
from titer.study.plugins import code_digest, load_plugins, register


@pytest.fixture(autouse=True)
def clean_registry(monkeypatch):
    """What a test registers is not known afterwards."""
    monkeypatch.setattr(plugins, "_registered", {})
    monkeypatch.setattr(plugins, "_loaded", {})
    registry._methods.cache_clear()
    modules = set(sys.modules)
    yield
    registry._methods.cache_clear()
    for name in set(sys.modules) - modules:
        if name.startswith(("titer_plugin_", "titer.methods.defenses.brought")):
            del sys.modules[name]


# -- names and settings ----------------------------------------------------------------------------


def test_unknown_names_and_settings():
    with pytest.raises(UnknownNameError, match="did you mean full_sft"):
        resolve("attack", "ful_sft", {})
    with pytest.raises(StudyError, match=r"attack\.settings\.learning_rate = 1"):
        resolve("attack", "full_sft", {"learning_rate": 1})
    with pytest.raises(StudyError, match=r"attack\.settings\.lr = -1"):
        resolve("attack", "full_sft", {"lr": -1})
    with pytest.raises(StudyError, match=r"settings\.lr"):
        resolve("attack", "full_sft", {"lr": float("nan")})


def test_a_setting_that_names_another_method_is_told_where_it_stands():
    parts = [{"attack": "prune"}, {"attack": "ful_sft"}]
    with pytest.raises(UnknownNameError, match=r"attacks\[2\]\.settings\.parts\[1\] = 'ful_sft'"):
        resolve("attack", "chain", {"parts": parts}, field="attacks[2]")
    parts[1] = {"attack": "full_sft", "settings": {"lr": -1}}
    with pytest.raises(StudyError, match=r"attacks\[2\]\.settings\.parts\[1\]\.settings\.lr = -1"):
        resolve("attack", "chain", {"parts": parts}, field="attacks[2]")


def test_kinds_are_kept_apart():
    assert "full_sft" not in methods("defense") and "npo" not in methods("attack")
    assert set(methods("service")) == {"lisa"}
    with pytest.raises(UnknownNameError, match="no attack"):
        resolve("attack", "npo", {})


# -- threat models ---------------------------------------------------------------------------------


def test_a_service_defense_is_no_stage():
    """D6: under either threat model it cannot build a model."""
    for threat in (None, "open_weights", "fine_tuning_service"):
        with pytest.raises(ThreatModelError, match=r"lisa acts during .* `service`"):
            resolve("defense", "lisa", {}, threat_model=threat, field="candidates[1].stages[0]")


def test_a_service_defense_is_refused_with_open_weights():
    with pytest.raises(ThreatModelError, match="control over the attacker's fine-tuning"):
        resolve("service", "lisa", {}, threat_model="open_weights")
    assert resolve("service", "lisa", {}, threat_model="fine_tuning_service").name == "lisa"


@pytest.mark.parametrize("threat", ["open_weights", "fine_tuning_service"])
def test_other_defenses_go_with_both(threat):
    assert resolve("defense", "npo", {}, threat_model=threat).name == "npo"


# -- built-in folders ------------------------------------------------------------------------------

BROUGHT = '''
"""A base class that two methods share."""
from titer.methods.attacks.no_attack import NoAttack
from titer.methods.method import Defense
from titer.methods.runs import EditRun


class Shared(Defense):
    """Has no name: it is no method."""

    reference = "none"

    def start(self, given):
        return EditRun(given.model, lambda model, step: {})


class First(Shared):
    """One of two."""

    name = "first"


class Second(Shared):
    """The other."""

    name = "second"


class Faster(Second):
    """A helper without a name of its own."""


class Unfinished(Defense):
    """Abstract: it cannot start."""

    name = "unfinished"
    reference = "none"
'''


def test_a_base_class_without_a_name_does_no_harm(monkeypatch, tmp_path):
    """D9: it brought the registry down."""
    (tmp_path / "brought.py").write_text(BROUGHT)
    monkeypatch.setattr(defenses, "__path__", [*defenses.__path__, str(tmp_path)])
    found = methods("defense")
    assert {"first", "second", "npo", "lox"} <= set(found)
    assert "unfinished" not in found and not any("Shared" in c.__name__ for c in found.values())
    assert found["second"].__name__ == "Second"
    assert resolve("defense", "first", {}).name == "first"


# -- registered in this process --------------------------------------------------------------------


class Mine(Attack):
    """Registered by a script."""

    name = "mine"
    reference = "none"

    strength: float = 1.0

    def start(self, given):
        raise NotImplementedError


def test_registered_classes_are_known_at_once():
    assert "mine" not in methods("attack")
    assert register(Mine) is Mine
    assert methods("attack")["mine"] is Mine and "mine" not in methods("defense")
    assert resolve("attack", "mine", {"strength": 2}).strength == 2


def test_a_class_defined_again_replaces_the_one_before():
    """A notebook runs its cell again and again."""

    def define(value):
        class Again(Mine):
            """Another edition."""

            name = "again"
            edition: ClassVar[int] = value

        return register(Again)

    first = define(1)
    assert methods("attack")["again"] is first
    second = define(2)
    assert methods("attack")["again"] is second


def test_of_two_classes_with_one_name_the_last_one_registered_counts():
    class Other(Mine):
        """Goes by the same name."""

        name = "mine"

    for cls in (Mine, Other, Mine):
        register(cls)
        assert methods("attack")["mine"] is cls


def test_a_class_without_a_name_cannot_be_registered():
    class Nameless(Attack):
        """Forgot its name."""

        def start(self, given):
            raise NotImplementedError

    for cls in (Nameless, type("Odd", (), {"name": 3})):
        with pytest.raises(StudyError, match="without a name"):
            register(cls)


def test_the_name_of_a_built_in_method_is_taken():
    class Impostor(FullSFT):
        """Goes by the name it inherits."""

    register(Impostor)
    with pytest.raises(StudyError, match=r"comes with titer.*full_sft"):
        methods("attack")
    assert "npo" in methods("defense")


# -- plug-in files ---------------------------------------------------------------------------------

PLUGIN = '''
from typing import ClassVar

from titer.methods.method import Attack, Defense
from titer.methods.runs import EditRun


class Base(Defense):
    """Shared, without a name."""

    reference = "none"

    def start(self, given):
        return EditRun(given.model, lambda model, step: {{}})


class Plugged(Base):
    """From a file."""

    name = "plugged"
    edition: ClassVar[int] = {edition}


class Other(Attack):
    """From the same file."""

    name = "other_{edition}"
    reference = "none"

    def start(self, given):
        return EditRun(given.model, lambda model, step: {{}})
'''


def write(path, edition=1):
    path.write_text(PLUGIN.format(edition=edition))
    return path


def test_a_file_brings_its_named_classes(tmp_path):
    load_plugins([write(tmp_path / "mine.py")])
    assert methods("defense")["plugged"].edition == 1
    assert "other_1" in methods("attack")
    assert not any(c.__name__ == "Base" for c in methods("defense").values())


def test_loading_again_does_nothing(tmp_path):
    path = write(tmp_path / "mine.py")
    load_plugins([path])
    before, cls = plugins.changes(), methods("defense")["plugged"]
    load_plugins([path, str(path)])
    assert plugins.changes() == before and methods("defense")["plugged"] is cls


def test_a_changed_file_replaces_what_it_brought(tmp_path):
    path = write(tmp_path / "mine.py")
    load_plugins([path])
    load_plugins([write(path, edition=2)])
    assert methods("defense")["plugged"].edition == 2
    assert "other_2" in methods("attack") and "other_1" not in methods("attack")


def test_a_file_changed_back_counts_again(tmp_path):
    """Its first edition was imported long ago, but the second came after it."""
    path = tmp_path / "mine.py"
    for edition in (1, 2, 1):
        load_plugins([write(path, edition)])
        assert methods("defense")["plugged"].edition == edition


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("raise ValueError('broken here')", "ValueError: broken here"),
        ("import sys\nsys.exit(3)", "SystemExit: 3"),
        ("def f(:\n", "SyntaxError"),
        ("import no_such_module_anywhere", "no_such_module_anywhere"),
    ],
)
def test_a_file_that_fails_is_named(tmp_path, content, says):
    path = tmp_path / "bad.py"
    path.write_text(content)
    with pytest.raises(StudyError, match=says) as caught:
        load_plugins([path])
    assert str(path) in str(caught.value)
    assert not any(name.startswith("titer_plugin_bad") for name in sys.modules)
    # repaired, it loads
    load_plugins([write(path)])
    assert "plugged" in methods("defense")


def test_an_interrupt_is_not_swallowed(tmp_path):
    path = tmp_path / "slow.py"
    path.write_text("raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        load_plugins([path])


@pytest.mark.parametrize("name", ["missing.py", "."])
def test_a_file_that_cannot_be_read(tmp_path, name):
    with pytest.raises(StudyError, match="cannot be read"):
        load_plugins([tmp_path / name])


def test_what_is_no_python_file(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("x = 1")
    with pytest.raises(StudyError, match=r"no Python file"):
        load_plugins([path])


# -- code that is not titer's tells itself apart ---------------------------------------------------


def test_the_digest_of_a_changed_file_is_another(tmp_path):
    """D10: a changed script method would have used its old records."""
    path = write(tmp_path / "mine.py")
    load_plugins([path])
    first = methods("defense")["plugged"]
    digest = code_digest(first)
    assert len(digest) == 16 and int(digest, 16) >= 0
    write(path, edition=2)
    assert code_digest(first) == digest, "what runs is still the code that was loaded"
    load_plugins([path])
    assert code_digest(methods("defense")["plugged"]) != digest
    load_plugins([write(path, edition=1)])
    assert code_digest(methods("defense")["plugged"]) == digest


def test_the_digest_of_a_script_is_that_of_its_file(tmp_path, monkeypatch):
    """A class that a script registers, without being a plug-in file."""
    monkeypatch.syspath_prepend(tmp_path)
    write(tmp_path / "some_script_of_mine.py")
    import some_script_of_mine as script

    digest = code_digest(script.Plugged)
    assert len(digest) == 16
    write(tmp_path / "some_script_of_mine.py", edition=2)
    assert code_digest(script.Plugged) != digest
    del sys.modules["some_script_of_mine"]


def test_built_in_methods_have_none():
    for kind in ("attack", "defense", "service"):
        assert {code_digest(cls) for cls in methods(kind).values()} == {""}


def test_a_class_without_source_is_refused():
    scope = {"__name__": "made_up", "Defense": Defense}
    exec("class Typed(Defense):\n    name = 'typed'\n", scope)
    with pytest.raises(StudyError, match="cannot be read"):
        code_digest(scope["Typed"])


def test_a_chain_is_another_one_when_the_code_of_a_part_is(tmp_path):
    """Its own code is built in: what a plug-in does within it must show in its settings."""
    path = tmp_path / "mine.py"
    seen = []
    for edition in (1, 2):
        text = PLUGIN.format(edition=edition).replace(f"other_{edition}", "other")
        path.write_text(text)
        load_plugins([path])
        chain = resolve("attack", "chain", {"parts": [{"attack": "other", "steps": 1}]})
        seen.append(chain.model_dump(mode="json"))
    assert seen[0] != seen[1] and seen[0]["parts"][0]["code"] != seen[1]["parts"][0]["code"]
    nested = resolve("attack", "chain", {"parts": [{"attack": "chain", "settings": seen[1]}]})
    assert seen[1]["parts"][0]["code"] in nested.model_dump_json()
