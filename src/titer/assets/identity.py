"""What a model is, by content and without loading it: the part of a cell's digest that names the
root model.
"""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path

from titer.errors import AssetError
from titer.study.reference import ModelRef


@lru_cache(maxsize=32)
def identify(ref: ModelRef) -> str:
    """`source:hash`. path: sha256 over names and contents of configuration, tokenizer and weight
    files; package: the pinned hash; tiny: hashes of the shipped files; hub: the commit. Raises
    AssetError.
    """
    if ref.source == "path":
        return "path:" + _directory_hash(Path(ref.name))
    if ref.source == "package":
        from titer.assets.packages import provenance

        return f"package:{provenance(ref.name)['sha256'][:24]}"
    if ref.source == "tiny":
        return f"tiny:{ref.name}:{_tiny_hash()}"
    return f"hub:{ref.name}@{_hub_commit(ref)}"


def _directory_hash(path: Path) -> str:
    if not path.exists():
        raise AssetError(
            "the model directory does not exist",
            field="model",
            value=str(path),
            expected="a directory in transformers' layout (config.json, *.safetensors, tokenizer)",
            remedy="check the path",
        )
    files = (
        [path]
        if path.is_file()
        else sorted(
            f
            for f in path.iterdir()
            if f.is_file()
            and f.suffix in (".json", ".safetensors", ".jinja", ".model", ".gguf", ".txt")
        )
    )
    total = hashlib.sha256()
    for file in files:
        total.update(file.name.encode() + b"\0")
        with file.open("rb") as handle:
            total.update(hashlib.file_digest(handle, "sha256").digest())
    return total.hexdigest()[:24]


def _tiny_hash() -> str:
    manifest = Path(__file__).parent / "tiny" / "SHA256SUMS.json"
    return hashlib.sha256(
        json.dumps(json.loads(manifest.read_text()), sort_keys=True).encode()
    ).hexdigest()[:24]


def _hub_commit(ref: ModelRef) -> str:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return str(HfApi().model_info(ref.name, revision=ref.revision).sha)
    except Exception as error:  # any network trouble: fall back on what is cached
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
