"""GGUF files, dequantised."""

from __future__ import annotations

import copy
import io
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch

from titer.assets.cache import sha256_of
from titer.assets.checks import readable, refuse
from titer.assets.tokenizer import choose_pad


def load_gguf(path: Path) -> tuple[Any, Any, dict[str, str]]:
    """A GGUF file, dequantised, as an ordinary model that can be trained and saved."""
    if not path.is_file():
        raise refuse("the GGUF file does not exist", path, "a .gguf file")
    kinds = _kinds(path)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    expected = "a GGUF file of an architecture transformers can read"
    with readable(
        "the GGUF file cannot be loaded", path, expected, "give the original safetensors instead"
    ):
        with redirect_stderr(io.StringIO()):  # its progress bar has no switch
            source = AutoModelForCausalLM.from_pretrained(
                path.parent, gguf_file=path.name, dtype=torch.float32
            )
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        # transformers treats a model loaded this way as quantised and cannot save it, so its
        # weights are copied into a new one.
        config = copy.deepcopy(source.config)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        choose_pad(tokenizer)
        config.pad_token_id = tokenizer.pad_token_id
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
        model.load_state_dict(source.state_dict())
        model.tie_weights()
        model.generation_config = copy.deepcopy(source.generation_config)
    return model, tokenizer, {"file_sha256": sha256_of(path), "note": f"dequantised from {kinds}"}


def _kinds(path: Path) -> str:
    """The quantised types in a GGUF file, most bytes first, e.g. 'Q4_1, F32'. Raises AssetError if
    it is truncated.
    """
    from gguf import GGUFReader

    sizes: dict[str, int] = {}
    with readable(
        "the GGUF file is truncated or damaged",
        path,
        "a whole GGUF file",
        "copy or download it again",
    ):
        for tensor in GGUFReader(path).tensors:
            sizes[tensor.tensor_type.name] = sizes.get(tensor.tensor_type.name, 0) + int(
                tensor.n_bytes
            )
    return ", ".join(sorted(sizes, key=lambda kind: -sizes[kind]))
