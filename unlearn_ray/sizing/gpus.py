"""Speed and memory of common GPUs, from their data sheets. A new GPU is a line of `DEVICES`."""

import os
from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU, or one core of a CPU.

    Sources:
        `memory`: as the driver reports it (`nvidia-smi`), a little less than the name says.
        `flops`: dense bf16 on tensor cores. Data sheets print twice that, "with sparsity".
        `bandwidth`, `link`: from the data sheets of NVIDIA H100 (SXM), H200 (SXM), A100 (SXM, 80 GB), L40S, and HGX B200.
    """

    name: str
    memory: int  # bytes; 0 for a CPU core
    flops: float  # per second, bf16, dense
    bandwidth: float  # of its memory, bytes per second
    link: float  # to the other GPUs of its machine, bytes per second in one direction
    per_machine: int = 8


_CORES = os.cpu_count() or 1
DEVICES: dict[str, Device] = {
    "h100": Device("H100 80GB SXM", 81_559 * 2**20, 989.4e12, 3.35e12, 450e9),
    "h200": Device("H200 141GB SXM", 143_771 * 2**20, 989.4e12, 4.8e12, 450e9),
    "a100": Device("A100 80GB SXM", 81_920 * 2**20, 312e12, 2.039e12, 300e9),
    "l40s": Device("L40S 48GB", 46_068 * 2**20, 362.05e12, 864e9, 32e9),  # PCIe 4.0 x16
    "b200": Device("B200 180GB HGX", 183_359 * 2**20, 2.25e15, 8.0e12, 900e9),
    # Measured on two cores with AVX-512 BF16: a LoRA step of SmolLM2 with 1,900 tokens takes 4.2 s.
    "cpu": Device("CPU core", 0, 0.15e12, 8e9, 4e9, _CORES),
}


def machine_memory() -> int:
    """Bytes of memory of this machine, which a training on its CPU may use."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
