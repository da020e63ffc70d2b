import pytest

from titer.study.counting import counted


@pytest.mark.parametrize(
    "n, plural, said",
    [(0, None, "0 seeds"), (1, None, "1 seed"), (2, None, "2 seeds"), (1, "seedlings", "1 seed")],
)
def test_one_is_singular_and_nothing_else(n, plural, said):
    assert counted(n, "seed", plural) == said


def test_an_irregular_plural_is_given():
    assert counted(2, "matrix", "matrices") == "2 matrices"
