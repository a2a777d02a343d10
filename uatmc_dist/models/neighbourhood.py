"""What a changed item changes in a trained MMGCN: the nodes within three hops of it, and nothing else.

After l layers a target has moved the nodes S_l that are at most l hops away. With the clean activations at hand a layer
needs the rows of S_l alone: the mean over neighbours is the clean one and what the rows of S_{l-1} add to it. Several
targets are one block-diagonal problem, each in a graph of its own.

Each rank has the activations of its own users and items, and moves its own share of S_l; what S_{l-1} adds travels, as
all rows do in training. A model in one process is one block. What is said of building and moving is collective.

    e  nodes of this rank, users first    T  targets    m, n  moved nodes    w  width of a layer's input
    d  embedding_dim
"""

import copy
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F

from uatmc_dist.data.batches import KnownPositives
from uatmc_dist.data.catalog import MODALITIES
from uatmc_dist.models.mmgcn import NUM_LAYERS, MMGCNContent, MMGCNModel, Modal, Nodes, TrainingMMGCN
from uatmc_dist.models.propagation import BipartiteGraph, csr, sparse_product
from uatmc_dist.parallel.item_parallel import ItemBlock, counts_of_ranks, gather_rows, num_ranks
from uatmc_dist.parallel.upload import upload


class OwnNodes:
    """The users and items of one rank as nodes of the graph of all: users from 0 on, then items."""

    def __init__(self, known: KnownPositives, users: ItemBlock, items: ItemBlock) -> None:
        self.users, self.items = users, items
        self.num_users, self.num_nodes = users.num_items, users.num_items + items.num_items
        self.split = [users.hi - users.lo, items.hi - items.lo]
        users_E, items_E = known.pairs()
        parts = []
        for block, mine_E, first, others_E in (
            (users, users_E, 0, items_E + self.num_users),
            (items, items_E, self.split[0], users_E),
        ):
            kept = block.positions_of_own(mine_E)
            parts.append((mine_E[kept] - block.lo + first, others_E[kept]))
        own_E, others_E = (torch.cat(ends) for ends in zip(*parts, strict=True))
        self.degree_e = torch.bincount(own_E, minlength=sum(self.split))
        self._others_E, order = others_E.sort(stable=True)
        self._own_E = own_E[order]

    def places(self, nodes_n: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(which of these nodes are of this rank, where they are among its own)."""
        users, items = self.users, self.items
        place_n = torch.where(
            nodes_n < self.num_users, nodes_n - users.lo, nodes_n - self.num_users - items.lo + self.split[0]
        )
        here_n = torch.where(
            nodes_n < self.num_users,
            (nodes_n >= users.lo) & (nodes_n < users.hi),
            (nodes_n >= self.num_users + items.lo) & (nodes_n < self.num_users + items.hi),
        )
        here_m = here_n.nonzero().squeeze(1)
        return here_m, place_n[here_m]

    def nodes(self, place_n: torch.Tensor) -> torch.Tensor:
        """The nodes at these places."""
        of_items = place_n - self.split[0] + self.items.lo + self.num_users
        return torch.where(place_n < self.split[0], place_n + self.users.lo, of_items)

    def neighbours(self, nodes_m: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(index into `nodes_m`, place of a neighbour of this rank) of all their edges that end here."""
        first_m = torch.searchsorted(self._others_E, nodes_m)
        counts_m = torch.searchsorted(self._others_E, nodes_m, right=True) - first_m
        index_E = torch.repeat_interleave(torch.arange(len(nodes_m)), counts_m)
        within_E = torch.arange(len(index_E)) - (counts_m.cumsum(0) - counts_m)[index_E]
        return index_E, self._own_E[first_m[index_E] + within_E]


@dataclass(frozen=True)
class OwnMMGCN:
    """This rank's rows of a trained MMGCN."""

    dense: MMGCNContent
    graph: BipartiteGraph
    nodes: OwnNodes
    identity: Nodes
    preference: Modal
    z: Modal

    @classmethod
    def whole(cls, model: MMGCNModel) -> "OwnMMGCN":
        users, items = (ItemBlock(len(rows), 0, 1) for rows in model.identity)
        z = {"visual": model.v_Nd, "text": model.t_Nd}
        nodes = OwnNodes(model.known, users, items)
        return cls(model.dense, model.graph, nodes, model.identity, model.preference, z)

    @classmethod
    def block(cls, model: TrainingMMGCN) -> "OwnMMGCN":
        z = dict(zip(MODALITIES, model.content.of_block(), strict=True))
        nodes = OwnNodes(model.known, model.users, model.items)
        return cls(model.dense, model.graph, nodes, *model.inputs(trains=False), z)


class CleanState:
    """Activations without perturbation of this rank's nodes, in one number format, where the model is."""

    @torch.no_grad()
    def __init__(self, model: OwnMMGCN, dtype: torch.dtype = torch.float32) -> None:
        self.dense = copy.deepcopy(model.dense).requires_grad_(False).to(dtype)
        self.own = model.nodes
        self.z = {name: rows.to(dtype) for name, rows in model.z.items()}
        self.identity_ed = torch.cat(model.identity).to(dtype)
        self.inputs: dict[str, list[torch.Tensor]] = {}
        """X_0, X_1, X_2 [e, w] of each modality."""
        self.means: dict[str, list[torch.Tensor]] = {}
        """A X_{l-1} Theta_l [e, w]."""
        total_ed = torch.zeros_like(self.identity_ed)
        for name in self.dense.modalities:
            latent = self.dense.latent(name, self.z[name])
            rows = F.normalize(torch.cat([model.preference[name].to(dtype), latent]), dim=1)
            self.inputs[name], self.means[name] = [], []
            for layer in self.dense.layers(name):
                mean = torch.cat(model.graph.propagate(*(rows @ layer.theta).split(self.own.split)))
                self.inputs[name].append(rows)
                self.means[name].append(mean)
                rows = layer(rows, mean, self.identity_ed)
            total_ed = total_ed + rows
        self.users_ud, self.items_nd = (total_ed / len(self.dense.modalities)).split(self.own.split)

    @property
    def device(self) -> torch.device:
        return self.identity_ed.device


@dataclass(frozen=True)
class _Hop:
    """From the moved nodes of one layer to those of the next, target by target, nodes ascending."""

    counts_R: list[int]
    """How many of the former each rank has."""
    before_m: torch.Tensor
    """Where this rank's nodes that had moved before are among those that it has moved now."""
    places_n: torch.Tensor
    """The latter, among this rank's nodes."""
    matrix: torch.Tensor
    """Share of the mean that each moved neighbour, of whatever rank, has: [n, m]."""
    transposed: torch.Tensor


@dataclass(frozen=True)
class Moved:
    """The moved nodes of one target after the last layer."""

    target: int
    """Index among the neighbourhood's."""
    item: int
    rows: slice
    """Of `Neighbourhood.rows`: this rank's users, then its items."""
    users_m: torch.Tensor
    """Their places among this rank's users; on the CPU."""
    items_m: torch.Tensor
    all_items_M: torch.Tensor
    """Items of all ranks, ascending."""
    place_of_target: int
    counts_R: list[int]
    """How many of them each rank has."""


class Neighbourhood:
    """The moved nodes of some target items. `others_held`: nothing but the targets' own rows moves, as where everybody
    else's vectors are served from a store."""

    def __init__(self, state: CleanState, items_T: torch.Tensor, others_held: bool) -> None:
        self._state, own, device = state, state.own, state.device
        self._items_T, self._hops = items_T, list[_Hop]()
        keys_T = torch.arange(len(items_T)) * own.num_nodes + items_T + own.num_users
        started_m, places_m = own.places(keys_T % own.num_nodes)
        self._started_m, self._started_places_m = upload(started_m, device), upload(places_m, device)
        keys_m = keys_T[started_m]
        for _ in range(NUM_LAYERS):
            counts_R = counts_of_ranks(len(keys_m))
            all_keys_m = gather_rows(keys_m[:, None], counts_R)[:, 0]
            index_E, place_E = own.neighbours(all_keys_m % own.num_nodes)
            if others_held:
                index_E, place_E = index_E[:0], place_E[:0]
            moved_E = all_keys_m[index_E] // own.num_nodes * own.num_nodes + own.nodes(place_E)
            keys_n = torch.unique(torch.cat([keys_m, moved_E]))
            row_E = torch.searchsorted(keys_n, moved_E)
            weight_E = 1 / own.degree_e[place_E].to(state.identity_ed.dtype)
            shape = len(keys_n), len(all_keys_m)
            matrix, transposed = csr(row_E, index_E, weight_E, shape), csr(index_E, row_E, weight_E, shape[::-1])
            _, places_n = own.places(keys_n % own.num_nodes)
            before_m = torch.searchsorted(keys_n, keys_m)
            before_m, places_n = upload(before_m, device), upload(places_n, device)
            self._hops.append(_Hop(counts_R, before_m, places_n, matrix.to(device), transposed.to(device)))
            keys_m = keys_n
        self._keys_n = keys_m

    @cached_property
    def targets(self) -> list[Moved]:
        """Collective."""
        own, keys_n = self._state.own, self._keys_n
        target_n, node_n = keys_n // own.num_nodes, keys_n % own.num_nodes
        num_targets = len(self._items_T)
        is_item_n = node_n >= own.num_users
        of_target_T = torch.bincount(target_n[is_item_n], minlength=num_targets)
        counts_RT = gather_rows(of_target_T[None], [1] * num_ranks())
        counts_R = counts_RT.sum(1).tolist()
        item_keys = gather_rows(keys_n[is_item_n][:, None], counts_R)[:, 0].sort().values
        items_of = (item_keys % own.num_nodes - own.num_users).split(counts_RT.sum(0).tolist())
        stops = torch.bincount(target_n, minlength=num_targets).cumsum(0).tolist()
        found = []
        for target, (start, stop) in enumerate(zip([0, *stops[:-1]], stops, strict=True)):
            _, places_n = own.places(node_n[start:stop])
            users, item, all_items_M = (
                stop - start - int(of_target_T[target]),
                int(self._items_T[target]),
                items_of[target],
            )
            found.append(
                Moved(
                    target,
                    item,
                    slice(start, stop),
                    places_n[:users],
                    upload(places_n[users:] - own.split[0], self._state.device),
                    upload(all_items_M, self._state.device),
                    int(torch.searchsorted(all_items_M, item)),
                    counts_RT[:, target].tolist(),
                )
            )
        return found

    def rows(self, z_Td: Modal) -> torch.Tensor:
        """r [n, d] of this rank's moved nodes, target by target, when the targets have these projected rows, which
        every rank gives; differentiable."""
        state, total = self._state, None
        for name in state.dense.modalities:
            rows = F.normalize(state.dense.latent(name, z_Td[name]), dim=1)[self._started_m]
            places_m = self._started_places_m
            for layer, hop, inputs_ew, means_ew in zip(
                state.dense.layers(name), self._hops, state.inputs[name], state.means[name], strict=True
            ):
                change_mw = rows - inputs_ew[places_m]
                all_changes_mw = gather_rows(change_mw @ layer.theta, hop.counts_R)
                added_nw = sparse_product(all_changes_mw, hop.matrix, hop.transposed)
                inputs_nw = inputs_ew[hop.places_n].index_add(0, hop.before_m, change_mw)
                rows = layer(inputs_nw, means_ew[hop.places_n] + added_nw, state.identity_ed[hop.places_n])
                places_m = hop.places_n
            total = rows if total is None else total + rows
        assert total is not None
        return total / len(state.dense.modalities)
