"""Prepares tokenizers for batched chats, and rejects those that cannot be used."""

from __future__ import annotations

from typing import Any

from titer.assets.checks import refuse
from titer.study.reference import ModelRef

PADS = ("<|pad|>", "<pad>", "[PAD]", "<|finetune_right_pad_id|>", "<|endoftext|>")
"""Tokens meant for padding, or never used in chats; used when a tokenizer has no padding token or
pads with its end token.
"""


def check_tokenizer(model: Any, tokenizer: Any, ref: ModelRef) -> dict[str, str]:
    """Make padding possible, and reject a tokenizer that cannot be used. Changes are noted in the
    provenance.
    """
    if ref.task == "causal" and not tokenizer.chat_template:
        raise refuse(
            "the tokenizer has no chat template",
            ref,
            "an instruction-tuned model with a chat template",
            "add a chat_template.jinja to the model's directory",
        )
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise refuse(
            "the tokenizer does not belong to the model",
            ref,
            f"at most {rows} tokens; it has {len(tokenizer)}",
            "save the right tokenizer beside the model",
        )
    note = choose_pad(tokenizer)
    if tokenizer.pad_token is None:
        raise refuse(
            "the tokenizer has neither a padding nor an end token",
            ref,
            "an end-of-turn token",
            "set eos_token in tokenizer_config.json",
        )
    if ref.task == "causal":
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    return {"padding": note}


def choose_pad(tokenizer: Any) -> str:
    """Set a padding token that is not the end token, if the vocabulary has one, and say which."""
    if tokenizer.pad_token is None or tokenizer.pad_token == tokenizer.eos_token:
        vocabulary = tokenizer.get_vocab()
        spare = next((t for t in PADS if t in vocabulary and t != tokenizer.eos_token), None)
        tokenizer.pad_token = spare or tokenizer.eos_token
    return f"{tokenizer.pad_token}" + (
        " (the end token)" if tokenizer.pad_token == tokenizer.eos_token else ""
    )
