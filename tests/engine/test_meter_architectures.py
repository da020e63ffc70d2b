"""FLOPs of many architectures, small and randomly initialised, against torch's own counter."""

import pytest
import torch

from helpers.architectures import WITH_ATTENTION, adapted, build, rows
from helpers.metering import both, metered
from titer.methods.losses import response_ce

BATCH = rows()
MIXTURES = ("mixtral", "qwen2_moe")


def plain(model):
    """With attention and experts as products that torch's counter knows."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    inner.config._attn_implementation = "eager"
    if inner.config.model_type in MIXTURES:
        inner.set_experts_implementation("eager")
    return model.train()


def step(model):
    return lambda: response_ce(model, BATCH).backward()


@pytest.fixture(params=WITH_ATTENTION)
def name(request):
    return request.param


def test_full_fine_tuning(name):
    mine, torchs = both(step(plain(build(name))))
    assert mine == torchs > 0


def test_lora_on_all_linear_layers(name):
    """peft adapts Mixtral's stacked experts and its router, too."""
    mine, torchs = both(step(plain(adapted(name))))
    assert mine == torchs > 0


def test_only_the_last_block_trained(name):
    model = plain(build(name)).requires_grad_(False)
    blocks = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))
    blocks[-1].requires_grad_(True)
    mine, torchs = both(step(model))
    assert mine == torchs > 0


def test_gradient_to_the_embeddings_only(name):
    model = plain(build(name)).requires_grad_(False)
    start = model.get_input_embeddings()(BATCH.input_BT).detach()
    shift = torch.zeros_like(start, requires_grad=True)

    def one():
        given = {"inputs_embeds": start + shift, "attention_mask": BATCH.mask_BT}
        model(**given).logits.mean().backward()

    mine, torchs = both(one)
    assert mine == torchs > 0


def sample(model):
    # Longer than Gemma's sliding window.
    given = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    return lambda: model.eval().generate(BATCH.input_BT[:1].repeat(2, 1), **given)


def test_sampling_with_a_cache(name):
    mine, torchs = both(sample(plain(build(name))))
    assert mine == torchs > 0


def test_the_fused_kernels_cost_the_same(name):
    model = build(name).train()
    assert metered(step(model)).flops == metered(step(model), exact=True).flops
    assert metered(sample(model)).flops == metered(sample(model), exact=True).flops
    assert metered(step(model)).flops == metered(step(plain(model))).flops


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("backend", ["eager", "batched_mm", "grouped_mm"])
@pytest.mark.parametrize("make", [build, adapted])
def test_however_experts_are_computed_they_cost_the_same(name, backend, make):
    model = plain(make(name))
    reference = metered(step(model)).flops
    inner = model.get_base_model() if make is adapted else model
    inner.set_experts_implementation(backend)
    assert metered(step(model)).flops == reference
    assert metered(step(model), exact=True).flops == reference
