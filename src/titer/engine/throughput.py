"""Measures this machine's throughput of matrix products."""

from __future__ import annotations

import time

import torch


def matmul_throughput(
    precision: str, threads: int, device: torch.device | str = "cpu", *, seconds: float = 0.2
) -> float:
    """FLOP/s of matrix products on a device, halved: what training reaches of it in practice.
    threads: of the CPU."""
    device, before = torch.device(device), torch.get_num_threads()
    cuda = device.type == "cuda"
    rows, inner, columns = (4096, 4096, 4096) if cuda else (256, 256, 1024)
    dtype = torch.bfloat16 if precision == "bf16_autocast" else torch.float32
    torch.set_num_threads(threads)
    try:
        a = torch.ones(rows, inner, dtype=dtype, device=device)
        b = torch.ones(inner, columns, dtype=dtype, device=device)
        _ = a @ b
        begun, count = _now(device), 0
        # On an accelerator a call only queues the product, so the device is synchronised.
        while _now(device) - begun < seconds:
            _ = a @ b
            count += 1
        return 0.5 * count * 2.0 * rows * inner * columns / (_now(device) - begun)
    finally:
        torch.set_num_threads(before)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
