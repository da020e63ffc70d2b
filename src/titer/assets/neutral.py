"""Resets everything shipped beside the weights that could make a model harder to attack to what an
attacker would choose.

An attacker who holds the weights can edit the files beside them: a dropout rate of 0.97 in
`config.json` spoils every fine-tuning run and protects nothing, because an attacker deletes the
line. So whatever acts only in training, or only biases what is sampled, is switched off when a
model is loaded. What also changes the model's answers in evaluation is part of the model, and
stays.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from titer.assets.checks import readable

NOISE = ("drop", "jitter", "noise")
"""Substrings of the attribute names that hold rates of random noise in training."""
CLAMPS = ("altup_coef_clip",)
"""Bounds to which a forward pass in training mode cuts weights (Gemma 3n)."""
PLAIN_OUTPUTS = {
    "output_attentions": False,
    "output_hidden_states": False,
    "output_router_logits": False,  # adds a term to the loss of models with experts
    "return_dict": True,
}
"""What a forward pass returns beside the logits. Methods ask for what they need themselves."""
ORDINARY = (0.002, 0.2)
"""Standard deviations of initial weights with which models can be trained."""
KEPT_GENERATION = {"bos_token_id", "decoder_start_token_id", "eos_token_id", "pad_token_id"}
"""Generation settings that say where a text begins and ends."""
UNBIASED_GENERATION = KEPT_GENERATION | {
    "_from_model_config",
    "max_length",
    "max_new_tokens",
    "output_attentions",
    "output_hidden_states",
    "transformers_version",
    "use_cache",
}
"""Generation settings that do not change the output; dropping them is not reported."""
UNLIKE = "training mode"
"""Key under which `neutralise` records that the model still behaves differently in training
mode.
"""
TOLERANCE = 0.01
"""Largest difference of two forward passes that counts as rounding, as a share of the logits'
standard deviation."""


def neutralise(model: Any, tokenizer: Any = None) -> dict[str, str]:
    """Switch off, in place, what ships beside the weights and hinders training or biases sampling.

    Returns what was found, for the record: name → what it was and what it is now. Changes no
    weight. A rate of noise on which logits in evaluation mode depend is part of the model, is left
    alone, and is recorded as kept. If a forward pass in training mode still differs from one in
    evaluation mode, that is recorded under `UNLIKE`. Raises AssetError if the model cannot be run.

    tokenizer: tells end tokens from ordinary words. A file that declares a common word to be an end
    token would cut a harmful reply short.
    """
    found = _outputs(model) | _checkpointing(model) | _implementations(model)
    with readable(
        "the model cannot be run",
        type(model).__name__,
        "a causal language model that takes input_ids and attention_mask",
        "check that transformers alone can run it",
    ):
        evaluated = _logits(model)
    for name, places in _rates(model).items():
        old = max(value for *_, value in places)
        _set(places, 0.0)
        if _alike(evaluated, _logits(model)):
            found[name] = f"{old:g} → 0"
        else:
            _set(places)
            found[name] = f"{old:g} kept: it acts in evaluation too"
    for config in _configs(model):
        for name in CLAMPS:
            if (value := getattr(config, name, None)) is not None:
                setattr(config, name, math.inf)  # its type admits no None
                found[name] = f"{value:g} → none"
    found |= _redrawing(model)
    found |= _untrained_row(model, tokenizer)
    found |= _endings(model, tokenizer)
    found |= _generation(model)
    return found | _unlike(model, evaluated)


def _unlike(model: Any, evaluated: torch.Tensor) -> dict[str, str]:
    """The remaining difference between training and evaluation mode."""
    try:
        with torch.random.fork_rng(devices=[]):
            trained = _logits(model, training=True)
    except Exception as error:  # code of the model's own may raise anything
        return {UNLIKE: f"a forward pass fails ({type(error).__name__}: {error})"}
    if _alike(evaluated, trained):
        return {}
    gap = (trained - evaluated).abs().max().item()
    return {UNLIKE: f"logits differ from those in evaluation mode by up to {gap:.2g}"}


def _logits(model: Any, *, training: bool = False) -> torch.Tensor:
    """Logits of a few rows of tokens."""
    rows = model.get_input_embeddings().weight.shape[0]
    input_BT = torch.arange(3, 19, device=model.device).reshape(2, 8) % rows
    before = model.training
    model.train(training)
    try:
        with torch.no_grad():
            fields = {"attention_mask": torch.ones_like(input_BT), "use_cache": False}
            logits_BTV: torch.Tensor = model(input_ids=input_BT, **fields).logits.float()
            return logits_BTV
    finally:
        model.train(before)


def _alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal up to rounding."""
    return torch.allclose(
        one, other, rtol=0, atol=TOLERANCE * one.std().nan_to_num().item() + 1e-6, equal_nan=True
    )


