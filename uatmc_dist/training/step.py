"""One training step, the same for every backbone, objective and defence.

What a step computes is this rank's partial of every loss term; the sum over ranks is the loss.
"""

from dataclasses import dataclass

import torch

from uatmc_dist.adversary.defenses import Adversary, Problem, certified_loss
from uatmc_dist.config import Config
from uatmc_dist.data.batches import Batch
from uatmc_dist.models.backbone import TrainingModel
from uatmc_dist.models.objectives import Objective
from uatmc_dist.models.regularisers import contrastive
from uatmc_dist.parallel.item_parallel import ItemBlock


@dataclass(frozen=True)
class Step:
    config: Config
    model: TrainingModel
    objective: Objective
    adversary: Adversary | None
    is_certified: bool
    align_weight: float
    """Of InfoNCE between the modalities."""
    block: ItemBlock

    def losses(self, batch: Batch, number: int) -> dict[str, torch.Tensor]:
        """This rank's partial of each loss term on one global batch, at one step of the run. Collective."""
        training, terms = self.config.training, {}
        rows = self.objective.rows(batch)
        view = self.model.view(batch, rows)
        problem = Problem(self.objective, batch, rows, view)
        if self.is_certified:
            clean = terms["bpr_certified"] = certified_loss(self.config.adversarial, problem)
        else:
            clean = terms["bpr"] = problem.loss(view.clean)
        if self.adversary is not None:
            delta_v, delta_t = self.adversary(problem, clean, number)
            # Constants: what led to the rows has its gradient from the clean loss.
            perturbed = view.at((view.v_nd + delta_v).detach(), (view.t_nd + delta_t).detach())
            terms["bpr_adversarial"] = self.adversary.weight * problem.loss(perturbed)
        size = view.embedding_size(training.reg_kind, self.objective.ranked_items(batch))
        terms["regularisation"] = training.reg_weight / len(batch) * size
        if self.align_weight and self.model.has_content:
            temperature = self.model.dense.log_temperature
            alignment = contrastive(view.v_nd, view.t_nd, temperature, batch, view.content_rows, self.block)
            terms["alignment"] = self.align_weight * alignment
        return terms

    def update(self, terms: dict[str, torch.Tensor], scale: float = 1.0) -> None:
        """One step of every optimiser on `scale` times their sum. Collective."""
        first, *others = terms.values()
        loss = sum(others, first)
        self.model.engine.backward(loss if scale == 1.0 else scale * loss)
        self.model.engine.step()
