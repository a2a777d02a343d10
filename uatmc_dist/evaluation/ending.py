"""What the end of a training says: the epoch that was kept, and whether the model is below a baseline."""

from dataclasses import dataclass
from typing import Any

from uatmc_dist.config import AdversarialConfig, CleanConfig, Config
from uatmc_dist.data.catalog import Catalog
from uatmc_dist.evaluation.comparison import TRAINING_WITHIN_S, Baselines, Comparison
from uatmc_dist.progress import shown
from uatmc_dist.runs import RunFolder


@dataclass(frozen=True)
class _Phase:
    """One phase of a finished run, and its evaluations on the validation split."""

    name: str
    options: CleanConfig | AdversarialConfig
    evaluations: list[dict[str, Any]]
    metric: str

    @property
    def kept(self) -> dict[str, Any]:
        """The evaluation of the weights that the phase ended with: the first of the best, the last without patience."""
        if self.options.patience is None:
            return self.evaluations[-1]
        return max(self.evaluations, key=lambda line: line[self.metric])


def kept_epochs(config: Config) -> list[str]:
    """One line for each phase that early stopping has watched."""
    phases = _phases(config)
    lines = []
    for phase in phases:
        if phase.options.patience is not None:
            of_phase = f" of the {phase.name} phase" if len(phases) > 1 else ""
            value = f"valid {config.evaluation.metric} {phase.kept[phase.metric]:.4f}"
            lines.append(f"kept: epoch {phase.kept['epoch']} of {phase.options.epochs}{of_phase} ({value})")
    return lines


def compare_at_the_end(config: Config) -> Comparison | None:
    """The final weights beside the baselines, on the validation split; None where training has not evaluated them.

    On one process, without collectives. What would take more than a minute is left to `uatmc evaluate`.
    """
    phases = _phases(config)
    if not phases or phases[-1].name != ("adversarial" if config.adversarial.epochs else "clean"):
        return None
    baselines = Baselines(Catalog(config.catalog), shown)
    value = phases[-1].kept[phases[-1].metric]
    return baselines.compare(config.evaluation.metric, "valid", value, config.run_dir, TRAINING_WITHIN_S)


def _phases(config: Config) -> list[_Phase]:
    """The phases that were evaluated, in their order."""
    metric = f"valid/{config.evaluation.metric}"
    lines = [line for line in RunFolder(config.run_dir).read_metrics() if metric in line]
    of_phase = {name: [line for line in lines if line["phase"] == name] for name in ("clean", "adversarial")}
    options: dict[str, CleanConfig | AdversarialConfig] = {"clean": config.clean, "adversarial": config.adversarial}
    return [_Phase(name, options[name], found, metric) for name, found in of_phase.items() if found]
