"""Running a command-line program: what is wrong with its arguments is one line, as everything else that is wrong."""

import os
import sys
from typing import NoReturn

import typer

from uatmc_dist.errors import UserError


def run(app: typer.Typer) -> NoReturn:
    """Exits with 0, with the code of a command, with 130 after Ctrl-C, or with 2 and one line on standard error."""
    try:
        _end(app(standalone_mode=False) or 0)
    except typer.Abort:
        sys.exit(130)
    except UserError as error:
        _fail(str(error))
    except Exception as error:
        # Errors of usage are click's own, which typer has inside in some versions and beside it in others.
        if not hasattr(error, "format_message"):
            raise
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()  # type: ignore[attr-defined]
            sys.exit(2)
        _fail(error.format_message())


def _end(exit_code: int) -> NoReturn:
    ranks = sys.modules.get("torch.distributed")
    if ranks is not None and ranks.is_available() and ranks.is_initialized():
        from uatmc_dist.parallel.process_group import leave

        leave(exit_code)
    sys.exit(exit_code)


def _fail(message: str) -> NoReturn:
    if os.environ.get("RANK", "0") == "0":  # once, not once a rank
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)
