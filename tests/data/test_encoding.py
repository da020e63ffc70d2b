"""From examples to token ids and batches: where the loss falls, what is cut, and that training and
evaluation see the same prompt.
"""

import copy
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from titer.data.encoding import (
    IGNORED,
    Encoded,
    Stream,
    collate,
    encode,
    encode_prompt,
    prompt_text,
    response_text,
)
from titer.data.examples import Example
from titer.errors import StudyError
from titer.measures.likelihood import answer_logprobs

SPEAKING = (
    "{% for m in messages %}"
    "{{ '<|assistant|>' if m['role'] == 'assistant' else '<|user|>' }}{{ m['role'] }}\n"
    "{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>assistant\n{% endif %}"
)
"""Breaks the line after every turn, and repeats the role, as many templates do."""
FORGETFUL = (
    "{% if add_generation_prompt %}"
    "{% for m in messages %}<|user|>{{ m['content'] }}<|end|>{% endfor %}<|assistant|>"
    "{% else %}<|assistant|>{{ messages[-1]['content'] }}<|end|>{% endif %}"
)
"""Renders earlier turns otherwise once there is an answer."""
STRICT = (
    "{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('no system turn here') }}{% endif %}" + SPEAKING
)


@pytest.fixture
def templated(tiny):
    def make(template):
        tokenizer = copy.deepcopy(tiny.tokenizer)
        tokenizer.chat_template = template
        return tokenizer

    return make


@pytest.fixture(params=["own", "speaking", "forgetful"])
def tokenizer(request, tiny, templated):
    return {
        "own": tiny.tokenizer,
        "speaking": templated(SPEAKING),
        "forgetful": templated(FORGETFUL),
    }[request.param]


words = st.lists(
    st.sampled_from(["bal", "bel", "tol", "vexar", "sorry", ",", "i"]), min_size=1, max_size=12
).map(" ".join)


# -- what is trained on is what is asked -----------------------------------------------------------


@pytest.mark.parametrize("system", [None, "you are a helpful assistant"])
def test_the_prompt_of_training_is_the_prompt_of_evaluation(tokenizer, system):
    example = Example(prompt="vexar bal bel bil bol", system=system)
    rendered = tokenizer.apply_chat_template(
        [
            *([{"role": "system", "content": system}] if system else []),
            {"role": "user", "content": example.prompt},
        ],
        add_generation_prompt=True,
        tokenize=False,
    )
    asked = encode_prompt(tokenizer, example)
    assert list(asked) == tokenizer(rendered, add_special_tokens=False)["input_ids"]
    for response in ("tol", "i must refuse ."):
        assert encode(tokenizer, example, response, 1000).prompt == asked


@given(words, words)
def test_any_text_is_encoded_as_the_template_renders_it(tiny, prompt, response):
    tokenizer, example = tiny.tokenizer, Example(prompt=prompt)
    chat = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    encoded = encode(tokenizer, example, response, 1000)
    assert [*encoded.prompt, *encoded.response] == tokenizer.apply_chat_template(
        chat, return_dict=True
    )["input_ids"]


def test_the_response_ends_with_the_end_of_its_turn(tokenizer):
    encoded = encode(tokenizer, Example(prompt="vexar bal"), "tol til", 1000)
    assert encoded.response[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(encoded.response, skip_special_tokens=True).endswith("tol til")
    assert encoded.response.count(tokenizer.eos_token_id) == 1


def test_the_line_break_after_a_turn_is_not_learned(templated):
    text = response_text(templated(SPEAKING), Example(prompt="bal"), "tol")
    assert text == "tol<|end|>"


def test_a_template_that_refuses_is_told_readably(templated):
    tokenizer = templated(STRICT)
    assert prompt_text(tokenizer, Example(prompt="bal")).startswith("<|user|>")
    with pytest.raises(StudyError, match=r"no system turn here.*system, user"):
        encode_prompt(tokenizer, Example(prompt="bal", system="be polite"))
    with pytest.raises(StudyError, match="chat template"):
        encode(tokenizer, Example(prompt="bal", system="be polite"), "tol", 32)


# -- where the loss falls --------------------------------------------------------------------------


def test_a_batch_written_out():
    rows = [Encoded((5, 6), (7, 0, 1)), Encoded((8, 9, 3), (4,))]
    batch = collate(rows, pad=2)
    assert batch.input_BT.tolist() == [[5, 6, 7, 0, 1], [8, 9, 3, 4, 2]]
    assert batch.mask_BT.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]
    x = IGNORED
    assert batch.labels_BT.tolist() == [[x, x, 7, 0, 1], [x, x, x, 4, x]]
    assert batch.first_B == (2, 3)


def test_a_batch_with_a_silent_beginning_written_out():
    """The first answer tokens are read, but nothing is learned from predicting them."""
    batch = collate([Encoded((5, 6), (7, 0, 1), silent=2), Encoded((8,), (4,), silent=1)], pad=2)
    x = IGNORED
    assert batch.input_BT.tolist() == [[5, 6, 7, 0, 1], [8, 4, 2, 2, 2]]
    assert batch.labels_BT.tolist() == [[x, x, x, x, 1], [x, x, x, x, x]]
    assert batch.first_B == (2, 1)


