"""`uatmc tune`: Optuna over a search space in YAML. Each trial is a run of its own; many processes may share a study.

STUDY/tuning.db       Optuna's SQLite storage: start the same command anywhere, also several at once, and it goes on
STUDY/trials/NAME/    the run of a trial; NAME is a hash of its options, so that an interrupted one goes on, too
STUDY/best.yaml       the configuration of the best trial (of two objectives: STUDY/pareto/NUMBER.yaml)
STUDY/trials.csv      a line a trial
STUDY/plots/*.html    history, importances, learning curves; of two objectives the Pareto front
"""

import csv
import ctypes
import hashlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from uatmc_dist.config import Config, dump_config, load_config
from uatmc_dist.errors import UserError
from uatmc_dist.json_lines import read_lines
from uatmc_dist.search_space import Range

if TYPE_CHECKING:
    import optuna

Say = Callable[[str], None]
SPACES = Path(__file__).parent / "spaces"
ATTACK_SEEDS = (101, 102)
"""Targets and anchors that choices are made on; the protocol's are 1 to 10."""
_HEARTBEAT_S, _GRACE_S = 5, 20
_POLL_S = 0.5
_PR_SET_PDEATHSIG = 1


class TrainingFailed(Exception):
    """The trial's training ended with an error of its own."""


@dataclass(frozen=True)
class Tuning:
    """A study of one configuration."""

    config_path: Path
    overrides: tuple[str, ...]
    space: dict[str, Range]
    folder: Path
    ranks: int
    say: Say

    @cached_property
    def config(self) -> Config:
        return load_config(self.config_path, self.overrides)

    @cached_property
    def objectives(self) -> list[str]:
        """Names of what is optimised: accuracy, and for a run with an adversarial phase what an attack reaches."""
        config = self.config
        accuracy = f"valid {config.evaluation.metric}"
        return [accuracy, f"hit@{config.attack.k} after apgd"] if config.adversarial.epochs else [accuracy]

    @property
    def directions(self) -> list[Literal["maximize", "minimize"]]:
        return ["maximize", "minimize"][: len(self.objectives)]  # type: ignore[return-value]

    def run(self, num_trials: int) -> None:
        """Goes on until `num_trials` trials are done, by whichever process, then writes what is left behind."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        study = self._study()
        self.say(f"{self.folder}: {_num_done(study)} of {num_trials} trials done; {', '.join(self.objectives)}")
        began, before = time.monotonic(), _num_done(study)
        while _num_done(study) < num_trials:
            study.optimize(self._trial, n_trials=1, catch=(TrainingFailed,))
            done = _num_done(study)
            left = (time.monotonic() - began) / max(done - before, 1) * (num_trials - done)
            self.say(f"{done}/{num_trials} trials  {self._best(study)}  ETA {timedelta(seconds=round(max(left, 0)))}")
        self._leave_behind(study)

    def _study(self) -> "optuna.Study":
        import optuna
        from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback

        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be written ({error.strerror}); give another --study") from None
        # A process that was killed leaves a trial behind that runs no more: it is queued again.
        storage = RDBStorage(
            f"sqlite:///{self.folder / 'tuning.db'}",
            heartbeat_interval=_HEARTBEAT_S,
            grace_period=_GRACE_S,
            heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
        )
        study = optuna.create_study(
            study_name="tuning",
            storage=storage,
            directions=self.directions,
            load_if_exists=True,
            # Processes that sample at the same time are kept apart by constant_liar.
            sampler=optuna.samplers.TPESampler(multivariate=True, constant_liar=True),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=2),
        )
        told = {"options": dump_config(self.config), "objectives": self.objectives}
        if "options" in study.user_attrs:
            if any(study.user_attrs[name] != value for name, value in told.items()):
                raise UserError(f"{self.folder}: a study of other options; repeat its command, or give another --study")
        else:
            for name, value in told.items():
                study.set_user_attr(name, value)
        return study

    def _trial(self, trial: "optuna.Trial") -> float | tuple[float, float]:
        import optuna

        chosen = {option: values.suggest(trial, option) for option, values in self.space.items()}
        overrides = [*self.overrides, *(f"{option}={json.dumps(value)}" for option, value in chosen.items())]
        name = hashlib.sha256("\n".join(overrides).encode()).hexdigest()[:12]
        overrides += [f"name={name}", f"output_dir={self.folder / 'trials'}"]
        trial.set_user_attr("run", name)
        run = self.folder / "trials" / name
        try:
            curve = self._train(trial, run, overrides)
            if not curve:
                raise TrainingFailed("never evaluated; lower evaluation.every_epochs")
            if len(self.objectives) == 1:
                return max(curve)
            return _accuracy_and_hits(run)
        except TrainingFailed as error:
            trial.set_user_attr("error", str(error))
            self.say(f"trial {trial.number} failed: {error}")
            raise
        except optuna.TrialPruned:
            self.say(f"trial {trial.number} pruned")
            raise

    def _train(self, trial: "optuna.Trial", run: Path, overrides: list[str]) -> list[float]:
        """Trains in a process of its own; returns the metric after each epoch. Raises TrialPruned, TrainingFailed."""
        import optuna

        metric, reported = f"valid/{self.config.evaluation.metric}", 0
        if (run / "model/model.safetensors").exists():
            return _curve(run, metric)
        run.parent.mkdir(parents=True, exist_ok=True)
        log = run.with_suffix(".log")
        with log.open("w", encoding="utf-8") as file:
            command = self._command(overrides)
            training = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, preexec_fn=_end_with_parent)
            try:
                while training.poll() is None:
                    time.sleep(_POLL_S)
                    if len(self.objectives) > 1:  # Optuna prunes by a single objective alone
                        continue
                    curve = _curve(run, metric)
                    for epoch in range(reported, len(curve)):
                        trial.report(curve[epoch], epoch)
                    reported = len(curve)
                    if curve and trial.should_prune():
                        raise optuna.TrialPruned
            finally:
                if training.poll() is None:
                    training.terminate()  # it saves a checkpoint: a trial that was interrupted goes on
                    training.wait()
        if training.returncode:
            lines = log.read_text(encoding="utf-8").splitlines()
            told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
            raise TrainingFailed(told[-1] if told else f"exit status {training.returncode}, see {log}")
        return _curve(run, metric)

    def _command(self, overrides: list[str]) -> list[str]:
        entry = ["-m", "uatmc_dist.launch", str(self.config_path), *overrides]
        if self.ranks == 1:
            return [sys.executable, *entry]
        ranks = f"--nproc_per_node={self.ranks}"
        return [sys.executable, "-m", "torch.distributed.run", "--standalone", ranks, *entry]

    def _best(self, study: "optuna.Study") -> str:
        best = study.best_trials
        if not best:
            return "none finished yet"
        if len(self.objectives) > 1:
            return f"{len(best)} on the Pareto front"
        return f"best {self.objectives[0]} {best[0].values[0]:.4f} (trial {best[0].number})"

    def _leave_behind(self, study: "optuna.Study") -> None:
        best = study.best_trials
        if not best:
            raise UserError(f"{self.folder}: no trial finished; see trials/*.log for why")
        if len(self.objectives) == 1:
            files = {self.folder / "best.yaml": best[0]}
        else:
            files = {self.folder / "pareto" / f"{trial.number}.yaml": trial for trial in best}
        for file, trial in files.items():
            file.parent.mkdir(exist_ok=True)
            file.write_text(self._configuration(trial), encoding="utf-8")
            self.say(f"written: {file}")
        table = self.folder / "trials.csv"
        with table.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(["trial", "state", *self.objectives, *self.space, "run", "error"])
            for each in study.trials:
                values = each.values or [None] * len(self.objectives)
                options = [each.params.get(option) for option in self.space]
                attributes = [each.user_attrs.get(name, "") for name in ("run", "error")]
                writer.writerow([each.number, each.state.name.lower(), *values, *options, *attributes])
        self.say(f"written: {table}")
        for name, figure in self._figures(study).items():
            file = self.folder / "plots" / f"{name}.html"
            file.parent.mkdir(exist_ok=True)
            figure.write_html(file, include_plotlyjs=True)
            self.say(f"written: {file}")

    def _configuration(self, trial: "optuna.trial.FrozenTrial") -> str:
        """The trial's configuration as a file for train.py, under the name of the original."""
        config = load_config(self.folder / "trials" / trial.user_attrs["run"] / "config.yaml")
        values = yaml.safe_load(dump_config(config))
        values.update(name=f"{self.config.name}-tuned", output_dir=str(self.config.output_dir))
        measured = ", ".join(f"{name} {value:.4f}" for name, value in zip(self.objectives, trial.values, strict=True))
        return f"# uatmc tune, trial {trial.number}: {measured}\n" + yaml.safe_dump(values, sort_keys=False)

    def _figures(self, study: "optuna.Study") -> dict[str, Any]:
        import optuna.visualization as pictures

        if len(self.objectives) > 1:
            figures = {"pareto": pictures.plot_pareto_front(study, target_names=self.objectives)}
        else:
            figures = {
                "history": pictures.plot_optimization_history(study, target_name=self.objectives[0]),
                "curves": pictures.plot_intermediate_values(study),
                "slices": pictures.plot_slice(study, target_name=self.objectives[0]),
            }
        return figures


