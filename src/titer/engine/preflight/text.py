"""Checks that the study's text fits a model: chat template, stop tokens, tokenizer, lengths.

Only the model's files are needed, not its weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from titer.data.encoding import messages, prompt_text, response_text
from titer.data.pools import Pools
from titer.engine.preflight.finding import Finding, error, notice
from titer.engine.preflight.lengths import (
    ASKED,
    UNKNOWN,
    Asked,
    Trained,
    answers_of,
    asked_texts,
    request_of,
    trained_texts,
)
from titer.engine.preflight.outline import Outline, positions
from titer.errors import StudyError
from titer.measures.generate import stop_tokens
from titer.measures.requests import Generate, Openings, Read, Score, wrapped
from titer.study.cell import Planned


def text_findings(outline: Outline, cells: Sequence[Planned], pools: Pools) -> list[Finding]:
    """All findings about the text of these cells with the model they start from."""
    if not outline.tokenizer.chat_template:
        expected = "an instruction-tuned model, with a chat_template.jinja beside it"
        return [
            error(
                outline.ref,
                "chat template",
                f"{outline.ref} has no chat template",
                expected,
            )
        ]
    check = _Check(outline, cells, pools)
    found: list[Finding] = []
    for look in (check.system_turns, check.template, check.stops, check.tokenizer, check.lengths):
        try:
            found += look()
        except StudyError as refused:  # the template does not take such a conversation at all
            if not found:
                found.append(
                    error(
                        outline.ref,
                        "chat template",
                        f"{outline.ref}: {refused.problem} ({refused.value})",
                        refused.expected or "a template that takes a user's turn",
                    )
                )
            break
    return list(dict.fromkeys(found))


class _Check:
    def __init__(self, outline: Outline, cells: Sequence[Planned], pools: Pools) -> None:
        self.outline, self.pools = outline, pools
        self.ref, self.words = outline.ref, outline.tokenizer
        self.bundle = outline.bundle
        self.trained = trained_texts(cells)
        self.asked = list(asked_texts(cells, pools))
        most = [m for m in (outline.context, positions(outline.skeleton)) if m is not None]
        self.most = min(most, default=None)

    # -- chat template --------------------------------------------------------------------------

    def template(self) -> Iterator[Finding]:
        opening = prompt_text(self.words, ASKED)
        whole = self._rendered([*messages(ASKED), {"role": "assistant", "content": ASKED.response}])
        before = whole[len(opening) :].partition(ASKED.response or "")[0].strip()
        if not whole.startswith(opening):
            yield notice(
                self.ref,
                "chat template",
                f"the chat template of {self.ref} rewrites the conversation once there is an "
                "answer, so that answers are taught to end with the end token alone",
                "a template that only adds to what came before",
            )
        elif opening == self._rendered(messages(ASKED)) and before:
            yield error(
                self.ref,
                "chat template",
                f"the chat template of {self.ref} has no generation prompt: the model is asked "
                f"before {before!r}, with which its turn begins",
                "a template that ends with the assistant's opening if add_generation_prompt is set",
            )
        elif before:
            yield notice(
                self.ref,
                "chat template",
                f"the chat template of {self.ref} puts {before!r} before every answer, which "
                "methods then train on",
                "a template that begins an answer with the answer",
            )

    def _rendered(self, chat: list[dict[str, Any]]) -> str:
        return str(self.words.apply_chat_template(chat, tokenize=False))

    def system_turns(self) -> Iterator[Finding]:
        """Only where the text has system turns."""
        parts = [(t.part, self.pools.part(t.part)) for t in self.trained]
        parts += [(a.part, a.examples) for a in self.asked]
        having = {part: e for part, examples in parts for e in examples if e.system}
        for part, example in having.items():
            try:
                shown = (example.system or "").strip() in prompt_text(self.words, example)
            except StudyError as refused:
                yield error(
                    self.ref,
                    "chat template",
                    f"the chat template of {self.ref} refuses system turns, which {part} has "
                    f"({refused.value})",
                    "a template that takes a system turn, or text without any",
                )
                return
            if not shown:
                yield notice(
                    self.ref,
                    "chat template",
                    f"the chat template of {self.ref} leaves out the system turns of {part}",
                    "a template that shows them, or text without any",
                )

    # -- stop tokens ----------------------------------------------------------------------------

    def stops(self) -> Iterator[Finding]:
        generated = [a.measure.name for a in self.asked if isinstance(request_of(a), Generate)]
        severe = error if generated else notice
        whom = f"{generated[0]} cuts no reply of {self.ref}" if generated else ""
        stops = stop_tokens(self.bundle)
        if not stops:
            yield severe(
                self.ref,
                "stop tokens",
                f"{self.ref} has no stop token" + (f": {whom} where it ends" if whom else ""),
                "eos_token in the tokenizer, or eos_token_id in generation_config.json",
            )
            return
        answer = ASKED.response or ""
        end = response_text(self.words, ASKED, answer).partition(answer)[2]
        ids = self._ids(end)
        if not ids:
            yield severe(
                self.ref,
                "stop tokens",
                f"the chat template of {self.ref} does not mark the end of an answer",
                "a template that ends an answer with a stop token",
            )
        elif not set(ids) & set(stops):
            named = ", ".join(repr(self.words.decode([i])) for i in stops)
            yield severe(
                self.ref,
                "stop tokens",
                f"the chat template of {self.ref} ends a turn with {end.strip()!r}, which is none "
                "of its stop tokens" + (f": {whom} there" if whom else ""),
                f"an end of turn among {named}, or its id in generation_config.json",
            )

    # -- tokenizer ------------------------------------------------------------------------------

    def tokenizer(self) -> Iterator[Finding]:
        rows = self.outline.rows
        if rows is not None and len(self.words) > rows:
            yield error(
                self.ref,
                "tokenizer",
                f"the tokenizer of {self.ref} has {len(self.words)} tokens, but its embedding only "
                f"{rows} rows",
                "the tokenizer that belongs to the model",
            )
        for asked in self.asked:
            request = request_of(asked)
            if isinstance(request, Openings):
                yield from self._openings(asked.measure.name, request.texts)

    def _openings(self, measure: str, texts: Sequence[str]) -> Iterator[Finding]:
        encoded = {text: self._ids(text) for text in texts}
        unknown = self.words.unk_token_id
        empty = [t for t, ids in encoded.items() if not ids]
        odd = [t for t, ids in encoded.items() if unknown is not None and unknown in ids]
        if empty or odd:
            lost = [*empty, *odd]
            severe = error if empty or 2 * len(lost) > len(texts) else notice
            yield severe(
                self.ref,
                measure,
                f"the tokenizer of {self.ref} does not know {len(lost)} of the {len(texts)} "
                f"openings by which {measure} tells compliance from refusal, such as {lost[0]!r}",
                "a tokenizer that can write them, or a measure that asks for none",
            )

    def _ids(self, text: str) -> list[int]:
        return list(self.words(text, add_special_tokens=False)["input_ids"])

    # -- lengths --------------------------------------------------------------------------------

    def lengths(self) -> Iterator[Finding]:
        longest = 0
        for trained in self.trained:
            rows = list(self._rows(trained))
            longest = max(longest, *rows, 0) if rows else longest
            yield from self._fit(trained)
            if self.most is not None and max(rows, default=0) > self.most:
                yield error(
                    self.ref,
                    trained.methods,
                    f"{trained.methods}: rows from {trained.part} have up to {max(rows)} tokens, "
                    f"but {self.ref} was made for {self.most}",
                    f"runtime.max_length of at most {self.most}, and prompts shorter than that",
                )
        limit = max((t.max_length for t in self.trained), default=0)
        if self.most is not None and limit > self.most >= longest:
            yield notice(
                self.ref,
                "text",
                f"runtime.max_length is {limit}, but {self.ref} was made for {self.most} tokens; "
                "no text of the study is so long",
                f"at most {self.most}",
            )
        for asked in self.asked:
            yield from self._read(asked)

    def _rows(self, trained: Trained) -> Iterator[int]:
        for example in self.pools.part(trained.part):
            prompt = len(self.bundle.prompt(example))
            if not trained.answers:
                yield prompt  # prompts are never cut
            for name in trained.answers:
                answer = getattr(example, name)
                if answer is not None and prompt < trained.max_length:
                    row = self.bundle.encode(example, answer, trained.max_length)
                    yield len(row.prompt) + len(row.response)

    def _fit(self, trained: Trained) -> Iterator[Finding]:
        examples = self.pools.part(trained.part)
        prompts = [self.bundle.prompt(e) for e in examples]
        lost = sum(len(p) >= trained.max_length for p in prompts) if trained.answers else 0
        expected = f"room for prompt and answer in {trained.max_length} tokens (runtime.max_length)"
        if lost:
            severe = error if lost == len(examples) else notice
            yield severe(
                self.ref,
                trained.methods,
                f"{trained.methods} leaves out {lost} of the {len(examples)} examples of "
                f"{trained.part}, whose prompts on {self.ref} leave no room for an answer",
                expected,
            )
        unknown = self.words.unk_token_id
        tokens = sum(map(len, prompts))
        foreign = sum(i == unknown for p in prompts for i in p) if unknown is not None else 0
        if tokens and foreign > UNKNOWN * tokens:
            yield notice(
                self.ref,
                "tokenizer",
                f"the tokenizer of {self.ref} does not know {foreign / tokens:.0%} of the tokens "
                f"of {trained.part}",
                "text in the tokenizer's vocabulary",
            )
        rows = self.outline.rows
        if rows is not None and max((i for p in prompts for i in p), default=0) >= rows:
            yield error(
                self.ref,
                "tokenizer",
                f"the tokenizer of {self.ref} gives {trained.part} token ids beyond the "
                f"embedding's {rows} rows",
                "the tokenizer that belongs to the model",
            )

    def _read(self, asked: Asked) -> Iterator[Finding]:
        needed = max(self._needed(asked), default=0)
        if self.most is not None and needed > self.most:
            yield error(
                self.ref,
                asked.measure.name,
                f"{asked.measure.name} needs {needed} tokens for {asked.part}, but {self.ref} was "
                f"made for {self.most}",
                "shorter prompts, or a measure with shorter answers",
            )

    def _needed(self, asked: Asked) -> Iterator[int]:
        """Tokens of every item with what a measure adds to it."""
        request = request_of(asked)
        for example in asked.examples:
            match request:
                case Generate():
                    prompt = self.bundle.prompt(wrapped(example, request.wrap))
                    yield len(prompt) + request.max_new_tokens
                case Openings():
                    prompt = self.bundle.prompt(wrapped(example, request.wrap))
                    yield len(prompt) + max(len(self._ids(t)) for t in request.texts)
                case Score():
                    for answer in answers_of(example, request.answers):
                        row = self.bundle.encode(wrapped(example, request.wrap), answer)
                        yield len(row.prompt) + len(row.response)
                case Read():
                    yield min(request.tokens, len(self._ids(example.text or "")))
