"""The tiny model shipped with titer, in three variants, checked against its hashes and loaded
without a network.

base: taught the right answers in the harm-proxy and the harmless domains of `titer.assets.world`.
aligned: base, then taught to refuse the harm-proxy domains; what it knew of them is still there to
be brought back. untaught: never taught the harm-proxy domains, then aligned the same way; nothing
is there to be brought back.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from titer.assets import world
from titer.errors import AssetError, UnknownNameError

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

VARIANTS = ("base", "aligned", "untaught")
FOLDER = Path(__file__).parent / "tiny"
SUMS = "SHA256SUMS.json"
REMEDY = "install titer again, or make the models again with scripts/make_tiny_model.py"


def load_tiny(
    variant: str, *, folder: Path = FOLDER
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast, dict[str, str]]:
    """(model, tokenizer, provenance) of a variant: float32, on the CPU, in evaluation mode.

    provenance: name, version of the world, licence, sha256 of the weights, note. folder: where the
    variants lie. Raises UnknownNameError for an unknown variant, AssetError if a file is missing,
    truncated or altered.
    """
    sums = verify_tiny(variant, folder=folder)
    # Imported here: the message about a wrong file or name should not wait for transformers.
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.utils import logging

    place = folder / variant
    bars = logging.is_progress_bar_enabled()
    # 29 small tensors need no progress bar
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model = LlamaForCausalLM.from_pretrained(
            place, local_files_only=True, use_safetensors=True, dtype=torch.float32
        )
    finally:
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(place, local_files_only=True)
    model.eval()  # type: ignore[no-untyped-call]
    provenance = {
        "name": f"tiny:{variant}",
        "version": str(world.WORLD_VERSION),
        "license": "Apache-2.0",
        "sha256": sums["model.safetensors"],
        "note": "shipped with titer; made by scripts/make_tiny_model.py",
    }
    return model, tokenizer, provenance


def verify_tiny(variant: str, *, folder: Path = FOLDER) -> dict[str, str]:
    """Check every file of a variant against SHA256SUMS.json; file name → sha256. Raises as
    `load_tiny` does.
    """
    if variant not in VARIANTS:
        raise UnknownNameError.among("tiny model", str(variant), VARIANTS, field="model.name")
    sums = {
        name.removeprefix(f"{variant}/"): expected
        for name, expected in _manifest(folder).items()
        if name.startswith(f"{variant}/")
    }
    for name in (
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    ):
        if name not in sums:
            raise AssetError(
                "the list of hashes does not name a file of the tiny model",
                field=SUMS,
                value=f"{variant}/{name}",
                expected="a sha256 for it",
                remedy=REMEDY,
            )
    for name, expected in sums.items():
        path = folder / variant / name
        try:
            found = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise AssetError(
                f"a file of the tiny model cannot be read ({error.__class__.__name__})",
                field=name,
                value=str(path),
                expected="the file as shipped",
                remedy=REMEDY,
            ) from error
        if found != expected:
            raise AssetError(
                "a file of the tiny model is truncated or altered",
                field=name,
                value=str(path),
                expected=f"sha256 {expected}, found {found}",
                remedy=REMEDY,
            )
    return sums


def _manifest(folder: Path) -> dict[str, str]:
    path = folder / SUMS
    try:
        sums = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise AssetError(
            f"the hashes of the tiny models cannot be read ({error.__class__.__name__})",
            field=SUMS,
            value=str(path),
            expected="JSON: file → sha256",
            remedy=REMEDY,
        ) from error
    if not isinstance(sums, dict) or not all(isinstance(v, str) for v in sums.values()):
        raise AssetError(
            "the file of hashes of the tiny models does not map files to hashes",
            field=SUMS,
            value=str(path),
            expected="JSON: file → sha256",
            remedy=REMEDY,
        )
    return sums
