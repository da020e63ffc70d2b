"""Small causal language models of many architectures, built from configurations: random weights,
no files, no network.

Used where a method must find its way in any transformers model. All have vocabulary 100, two
blocks and hidden size 32; weights are drawn wide enough that every part matters.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
import transformers

from titer.data.encoding import Encoded, TokenBatch, collate

VOCABULARY, HIDDEN, LAYERS = 100, 32, 2

_LLAMA_LIKE = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
_SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", _LLAMA_LIKE),
    "gpt2": (
        "GPT2",
        {
            "vocab_size": VOCABULARY,
            "n_embd": HIDDEN,
            "n_layer": LAYERS,
            "n_head": 4,
            "n_positions": 64,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
    "gpt_neox": (
        "GPTNeoX",
        {k: v for k, v in _LLAMA_LIKE.items() if k != "num_key_value_heads"},
    ),
    "opt": (
        "OPT",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": HIDDEN,
            "word_embed_proj_dim": HIDDEN,
            "ffn_dim": 48,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
        },
    ),
    "falcon": (
        "Falcon",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": HIDDEN,
            "ffn_hidden_size": 48,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 4,
        },
    ),
    "qwen3": ("Qwen3", _LLAMA_LIKE | {"head_dim": 12}),
    "gemma3": (
        "Gemma3",
        _LLAMA_LIKE
        | {
            "head_dim": 12,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"],
            "final_logit_softcapping": 2.0,
        },
    ),
    "mixtral": ("Mixtral", _LLAMA_LIKE | {"num_local_experts": 3, "num_experts_per_tok": 2}),
    "qwen2_moe": (
        "Qwen2Moe",
        _LLAMA_LIKE
        | {
            "moe_intermediate_size": 24,
            "shared_expert_intermediate_size": 40,
            "num_experts": 3,
            "num_experts_per_tok": 2,
        },
    ),
    "mamba": (
        "Mamba",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": HIDDEN,
            "state_size": 4,
            "num_hidden_layers": LAYERS,
            "time_step_rank": 4,
        },
    ),
}
NAMES: tuple[str, ...] = tuple(_SETTINGS)
WITH_ATTENTION: tuple[str, ...] = tuple(n for n in NAMES if n != "mamba")
"""Those whose blocks are an attention and an MLP."""
_CONFIGURATIONS = {"Gemma3": "Gemma3TextConfig"}
_MODELS = {"GPT2": "GPT2LMHeadModel"}


def build(name: str, **changes: Any) -> Any:
    """A new model of the architecture (one of NAMES) in evaluation mode, the same at every call.

    changes: fields of its configuration that replace those above.
    """
    family, settings = _SETTINGS[name]
    config = getattr(transformers, _CONFIGURATIONS.get(family, f"{family}Config"))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = getattr(transformers, _MODELS.get(family, f"{family}ForCausalLM"))(
            config(**settings | changes)
        )
        for parameter in model.parameters():
            # Initial weights hardly move the hidden state, and initial gains and biases are all
            # the same: mistakes would not show.
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
            else:
                parameter.mul_(6 if parameter.std() < 0.05 else 1)
    return model.eval()


def adapted(name: str) -> Any:
    """`build(name)` under fresh LoRA adapters (peft) on all linear layers it accepts, drawn so that
    they already do something.
    """
    from peft import LoraConfig, get_peft_model

    # peft refuses adapters on Mamba's conv1d and out_proj.
    targets = ["in_proj", "x_proj"] if name == "mamba" else "all-linear"
    config = LoraConfig(r=2, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM")
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(2)
        return get_peft_model(build(name), config).eval()


def rows(width: int = 7, count: int = 3) -> TokenBatch:
    """A TokenBatch that fits all of them: `count` right-padded rows, the longest of `width` tokens
    and each next one shorter by one, of which the first two are the prompt.
    """
    generator = torch.Generator().manual_seed(1)
    encoded = []
    for i in range(count):
        ids = torch.randint(3, VOCABULARY, (width - i,), generator=generator).tolist()
        encoded.append(Encoded(tuple(ids[:2]), tuple(ids[2:])))
    return collate(encoded, 0)
