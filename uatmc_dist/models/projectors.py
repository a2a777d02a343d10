"""Projectors of raw features, and the linear fusion of their outputs (docs/algorithm.md, sections 1 and 2)."""

from collections.abc import Mapping
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from uatmc_dist.config import Config
from uatmc_dist.data.catalog import MODALITIES, Catalog
from uatmc_dist.parallel.upload import upload

CHUNK = 4096
"""Items projected at a time."""
_ITEMS_FOR_COMPONENTS = 1 << 14


class Projector(nn.Sequential):
    """MLP width -> hidden... -> d; ReLU, then LayerNorm, after each hidden layer."""

    def __init__(self, width: int, hidden: list[int], dim: int) -> None:
        layers: list[nn.Module] = []
        for size in hidden:
            layers += [nn.Linear(width, size), nn.ReLU(), nn.LayerNorm(size)]
            width = size
        super().__init__(*layers, nn.Linear(width, dim))


class Projectors(nn.Module):
    """The projectors of a dense part, one for each modality; a subclass adds the rest and InfoNCE's `log_temperature`.

    `widths` [D] of the raw features and `hidden` widths by modality. A modality that the catalog lacks has no
    projector: its rows are zero, so that nothing in them can be perturbed.
    Inputs may be float32 while the parameters are bfloat16; outputs are float32.
    """

    log_temperature: nn.Parameter

    def __init__(self, widths: Mapping[str, int], hidden: Mapping[str, list[int]], dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.modalities = [modality for modality in MODALITIES if modality in widths]
        for modality in self.modalities:
            self.add_module(modality, Projector(widths[modality], hidden[modality], dim))

    def freeze_projectors(self) -> None:
        """What the adversarial phase trains is the rest."""
        for module in (self.get_submodule(modality) for modality in self.modalities):
            module.requires_grad_(False)
        self.log_temperature.requires_grad_(False)

    def project(self, raw: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Raw rows [n, D] by modality to unit rows v, t [n, d]; zero rows where an item has no photo or text."""
        like, num_rows = self.log_temperature, len(next(iter(raw.values())))
        v_nd, t_nd = (
            F.normalize(self.get_submodule(modality)(raw[modality].to(like.dtype)).float(), dim=1)
            * raw[modality].any(dim=1, keepdim=True)
            if modality in self.modalities
            else torch.zeros(num_rows, self.dim, device=like.device)
            for modality in MODALITIES
        )
        return v_nd, t_nd

    def project_moved(self, visual_nD: torch.Tensor, text_nD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """v, t of raw rows that an adversary has moved, or may move; what stands for a modality without a projector
        stays as it is. Differentiable."""
        raw = dict(zip(MODALITIES, (visual_nD, text_nD), strict=True))
        projected = self.project({name: raw[name] for name in self.modalities})
        v_nd, t_nd = (
            rows if name in self.modalities else raw[name] for name, rows in zip(MODALITIES, projected, strict=True)
        )
        return v_nd, t_nd


def movable(raw: Mapping[str, torch.Tensor], num_rows: int, dense: Projectors) -> tuple[torch.Tensor, torch.Tensor]:
    """Raw rows as leaves of a graph; zeros [n, d] for a modality that the catalog lacks, so that there are two."""
    nothing = torch.zeros(num_rows, dense.dim, device=dense.log_temperature.device)
    visual_nD, text_nD = (raw.get(name, nothing).detach().clone().requires_grad_() for name in MODALITIES)
    return visual_nD, text_nD


class ContentModel(Projectors):
    """The dense part under linear fusion: projectors f_v, f_t, fusion c = W_v v + W_t t + beta, InfoNCE temperature.

    The part of a modality that the catalog lacks is a constant 0.
    """

    num_halves = 1
    """Content halves that a user has: C = num_halves * d columns of an item's content."""

    def __init__(self, widths: Mapping[str, int], hidden: Mapping[str, list[int]], dim: int) -> None:
        super().__init__(widths, hidden, dim)
        for name, modality in zip(("w_v", "w_t"), MODALITIES, strict=True):
            if modality in widths:
                self.register_parameter(name, nn.Parameter(torch.empty(dim, dim)))
            else:
                self.register_buffer(name, torch.zeros(dim, dim), persistent=False)
        self.bias = nn.Parameter(torch.zeros(self.num_halves * dim))
        for fusion in self.fusions():
            nn.init.xavier_uniform_(fusion)
        # One element, not a scalar: DeepSpeed broadcasts parameters as bytes, which a scalar has no view of.
        self.log_temperature = nn.Parameter(torch.full((1,), 0.1).log())

    def fusions(self) -> list[nn.Parameter]:
        """W_v and W_t, or the one of them that trains."""
        return [weight for weight in (self.w_v, self.w_t) if isinstance(weight, nn.Parameter)]

    def fusion(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(W_v [C, d], W_t [C, d], beta [C]); differentiable."""
        return self.w_v, self.w_t, self.bias

    def start_from_components(self, components: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Linear projectors onto principal components (mean [D], components [k, D]) by modality; fusion as a sum."""
        with torch.no_grad():
            for modality, (mean_D, components_kD) in components.items():
                layer = self.get_submodule(modality)[0]  # type: ignore[index]
                layer.weight.zero_()[: len(components_kD)] = components_kD
                layer.bias.zero_()[: len(components_kD)] = -components_kD @ mean_D
            for fusion in self.fusions():
                nn.init.eye_(fusion)

    def fuse(self, v_nd: torch.Tensor, t_nd: torch.Tensor) -> torch.Tensor:
        dtype = self.bias.dtype
        # DeepSpeed leaves what stands for a missing modality in float32 where it trains in bf16.
        w_v, w_t = self.w_v.to(dtype), self.w_t.to(dtype)
        return torch.addmm(F.linear(v_nd.to(dtype), w_v, self.bias), t_nd.to(dtype), w_t.T).float()


Dense = TypeVar("Dense", bound=Projectors)


def content_model(kind: type[Dense], config: Config, catalog: Catalog) -> Dense:
    """Same initial weights for the same seed, on any rank."""
    model = config.model
    widths = {modality: catalog.features[modality].width for modality in catalog.modalities}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return kind(widths, {"visual": model.visual_hidden, "text": model.text_hidden}, model.embedding_dim)


def start_from_content(model: ContentModel, config: Config, catalog: Catalog) -> None:
    """Projectors onto the principal components of the features, where training starts from them (model.initial)."""
    if config.model.initial == "content":
        dim = config.model.embedding_dim
        model.start_from_components(
            {name: principal_components(catalog, name, dim, config.seed) for name in catalog.modalities}
        )


def principal_components(catalog: Catalog, modality: str, most: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean [D] and at most `most` principal components [k, D], unit rows, of a modality's features: of evenly spread
    items where there are many, and of those alone that have a photo or a text."""
    features = catalog.features[modality]
    ids = np.linspace(0, catalog.num_items - 1, min(catalog.num_items, _ITEMS_FOR_COMPONENTS)).astype(np.int64)
    rows_ND = torch.from_numpy(features.rows(ids))
    features.release()
    rows_ND = rows_ND[rows_ND.any(dim=1)]
    if not len(rows_ND):
        return torch.zeros(features.width), torch.zeros(0, features.width)
    mean_D = rows_ND.mean(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        rank = min(most, *rows_ND.shape)
        components_Dk = torch.svd_lowrank(rows_ND - mean_D, q=min(rank + 8, *rows_ND.shape), niter=4)[2]
    return mean_D, components_Dk[:, :rank].T.contiguous()


def fused_items(
    identity_nd: torch.Tensor,
    v_nd: torch.Tensor,
    t_nd: torch.Tensor,
    w_v: torch.Tensor,
    w_t: torch.Tensor,
    bias: torch.Tensor,
) -> torch.Tensor:
    """Item embeddings [n, 2d] from given fusion weights: what training's adversary and attacks perturb."""
    return torch.cat([identity_nd, v_nd @ w_v.T + t_nd @ w_t.T + bias], dim=1)


@torch.no_grad()
def project_items(
    model: Projectors, catalog: Catalog, lo: int, hi: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Projected rows v, t [hi - lo, d] of the items [lo, hi), chunk by chunk: raw features are never held whole."""
    parts = []
    for start in range(lo, max(hi, lo + 1), CHUNK):  # an empty block still has a width
        ids = np.arange(start, min(start + CHUNK, hi))
        parts.append(model.project(raw_rows(catalog, ids, device)))
        for features in catalog.features.values():
            features.release()
    v_parts, t_parts = zip(*parts, strict=True)
    return torch.cat(v_parts), torch.cat(t_parts)


def raw_rows(catalog: Catalog, ids: np.ndarray, device: torch.device) -> dict[str, torch.Tensor]:
    """Raw feature rows [len(ids), D] in float32, by modality."""
    return {name: upload(torch.from_numpy(catalog.features[name].rows(ids)), device) for name in catalog.modalities}
