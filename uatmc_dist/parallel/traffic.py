"""What a rank sends and receives, counted where the collectives are called.

Bytes a rank receives when the collective runs as a ring: (R - 1) / R of the result for an all-gather or a
reduce-scatter, twice that for an all-reduce. One rank has no traffic.

    R  ranks
"""

from dataclasses import asdict, dataclass

import torch.distributed as dist


@dataclass
class Traffic:
    all_gathered_bytes: float = 0.0
    """User rows of the batch, what the alignment term gathers, lists that are merged, what the first rank writes."""
    reduced_bytes: float = 0.0
    """Reduce-scatters and all-reduces: gradients of the user rows, sums of histories, positive scores, dense
    gradients."""

    def gathered(self, result_bytes: int) -> None:
        self.all_gathered_bytes += result_bytes * _share_of_others()

    def reduce_scattered(self, input_bytes: int) -> None:
        self.reduced_bytes += input_bytes * _share_of_others()

    def all_reduced(self, result_bytes: int) -> None:
        self.reduced_bytes += 2 * result_bytes * _share_of_others()

    def received(self, num_bytes: int) -> None:
        """From one other rank."""
        self.all_gathered_bytes += num_bytes

    def take(self) -> dict[str, float]:
        """What was counted since the last call."""
        counted = asdict(self)
        self.__init__()  # type: ignore[misc]
        return counted


def _share_of_others() -> float:
    ranks = dist.get_world_size()
    return (ranks - 1) / ranks


TRAFFIC = Traffic()
"""Of this process."""
