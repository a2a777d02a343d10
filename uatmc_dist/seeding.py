"""Random generators that depend on words alone: no hidden state, nothing to checkpoint."""

import numpy as np
import torch


def generator(*words: int) -> torch.Generator:
    """A CPU generator seeded by all words, well mixed (numpy's SeedSequence)."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1))


def normal_rows(lo: int, hi: int, width: int, *words: int, block: int) -> torch.Tensor:
    """Rows [lo, hi) of an endless standard normal matrix that the words and `block` fix: whoever draws a row gets
    the same one, however the rows are shared out. `block` rows are drawn at a time."""
    rows = torch.empty(hi - lo, width)
    for start in range(lo // block * block, hi, block):
        drawn = torch.randn(block, width, generator=generator(*words, start))
        first, last = max(start, lo), min(start + block, hi)
        rows[first - lo : last - lo] = drawn[first - start : last - start]
    return rows
