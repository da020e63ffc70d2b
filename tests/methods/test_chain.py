"""A chain is its parts, run by hand one after the other on one model."""

import copy
import json

import pytest
import torch
from pydantic import ValidationError

from helpers.by_hand import handed, same, weights
from titer.engine.checkpoint import pack, unpack
from titer.errors import StudyError, TiterError
from titer.methods.attacks.chain import Chain
from titer.methods.attacks.full_sft import FullSFT
from titer.methods.attacks.lora_sft import LoraSFT
from titer.methods.attacks.prune import Prune
from titer.methods.registry import resolve

SFT = {"lr": 1e-3, "batch_size": 4}
PRUNED_LORA = (
    {"attack": "prune", "settings": {"sparsity": 0.3}},
    {"attack": "lora_sft", "settings": {"lr": 3e-3, "rank": 4, "batch_size": 4}},
)
TWO = (
    {"attack": "full_sft", "settings": SFT, "steps": 2},
    {"attack": "full_sft", "settings": SFT | {"lr": 3e-3, "schedule": "cosine"}},
)


OF_ITS_OWN = 1_000_003
"""What a part's seed differs by from that of the part before: they draw other batches."""


def chain(*parts):
    return Chain(parts=parts)


def walked(method, given, steps):
    run = method.start(given)
    logs = []
    for _ in range(steps):
        log = run.step()
        if log is None:
            break
        logs.append(log)
    return run, logs


def test_it_is_its_parts_one_after_the_other(new_bundle, uneven):
    """Steps add up; the second part starts fresh, with what is left of the horizon as its own."""
    run, logs = walked(chain(*TWO), handed(new_bundle(), horizon=6, **uneven), 6)
    bundle = new_bundle()
    first, expected = walked(FullSFT(**SFT), handed(bundle, horizon=2, **uneven), 2)
    second, more = walked(
        FullSFT(lr=3e-3, batch_size=4, schedule="cosine"),
        handed(first.model(), seed=3 + OF_ITS_OWN, horizon=4, **uneven),
        4,
    )
    assert [log.loss for log in logs] == [log.loss for log in [*expected, *more]]
    assert [log.grad_norm for log in logs] == [log.grad_norm for log in [*expected, *more]]
    assert same(weights(run.model().model), weights(second.model().model))


def test_an_edit_takes_its_own_time(new_bundle, uneven):
    """Prune ends after one step; the fine-tuning that follows gets the rest of the horizon."""
    parts = (
        {"attack": "prune", "settings": {"sparsity": 0.3}},
        {"attack": "full_sft", "settings": SFT | {"schedule": "linear"}},
    )
    run, logs = walked(chain(*parts), handed(new_bundle(), horizon=5, **uneven), 5)
    bundle = new_bundle()
    walked(Prune(sparsity=0.3), handed(bundle, **uneven), 1)
    after, expected = walked(
        FullSFT(**SFT, schedule="linear"),
        handed(bundle, seed=3 + OF_ITS_OWN, horizon=4, **uneven),
        4,
    )
    assert [log.loss for log in logs] == [None, *(log.loss for log in expected)]
    assert same(weights(run.model().model), weights(after.model().model))


def test_adapters_are_merged_before_the_next_part(new_bundle, uneven):
    parts = (
        {"attack": "lora_sft", "settings": {"lr": 3e-3, "rank": 4, "batch_size": 4}, "steps": 2},
        {"attack": "full_sft", "settings": SFT},
    )
    torch.manual_seed(0)
    run, logs = walked(chain(*parts), handed(new_bundle(), horizon=4, **uneven), 4)
    torch.manual_seed(0)
    bundle = new_bundle()
    first, expected = walked(
        LoraSFT(lr=3e-3, rank=4, batch_size=4), handed(bundle, horizon=2, **uneven), 2
    )
    merged = first.model().having(model=first.model().model.merge_and_unload())
    second, more = walked(
        FullSFT(**SFT), handed(merged, seed=3 + OF_ITS_OWN, horizon=2, **uneven), 2
    )
    assert [log.loss for log in logs] == [log.loss for log in [*expected, *more]]
    assert same(weights(run.model().model), weights(second.model().model))
    assert all(p.requires_grad for p in run.model().model.parameters())
    assert not any("lora" in n for n, _ in run.model().model.named_parameters())


