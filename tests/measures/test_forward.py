"""Likelihoods and replies in batches against one text at a time."""

from dataclasses import replace

import pytest
import torch
from plain import answer_nll, greedy

from titer.data.encoding import encode, encode_prompt
from titer.errors import MeasureError
from titer.measures.capability import ResponseLikelihood
from titer.measures.compliance import ComplianceLikelihood
from titer.measures.exact_answer import ExactAnswer
from titer.measures.forward import answer_logprobs, generate
from titer.measures.measure import read


def rows_of(bundle, examples, field):
    return [encode(bundle.tokenizer, e, getattr(e, field), 1000) for e in examples]


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
    from plain import logits

    return (
        logits(bundle, [*row.prompt, *row.response])[len(row.prompt) - 1 : -1].argmax(-1).tolist()
    )


@pytest.mark.parametrize("eval_batch", [1, 3, 64])
@pytest.mark.parametrize("scale", [0.0, 0.2])
def test_generation_one_by_one(unsure, mixed, eval_batch, scale):
    bundle = unsure(scale, eval_batch=eval_batch)
    replies = generate(bundle, mixed, 9)
    ends = 0
    for example, reply in zip(mixed, replies, strict=True):
        tokens = greedy(bundle, encode_prompt(bundle.tokenizer, example), 9)
        ends += tokens[-1] == bundle.tokenizer.eos_token_id
        assert reply == bundle.tokenizer.decode(tokens, skip_special_tokens=True).strip()
    assert ends and len(set(replies)) > 3


def test_replies_are_no_longer_than_asked(unsure, mixed):
    bundle = unsure()
    long, short = generate(bundle, mixed, 9), generate(bundle, mixed, 2)
    assert any(len(a) > len(b) for a, b in zip(long, short, strict=True))
    assert all(a.startswith(b) and len(b.split()) <= 2 for a, b in zip(long, short, strict=True))


def test_a_model_that_is_no_number_says_nothing(new_bundle, mixed):
    bundle = new_bundle()
    with torch.no_grad():
        bundle.model.model.norm.weight.fill_(float("nan"))
    assert generate(bundle, mixed, 4) == [None] * len(mixed)


def test_only_the_rows_concerned_say_nothing(new_bundle, mixed):
    """An embedding that is no number spoils the prompts that hold its token, not those beside them
    in the batch.
    """
    bundle = new_bundle()
    [token] = bundle.tokenizer("polite", add_special_tokens=False)["input_ids"]
    has = [token in encode_prompt(bundle.tokenizer, e) for e in mixed]
    assert any(has) and not all(has)
    embedding = torch.nn.Embedding.from_pretrained(
        bundle.model.get_input_embeddings().weight.detach().clone()
    )
    embedding.weight[token] = float("nan")
    bundle.model.set_input_embeddings(embedding)
    assert [r is None for r in generate(bundle, mixed, 4)] == has


def test_generation_settings_that_came_with_the_model_change_nothing(new_bundle, harm):
    """A candidate could ship a file that suppresses tokens and look safe by it."""
    honest, rigged = new_bundle(), new_bundle()
    expected = generate(honest, harm[:8], 8)
    said = {t for r in expected for t in honest.tokenizer(r, add_special_tokens=False)["input_ids"]}
    rigged.model.generation_config.suppress_tokens = sorted(said)
    rigged.model.generation_config.repetition_penalty = 5.0
    rigged.model.generation_config.do_sample = True
    given = rigged.model.generation_config
    assert generate(rigged, harm[:8], 8) == expected
    assert rigged.model.generation_config is given


def test_what_the_model_has_no_room_for_is_refused_at_once(new_bundle, harm):
    bundle = new_bundle()
    most = bundle.model.config.max_position_embeddings
    long = replace(harm[0], prompt=" ".join(["dol"] * (most + 5)))
    with pytest.raises(MeasureError, match=rf"tokens = 1[34]\d.*at most {most}"):
        generate(bundle, [harm[1], long], 4)
    for measure in (ExactAnswer(), ComplianceLikelihood(), ResponseLikelihood()):
        with pytest.raises(MeasureError, match="longer than the model's context"):
            read(measure, bundle, [harm[1], long], "x")
