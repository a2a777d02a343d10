"""Random generators that depend on words alone: no hidden state, nothing to checkpoint."""

import numpy as np
import torch


def generator(*words: int) -> torch.Generator:
    """A CPU generator seeded by all words, well mixed (numpy's SeedSequence)."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1))
