"""The floating point types that a device multiplies fast. Without bf16 instructions a CPU takes ten times as long for bf16 as for fp32."""

import torch


def has_bf16(device: str) -> bool:
    """Whether this machine's device multiplies bf16 in hardware.

    That is AVX-512 BF16, AMX or similar for a CPU ("cpu"), and Ampere or later for a GPU ("cuda").
    """
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    able = torch.cpu.get_capabilities()
    return any(able.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