def test_the_model_of_each_part_is_what_is_asked(new_bundle, uneven):
    """`model()` gives what the part at work has made, not what the chain was handed."""
    torch.manual_seed(0)
    run = chain(*PRUNED_LORA).start(handed(new_bundle(), horizon=3, **uneven))
    run.step()
    pruned = run.model().model
    assert not any("lora" in n for n, _ in pruned.named_parameters()) or all(
        not p.any() for n, p in pruned.named_parameters() if "lora_B" in n
    )
    run.step()
    now = dict(run.model().model.named_parameters())
    assert any("lora_B" in n and p.any() for n, p in now.items())
    # what was pruned stays pruned beneath the adapter
    name = next(n for n in now if "base_layer.weight" in n)
    assert float((now[name] == 0).float().mean()) > 0.25


RESUMED = {
    "first part": (TWO, 1),
    "between": (TWO, 2),
    "second part": (TWO, 4),
    "lora on pruned weights": (PRUNED_LORA, 3),
    "just pruned": (PRUNED_LORA, 1),
    "full after lora": (
        (
            {"attack": "lora_sft", "settings": {"lr": 3e-3, "rank": 4}, "steps": 2},
            {"attack": "full_sft", "settings": SFT},
        ),
        3,
    ),
    "untied in the first part": (
        (
            {
                "attack": "refusal_ablation",
                "settings": {"examples": 6, "validation": 2, "max_kl": 10.0},
            },
            {"attack": "full_sft", "settings": SFT},
        ),
        3,
    ),
    "untied in the second part": (
        (
            {"attack": "weight_noise", "steps": 1},
            {
                "attack": "refusal_ablation",
                "settings": {"examples": 6, "validation": 2, "max_kl": 10.0},
            },
            {"attack": "lora_sft", "settings": {"lr": 3e-3, "rank": 4}},
        ),
        4,
    ),
    "within a chain": (({"attack": "chain", "settings": {"parts": list(PRUNED_LORA)}},), 3),
    "soft prompt on pruned weights": (
        (
            {"attack": "prune", "settings": {"sparsity": 0.3}},
            {"attack": "soft_prompt", "settings": {"lr": 0.1, "length": 2}},
        ),
        2,
    ),
}


@pytest.mark.parametrize("case", RESUMED)
def test_resuming_is_exact(new_bundle, uneven, case):
    parts, at = RESUMED[case]

    def begin():
        torch.manual_seed(0)
        return chain(*parts).start(handed(new_bundle(), horizon=5, **uneven))

    whole = begin()
    logs = [whole.step() for _ in range(5)]
    run = begin()
    for _ in range(at):
        run.step()
    skeleton, tensors = pack(run.state_dict())
    state = unpack(json.loads(json.dumps(skeleton)), {n: t.clone() for n, t in tensors.items()})
    random = torch.random.get_rng_state()
    again = begin()
    torch.manual_seed(77)  # what is drawn at a start must not decide what a state holds
    again.load_state_dict(state)
    torch.random.set_rng_state(random)  # as the engine does: parts that begin later draw from it
    assert same(weights(again.model().model), weights(run.model().model))
    assert [again.step() for _ in range(at, 5)] == logs[at:]
    assert same(weights(again.model().model), weights(whole.model().model))


@pytest.mark.parametrize("count", [2, 4])
def test_weights_of_earlier_parts_are_not_kept(new_bundle, uneven, count):
    """However many parts there were, a checkpoint holds the weights that the part at work began
    with and has now, and its optimizer's two moments."""
    parts = [TWO[0] | {"steps": 1}] * (count - 1) + [TWO[1]]
    run = chain(*parts).start(handed(new_bundle(), horizon=5, **uneven))
    for _ in range(count):
        run.step()
    _, tensors = pack(run.state_dict())
    size = sum(p.numel() for p in new_bundle().model.parameters())
    held = sum(t.numel() for t in tensors.values() if t.dtype.is_floating_point)
    assert 4 * size <= held <= 4 * size + 100


def test_it_ends_when_its_last_part_ends(new_bundle, uneven):
    parts = ({"attack": "weight_noise", "steps": 2}, {"attack": "prune"})
    _, logs = walked(chain(*parts), handed(new_bundle(), horizon=9, **uneven), 9)
    assert len(logs) == 3


NOISE = {"attack": "weight_noise"}


