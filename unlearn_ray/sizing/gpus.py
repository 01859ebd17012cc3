"""What the GPUs that people rent can do, by their makers' data sheets. A new one is a line of `DEVICES`."""

import os
from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU; or one core of a CPU, with its share of the machine's memory.

    Sources:
        `memory`: what the driver reports (`nvidia-smi`), a little less than the name says.
        `flops`: dense bf16 on tensor cores. Data sheets print twice that, "with sparsity".
        `bandwidth`, `link`: of the data sheets of NVIDIA H100 (SXM), H200 (SXM), A100 (SXM, 80 GB), L40S, and HGX B200.
    """

    name: str
    memory: int  # bytes
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
    # Measured on cores with AVX-512 BF16: SmolLM2's LoRA step of 1,900 tokens takes 4.2 s on two (docs/real-models.md).
    "cpu": Device("CPU core", 0, 0.15e12, 8e9, 4e9, _CORES),
}


def machine_memory() -> int:
    """Bytes that this machine has: what a training on its CPU may take."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
