"""FLOPs against torch's own counter, exactly: of what is trained, of what a loss reads, of odd
modules, of second order.
"""

import copy

import pytest
import torch
from torch import nn

from helpers.metering import (
    batch_of,
    both,
    forward,
    last_block,
    metered,
    torch_flops,
    trained,
    with_lora,
)
from titer.methods.losses import response_ce


@pytest.fixture
def bundle(new_bundle):
    return new_bundle()


@pytest.fixture
def model(bundle):
    return trained(bundle)


@pytest.fixture
def batch(bundle, harm):
    return batch_of(bundle, harm[:8])


# -- what is trained -----------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 16])
def test_full_fine_tuning(bundle, model, harm, rows):
    batch = batch_of(bundle, harm[:rows])
    mine, torchs = both(lambda: response_ce(model, batch).backward())
    assert mine == torchs > 0


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_lora_on_all_linear_layers(model, batch, dropout):
    model = with_lora(model, lora_dropout=dropout)
    mine, torchs = both(lambda: response_ce(model, batch).backward())
    assert mine == torchs > 0


def test_lora_on_queries_and_values(model, batch):
    """In the lowest block the keys need no gradient, which the rule for attention overlooks."""
    model = with_lora(model, target_modules=["q_proj", "v_proj"])
    mine, torchs = both(lambda: response_ce(model, batch).backward())
    assert 1 <= mine / torchs < 1.02


@pytest.mark.parametrize(
    "trained",
    [
        last_block,
        lambda model: last_block(model).mlp,
        lambda model: last_block(model).self_attn.o_proj,
        lambda model: model.lm_head,
    ],
)
def test_frozen_layers_below_the_lowest_trained_one_cost_their_forward_pass(model, batch, trained):
    trained(model.requires_grad_(False)).requires_grad_(True)
    mine, torchs = both(lambda: response_ce(model, batch).backward())
    assert mine == torchs > 0


def test_soft_prompt(model, batch):
    """Gradient to the embeddings only."""
    model.requires_grad_(False)
    prompt = torch.zeros(4, model.config.hidden_size, requires_grad=True)

    def step():
        text = model.get_input_embeddings()(batch.input_BT)
        rows = (prompt * 1.0).expand(len(text), -1, -1)
        model(inputs_embeds=torch.cat([rows, text], 1)).logits.mean().backward()

    mine, torchs = both(step)
    assert mine == torchs > 0


def test_a_perturbation_alone_is_asked_for_though_all_weights_are_trained(model, batch):
    """autograd then leaves the weights' gradients out, and so does the meter."""
    embedded = model.get_input_embeddings()(batch.input_BT).detach()
    shift = torch.zeros_like(embedded, requires_grad=True)

    def step():
        loss = model(inputs_embeds=embedded + shift).logits.mean()
        torch.autograd.grad(loss, shift)

    mine, torchs = both(step)
    assert mine == torchs > 0


@pytest.mark.parametrize("wanted", ["all", "the last block"])
def test_gradients_asked_for_by_name(model, batch, wanted):
    weights = list((model if wanted == "all" else last_block(model)).parameters())
    mine, torchs = both(lambda: torch.autograd.grad(response_ce(model, batch), weights))
    assert mine == torchs > 0


def test_weights_that_a_function_is_called_with(model, batch):
    """As in meta-learning: the gradient goes on through the weights of an inner step."""
    plain = dict(model.named_parameters())

    def step():
        moved = {n: p * 0.9 for n, p in plain.items()}
        given = {"input_ids": batch.input_BT, "use_cache": False}
        torch.func.functional_call(model, moved, kwargs=given).logits.mean().backward()

    mine, torchs = both(step)
    assert mine == torchs > 0


# -- what the loss reads, and further passes -----------------------------------------------


@pytest.mark.parametrize("layer", [1, -1])
def test_a_loss_on_hidden_states(model, batch, layer):
    def step():
        hidden = forward(model, batch, output_hidden_states=True).hidden_states
        hidden[layer].pow(2).mean().backward()

    mine, torchs = both(step)
    assert mine == torchs > 0


def test_a_model_without_its_head(model, batch):
    mine, torchs = both(lambda: forward(model.model, batch).last_hidden_state.mean().backward())
    assert mine == torchs > 0


def test_a_lens_on_every_layer(model, batch):
    def step():
        hidden = forward(model, batch, output_hidden_states=True).hidden_states
        sum(model.lm_head(model.model.norm(h)).logsumexp(-1).mean() for h in hidden).backward()

    mine, torchs = both(step)
    assert mine == torchs > 0


def test_a_frozen_reference_model_beside(model, batch):
    reference = copy.deepcopy(model).requires_grad_(False)

    def step():
        with torch.no_grad():
            wanted = forward(reference, batch).logits
        (forward(model, batch).logits - wanted).pow(2).mean().backward()

    cost, torchs = metered(step), torch_flops(step)
    assert cost.flops == torchs > 0
    assert cost.tokens == cost.forward_tokens == int(batch.mask_BT.sum())


def test_a_model_copied_on_the_way(model, batch):
    def step():
        copied = copy.deepcopy(model)
        response_ce(copied, batch).backward()
        response_ce(model, batch).backward()
        response_ce(copy.deepcopy(copied), batch)

    cost, torchs = metered(step), torch_flops(step)
    assert cost.flops == torchs > 0
    assert cost.examples == 3 * 8


@pytest.mark.parametrize(
    "settings", [{}, {"use_cache": False}, {"cache_implementation": "static"}, {"num_beams": 2}]
)
def test_sampling(model, batch, settings):
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = 0, None

    def sample():
        model.generate(
            batch.input_BT.flip(1),
            attention_mask=batch.mask_BT.flip(1),
            max_new_tokens=4,
            **settings,
        )

    mine, torchs = both(sample)
    assert mine == torchs > 0


