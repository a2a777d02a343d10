"""The training loop: two phases, any number of ranks, exact resumption.

Each rank owns a block of items and a slice of the batch's users. What a step computes is this rank's partial
of every loss term; the sum over ranks is the loss.

    B  pairs of the global batch    n  active items of this rank    d  embedding_dim    K  width of an embedding
"""

import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from types import FrameType

import torch

from uatmc_dist import runs
from uatmc_dist.adversary.coordination import LinearView
from uatmc_dist.adversary.defenses import adversary, certified_bonus
from uatmc_dist.config import AdversarialConfig, CleanConfig, Config, PhaseName
from uatmc_dist.data.batches import Batch, KnownPositives, Sampler
from uatmc_dist.data.catalog import Catalog
from uatmc_dist.errors import UserError
from uatmc_dist.evaluation.ranking import rank_split
from uatmc_dist.logs import MetricsLog, TrainingProgress, peak_memory_bytes
from uatmc_dist.models.objectives import FullCatalog, Objective, Sampled, Softmax, popularity_offset
from uatmc_dist.models.projectors import build_content_model
from uatmc_dist.models.regularisers import contrastive, embedding_size
from uatmc_dist.models.trained import ModelFile, save_model
from uatmc_dist.models.vbpr import NUMBER_FORMATS, VBPR
from uatmc_dist.parallel.checkpoint import Checkpoints, DamagedCheckpoint
from uatmc_dist.parallel.item_parallel import ActiveRows, ItemBlock, gather_users, sum_over_ranks
from uatmc_dist.parallel.process_group import World, any_rank
from uatmc_dist.parallel.traffic import TRAFFIC
from uatmc_dist.progress import shown
from uatmc_dist.schedule import learning_rate_factor


