"""`uatmc` with anchors shared out in small pieces, so that a tiny catalog's go to every rank."""

from uatmc_dist.attacks import anchors
from uatmc_dist.cli import main

anchors._PIECE = 32
main()
