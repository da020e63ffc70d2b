"""Fingerprints of models and tokenizers: was something changed that was only to be read?"""

from __future__ import annotations

import hashlib
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn


def model_fingerprint(model: nn.Module) -> str:
    """16 hex digits that change with names, shapes, types or values of parameters and buffers, and
    with what requires a gradient.

    Of values it takes two sums per tensor, so that a large model costs two passes over its weights.
    """
    total = hashlib.sha256()
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        facts = (name, tuple(tensor.shape), tensor.dtype, tensor.requires_grad, *_sums(tensor))
        total.update(repr(facts).encode())
    return total.hexdigest()[:16]


def _sums(tensor: Tensor) -> tuple[float, float]:
    values = tensor.detach()
    if values.is_complex():
        values = torch.view_as_real(values)
    if values.is_floating_point():
        return float(values.sum(dtype=torch.float64)), float(values.norm(dtype=torch.float32))
    return float(values.sum(dtype=torch.int64)), 0.0


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """16 hex digits that change with the chat template, the special tokens, the side of padding or
    the number of tokens.
    """
    facts = (
        tokenizer.chat_template,
        tokenizer.padding_side,
        sorted((k, str(v)) for k, v in tokenizer.special_tokens_map.items()),
        len(tokenizer),
    )
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
