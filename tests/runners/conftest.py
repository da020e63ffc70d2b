import shutil

import pytest

import titer

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
