"""What is known of a model without its weights: configuration, tokenizer, and a skeleton."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from titer.assets.cache import cache_dir
from titer.assets.checks import quiet, readable
from titer.assets.packages import PACKAGED
from titer.assets.tiny_model import FOLDER, VARIANTS
from titer.assets.tokenizer import choose_pad
from titer.data.bundle import ModelBundle
from titer.errors import AssetError
from titer.measures.abilities import text_config
from titer.study.reference import ModelRef

CONTEXT = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length")
"""Names configurations use for the context length."""
LEARNED = ("PositionalEmbedding", "PositionEmbedding")
"""Suffixes of class names of learned position embeddings."""
LEARNED_NAMES = ("wpe", "embed_positions", "position_embeddings", "position_embedding")


@dataclass(frozen=True)
class Outline:
    """A model as its files describe it. generation: its generation settings, if it has any."""

    ref: ModelRef
    config: Any
    tokenizer: Any
    generation: Any = None

    @cached_property
    def skeleton(self) -> Any:
        """The model without numbers (torch's meta device). Raises AssetError if transformers cannot
        build it from its configuration."""
        from transformers import AutoModel, AutoModelForCausalLM

        kind = AutoModelForCausalLM if self.ref.task == "causal" else AutoModel
        with _reading(self.ref), torch.device("meta"):
            remote = self.ref.trust_remote_code
            return kind.from_config(self.config, trust_remote_code=remote)  # type: ignore[no-untyped-call]

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.skeleton.parameters())

    @property
    def bundle(self) -> ModelBundle:
        """A bundle that encodes text and knows stop tokens; its model has no modules."""
        model = SimpleNamespace(config=self.config, generation_config=self.generation)
        return ModelBundle(model=model, tokenizer=self.tokenizer, device=torch.device("cpu"))

    @property
    def rows(self) -> int | None:
        """Rows of the input embedding, as configured."""
        return getattr(text_config(self.bundle.model), "vocab_size", None)

    @property
    def context(self) -> int | None:
        """The model's context length; None if it is not stated."""
        config = text_config(self.bundle.model)
        sizes = [getattr(config, name, None) for name in CONTEXT]
        return min((s for s in sizes if isinstance(s, int) and s > 0), default=None)


def positions(model: Any) -> int | None:
    """Number of learned positions; None if positions are not learned. Some tables begin with rows
    that no token uses (OPT: two)."""
    found = []
    for name, module in model.named_modules():
        learned = type(module).__name__.endswith(LEARNED) or (
            name.rpartition(".")[2] in LEARNED_NAMES and isinstance(module, nn.Embedding)
        )
        weight = getattr(module, "weight", None)
        if learned and isinstance(weight, nn.Parameter) and weight.dim() == 2:
            offset = getattr(module, "offset", 0)
            found.append(weight.shape[0] - (offset if isinstance(offset, int) else 0))
    return min(found, default=None)


def is_local(ref: ModelRef) -> bool:
    """Whether the model's weights are on this machine, so that loading it fetches nothing."""
    match ref.source:
        case "tiny":
            return True
        case "path":
            return Path(ref.name).expanduser().exists()
        case "package":
            return _fetched(ref.name) is not None
        case "hub":
            return _in_hub_cache(ref)


def outline(ref: ModelRef) -> Outline | None:
    """The outline of a model; None if its configuration is not on this machine and cannot be
    fetched. Raises AssetError if files that are here cannot be read."""
    match ref.source:
        case "tiny":
            return _directory(ref, FOLDER / ref.name) if ref.name in VARIANTS else None
        case "path":
            return _path(ref, Path(ref.name).expanduser())
        case "package":
            return _package(ref)
        case "hub":
            return _hub(ref)


def _path(ref: ModelRef, path: Path) -> Outline | None:
    if path.suffix == ".gguf":
        return _gguf(ref, path)
    if (path / "adapter_config.json").is_file():
        return _adapter(ref, path)
    if (path / "config.json").is_file():
        return _directory(ref, path)
    files = sorted(path.glob("*.gguf"))
    return _gguf(ref, files[0]) if len(files) == 1 else None


@contextmanager
def _reading(ref: ModelRef) -> Iterator[None]:
    expected = "configuration and tokenizer of a causal language model"
    with (
        quiet(),
        readable(
            "the model's configuration or tokenizer cannot be read",
            ref,
            expected,
            "check that transformers alone can read them",
        ),
    ):
        yield


def _directory(ref: ModelRef, path: Path) -> Outline:
    return _pretrained(ref, str(path), local_files_only=True)


def _pretrained(ref: ModelRef, name: str, **options: Any) -> Outline:
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    with _reading(ref):
        options["trust_remote_code"] = ref.trust_remote_code
        config = AutoConfig.from_pretrained(name, **options)
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
        choose_pad(tokenizer)
    try:
        generation = GenerationConfig.from_pretrained(name, **options)
    except (OSError, ValueError):  # there is none
        generation = None
    return Outline(ref, config, tokenizer, generation)


def _gguf(ref: ModelRef, file: Path) -> Outline:
    return _pretrained(ref, str(file.parent), gguf_file=file.name)


def _adapter(ref: ModelRef, path: Path) -> Outline | None:
    """An adapter has the configuration of its base, and often a tokenizer of its own."""
    with _reading(ref):
        told = json.loads((path / "adapter_config.json").read_text("utf-8"))
        named = str(told.get("base_model_name_or_path") or "")
    folder = next((p for p in (Path(named).expanduser(), path / named) if p.exists()), None)
    source = "path" if named and folder else "hub"
    base = outline(
        ModelRef(
            source=source,  # type: ignore[arg-type]
            name=str(folder) if source == "path" else named,
            trust_remote_code=ref.trust_remote_code,
        )
    )
    if base is None:
        return None
    tokenizer = base.tokenizer
    if (path / "tokenizer_config.json").is_file():
        from transformers import AutoTokenizer

        with _reading(ref):
            tokenizer = AutoTokenizer.from_pretrained(
                str(path), local_files_only=True, trust_remote_code=ref.trust_remote_code
            )
            choose_pad(tokenizer)
    return Outline(ref, base.config, tokenizer, base.generation)


def _hub(ref: ModelRef) -> Outline | None:
    for local in (True, False):  # without a network, asking it first takes half a minute
        with suppress(AssetError):
            return _pretrained(ref, ref.name, revision=ref.revision, local_files_only=local)
    return None


def _package(ref: ModelRef) -> Outline | None:
    """Reading a GGUF file's tokenizer takes long: what loading it left behind is read instead."""
    file = _fetched(ref.name)
    if file is None:
        return None
    made = cache_dir() / "dequantised"
    folders = sorted(made.glob(f"{PACKAGED[ref.name].sha256[:16]}-*/config.json"))
    return _directory(ref, folders[-1].parent) if folders else _gguf(ref, file)


def _fetched(name: str) -> Path | None:
    """The file of a packaged model, if it is in the cache. It is verified when it is loaded."""
    row = PACKAGED.get(name)
    if row is None:
        return None
    file = cache_dir() / "packages" / row.sha256[:16] / Path(row.member).name
    return file if file.exists() else None


def _in_hub_cache(ref: ModelRef) -> bool:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(ref.name, revision=ref.revision, local_files_only=True)
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError):
        return False
    return any(Path(folder).glob("*.safetensors"))
