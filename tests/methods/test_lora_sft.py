"""The adapter attack against its formula: W + alpha/rank · B·A, on every linear layer inside the
model.
"""

import math

import pytest
import torch

from helpers.by_hand import answer_batch, handed
from titer.data.encoding import Stream
from titer.methods.attacks.lora_sft import LoraSFT

STEPS = 3


@pytest.fixture
def trained(new_bundle, pairs):
    def make(**settings):
        torch.manual_seed(5)
        bundle = new_bundle()
        given = handed(bundle, seed=5, horizon=STEPS, **pairs)
        run = LoraSFT(lr=3e-3, batch_size=4, **settings).start(given)
        logs = [run.step() for _ in range(STEPS)]
        return run, logs

    return make


def factors(run):
    """layer name → (A, B)."""
    named = dict(run.model().model.named_parameters())
    return {
        n.removeprefix("base_model.model.").removesuffix(".lora_A.default.weight"): (
            p.detach(),
            named[n.replace("lora_A", "lora_B")].detach(),
        )
        for n, p in named.items()
        if "lora_A" in n
    }


def test_every_linear_layer_but_the_vocabulary_projection(trained, tiny):
    linear = {n for n, m in tiny.model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert set(factors(trained(rank=4)[0])) == linear - {"lm_head"} and len(linear) == 7 * 3 + 1


@pytest.mark.parametrize(("rank", "alpha"), [(4, 8.0), (16, 32.0), (8, 2.5)])
def test_the_attacked_model_is_the_merged_one(trained, new_bundle, pairs, rank, alpha):
    run, _ = trained(rank=rank, alpha=alpha)
    merged = new_bundle()
    with torch.no_grad():
        for name, (a, b) in factors(run).items():
            assert a.shape[0] == b.shape[1] == rank and b.any()
            merged.model.get_submodule(name).weight += alpha / rank * b @ a
        batch = answer_batch(merged, pairs["harmful"][:8])
        ask = {"input_ids": batch.input_BT, "attention_mask": batch.mask_BT}
        torch.testing.assert_close(
            run.model().model.eval()(**ask).logits, merged.model(**ask).logits, rtol=1e-4, atol=1e-4
        )


def test_adapters_start_at_nothing_and_differ_by_seed(new_bundle, pairs):
    starts = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        run = LoraSFT(rank=4).start(handed(new_bundle(), seed=seed, **pairs))
        assert all(not b.any() and a.any() for a, b in factors(run).values())
        starts.append(torch.cat([a.flatten() for a, _ in factors(run).values()]))
    assert not torch.equal(*starts)


def test_dropout_acts_in_training_only(trained):
    plain, dropped = trained(rank=4, dropout=0.0)[1], trained(rank=4, dropout=0.5)[1]
    assert (
        plain[0].loss == dropped[0].loss
    )  # B is nothing yet, so whatever is dropped before it does not matter
    assert plain[1].loss != dropped[1].loss
    assert all(math.isfinite(log.loss) for log in dropped)
    modules = trained(rank=4, dropout=0.05)[0].model().model.named_modules()
    layers = [m for n, m in modules if n.endswith("lora_dropout.default")]
    assert layers and all(m.p == 0.05 for m in layers)
    assert LoraSFT().dropout == 0.0


def test_the_steps_are_those_of_an_optimizer_over_the_adapters(trained, new_bundle, pairs):
    """By hand: the same gradients on A and B of an ordinary model whose weights are W + alpha/rank
    · B·A.
    """
    run, logs = trained(rank=4, alpha=8.0, dropout=0.0)
    torch.manual_seed(5)
    fresh = LoraSFT(rank=4, alpha=8.0, dropout=0.0).start(handed(new_bundle(), seed=5, **pairs))
    mine = {n: [x.clone().requires_grad_() for x in ab] for n, ab in factors(fresh).items()}
    bundle = new_bundle()
    weights = {n: p.detach() for n, p in bundle.model.named_parameters()}
    examples = [*pairs["harmful"], *pairs["harmless"]]
    optimizer = torch.optim.AdamW(
        [x for ab in mine.values() for x in ab], lr=3e-3, weight_decay=0.0
    )
    for step in range(STEPS):
        drawn = Stream(len(examples), 4, 5).indices(step)
        batch = answer_batch(bundle, [examples[i] for i in drawn])
        whole = weights | {
            f"{n}.weight": weights[f"{n}.weight"] + 2.0 * b @ a for n, (a, b) in mine.items()
        }
        ask = {"input_ids": batch.input_BT, "attention_mask": batch.mask_BT, "use_cache": False}
        logits = torch.func.functional_call(bundle.model, whole, kwargs=ask, args=()).logits
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), batch.labels_BT[:, 1:].flatten()
        )
        assert logs[step].loss == pytest.approx(loss.item(), rel=1e-4)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([x for ab in mine.values() for x in ab], 1.0)
        optimizer.step()
    for name, pair in factors(run).items():
        for found, expected in zip(pair, mine[name], strict=True):
            torch.testing.assert_close(found, expected.detach(), rtol=2e-2, atol=2e-4)
