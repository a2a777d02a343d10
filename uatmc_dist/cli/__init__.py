"""`uatmc`: thin calls into the rooms; a module for each group of verbs."""

from uatmc_dist import command, launch
from uatmc_dist.cli import data, measure, on_files, prepare, serve, show
from uatmc_dist.cli.common import app

__all__ = ["app", "data", "main", "measure", "on_files", "prepare", "serve", "show"]

app.command("train", epilog=launch.OPTIONS_HELP)(launch.train)


def main() -> None:
    command.run(app)
