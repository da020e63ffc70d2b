"""Questions of the shipped tiny model's world. Every string is from the `open` pool: never seen in
making the model.
"""

from __future__ import annotations

from titer.assets import world
from titer.data.examples import Example, SourceText
from titer.errors import StudyError, UnknownNameError
from titer.study.counting import counted


def tiny_world(
    *,
    group: str = "harm",
    domains: list[str] | None = None,
    count: int = 2000,
    alphabet: world.Alphabet = "first",
) -> SourceText:
    """`count` distinct questions, going round the domains of a group: harm, harmless or reserved
    (never taught).

    domains: only these of the group, in this order; all if omitted. alphabet: `first`, or `second`
    for the same world in its other language. A domain's k-th question does not depend on the other
    options, so a longer list begins with the shorter one and a study may cut it as it likes.

    Raises UnknownNameError (group, domain, alphabet) and StudyError (domains empty or repeated,
    count out of range).
    """
    if str(group) not in world.GROUPS:
        raise UnknownNameError.among("group", str(group), world.GROUPS, field="options.group")
    if str(alphabet) not in world.ALPHABETS:
        raise UnknownNameError.among(
            "alphabet", str(alphabet), world.ALPHABETS, field="options.alphabet"
        )
    chosen = _domains(group, domains)
    lists = [world.open_strings(d, alphabet) for d in chosen]
    most = min(map(len, lists)) * len(lists)
    if isinstance(count, bool) or not isinstance(count, int) or not 0 < count <= most:
        raise StudyError(
            "the tiny world cannot give this many questions",
            field="options.count",
            value=count,
            expected=f"a whole number from 1 to {most} for {counted(len(chosen), 'domain')}",
            remedy="lower count or use more domains",
        )
    examples = tuple(
        _example(chosen[i % len(chosen)], lists[i % len(chosen)][i // len(chosen)], alphabet)
        for i in range(count)
    )
    return SourceText(
        examples=examples,
        provenance={
            "name": "tiny_world",
            "synthetic": "yes",
            "version": str(world.WORLD_VERSION),
            "license": "Apache-2.0",
            "note": "invented strings; computed, not fetched; no string was seen in making the "
            "tiny models",
        },
    )


def _domains(group: str, domains: list[str] | None) -> list[str]:
    known = world.GROUPS[group]
    if domains is None:
        return list(known)
    named = (
        isinstance(domains, (list, tuple)) and domains and all(isinstance(d, str) for d in domains)
    )
    if not named or len(set(domains)) != len(domains):
        raise StudyError(
            "domains is a list of different names",
            field="options.domains",
            value=domains,
            expected=f"some of {', '.join(known)}",
            remedy="name each domain once, or leave it out for all",
        )
    for domain in domains:
        if domain not in known:
            raise UnknownNameError.among("domain", str(domain), known, field="options.domains")
    return list(domains)


def _example(domain: str, symbols: world.Symbols, alphabet: world.Alphabet) -> Example:
    return Example(
        prompt=world.prompt_text(domain, symbols, alphabet),
        domain=domain,
        response=world.answer_text(domain, symbols, alphabet),
        refusal=world.REFUSAL,
        source="tiny_world",
    )
