"""Command line of train.py: configuration, overrides, --help with every option; then the trainer."""

import gc
import os
import signal
import sys
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Annotated, NoReturn, TextIO

import typer

from uatmc_dist import command
from uatmc_dist.config import Config, iterate_options, load_config
from uatmc_dist.errors import UserError

EXIT_REQUEUE = 75
"""After SIGTERM, when a checkpoint was saved: EX_TEMPFAIL of sysexits.h, try again later. What SLURM's RequeueExit and
launch/slurm look for."""
EXIT_LOST_RANK = 1
"""Another rank is gone: torchrun starts all of them again."""

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


def _options_help() -> str:
    """Every option with its type, default and docstring (\\b keeps the lines as they are)."""
    lines = []
    for key, kind, default, text in iterate_options():
        lines += [f"  {key}  ({kind}, default {default})", f"      {text}"]
    return "Options of the configuration, each also an override:\n\n\b\n" + "\n".join(lines)


OPTIONS_HELP = _options_help()


@app.command(epilog=OPTIONS_HELP)
def train(
    config: Annotated[
        Path | None,
        typer.Argument(help="YAML configuration, or the name of one of configs/; the embedded default without any."),
    ] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="option=value, e.g. training.lr=3e-4")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete the run of that name and start anew.")] = False,
) -> None:
    """Trains a recommender, alone or under torchrun. An interrupted run goes on with the same command."""
    overrides = list(overrides or [])
    if config is not None and "=" in str(config) and not config.exists():
        config, overrides = None, [str(config), *overrides]
    try:
        if config is not None:
            resolved = load_config(config, overrides)
        else:
            from uatmc_dist import embedded

            resolved = embedded.load_embedded(overrides)
            _tell(embedded.introduction(resolved), sys.stdout)
    except UserError as error:
        _tell(f"error: {error}")
        raise typer.Exit(2) from None
    _train(resolved, overwrite)


def _train(config: Config, overwrite: bool) -> NoReturn:
    # What torch says to the authors of TorchRec, not to our users.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch(rec)?\.")
    warnings.filterwarnings("ignore", "Please use DTensor instead", FutureWarning)
    # Imported late: --help and a wrong option are answered at once, torch and TorchRec take seconds. What they bring
    # stays for good: the collector looks through it neither now, a fifth of the time, nor in the middle of a step,
    # where a rank that does so for 0.1 s keeps all others waiting.
    gc.disable()
    from uatmc_dist import embedded
    from uatmc_dist.parallel import process_group
    from uatmc_dist.training import Interrupted, Trainer

    gc.freeze()
    gc.enable()

    try:
        world = process_group.join(timedelta(seconds=config.distributed.timeout_s))
        if embedded.is_own_catalog(config.catalog):
            embedded.make_catalog(config.catalog, world)
        # A rank that torchrun started again goes on; it must not delete what the first attempt did.
        trainer = Trainer(config, world, overwrite and process_group.is_first_attempt())
        _tell(f"training on {process_group.described(world)}", sys.stdout)
        trainer.fit()
    except Interrupted as interrupted:
        terminated = interrupted.signum == signal.SIGTERM
        exit_code = EXIT_REQUEUE if terminated else 128 + interrupted.signum
        process_group.leave(exit_code, is_alone=interrupted.is_in_a_step)
    except UserError as error:
        _tell(f"error: {error}")
        process_group.leave(2)
    except RuntimeError as error:
        if not process_group.is_loss_of_a_rank(error):
            raise
        reason = " ".join(str(error).split())[:160]
        rank = os.environ.get("RANK", "0")
        print(f"error: rank {rank}: lost the other ranks ({reason}); the same command goes on", file=sys.stderr)
        process_group.leave(EXIT_LOST_RANK, is_alone=True)
    # The other ranks leave now: none has to wait for what the first one still has to say.
    process_group.part()
    if world.is_first:
        _tell_end(config)
        print(f"done: {config.run_dir}\nnext: uatmc evaluate {config.run_dir}    uatmc attack {config.run_dir}")
    process_group.leave()


def _tell_end(config: Config) -> None:
    """The kept epochs and the comparison with the baselines. The model is saved, so nothing here makes a run fail."""
    from rich.console import Console

    from uatmc_dist.tables import accuracy as tables

    signal.setitimer(signal.ITIMER_REAL, 0)
    for signum in (signal.SIGINT, signal.SIGTERM):  # the trainer would only remember them
        signal.signal(signum, signal.default_int_handler)
    try:
        tables.print_end(Console(), config)
    except (KeyboardInterrupt, UserError, OSError, RuntimeError, MemoryError) as error:
        why = str(error) or "interrupted"
        print(f"not compared with the baselines ({why}); run `uatmc evaluate {config.run_dir}`", flush=True)


def _tell(line: str, stream: TextIO | None = None) -> None:
    """Once, not once a rank."""
    if os.environ.get("RANK", "0") == "0":
        print(line, file=stream or sys.stderr, flush=True)


def main() -> None:
    command.run(app)


if __name__ == "__main__":
    main()
