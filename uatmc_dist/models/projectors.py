"""Projectors of raw features, and the linear fusion of their outputs (docs/algorithm.md, sections 1 and 2)."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from uatmc_dist.config import Config
from uatmc_dist.data.catalog import MODALITIES, Catalog

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


class ContentModel(nn.Module):
    """The dense part of VBPR: projectors f_v, f_t, fusion c = W_v v + W_t t + beta, InfoNCE temperature.

    Inputs may be float32 while the parameters are bfloat16; outputs are float32.
    """

    def __init__(self, visual_width: int, text_width: int, visual_hidden: list[int], text_hidden: list[int], dim: int):
        super().__init__()
        self.visual = Projector(visual_width, visual_hidden, dim)
        self.text = Projector(text_width, text_hidden, dim)
        self.w_v = nn.Parameter(torch.empty(dim, dim))
        self.w_t = nn.Parameter(torch.empty(dim, dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        nn.init.xavier_uniform_(self.w_v)
        nn.init.xavier_uniform_(self.w_t)
        # One element, not a scalar: DeepSpeed broadcasts parameters as bytes, which a scalar has no view of.
        self.log_temperature = nn.Parameter(torch.full((1,), 0.1).log())

    def freeze_projectors(self) -> None:
        """What the adversarial phase trains is the fusion alone."""
        for parameter in (*self.visual.parameters(), *self.text.parameters(), self.log_temperature):
            parameter.requires_grad_(False)

    def project(self, visual_raw: torch.Tensor, text_raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Raw rows [n, D_v], [n, D_t] to unit rows v, t [n, d]."""
        dtype = self.w_v.dtype
        visual, text = self.visual(visual_raw.to(dtype)), self.text(text_raw.to(dtype))
        return F.normalize(visual.float(), dim=1), F.normalize(text.float(), dim=1)

    def fuse(self, v_nd: torch.Tensor, t_nd: torch.Tensor) -> torch.Tensor:
        dtype = self.w_v.dtype
        content_nd = F.linear(v_nd.to(dtype), self.w_v, self.bias) + F.linear(t_nd.to(dtype), self.w_t)
        return content_nd.float()


def build_content_model(config: Config, catalog: Catalog) -> ContentModel:
    """Same initial weights for the same seed, on any rank."""
    model = config.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return ContentModel(
            catalog.features["visual"].width,
            catalog.features["text"].width,
            model.visual_hidden,
            model.text_hidden,
            model.embedding_dim,
        )


def initialised_content_model(config: Config, catalog: Catalog) -> ContentModel:
    """The dense part that training starts from (model.initial)."""
    model = build_content_model(config, catalog)
    if config.model.initial == "content":
        with torch.no_grad():
            for modality in MODALITIES:
                layer = getattr(model, modality)[0]
                mean_D, components_kD = principal_components(catalog, modality, config.model.embedding_dim, config.seed)
                layer.weight.zero_()[: len(components_kD)] = components_kD
                layer.bias.zero_()[: len(components_kD)] = -components_kD @ mean_D
            for fusion in (model.w_v, model.w_t):
                nn.init.eye_(fusion)
    return model


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
    model: ContentModel, catalog: Catalog, lo: int, hi: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Projected rows v, t [hi - lo, d] of the items [lo, hi), chunk by chunk: raw features are never held whole."""
    parts = []
    for start in range(lo, max(hi, lo + 1), CHUNK):  # an empty block still has a width
        ids = np.arange(start, min(start + CHUNK, hi))
        parts.append(model.project(*(raw_rows(catalog, modality, ids, device) for modality in MODALITIES)))
        for features in catalog.features.values():
            features.release()
    v_parts, t_parts = zip(*parts, strict=True)
    return torch.cat(v_parts), torch.cat(t_parts)


def raw_rows(catalog: Catalog, modality: str, ids: np.ndarray, device: torch.device) -> torch.Tensor:
    """Raw feature rows [len(ids), D] in float32."""
    return torch.from_numpy(catalog.features[modality].rows(ids)).to(device)
