"""What a device can do."""

import torch


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether it has instructions for it; without them such products take many times as long as in float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    can = torch.cpu.get_capabilities()
    return any(can.get(name, False) for name in ("avx512_bf16", "amx_bf16"))
