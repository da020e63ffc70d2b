"""A model's identity by content, computed without loading it: the part of a cell's digest that
names the root model.
"""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path

from titer.assets.checks import readable, refuse
from titer.assets.manifest import file_digest, manifest
from titer.errors import AssetError
from titer.study.reference import ModelRef


def identify(ref: ModelRef, *, depth: int = 0) -> str:
    """`source:hash`. path: sha256 over names and contents of configuration, tokenizer and weight
    files, and of the base model where it is an adapter; package: the pinned hash; tiny: hashes of
    the shipped files; hub: the commit. Raises AssetError.
    """
    if ref.source == "path":
        return "path:" + _path_hash(Path(ref.name).expanduser(), depth)
    if ref.source == "package":
        from titer.assets.packages import provenance

        return f"package:{provenance(ref.name)['sha256'][:24]}"
    if ref.source == "tiny":
        return f"tiny:{ref.name}:{_tiny_hash()}"
    return f"hub:{ref.name}@{_hub_commit(ref)}"


DEEPEST = 4
"""How many adapters of adapters are followed to their base."""


def _path_hash(path: Path, depth: int) -> str:
    if not path.exists():
        raise AssetError(
            "the model directory does not exist",
            field="model",
            value=str(path),
            expected="a directory in transformers' layout (config.json, *.safetensors, tokenizer)",
        )
    files = manifest(path) if path.is_dir() else {path.name: file_digest(path)}
    total = hashlib.sha256()
    for name, digest in files.items():
        total.update(name.encode() + b"\0" + bytes.fromhex(digest))
    if base := base_of(path):
        if depth == DEEPEST:
            raise refuse("adapters name one another as their base", path, "a base model", "")
        total.update(identify(base, depth=depth + 1).encode())
    return total.hexdigest()[:24]


def base_of(path: Path) -> ModelRef | None:
    """The base model of an adapter directory; None if it is not an adapter. Raises AssetError."""
    config = path / "adapter_config.json"
    if not config.is_file():
        return None
    with readable("adapter_config.json cannot be read", path, "JSON", "save the adapter again"):
        said = json.loads(config.read_text("utf-8"))
        named, revision = str(said.get("base_model_name_or_path") or ""), said.get("revision")
        if not named:
            return None
        folder = next(
            (p for p in (Path(named).expanduser(), path / named) if named and p.exists()), None
        )
        return ModelRef(
            source="path" if folder else "hub",
            name=str(folder or named),
            revision=None if folder else revision,
        )


@lru_cache(maxsize=1)
def _tiny_hash() -> str:
    manifest = Path(__file__).parent / "tiny" / "SHA256SUMS.json"
    return hashlib.sha256(
        json.dumps(json.loads(manifest.read_text()), sort_keys=True).encode()
    ).hexdigest()[:24]


@lru_cache(maxsize=32)
def _hub_commit(ref: ModelRef) -> str:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return str(HfApi().model_info(ref.name, revision=ref.revision).sha)
    except Exception as error:  # any network error: fall back on the cache
        try:
            cached = snapshot_download(ref.name, revision=ref.revision, local_files_only=True)
            return Path(cached).name
        except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError):
            raise AssetError(
                "the model is neither on the hub as seen from here nor in the local cache",
                field="model",
                value=str(ref),
                expected="a hub id, with network or already downloaded",
                remedy="check the name and the network, or give a directory",
            ) from error
