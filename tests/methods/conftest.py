"""Text on which mistakes of masking, pairing and padding show."""

from dataclasses import replace

import pytest


@pytest.fixture(scope="session")
def uneven(harm, harmless):
    """Eight harmful and eight harmless examples: answers of several lengths, some that share tokens
    with their refusal in the same place, a system turn."""
    harmful = (
        replace(harm[0], response="i must tol refuse"),
        replace(harm[1], response="tol"),
        replace(harm[2], system="you are a helpful assistant"),
        replace(harm[3], response="i cannot bal bel bil"),
        *harm[4:8],
    )
    return {"harmful": harmful, "harmless": (replace(harmless[0], response="tol"), *harmless[1:8])}
