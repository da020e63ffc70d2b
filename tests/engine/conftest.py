"""What the tests of planning share: the small study with some of its fields replaced, and methods
that are known for the length of a test.
"""

import pytest

from titer.study import plugins


@pytest.fixture
def study(small_study):
    """study(resistance={...}, ...): the small study with some fields of its resistance, or others,
    replaced.
    """

    def make(resistance=None, **changes):
        return small_study(
            resistance=small_study().resistance.model_dump(mode="json") | (resistance or {}),
            **changes,
        )

    return make


@pytest.fixture
def registered():
    """A function that registers classes; they are forgotten after the test, and so is what plug-in
    files register: other tests list all methods.
    """
    known, read = dict(plugins._registered), dict(plugins._loaded)
    yield lambda *classes: [plugins.register(cls) for cls in classes]
    for now, before in ((plugins._registered, known), (plugins._loaded, read)):
        now.clear()
        now.update(before)
    plugins._changes += 1  # so that what was looked up meanwhile is looked up again
