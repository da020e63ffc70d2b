"""Models that are neither always right nor always wrong, and text of several lengths."""

from dataclasses import replace

import pytest
import torch

from titer.data.examples import Example


@pytest.fixture
def unsure(new_bundle):
    """A function giving tiny subjects whose weights are disturbed, so that they know some answers
    and not others.
    """

    def make(scale=0.2, **changes):
        bundle = new_bundle(**changes)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in bundle.model.parameters():
                parameter += (
                    scale * parameter.std() * torch.randn(parameter.shape, generator=generator)
                )
        return bundle

    return make


@pytest.fixture
def mixed(harm, harmless):
    """Questions whose prompts differ in length, with answers and refusals."""
    some = [*harm[:8], *harmless[:8]]
    systems = (None, "you are a helpful assistant", "be polite", None)
    return tuple(replace(e, system=systems[i % 4]) for i, e in enumerate(some))


@pytest.fixture
def texts(harm):
    words = " ".join(e.prompt for e in harm[:12]).split()
    return tuple(Example(text=" ".join(words[i : i + 3 + 4 * i])) for i in range(8))
