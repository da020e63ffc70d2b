"""The pools of a study, cut into disjoint parts, with the proof that they are disjoint."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np

from titer.data.examples import Example, digest_of
from titer.data.near import asked, drop_near, exact_overlap, near_between, near_duplicates
from titer.data.respond import content_free_compliance, refusals
from titer.data.sources import load_source
from titer.errors import OverlapError, StudyError
from titer.study.spec import Pool, Study


class Pools:
    """All text of a study. Building it loads every source, which may fetch packages.

    Raises StudyError (too few examples, a domain without data), OverlapError (an example in two
    pools), AssetError.
    """

    def __init__(self, study: Study) -> None:
        self.provenance: dict[str, dict[str, str]] = {}
        self.removed: dict[str, int] = {}
        raw = {name: self._loaded(name, pool) for name, pool in study.pools.items()}
        whole = {name: self._without_near(name, pool, raw) for name, pool in study.pools.items()}
        self._refuse_overlap(whole)
        self._parts: dict[str, tuple[Example, ...]] = {}
        for name, pool in study.pools.items():
            self._parts |= _cut(name, pool, whole[name])
        self._proof: dict[str, Any] | None = None
        self._digests: dict[tuple[str, tuple[str, ...] | None], str] = {}

    def _loaded(self, name: str, pool: Pool) -> tuple[Example, ...]:
        text = load_source(pool.source, pool.options)
        self.provenance[name] = {"source": pool.source, **text.provenance}
        examples, seen = [], set()
        for example in text.examples:
            if example.key not in seen:
                seen.add(example.key)
                examples.append(example)
        names = {old: new for new, merged in pool.merge.items() for old in merged}
        unknown = set(names) - {e.domain for e in examples}
        if unknown:
            raise StudyError(
                "a domain to be merged has no data",
                field=f"pools.{name}.merge",
                value=sorted(unknown)[0],
                expected=f"one of {', '.join(sorted({e.domain for e in examples}))}",
                remedy="correct the name, or remove it",
            )
        result = tuple(replace(e, domain=names.get(e.domain, e.domain)) for e in examples)
        if pool.respond == "content_free":
            result = content_free_compliance(result)
        if pool.refuse == "standard":
            result = refusals(result, seed=pool.shuffle)
        return result

    def _without_near(
        self, name: str, pool: Pool, raw: dict[str, tuple[Example, ...]]
    ) -> tuple[Example, ...]:
        examples = raw[name]
        for other in pool.drop_near:
            if other == name:
                examples = _first_of_each(examples, pool.near_threshold)
            else:
                examples = tuple(drop_near(examples, raw[other], pool.near_threshold))
        if pool.drop_near:
            self.removed[name] = len(raw[name]) - len(examples)
        return examples

    @staticmethod
    def _refuse_overlap(whole: dict[str, tuple[Example, ...]]) -> None:
        for (a, first), (b, second) in combinations(whole.items(), 2):
            shared = exact_overlap(first, second)
            if shared:
                raise OverlapError(
                    f"pools {a!r} and {b!r} share {len(shared)} examples exactly",
                    field=f"pools.{a}, pools.{b}",
                    value=f"{len(shared)} shared",
                    expected="no shared example: what trains must not judge",
                    remedy=f"add `drop_near: [{a}]` to pool {b}, or take both uses from parts of "
                    "one pool",
                )

    def part(self, address: str, domains: Sequence[str] | None = None) -> tuple[Example, ...]:
        """The examples of `pool/part`, restricted to `domains`. Raises StudyError if a domain has
        none.
        """
        examples = self._parts[address]
        if domains is None:
            return examples
        if not domains:
            raise StudyError(
                "an empty list of domains leaves no text",
                field=f"domains of {address}",
                value=list(domains),
                expected="at least one domain",
                remedy="name some, or leave the field out for all",
            )
        for domain in domains:
            if not any(e.domain == domain for e in examples):
                known = sorted({e.domain for e in examples})
                raise StudyError(
                    "a harm domain has no data in this part",
                    field=f"domains of {address}",
                    value=domain,
                    expected=f"one of {', '.join(known)}",
                    remedy="correct the name, or enlarge the part",
                )
        return tuple(e for e in examples if e.domain in domains)

    def digest(self, address: str, domains: Sequence[str] | None = None) -> str:
        key = (address, tuple(domains) if domains is not None else None)
        if key not in self._digests:
            self._digests[key] = digest_of(self.part(address, domains))
        return self._digests[key]

    def draw(
        self, address: str, *, count: int | None, seed: int, domains: Sequence[str] | None = None
    ) -> tuple[Example, ...]:
        """`count` examples drawn without replacement by `seed` (all, in the part's order, if count
        is None).

        Raises StudyError if the part holds fewer.
        """
        examples = self.part(address, domains)
        if count is None:
            return examples
        if count > len(examples):
            raise StudyError(
                "the part is smaller than what is drawn from it",
                field=f"examples of {address}",
                value=count,
                expected=f"at most {len(examples)}",
                remedy="draw fewer, or enlarge the part",
            )
        chosen = np.random.default_rng([seed, 20_241]).choice(
            len(examples), size=count, replace=False
        )
        return tuple(examples[i] for i in chosen)

    def disjointness(self) -> dict[str, Any]:
        """Proof for the record: sizes, exact overlaps (counted; none, by construction),
        near-duplicates by pair: how many of the second part's examples nearly repeat one of the
        first's. Invented text, which is similar throughout, is left out.
        """
        if self._proof is None:  # cached: planning asks repeatedly, and the text does not change
            self._proof = self._compare_parts()
        return copy.deepcopy(self._proof)

    def _compare_parts(self) -> dict[str, Any]:
        keys = [{e.key for e in part} for part in self._parts.values()]
        exact = sum(len(a & b) for a, b in combinations(keys, 2))
        real = {
            a: [asked(e) for e in p]
            for a, p in self._parts.items()
            if self.provenance[a.split("/")[0]].get("synthetic") != "yes"
        }
        near = {f"{a}~{b}": found for (a, b), found in near_between(real, 0.8).items() if found}
        return {
            "sizes": {a: len(p) for a, p in self._parts.items()},
            "exact_overlap": exact,
            "near_threshold": 0.8,
            "near_duplicates": near,
            "near_removed": self.removed,
        }


def _first_of_each(examples: tuple[Example, ...], threshold: float) -> tuple[Example, ...]:
    """Without examples that nearly repeat an earlier one."""
    texts = [asked(e) for e in examples]
    dropped: set[int] = set()
    for i, j, _ in sorted(near_duplicates(texts, texts, threshold)):
        if i < j and i not in dropped:
            dropped.add(j)
    return tuple(e for k, e in enumerate(examples) if k not in dropped)


def _cut(name: str, pool: Pool, examples: tuple[Example, ...]) -> dict[str, tuple[Example, ...]]:
    """Parts in declared order from one seeded shuffle that spreads every domain evenly over its
    length.
    """
    wanted = sum(pool.parts.values())
    if wanted > len(examples):
        raise StudyError(
            f"pool {name!r} has too little text",
            field=f"pools.{name}.parts",
            value=pool.parts,
            expected=f"at most {len(examples)} examples in all (source {pool.source!r})",
            remedy="make the parts smaller, or take a larger source",
        )
    generator = np.random.default_rng([pool.shuffle, 7])
    order = list(generator.permutation(len(examples)))
    totals: dict[str, int] = {}
    rank: dict[int, float] = {}
    for i in order:
        domain = examples[i].domain
        rank[i] = totals.get(domain, 0)
        totals[domain] = totals.get(domain, 0) + 1
    jitter = {d: float(generator.random()) for d in sorted(totals)}
    order.sort(key=lambda i: (rank[i] + jitter[examples[i].domain]) / totals[examples[i].domain])
    cut, start = {}, 0
    for part, size in pool.parts.items():
        cut[f"{name}/{part}"] = tuple(examples[i] for i in order[start : start + size])
        start += size
    return cut
