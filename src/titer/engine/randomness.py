"""Global random state: seeded per cell, kept from probes, written into checkpoints."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's generators for a cell; their previous state is restored afterwards."""
    devices = [device.index or 0] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """State of the generators a run may draw from: the host's, and the device's if it uses one."""
    state = {"cpu": torch.random.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    torch.random.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


@contextmanager
def untouched(device: torch.device) -> Iterator[None]:
    """Save and restore the random state of torch, numpy and Python (a harness seeds all three), so
    that the run is not affected by what is drawn inside.
    """
    state, others = random_state(device), (random.getstate(), np.random.get_state())
    try:
        yield
    finally:
        set_random_state(state, device)
        random.setstate(others[0])
        np.random.set_state(others[1])
