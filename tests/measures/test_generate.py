"""Replies in batches against greedy decoding one token at a time; where they end, and what may not
influence them.
"""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from helpers.plain import greedy
from titer.errors import MeasureError
from titer.measures.capability import ResponseLikelihood
from titer.measures.compliance import ComplianceLikelihood
from titer.measures.exact_answer import ExactAnswer
from titer.measures.generate import generate, stop_tokens
from titer.measures.measure import read


@pytest.mark.parametrize("eval_batch", [1, 3, 64])
@pytest.mark.parametrize("scale", [0.0, 0.2])
def test_generation_one_by_one(unsure, mixed, eval_batch, scale):
    bundle = unsure(scale, eval_batch=eval_batch)
    replies = generate(bundle, mixed, 9)
    ends = 0
    for example, reply in zip(mixed, replies, strict=True):
        tokens = greedy(bundle, bundle.prompt(example), 9)
        ends += tokens[-1] == bundle.tokenizer.eos_token_id
        assert reply == bundle.tokenizer.decode(tokens, skip_special_tokens=True).strip()
    assert ends and len(set(replies)) > 3


def test_replies_are_no_longer_than_asked(unsure, mixed):
    bundle = unsure()
    long, short = generate(bundle, mixed, 9), generate(bundle, mixed, 2)
    assert any(len(a) > len(b) for a, b in zip(long, short, strict=True))
    assert all(a.startswith(b) and len(b.split()) <= 2 for a, b in zip(long, short, strict=True))


# -- where a reply ends ----------------------------------------------------------------------------


def _second_words(bundle, examples):
    """The commonest token at the second place of the replies: a stop token that matters."""
    second = [greedy(bundle, bundle.prompt(e), 2)[-1] for e in examples]
    return max(set(second) - {bundle.tokenizer.eos_token_id}, key=second.count)


@pytest.mark.parametrize(
    "where", ["generation list", "generation int", "config int", "config list"]
)
def test_a_reply_ends_at_every_stop_token_the_model_names(unsure, mixed, where):
    """Chat models end a turn with a token that the tokenizer does not call its end token."""
    bundle = unsure()
    model, end = bundle.model, bundle.tokenizer.eos_token_id
    turn = _second_words(bundle, mixed)
    holder = model.generation_config if where.startswith("generation") else model.config
    holder.eos_token_id = [end, turn] if where.endswith("list") else turn
    assert stop_tokens(bundle) == tuple(sorted({end, turn}))
    stopped = 0
    for example, reply in zip(mixed, generate(bundle, mixed, 9), strict=True):
        tokens = greedy(bundle, bundle.prompt(example), 9, stops={end, turn})
        stopped += tokens[-1] == turn
        said = [t for t in tokens if t not in (end, turn)]
        assert reply == bundle.tokenizer.decode(said, skip_special_tokens=True).strip()
    assert 0 < stopped < len(mixed)


def test_what_follows_a_stop_token_is_no_part_of_the_reply(new_bundle, mixed):
    """Even where a model's own `generate` goes on: the padding after it need not be a special
    token, and may be the beginning of another turn.
    """
    bundle = new_bundle()
    end = bundle.tokenizer.eos_token_id
    first, second, other = bundle.tokenizer("polite helpful sorry", add_special_tokens=False)[
        "input_ids"
    ]
    rows = [[first, second, end, other], [end, other, other, end], [first, second, other, first]]

    def runs_on(input_ids, **_):
        return torch.cat([input_ids, torch.tensor(rows)], 1)

    stand_in = SimpleNamespace(
        generate=runs_on, config=bundle.model.config, generation_config=SimpleNamespace()
    )
    replies = generate(replace(bundle, model=_Callable(stand_in, bundle.model)), [mixed[0]] * 3, 4)
    assert replies == ["polite helpful", "", "polite helpful sorry polite"]


class _Callable:
    """A stand-in for a model whose attributes come from two places."""

    def __init__(self, first, second):
        self.__dict__.update(vars(first))
        self.second = second

    def get_input_embeddings(self):
        return self.second.get_input_embeddings()


def test_a_tokenizer_and_model_without_any_stop_token(new_bundle, mixed):
    bundle = new_bundle()
    silent = _Without(bundle.tokenizer)
    bundle.model.generation_config.eos_token_id = bundle.model.config.eos_token_id = None
    without = replace(bundle, tokenizer=silent)
    assert stop_tokens(without) == ()
    replies = generate(without, mixed[:4], 6)
    for example, reply in zip(mixed[:4], replies, strict=True):
        tokens = greedy(bundle, bundle.prompt(example), 6, stops=set())
        assert reply == bundle.tokenizer.decode(tokens, skip_special_tokens=True).strip()


class _Without:
    """A tokenizer that names no end token."""

    eos_token_id = None

    def __init__(self, inner):
        self.inner = inner

    def __call__(self, *args, **kwargs):
        return self.inner(*args, **kwargs)

    def __getattr__(self, name):
        return getattr(self.inner, name)


# -- models that say nothing, and settings that change nothing -------------------------------------


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
    has = [token in bundle.prompt(e) for e in mixed]
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