@pytest.mark.parametrize(
    "first",
    [
        {"attack": "full_sft"},
        NOISE,
        {"attack": "chain", "settings": {"parts": [{"attack": "prune"}, NOISE]}},
        {"attack": "chain", "settings": {"parts": [{"attack": "prune"}, {"attack": "lora_sft"}]}},
    ],
    ids=["training", "endless noise", "chain that ends in noise", "chain that ends in a training"],
)
def test_a_part_that_does_not_end_needs_steps(first):
    """Otherwise the next part would never begin, and nobody would know."""
    with pytest.raises(StudyError, match=r"does not end by itself.*parts\[0\]\.steps"):
        chain(first, {"attack": "prune"})
    chain(first | {"steps": 2}, {"attack": "prune"})
    chain({"attack": "prune"}, first)


@pytest.mark.parametrize(
    "first",
    [
        {"attack": "refusal_ablation"},
        {"attack": "no_attack"},
        {"attack": "chain", "settings": {"parts": [{"attack": "full_sft", "steps": 2}]}},
    ],
)
def test_a_part_that_ends_needs_none(first):
    chain(first, {"attack": "full_sft"})


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_soft_prompt_can_only_be_last(wrapped):
    soft = {"attack": "soft_prompt"}
    if wrapped:
        soft = {"attack": "chain", "settings": {"parts": [{"attack": "prune"}, soft]}}
    with pytest.raises(StudyError, match=r"in other words.*parts\[0\]\.attack"):
        chain(soft | {"steps": 2}, {"attack": "full_sft"})
    assert chain({"attack": "full_sft", "steps": 2}, soft).rewords
    assert not chain({"attack": "full_sft"}).rewords


def test_unknown_parts_and_settings_name_the_field():
    with pytest.raises(TiterError, match="full_sft"):
        resolve("attack", "chain", {"parts": [{"attack": "ful_sft"}]})
    with pytest.raises(TiterError, match="learning_rate"):
        resolve(
            "attack",
            "chain",
            {"parts": [{"attack": "full_sft", "settings": {"learning_rate": 1}}]},
        )
    with pytest.raises(TiterError, match="part"):
        resolve("attack", "chain", {"parts": []})


def test_facts_belong_to_the_instance():
    """Pruning alone is a reference; followed by fine-tuning, within a chain or not, it is an
    attack."""
    reference = chain({"attack": "prune"}).facts()
    assert reference.role == "reference" and not reference.trains and reference.starts_as_parent
    attack = chain(*PRUNED_LORA).facts(("harmful",))
    assert attack.role == "attack" and attack.trains
    assert chain({"attack": "no_attack", "steps": 1}, {"attack": "prune"}).facts().role == (
        "reference"
    )
    nested = chain({"attack": "chain", "settings": {"parts": list(PRUNED_LORA)}})
    assert nested.facts().role == "attack"
    assert Prune().facts().role == "reference"
    mixed = chain(*PRUNED_LORA).facts(("harmful", "harmless"))
    assert mixed.mixes and not attack.mixes


def test_horizon_free_if_every_part_is():
    assert chain(*PRUNED_LORA).horizon_free()
    assert not chain(*TWO).horizon_free()
    decays = {"attack": "full_sft", "settings": {"schedule": "cosine"}, "steps": 4}
    # a part of fixed length decays to its own end, whatever the horizon of the whole
    fixed = chain(decays, {"attack": "lora_sft"})
    assert fixed.horizon_free() and fixed.facts().horizon_free


def test_needs_and_wants_are_those_of_its_parts():
    assert set(chain({"attack": "refusal_ablation"}, {"attack": "full_sft"}).needed()) == {
        "harmful",
        "harmless",
        ".response",
    }
    assert chain({"attack": "prune", "settings": {"score": "magnitude"}}).needed() == ()


def test_a_part_is_recorded_with_all_its_settings_and_its_version(monkeypatch):
    """A default that changes, or a new version, makes another attack: its records are others."""
    method = chain({"attack": "prune"})
    (part,) = method.model_dump(mode="json")["parts"]
    assert part["settings"] == Prune().model_dump(mode="json") and part["version"] == 1
    assert method == chain({"attack": "prune", "settings": {"sparsity": 0.2}})
    monkeypatch.setattr(Prune, "version", 2)
    assert chain({"attack": "prune"}) != method
    assert Chain.model_validate_json(method.model_dump_json()).parts[0].version == 2
    with pytest.raises(ValidationError):
        chain({"attack": "prune", "no_such_field": 1})


def test_settings_survive_json_with_nested_chains():
    method = chain({"attack": "chain", "settings": {"parts": [dict(p) for p in TWO]}, "steps": 3})
    assert Chain.model_validate_json(method.model_dump_json()) == method
    assert copy.deepcopy(method) == method
