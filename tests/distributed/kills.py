"""Run by torchrun from test_kills.py: a trainer that ends itself, or stops answering, at given moments.

A plan is a JSON list of [moment, rank, occurrence]; entry i is for attempt i (torchrun's restart count), and attempts
beyond the list train undisturbed.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import torch

from uatmc_dist import launch
from uatmc_dist.models.users import UserVectors
from uatmc_dist.parallel.checkpoint import Checkpoints
from uatmc_dist.training import Trainer, stopping

MOMENTS = ("forward", "backward", "staging", "writing", "publishing", "evaluation", "step")


class Bomb:
    """Sends itself a signal the n-th time its moment comes."""

    def __init__(self, moment: str, rank: int, occurrence: int, signum: int) -> None:
        self._moment, self._left, self._signum = moment, occurrence, signum
        self._armed = rank == int(os.environ["RANK"])

    def at(self, moment: str) -> None:
        if not self._armed or moment != self._moment:
            return
        self._left -= 1
        if self._left <= 0:
            print(f"{signal.Signals(self._signum).name} of rank {os.environ['RANK']} during {moment}", flush=True)
            os.kill(os.getpid(), self._signum)
            if self._signum == signal.SIGTERM:
                time.sleep(600)  # a step that does not end, longer than torchrun_plan waits


def arm(bomb: Bomb) -> None:
    """Puts the moments into the trainer."""

    def before(cls: type, name: str, moment: str) -> None:
        method = getattr(cls, name)

        def watched(self, *arguments, **options):
            bomb.at(moment)
            return method(self, *arguments, **options)

        setattr(cls, name, watched)

    before(UserVectors, "of_users", "evaluation")
    before(Checkpoints, "_publish", "publishing")
    before(Trainer, "_report", "step")
    save, refuse = Checkpoints.save, Trainer._refuse_non_finite

    def watched_save(self, *arguments):
        bomb.at("staging")
        failure = save(self, *arguments)
        # While the thread writes: at once, or a little later.
        threading.Thread(target=lambda: (time.sleep(0.002), bomb.at("writing")), daemon=True).start()
        return failure

    def watched_refuse(self, terms):
        bomb.at("forward")
        loss = next(iter(terms.values()))
        if loss.requires_grad:
            loss.register_hook(lambda gradient: bomb.at("backward"))
        return refuse(self, terms)

    Checkpoints.save, Trainer._refuse_non_finite = watched_save, watched_refuse


def main() -> None:
    plan = json.loads(Path(sys.argv.pop(1)).read_text())
    attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    if attempt < len(plan["moments"]):
        arm(Bomb(*plan["moments"][attempt], plan["signal"]))
    stopping.GRACE_S = 1.0
    torch.set_num_threads(1)
    launch.main()


if __name__ == "__main__":
    main()
