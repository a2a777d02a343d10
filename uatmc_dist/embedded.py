"""The embedded default: what train.py runs where no configuration is given, on a catalog that it makes itself."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from uatmc_dist.config import Config, load_config
from uatmc_dist.data.synthetic import synthesize
from uatmc_dist.errors import UserError
from uatmc_dist.parallel.process_group import World, any_rank
from uatmc_dist.progress import shown
from uatmc_dist.runs import RunFolder

CONFIG = Path("quickstart")


def load_embedded(overrides: Sequence[str]) -> Config:
    """configs/quickstart.yaml under the first name whose run is not finished: quickstart, quickstart-2, ...

    Raises UserError for a wrong override."""
    config = load_config(CONFIG, overrides)
    if any(override.startswith("name=") for override in overrides):
        return config
    names = (name for name in _names(config.name) if not RunFolder(config.output_dir / name).is_finished)
    return load_config(CONFIG, [*overrides, f"name={next(names)}"])


def _names(name: str) -> Iterator[str]:
    yield name
    number = 2
    while True:
        yield f"{name}-{number}"
        number += 1


def is_own_catalog(path: Path) -> bool:
    return path == load_config(CONFIG).catalog


def make_catalog(path: Path, world: World) -> None:
    """Collective: the first rank makes the synthetic catalog where it is missing, the others wait.

    Raises UserError on every rank where it cannot be written."""
    problem = None
    if world.is_first and not (path / "catalog.json").exists():
        try:
            with shown("rows") as progress:
                synthesize(path, progress=progress)
        except (UserError, OSError) as error:
            problem = f"{path}: the synthetic catalog cannot be made ({error})"
    if any_rank(int(problem is not None)):
        raise UserError(problem or f"{path}: the synthetic catalog cannot be made")


def introduction(config: Config) -> str:
    return (
        f"no configuration given: training the embedded default, configs/{CONFIG}.yaml, on a synthetic catalog "
        f"({config.catalog}) into {config.run_dir}; for your own shop: uatmc data build, then "
        "train.py configs/default.yaml catalog=FOLDER name=NAME"
    )