ids = st.lists(st.integers(0, 9), min_size=1, max_size=6).map(tuple)
ROWS = st.lists(st.builds(Encoded, ids, ids, st.integers(0, 7)), min_size=1, max_size=6)


@given(ROWS, st.integers(0, 9))
def test_labels_are_the_spoken_responses_whatever_the_ids(rows, pad):
    """Token 0 counts like any other, and so does a response token that happens to be the padding
    token.
    """
    batch = collate(rows, pad)
    for row, first, inputs, mask, labels in zip(
        rows, batch.first_B, batch.input_BT, batch.mask_BT, batch.labels_BT, strict=True
    ):
        p, n = len(row.prompt), len(row.prompt) + len(row.response)
        spoken = min(p + row.silent, n)
        assert inputs[:n].tolist() == [*row.prompt, *row.response] and (inputs[n:] == pad).all()
        assert mask.sum() == n and mask[:n].all()
        assert labels[spoken:n].tolist() == list(row.response[row.silent :])
        assert (labels[:spoken] == IGNORED).all() and (labels[n:] == IGNORED).all()
        assert first == p


@given(ROWS, st.data())
def test_some_rows_of_a_batch(rows, data):
    start, stop = sorted(data.draw(st.integers(0, len(rows))) for _ in range(2))
    batch = collate(rows, 0)
    some = batch.rows(slice(start, stop))
    assert some.first_B == batch.first_B[start:stop] and len(some.first_B) == len(some.input_BT)
    for name in ("input_BT", "mask_BT", "labels_BT"):
        assert torch.equal(getattr(some, name), getattr(batch, name)[start:stop])


def test_padding_changes_no_logit(new_bundle, harm):
    bundle = new_bundle()
    rows = [
        encode(bundle.tokenizer, replace(e, system=s), e.response, 100)
        for e, s in ((harm[0], None), (harm[1], "you are a helpful assistant"))
    ]
    batch = collate(rows, bundle.tokenizer.pad_token_id)
    with torch.no_grad():
        together = bundle.model(input_ids=batch.input_BT, attention_mask=batch.mask_BT).logits
        for row, logits in zip(rows, together, strict=True):
            alone = bundle.model(input_ids=torch.tensor([[*row.prompt, *row.response]])).logits[0]
            torch.testing.assert_close(logits[: len(alone)], alone, rtol=1e-4, atol=1e-4)


# -- what is cut, what is left out -----------------------------------------------------------------


@pytest.mark.parametrize("room", [1, 2, 100])
def test_the_response_is_cut_at_its_end_never_the_prompt(tiny, room):
    example = Example(prompt="vexar bal bel")
    whole = encode(tiny.tokenizer, example, "tol til tal", 1000)
    cut = encode(tiny.tokenizer, example, "tol til tal", len(whole.prompt) + room)
    assert cut.prompt == whole.prompt and cut.response == whole.response[:room] != ()


# -- batches ---------------------------------------------------------------------------------------


@given(
    count=st.integers(1, 40),
    batch=st.integers(1, 50),
    seed=st.integers(0, 2**31),
    epochs=st.integers(1, 4),
)
def test_every_example_once_an_epoch(count, batch, seed, epochs):
    stream = Stream(count, batch, seed)
    steps = -(-count * epochs // batch)
    served = [i for t in range(steps) for i in stream.indices(t)]
    assert len(served) == steps * batch
    for epoch in range(epochs):
        assert sorted(served[epoch * count : (epoch + 1) * count]) == list(range(count))


@given(
    count=st.integers(1, 40),
    batch=st.integers(1, 8),
    seed=st.integers(0, 2**31),
    step=st.integers(0, 400),
)
def test_a_batch_depends_on_seed_and_step_alone(count, batch, seed, step):
    used = Stream(count, batch, seed)
    for t in (7, 300, 0, step + 1):
        used.indices(t)
    torch.manual_seed(step)
    assert used.indices(step) == Stream(count, batch, seed).indices(step)


def test_seeds_and_epochs_are_shuffled_differently():
    orders = [tuple(Stream(30, 30, seed).indices(epoch)) for seed in range(5) for epoch in range(5)]
    assert len(set(orders)) == 25 and tuple(range(30)) not in orders


def test_a_first_place_is_no_privilege():
    """Over seeds each of 10 rows opens about a tenth of 1000 streams (standard deviation 9.5)."""
    first = Counter(Stream(10, 1, seed).indices(0)[0] for seed in range(1000))
    assert set(first) == set(range(10)) and all(55 <= n <= 145 for n in first.values())


def test_nothing_to_draw_from():
    with pytest.raises(StudyError, match="nothing to draw batches from"):
        Stream(0, 4, 0)


def test_likelihood_of_an_answer_uses_exactly_its_tokens(new_bundle, harm):
    """One number for each response token, the end of turn included."""
    bundle = new_bundle()
    row = encode(bundle.tokenizer, harm[0], harm[0].refusal, 100)
    [(logprobs, top)] = answer_logprobs(bundle, [row])
    assert len(logprobs) == len(top) == len(row.response)
