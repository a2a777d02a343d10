"""`uatmc`: thin calls into the rooms; a module for each group of verbs."""

from uatmc_dist import command
from uatmc_dist.cli import data, measure, prepare, serve, show
from uatmc_dist.cli.common import app

__all__ = ["app", "data", "main", "measure", "prepare", "serve", "show"]


def main() -> None:
    command.run(app)