class Interrupted(Exception):
    """Ctrl-C or SIGTERM, after a checkpoint was saved; or SIGTERM in a step that does not end in time."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


GRACE_S = 40.0
"""How long a step may take after SIGTERM: a scheduler kills after a minute or so, and a checkpoint takes time, too."""

_CANNOT_LOG = 1 << 16
"""Among the stop signals of the ranks: the first rank cannot write its logs."""


@dataclass(frozen=True)
class Position:
    """Where a run stands; with the configuration it says which pair comes next."""

    phase: PhaseName
    step: int = 0
    """Steps taken in the whole run."""
    phase_start: int = 0
    """Step at which the phase began."""
    epoch: int = 0
    """Epoch of the phase, from 0."""
    batch: int = 0
    """Next batch of the epoch."""
    evaluation_due: bool = False
    """Whether the evaluation at the end of the last epoch has yet to be done."""
    best_metric: float | None = None
    best_step: int | None = None
    bad_evaluations: int = 0


class Trainer:
    def __init__(self, config: Config, world: World, overwrite: bool = False) -> None:
        self.config, self.world = config, world
        self.catalog = Catalog(config.catalog)
        if config.model.content:
            _check_modalities(config, self.catalog)
        if self.catalog.num_items < 2:
            raise UserError(f"{config.catalog}: {self.catalog.num_items} item; ranking needs at least 2")
        self.run = runs.RunFolder(config.run_dir)
        # A machine that comes back to the ranks that go on must not delete what they did.
        overwrite = overwrite and not self.run.is_of_launch(runs.launch_id())
        self.run.check(config, overwrite)
        self._start_from = None if config.start_from is None else ModelFile(config.start_from)
        if self._start_from is not None:
            self._start_from.check_fits(self.catalog)
            if self._start_from.config.model != config.model:
                raise UserError(f"{config.start_from}: its model options differ from this run's; make them equal")
        any_rank(0)  # every rank has looked at the folder before the first one writes into it
        if world.is_first:
            environment = runs.environment(str(world.device), world.size, config.seed)
            self.run.prepare(config, environment, overwrite)
        any_rank(0)
        timeout = timedelta(seconds=config.distributed.timeout_s)
        self.checkpoints = Checkpoints(self.run.checkpoints, config.checkpoint.keep, timeout)
        self.block = ItemBlock(self.catalog.num_items, world.rank, world.size)
        self.known = KnownPositives.of_training(self.catalog)
        self._stop_signal, self._is_stopping = 0, False
        self._saved: Position | None = None
        self._log: MetricsLog | None = None
        self._log_problem: str | None = None
        self.progress: TrainingProgress | None = None

    def fit(self) -> None:
        """Trains what is left of the run, then writes model/. Raises Interrupted, or UserError for a loss that
        is not finite, each after saving a checkpoint; UserError, too, where nothing can be written."""
        self._watch_signals()
        if not self._resumed():
            first: PhaseName = "clean" if self._start_from is None else "adversarial"
            self.begin(Position(first))
        try:
            self._run_phase()
            if self.position.phase == "clean" and self.config.adversarial.epochs:
                self._begin_adversarial()
                self._run_phase()
        finally:
            if self._log is not None:
                self._log.close()
        if failure := self.checkpoints.settle():
            self._say(f"warning: {failure}")
        tables = {table.name: table.local_weight for table in self.model.tables}
        save_model(self.run.model, self.config, tables, self.model.dense_weights())

    # One step

    def train_step(self, batch: Batch) -> dict[str, torch.Tensor]:
        """One optimiser step on one global batch; returns this rank's partial of each loss term."""
        rows = self.objective.rows(batch)
        users_mK = self.model.users.of_pairs(batch)
        gathered = gather_users(users_mK, len(batch))
        identity_nd = self.model.items.lookup(rows.ids_n)
        items_nK, terms = identity_nd, {}
        if self.model.has_content:
            v_nd, t_nd = self.model.modalities(rows.ids_n)
            content_nd = self.model.dense.fuse(v_nd, t_nd)
            items_nK = torch.cat([identity_nd, content_nd], dim=1)
        users_BK = gathered.wait()
        handicap_B = None
        if self.is_certified:
            handicap_B = certified_bonus(self.config.adversarial, users_BK, self.model.dense)
        bpr = self.objective.loss(users_BK, items_nK, batch, rows, handicap_B)
        terms["bpr_certified" if self.is_certified else "bpr"] = bpr
        if self.adversary is not None:
            clean_gradient = lambda: torch.autograd.grad(bpr, content_nd, retain_graph=True)[0]  # noqa: E731
            rows_nd = identity_nd, v_nd, t_nd
            adversarial = self._adversarial_loss(batch, rows, users_BK, rows_nd, items_nK, clean_gradient)
            terms["bpr_adversarial"] = self.config.adversarial.adv_weight * adversarial
        training = self.config.training
        items_of_pairs = self.objective.ranked_items(batch)
        size = embedding_size(training.reg_kind, users_mK, identity_nd, items_of_pairs, rows)
        terms["regularisation"] = training.reg_weight / len(batch) * size
        if self.align_weight and self.model.has_content:
            alignment = contrastive(v_nd, t_nd, self.model.dense.log_temperature, batch, rows, self.block)
            terms["alignment"] = self.align_weight * alignment
        self._refuse_non_finite(terms)
        self.model.engine.backward(torch.stack(list(terms.values())).sum())
        self.model.engine.step()
        return terms

    def _adversarial_loss(
        self,
        batch: Batch,
        rows: ActiveRows,
        users_BK: torch.Tensor,
        rows_nd: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        items_nK: torch.Tensor,
        clean_gradient: Callable[[], torch.Tensor],
    ) -> torch.Tensor:
        """The loss on perturbed items, whose perturbations are held constant. `rows_nd`: identity, v, t."""
        assert self.adversary is not None
        dense, (identity_nd, v_nd, t_nd) = self.model.dense, rows_nd
        fusion = (weight.detach().float() for weight in (dense.w_v, dense.w_t, dense.bias))
        view = LinearView(self.objective, batch, rows, users_BK.detach(), identity_nd.detach(), v_nd, t_nd, *fusion)
        delta_v, delta_t = self.adversary(view, items_nK, clean_gradient, self.position.step)
        perturbed_nK = torch.cat([identity_nd, dense.fuse(v_nd + delta_v, t_nd + delta_t)], dim=1)
        return self.objective.loss(users_BK, perturbed_nK, batch, rows)

    # Phases

    @property
    def phase(self) -> CleanConfig | AdversarialConfig:
        return self.config.clean if self.position.phase == "clean" else self.config.adversarial

    def begin(self, position: Position) -> None:
        """The first phase of a run: seeded weights, or those of `start_from`."""
        source = self._start_from
        self._build(position, None if source is None else source.dense_weights())
        if source is not None:
            for table in self.model.tables:
                table.local_weight.copy_(source.rows(table.name, table.block.lo, table.block.hi))
        self._save()

    def _begin_adversarial(self) -> None:
        """From the clean weights, with fresh optimisers."""
        clean = self.model
        self._build(Position("adversarial", self.position.step, self.position.step), clean.dense_weights())
        for table, trained in zip(self.model.tables, clean.tables, strict=True):
            table.local_weight.copy_(trained.local_weight)
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
                self._say(f"warning: {error}; trying the checkpoint before it")
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
            like = dict(build_content_model(self.config, self.catalog).named_parameters())
            dense_weights = self.checkpoints.load_dense_weights(checkpoint, like)
        self._build(position, dense_weights)
        self.checkpoints.load(self.model, checkpoint)
        self._saved = position
        self._say(f"going on from {checkpoint}: {position.phase} phase, epoch {position.epoch}, batch {position.batch}")

    def _build(self, position: Position, dense_weights: dict[str, torch.Tensor] | None) -> None:
        """Model, objective, adversary and sampler of the phase that `position` is in."""
        self.position = position
        adversarial = self.config.adversarial
        with shown("projected items", self.world.is_first) as progress:
            self.model = VBPR(
                self.catalog, self.known, self.config, self.world, position.phase, dense_weights, progress
            )
        self.objective: Objective
        training = self.config.training
        all_items = self.block, self.known, training.exclude_known_positives, NUMBER_FORMATS[training.score_precision]
        if self.phase.objective == "sampled":
            self.objective = Sampled(self.block)
        elif self.phase.objective == "full_catalog":
            self.objective = FullCatalog(*all_items)
        else:
            self.objective = Softmax(*all_items, popularity_offset(training, self.known))
        in_adversarial = position.phase == "adversarial"
        self.adversary = adversary(adversarial, self.catalog.num_items, self.config.seed) if in_adversarial else None
        self.is_certified = in_adversarial and adversarial.adversary == "certified"
        self.align_weight = 0.0 if in_adversarial else self.config.clean.align_weight
        users, items = self.catalog.split("train")
        seed = 2 * self.config.seed + in_adversarial  # the phases see the pairs in different orders
        batch_size = self.config.training.batch_size
        self.sampler = Sampler(users, items, self.known, self.catalog.num_items, batch_size, seed)
        if self.world.is_first and self._log is None:
            try:
                self._log = MetricsLog(self.run.metrics, self.run.tensorboard, position.step)
            except OSError as error:
                raise UserError(f"{self.run.path}: the logs cannot be written ({error.strerror}); free space") from None

    def _run_phase(self) -> None:
        total = self.phase.epochs * self.sampler.batches_per_epoch
        done = self.position.step - self.position.phase_start
        self.progress = TrainingProgress(self.position.phase, total, done) if self.world.is_first else None
        self._start_clock()
        try:
            if self.position.evaluation_due:
                self._evaluate()
            while self.position.epoch < self.phase.epochs and not self._out_of_patience():
                self._checkpoint_and_stop()
                self._set_learning_rates(self.position.step - self.position.phase_start, total)
                batch = self.sampler.batch(self.position.epoch, self.position.batch)
                terms = self.train_step(batch)
                self._advance()
                self._report(terms)
                if self.position.evaluation_due:
                    self._evaluate()
            self._checkpoint_and_stop()
        finally:
            if self.progress is not None:
                self.progress.close()
        if self.phase.patience is not None and self.position.best_step is not None:
            if failure := self.checkpoints.settle():
                raise UserError(f"{failure}; free space, and the same command goes on")
            self.checkpoints.load_weights(self.model, self.checkpoints.at_step(self.position.best_step))

    def _advance(self) -> None:
        position = replace(self.position, step=self.position.step + 1, batch=self.position.batch + 1)
        if position.batch == self.sampler.batches_per_epoch:
            epoch = position.epoch + 1
            evaluation_due = epoch % self.config.evaluation.every_epochs == 0
            position = replace(position, epoch=epoch, batch=0, evaluation_due=evaluation_due)
        self.position = position

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
        return rank_split(
            self._user_rows,
            self.model.local_items(),
            self.block,
            self.known,
            self.catalog.split(split),
            self.catalog.num_users,
            self.config.evaluation.users_per_batch,
            self._tell_evaluation,
        )

    def _tell_evaluation(self, done: int, total: int) -> None:
        if self.progress is not None:
            step = self.position.step - self.position.phase_start
            self.progress.step(step, f"evaluating, {done:,} of {total:,} users")

    @torch.no_grad()
    def _user_rows(self, users_B: torch.Tensor) -> torch.Tensor:
        self._stop_if_asked()  # ranking a million users takes its time
        return gather_users(self.model.users.of_users(users_B), len(users_B)).wait()

    def _evaluate(self) -> None:
        metrics = self.evaluate("valid")
        value, position = metrics[self.config.evaluation.metric], self.position
        improved = position.best_metric is None or value > position.best_metric
        done = replace(position, evaluation_due=False)
        if improved:
            self.position = replace(done, best_metric=value, best_step=position.step, bad_evaluations=0)
        else:
            self.position = replace(done, bad_evaluations=position.bad_evaluations + 1)
        self._write_log({f"valid/{name}": metric for name, metric in metrics.items()})
        mark = "  (best)" if improved else ""
        name = self.config.evaluation.metric
        self._say(f"{position.phase} epoch {position.epoch}/{self.phase.epochs}: valid {name} {value:.4f}{mark}")
        if improved and self.phase.patience is not None:
            self._save()
        self._start_clock()

    def _start_clock(self) -> None:
        """What a line of the log says of a step begins here: evaluations are not steps."""
        self._since, self._since_step = time.monotonic(), self.position.step
        TRAFFIC.take()

    def _logs_now(self, step: int) -> bool:
        return step % self.config.logging.every_steps == 0

    def _report(self, terms: dict[str, torch.Tensor]) -> None:
        """Every few steps: the loss terms summed over ranks. The only place that waits for the device."""
        position = self.position
        if not self._logs_now(position.step):
            return
        summed = sum_over_ranks(torch.stack([term.detach().double() for term in terms.values()])).tolist()
        if self._log is None or self.progress is None:
            return
        num_steps = max(position.step - self._since_step, 1)
        step_s = (time.monotonic() - self._since) / num_steps
        per_step = {name: total / num_steps for name, total in TRAFFIC.take().items()}
        self._start_clock()
        loss = sum(summed)
        pairs_per_s = self.config.training.batch_size / step_s
        self._write_log(
            {
                "loss": loss,
                **dict(zip(terms, summed, strict=True)),
                "lr": self._lr,
                "pairs_per_s": pairs_per_s,
                "step_s": step_s,
                "peak_memory_bytes": peak_memory_bytes(self.world.device),
                **per_step,
            }
        )
        self.progress.step(position.step - position.phase_start, f"loss {loss:.4f}  {pairs_per_s:,.0f} pairs/s")

    def _write_log(self, values: dict[str, float]) -> None:
        if self._log is None:
            return
        position = self.position
        try:
            self._log.write({"step": position.step, "epoch": position.epoch, "phase": position.phase, **values})
        except OSError as error:
            self._log_problem = f"{self.run.path}: the logs cannot be written ({error.strerror})"

    def _save(self) -> None:
        """In the background: training goes on, also where the disk is full now, and the next save tries again."""
        if failure := self.checkpoints.save(self.model, asdict(self.position), self.position.best_step):
            self._say(f"warning: {failure}; training goes on")
        self._saved = self.position

    def _checkpoint_and_stop(self) -> None:
        self._stop_if_asked()
        if self.position.step % self.config.checkpoint.every_steps == 0 and self._saved != self.position:
            self._save()

    def _stop_if_asked(self) -> None:
        stop = any_rank(_CANNOT_LOG if self._log_problem else self._stop_signal)
        if not stop:
            return
        self._is_stopping = True
        if self._saved != self.position:
            self._save()
        failure = self.checkpoints.settle()
        if stop == _CANNOT_LOG:
            problem = self._log_problem or "the logs cannot be written"
            raise UserError(f"{problem}; free space, and the same command goes on from the last checkpoint")
        if failure:
            raise UserError(f"{failure}; free space, and the same command goes on from the checkpoint before it")
        self._say(f"interrupted at step {self.position.step}; the same command goes on from there")
        raise Interrupted(stop)

    def _watch_signals(self) -> None:
        def remember(signum: int, frame: FrameType | None) -> None:
            self._stop_signal = signum
            if signum == signal.SIGTERM:
                signal.setitimer(signal.ITIMER_REAL, GRACE_S)

        def give_up(signum: int, frame: FrameType | None) -> None:
            if not self._is_stopping:
                self._say(f"interrupted in a step of more than {GRACE_S:g} s; the last checkpoint is what goes on")
                raise Interrupted(signal.SIGTERM)

        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, remember)
        signal.signal(signal.SIGALRM, give_up)

    def _refuse_non_finite(self, terms: dict[str, torch.Tensor]) -> None:
        """Before the update, so that the weights are still good. On a GPU only on logging steps: it waits."""
        position = self.position
        if self.world.device.type == "cuda" and not self._logs_now(position.step + 1):
            return
        finite = torch.stack([term.detach() for term in terms.values()]).isfinite().tolist()
        # Counted from the end, so that the largest of all ranks is the first term that went bad.
        bad = any_rank(len(terms) - finite.index(False) if False in finite else 0)
        if not bad:
            return
        term = list(terms)[len(terms) - bad]
        weights = [*(table.local_weight for table in self.model.tables), *self.model.dense_weights().values()]
        spoilt = any_rank(int(not all(bool(weight.isfinite().all()) for weight in weights)))
        if not spoilt:
            self._save()
        failure = self.checkpoints.settle()
        last = failure or f"the last good checkpoint is {next(self.checkpoints.newest_first())}"
        raise UserError(
            f"step {position.step + 1}, {position.phase} phase: the loss term {term} is NaN or Inf; {last}; lower "
            "training.lr or tables.lr, or look at the catalog with `uatmc data describe`"
        )

    def _say(self, message: str) -> None:
        if not self.world.is_first:
            return
        if self.progress is None:
            print(message, flush=True)
        else:
            self.progress.say(message)


def _check_modalities(config: Config, catalog: Catalog) -> None:
    """UserError for what needs content, or both modalities, where the catalog does not have them."""
    found = catalog.modalities
    if len(found) > 1:
        return
    if not found:
        raise UserError(f"{config.catalog}: neither photos nor texts; set model.content=false adversarial.epochs=0")
    has = f"{config.catalog} has {found[0]} features alone"
    adversary = config.adversarial.adversary
    impossible = {"uat_mc", "visual_only", "text_only"} - {f"{found[0]}_only"}
    if config.adversarial.epochs and adversary in impossible:
        needs = "two modalities" if adversary == "uat_mc" else adversary.removesuffix("_only") + " features"
        raise UserError(f"adversarial.adversary: {adversary} needs {needs}, and {has}; set adversarial.adversary=uat")
    if config.clean.align_weight and config.start_from is None:
        raise UserError(f"clean.align_weight: InfoNCE needs two modalities, and {has}; set clean.align_weight=0")
