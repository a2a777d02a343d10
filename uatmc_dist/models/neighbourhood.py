"""What a changed item changes in a trained MMGCN: the nodes within three hops of it, and nothing else.

After l layers a target has moved the nodes S_l that are at most l hops away. With the clean activations at hand a layer
needs the rows of S_l alone: the mean over neighbours is the clean one and what the rows of S_{l-1} add to it. Several
targets are one block-diagonal problem, each in a graph of its own.

    V = U + N  nodes, users first    T  targets    w  width of a layer's input    d  embedding_dim
"""

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from uatmc_dist.models.mmgcn import NUM_LAYERS, MMGCNModel, Modal
from uatmc_dist.models.propagation import csr, sparse_product


class CleanState:
    """Activations of a trained model without perturbation, in one number format."""

    def __init__(self, model: MMGCNModel, dtype: torch.dtype = torch.float32) -> None:
        self.dense = copy.deepcopy(model.dense).to(dtype)
        self.num_users, self.num_items = len(model.identity.users_ud), len(model.identity.items_nd)
        self.z = {name: rows.to(dtype) for name, rows in (("visual", model.v_Nd), ("text", model.t_Nd))}
        self.identity_Vd = torch.cat(model.identity).to(dtype)
        users_E, items_E = model.known.pairs()
        ends_E = torch.cat([users_E, items_E + self.num_users]), torch.cat([items_E + self.num_users, users_E])
        order = torch.argsort(ends_E[0], stable=True)
        self.degree_V = torch.bincount(ends_E[0], minlength=len(self.identity_Vd))
        self.first_V = self.degree_V.cumsum(0) - self.degree_V
        self.neighbours_E = ends_E[1][order]
        self.inputs: dict[str, list[torch.Tensor]] = {}
        """X_0, X_1, X_2 [V, w] of each modality."""
        self.means: dict[str, list[torch.Tensor]] = {}
        """A X_{l-1} Theta_l [V, w]."""
        split, total = [self.num_users, self.num_items], torch.zeros_like(self.identity_Vd)
        for name in self.dense.modalities:
            latent = self.dense.latent(name, self.z[name])
            rows = F.normalize(torch.cat([model.preference[name].to(dtype), latent]), dim=1)
            self.inputs[name], self.means[name] = [], []
            for layer in self.dense.layers(name):
                mean = torch.cat(model.graph.propagate(*(rows @ layer.theta).split(split)))
                self.inputs[name].append(rows)
                self.means[name].append(mean)
                rows = layer(rows, mean, self.identity_Vd)
            total = total + rows
        self.nodes_Vd = total / len(self.dense.modalities)

    @property
    def users_Ud(self) -> torch.Tensor:
        return self.nodes_Vd[: self.num_users]

    @property
    def items_Nd(self) -> torch.Tensor:
        return self.nodes_Vd[self.num_users :]

    def edges_of(self, nodes_n: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(index into `nodes_n`, neighbour) of all their edges."""
        counts_n = self.degree_V[nodes_n]
        index_E = torch.repeat_interleave(torch.arange(len(nodes_n)), counts_n)
        within_E = torch.arange(len(index_E)) - (counts_n.cumsum(0) - counts_n)[index_E]
        return index_E, self.neighbours_E[self.first_V[nodes_n][index_E] + within_E]


@dataclass(frozen=True)
class _Hop:
    """From the moved nodes of one layer to those of the next, target by target, nodes ascending."""

    nodes_n: torch.Tensor
    before_m: torch.Tensor
    """Where the nodes that had moved before are among them."""
    matrix: torch.Tensor
    """[n, m] share of the mean that each moved neighbour has."""
    transposed: torch.Tensor


class Neighbourhood:
    """The moved nodes of some target items. `others_held`: nothing but the targets' own rows moves, as where everybody
    else's vectors are served from a store."""

    def __init__(self, state: CleanState, items_T: torch.Tensor, others_held: bool) -> None:
        self._state = state
        num_nodes = len(state.identity_Vd)
        target_n, nodes_n = torch.arange(len(items_T)), items_T + state.num_users
        self._start_T = nodes_n
        self._hops: list[_Hop] = []
        for _ in range(NUM_LAYERS):
            index_E, neighbour_E = state.edges_of(nodes_n)
            if others_held:
                index_E, neighbour_E = index_E[:0], neighbour_E[:0]
            keys_m, moved_E = target_n * num_nodes + nodes_n, target_n[index_E] * num_nodes + neighbour_E
            keys_n = torch.unique(torch.cat([keys_m, moved_E]))
            row_E, weight_E = (
                torch.searchsorted(keys_n, moved_E),
                1 / state.degree_V[neighbour_E].to(state.identity_Vd.dtype),
            )
            shape = len(keys_n), len(keys_m)
            matrix, transposed = csr(row_E, index_E, weight_E, shape), csr(index_E, row_E, weight_E, shape[::-1])
            target_n, nodes_n = keys_n // num_nodes, keys_n % num_nodes
            self._hops.append(_Hop(nodes_n, torch.searchsorted(keys_n, keys_m), matrix, transposed))
        self.target_n, self.nodes_n = target_n, nodes_n
        """Of each moved row of the last layer, target by target."""

    def rows(self, z_Td: Modal) -> torch.Tensor:
        """r [n, d] of the moved nodes when the targets have these projected rows; differentiable."""
        state, total = self._state, None
        for name in state.dense.modalities:
            rows = F.normalize(state.dense.latent(name, z_Td[name]), dim=1)
            nodes_m = self._start_T
            for layer, hop, inputs_Vw, means_Vw in zip(
                state.dense.layers(name), self._hops, state.inputs[name], state.means[name], strict=True
            ):
                change_mw = rows - inputs_Vw[nodes_m]
                added_nw = sparse_product(change_mw @ layer.theta, hop.matrix, hop.transposed)
                inputs_nw = inputs_Vw[hop.nodes_n].index_add(0, hop.before_m, change_mw)
                rows = layer(inputs_nw, means_Vw[hop.nodes_n] + added_nw, state.identity_Vd[hop.nodes_n])
                nodes_m = hop.nodes_n
            total = rows if total is None else total + rows
        assert total is not None
        return total / len(state.dense.modalities)
