"""Exact and near duplicates between two lists of text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise

import numpy as np
from scipy import sparse

from titer.data.examples import Example


def _terms(text: str) -> list[str]:
    words = re.findall(r"\w+", text.casefold())
    return words + [f"{a} {b}" for a, b in pairwise(words)]


def tfidf(texts: Sequence[str]) -> sparse.csr_matrix:
    """Rows of unit length over word 1- and 2-grams: tf · (ln((1 + N)/(1 + df)) + 1), N texts, df
    texts with the term.

    The smoothed weighting of scikit-learn's TfidfVectorizer.
    """
    return _weighted(_counted(texts))


def _counted(texts: Sequence[str]) -> sparse.csr_matrix:
    """How often each text (row) holds each term (column, terms sorted)."""
    counts = [Counter(_terms(t)) for t in texts]
    index = {term: i for i, term in enumerate(sorted(set().union(*counts)))} if counts else {}
    rows = np.repeat(np.arange(len(counts)), [len(c) for c in counts])
    columns = np.array([index[t] for c in counts for t in c], dtype=np.int64)
    values = np.array([v for c in counts for v in c.values()], dtype=np.float64)
    return sparse.csr_matrix((values, (rows, columns)), shape=(len(counts), max(1, len(index))))


def _weighted(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    frequency = np.bincount(counts.indices, minlength=counts.shape[1])
    matrix = counts @ sparse.diags(np.log((1 + counts.shape[0]) / (1 + frequency)) + 1)
    norms = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
    return sparse.diags(1 / np.where(norms > 0, norms, 1)) @ matrix


def near_duplicates(
    first: Sequence[str], second: Sequence[str], threshold: float
) -> list[tuple[int, int, float]]:
    """(i, j, cosine) for every pair first[i], second[j] whose TF-IDF cosine exceeds `threshold`."""
    if not first or not second:
        return []
    both = tfidf([*first, *second]).tocsr()
    similar = (both[: len(first)] @ both[len(first) :].T).tocoo()
    keep = similar.data > threshold
    return [
        (int(i), int(j), float(s))
        for i, j, s in zip(similar.row[keep], similar.col[keep], similar.data[keep], strict=True)
    ]


def near_between(
    parts: Mapping[str, Sequence[str]], threshold: float
) -> dict[tuple[str, str], int]:
    """For every two parts, how many texts of the second nearly repeat one of the first, as
    `near_duplicates` finds them.

    Terms are counted once instead of once per pair, which is nearly all of the work.
    """
    counts = _counted([text for part in parts.values() for text in part])
    ends = np.cumsum([len(part) for part in parts.values()])
    rows = {
        name: counts[end - len(part) : end]
        for (name, part), end in zip(parts.items(), ends, strict=True)
    }
    found = {}
    for (a, first), (b, second) in combinations(rows.items(), 2):
        both = _weighted(sparse.vstack([first, second], format="csr")).tocsr()
        similar = (both[: first.shape[0]] @ both[first.shape[0] :].T).tocoo()
        found[a, b] = len(set(similar.col[similar.data > threshold].tolist()))
    return found


def drop_near(
    examples: Sequence[Example], against: Sequence[Example], threshold: float
) -> tuple[Example, ...]:
    """The examples whose text is not a near-duplicate of any in `against`."""
    pairs = near_duplicates([asked(e) for e in examples], [asked(e) for e in against], threshold)
    near = {i for i, _, _ in pairs}
    return tuple(e for i, e in enumerate(examples) if i not in near)


def exact_overlap(first: Sequence[Example], second: Sequence[Example]) -> set[str]:
    """Keys (of what is asked, whitespace and case aside) that both lists hold."""
    return {e.key for e in first} & {e.key for e in second}


def asked(example: Example) -> str:
    """The question, or the text of running text."""
    return example.prompt or example.text or ""
