"""Likelihoods, openings and replies of many architectures against reading each text alone and in
full: padding, caches, windows and positions must be of no consequence.
"""

import math
import random
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model

from helpers.measured_architectures import (
    END,
    EVERY,
    FULL,
    RECURRENT,
    VOCABULARY,
    WINDOW,
    WINDOWED,
    build,
    bundle_of,
)
from helpers.plain import answer_nll, greedy
from titer.data.encoding import Encoded
from titer.measures import likelihood
from titer.measures.abilities import can_continue, window
from titer.measures.generate import generate
from titer.measures.likelihood import answer_logprobs, opening_logprobs


def _prompts(head, tails, seed=1):
    draw = random.Random(seed)
    words = [draw.randrange(3, VOCABULARY) for _ in range(head)]
    return [(*words, *(draw.randrange(3, VOCABULARY) for _ in range(n))) for n in tails]


LONG = _prompts(6, (3, 9, 14, 20, 5, 11, 30))
"""Of uneven lengths, longer than the window, with a shared beginning."""
OPENINGS = [[5], [6, 7], [6, 8, 9], [10, 11, 12, 13], [20, 21]]


def in_full(bundle, prompts, openings):
    return [[-math.fsum(answer_nll(bundle, p, o)) for o in openings] for p in prompts]


def close(found, expected, within=1e-4):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a == pytest.approx(b, abs=within)
    return True


@pytest.mark.parametrize("eval_batch", [1, 3, 64])
@pytest.mark.parametrize("name", EVERY)
def test_openings_equal_reading_in_full(name, eval_batch):
    bundle = bundle_of(build(name), eval_batch)
    with torch.no_grad():
        found = opening_logprobs(bundle, LONG, OPENINGS)
    assert close(found, in_full(bundle, LONG, OPENINGS))


@pytest.mark.parametrize("name", WINDOWED)
@pytest.mark.parametrize(
    ("head", "tails"),
    [
        (3, (1, 2)),  # all columns fit into the window: 5 of the prompts, 3 of the openings
        (3, (1, 3)),  # one more does not
        (0, (2, 25, 9)),  # nothing shared
        (WINDOW + 4, (1, 3, 19)),  # the head alone is longer
        (2, (1, 2, 30, 31)),  # in batches of two, the first fits and the second does not
    ],
)
def test_openings_at_the_edge_of_a_window(name, head, tails):
    bundle = bundle_of(build(name), 2)
    prompts = _prompts(head, tails, seed=2)
    with torch.no_grad():
        found = opening_logprobs(bundle, prompts, OPENINGS)
    assert close(found, in_full(bundle, prompts, OPENINGS))


@pytest.mark.parametrize("name", EVERY)
def test_answers_equal_reading_in_full(name):
    bundle = bundle_of(build(name))
    rows = [Encoded(p, tuple(OPENINGS[i % len(OPENINGS)])) for i, p in enumerate(LONG)]
    with torch.no_grad():
        found = answer_logprobs(bundle, rows)
    for row, (logprobs, _) in zip(rows, found, strict=True):
        expected = [-x for x in answer_nll(bundle, row.prompt, row.response)]
        assert logprobs.tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", EVERY)
def test_replies_equal_greedy_decoding(name):
    bundle = bundle_of(build(name))
    expected = []
    for prompt in LONG:
        said = greedy(bundle, prompt, 12)
        expected.append(" ".join(str(t) for t in said if t != END))
    assert generate(bundle, LONG, 12) == expected
    assert len(set(expected)) > 3


@pytest.mark.parametrize("name", WINDOWED)
def test_a_window_that_is_overlooked_is_noticed(name, monkeypatch):
    """The tests above can fail: sharing a head that the window does not reach is far off."""
    monkeypatch.setattr(likelihood, "window", lambda model: None)
    bundle = bundle_of(build(name))
    with torch.no_grad():
        found = opening_logprobs(bundle, LONG, OPENINGS)
    expected = in_full(bundle, LONG, OPENINGS)
    off = max(
        abs(x - y) for a, b in zip(found, expected, strict=True) for x, y in zip(a, b, strict=True)
    )
    assert off > 1


def test_windows_are_found():
    assert {name: window(build(name)) for name in WINDOWED} == dict.fromkeys(WINDOWED, WINDOW)
    assert {name: window(build(name)) for name in FULL} == dict.fromkeys(FULL)
    assert not can_continue(build("mamba")) and not can_continue(build("bloom"))


# -- the fast way stays the fast way ---------------------------------------------------------------


def shapes(bundle, prompts):
    """Shapes of the ids of every forward pass while openings are read."""
    seen = []
    handle = bundle.model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    with torch.no_grad():
        opening_logprobs(bundle, prompts, OPENINGS)
    handle.remove()
    return seen


@pytest.mark.parametrize("name", FULL)
def test_a_shared_head_is_read_once_where_no_window_matters(name):
    stems = 3  # (6, 8), (10, 11, 12) and (20,); (6,) begins (6, 8)
    assert shapes(bundle_of(build(name), 64), LONG) == [(1, 6), (7, 30), (7 * stems, 3)]


@pytest.mark.parametrize("name", WINDOWED)
def test_so_it_is_where_all_columns_fit_into_the_window(name):
    bundle = bundle_of(build(name), 64)
    assert shapes(bundle, _prompts(3, (1, 2))) == [(1, 3), (2, 2), (6, 3)]
    assert shapes(bundle, _prompts(3, (1, 3))) == [(2, 6), (6, 3)]


