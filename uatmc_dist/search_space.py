"""Search spaces of `uatmc tune` in YAML: an option of the configuration, and the range or the choices to try."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from uatmc_dist.config import iterate_options, nearest, read_yaml
from uatmc_dist.errors import UserError

if TYPE_CHECKING:
    import optuna


class Range(BaseModel):
    """One line of a search space: `{low: 0.01, high: 0.2, log: true}` or `{choices: [64, 128]}`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: Annotated[list[Any] | None, Field(min_length=1)] = None

    @model_validator(mode="after")
    def _is_one_kind(self) -> "Range":
        if self.choices is not None:
            if self.low is not None or self.high is not None or self.log:
                raise ValueError("choices go without low, high and log")
        elif self.low is None or self.high is None or not self.low < self.high:
            raise ValueError("give low and high, low below high, or choices")
        elif self.log and self.low <= 0:
            raise ValueError("a logarithmic range begins above 0")
        return self

    def suggest(self, trial: "optuna.Trial", option: str) -> Any:
        if self.choices is not None:
            # Optuna's choices are plain values; a list of ours goes as its JSON.
            return json.loads(trial.suggest_categorical(option, [json.dumps(choice) for choice in self.choices]))
        assert self.low is not None and self.high is not None
        if self.low.is_integer() and self.high.is_integer() and option in _whole_options():
            return trial.suggest_int(option, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(option, self.low, self.high, log=self.log)


def _whole_options() -> set[str]:
    return {key for key, kind, *_ in iterate_options() if kind.split(" ")[0] == "int"}


def read_space(path: Path) -> dict[str, Range]:
    """Option -> range. Raises UserError naming the file, the option, and the nearest known one."""
    known = [key for key, *_ in iterate_options()]
    space = {}
    for option, values in read_yaml(path).items():
        if option not in known:
            raise UserError(f"{path}: unknown option {option}{nearest(str(option), known)}")
        try:
            space[option] = Range.model_validate(values)
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(str(part) for part in problem["loc"])
            told = problem["msg"].removeprefix("Value error, ")
            raise UserError(f"{path}: {option}{f': {where}' if where else ''}: {told}") from None
    return space
