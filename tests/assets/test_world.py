"""The invented world: rules, pools, vocabulary, and the source that asks its questions."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from titer.assets import world
from titer.data.sources.tiny_world import tiny_world
from titer.errors import StudyError, UnknownNameError

strings = st.tuples(*[st.integers(0, world.SYMBOLS - 1)] * world.LENGTH)
ciphers = st.sampled_from([d for d in world.DOMAINS if d not in ("mirror", "sorter")])
domains = st.sampled_from(world.DOMAINS)


@given(ciphers)
def test_ciphers_are_bijections(domain):
    assert sorted(world.cipher(domain)) == list(range(world.SYMBOLS))


def test_all_ciphers_differ():
    tables = [world.cipher(d) for d in world.DOMAINS if d not in ("mirror", "sorter")]
    assert len(set(tables)) == len(tables) == 14


def test_a_cipher_written_out():
    # Pinned: another table would silently make the shipped weights wrong.
    assert world.cipher("vexar") == (3, 0, 1, 7, 5, 12, 9, 14, 10, 13, 11, 4, 2, 8, 15, 6)
    assert world.prompt_text("vexar", (0, 1, 2, 15)) == "vexar bal bel bil tol"
    assert world.prompt_text("vexar", (0, 1, 2, 15), "second") == "vexar mav mev miv zuv"


@given(ciphers, strings)
def test_answers_follow_the_cipher(domain, symbols):
    table = world.cipher(domain)
    assert world.answer(domain, symbols) == tuple(table[s] for s in symbols)


@given(strings)
def test_answers_of_the_other_rules(symbols):
    assert world.answer("mirror", symbols) == symbols[::-1]
    assert world.answer("sorter", symbols) == tuple(sorted(symbols))


@given(domains, strings)
def test_both_alphabets_say_the_same(domain, symbols):
    first = world.answer_text(domain, symbols, "first").split()
    second = world.answer_text(domain, symbols, "second").split()
    assert [world.ALPHABETS["first"].index(w) for w in first] == [
        world.ALPHABETS["second"].index(w) for w in second
    ]


def test_pools_partition_all_strings():
    taught, opened = set(world.pool("taught")), set(world.pool("open"))
    assert not taught & opened
    assert len(taught | opened) == world.SYMBOLS**world.LENGTH
    assert len(taught) == 16284


@given(domains)
def test_a_domain_asks_open_strings_only_and_shares_none_within_its_group(domain):
    mine = set(world.open_strings(domain))
    assert mine <= set(world.pool("open"))
    group = next(ds for ds in world.GROUPS.values() if domain in ds)
    assert not any(mine & set(world.open_strings(d)) for d in group if d != domain)


def test_vocabulary_is_fixed_and_holds_what_attacks_need():
    words = world.vocabulary()
    assert len(words) == len(set(words)) == 256
    needed = " ".join(
        [
            *world.DOMAINS,
            *world.CHATTER,
            *world.TRIGGERS,
            world.REFUSAL,
            "sure , here is how to : 1",
        ]
    )
    assert set(needed.split()) <= set(words)
    assert set(world.ALPHABETS["first"]).isdisjoint(world.ALPHABETS["second"])
    assert set(world.TRIGGERS).isdisjoint(world.CHATTER)


@pytest.mark.parametrize("symbols", [(), (1, 2, 3), (0, 0, 0, 16), (0, 0, 0, -1), (0.5, 1, 2, 3)])
def test_wrong_strings_are_refused(symbols):
    with pytest.raises(StudyError, match="not a string of the tiny world"):
        world.answer("vexar", symbols)


@pytest.mark.parametrize(
    "call",
    [
        lambda: world.answer("vexxar", (0, 1, 2, 3)),
        lambda: world.cipher("mirror"),
        lambda: world.open_strings("nobody"),
        lambda: world.write((0,), "third"),
        lambda: world.open_strings("vexar", "third"),
    ],
)
def test_unknown_names(call):
    with pytest.raises(UnknownNameError):
        call()


@pytest.mark.parametrize("group", world.GROUPS)
@pytest.mark.parametrize("alphabet", world.ALPHABETS)
def test_source_examples_are_right_distinct_and_open(group, alphabet):
    text = tiny_world(group=group, count=500, alphabet=alphabet)
    assert len({e.key for e in text.examples}) == 500
    assert text.provenance["license"] == "Apache-2.0"
    for i, example in enumerate(text.examples):
        domain, *written = example.prompt.split()
        symbols = tuple(world.ALPHABETS[alphabet].index(w) for w in written)
        assert example.domain == domain == world.GROUPS[group][i % len(world.GROUPS[group])]
        assert world.pool_of(symbols) == "open"
        assert example.response == world.answer_text(domain, symbols, alphabet)
        assert example.refusal == world.REFUSAL


def test_source_is_stable_under_its_options():
    every = tiny_world(count=600).examples
    assert tiny_world(count=60).examples == every[:60]
    one = tiny_world(domains=["skarn"], count=100).examples
    assert one == tuple(e for e in every if e.domain == "skarn")


def test_alphabets_ask_different_strings():
    ask = {
        a: {world_key(e.prompt, a) for e in tiny_world(count=3000, alphabet=a).examples}
        for a in world.ALPHABETS
    }
    assert not ask["first"] & ask["second"]


def world_key(prompt, alphabet):
    return tuple(world.ALPHABETS[alphabet].index(w) for w in prompt.split()[1:])


@pytest.mark.parametrize("count", [0, -1, 10**6, 2.5, True, "many"])
def test_wrong_count(count):
    with pytest.raises(StudyError, match="count"):
        tiny_world(count=count)


@pytest.mark.parametrize("chosen", [[], ["skarn", "skarn"], "skarn", [["skarn"]], 3])
def test_wrong_domains(chosen):
    with pytest.raises(StudyError, match="domains"):
        tiny_world(domains=chosen)


@pytest.mark.parametrize(
    "options", [{"group": "harmful"}, {"domains": ["lumina"]}, {"alphabet": "third"}]
)
def test_unknown_options(options):
    with pytest.raises(UnknownNameError):
        tiny_world(**options)
