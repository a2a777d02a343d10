"""The training loop: phases, epochs, evaluations, checkpoints; any number of ranks, exact resumption.

Each rank owns a block of items and a slice of the batch's users.
"""

import math
from contextlib import closing
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import torch

from uatmc_dist import runs
from uatmc_dist.config import AdversarialConfig, CleanConfig, Config, PhaseName
from uatmc_dist.data.batches import Batch, KnownPositives
from uatmc_dist.data.catalog import Catalog
from uatmc_dist.errors import UserError
from uatmc_dist.evaluation.ranking import rank_split
from uatmc_dist.evaluation.stage import lengths
from uatmc_dist.models.backbone import backbone
from uatmc_dist.models.trained import ModelFile, save_model
from uatmc_dist.parallel.checkpoint import Checkpoints, DamagedCheckpoint
from uatmc_dist.parallel.item_parallel import ItemBlock
from uatmc_dist.parallel.process_group import World, any_rank
from uatmc_dist.schedule import learning_rate_factor
from uatmc_dist.training.attacked import attacked_now, told
from uatmc_dist.training.phase import Phase, begin_adversarial, check_modalities, is_finite
from uatmc_dist.training.position import Position
from uatmc_dist.training.reporting import Reporter
from uatmc_dist.training.stopping import Interrupted, StopSignals

_CANNOT_LOG = 1 << 16
"""Among the stop signals of the ranks: the first rank cannot write its logs."""


