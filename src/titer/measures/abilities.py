"""Which arguments a model's forward pass accepts, and how far its layers look back."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

from titer.data.bundle import ModelBundle
from titer.errors import MeasureError

WINDOWS = ("sliding_window", "attention_chunk_size", "attention_window_size", "window_size")
"""What configurations call the number of tokens a layer looks back over."""


def unwrapped(model: Any) -> Any:
    """The transformers model under peft's wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def text_config(model: Any) -> Any:
    """The configuration of the language model, which multimodal models keep within another one."""
    config = model.config
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def accepted(model: Any, **arguments: Any) -> dict[str, Any]:
    """Those of the arguments that the model's forward pass names."""
    names = inspect.signature(unwrapped(model).forward).parameters
    return {name: value for name, value in arguments.items() if name in names}


def can_continue(model: Any) -> bool:
    """Whether a forward pass can go on from cached keys and values at positions we choose.

    It cannot with a prompt learned by peft, which peft prepends to the text, shifting every
    position.
    """
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        return False
    wanted = ("attention_mask", "position_ids", "past_key_values", "use_cache")
    return len(accepted(model, **dict.fromkeys(wanted))) == len(wanted)


def window(model: Any) -> int | None:
    """The fewest tokens that any layer looks back over; None if all layers see everything.

    Where layers differ, or it is not said which of them are windowed, the smallest counts.
    """
    config = text_config(model)
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds == {"full_attention"}:
        return None
    layers = [config, *(getattr(config, "per_layer_config", None) or ())]
    sizes = [getattr(layer, name, None) for layer in layers for name in WINDOWS]
    return min((s for s in sizes if isinstance(s, int) and s > 0), default=None)


def refuse_too_long(bundle: ModelBundle, tokens: int) -> None:
    """Raises MeasureError if the model's context is shorter: its output beyond it would be taken
    for its behaviour.
    """
    most = getattr(text_config(bundle.model), "max_position_embeddings", None)
    if most is not None and tokens > most:
        raise MeasureError(
            "a prompt with its answer is longer than the model's context",
            field="tokens",
            value=tokens,
            expected=f"at most {most}, the model's max_position_embeddings",
            remedy="shorten or leave out the longest prompts of the part that is read",
        )


def chunks_by_length(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Indices in chunks of at most `size` and of similar length: little padding is computed."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    for start in range(0, len(order), size):
        yield order[start : start + size]
