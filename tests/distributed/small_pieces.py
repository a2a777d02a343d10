"""`uatmc` with anchors shared out, and rows on their way, in small pieces, so that a tiny catalog has several."""

from uatmc_dist.attacks import anchors, graph
from uatmc_dist.cli import main
from uatmc_dist.evaluation import on_ranks
from uatmc_dist.models import files, on_first

anchors._PIECE, graph._TARGETS_AT_ONCE = 32, 2
for room in (files, on_first, on_ranks):
    room.AT_ONCE = 30
main()
