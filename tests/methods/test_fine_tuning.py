"""Settings of every fine-tuning: micro-batches, layers, layers drawn anew, optimizers."""

import pytest
import torch

from helpers.architectures import build
from helpers.by_hand import (
    answer_batch,
    ce,
    close,
    gradient_left,
    gradient_of,
    handed,
    same,
    weights,
)
from titer.data.bundle import ModelBundle
from titer.data.encoding import Stream
from titer.errors import RunError
from titer.methods.attacks.full_sft import FullSFT
from titer.methods.attacks.lora_sft import LoraSFT
from titer.methods.optimizers import Optimizer

N = 8


def start(bundle, texts, **settings):
    settings = {"lr": 1e-3, "batch_size": N} | settings
    return FullSFT(**settings).start(handed(bundle, harmful=texts["harmful"]))


# -- micro-batches ---------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 3, 8, 50])
def test_micro_batches_give_the_gradient_of_the_batch(new_bundle, uneven, rows):
    """Answers have unlike lengths: a mean of means would be another gradient."""
    whole, found = (
        gradient_left(start(new_bundle(), uneven, micro_batch=size)) for size in (None, rows)
    )
    assert found[0].loss == pytest.approx(whole[0].loss, rel=1e-6)
    close(found[1], whole[1], rtol=2e-6)
    plain = new_bundle()
    close(found[1], gradient_of(plain, ce(plain, uneven["harmful"], "response")))


def test_micro_batches_are_forward_passes_of_so_many_rows(new_bundle, uneven):
    seen = []
    run = start(new_bundle(), uneven, micro_batch=3)
    run.model().model.register_forward_pre_hook(
        lambda m, a, k: seen.append(k["input_ids"].shape[0]), with_kwargs=True
    )
    run.step()
    assert seen == [3, 3, 2]


def test_micro_batches_of_an_adapter(new_bundle, uneven):
    grads = []
    for size in (None, 2):
        torch.manual_seed(0)
        run = LoraSFT(batch_size=N, rank=4, micro_batch=size).start(
            handed(new_bundle(), harmful=uneven["harmful"])
        )
        grads.append({n: g for n, g in gradient_left(run)[1].items() if "lora_B" in n})
    close(grads[1], grads[0], rtol=2e-6)


# -- layers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layers", "named"), [((0, -1), {0, 2}), ((1,), {1}), ((2, -1), {2})])
def test_layers_restrict_what_is_trained(new_bundle, uneven, layers, named):
    bundle = new_bundle()
    before = weights(bundle.model)
    run = start(bundle, uneven, layers=layers)
    whole = gradient_left(start(new_bundle(), uneven))[1]
    found = gradient_left(run)[1]
    inside = {n for n in before if any(n.startswith(f"model.layers.{i}.") for i in named)}
    assert set(run.state_dict()["weights"]) == inside
    for name, gradient in found.items():
        if name in inside:
            torch.testing.assert_close(gradient, whole[name])
        else:
            assert not gradient.any()
    run.step()
    now = weights(bundle.model)
    assert {n for n in now if not torch.equal(now[n], before[n])} == inside


def test_a_block_the_model_does_not_have(new_bundle, uneven):
    for settings in ({"layers": (3,)}, {"layers": (-4,)}, {"reinitialised": (3,)}):
        with pytest.raises(RunError, match="no such block"):
            start(new_bundle(), uneven, **settings)


# -- layers drawn anew -----------------------------------------------------------------------------


def test_reinitialised_blocks_follow_the_seed(new_bundle, uneven):
    def started(seed, **settings):
        bundle = new_bundle()
        FullSFT(reinitialised=(-1,), **settings).start(
            handed(bundle, seed=seed, harmful=uneven["harmful"])
        )
        return weights(bundle.model)

    before, one, again, other = weights(new_bundle().model), started(1), started(1), started(2)
    assert same(one, again)
    for name, value in one.items():
        matrix = name.startswith("model.layers.2.") and value.ndim == 2
        assert torch.equal(value, before[name]) is not matrix
        assert torch.equal(value, other[name]) is not matrix
        if matrix:  # the spread the matrix had, whatever the configuration says
            assert value.std().item() == pytest.approx(before[name].std().item(), rel=0.05)
            assert value.mean().item() == pytest.approx(0.0, abs=0.005)


def test_two_blocks_are_drawn_differently(new_bundle, uneven):
    bundle = new_bundle()
    start(bundle, uneven, reinitialised=(0, 1))
    first, second = (
        bundle.model.get_submodule(f"model.layers.{i}.mlp.up_proj").weight for i in (0, 1)
    )
    assert not torch.equal(first, second)


