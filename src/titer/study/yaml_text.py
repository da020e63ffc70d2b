"""YAML loader for studies: duplicate keys are errors, and 1e-5 is a number."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from titer.errors import StudyError


class UniqueKeyLoader(yaml.SafeLoader):
    """YAML in which a key given twice is an error instead of the last one silently winning."""

    # At composing, not constructing: there, what `<<` merges in is among the keys already, and may
    # be overridden.
    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        seen: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            if key.value in seen:
                raise StudyError(
                    "a key is given twice in the study",
                    field=key.value,
                    value=f"lines {seen[key.value]} and {line}",
                    expected="each key once",
                )
            seen[key.value] = line
        return node


_SCIENTIFIC = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


def numbers(value: Any) -> Any:
    """`"1e-3"` as the number it is, also in a dictionary that a plain YAML loader made; titer's own
    does so while reading.
    """
    if isinstance(value, Mapping):
        return {k: numbers(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [numbers(v) for v in value]
    return float(value) if isinstance(value, str) and _SCIENTIFIC.fullmatch(value) else value
