"""What happens before the first cell, and at every planning again, must be cheap and give what it
gave.
"""

import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from titer.data import pools as module
from titer.data.near import near_between, near_duplicates
from titer.data.pools import Pools
from titer.engine.planning import plan

texts = st.lists(
    st.sampled_from(["a", "b", "c", "the", "fence", "old", "of", "paint"]), max_size=6
).map(" ".join)


@given(
    st.dictionaries(st.sampled_from("pqrs"), st.lists(texts, max_size=6), max_size=4),
    st.sampled_from([0.3, 0.7, 0.9]),
)
def test_comparing_all_parts_at_once_finds_what_comparing_them_in_pairs_finds(parts, threshold):
    names = list(parts)
    expected = {
        (a, b): len({j for _, j, _ in near_duplicates(parts[a], parts[b], threshold)})
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    }
    assert near_between(parts, threshold) == expected


def test_text_is_compared_once_however_often_is_planned(small_study, monkeypatch):
    calls = []
    monkeypatch.setattr(module, "near_between", lambda *a: calls.append(a) or near_between(*a))
    study = small_study()
    pools = Pools(study)
    first, second = (plan(study, pools, lambda digest: None) for _ in range(2))
    assert first == second and len(calls) == 1
    first.disjointness["sizes"].clear()  # a plan is the caller's own
    assert plan(study, pools, lambda digest: None) == second


def test_planning_needs_no_adapters():
    """Importing peft takes seconds; a finished study is planned without it."""
    program = (
        "import sys, titer.engine.planning; from titer.methods.registry import resolve; "
        "resolve('attack', 'lora_sft', {}); sys.exit('peft' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
