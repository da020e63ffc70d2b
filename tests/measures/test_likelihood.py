"""Likelihoods of answers and openings in batches against one text at a time."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.plain import answer_nll, logits
from titer.data.bundle import ModelBundle
from titer.measures.likelihood import answer_logprobs, opening_logprobs


def rows_of(bundle, examples, field):
    return [bundle.encode(e, getattr(e, field)) for e in examples]


@pytest.mark.parametrize("eval_batch", [1, 3, 64])
def test_answer_logprobs_one_by_one(unsure, mixed, eval_batch):
    bundle = unsure(eval_batch=eval_batch)
    rows = [r for f in ("response", "refusal") for r in rows_of(bundle, mixed, f)]
    assert len({len(r.prompt) for r in rows}) > 2 and len({len(r.response) for r in rows}) >= 1
    with torch.no_grad():
        results = answer_logprobs(bundle, rows)
    for row, (logprobs, top) in zip(rows, results, strict=True):
        assert (-logprobs).tolist() == pytest.approx(
            answer_nll(bundle, row.prompt, row.response), rel=1e-4, abs=1e-5
        )
        reply = greedy_given(bundle, row)
        assert top.tolist() == [a == b for a, b in zip(reply, row.response, strict=True)]


def greedy_given(bundle, row):
    """The most likely token at each place of the response, given the response before it."""
    return (
        logits(bundle, [*row.prompt, *row.response])[len(row.prompt) - 1 : -1].argmax(-1).tolist()
    )


# -- openings --------------------------------------------------------------------------------------

token = st.integers(0, 255)
prompts = st.integers(0, 6).flatmap(
    lambda shared: st.builds(
        lambda head, tails: [tuple(head + tail) for tail in tails],
        st.lists(token, min_size=shared, max_size=shared),
        st.lists(st.lists(token, min_size=1, max_size=9), min_size=1, max_size=5),
    )
)
# Few token ids, so that openings often begin alike, repeat or contain one another.
openings = st.lists(st.lists(st.integers(100, 103), min_size=1, max_size=4), min_size=1, max_size=6)


@settings(max_examples=60)
@given(prompts=prompts, openings=openings, eval_batch=st.integers(1, 4))
def test_openings_equal_reading_in_full(tiny, prompts, openings, eval_batch):
    bundle = ModelBundle(
        model=tiny.model,
        tokenizer=tiny.tokenizer,
        device=torch.device("cpu"),
        eval_batch=eval_batch,
    )
    with torch.no_grad():
        found = opening_logprobs(bundle, prompts, openings)
    for prompt, row in zip(prompts, found, strict=True):
        full = [-math.fsum(answer_nll(bundle, prompt, opening)) for opening in openings]
        assert row == pytest.approx(full, rel=1e-4, abs=2e-3)


def test_order_and_company_of_prompts_do_not_matter(new_bundle, mixed):
    bundle = new_bundle(eval_batch=3)
    asked = [bundle.prompt(e) for e in mixed]
    ids = [[120, 7], [130], [120, 9, 4]]
    with torch.no_grad():
        together = opening_logprobs(bundle, asked, ids)
        backwards = opening_logprobs(bundle, asked[::-1], ids)[::-1]
        alone = [opening_logprobs(bundle, [p], ids)[0] for p in asked]
    for a, b, c in zip(together, backwards, alone, strict=True):
        assert a == pytest.approx(b, abs=1e-3) and a == pytest.approx(c, abs=1e-3)


def test_nothing_to_read(new_bundle):
    assert opening_logprobs(new_bundle(), [], [[5]]) == []
    assert opening_logprobs(new_bundle(), [(4, 5)], []) == [[]]
    assert answer_logprobs(new_bundle(), []) == []
