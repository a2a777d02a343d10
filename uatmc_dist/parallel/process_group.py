"""Joining the ranks of a run: one process alone, torchrun on one machine, or SLURM through torchrun."""

import logging
import os
import sys
import time
import uuid
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn

import torch
import torch.distributed as dist

from uatmc_dist.doctor import has_cuda_machine, hides_gpus, problem_of_gpu
from uatmc_dist.errors import UserError
from uatmc_dist.parallel import collectives


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

    `timeout` is the longest wait of a collective. Raises UserError where the machine's GPUs cannot be used.
    """
    # What torch says to the authors of TorchRec, not to our users.
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    device = own_device(int(os.environ.get("LOCAL_RANK", 0)))
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        start_triton()
    else:
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


def described(world: World) -> str:
    """How many ranks there are, and on what."""
    name = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "the CPU"
    return f"{world.size} {'rank' if world.size == 1 else 'ranks'}, {name}"


def own_device(local_rank: int) -> torch.device:
    """The GPU of this rank, or the CPU where the machine has none, or CUDA_VISIBLE_DEVICES hides them.

    Raises UserError where PyTorch or FBGEMM cannot use a GPU that is there, or there are more ranks than GPUs."""
    if not torch.cuda.is_available():
        if torch.version.cuda and has_cuda_machine() and not hides_gpus():
            raise UserError(
                f"this machine has an NVIDIA driver, but PyTorch {torch.__version__} cannot use it: CUDA "
                f"{torch.version.cuda} needs a newer one, or this job was given no GPU; install it, ask for one, or "
                "set CUDA_VISIBLE_DEVICES= to train on the CPU"
            )
        return torch.device("cpu")
    gpus = torch.cuda.device_count()
    if local_rank >= gpus:
        raise UserError(
            f"--nproc_per_node: rank {local_rank} of this machine has no GPU, PyTorch sees {gpus}; start as many ranks "
            "as GPUs, or set CUDA_VISIBLE_DEVICES= to train on the CPU"
        )
    if problem := problem_of_gpu(local_rank):
        raise UserError(f"{problem}; take another GPU, or set CUDA_VISIBLE_DEVICES= to train on the CPU")
    return torch.device("cuda", local_rank)


def start_triton() -> None:
    """Builds Triton's driver now: it is compiled at the first launch, which may be hours away.

    Raises UserError where there is no C compiler, or no header of Python."""
    from triton.runtime import driver

    try:
        driver.active.get_current_device()
    except Exception as error:  # subprocess, file and runtime errors, by what is missing
        why = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(
            f"Triton cannot compile its driver ({why}); install gcc and the headers of Python (python3-dev)"
        ) from None


def ranks_of_a_machine(world_size: int) -> int:
    """How many ranks of this run each machine has; all of them without torchrun."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size))


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
    return int(collectives.reduced(torch.tensor([flag]), dist.ReduceOp.MAX))


def is_loss_of_a_rank(error: Exception) -> bool:
    """Whether a collective failed because another rank is gone or does not answer."""
    return isinstance(error, dist.DistError) or any(
        name in str(error).lower() for name in ("gloo", "nccl", "timed out")
    )


def part() -> None:
    """Gives up the group, which every rank does: from here on none waits for another."""
    if dist.is_initialized():
        dist.destroy_process_group()


def leave(exit_code: int = 0, is_alone: bool = False) -> NoReturn:
    """Ends the process. What was written must be closed by now. `is_alone`: other ranks are gone or stuck, so that the
    group is not given up: NCCL would wait for what they were to send.

    Without the interpreter's own shutdown: DeepSpeed keeps groups of its own alive, and gloo's threads abort the
    process now and then when they drop their last tensors in an interpreter that is going away
    (pytorch/pytorch pull request 179291).
    """
    if not is_alone:
        part()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)
