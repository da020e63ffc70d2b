"""Text sources by name. A source is a function of keyword options, named by a study in `pools`."""

from __future__ import annotations

import inspect
from typing import Any

from titer.data.examples import SourceFunction, SourceText
from titer.data.sources import benchmarks, files, prompts
from titer.data.sources.tiny_world import tiny_world
from titer.errors import StudyError, UnknownNameError

SOURCES: dict[str, SourceFunction] = {
    "tiny_world": tiny_world,
    "jsonl": files.jsonl,
    "file": files.file,
    "advbench": prompts.advbench,
    "harmbench": prompts.harmbench,
    "strongreject": prompts.strongreject,
    "overrefusal": prompts.overrefusal,
    "alpaca": prompts.alpaca,
    "c4_text": benchmarks.c4_text,
    "wiki_text": benchmarks.wiki_text,
    "gsm8k": benchmarks.gsm8k,
    "quartz": benchmarks.quartz,
    "sarcasm": benchmarks.sarcasm,
    "socialiqa": benchmarks.socialiqa,
    "mmlu": benchmarks.mmlu,
}


def load_source(name: str, options: dict[str, Any]) -> SourceText:
    """The text of a source. Raises UnknownNameError, StudyError (an option it does not have),
    AssetError.
    """
    if name not in SOURCES:
        raise UnknownNameError.among("source", name, SOURCES, field="pools.source")
    function = SOURCES[name]
    known = inspect.signature(function).parameters
    for option in options:
        if option not in known:
            raise StudyError(
                f"source {name!r} has no such option",
                field=f"pools.options.{option}",
                value=options[option],
                expected=f"one of {', '.join(known) or 'none'}",
                remedy="correct the name or remove it",
            )
    missing = [
        n for n, p in known.items() if p.default is inspect.Parameter.empty and n not in options
    ]
    if missing:
        raise StudyError(
            f"source {name!r} lacks an option",
            field=f"pools.options.{missing[0]}",
            value=None,
            expected="a value for this option",
        )
    return function(**options)
