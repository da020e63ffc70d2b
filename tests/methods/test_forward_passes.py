"""Shared forward passes on ten architectures against transformers' own outputs and plain loops."""

import math
from dataclasses import replace

import pytest
import torch
import transformers

from helpers.architectures import LAYERS, NAMES, adapted, build, rows
from titer.data.encoding import IGNORED
from titer.errors import RunError
from titer.methods import anatomy
from titer.methods.forward import (
    answer_lengths,
    answer_logprob_B,
    lens,
    lens_ce,
    lens_logits,
    outputs,
)
from titer.methods.losses import response_ce

BOTH = pytest.mark.parametrize("make", [build, adapted], ids=["bare", "lora"])
EVERY = pytest.mark.parametrize("name", NAMES)


@BOTH
@EVERY
@torch.no_grad()
def test_outputs_are_transformers_own(name, make):
    model, batch = make(name), rows()
    out = outputs(model, batch, hidden=True)
    theirs = model(
        input_ids=batch.input_BT,
        attention_mask=batch.mask_BT,
        use_cache=False,
        output_hidden_states=True,
    )
    assert torch.equal(out.logits_BTV, theirs.logits)
    assert len(out.hidden_LBTD) == LAYERS + 1
    if name == "mamba":  # leaves the embedding out, and gives the last block's output instead
        ours = (*out.hidden_LBTD[1:-1], out.last_BTD, out.hidden_LBTD[-1])
        assert torch.equal(out.hidden_LBTD[0], anatomy.embedding(model)(batch.input_BT))
    else:
        ours = out.hidden_LBTD
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs.hidden_states, strict=True))
    assert outputs(model, batch).hidden_LBTD is None
    assert torch.equal(outputs(model, batch).logits_BTV, theirs.logits)


@EVERY
def test_hidden_states_are_on_the_way_to_the_loss(name):
    out = outputs(build(name), rows(), hidden=True)
    found = torch.autograd.grad(out.logits_BTV.square().mean(), [*out.hidden_LBTD, out.last_BTD])
    assert all(g.abs().sum() > 0 for g in found)


@torch.no_grad()
def test_hidden_states_are_those_the_next_block_reads():
    """Also after transformers has put its own hooks on, which see the state before the delta."""
    model, batch = build("llama"), rows()
    model(input_ids=batch.input_BT, output_hidden_states=True)
    plain = outputs(model, batch, hidden=True)
    with anatomy.perturbed(anatomy.blocks(model)[:1], [torch.ones(32)]):
        moved = outputs(model, batch, hidden=True)
    torch.testing.assert_close(moved.hidden_LBTD[1], plain.hidden_LBTD[1] + 1)
    assert not torch.allclose(moved.logits_BTV, plain.logits_BTV, atol=1e-2)


def test_a_skipped_block_is_told():
    model = build("opt", layerdrop=1.0).train()
    with pytest.raises(RunError, match="did not run every block once"):
        outputs(model, rows(), hidden=True)


@BOTH
@EVERY
@torch.no_grad()
def test_answer_logprob_is_the_sum_over_response_tokens(name, make):
    model, batch = make(name), rows()
    logits_BTV = model(input_ids=batch.input_BT, attention_mask=batch.mask_BT).logits
    sums, lengths = [], []
    for row, labels, ids in zip(logits_BTV, batch.labels_BT, batch.input_BT, strict=True):
        total, count = 0.0, 0
        for t in range(1, len(ids)):
            if labels[t] != IGNORED:
                total += math.log(row[t - 1].double().softmax(0)[ids[t]])
                count += 1
        sums.append(total)
        lengths.append(count)
    torch.testing.assert_close(
        answer_logprob_B(model, batch).double(), torch.tensor(sums).double(), rtol=1e-5, atol=1e-5
    )
    assert answer_lengths(batch).tolist() == lengths == [5, 4, 3]


def test_a_row_without_response_and_a_response_at_the_very_start():
    batch = rows()
    labels_BT = batch.labels_BT.clone()
    labels_BT[0] = IGNORED
    labels_BT[1] = batch.input_BT[1]  # its first token is predicted by nothing
    changed = replace(batch, labels_BT=labels_BT)
    assert answer_lengths(changed).tolist() == [0, 6, 3]
    logprob_B = answer_logprob_B(build("llama"), changed)
    assert logprob_B[0] == 0 and logprob_B[1] < 0
    logprob_B.sum().backward()


