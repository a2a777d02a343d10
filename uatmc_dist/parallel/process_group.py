"""Joining the ranks of a run: one process alone, torchrun on one machine, or SLURM through torchrun."""

import os
import sys
import time
import uuid
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class World:
    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0


def join(timeout: timedelta = timedelta(minutes=10)) -> World:
    """Initialises the default process group: gloo for CPU tensors, NCCL for CUDA ones. Without torchrun: one rank.

    `timeout` is the longest wait of a collective.
    """
    cuda = torch.cuda.is_available()
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    if cuda:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if "RANK" not in os.environ:
        # DeepSpeed reads these even where the group exists already.
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        return World(0, 1, device)
    store, rank, size = next(dist.rendezvous("env://", timeout=timeout))
    # All attempts of torchrun --max-restarts share one store: without a prefix of its own, a restarted rank
    # may read the address of a dead peer.
    store = dist.PrefixStore(_agreed_attempt(store, rank, size, timeout), store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    return World(rank, size, device)


def _agreed_attempt(store: dist.Store, rank: int, size: int, timeout: timedelta) -> str:
    """A name that all ranks of this attempt have in common, and no other attempt has.

    TORCHELASTIC_RESTART_COUNT is no such name: each machine's torchrun counts for itself, so that a machine that comes
    back starts at 0 while the others are at 1, and nobody counts where a machine joins. Nor may a rank believe what it
    finds in the store, which may be of a dead attempt. So each rank asks under a new name, rank 0 answers, and goes on
    answering until every rank has confirmed: an answer to a dead rank's question reaches nobody.
    """
    if rank:
        question = uuid.uuid4().hex
        store.set(f"question_{rank}", question)
        attempt = store.get(f"answer_{question}").decode()
        store.set(f"{attempt}_{rank}", "here")
        return attempt
    attempt = uuid.uuid4().hex
    missing = set(range(1, size))
    deadline = time.monotonic() + timeout.total_seconds()
    while missing:
        for other in missing:
            if store.check([f"question_{other}"]):
                store.set(f"answer_{store.get(f'question_{other}').decode()}", attempt)
        missing = {other for other in missing if not store.check([f"{attempt}_{other}"])}
        if time.monotonic() > deadline:
            raise dist.DistNetworkError(f"ranks {sorted(missing)} did not join within {timeout}")
        time.sleep(0.02)
    return attempt


def is_first_attempt() -> bool:
    """Whether torchrun has started no rank again. Collective: a machine that comes back counts from 0."""
    return not any_rank(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")))


def any_rank(flag: int) -> int:
    """The largest flag of all ranks, on the CPU group: no device is waited for."""
    if dist.get_world_size() == 1:
        return flag
    flags = torch.tensor([flag])
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return int(flags)


def is_loss_of_a_rank(error: Exception) -> bool:
    """Whether a collective failed because another rank is gone or does not answer."""
    return isinstance(error, dist.DistError) or any(name in str(error).lower() for name in ("gloo", "timed out"))


def part() -> None:
    """Gives up the group, which every rank does: from here on none waits for another."""
    if dist.is_initialized():
        dist.destroy_process_group()


def leave(exit_code: int = 0) -> NoReturn:
    """Ends the process. What was written must be closed by now.

    Without the interpreter's own shutdown: DeepSpeed keeps groups of its own alive, and gloo's threads abort the
    process now and then when they drop their last tensors in an interpreter that is going away
    (pytorch/pytorch pull request 179291).
    """
    part()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)
