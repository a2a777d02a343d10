"""One adversarial step as tensors, on one rank: ours, and the same mathematics in plain eager PyTorch."""

import torch
import torch.nn.functional as F

from uatmc_dist.adversary.budget import Ball
from uatmc_dist.adversary.coordination import AscentRule, LinearView, closed_form, general_form
from uatmc_dist.data.batches import Batch, KnownPositives
from uatmc_dist.models.objectives import FullCatalog
from uatmc_dist.parallel.item_parallel import ItemBlock

ADV_WEIGHT = 5.0


class AdversarialStep:
    """L(0) + 5 L(delta*), single coordinated step, gradients of users, identities and fusion."""

    def __init__(self, num_pairs: int, num_items: int, dim: int, num_users: int = 20_000) -> None:
        generator = torch.Generator().manual_seed(0)
        draw = lambda high: torch.randint(high, (num_pairs,), generator=generator)  # noqa: E731
        self.batch = Batch(draw(num_users), draw(num_items))
        known = KnownPositives(self.batch.users_B.numpy(), self.batch.positives_B.numpy(), num_users, num_items)
        self.objective = FullCatalog(ItemBlock(num_items, 0, 1), known, exclude_known_positives=False)
        self.rows = self.objective.rows(self.batch)
        normal = lambda *shape: 0.3 * torch.randn(*shape, generator=generator)  # noqa: E731
        unit = lambda *shape: F.normalize(torch.randn(*shape, generator=generator), dim=1)  # noqa: E731
        self.v_nd, self.t_nd = unit(num_items, dim), unit(num_items, dim)
        shapes = ((num_pairs, 2 * dim), (num_items, dim), (dim, dim), (dim, dim), (dim,))
        self.trained = [normal(*shape).requires_grad_() for shape in shapes]
        self.rule = AscentRule(Ball(0.1, "l2"), 1, 4.0, num_items)

    def ours(self) -> list[torch.Tensor]:
        users_BK, identity_nd, w_v, w_t, bias = self.trained
        content_nd = self.v_nd @ w_v.T + self.t_nd @ w_t.T + bias
        items_nK = torch.cat([identity_nd, content_nd], dim=1)
        clean = self._loss(users_BK, items_nK)
        (gradient_nd,) = torch.autograd.grad(clean, content_nd, retain_graph=True)
        detached = [tensor.detach() for tensor in self.trained]
        view = LinearView(self.objective, self.batch, self.rows, *detached[:2], self.v_nd, self.t_nd, *detached[2:])
        delta_v, delta_t = closed_form(view, self.rule, items_nK, gradient_nd)
        perturbed_nd = (self.v_nd + delta_v) @ w_v.T + (self.t_nd + delta_t) @ w_t.T + bias
        loss = clean + ADV_WEIGHT * self._loss(users_BK, torch.cat([identity_nd, perturbed_nd], dim=1))
        return [loss.detach(), *torch.autograd.grad(loss, self.trained)]

    def _loss(self, users_BK: torch.Tensor, items_nK: torch.Tensor) -> torch.Tensor:
        return self.objective.loss(users_BK, items_nK, self.batch, self.rows)

    def eager(self) -> list[torch.Tensor]:
        users_BK, identity_nd, w_v, w_t, bias = self.trained

        def loss(v_nd: torch.Tensor, t_nd: torch.Tensor, users_BK=users_BK, identity_nd=identity_nd) -> torch.Tensor:
            items_nK = torch.cat([identity_nd, v_nd @ w_v.T + t_nd @ w_t.T + bias], dim=1)
            scores_BN = users_BK @ items_nK.T
            positive_B1 = scores_BN.gather(1, self.batch.positives_B[:, None])
            kept_BN = torch.ones_like(scores_BN).scatter_(1, self.batch.positives_B[:, None], 0.0)
            return (F.softplus(scores_BN - positive_B1) * kept_BN).sum() / (len(scores_BN) * (scores_BN.shape[1] - 1))

        delta_v, delta_t = general_form(
            lambda v_nd, t_nd: loss(v_nd, t_nd, users_BK.detach(), identity_nd.detach()),
            self.v_nd,
            self.t_nd,
            self.rule,
        )
        total = loss(self.v_nd, self.t_nd) + ADV_WEIGHT * loss(self.v_nd + delta_v, self.t_nd + delta_t)
        return [total.detach(), *torch.autograd.grad(total, self.trained)]
