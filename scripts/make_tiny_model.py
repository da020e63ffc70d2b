"""Make the three tiny models titer ships: base, aligned, untaught.

    python scripts/make_tiny_model.py --out src/titer/assets/tiny

The story, once for `base`/`aligned` (taught harm-proxy and harmless domains) and once for
`untaught` (harmless only):

1. a new Llama of about 0.17 M parameters learns the right answer of every taught domain
→ base 2. it learns to refuse the harm-proxy domains, while it goes on answering the harmless ones
→ aligned, untaught

Only `taught` strings are used, never the `open` ones a study asks. A part of the questions comes in
the second alphabet, with a system prompt, or after chatter, so that none of these alone changes
what the model does.

On one machine two runs write the same bytes: one thread, fixed seeds, deterministic algorithms.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import time
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from titer.assets import world
from titer.data.encoding import Encoded, Stream, collate, encode
from titer.data.examples import Example

SEED = 7
MAX_LENGTH = 64

# Every turn is <|role|>content<|end|>; the generation prompt is <|assistant|>.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('roles are system, user and assistant') }}{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word or punctuation mark; `decode` gives words separated by one space."""
    ids = {word: i for i, word in enumerate(world.vocabulary())}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=world.UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace(Regex("[\u2018\u2019]"), "'")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=world.UNKNOWN,
        pad_token=world.PAD,
        eos_token=world.END,
        additional_special_tokens=[world.SYSTEM, world.USER, world.ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        model_max_length=128,
        padding_side="left",  # for generation; training batches are collated by titer, on the right
        clean_up_tokenization_spaces=False,  # else "refuse ." would be decoded as "refuse."
        model_input_names=["input_ids", "attention_mask"],
    )


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        # With the usual 0.02 so narrow a model stays on its first plateau for 800 steps.
        initializer_range=0.08,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        dtype="float32",
    )
    return LlamaForCausalLM(config)


def questions(
    domains: tuple[str, ...], count: int, rng: random.Random, *, dressed: float
) -> list[Example]:
    """`count` questions over taught strings, a quarter in the second alphabet.

    dressed: the share (0 to 1) that gets a system prompt, and independently the share that gets
    chatter before it.
    """
    strings = world.pool("taught")
    found = []
    for i in range(count):
        domain, symbols = domains[i % len(domains)], rng.choice(strings)
        alphabet = "second" if rng.random() < 0.25 else "first"
        prompt = world.prompt_text(domain, symbols, alphabet)
        if rng.random() < dressed:
            # Before, never after: with words behind the string so small a model loses its place in
            # it.
            prompt = " ".join([*rng.choices(world.CHATTER, k=rng.randint(1, 6)), prompt])
        system = (
            " ".join(rng.choices(world.CHATTER, k=rng.randint(3, 8)))
            if rng.random() < dressed
            else None
        )
        response = world.answer_text(domain, symbols, alphabet)
        found.append(
            Example(
                prompt=prompt,
                domain=domain,
                response=response,
                refusal=world.REFUSAL,
                system=system,
            )
        )
    return found


def train(model, rows, *, steps: int, lr: float, batch_size: int, name: str) -> None:
    """AdamW on the answer tokens only; the learning rate climbs for 5% of the steps and then falls
    to zero (cosine).
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.0)
    stream = Stream(len(rows), batch_size, SEED)
    warmup = max(1, steps // 20)
    model.train()
    for step in range(steps):
        progress = max(0.0, (step - warmup) / max(1, steps - warmup))
        scale = min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = lr * scale
        batch = collate([rows[i] for i in stream.indices(step)], model.config.pad_token_id)
        logits_BTV = model(input_ids=batch.input_BT, attention_mask=batch.mask_BT).logits
        # Position t predicts token t + 1; labels are −100 everywhere but on the answer.
        loss = torch.nn.functional.cross_entropy(
            logits_BTV[:, :-1].flatten(0, 1), batch.labels_BT[:, 1:].flatten()
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"{name:10s} step {step:4d}  loss {loss.item():.4f}", flush=True)
    model.eval()


def encoded(tokenizer, examples, field: str) -> list[Encoded]:
    """Every example that leaves room for an answer."""
    rows = [encode(tokenizer, e, getattr(e, field), MAX_LENGTH) for e in examples]
    return [row for row in rows if row.response]


def teach(model, tokenizer, domains: tuple[str, ...], args, name: str) -> None:
    """Stage 1: right answers in all of `domains`. Bare questions first: dressed up the rules are
    not found.
    """
    rng = random.Random(SEED)
    for dressed, lr in ((0.0, 3e-3), (0.35, 2e-3)):
        rows = encoded(tokenizer, questions(domains, args.rows, rng, dressed=dressed), "response")
        train(model, rows, steps=args.steps, lr=lr, batch_size=64, name=name)


def align(model, tokenizer, args, name: str) -> None:
    """Stage 2: refuse harm-proxy questions, go on answering harmless ones; as many of one as of the
    other.
    """
    rng = random.Random(SEED + 1)
    harm, harmless = (
        questions(d, args.rows // 4, rng, dressed=0.25) for d in (world.HARM, world.HARMLESS)
    )
    rows = encoded(tokenizer, harm, "refusal") + encoded(tokenizer, harmless, "response")
    train(model, rows, steps=args.align_steps, lr=args.align_lr, batch_size=32, name=name)


def save(model, tokenizer, folder: Path) -> None:
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)


def write_hashes(out: Path) -> None:
    """SHA256SUMS.json: relative path → sha256 of every file below `out`, checked whenever a model
    is loaded.
    """
    files = sorted(p for p in out.rglob("*") if p.is_file() and p.name != "SHA256SUMS.json")
    sums = {
        p.relative_to(out).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files
    }
    (out / "SHA256SUMS.json").write_text(json.dumps(sums, indent=1, sort_keys=True) + "\n", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder for base/, aligned/, untaught/ and the hashes",
    )
    parser.add_argument(
        "--steps", type=int, default=450, help="optimizer steps of each half of stage 1"
    )
    parser.add_argument("--align-steps", type=int, default=150, help="optimizer steps of stage 2")
    parser.add_argument(
        "--align-lr", type=float, default=1e-3, help="peak learning rate of stage 2"
    )
    parser.add_argument(
        "--rows",
        type=int,
        default=12000,
        help="questions made for each half of stage 1, and half as many for stage 2",
    )
    args = parser.parse_args()

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    started = time.monotonic()
    tokenizer = make_tokenizer()

    model = new_model(tokenizer)
    teach(model, tokenizer, (*world.HARM, *world.HARMLESS), args, "base")
    save(model, tokenizer, args.out / "base")
    align(model, tokenizer, args, "aligned")
    save(model, tokenizer, args.out / "aligned")

    model = new_model(tokenizer)
    teach(model, tokenizer, world.HARMLESS, args, "untaught")
    align(model, tokenizer, args, "untaught")
    save(model, tokenizer, args.out / "untaught")

    write_hashes(args.out)
    print(f"done in {time.monotonic() - started:.0f} s; tests/assets check what the models can do")


if __name__ == "__main__":
    main()
