"""Which device a worker computes on."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from titer.errors import RunError


@dataclass(frozen=True)
class Placement:
    """devices: names of torch devices; worker i computes on the i-th, going round."""

    devices: tuple[str, ...]

    def device(self, worker: int) -> torch.device:
        return torch.device(self.devices[worker % len(self.devices)])


def place(wanted: str) -> Placement:
    """`auto`: all CUDA devices if there are any, else the CPU. Raises RunError if cuda is asked for
    and there is none.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "cuda" and not count:
        raise RunError(
            "no CUDA device",
            field="runtime.device",
            value=wanted,
            expected="a visible CUDA device",
            remedy="use device: auto or cpu",
        )
    if wanted == "cpu" or not count:
        return Placement(("cpu",))
    return Placement(tuple(f"cuda:{i}" for i in range(count)))