def test_gradient_accumulation(model, batch):
    def step():
        for part in (slice(0, 2), slice(2, 6), slice(6, 8)):
            (response_ce(model, batch.rows(part)) / 3).backward()

    mine, torchs = both(step)
    assert mine == torchs > 0


# transformers 5 is about to give it another name.
@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_:FutureWarning")
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_activations_cost_a_second_forward_pass(model, batch, reentrant):
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    step = metered(lambda: response_ce(model, batch).backward())
    assert step.flops == torch_flops(lambda: response_ce(model, batch).backward())
    assert step.examples == 8
    model.gradient_checkpointing_disable()
    assert step.flops > metered(lambda: response_ce(model, batch).backward()).flops


def test_two_backward_passes_through_one_graph(model, batch):
    def step():
        logits = forward(model, batch).logits
        logits.mean().backward(retain_graph=True)
        logits.pow(2).mean().backward()

    mine, torchs = both(step)
    assert mine == torchs > 0


def test_a_pass_without_backward_costs_only_its_forward(model, batch):
    once = metered(lambda: response_ce(model, batch)).flops
    # All parameters are trained: backward is twice forward.
    assert 3 * once == metered(lambda: response_ce(model, batch).backward()).flops


def test_the_kernel_of_attention_makes_no_difference(model, batch):
    found = set()
    for kernel in ("eager", "sdpa"):
        model.set_attn_implementation(kernel)
        for exact in (False, True):
            found.add(metered(lambda: response_ce(model, batch).backward(), exact=exact).flops)
    assert len(found) == 1


# -- odd modules ---------------------------------------------------------------------------


class Packed(nn.Linear):
    """Two weights in a byte, as quantised layers have it."""

    def __init__(self):
        super().__init__(6, 4, bias=False)
        self.weight = nn.Parameter(torch.zeros(12, 1, dtype=torch.uint8), requires_grad=False)

    def forward(self, x):
        return x[..., :4] * 1.0


class PackedApart(nn.Module):
    in_features, out_features = 6, 4
    forward = Packed.forward


@pytest.mark.parametrize("kind", [Packed, PackedApart])
def test_packed_weights_count_by_their_features(kind):
    x = torch.randn(3, 5, 6, requires_grad=True)
    one = 2 * 6 * 4 * 15
    assert metered(lambda: kind()(x)).flops == one
    assert metered(lambda: kind()(x).sum().backward()).flops == 2 * one


class SortedExperts(nn.Module):
    """Rows come sorted, as many for each expert."""

    def __init__(self):
        super().__init__()
        self.up = nn.Parameter(torch.randn(3, 6, 4))
        self.down = nn.Parameter(torch.randn(3, 4, 6))

    def forward(self, x):
        return torch.bmm(torch.bmm(x.view(3, -1, 6), self.up), self.down).view(-1, 6)


@pytest.mark.parametrize("gradient", [True, False])
def test_experts_without_an_index(gradient):
    experts, x = SortedExperts(), torch.randn(12, 6, requires_grad=gradient)
    mine, torchs = both(lambda: experts(x * 1.0).sum().backward())
    assert mine == torchs > 0


class Positions(nn.Module):
    """Parameters of two and three dimensions that are added, not multiplied."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(5, 6))
        self.shift = nn.Parameter(torch.randn(1, 5, 6))

    def forward(self, x):
        return x + self.table + self.shift


@pytest.mark.parametrize(
    "module, x",
    [
        (Positions(), torch.randn(2, 5, 6)),
        (nn.Embedding(5, 6), torch.zeros(2, 5, dtype=torch.long)),
        (nn.LayerNorm((5, 6)), torch.randn(2, 5, 6)),
    ],
)
def test_what_multiplies_no_matrix_costs_nothing(module, x):
    assert metered(lambda: module(x).sum().backward()).flops == 0


@pytest.mark.parametrize(
    "layer, shape",
    [(nn.Conv1d(4, 6, 3, padding=1), (2, 4, 9)), (nn.Conv2d(4, 6, (3, 2), stride=2), (2, 4, 8, 9))],
)
def test_convolutions(layer, shape):
    x = torch.randn(shape, requires_grad=True)
    mine, torchs = both(lambda: layer(x * 1.0).sum().backward())
    assert mine == torchs > 0


# -- exact ----------------------------------------------------------------------------------------


def test_a_gradient_of_a_gradient_is_counted_exactly(model, batch):
    batch, weights = batch.rows(slice(0, 2)), list(model.parameters())

    def step():
        slopes = torch.autograd.grad(response_ce(model, batch), weights, create_graph=True)
        sum(s.pow(2).sum() for s in slopes).backward()

    cost = metered(step, exact=True)
    assert cost.flops == torch_flops(step) > metered(step).flops
    assert (cost.examples, cost.tokens) == (2, int(batch.mask_BT.sum()))


def test_exact_sees_products_outside_modules():
    x = torch.randn(4, 5)
    assert metered(lambda: x @ x.T, exact=True).flops == 2 * 4 * 4 * 5
    assert metered(lambda: x @ x.T).flops == 0


def test_exact_with_respect_to_what_a_module_was_given():
    """torch's counter, as it comes, fails here."""
    layer, x = nn.Linear(6, 4, bias=False), torch.randn(3, 6, requires_grad=True)
    found = metered(lambda: torch.autograd.grad(layer(x).sum(), x), exact=True)
    assert found.flops == 2 * 2 * 3 * 6 * 4
