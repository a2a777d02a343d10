"""From the host to the device without waiting for it."""

import torch


def upload(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on the device. From pinned memory, so that the copy runs beside what the host does next; PyTorch keeps
    that memory until the copy is done. On a CPU the tensor itself."""
    if device.type == "cpu":
        return tensor
    pinned = tensor.pin_memory() if device.type == "cuda" else tensor
    return pinned.to(device, non_blocking=True)
