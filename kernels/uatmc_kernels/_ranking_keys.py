"""int64 keys that order like (score, lower item first): the score's bits above, the inverted item below.

All keys of a user differ, so a ranking has one answer, however the items are cut into tiles and blocks.
"""

import torch

_LOW_32 = 0xFFFFFFFF
NOTHING = torch.iinfo(torch.int64).min
_FIRST_REAL = NOTHING + 2**32
"""Empty slots of a ranking hold less than this; no score that is a number does."""


def keys_of(scores_BT: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
    """`items`: which ones the columns are, [T] or [B, T]."""
    bits = (scores_BT.float() + 0.0).view(torch.int32)  # + 0.0: no negative zero
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(torch.int64) << 32) | (_LOW_32 - items)


def scores_and_items(keys_Bk: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What keys stand for; -inf and -1 for an empty slot."""
    ordered = (keys_Bk >> 32).to(torch.int32)
    scores_Bk = (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).view(torch.float32)
    nothing = keys_Bk < _FIRST_REAL
    return scores_Bk.masked_fill(nothing, float("-inf")), (_LOW_32 - (keys_Bk & _LOW_32)).masked_fill(nothing, -1)