class Trainer:
    def __init__(self, config: Config, world: World, overwrite: bool = False) -> None:
        self.config, self.world = config, world
        self.catalog = Catalog(config.catalog)
        if config.model.content:
            check_modalities(config, self.catalog)
        if self.catalog.num_items < 2:
            raise UserError(f"{config.catalog}: {self.catalog.num_items} item; ranking needs at least 2")
        if config.evaluation.attack_epsilon is not None:
            lengths(config.attack.k, self.catalog.num_items)
        self.run = runs.RunFolder(config.run_dir)
        # A machine that comes back to the ranks that go on must not delete what they did.
        overwrite = overwrite and not self.run.is_of_launch(runs.launch_id())
        self.run.check(config, self.catalog.digest, overwrite)
        self._start_from = None if config.start_from is None else ModelFile(config.start_from)
        if self._start_from is not None:
            self._start_from.check_fits(self.catalog)
            if self._start_from.config.model != config.model:
                raise UserError(f"{config.start_from}: its model options differ from this run's; make them equal")
        any_rank(0)  # every rank has looked at the folder before the first one writes into it
        if world.is_first:
            environment = runs.environment(str(world.device), world.size, config.seed, self.catalog.digest)
            self.run.prepare(config, environment, overwrite)
        any_rank(0)
        timeout = timedelta(seconds=config.distributed.timeout_s)
        self.checkpoints = Checkpoints(self.run.checkpoints, config.checkpoint.keep, timeout)
        self.block = ItemBlock(self.catalog.num_items, world.rank, world.size)
        self.known = KnownPositives.of_training(self.catalog)
        self.reporter = Reporter(self.run, world, config.logging.every_steps, config.training.batch_size)
        self._signals = StopSignals(self.reporter.say)
        self._saved: Position | None = None

    def fit(self) -> None:
        """Trains what is left of the run, then writes model/. Raises Interrupted, or UserError for a loss that
        is not finite, each after saving a checkpoint; UserError, too, where nothing can be written."""
        self._signals.watch()
        try:
            with closing(self.reporter):
                self._run_phases()
            if failure := self.checkpoints.settle():
                self.reporter.say(f"warning: {failure}")
            if not is_finite(self.model):
                self._refuse(self.position.step, "a weight")
            tables = {table.name: table.local_weight for table in self.model.tables}
            save_model(self.run.model, self.config, self.catalog.digest, tables, self.model.dense_weights())
        finally:
            self.run.release()

    def _run_phases(self) -> None:
        if not self._resumed():
            first: PhaseName = "clean" if self._start_from is None else "adversarial"
            self.begin(Position(first))
        self._run_phase()
        if self.position.phase == "clean" and self.config.adversarial.epochs:
            self._begin_adversarial()
            self._run_phase()
        changed = self.config.model_dump(mode="json", exclude_defaults=True)
        self.reporter.summarise(changed, self.config.evaluation.metric)

    def train_step(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The optimiser's step on one global batch, and with Mirror Gradient now and then the step back; returns this
        rank's partial of each loss term."""
        mirror, step = self.config.mirror_gradient, self.step
        is_mirrored = mirror.alpha2 > 0 and self.position.batch % mirror.beta == 0
        terms = step.losses(batch, self.position.step)
        self._refuse_non_finite(terms)
        step.update(terms, mirror.alpha1 if is_mirrored else 1.0)
        if is_mirrored:
            redrawn = replace(batch, seed=(*batch.seed, 1))  # what is drawn at random is drawn anew
            mirrored = step.losses(redrawn, self.position.step)
            self._refuse_non_finite(mirrored)
            step.update(mirrored, -mirror.alpha2)
        return terms

    # Phases

    @property
    def phase(self) -> CleanConfig | AdversarialConfig:
        return self.config.clean if self.position.phase == "clean" else self.config.adversarial

    def begin(self, position: Position) -> None:
        """The first phase of a run: seeded weights, or those of `start_from`."""
        source = self._start_from
        self._build(position, None if source is None else source.dense_weights())
        if source is not None:
            trained = (source.rows(table.name, table.block.lo, table.block.hi) for table in self.model.tables)
            begin_adversarial(self.model, trained, self.config, self.catalog)
        self._save()

    def _begin_adversarial(self) -> None:
        """From the clean weights, with fresh optimisers."""
        clean = self.model
        self._build(Position("adversarial", self.position.step, self.position.step), clean.dense_weights())
        begin_adversarial(self.model, (table.local_weight for table in clean.tables), self.config, self.catalog)
        self._save()

    def _resumed(self) -> bool:
        """Goes on from the newest checkpoint that is whole, where there is any at all."""
        damaged: list[str] = []
        for checkpoint in self.checkpoints.newest_first():
            try:
                self._resume(checkpoint)
                return True
            except DamagedCheckpoint as error:
                damaged.append(str(error))
                self.reporter.say(f"warning: {error}; trying the checkpoint before it")
        if damaged:
            raise UserError(
                f"{self.run.checkpoints}: no checkpoint is whole ({damaged[0]}); copy one back, or start anew with "
                "--overwrite"
            )
        return False

    def _resume(self, checkpoint: Path) -> None:
        position = Position(**self.checkpoints.position(checkpoint))
        dense_weights = None
        if self.config.model.content:
            like = dict(backbone(self.config.model).dense_module(self.config, self.catalog).named_parameters())
            dense_weights = self.checkpoints.load_dense_weights(checkpoint, like)
        self._build(position, dense_weights)
        self.checkpoints.load(self.model, checkpoint)
        self._saved = position
        self.reporter.say(
            f"going on from {checkpoint}: {position.phase} phase, epoch {position.epoch}, batch {position.batch}"
        )

    def _build(self, position: Position, dense_weights: dict[str, torch.Tensor] | None) -> None:
        """What trains in the phase that `position` is in."""
        self.position = position
        built = Phase.build(position.phase, self.config, self.catalog, self.known, self.world, dense_weights)
        self.model, self.step, self.sampler = built.model, built.step, built.sampler
        self.reporter.open(position.step)

    def _run_phase(self) -> None:
        total = self.phase.epochs * self.sampler.batches_per_epoch
        self.reporter.begin_phase(self.position, total)
        try:
            if self.position.evaluation_due:
                self._evaluate()
            while self.position.epoch < self.phase.epochs and not self._out_of_patience():
                self._checkpoint_and_stop()
                self._set_learning_rates(self.position.step_of_phase, total)
                terms = self.train_step(self.sampler.batch(self.position.epoch, self.position.batch))
                self._advance()
                self._report(terms)
                if self.position.evaluation_due:
                    self._evaluate()
            self._checkpoint_and_stop()
        finally:
            self.reporter.end_phase()
        if self.phase.patience is not None and self.position.best_step is not None:
            if failure := self.checkpoints.settle():
                raise UserError(f"{failure}; free space, and the same command goes on")
            self.checkpoints.load_weights(self.model, self.checkpoints.at_step(self.position.best_step))

    def _advance(self) -> None:
        self.position = self.position.after_batch(self.sampler.batches_per_epoch, self.config.evaluation.every_epochs)

    def _out_of_patience(self) -> bool:
        return self.phase.patience is not None and self.position.bad_evaluations >= self.phase.patience

    def _set_learning_rates(self, step: int, total: int) -> None:
        factor = learning_rate_factor(self.config.training, step, total)
        if self.position.phase == "adversarial":
            factor *= self.config.adversarial.lr_factor
        self.model.engine.set_lr(self.config.training.lr * factor)
        for table in self.model.tables:
            table.set_lr(self.config.tables.lr * factor)
        self._lr = self.config.training.lr * factor

    # Evaluation, logs, checkpoints

    def evaluate(self, split: str) -> dict[str, float]:
        """Full ranking with the current weights; the same on every rank."""
        ranking = self.model.ranking()

        def user_rows(users_B: torch.Tensor) -> torch.Tensor:
            self._stop_if_asked()  # ranking a million users takes its time
            return ranking.user_rows(users_B)

        return rank_split(
            user_rows,
            ranking.items_nK,
            self.block,
            self.known,
            self.catalog.split(split),
            self.catalog.num_users,
            self.config.evaluation.users_per_batch,
            lambda done, total: self.reporter.tell_evaluation(self.position, done, total),
        )

    def _evaluate(self) -> None:
        metrics, name = self.evaluate("valid"), self.config.evaluation.metric
        before, self.position = self.position, self.position.after_evaluation(metrics[name])
        attacked = attacked_now(self.model, self.config, self.catalog, self.world)
        self.reporter.write(before, {f"valid/{metric}": value for metric, value in metrics.items()} | attacked)
        improved = self.position.best_step == before.step
        self.reporter.say(
            f"{before.phase} epoch {before.epoch}/{self.phase.epochs}: valid {name} {metrics[name]:.4f}"
            + ("  (best)" if improved else "")
            + told(attacked)
        )
        if improved and self.phase.patience is not None:
            self._save()
        self.reporter.start_clock(self.position.step)

    def _report(self, terms: dict[str, torch.Tensor]) -> None:
        self.reporter.report(self.position, terms, self._lr)

    def _save(self) -> None:
        """In the background: training goes on, also where the disk is full now, and the next save tries again. Raises
        UserError for weights that are not finite: the last good checkpoint would be pruned for them."""
        if not is_finite(self.model):
            self._refuse(self.position.step, "a weight")
        if failure := self.checkpoints.save(self.model, asdict(self.position), self.position.best_step):
            self.reporter.say(f"warning: {failure}; training goes on")
        self._saved = self.position

    def _checkpoint_and_stop(self) -> None:
        self._stop_if_asked()
        if self.position.step % self.config.checkpoint.every_steps == 0 and self._saved != self.position:
            self._save()

    def _stop_if_asked(self) -> None:
        if not (stop := any_rank(_CANNOT_LOG if self.reporter.problem else self._signals.asked_by)):
            return
        self._signals.is_stopping = True
        if self._saved != self.position:
            self._save()
        failure = self.checkpoints.settle()
        if stop == _CANNOT_LOG:
            problem = self.reporter.problem or "the logs cannot be written"
            raise UserError(f"{problem}; free space, and the same command goes on from the last checkpoint")
        if failure:
            raise UserError(f"{failure}; free space, and the same command goes on from the checkpoint before it")
        self.reporter.say(f"interrupted at step {self.position.step}; the same command goes on from there")
        raise Interrupted(stop)

    def _refuse_non_finite(self, terms: dict[str, torch.Tensor]) -> None:
        """Before the update, so that the weights are still good. On a GPU only on logging steps: it waits."""
        position = self.position
        if self.world.device.type == "cuda" and not self.reporter.logs_at(position.step + 1):
            return
        with torch.no_grad():
            finite = list(map(math.isfinite, torch.stack(list(terms.values())).tolist()))
        # Counted from the end, so that the largest of all ranks is the first term that went bad.
        bad = any_rank(len(terms) - finite.index(False) if False in finite else 0)
        if not bad:
            return
        if is_finite(self.model):
            self._save()
        self._refuse(position.step + 1, f"the loss term {list(terms)[len(terms) - bad]}")

    def _refuse(self, step: int, what: str) -> NoReturn:
        failure = self.checkpoints.settle()
        newest = next(self.checkpoints.newest_first(), "that of the run it started from")
        last = failure or f"the last good checkpoint is {newest}"
        raise UserError(
            f"step {step}, {self.position.phase} phase: {what} is NaN or Inf; {last}; lower "
            "training.lr or tables.lr, or look at the catalog with `uatmc data describe`"
        )
