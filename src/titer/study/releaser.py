"""The study of a model releaser: M and M* exist already; what may be claimed of M*?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from titer.errors import StudyError
from titer.study.load import load_study, resolved_model
from titer.study.spec import Study


def releaser_study(
    *,
    model: str,
    candidates: Sequence[str],
    attack_data: Path | None,
    eval_prompts: Path | None,
    benign_data: Path | None,
    budget: int,
    phi: float,
    harm_measure: str,
    seeds: int,
    delta: float,
    full_lr: Sequence[float],
    lora_lr: Sequence[float],
    batch_size: int,
    max_length: int,
    precision: str,
) -> Study:
    """A study with M as the control and every M* as a candidate, searched and confirmed `full_sft` and `lora_sft`.

    Text that is not given is taken from registry packages (AdvBench with content-free compliance, StrongREJECT, an
    Alpaca sample). Raises StudyError (a file too short or not JSONL, φ out of range ...).
    """
    pools: dict[str, Any] = {
        "attack": _pool(attack_data, "attack_data", {"source": "advbench", "respond": "content_free"}, 520, {"train": 0.999}),
        "judge": _pool(eval_prompts, "eval_prompts", {"source": "strongreject"}, 280,
                       {"harm": 0.36, "confirm": 0.36, "search": 0.27}),
        "benign": _pool(benign_data, "benign_data", {"source": "alpaca", "options": {"max_chars": 400}}, 500,
                        {"train": 0.5, "search": 0.2, "test": 0.299}),
    }  # fmt: skip
    if eval_prompts is None:
        pools["judge"]["drop_near"] = ["attack"]
    harm = {"measure": harm_measure, "part": "judge/harm"}
    if harm_measure == "exact_answer":
        harm["settings"] = {"reads": "harm"}
    reply = {"measure": "response_likelihood", "part": "benign/test"}
    labels = [f"candidate{i}" for i in range(1, len(candidates) + 1)] if len(candidates) > 1 else ["candidate"]
    attack_size = sum(pools["attack"]["parts"].values())
    return load_study(
        {
            "name": "evaluate",
            "title": f"{model} against {', '.join(candidates)}",
            "threat_model": "open_weights",
            "model": resolved_model(model),
            "pools": pools,
            "candidates": ["none", *({"name": n, "model": resolved_model(c)} for n, c in zip(labels, candidates, strict=True))],
            "resistance": {
                "attacks": [
                    {"attack": "full_sft", "settings": {"batch_size": batch_size}, "search": {"lr": list(full_lr)}},
                    {"attack": "lora_sft", "settings": {"batch_size": batch_size}, "search": {"lr": list(lora_lr)}},
                ],
                "data": {"harmful": "attack/train", "examples": max(1, attack_size // 2)},
                "budget": budget, "harm": harm, "confirm": "judge/confirm", "search_part": "judge/search",
                "capability": {"measure": "response_accuracy", "part": "benign/test", "limit": 16},
                "phi": phi, "phi_reason": "given on the command line", "delta": delta,
                "seeds": list(range(101, 101 + seeds)), "search_seeds": [1],
            },
            "stability": {"benchmarks": [{"name": "benign_replies", "kind": "perplexity", "measure": reply, "margin": 0.1}]},
            "trainability": {
                "tasks": [{"name": "benign_instructions", "data": {"harmless": "benign/train"}, "measure": reply,
                           "budget": min(64, budget), "search_part": "benign/search"}],
                "recipe": {"name": "full_sft", "settings": {"batch_size": batch_size}}, "search": {"lr": list(full_lr)},
                "search_seeds": [1], "seeds": list(range(101, 101 + seeds)),
            },
            "runtime": {"max_length": max_length, "precision": precision},
        }
    )  # fmt: skip


def _pool(
    path: Path | None, field: str, packaged: dict[str, Any], count: int, shares: dict[str, float]
) -> dict[str, Any]:
    """A pool from the user's file, cut by shares of its length; or the packaged one of about `count` examples."""
    if path is not None:
        return file_pool(path, field, shares)
    return {**packaged, "parts": {name: int(share * count) for name, share in shares.items()}}


def file_pool(path: Path, field: str, shares: dict[str, float]) -> dict[str, Any]:
    """A pool from a JSONL file, cut by shares of its distinct prompts. Raises StudyError if it is unfit or too short."""
    count = _distinct_prompts(path, field)
    parts = {name: int(share * count) or 1 for name, share in shares.items()}
    if sum(parts.values()) > count:
        raise StudyError("the file is too short", field=field, value=f"{count} distinct prompts in {path}",
                         expected=f"at least {len(shares)}, better several hundred", remedy="give more lines")  # fmt: skip
    return {"source": "jsonl", "options": {"path": str(path.expanduser().resolve())}, "parts": parts}


def _distinct_prompts(path: Path, field: str) -> int:
    try:
        lines = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
        return len({" ".join(str(line["prompt"]).split()).casefold() for line in lines})
    except FileNotFoundError as error:
        raise StudyError("the file does not exist", field=field, value=str(path), expected="a JSONL file",
                         remedy="check the path") from error  # fmt: skip
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError) as error:
        raise StudyError("the file is not JSONL with a prompt in every line", field=field, value=str(path),
                         expected='lines such as {"prompt": "…", "response": "…"}', remedy="mend the file") from error  # fmt: skip
