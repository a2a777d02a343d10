"""What every attack shares: the targets it may move, and the gradient of the promotion loss.

The attack happens at inference time: the model is fixed, only the projected features of the target items
move, and each target is attacked for itself (docs/algorithm.md, section 6).

    T  target items attacked together    A  anchor users    d  width of a projected row    K  2d
"""

from dataclasses import dataclass
from typing import Protocol

import torch

from uatmc_dist.adversary.budget import Deltas
from uatmc_dist.models.projectors import fused_items

_ANCHORS_AT_ONCE = 1 << 15


@dataclass(frozen=True)
class Targets:
    """A batch of target items under one attack; float32."""

    users_AK: torch.Tensor
    """Anchor users."""
    thresholds_A: torch.Tensor
    """Each anchor's k-th best score of the clean catalog, nothing masked."""
    identity_Td: torch.Tensor
    v_Td: torch.Tensor
    t_Td: torch.Tensor
    w_v: torch.Tensor
    w_t: torch.Tensor
    bias: torch.Tensor

    def items(self, delta_v: torch.Tensor | float = 0.0, delta_t: torch.Tensor | float = 0.0) -> torch.Tensor:
        """Embeddings [T, K] of the perturbed targets. Perturbed rows are not normalised again."""
        v_Td, t_Td = self.v_Td + delta_v, self.t_Td + delta_t
        return fused_items(self.identity_Td, v_Td, t_Td, self.w_v, self.w_t, self.bias)

    def gradients(self, delta_v: torch.Tensor, delta_t: torch.Tensor, margin: float) -> Deltas:
        """Gradient in (delta_v, delta_t) of mean_a relu(s_aj - threshold_a + margin), for every target at once.

        An anchor pulls with its content half h_a while the target is above its threshold less the margin.
        """
        items_TK = self.items(delta_v, delta_t)
        pull_Td = torch.zeros_like(self.v_Td)
        for start in range(0, len(self.users_AK), _ANCHORS_AT_ONCE):
            users = self.users_AK[start : start + _ANCHORS_AT_ONCE]
            thresholds = self.thresholds_A[start : start + _ANCHORS_AT_ONCE]
            active_AT = (users @ items_TK.T - thresholds[:, None] + margin > 0).to(users.dtype)
            pull_Td.addmm_(active_AT.T, users[:, self.identity_Td.shape[1] :])
        pull_Td /= len(self.users_AK)
        return pull_Td @ self.w_v, pull_Td @ self.w_t


class Attack(Protocol):
    """Chooses delta_v, delta_t [T, d] within epsilon times the L2 norm of each row, in L-infinity."""

    name: str

    def __call__(self, targets: Targets, epsilon: float) -> Deltas: ...
