import shutil

import pytest

import titer
from helpers.running import OWN_ATTACKS, watched
from titer.study import plugins

_done: dict[str, object] = {}


@pytest.fixture
def finished(small_study, tmp_path_factory):
    """The small study run to its end in this process, once for all tests; never change it (see
    `copied`).
    """
    if "run" not in _done:
        _done["run"] = tmp_path_factory.mktemp("finished") / "run"
        titer.run(small_study(), _done["run"])
    return _done["run"]


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the finished run, to be damaged."""
    return shutil.copytree(finished, tmp_path / "copied")


@pytest.fixture
def performed(monkeypatch):
    """The cells that are worked on in this process, as (purpose, candidate, seed), in order."""
    return watched(monkeypatch)


@pytest.fixture(autouse=True)
def forgotten():
    """What plug-in files register is forgotten after every test: other tests list all methods."""
    known, read = dict(plugins._registered), dict(plugins._loaded)
    yield
    for now, before in ((plugins._registered, known), (plugins._loaded, read)):
        now.clear()
        now.update(before)
    plugins._changes += 1  # so that what was looked up meanwhile is looked up again


@pytest.fixture
def own_attack(small_study):
    """own_attack(attack, ...): the small study with an attack of `own_attacks.py` beside its own.
    settings: of that attack; fields: of its use; others: of the study.
    """

    def make(attack, settings=None, fields=None, **others):
        sft = {"attack": "full_sft", "settings": {"lr": 1e-3, "batch_size": 16}}
        own = {"attack": attack, "settings": settings or {}, **(fields or {})}
        resistance = small_study().resistance.model_dump(mode="json") | {"attacks": [sft, own]}
        return small_study(resistance=resistance, plugins=[str(OWN_ATTACKS)], **others)

    return make
