"""From examples to batches: where the loss falls, what is cut, and that training and evaluation see
the same prompt.
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
    UNLIMITED,
    Encoded,
    Stream,
    collate,
    encode,
    encode_all,
    encode_prompt,
    prompt_text,
    response_text,
    unfit,
)
from titer.data.examples import Example
from titer.errors import StudyError
from titer.measures.forward import answer_logprobs

SPEAKING = (
    "{% for m in messages %}{{ '<|assistant|>' if m['role'] == 'assistant' else '<|user|>' }}{{ m['role'] }}\n"
    "{{ m['content'] }}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>assistant\n{% endif %}"
)
"""Breaks the line after every turn, and repeats the role, as many templates do."""
FORGETFUL = (
    "{% if add_generation_prompt %}{% for m in messages %}<|user|>{{ m['content'] }}<|end|>{% endfor %}<|assistant|>"
    "{% else %}<|assistant|>{{ messages[-1]['content'] }}<|end|>{% endif %}"
)
"""Renders earlier turns otherwise once there is an answer."""
STRICT = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn here') }}{% endif %}"
    + SPEAKING
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


# -- what is trained on is what is asked --------------------------------------------------------------------------


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


# -- where the loss falls -----------------------------------------------------------------------------------------


def test_a_batch_written_out():
    rows = [Encoded((5, 6), (7, 0, 1)), Encoded((8, 9, 3), (4,))]
    batch = collate(rows, pad=2)
    assert batch.input_BT.tolist() == [[5, 6, 7, 0, 1], [8, 9, 3, 4, 2]]
    assert batch.mask_BT.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]
    x = IGNORED
    assert batch.labels_BT.tolist() == [[x, x, 7, 0, 1], [x, x, x, 4, x]]


ids = st.lists(st.integers(0, 9), min_size=1, max_size=6).map(tuple)


@given(st.lists(st.builds(Encoded, ids, ids), min_size=1, max_size=6), st.integers(0, 9))
def test_labels_are_the_responses_whatever_the_ids(rows, pad):
    """Token 0 counts like any other, and so does a response token that happens to be the padding
    token.
    """
    batch = collate(rows, pad)
    for row, inputs, mask, labels in zip(
        rows, batch.input_BT, batch.mask_BT, batch.labels_BT, strict=True
    ):
        p, n = len(row.prompt), len(row.prompt) + len(row.response)
        assert inputs[:n].tolist() == [*row.prompt, *row.response] and (inputs[n:] == pad).all()
        assert mask.sum() == n and mask[:n].all()
        assert labels[p:n].tolist() == list(row.response)
        assert (labels[:p] == IGNORED).all() and (labels[n:] == IGNORED).all()


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


# -- what is cut, what is left out --------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [1, 2, 100])
def test_the_response_is_cut_at_its_end_never_the_prompt(tiny, room):
    example = Example(prompt="vexar bal bel")
    whole = encode(tiny.tokenizer, example, "tol til tal", 1000)
    cut = encode(tiny.tokenizer, example, "tol til tal", len(whole.prompt) + room)
    assert cut.prompt == whole.prompt and cut.response == whole.response[:room] != ()


def test_rows_without_room_are_left_out_and_nothing_else(tiny):
    long = Example(prompt=" ".join(["bal"] * 40), response="tol")
    short = [Example(prompt=f"vexar {w}", response="tol") for w in ("bal", "bel")]
    rows = encode_all(tiny.tokenizer, [short[0], long, short[1]], "response", 32)
    assert rows == [encode(tiny.tokenizer, e, "tol", 32) for e in short]
    need = len(rows[0].prompt) + len(rows[0].response)
    assert (
        len(encode_all(tiny.tokenizer, short, "response", need, least=len(rows[0].response))) == 2
    )
    with pytest.raises(
        StudyError, match=r"no training example fits.*runtime\.max_length = 31.*at least 2 answer"
    ):
        encode_all(tiny.tokenizer, [long], "response", 31, least=2)


def test_a_missing_answer_is_told_readably(tiny):
    examples = [Example(prompt="bal", response="tol"), Example(prompt="bel")]
    with pytest.raises(StudyError, match="1 of 2 examples have no response"):
        encode_all(tiny.tokenizer, examples, "response", 32)
    with pytest.raises(StudyError, match="2 of 2 examples have no refusal"):
        encode_all(tiny.tokenizer, examples, "refusal", 32)


# -- batches ------------------------------------------------------------------------------------------------------


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


def test_what_does_not_fit_is_counted(tiny, harm):
    """Against whole encodings: cut answers keep at least one token, left-out examples have room for
    none.
    """
    whole = encode(tiny.tokenizer, harm[0], harm[0].response, UNLIMITED)
    p, n = (
        len(whole.prompt),
        len(whole.prompt) + len(whole.response),
    )  # all prompts and answers of this world are as long
    for length, expected in (
        (n, (0, 0, 9)),
        (n - 1, (9, 0, 9)),
        (p + 1, (9, 0, 9)),
        (p, (0, 9, 9)),
        (1, (0, 9, 9)),
    ):
        assert unfit(tiny.tokenizer, harm[:9], "response", length) == expected
    assert unfit(tiny.tokenizer, (), "response", 5) == (0, 0, 0)
