"""The text a method is given: the same prompts in the same rows for every answer, every row once an
epoch, and nothing that depends on what was served before.
"""

import math
from collections import Counter
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from titer.data.encoding import IGNORED, Encoded
from titer.data.examples import Example
from titer.data.texts import Batches, Texts
from titer.data.wording import Wording
from titer.errors import StudyError

LONG = " ".join(["bal"] * 40)


def example(i, slot="harmful", **fields):
    """Prompts and answers that tell which example they belong to."""
    word = ("bal", "bel", "bil", "bol", "bul", "tal", "tel", "til")
    name = f"{word[i % 8]} {word[i // 8 % 8]} {word[i // 64]}"
    answers = {"response": f"tol {name}", "refusal": f"sorry {name}"}
    return Example(
        **({"prompt": f"vexar {slot == 'harmful'} {name}", "domain": slot} | answers | fields)
    )


@pytest.fixture
def texts(new_bundle):
    """A function: slots to Texts over the tiny model."""

    def make(bundle=None, **slots):
        return Texts(slots, bundle or new_bundle(max_length=64))

    return make


@pytest.fixture(scope="module")
def bundle(tiny):
    from titer.data.bundle import ModelBundle

    return ModelBundle(tiny.model, tiny.tokenizer, torch.device("cpu"), max_length=64)


def tokens(batch, row):
    """(prompt, response) of a row of a batch."""
    end = int(batch.mask_BT[row].sum())
    ids, first = batch.input_BT[row, :end].tolist(), batch.first_B[row]
    return tuple(ids[:first]), tuple(ids[first:])


# -- streams ---------------------------------------------------------------------------------------

sizes = st.integers(1, 20)
batch_sizes = st.integers(1, 9)
seeds = st.integers(0, 2**31)
FIELDS = st.permutations(["response", "refusal"]) | st.sampled_from([["response"], ["refusal"]])


@given(sizes, sizes, batch_sizes, seeds, FIELDS, st.integers(0, 60))
def test_the_same_prompts_in_the_same_rows_for_every_answer(
    bundle, harmful, harmless, size, seed, fields, step
):
    slots = {
        "harmful": [example(i) for i in range(harmful)],
        "harmless": [example(i, "harmless") for i in range(harmless)],
    }
    given_ = {bundle.prompt(e): e for of in slots.values() for e in of}
    stream = Texts(slots, bundle).stream(
        *fields, of=["harmful", "harmless"], batch_size=size, seed=seed
    )
    batches = stream(step)
    assert len(batches) == len(fields)
    for row in range(size):
        prompts = {tokens(b, row)[0] for b in batches}
        assert len(prompts) == 1
        asked = given_[prompts.pop()]
        for field, batch in zip(fields, batches, strict=True):
            _, response = tokens(batch, row)
            assert response == bundle.encode(asked, getattr(asked, field)).response
            spoken = batch.labels_BT[row][batch.labels_BT[row] != IGNORED]
            assert tuple(spoken.tolist()) == response


@given(sizes, batch_sizes, seeds, st.integers(1, 3))
def test_every_row_once_an_epoch(bundle, count, size, seed, epochs):
    examples = [example(i) for i in range(count)]
    stream = Texts({"harmful": examples}, bundle).stream(
        "response", of="harmful", batch_size=size, seed=seed
    )
    steps = math.ceil(count * epochs / size)
    served = [tokens(stream.one(t), row)[0] for t in range(steps) for row in range(size)]
    prompts = Counter(bundle.prompt(e) for e in examples)
    for epoch in range(epochs):
        assert Counter(served[epoch * count : (epoch + 1) * count]) == prompts


def same(one, other):
    return all(
        torch.equal(getattr(a, name), getattr(b, name)) and a.first_B == b.first_B
        for a, b in zip(one, other, strict=True)
        for name in ("input_BT", "mask_BT", "labels_BT")
    )


def cut(row, generator):
    """Answers that begin with a drawn number of their own tokens in silence."""
    return tuple(replace(a, silent=int(generator.integers(0, len(a.response)))) for a in row)


@given(sizes, batch_sizes, seeds, st.lists(st.integers(0, 50), min_size=1, max_size=5))
def test_a_batch_is_a_function_of_seed_and_step(bundle, count, size, seed, steps):
    texts = Texts({"harmful": [example(i) for i in range(count)]}, bundle)
    begin = partial(texts.stream, "response", "refusal", of="harmful", batch_size=size)
    used = begin(seed=seed, edit=cut)
    for step in steps:  # in any order, whatever was served before
        np.random.seed(step)
        assert same(used(step), begin(seed=seed, edit=cut)(step))


