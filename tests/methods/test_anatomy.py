"""Parts of ten architectures, bare and under adapters, against names written out by hand and
against what the models compute.
"""

import pytest
import torch
import transformers
from torch import nn

from helpers.architectures import LAYERS, NAMES, WITH_ATTENTION, adapted, build, rows
from titer.errors import RunError
from titer.methods import anatomy

BOTH = pytest.mark.parametrize("make", [build, adapted], ids=["bare", "lora"])
EVERY = pytest.mark.parametrize("name", NAMES)
ATTENTIVE = pytest.mark.parametrize("name", WITH_ATTENTION)

WHERE = {  # list of blocks, attention and its end, MLP and its ends, final norm, embedding
    "llama": (
        "model.layers",
        "self_attn",
        "o_proj",
        "mlp",
        ["mlp.down_proj"],
        "norm",
        "embed_tokens",
    ),
    "gpt2": ("transformer.h", "attn", "c_proj", "mlp", ["mlp.c_proj"], "ln_f", "wte"),
    "gpt_neox": (
        "gpt_neox.layers",
        "attention",
        "dense",
        "mlp",
        ["mlp.dense_4h_to_h"],
        "final_layer_norm",
        "embed_in",
    ),
    "opt": (
        "model.decoder.layers",
        "self_attn",
        "out_proj",
        "fc2",
        ["fc2"],
        "final_layer_norm",
        "embed_tokens",
    ),
    "falcon": (
        "transformer.h",
        "self_attention",
        "dense",
        "mlp",
        ["mlp.dense_4h_to_h"],
        "ln_f",
        "word_embeddings",
    ),
    "mixtral": (
        "model.layers",
        "self_attn",
        "o_proj",
        "mlp",
        ["mlp.experts"],
        "norm",
        "embed_tokens",
    ),
    "qwen2_moe": (
        "model.layers",
        "self_attn",
        "o_proj",
        "mlp",
        ["mlp.experts", "mlp.shared_expert.down_proj"],
        "norm",
        "embed_tokens",
    ),
}
WHERE |= {"qwen3": WHERE["llama"], "gemma3": WHERE["llama"]}


def forward(model, **more):
    batch = rows()
    return model(input_ids=batch.input_BT, attention_mask=batch.mask_BT, use_cache=False, **more)


def stream(model):
    """transformers' own hidden states before the final norm: what the first block reads, then what
    each but the last gives. Mamba leaves the first out and gives them all."""
    return forward(model, output_hidden_states=True).hidden_states[:-1]


@BOTH
@ATTENTIVE
def test_parts_are_where_they_are(name, make):
    model = make(name)
    stack, attention, attention_end, mlp, mlp_ends, norm, embedding = WHERE[name]
    inner = anatomy.plain(model)
    at = inner.get_submodule
    each = range(LAYERS)
    assert type(inner) is type(build(name))
    assert anatomy.blocks(model) == [at(f"{stack}.{i}") for i in each]
    assert anatomy.attentions(model) == [at(f"{stack}.{i}.{attention}") for i in each]
    assert anatomy.mlps(model) == [at(f"{stack}.{i}.{mlp}") for i in each]
    assert anatomy.attention_out(model) == [
        at(f"{stack}.{i}.{attention}.{attention_end}") for i in each
    ]
    assert anatomy.mlp_out(model) == [at(f"{stack}.{i}.{end}") for i in each for end in mlp_ends]
    holder = stack.rpartition(".")[0]
    assert anatomy.final_norm(model) is at(f"{holder}.{norm}")
    assert anatomy.embedding(model) is at(f"{holder}.{embedding}")
    assert anatomy.unembedding(model) is inner.lm_head


def test_mamba_has_blocks_but_neither_attention_nor_mlp():
    model = build("mamba")
    assert anatomy.blocks(model) == list(model.backbone.layers)
    assert anatomy.final_norm(model) is model.backbone.norm_f
    for part in (anatomy.attentions, anatomy.mlps, anatomy.attention_out, anatomy.mlp_out):
        with pytest.raises(RunError, match=r"MambaForCausalLM has no (attention|MLP) in block 0"):
            part(model)


@EVERY
def test_weights_have_the_same_names_bare_and_adapted(name):
    model, wrapped = build(name), adapted(name)
    found = anatomy.linear_weights(model)
    stack = next(n for n, m in model.named_modules() if isinstance(m, nn.ModuleList))
    own = dict(model.named_parameters())
    inside = {
        n for n, p in own.items() if n.startswith(stack) and p.dim() == 2 and "A_log" not in n
    }
    assert set(found) == inside and all(found[n] is own[n] for n in found)
    with torch.no_grad():
        forward(wrapped)  # peft puts the weights of experts aside while it runs
    again = anatomy.linear_weights(wrapped)
    assert list(again) == list(found) and all(torch.equal(again[n], found[n]) for n in found)
    trained = {id(p) for p in wrapped.parameters()}
    assert all(id(p) in trained and isinstance(p, nn.Parameter) for p in again.values())


@EVERY
def test_stacked_experts_are_found_apart(name):
    model, wrapped = build(name), adapted(name)
    found, again = anatomy.expert_weights(model), anatomy.expert_weights(wrapped)
    own = dict(model.named_parameters())
    assert set(found) == {n for n in own if "experts." in n and "shared" not in n}
    assert len(found) == (2 * LAYERS if name in ("mixtral", "qwen2_moe") else 0)
    assert set(again) == set(found) and all(torch.equal(again[n], found[n]) for n in found)


