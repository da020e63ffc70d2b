"""The text a method is given: named, encoded under the model's wording, served as batches."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from titer.data.bundle import ModelBundle
from titer.data.encoding import Encoded, Stream, TokenBatch, collate
from titer.data.examples import Example
from titer.errors import StudyError

Edit = Callable[[tuple[Encoded, ...], np.random.Generator], tuple[Encoded, ...]]
"""Changes one row (its answers, in the order of the stream's fields) when it is drawn. Must be a
function of the row and the generator alone, which follows seed, step and place in the batch.
"""


class Texts:
    """slot → examples, drawn for one seed. Slots are named by the study: `harmful`, `harmless`, and
    whatever else a method asks for in `needs` (held-out harm, text that repairs, prompts only).

    The model's words are those of `bundle`; `under` gives the same text in another model's.
    """

    def __init__(self, slots: Mapping[str, Sequence[Example]], bundle: ModelBundle) -> None:
        self._slots = {name: tuple(examples) for name, examples in slots.items() if examples}
        self._bundle = bundle

    def __contains__(self, slot: str) -> bool:
        return slot in self._slots

    @property
    def slots(self) -> Collection[str]:
        return self._slots.keys()

    def under(self, bundle: ModelBundle) -> Texts:
        """The same text, asked in the wording of another bundle."""
        return Texts(self._slots, bundle)

    def examples(self, of: str | Sequence[str]) -> tuple[Example, ...]:
        """The examples of a slot, or of several one after the other; of one without text none."""
        names = (of,) if isinstance(of, str) else tuple(of)
        return tuple(e for name in names for e in self._slots.get(name, ()))

    def prompts(self, of: str | Sequence[str]) -> list[tuple[int, ...]]:
        """Token ids of the prompts of a slot."""
        return [self._bundle.prompt(e) for e in self._some(of)]

    def stream(
        self,
        *fields: str,
        of: str | Sequence[str],
        batch_size: int,
        seed: int,
        edit: Edit | None = None,
    ) -> Batches:
        """An endless seeded stream of batches over the text of one slot (or of several together).

        fields: the answers wanted, `response` or `refusal`. A step gives one batch for each, with
        the same prompts in the same rows. Examples whose prompt leaves no room for at least one
        token of every answer are left out here, once: an empty loss mask trains on nothing and has
        corrupted published runs.

        Raises StudyError if the slot has no text, an example lacks an answer, or nothing fits.
        """
        rows = self.rows(*fields, of=of)
        return Batches(self._bundle, rows, batch_size=batch_size, seed=seed, edit=edit)

    def rows(self, *fields: str, of: str | Sequence[str]) -> list[tuple[Encoded, ...]]:
        """Every example of a slot that fits, encoded with each answer. Raises StudyError."""
        given, limit = self._some(of), self._bundle.max_length
        for field in fields:
            absent = sum(getattr(e, field) is None for e in given)
            if absent:
                raise StudyError(
                    f"{absent} of {len(given)} examples have no {field}",
                    field=field,
                    value=None,
                    expected=f"a {field} for every training example",
                    remedy="set respond or refuse on the pool, or use text that has answers",
                )
        encoded = [tuple(self._encoded(e, f, limit) for f in fields) for e in given]
        kept = [row for row in encoded if all(answer.response for answer in row)]
        if not kept:
            raise StudyError(
                "no training example fits",
                field="runtime.max_length",
                value=limit,
                expected="room for the prompt and at least one token of its answer",
                remedy="raise runtime.max_length",
            )
        return kept

    def _encoded(self, example: Example, field: str, limit: int) -> Encoded:
        if field != "text":
            return self._bundle.encode(example, getattr(example, field), limit)
        ids = self._bundle.tokenizer(example.text, add_special_tokens=False)["input_ids"][:limit]
        return Encoded(tuple(ids[:1]), tuple(ids[1:]))

    def _some(self, of: str | Sequence[str]) -> tuple[Example, ...]:
        given = self.examples(of)
        if not given:
            raise StudyError(
                "a method was given no text",
                field="data",
                value=of,
                expected=f"examples under {of if isinstance(of, str) else ' or '.join(of)}",
                remedy="name a part of a pool for it",
            )
        return given

    def unfit(self) -> dict[str, str]:
        """What does not fit into max_length, for the record: slot and answer → '12 of 100 answers
        cut, 1 examples left out at 64 tokens'. Empty if all of it fits."""
        found, limit = {}, self._bundle.max_length
        for slot, examples in self._slots.items():
            for field in ("response", "refusal"):
                given = [(e, a) for e in examples if (a := getattr(e, field)) is not None]
                whole = [self._bundle.encode(e, a) for e, a in given]
                lost = sum(len(e.prompt) >= limit for e in whole)
                cut = sum(len(e.prompt) + len(e.response) > limit for e in whole) - lost
                if cut or lost:
                    found[f"{slot} {field}"] = (
                        f"{cut} of {len(given)} answers cut, {lost} examples left out "
                        f"at {limit} tokens"
                    )
        return found


class Batches:
    """See `Texts.stream`. `batches(step)` is a pure function of (seed, step): resuming needs only
    the number of steps taken."""

    def __init__(
        self,
        bundle: ModelBundle,
        rows: Sequence[tuple[Encoded, ...]],
        *,
        batch_size: int,
        seed: int,
        edit: Edit | None = None,
    ) -> None:
        self.rows, self.seed, self.edit = rows, seed, edit
        self._order = Stream(len(rows), batch_size, seed)
        self._pad, self._device = bundle.tokenizer.pad_token_id, bundle.device

    def __call__(self, step: int) -> tuple[TokenBatch, ...]:
        """One batch per field, for step `step` (0-based)."""
        rows = [self.rows[i] for i in self._order.indices(step)]
        if self.edit is not None:
            rows = [
                self.edit(row, np.random.default_rng([self.seed, step, place, 3]))
                for place, row in enumerate(rows)
            ]
        return tuple(
            collate(list(answers), self._pad, self._device) for answers in zip(*rows, strict=True)
        )

    def one(self, step: int) -> TokenBatch:
        """The batch of a stream with a single field."""
        (batch,) = self(step)
        return batch
