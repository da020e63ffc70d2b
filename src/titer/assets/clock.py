"""Chat templates that read the clock, stopped at one day.

The same prompt would have other tokens tomorrow, and records under one address would differ.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

DAY = datetime(2025, 1, 1, tzinfo=UTC)
"""The day it always is."""
CALL = re.compile(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)")
NAME = "strftime_now"


def stop_clock(tokenizer: Any) -> dict[str, str]:
    """Replace, in place, what a chat template asks the clock by the same words for `DAY`.

    Returns what was found, for the record. Whatever form of date the template asks for by a
    variable is answered with an ISO date.
    """
    template = tokenizer.chat_template
    if isinstance(template, dict):
        if not any(NAME in text for text in template.values()):
            return {}
        tokenizer.chat_template = {name: _stopped(text) for name, text in template.items()}
    elif template and NAME in template:
        tokenizer.chat_template = _stopped(template)
    else:
        return {}
    return {"chat template": f"reads the clock → always {DAY:%Y-%m-%d}"}


def _stopped(template: str) -> str:
    if NAME not in template:
        return template
    template = CALL.sub(lambda m: repr(DAY.strftime(m[2])), template)
    iso = f"{{%- macro {NAME}(form) -%}}{DAY:%Y-%m-%d}{{%- endmacro -%}}"
    return iso + template if NAME in template else template