def _end_with_parent() -> None:
    """Linux: SIGTERM when the process that started this one is gone, kills included. A trial that went on alone would
    write into the run that its successor goes on with."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _num_done(study: "optuna.Study") -> int:
    """Finished, pruned, or failed by themselves; a trial whose process was killed is made again."""
    ended = [trial for trial in study.trials if trial.state.is_finished()]
    return sum(trial.state.name != "FAIL" or "error" in trial.user_attrs for trial in ended)


def _curve(run: Path, metric: str) -> list[float]:
    """The metric after each evaluation so far; the last line may be half written."""
    return [entry[metric] for entry in read_lines(run / "metrics.jsonl") if metric in entry]


def _accuracy_and_hits(run: Path) -> tuple[float, float]:
    """Of the final weights: the metric on the validation split, and Hit@k after Auto-PGD at the largest epsilon, on
    targets and anchors that no final table uses."""
    from uatmc_dist.data.catalog import Catalog
    from uatmc_dist.evaluation.promotion import attack_model
    from uatmc_dist.evaluation.ranking import rank_model
    from uatmc_dist.models.trained import TrainedModel

    config = load_config(run / "config.yaml")
    catalog = Catalog(config.catalog)
    model = TrainedModel.load(run, catalog)
    accuracy = rank_model(model, catalog, "valid", config.evaluation.users_per_batch)[config.evaluation.metric]
    options = {"attacks": ["apgd"], "seeds": list(ATTACK_SEEDS), "epsilons": [max(config.attack.epsilons)]}
    attack = config.attack.model_copy(update=options)
    results = attack_model(model, catalog, attack, None)["results"]
    (hits,) = [
        each[f"hit@{attack.k}_after"] for each in results if each["stratum"] == "random" and each["attack"] == "apgd"
    ]
    return accuracy, hits


def default_space(config: Config) -> Path:
    return SPACES / ("adversarial.yaml" if config.adversarial.epochs else "clean.yaml")


def study_folder(config: Config) -> Path:
    return config.output_dir / f"{config.name}-tuning"
