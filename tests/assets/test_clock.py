"""Templates that read the clock say the same every day."""

from datetime import UTC, datetime

import pytest

from titer.assets.clock import stop_clock
from titer.assets.models import load_model
from titer.assets.saving import save_model
from titer.study.reference import ModelRef

CHAT = [{"role": "user", "content": "hello"}]
LITERAL = "{{ strftime_now('%d %b %Y') }}|{{ strftime_now(\"%Y\") }}|{{ messages[0]['content'] }}"
VARIABLE = (
    "{%- set form = '%d %b' -%}"
    "{%- if strftime_now is defined -%}{{ strftime_now(form) }}{%- endif -%}"
    "|{{ messages[0]['content'] }}"
)


@pytest.fixture
def clocked(tiny, tmp_path, monkeypatch):
    """clocked(template, day): what a saved model with that template is asked on that day."""

    def asked(template, day):
        class Clock(datetime):
            @classmethod
            def now(cls, tz=None):
                return day

        monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Clock)
        save_model(tiny.model, tiny.tokenizer, tmp_path / "model")
        (tmp_path / "model" / "chat_template.jinja").write_text(template)
        loaded = load_model(ModelRef(source="path", name=str(tmp_path / "model")))
        return loaded.tokenizer.apply_chat_template(CHAT, tokenize=False), loaded.neutralised

    return asked


@pytest.mark.parametrize(
    ("template", "words"), [(LITERAL, "01 Jan 2025|2025|hello"), (VARIABLE, "2025-01-01|hello")]
)
def test_every_day_is_the_same_day(clocked, template, words):
    for day in (datetime(2024, 2, 29, tzinfo=UTC), datetime(2031, 7, 1, tzinfo=UTC)):
        text, neutralised = clocked(template, day)
        assert text == words
        assert "2025-01-01" in neutralised["chat template"]


def test_other_templates_are_left_alone(tiny):
    before = tiny.tokenizer.chat_template
    assert stop_clock(tiny.tokenizer) == {} and tiny.tokenizer.chat_template == before
