"""Before the adversarial phase: users' tastes in content, spread evenly (docs/algorithm.md, section 4.7).

B  users at once    C  columns of the users' content half    d  embedding_dim
"""

import torch
import torch.distributed as dist

from uatmc_dist.models.backbone import TrainingModel

_USERS_AT_ONCE = 4096
_LEAST_SHARE = 1e-6
"""Of the largest second moment: what there is less of is noise, and is not raised as high."""


@torch.no_grad()
def whiten(model: TrainingModel, num_users: int, power: float) -> None:
    """Sets W_v and W_t, each by itself, such that the second moments of the users' tastes W^T h_u come nearer to one
    another: to the power 1 - `power` of what they were, with the same sum. Linear fusion; collective, and the same on
    any number of ranks."""
    fusion = dict(zip(("w_v", "w_t"), model.dense.fusion()[:2], strict=True))
    moment_CC = _moment_of_users(model, num_users, len(model.dense.bias))
    weights = model.engine.weights()
    for name, along_Cd in fusion.items():  # in one order on every rank, for the broadcast
        if name not in weights:
            continue  # a modality that the catalog lacks
        along_Cd = along_Cd.detach().to(moment_CC)
        flat_dd = flattening(along_Cd.T @ moment_CC @ along_Cd, power)
        weights[name] = (weights[name].to(flat_dd) @ flat_dd).float()
        dist.broadcast(weights[name], 0)  # last bits may differ between processors
    model.engine.load_weights(weights)


def _moment_of_users(model: TrainingModel, num_users: int, width: int) -> torch.Tensor:
    """Mean of h_u h_u^T over all users, [C, C] in float64. Every rank adds up all rows, which travel as they do in a
    ranking."""
    user_rows = model.ranking().user_rows
    total_CC = torch.zeros(width, width, dtype=torch.float64, device=model.dense.bias.device)
    for start in range(0, num_users, _USERS_AT_ONCE):
        rows_BK = user_rows(torch.arange(start, min(start + _USERS_AT_ONCE, num_users)))
        content_BC = rows_BK[:, -width:].double()
        total_CC.addmm_(content_BC.T, content_BC)
    return total_CC / num_users


def flattening(moment_dd: torch.Tensor, power: float) -> torch.Tensor:
    """A symmetric A [d, d] with A C A = C^(1 - power), but for a factor that keeps the trace of C, `moment_dd`. The
    identity where C is zero: nobody has a taste."""
    values_d, vectors_dd = torch.linalg.eigh(moment_dd)
    if values_d[-1] <= 0:
        return torch.eye(len(moment_dd)).to(moment_dd)
    values_d = values_d.clamp(min=0)
    factors_d = values_d.clamp(min=_LEAST_SHARE * float(values_d[-1])).pow(-power / 2)
    factors_d *= (values_d.sum() / (values_d * factors_d.square()).sum()).sqrt()
    return (vectors_dd * factors_d) @ vectors_dd.T