@given(seeds, st.integers(0, 50))
def test_an_edit_is_a_function_of_seed_step_and_place_alone(bundle, seed, step):
    """The generator an edit gets depends on neither the text nor the number of rows."""
    drawn = {}

    def draw(key, row, generator):
        drawn.setdefault(key, []).append(float(generator.random()))
        return row

    for key, count, size, at, start in (
        ("plain", 20, 4, seed, step),
        ("more text", 9, 4, seed, step),
        ("longer batch", 20, 7, seed, step),
        ("another seed", 20, 4, seed + 1, step),
        ("another step", 20, 4, seed, step + 1),
    ):
        texts = Texts({"harmful": [example(i) for i in range(count)]}, bundle)
        texts.stream("response", of="harmful", batch_size=size, seed=at, edit=partial(draw, key))(
            start
        )
    assert drawn["plain"] == drawn["more text"] == drawn["longer batch"][:4]
    assert len(set(drawn["plain"])) == 4, "every place has its own"
    assert not {*drawn["plain"]} & {*drawn["another seed"], *drawn["another step"]}


def test_an_edit_sees_the_answers_of_one_row_in_the_order_asked_for(texts):
    seen = []

    def look(row, generator):
        seen.append(row)
        return row

    given_ = texts(harmful=[example(0)])
    stream = given_.stream("refusal", "response", of="harmful", batch_size=1, seed=0, edit=look)
    stream(0)
    assert seen == given_.rows("refusal", "response", of="harmful") == list(stream.rows)


@given(st.integers(0, 6), seeds)
def test_silent_tokens_carry_no_loss(bundle, silent, seed):
    """What a method puts before an answer is read, and not learned."""
    prefix = (7,) * silent

    def put(row, generator):
        return tuple(Encoded(a.prompt, prefix + a.response, silent) for a in row)

    texts = Texts({"harmful": [example(i) for i in range(5)]}, bundle)
    begin = partial(texts.stream, "response", of="harmful", batch_size=3, seed=seed)
    plain, edited = begin().one(0), begin(edit=put).one(0)
    for row in range(3):
        prompt, response = tokens(plain, row)
        assert tokens(edited, row) == (prompt, prefix + response)
        first = edited.first_B[row]
        assert (edited.labels_BT[row, : first + silent] == IGNORED).all()
        spoken = edited.labels_BT[row][edited.labels_BT[row] != IGNORED]
        assert tuple(spoken.tolist()) == response


def test_one_is_for_a_single_answer(texts):
    given_ = texts(harmful=[example(0)])
    one = given_.stream("response", of="harmful", batch_size=2, seed=0)
    assert same([one.one(3)], one(3))
    with pytest.raises(ValueError, match="unpack"):
        given_.stream("response", "refusal", of="harmful", batch_size=2, seed=0).one(0)


def test_batches_are_padded_with_the_padding_token_of_the_tokenizer(texts, new_bundle):
    given_ = texts(harmful=[example(0), example(1, response="tol " + LONG[:39])])
    batch = given_.stream("response", of="harmful", batch_size=2, seed=0).one(0)
    assert batch.mask_BT.sum(1).unique().numel() == 2
    pad = new_bundle().tokenizer.pad_token_id
    assert (batch.input_BT[batch.mask_BT == 0] == pad).all()


# -- what is cut, what is left out -----------------------------------------------------------------


def test_rows_without_room_are_left_out_once_and_nothing_else(texts, new_bundle):
    small = new_bundle(max_length=32)
    short = [example(0), example(1)]
    given_ = texts(small, harmful=[short[0], example(2, prompt=LONG), short[1]])
    rows = given_.rows("response", "refusal", of="harmful")
    assert rows == [
        (small.encode(e, e.response, 32), small.encode(e, e.refusal, 32)) for e in short
    ]
    stream = given_.stream("response", of="harmful", batch_size=3, seed=0)
    assert len(stream.rows) == 2 and isinstance(stream, Batches)


def test_a_row_stays_if_every_answer_has_a_token(texts, new_bundle):
    prompt = len(new_bundle().prompt(example(0)))
    for room, left in ((0, 0), (1, 1), (2, 1)):
        given_ = texts(new_bundle(max_length=prompt + room), harmful=[example(0)])
        if left:
            [(response, refusal)] = given_.rows("response", "refusal", of="harmful")
            assert len(response.response) == len(refusal.response) == room
            continue
        with pytest.raises(StudyError, match=r"no training example fits.*runtime\.max_length"):
            given_.rows("response", "refusal", of="harmful")


