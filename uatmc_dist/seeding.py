"""Random generators that depend on words alone: no hidden state, nothing to checkpoint."""

import numpy as np
import torch

_CPU = torch.device("cpu")


def generator(*words: int, device: torch.device = _CPU) -> torch.Generator:
    """A generator seeded by all words, well mixed (numpy's SeedSequence)."""
    seed = int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)
    return torch.Generator(device).manual_seed(seed)


def normal_rows(lo: int, hi: int, width: int, *words: int, block: int, device: torch.device = _CPU) -> torch.Tensor:
    """Rows [lo, hi) of an endless standard normal matrix that the words, `block` and the kind of device fix: whoever
    draws a row gets the same one, however the rows are shared out. `block` rows are drawn at a time, on the device."""
    rows = torch.empty(hi - lo, width, device=device)
    for start in range(lo // block * block, hi, block):
        drawn = torch.randn(block, width, generator=generator(*words, start, device=device), device=device)
        first, last = max(start, lo), min(start + block, hi)
        rows[first - lo : last - lo] = drawn[first - start : last - start]
    return rows