@BOTH
@EVERY
@torch.no_grad()
def test_the_lens_of_the_last_block_gives_the_models_logits_exactly(name, make):
    model = make(name)
    out = outputs(model, rows(), hidden=True)
    assert torch.equal(lens_logits(model, out.last_BTD), out.logits_BTV)
    found = list(lens(model, out))
    assert len(found) == LAYERS + 1 and torch.equal(found[-1], out.logits_BTV)
    for made, hidden_BTD in zip(found, out.hidden_LBTD[:-1], strict=False):
        assert torch.equal(made, lens_logits(model, hidden_BTD))
        assert not torch.allclose(made, out.logits_BTV, atol=1e-2)


@torch.no_grad()
def test_the_lens_puts_gemmas_cap_on_every_layer():
    model = build("gemma3")
    out = outputs(model, rows(), hidden=True)
    uncapped = model.lm_head(model.model.norm(out.hidden_LBTD[1]))
    assert uncapped.abs().max() > 2  # the configured cap
    torch.testing.assert_close(list(lens(model, out))[1], 2 * torch.tanh(uncapped / 2))


@pytest.mark.parametrize(
    ("family", "more"), [("Cohere", {"logit_scale": 0.25}), ("Granite", {"logits_scaling": 8.0})]
)
@torch.no_grad()
def test_the_lens_scales_logits_as_the_configuration_says(family, more):
    config = getattr(transformers, f"{family}Config")(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **more,
    )
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    out = outputs(model, rows(), hidden=True)
    assert torch.equal(lens_logits(model, out.last_BTD), out.logits_BTV)
    assert len(list(lens(model, out))) == 3


@torch.no_grad()
def test_the_lens_reads_through_opts_projections():
    model = build("opt", word_embed_proj_dim=24)
    out = outputs(model, rows(), hidden=True)
    assert [h.shape[-1] for h in out.hidden_LBTD] == [32, 32, 24]
    assert torch.equal(lens_logits(model, out.last_BTD), out.logits_BTV)


@BOTH
@EVERY
def test_lens_ce_is_the_mean_over_labelled_positions_of_every_layer(name, make):
    model, batch = make(name), rows()
    out = outputs(model, batch, hidden=True)
    found = lens_ce(model, out, batch.labels_BT)
    for ce, logits_BTV in zip(found, lens(model, out), strict=True):
        picked = [
            -logits_BTV[b, t - 1].double().log_softmax(0)[batch.labels_BT[b, t]]
            for b in range(3)
            for t in range(1, 7)
            if batch.labels_BT[b, t] != IGNORED
        ]
        torch.testing.assert_close(ce.double(), torch.stack(picked).mean(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[-1], response_ce(model, batch))
    trained = [p for p in anatomy.blocks(model)[0].parameters() if p.requires_grad]
    gradients = torch.autograd.grad(found[1], trained, allow_unused=True)
    assert any(g is not None and g.abs().sum() > 0 for g in gradients)


def test_nothing_labelled_gives_zeros_with_a_gradient():
    model, batch = build("llama"), rows()
    found = lens_ce(
        model, outputs(model, batch, hidden=True), torch.full_like(batch.labels_BT, IGNORED)
    )
    assert found.tolist() == [0, 0, 0]
    found.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_the_lens_calls_the_unembedding_as_a_module():
    """Once a layer below the last, and once to see that its logits are the model's."""
    model, batch, calls = build("qwen3"), rows(), []
    out = outputs(model, batch, hidden=True)
    handle = model.lm_head.register_forward_hook(lambda *_: calls.append(1))
    lens_ce(model, out, batch.labels_BT)
    handle.remove()
    assert len(calls) == LAYERS + 1


def test_a_lens_that_would_not_be_the_models_is_refused():
    model, batch = build("gemma3"), rows()
    out = outputs(model, batch, hidden=True)
    model.config.final_logit_softcapping = None  # as if nothing here knew of it
    with pytest.raises(RunError, match="Gemma3ForCausalLM turns hidden states into logits"):
        lens_ce(model, out, batch.labels_BT)
    with pytest.raises(RunError, match="kept no hidden states"):
        list(lens(model, outputs(model, batch)))
