"""What ships beside the weights and could make a model harder to attack, set to what an attacker
would choose.

The attacker holds the weights: dropout rates, routing noise, generation settings and the attention
implementation are lines in a file beside them, and cost him nothing to change.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

NOISE = ("drop", "jitter")
"""Parts of the names under which models keep the rates of random noise in training."""
HARMLESS_GENERATION = {
    "bos_token_id",
    "decoder_start_token_id",
    "eos_token_id",
    "max_length",
    "max_new_tokens",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "transformers_version",
    "use_cache",
}
"""Generation settings that change when a reply ends or what is returned, not what is said."""


def neutralise(model: Any) -> dict[str, str]:
    """Set dropout and routing noise to 0 and attention to the library's default, in place.

    Returns what was found, for the record: name → what it was and what it is now. Generation
    settings are only named: measures decode greedily without them.
    """
    found: dict[str, str] = {}
    for config in _configs(model.config):
        for name, value in _rates(vars(config)):
            found[name] = f"{value:g} → 0"
            setattr(config, name, 0.0)
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
            found.setdefault("dropout modules", f"{module.p:g} → 0")
            module.p = 0.0
        for name, value in _rates(vars(module)):
            found.setdefault(name, f"{value:g} → 0")
            setattr(module, name, 0.0)
    found |= _attention(model)
    settings = getattr(model, "generation_config", None)
    biased = sorted(set(settings.to_diff_dict()) - HARMLESS_GENERATION) if settings else []
    if biased:
        found["generation settings"] = f"not used: {', '.join(biased)}"
    return found


def _configs(config: Any) -> Iterator[Any]:
    """A configuration and those inside it."""
    yield config
    for value in vars(config).values():
        if hasattr(value, "to_diff_dict"):
            yield from _configs(value)


def _rates(fields: dict[str, Any]) -> list[tuple[str, float]]:
    return [
        (name, float(value))
        for name, value in fields.items()
        if any(part in name.lower() for part in NOISE)
        and isinstance(value, (int, float))
        and not isinstance(value, bool)
        and value > 0
    ]


def _attention(model: Any) -> dict[str, str]:
    given = getattr(model.config, "_attn_implementation", None)
    wanted = "sdpa" if getattr(model, "_supports_sdpa", False) else "eager"
    if given in (None, wanted):
        return {}
    model.set_attn_implementation(wanted)
    return {"attention implementation": f"{given} → {wanted}"}
