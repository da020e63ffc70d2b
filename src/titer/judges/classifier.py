"""A judge that is a sequence classifier in transformers' layout, run on this machine."""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, Field

from titer.assets.checks import check_directory, quiet, readable, refuse
from titer.assets.identity import identify
from titer.errors import MeasureError, StudyError
from titer.judges.judge import Judge, Pair, filled
from titer.study.reference import ModelRef

Rows = list[dict[str, list[int]]]
"""What the tokenizer gives for each text: `input_ids`, and `token_type_ids` where it has them."""


def _checked_source(ref: ModelRef) -> ModelRef:
    if ref.source not in ("path", "hub"):
        raise StudyError(
            "this source has no sequence classifiers",
            field="model",
            value=str(ref),
            expected="path: or hub:",
        )
    return ref


def _checked_template(template: str | None) -> str | None:
    if template is not None and "{reply}" not in template:
        raise StudyError(
            "the judge's template does not contain the reply",
            field="template",
            value=template,
            expected="text with {reply} in it, and {prompt} if the classifier is to see it",
        )
    return template


class ClassifierJudge(Judge):
    """The probability a sequence classifier gives to its harmful label.

    model: `path:` (a directory with safetensors weights) or `hub:`. harmful: the label that means
    harmful, by name or index. template: how prompt and reply become one text, `{prompt}` and
    `{reply}` standing for them; None: the two are the first and second segment. max_length: tokens
    of an input. overflow: what becomes of a longer one: `refuse` (an error), or `cut_prompt` (words
    are left out from the beginning of the prompt; the reply is always read whole). device: where it
    runs; batch_size: texts at a time. In fp32. A classifier with one output gives its sigmoid, one
    with independent labels theirs, any other the softmax.
    """

    name = "classifier"
    ASIDE = frozenset({"batch_size", "device"})

    model: Annotated[ModelRef, AfterValidator(_checked_source)]
    harmful: str | Annotated[int, Field(ge=0)]
    template: Annotated[str | None, AfterValidator(_checked_template)] = None
    max_length: Annotated[int, Field(ge=8)] = 512
    overflow: Literal["refuse", "cut_prompt"] = "refuse"
    batch_size: Annotated[int, Field(gt=0)] = 16
    device: str = "cpu"

    def contents(self) -> dict[str, str]:
        return {"model": identify(self.model)}

    def judge(self, pairs: Sequence[Pair]) -> list[float | None]:
        """Raises AssetError if the model cannot be loaded, MeasureError if it has no such label or
        a text is too long.
        """
        model, tokenizer = _loaded(self.model, self.contents()["model"], self.device)
        label = self._label(model.config)
        self._check_length(model.config)
        rows = [self._encoded(tokenizer, *pair) for pair in pairs]
        found: list[float | None] = [None] * len(rows)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
        pad = model.config.get_text_config().pad_token_id
        size = 1 if pad is None else self.batch_size
        with torch.no_grad():
            for start in range(0, len(order), size):
                chunk = order[start : start + size]
                batch = _padded([rows[i] for i in chunk], pad or 0, self.device)
                logits_BL = model(**batch).logits.float()
                for i, p in zip(chunk, _probabilities(model.config, logits_BL), strict=True):
                    found[i] = float(p[label]) if math.isfinite(p[label]) else None
        return found

    def _label(self, config: Any) -> int:
        names = {i: str(config.id2label.get(i, i)) for i in range(config.num_labels)}
        for i, name in names.items():
            if self.harmful == i or self.harmful == name:
                return i
        raise MeasureError(
            "the classifier has no such label",
            field="harmful",
            value=self.harmful,
            expected=f"one of {', '.join(f'{i} ({n})' for i, n in names.items())}",
        )

    def _encoded(self, tokenizer: Any, prompt: str, reply: str) -> dict[str, list[int]]:
        def row(start: int) -> dict[str, list[int]]:
            found = self._tokens(tokenizer, prompt[start:], reply)
            return found if len(found["input_ids"]) <= self.max_length else {}

        whole = row(0)
        if not whole and self.overflow == "cut_prompt":
            starts = [*(m.start() for m in re.finditer(r"\S+", prompt)), len(prompt)]
            first = bisect_left(starts, True, key=lambda s: bool(row(s)))
            whole = row(starts[first]) if first < len(starts) else {}
        if whole:
            return whole
        raise MeasureError(
            "a prompt with its reply is too long for the judge"
            if self.overflow == "refuse"
            else "a reply alone is too long for the judge",
            field="max_length",
            value=self.max_length,
            expected="room for all that is judged",
            remedy="raise max_length as far as the classifier allows, ask for shorter replies, or "
            "set overflow: cut_prompt",
        )

    def _tokens(self, tokenizer: Any, prompt: str, reply: str) -> dict[str, list[int]]:
        if self.template is None:
            row = tokenizer(prompt, reply, verbose=False)
        else:
            row = tokenizer(filled(self.template, prompt, reply), verbose=False)
        return {k: list(row[k]) for k in ("input_ids", "token_type_ids") if k in row}

    def _check_length(self, config: Any) -> None:
        most = getattr(config.get_text_config(), "max_position_embeddings", None)
        if most is not None and self.max_length > most:
            raise MeasureError(
                "the classifier was not made for so many tokens",
                field="max_length",
                value=self.max_length,
                expected=f"at most {most}, its max_position_embeddings",
            )


