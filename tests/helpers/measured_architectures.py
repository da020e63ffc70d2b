"""Small random models of many architectures, whose weights are large enough that every token
matters; and a bundle that takes token ids for examples.
"""

from types import SimpleNamespace

import torch
import transformers as hf

from titer.data.bundle import ModelBundle

VOCABULARY, PAD, END, WINDOW = 64, 0, 2, 8
ALIKE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "initializer_range": 0.35,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": END,
}
LLAMA = ALIKE | {
    "intermediate_size": 48,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
HEADS = LLAMA | {"head_dim": 8}
SLIDING = {"sliding_window": WINDOW}

WINDOWED = {
    "mistral": lambda: hf.MistralConfig(**LLAMA, **SLIDING),
    "gemma3": lambda: hf.Gemma3TextConfig(
        **HEADS, **SLIDING, layer_types=["sliding_attention", "sliding_attention", "full_attention"]
    ),
    "gemma2": lambda: hf.Gemma2Config(**HEADS, **SLIDING),
    "qwen2": lambda: hf.Qwen2Config(
        **LLAMA, **SLIDING, use_sliding_window=True, max_window_layers=1
    ),
    "llama4": lambda: hf.Llama4TextConfig(
        **HEADS,
        attention_chunk_size=WINDOW,
        num_local_experts=2,
        intermediate_size_mlp=48,
        layer_types=["chunked_attention", "chunked_attention", "full_attention"],
    ),
    "gpt_neo": lambda: hf.GPTNeoConfig(
        **{k: v for k, v in ALIKE.items() if k != "num_hidden_layers"},
        num_layers=2,
        attention_types=[[["global", "local"], 1]],
        window_size=WINDOW,
        max_position_embeddings=128,
    ),
}
"""Models in which some layers look back over `WINDOW` tokens only."""

FULL = {
    "gpt2": lambda: hf.GPT2Config(**ALIKE, n_positions=128),
    "opt": lambda: hf.OPTConfig(
        **ALIKE, ffn_dim=48, max_position_embeddings=128, init_std=0.35, word_embed_proj_dim=32
    ),
    "neox": lambda: hf.GPTNeoXConfig(**ALIKE, intermediate_size=48, max_position_embeddings=128),
    "falcon": lambda: hf.FalconConfig(**ALIKE, max_position_embeddings=128),
    "falcon_alibi": lambda: hf.FalconConfig(**ALIKE, alibi=True),
    "qwen3": lambda: hf.Qwen3Config(**HEADS),
    "mixtral": lambda: hf.MixtralConfig(**LLAMA, num_local_experts=4, num_experts_per_tok=2),
}
"""Models in which every layer sees everything."""

RECURRENT = {
    "mamba": lambda: hf.MambaConfig(
        **{k: v for k, v in ALIKE.items() if k != "num_attention_heads"}, state_size=8
    ),
    "bloom": lambda: hf.BloomConfig(**ALIKE),
    "lfm2": lambda: hf.Lfm2Config(
        **LLAMA, block_multiple_of=16, layer_types=["conv", "full_attention", "conv"]
    ),
}
"""Models whose past is not only keys and values, or that take no positions."""

EVERY = {**WINDOWED, **FULL, **RECURRENT}


def build(name, seed=0):
    torch.manual_seed(seed)
    return hf.AutoModelForCausalLM.from_config(EVERY[name]()).eval()


class BundleOfIds(ModelBundle):
    """The examples are the token ids of prompts."""

    def prompt(self, example):
        return example


def bundle_of(model, eval_batch=3):
    tokenizer = SimpleNamespace(
        pad_token_id=PAD,
        eos_token_id=END,
        decode=lambda ids, skip_special_tokens: " ".join(str(i) for i in ids),
    )
    return BundleOfIds(
        model=model, tokenizer=tokenizer, device=torch.device("cpu"), eval_batch=eval_batch
    )