def test_biases_become_0_and_norms_stay(uneven, new_bundle):
    from titer.methods.fine_tuning import FineTuning

    bundle = ModelBundle(build("gpt2"), new_bundle().tokenizer, torch.device("cpu"))
    before = weights(bundle.model)
    FineTuning(reinitialised=(1,)).open(bundle, 0)
    now = weights(bundle.model)
    block = "transformer.h.1."
    assert not now[f"{block}mlp.c_fc.bias"].any() and not now[f"{block}attn.c_attn.bias"].any()
    for part in ("ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias"):
        assert torch.equal(now[f"{block}{part}"], before[f"{block}{part}"]), part


def test_a_model_drawn_anew_does_not_start_as_its_parent():
    assert FullSFT().facts().starts_as_parent
    assert FullSFT(layers=(0,)).facts().starts_as_parent
    assert not FullSFT(reinitialised=(0,)).facts().starts_as_parent


# -- optimizers ------------------------------------------------------------------------------------


def plain_optimizers(model, name):
    """torch's own, with the settings of the test below written out."""
    parameters = dict(model.named_parameters())
    if name == "sgd":
        return [
            torch.optim.SGD(
                parameters.values(), lr=0.02, momentum=0.9, nesterov=True, weight_decay=0.01
            )
        ]
    if name == "adafactor":
        return [torch.optim.Adafactor(parameters.values(), lr=0.02, weight_decay=0.01)]
    if name == "adamw":
        return [
            torch.optim.AdamW(parameters.values(), lr=0.02, betas=(0.8, 0.95), weight_decay=0.01)
        ]
    inner = {n: p for n, p in parameters.items() if ".layers." in n and p.ndim == 2}
    rest = [p for n, p in parameters.items() if n not in inner]
    return [
        torch.optim.Muon(
            inner.values(), lr=0.02, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(rest, lr=0.02, betas=(0.8, 0.95), weight_decay=0.01),
    ]


@pytest.mark.parametrize("name", ["adamw", "sgd", "adafactor", "muon"])
def test_steps_are_those_of_torch(new_bundle, uneven, name):
    """Warm-up over two steps, clipping at 0.5; compared after every step, on the same batch."""
    ours, plain = new_bundle(), new_bundle()
    run = start(
        ours,
        uneven,
        lr=0.02,
        optimizer=name,
        betas=(0.8, 0.95),
        momentum=0.9,
        weight_decay=0.01,
        warmup_steps=2,
        clip_norm=0.5,
    )
    optimizers = plain_optimizers(plain.model, name)
    parameters = list(plain.model.parameters())
    plain.model.train()
    for step in range(3):
        drawn = Stream(N, N, 3).indices(step)
        batch = answer_batch(plain, [uneven["harmful"][i] for i in drawn])
        logits = plain.model(
            input_ids=batch.input_BT, attention_mask=batch.mask_BT, use_cache=False
        ).logits
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), batch.labels_BT[:, 1:].flatten()
        )
        plain.model.zero_grad()
        loss.backward()
        total = torch.nn.utils.clip_grad_norm_(parameters, 0.5)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = 0.02 * min(1, (step + 1) / 2)
            optimizer.step()
        log = run.step()
        assert log.loss == pytest.approx(loss.item(), rel=1e-4)
        assert log.grad_norm == pytest.approx(total.item(), rel=1e-4)
        # Muon makes matrices orthogonal in bfloat16, which magnifies the last digits
        rtol = 1e-2 if name == "muon" else 1e-4
        close(weights(ours.model), weights(plain.model), rtol=rtol)


@pytest.mark.parametrize("name", ["adamw", "sgd", "adafactor", "muon"])
def test_optimizers_alone_bit_for_bit(name):
    """The same gradients, the same updates: nothing is added to what torch does."""

    def model():
        torch.manual_seed(0)
        return torch.nn.ModuleDict(
            {
                "embed": torch.nn.Embedding(5, 4),
                "layers": torch.nn.ModuleList([torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)]),
            }
        )

    ours, plain = model(), model()
    optimizer = Optimizer(
        name,
        dict(ours.named_parameters()),
        lr=1.0,
        weight_decay=0.01,
        betas=(0.8, 0.95),
        momentum=0.9,
    )
    theirs = (
        plain_optimizers(plain, name)
        if name != "muon"
        else [
            torch.optim.Muon(
                [layer.weight for layer in plain["layers"]],
                lr=0.02,
                weight_decay=0.01,
                adjust_lr_fn="match_rms_adamw",
            ),
            torch.optim.AdamW(
                [plain["embed"].weight, *(layer.bias for layer in plain["layers"])],
                lr=0.02,
                betas=(0.8, 0.95),
                weight_decay=0.01,
            ),
        ]
    )
    generator = torch.Generator().manual_seed(1)
    for step in range(4):
        for p, q in zip(ours.parameters(), plain.parameters(), strict=True):
            p.grad = torch.randn(p.shape, generator=generator)
            q.grad = p.grad.clone()
        optimizer.step(0.02 * (step + 1))
        for other in theirs:
            for group in other.param_groups:
                group["lr"] = 0.02 * (step + 1)
            other.step()
        assert all(p.grad is None for p in ours.parameters())
        for p, q in zip(ours.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