@pytest.mark.parametrize("name", RECURRENT)
def test_a_past_that_is_not_keys_and_values_is_not_continued(name):
    """Every prompt is read with every opening, in one batch."""
    assert shapes(bundle_of(build(name), 64), LONG)[-1][0] == len(LONG) * len(OPENINGS)


# -- models of other kinds -------------------------------------------------------------------------


class Bare(torch.nn.Module):
    """A forward pass that takes ids and nothing else, and gives all logits and nothing else."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.config = inner, inner.config

    def forward(self, input_ids):
        return SimpleNamespace(logits=self.inner(input_ids=input_ids).logits)


def test_a_forward_pass_that_takes_only_ids():
    bundle = bundle_of(Bare(build("gpt2")))
    with torch.no_grad():
        assert close(opening_logprobs(bundle, LONG, OPENINGS), in_full(bundle, LONG, OPENINGS))
        rows = [Encoded(p, (7, 8)) for p in LONG]
        for row, (logprobs, _) in zip(rows, answer_logprobs(bundle, rows), strict=True):
            expected = [-x for x in answer_nll(bundle, row.prompt, row.response)]
            assert logprobs.tolist() == pytest.approx(expected, abs=1e-4)


def test_under_an_adapter_the_fast_way_is_taken():
    model = build("mistral")
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.3)
    bundle = bundle_of(adapted.eval(), 64)
    assert can_continue(adapted) and window(adapted) == WINDOW
    with torch.no_grad():
        found = opening_logprobs(bundle, LONG, OPENINGS)
    assert close(found, in_full(bundle, LONG, OPENINGS))
    with torch.no_grad(), adapted.disable_adapter():
        assert not torch.allclose(
            torch.tensor(found), torch.tensor(opening_logprobs(bundle, LONG, OPENINGS)), atol=0.1
        )


def test_a_learned_prompt_of_pefts_is_read_in_full():
    """peft puts it before the text and drops the positions it is given."""
    tuned = get_peft_model(
        build("gpt2"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    ).eval()
    with torch.no_grad():
        tuned.prompt_encoder["default"].embedding.weight.normal_(0, 1)
    bundle = bundle_of(tuned)
    assert not can_continue(tuned)
    with torch.no_grad():
        found = opening_logprobs(bundle, LONG, OPENINGS)
        vectors = tuned.prompt_encoder["default"].embedding.weight[None]
        inner = tuned.get_base_model()
        for prompt, row in zip(LONG, found, strict=True):
            for opening, total in zip(OPENINGS, row, strict=True):
                ids = torch.tensor([[*prompt, *opening]])
                embeds = torch.cat([vectors, inner.get_input_embeddings()(ids)], 1)
                log_p = inner(inputs_embeds=embeds).logits[0].double().log_softmax(-1)
                begin = 4 + len(prompt) - 1
                by_hand = sum(log_p[begin + k, t].item() for k, t in enumerate(opening))
                assert total == pytest.approx(by_hand, abs=1e-4)


# -- soft prompts by placeholder ids ---------------------------------------------------------------


def soften(model, vectors):
    """Let ids beyond the embedding's rows stand for vectors: what a soft-prompt attack installs."""
    embedding = model.get_input_embeddings()
    rows = embedding.weight.shape[0]
    held = {}

    def before(_, args):
        held["ids"] = args[0]
        return (args[0].masked_fill(args[0] >= rows, 0),)

    def after(_, args, output):
        soft = held.pop("ids") - rows
        chosen = vectors[soft.clamp(min=0)].to(output.dtype)
        return torch.where((soft >= 0)[..., None], chosen, output)

    embedding.register_forward_pre_hook(before)
    embedding.register_forward_hook(after)


@pytest.mark.parametrize("name", ["gpt2", "opt", "qwen3", "mistral", "gemma3", "mamba"])
def test_placeholders_pass_through_unharmed(name):
    model = build(name)
    vectors = torch.randn(3, 32, generator=torch.Generator().manual_seed(3))
    prompts = [(*p[:7], VOCABULARY, VOCABULARY + 1, VOCABULARY + 2, *p[7:]) for p in LONG]
    plain = model.get_input_embeddings().weight.detach().clone()
    scale = getattr(model.get_input_embeddings(), "embed_scale", 1.0)  # Gemma's

    def logits_by_hand(ids):
        each = [vectors[i - VOCABULARY] if i >= VOCABULARY else plain[i] * scale for i in ids]
        return model(inputs_embeds=torch.stack(each)[None]).logits[0].double()

    with torch.no_grad():
        expected = [
            [
                sum(
                    logits_by_hand([*p, *o]).log_softmax(-1)[len(p) - 1 + k, t].item()
                    for k, t in enumerate(o)
                )
                for o in OPENINGS
            ]
            for p in prompts
        ]
        said = []
        for p in prompts:
            ids = list(p)
            while len(ids) < len(p) + 6 and ids[-1] != END:
                ids.append(int(logits_by_hand(ids)[-1].argmax()))
            said.append(" ".join(str(t) for t in ids[len(p) :] if t != END))
        soften(model, vectors)
        bundle = bundle_of(model)
        assert close(opening_logprobs(bundle, prompts, OPENINGS), expected)
        rows = [Encoded(p, tuple(OPENINGS[3])) for p in prompts]
        totals = [float(lp.sum()) for lp, _ in answer_logprobs(bundle, rows)]
        assert totals == pytest.approx([row[3] for row in expected], abs=1e-4)
        assert generate(bundle, prompts, 6) == said