def test_a_missing_answer_is_told(texts):
    given_ = texts(harmful=[example(0), example(1, response=None)])
    with pytest.raises(StudyError, match="1 of 2 examples have no response"):
        given_.stream("response", of="harmful", batch_size=1, seed=0)
    with pytest.raises(StudyError, match="1 of 2 examples have no response"):
        given_.rows("refusal", "response", of="harmful")
    assert len(given_.rows("refusal", of="harmful")) == 2


def test_what_does_not_fit_is_counted(texts, new_bundle, harm):
    """Against whole encodings: cut answers keep at least one token, left-out examples have room for
    none.
    """
    whole = new_bundle().encode(harm[0], harm[0].response)
    p, n = len(whole.prompt), len(whole.prompt) + len(whole.response)
    longer = [replace(e, refusal=f"{e.refusal} sorry") for e in harm[:9]]  # else all are as long
    for length, expected in (
        (n + 1, {}),
        (n, {"refusal": (9, 0)}),
        (n - 1, {"response": (9, 0), "refusal": (9, 0)}),
        (p + 1, {"response": (9, 0), "refusal": (9, 0)}),
        (p, {"response": (0, 9), "refusal": (0, 9)}),
        (1, {"response": (0, 9), "refusal": (0, 9)}),
    ):
        said = texts(new_bundle(max_length=length), harmful=longer).unfit()
        assert said == {
            f"harmful {field}": f"{cut} of 9 answers cut, {lost} examples left out "
            f"at {length} tokens"
            for field, (cut, lost) in expected.items()
        }
    assert texts(harmful=()).unfit() == {}


@given(st.integers(1, 40), st.lists(st.integers(1, 12), min_size=1, max_size=8))
def test_what_is_counted_is_what_a_stream_serves(bundle, length, counts):
    examples = [
        example(i, prompt=" ".join(["bal"] * c), refusal=None) for i, c in enumerate(counts)
    ]
    texts = Texts({"harmful": examples}, bundle.having(max_length=length))
    whole = [bundle.encode(e, e.response) for e in examples]
    fits = [w for w in whole if len(w.prompt) < length]
    cut = sum(len(w.prompt) + len(w.response) > length for w in fits)
    said = texts.unfit().get("harmful response")
    if cut or len(fits) < len(whole):
        lost = len(whole) - len(fits)
        assert said and said.startswith(f"{cut} of {len(whole)} answers cut, {lost} examples")
    else:
        assert said is None
    if fits:
        assert [r.prompt for (r,) in texts.rows("response", of="harmful")] == [
            w.prompt for w in fits
        ]


# -- slots -----------------------------------------------------------------------------------------


def test_slots_are_those_with_text(texts):
    given_ = texts(harmful=[example(0)], harmless=[], held_out=[example(1)])
    assert set(given_.slots) == {"harmful", "held_out"}
    assert "harmful" in given_ and "harmless" not in given_ and "repair" not in given_
    assert given_.examples("harmful") == (example(0),)
    assert given_.examples(["held_out", "harmless", "harmful"]) == (example(1), example(0))
    assert given_.examples("repair") == ()


@pytest.mark.parametrize("of", ["repair", ["repair", "harmless"]])
def test_no_text_is_told_with_the_slot_that_lacks_it(texts, of):
    given_ = texts(harmful=[example(0)])
    for ask in (
        lambda: given_.prompts(of),
        lambda: given_.rows("response", of=of),
        lambda: given_.stream("response", of=of, batch_size=1, seed=0),
    ):
        with pytest.raises(StudyError, match="given no text") as caught:
            ask()
        assert "repair" in caught.value.expected


def test_prompts_only(texts, new_bundle):
    given_ = texts(prompts=[example(0, response=None, refusal=None), example(1)])
    assert given_.prompts("prompts") == [new_bundle().prompt(example(i)) for i in (0, 1)]


def test_the_same_text_in_the_words_of_another_model(texts, new_bundle):
    """A stream asks in the wording of its bundle, and so does all that is made of it."""
    wording = Wording(system="you are a helpful assistant", wrapper="please {prompt}")
    plain = new_bundle(max_length=64)
    other = plain.having(wording=wording)
    given_ = texts(plain, harmful=[example(0)])
    asked = given_.under(other)
    assert asked.examples("harmful") == given_.examples("harmful")
    assert asked.prompts("harmful") == [other.prompt(example(0))] != given_.prompts("harmful")
    batch = asked.stream("response", of="harmful", batch_size=1, seed=0).one(0)
    assert tokens(batch, 0)[0] == other.prompt(example(0))
