"""Pruning against scores computed from captured inputs; exact sparsity; both orientations."""

import pytest
import torch

from helpers.architectures import build
from helpers.by_hand import ask, handed, ids, weights
from titer.data.bundle import ModelBundle
from titer.methods.attacks.prune import Prune, prune_


def maps(model):
    """name → linear map in a block, whichever way round its weight lies."""
    return {
        n: m
        for n, m in model.named_modules()
        if any(part.isdigit() for part in n.split("."))
        and (isinstance(m, torch.nn.Linear) or type(m).__name__ == "Conv1D")
    }


def input_norms(bundle, rows):
    """name → ‖X_j‖₂ over every token of every row, one row at a time, without padding."""
    squares, hooks = {}, []
    for name, module in maps(bundle.model).items():

        def caught(module, args, name=name):
            squares[name] = squares.get(name, 0) + args[0][0].double().pow(2).sum(0)

        hooks.append(module.register_forward_pre_hook(caught))
    with torch.no_grad():
        for tokens in rows:
            ask(bundle.model, tokens)
    for hook in hooks:
        hook.remove()
    return {n: s.sqrt() for n, s in squares.items()}


def as_out_in(module, weight):
    return weight.T if type(module).__name__ == "Conv1D" else weight


def compared(before, now, module, norms, sparsity):
    """Each output keeps what scores highest; what is kept is unchanged; the rest is 0."""
    old, new = (as_out_in(module, w).double() for w in (before, now))
    count = int(sparsity * old.shape[1])
    score = old.abs() * norms
    assert (new == 0).sum(1).tolist() == [count] * old.shape[0]
    assert bool(((new == old) | (new == 0)).all())
    highest_pruned = score.masked_fill(new != 0, -1).amax(1)
    lowest_kept = score.masked_fill(new == 0, torch.inf).amin(1)
    # scores that agree to float32's rounding may fall either way
    assert bool((highest_pruned <= lowest_kept * (1 + 1e-5)).all())


@pytest.mark.parametrize("sparsity", [0.2, 0.5])
def test_wanda_prunes_what_scores_lowest(new_bundle, uneven, sparsity):
    bundle, plain = new_bundle(), new_bundle()
    run = Prune(sparsity=sparsity).start(handed(bundle, **uneven))
    log = run.step()
    assert run.step() is None
    texts = [*uneven["harmful"], *uneven["harmless"]]
    norms = input_norms(plain, [ids(plain, e, e.response)[0] for e in texts])
    before, now = maps(plain.model), maps(run.model().model)
    assert len(before) == 3 * 7
    zeros = 0
    for name, module in before.items():
        compared(module.weight.detach(), now[name].weight.detach(), module, norms[name], sparsity)
        zeros += int((now[name].weight == 0).sum())
    assert log.figures["pruned"] == zeros and log.loss is None


def test_magnitude_looks_at_the_weights_alone_and_needs_no_text(new_bundle):
    bundle, plain = new_bundle(), new_bundle()
    method = Prune(score="magnitude", sparsity=0.25)
    assert method.needed() == ()
    method.start(handed(bundle)).step()
    for name, module in maps(plain.model).items():
        now = maps(bundle.model)[name].weight.detach()
        compared(module.weight.detach(), now, module, torch.ones(module.in_features), 0.25)


def test_only_maps_in_blocks_are_touched(new_bundle, uneven):
    bundle = new_bundle()
    before = weights(bundle.model)
    Prune().start(handed(bundle, **uneven)).step()
    touched = {f"{n}.weight" for n in maps(bundle.model)}
    for name, value in weights(bundle.model).items():
        assert torch.equal(value, before[name]) is (name not in touched)


def test_examples_limits_what_is_read_and_the_seed_draws_it(new_bundle, harm):
    """Two seeds read two samples; with room for all of it, the seed is of no consequence."""

    def pruned(seed, eval_batch=512, **settings):
        bundle = new_bundle(eval_batch=eval_batch)
        Prune(**settings).start(handed(bundle, seed=seed, harmful=harm[:12])).step()
        return torch.cat([(m.weight == 0).flatten() for m in maps(bundle.model).values()])

    assert not torch.equal(pruned(1, examples=2), pruned(2, examples=2))
    assert (pruned(1, examples=99) != pruned(2, examples=99)).float().mean() < 1e-3
    assert (pruned(1, examples=7, eval_batch=3) != pruned(1, examples=7)).float().mean() < 1e-3


@pytest.mark.parametrize(("examples", "rows"), [(5, [3, 2]), (99, [3, 3, 3, 3])])
def test_every_example_is_read_once(new_bundle, harm, examples, rows):
    """Not a whole measuring batch of repeats: that would cost more than it says."""
    seen = []
    bundle = new_bundle(eval_batch=3)
    bundle.model.register_forward_pre_hook(
        lambda m, a, k: seen.append(k["input_ids"].shape[0]), with_kwargs=True
    )
    Prune(examples=examples).start(handed(bundle, harmful=harm[:12]))
    assert seen == rows


def test_a_map_by_hand():
    """Scores of output 0: 1·1, 2·1, 3·0.1, 4·1; of output 1: 4, 3, 0.2, 1."""
    module = torch.nn.Linear(4, 2, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[1.0, -2.0, 3.0, 4.0], [-4.0, 3.0, 2.0, 1.0]]))
    assert prune_(module, torch.tensor([1.0, 1.0, 0.1, 1.0]), 0.5) == 4
    assert module.weight.tolist() == [[0.0, -2.0, 0.0, 4.0], [-4.0, 3.0, 0.0, 0.0]]
    assert prune_(module, torch.tensor([1.0, 1.0, 0.1, 1.0]), 0.5) == 0


def test_ties_do_not_prune_more_than_asked():
    module = torch.nn.Linear(8, 3)
    torch.nn.init.ones_(module.weight)
    bias = module.bias.detach().clone()
    prune_(module, None, 0.25)
    assert (module.weight == 0).sum(1).tolist() == [2, 2, 2] and torch.equal(module.bias, bias)


def test_maps_of_gpt2_lie_the_other_way_round(new_bundle, uneven):
    """Conv1D keeps its weight as [in, out]: an output is a column. Token ids are folded into the
    small vocabulary of the test model."""
    tokenizer = new_bundle().tokenizer

    class Folded(ModelBundle):
        def encode(self, example, answer, max_length=None):
            found = super().encode(example, answer, max_length)
            fold = lambda ids: tuple(i % 100 for i in ids)  # noqa: E731
            return type(found)(fold(found.prompt), fold(found.response))

    bundle, plain = (
        Folded(build("gpt2"), tokenizer, torch.device("cpu"), max_length=32) for _ in range(2)
    )
    Prune(sparsity=0.3).start(handed(bundle, **uneven)).step()
    texts = [*uneven["harmful"], *uneven["harmless"]]
    norms = input_norms(plain, [ids(plain, e, e.response)[0] for e in texts])
    found = maps(plain.model)
    assert len(found) == 2 * 4
    for name, module in found.items():
        now = maps(bundle.model)[name].weight.detach()
        compared(module.weight.detach(), now, module, norms[name], 0.3)
