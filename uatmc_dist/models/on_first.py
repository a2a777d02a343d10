"""What the first rank writes of the rows of all ranks, piece by piece: no process holds them all."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping

import torch
import torch.distributed as dist

from uatmc_dist.models.files import AT_ONCE, Pieces
from uatmc_dist.parallel.item_parallel import num_ranks
from uatmc_dist.parallel.process_group import any_rank
from uatmc_dist.parallel.traffic import TRAFFIC


def pieces_on_first(rows_nX: torch.Tensor) -> Pieces:
    """All ranks' rows, in rank order, on the first one. Collective, and so is going through the pieces: the other ranks
    send theirs, and see none."""
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(num_ranks())]
    dist.all_gather(sizes, torch.tensor([len(rows_nX)]))
    width = rows_nX.shape[1]

    def rows() -> Iterator[torch.Tensor]:
        own = (rows_nX[start : start + AT_ONCE].cpu().contiguous() for start in range(0, len(rows_nX), AT_ONCE))
        if dist.get_rank() != 0:
            for piece in own:
                dist.send(piece, dst=0)
            return
        yield from own
        for rank, size in enumerate(map(int, sizes[1:]), start=1):
            for start in range(0, size, AT_ONCE):
                piece = torch.empty(min(AT_ONCE, size - start), width, dtype=rows_nX.dtype)
                dist.recv(piece, src=rank)
                TRAFFIC.received(piece.nbytes)
                yield piece

    return Pieces(sum(map(int, sizes)), width, rows)


def write_on_first(pieces: Mapping[str, Pieces], write: Callable[[Mapping[str, Pieces]], None]) -> None:
    """`write` on the first rank, which goes through the pieces once, in their order. Collective. Raises OSError on all
    ranks where it does."""
    if num_ranks() == 1:
        return write(pieces)
    ways = {name: part.rows() for name, part in pieces.items()}
    problem = None
    if dist.get_rank() == 0:
        once = {name: Pieces(p.num_rows, p.width, ways[name].__iter__) for name, p in pieces.items()}
        try:
            write(once)
        except OSError as error:
            problem = error
    for way in ways.values():  # the others send, and after a failure the first one receives what is under way
        deque(way, maxlen=0)
    if any_rank(int(problem is not None)):
        raise problem or OSError(None, "the first rank cannot write")
    return None