def test_a_model_without_a_final_norm_is_refused():
    with pytest.raises(RunError, match="OPTForCausalLM has no final norm"):
        anatomy.final_norm(build("opt", do_layer_norm_before=False))


def test_an_encoder_decoder_is_refused():
    config = transformers.T5Config(
        vocab_size=100, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4
    )
    with pytest.raises(RunError, match="T5ForConditionalGeneration keeps its blocks in no known"):
        anatomy.blocks(transformers.T5ForConditionalGeneration(config))


@BOTH
@EVERY
def test_captured_blocks_are_the_hidden_states(name, make):
    model = make(name)
    with torch.no_grad(), anatomy.captured(anatomy.blocks(model)) as seen:
        states = stream(model)
    after = states if name == "mamba" else states[1:]
    assert len(seen) == LAYERS
    assert all(torch.equal(a, b) for a, b in zip(seen, after, strict=False))


@BOTH
@ATTENTIVE
def test_captured_attentions_and_mlps_add_up_to_what_blocks_add(name, make):
    """Falcon adds one to the other in place, which must not show. Gemma norms them first."""
    model = make(name)
    inside = [
        anatomy.attentions(model)[0],
        anatomy.mlps(model)[0],
        anatomy.attention_out(model)[0],
        anatomy.mlp_out(model)[0],
    ]
    outputs = []
    for module in inside:
        with torch.no_grad(), anatomy.captured([module]) as seen:
            before, after = stream(model)
        outputs.append(seen[0].reshape(before.shape))
    attention, mlp, attention_end, mlp_end = outputs
    torch.testing.assert_close(attention, attention_end)
    if name != "qwen2_moe":  # has a shared expert too
        torch.testing.assert_close(mlp, mlp_end)
    if name == "gemma3":
        block = anatomy.blocks(model)[0]
        attention = block.post_attention_layernorm(attention)
        mlp = block.post_feedforward_layernorm(mlp)
    torch.testing.assert_close(before + attention + mlp, after)


@EVERY
def test_captured_outputs_are_on_the_way_to_the_loss(name):
    model = build(name)
    modules = anatomy.blocks(model) + ([] if name == "mamba" else anatomy.mlps(model))
    with anatomy.captured(modules) as seen:
        loss = forward(model).logits.float().square().mean()
    gradients = torch.autograd.grad(loss, seen)
    assert len(gradients) == len(modules) and all(g.abs().sum() > 0 for g in gradients)


@ATTENTIVE
def test_perturbing_an_output_is_adding_to_its_bias(name):
    model = build(name)
    generator = torch.Generator().manual_seed(4)
    deltas = [torch.randn(32, generator=generator) for _ in range(LAYERS)]
    ends = anatomy.attention_out(model)
    with torch.no_grad(), anatomy.perturbed(ends, deltas):
        perturbed = forward(model).logits
    with torch.no_grad():
        plain = forward(model).logits
        for module, delta in zip(ends, deltas, strict=True):
            old = 0 if module.bias is None else module.bias
            module.bias = nn.Parameter(old + delta)
        torch.testing.assert_close(perturbed, forward(model).logits)
    assert not torch.allclose(perturbed, plain, atol=1e-2)


@BOTH
@EVERY
def test_perturbing_the_last_block_moves_what_the_final_norm_reads(name, make):
    model, last = make(name), []
    delta_BTD = torch.randn(3, 7, 32, generator=torch.Generator().manual_seed(5))
    delta_BTD.requires_grad_()
    final = anatomy.final_norm(model)
    handle = final.register_forward_pre_hook(lambda module, args: last.append(args[0].detach()))
    forward(model)
    with anatomy.perturbed(anatomy.blocks(model)[-1:], [delta_BTD]):
        logits = forward(model).logits
    handle.remove()
    torch.testing.assert_close(last[1], last[0] + delta_BTD.detach())
    assert torch.autograd.grad(logits.square().sum(), delta_BTD)[0].abs().sum() > 0


def test_a_delta_fits_modules_that_flatten_rows_and_tokens():
    model = build("opt")
    delta_BTD = torch.randn(3, 7, 32, generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        with anatomy.perturbed(anatomy.mlps(model)[-1:], [delta_BTD]):
            inside = forward(model).logits
        with anatomy.perturbed(anatomy.blocks(model)[-1:], [delta_BTD]):
            torch.testing.assert_close(inside, forward(model).logits)


def test_captured_inside_perturbed_holds_the_sum():
    module, delta = nn.Linear(3, 3), torch.ones(3)
    with anatomy.perturbed([module], [delta]), anatomy.captured([module]) as seen:
        module(torch.zeros(1, 3))
    torch.testing.assert_close(seen[0], module.bias[None] + 1)


def test_no_hook_outlives_its_context():
    module = nn.Linear(3, 3)
    with pytest.raises(ZeroDivisionError), anatomy.captured([module]) as seen:
        module(torch.zeros(1, 3))
        raise ZeroDivisionError
    with anatomy.perturbed([module], [torch.ones(3)]):
        pass
    torch.testing.assert_close(module(torch.zeros(1, 3)), module.bias[None])
    assert len(seen) == 1 and not module._forward_hooks


def test_a_module_without_a_hidden_state_and_a_missing_delta_are_refused():
    class Odd(nn.Module):
        def forward(self, x):
            return {"x": x}

    with pytest.raises(RunError, match="no hidden state"), anatomy.captured([odd := Odd()]):
        odd(torch.zeros(1))
    with pytest.raises(ValueError), anatomy.perturbed([nn.Linear(2, 2)], []):
        pass
