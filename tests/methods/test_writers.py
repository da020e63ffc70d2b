"""What writes to the residual stream of ten architectures: take a direction out of all of it, and
the direction is gone; leave one parameter as it was, and it is back.
"""

import pytest
import torch
import transformers
from torch import nn

from helpers.architectures import LAYERS, NAMES, adapted, build, rows
from titer.errors import RunError
from titer.methods.forward import outputs
from titer.methods.writers import Writer, writers

BOTH = pytest.mark.parametrize("make", [build, adapted], ids=["bare", "lora"])
EVERY = pytest.mark.parametrize("name", NAMES)


def along(model, directions_KD):
    """Largest part of any state of the stream along any of the directions."""
    with torch.no_grad():
        out = outputs(model, rows(), hidden=True)
    states = [*out.hidden_LBTD[:-1], out.last_BTD]
    return max((h_BTD @ directions_KD.T).abs().max().item() for h_BTD in states)


@BOTH
@EVERY
def test_what_no_writer_writes_is_in_no_hidden_state_and_every_writer_counts(name, make):
    model = make(name)
    generator = torch.Generator().manual_seed(3)
    directions_KD = torch.randn(2, 32, generator=generator)
    assert along(model, directions_KD) > 1
    found = writers(model)
    before = [w.parameter.detach().clone() for w in found]
    after = [w.without(directions_KD) for w in found]
    with torch.no_grad():
        for writer, value in zip(found, after, strict=True):
            writer.parameter.copy_(value)
    assert along(model, directions_KD) < 1e-4
    for writer, old, new in zip(found, before, after, strict=True):
        with torch.no_grad():
            writer.parameter.copy_(old)
            back = along(model, directions_KD)
            writer.parameter.copy_(new)
        assert back > 1e-3, writer.name


@EVERY
def test_writers_know_their_names_and_places(name):
    model, wrapped = build(name), adapted(name)
    own, found = dict(model.named_parameters()), writers(model)
    assert all(own[w.name] is w.parameter for w in found)
    assert {w.block for w in found} == {None, *range(LAYERS)}
    assert {w.role for w in found} <= {"embedding", "attention", "mixer", "mlp"}
    assert all((w.block is None) == (w.role == "embedding") for w in found)
    assert all((w.gain_D is not None) == (name == "gemma3" and w.block is not None) for w in found)
    again = writers(wrapped)
    adapters = [w for w in again if ".lora_B." in w.name]
    assert [w.name for w in again if w not in adapters] == [w.name for w in found]
    assert len(adapters) == {"mamba": 0, "qwen2_moe": 4}.get(name, 2 * LAYERS)
    assert all(w.parameter.shape[w.axis] == 32 and w.axis == 0 for w in adapters)


@pytest.mark.parametrize(("shape", "axis"), [((3, 5), 0), ((5, 3), 1), ((3,), 0), ((2, 3, 5), 1)])
def test_without_takes_out_the_direction_and_nothing_else(shape, axis):
    value = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    writer = Writer("w", nn.Identity(), nn.Parameter(value), axis, "mlp", 0)
    left = writer.without(torch.tensor([0.0, 7.0, 0.0])).movedim(axis, 0)
    expected = value.clone().movedim(axis, 0)
    expected[1] = 0
    torch.testing.assert_close(left, expected)


def test_without_takes_out_a_plane_and_looks_through_gains():
    weight = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    gain = torch.tensor([1.0, 2.0, 0.5, 3.0])
    writer = Writer("w", nn.Identity(), nn.Parameter(weight), 0, "mlp", 0, gain)
    plane = torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 2.0, -1.0]])
    left = writer.without(plane)
    torch.testing.assert_close(plane @ (gain[:, None] * left), torch.zeros(2, 6))
    assert torch.linalg.matrix_rank(weight - left) == 2


@pytest.mark.parametrize("direction", [torch.zeros(32), torch.full((32,), float("nan"))])
def test_a_direction_without_length_is_refused(direction):
    with pytest.raises(RunError, match="0 or not a number"):
        writers(build("llama"))[0].without(direction)


def small(family, **settings):
    config = getattr(transformers, f"{family}Config")(**settings)
    return getattr(transformers, f"{family}ForCausalLM")(config)


def test_models_whose_stream_cannot_be_taken_apart_are_refused():
    with pytest.raises(RunError, match="OPTForCausalLM has no final norm"):
        writers(build("opt", do_layer_norm_before=False))
    sizes = {"vocab_size": 100, "hidden_size": 32}
    bloom = small("Bloom", n_layer=2, n_head=4, **sizes)
    with pytest.raises(RunError, match=r"BloomForCausalLM has a part .*word_embeddings_layernorm"):
        writers(bloom)
    with pytest.raises(RunError, match=r"GPT2LMHeadModel has a part .*crossattention"):
        writers(build("gpt2", add_cross_attention=True))
    doge = small("Doge", num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, **sizes)
    with pytest.raises(RunError, match=r"DogeForCausalLM has a vector .*input_residual"):
        writers(doge)


def test_adapters_other_than_plain_lora_are_refused():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(build("llama"), LoraConfig(target_modules="all-linear", use_dora=True))
    with pytest.raises(RunError, match=r"take apart.*self_attn\.o_proj.*merge_and_unload"):
        writers(model)