def _padded(rows: Rows, pad: int, device: str) -> dict[str, torch.Tensor]:
    """Right-padded batch with its attention mask."""
    width = max(len(r["input_ids"]) for r in rows)

    def filled(name: str, with_what: int) -> torch.Tensor:
        return torch.tensor(
            [r[name] + [with_what] * (width - len(r[name])) for r in rows], device=device
        )

    batch = {name: filled(name, pad if name == "input_ids" else 0) for name in rows[0]}
    mask = [[1] * len(r["input_ids"]) + [0] * (width - len(r["input_ids"])) for r in rows]
    return {**batch, "attention_mask": torch.tensor(mask, device=device)}


def _probabilities(config: Any, logits_BL: torch.Tensor) -> list[list[float]]:
    independent = config.num_labels == 1 or (
        getattr(config, "problem_type", None) == "multi_label_classification"
    )
    return (logits_BL.sigmoid() if independent else logits_BL.softmax(-1)).tolist()


@lru_cache(maxsize=2)
def _loaded(ref: ModelRef, identity: str, device: str) -> tuple[Any, Any]:
    """Classifier (fp32, evaluation mode) and tokenizer. identity: part of the cache key, so that a
    directory whose content changed is loaded again.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    options: dict[str, Any] = {"trust_remote_code": ref.trust_remote_code}
    name = ref.name
    if ref.source == "path":
        path = Path(ref.name).expanduser()
        if not (path / "config.json").is_file():
            raise refuse(
                "the judge's directory has no config.json",
                path,
                "a directory that `save_pretrained` wrote",
            )
        check_directory(path)
        name, options = str(path), {**options, "local_files_only": True}
    else:
        options["revision"] = identity.rpartition("@")[2]  # the commit that was identified
    load: Any = AutoModelForSequenceClassification.from_pretrained
    expected = "a sequence classifier in transformers' layout, with its tokenizer"
    with (
        quiet(),
        readable("the judge cannot be loaded", ref, expected, "check the model and its files"),
    ):
        model, info = load(
            name, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **options
        )
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
    if info["missing_keys"]:
        # transformers initialises these at random; typically the model is a language model without
        # a classification head.
        raise refuse(
            f"{len(info['missing_keys'])} weights of the judge are missing from its files",
            ref,
            f"all weights of a classifier, among them {min(info['missing_keys'])}",
            "give a model that was trained as a classifier",
        )
    config = model.config.get_text_config()
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id
    return model.to(device).eval(), tokenizer