def _configs(model: Any) -> Iterator[Any]:
    """Every configuration a model reads: its own, those inside it, and those its modules keep."""
    waiting = [v for m in model.modules() for v in vars(m).values() if hasattr(v, "to_diff_dict")]
    seen: set[int] = set()
    while waiting:
        config = waiting.pop()
        if id(config) not in seen and hasattr(config, "model_type"):
            seen.add(id(config))
            yield config
            waiting += [v for v in vars(config).values() if hasattr(v, "to_diff_dict")]


Place = tuple[Any, str, float]
"""An object, its attribute, and the value found there."""


def _rates(model: Any) -> dict[str, list[Place]]:
    """name → everywhere a rate of noise with this name is kept and is not 0."""
    places: dict[str, list[Place]] = {}
    for holder in (*_configs(model), *model.modules()):
        for name, value in vars(holder).items():
            if any(part in name.lower() for part in NOISE) and _positive(value):
                places.setdefault(name, []).append((holder, name, value))
        if "dropout" in type(holder).__name__.lower() and _positive(getattr(holder, "p", None)):
            places.setdefault("dropout modules", []).append((holder, "p", holder.p))
    return places


def _positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


def _set(places: list[Place], value: float | None = None) -> None:
    """Give all of them one value, or what was found there."""
    for holder, name, old in places:
        # In its own type: some configurations insist on whole numbers.
        setattr(holder, name, old if value is None else type(old)(value))


def _outputs(model: Any) -> dict[str, str]:
    found = {}
    for config in _configs(model):
        for name, plain in PLAIN_OUTPUTS.items():
            if (value := getattr(config, name, None)) is not None and value != plain:
                setattr(config, name, plain)
                found[name] = f"{value} → {plain}"
    return found


def _checkpointing(model: Any) -> dict[str, str]:
    """Recomputing activations in the backward pass saves memory, and is charged to the attacker."""
    held = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False) is True]
    for module in held:
        module.gradient_checkpointing = False
    if held and hasattr(model, "_require_grads_hook"):
        model.disable_input_require_grads()
    return {"gradient checkpointing": "on → off"} if held else {}


def _implementations(model: Any) -> dict[str, str]:
    """The library's own choice of how attention and experts are computed."""
    found = {}
    choices = [
        ("attention", "attn", "sdpa" if getattr(model, "_supports_sdpa", False) else "eager")
    ]
    if getattr(model, "_can_set_experts_implementation", bool)():
        choices.append(("experts", "experts", model.get_correct_experts_implementation(None)))
    for part, short, own in choices:
        given = getattr(model.config, f"_{short}_implementation", None)
        if given not in (None, own):
            getattr(model, f"set_{short}_implementation")(own)
            found[f"{part} implementation"] = f"{given} → {own}"
    return found


def _redrawing(model: Any) -> dict[str, str]:
    """The deviation of weights that are drawn anew, as by an attacker who resets some layers."""
    found = {}
    for config in _configs(model):
        value = getattr(config, "initializer_range", None)
        default = getattr(type(config), "initializer_range", 0.02)
        if value is not None and not ORDINARY[0] <= value <= ORDINARY[1]:
            config.initializer_range = default
            found["initializer_range"] = f"{value:g} → {default:g}"
    return found


def _untrained_row(model: Any, tokenizer: Any) -> dict[str, str]:
    """The one row of the input embedding that never gets a gradient: padding, or so a file says."""
    embedding = model.get_input_embeddings()
    row = embedding.padding_idx if type(embedding) is nn.Embedding else None
    if row is None:
        return {}
    embedding.padding_idx = None
    if tokenizer is not None and row == tokenizer.pad_token_id != tokenizer.eos_token_id:
        return {}  # padding is never read: nothing changes
    return {"embedding without gradient": f"token {row} → none"}


def _endings(model: Any, tokenizer: Any) -> dict[str, str]:
    """End tokens that are not special tokens."""
    if tokenizer is None:
        return {}
    special = {tokenizer.eos_token_id, *tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    dropped: set[int] = set()
    for holder in (model.generation_config, *_configs(model)):
        ids = getattr(holder, "eos_token_id", None)
        listed = [ids] if isinstance(ids, int) else list(ids or ())
        left = [i for i in listed if i in special]
        if left != listed:
            dropped |= set(listed) - special
            holder.eos_token_id = left or None
    words = ", ".join(repr(tokenizer.decode([i])) for i in sorted(dropped))
    return {"end tokens": f"not used: {words}"} if dropped else {}


def _generation(model: Any) -> dict[str, str]:
    from transformers import GenerationConfig

    given = getattr(model, "generation_config", None)
    if given is None:
        return {}
    settings = given.to_diff_dict()
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        **{name: value for name, value in settings.items() if name in KEPT_GENERATION}
    )
    biased = sorted(set(settings) - UNBIASED_GENERATION)
    return {"generation settings": f"not used: {', '.join(biased)}"} if biased else {}
