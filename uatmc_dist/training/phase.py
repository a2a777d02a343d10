"""What trains in one phase: model, objective, defence and sampler."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from uatmc_dist.adversary.defenses import adversary
from uatmc_dist.config import Config, PhaseName
from uatmc_dist.data.batches import KnownPositives, Sampler, training_pairs
from uatmc_dist.data.catalog import Catalog
from uatmc_dist.errors import UserError
from uatmc_dist.models.backbone import TrainingModel, backbone
from uatmc_dist.models.objectives import FullCatalog, Objective, Sampled, Softmax, popularity_offset
from uatmc_dist.models.whitening import whiten
from uatmc_dist.parallel.item_parallel import ItemBlock
from uatmc_dist.parallel.process_group import World, any_rank
from uatmc_dist.progress import shown
from uatmc_dist.training.step import Step

_SCORE_FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Phase:
    model: TrainingModel
    step: Step
    sampler: Sampler

    @classmethod
    def build(
        cls,
        name: PhaseName,
        config: Config,
        catalog: Catalog,
        known: KnownPositives,
        world: World,
        dense_weights: dict[str, torch.Tensor] | None,
    ) -> "Phase":
        """With fresh optimisers; `dense_weights` None: with the initial ones."""
        with shown("projected items", world.is_first) as progress:
            model = backbone(config.model).training_model(catalog, known, config, world, name, dense_weights, progress)
        in_adversarial, adversarial = name == "adversarial", config.adversarial
        block = ItemBlock(catalog.num_items, world.rank, world.size)
        objective = _objective(config, name, block, known)
        step = Step(
            config,
            model,
            objective,
            adversary(adversarial, catalog.num_items, config.seed) if in_adversarial else None,
            in_adversarial and adversarial.adversary == "certified",
            0.0 if in_adversarial else config.clean.align_weight,
            block,
        )
        users, items = training_pairs(catalog)
        seed = 2 * config.seed + in_adversarial  # the phases see the pairs in different orders
        given = known, catalog.num_items, config.training.batch_size, seed
        sampler = Sampler(users, items, *given, with_negatives=isinstance(objective, Sampled))
        return cls(model, step, sampler)


def begin_adversarial(model: TrainingModel, trained: Iterable[torch.Tensor], config: Config, catalog: Catalog) -> None:
    """Tables from these rows of this rank, and what is done to the weights before the phase. Collective."""
    for table, rows in zip(model.tables, trained, strict=True):
        table.local_weight.copy_(rows)
    if power := config.adversarial.whitening:
        whiten(model, catalog.num_users, power)


def _objective(config: Config, phase: PhaseName, block: ItemBlock, known: KnownPositives) -> Objective:
    training = config.training
    name = config.clean.objective if phase == "clean" else config.adversarial.objective
    if name == "sampled":
        return Sampled(block)
    all_items = block, known, training.exclude_known_positives, _SCORE_FORMATS[training.score_precision]
    if name == "full_catalog":
        return FullCatalog(*all_items)
    return Softmax(*all_items, popularity_offset(training, known))


def check_modalities(config: Config, catalog: Catalog) -> None:
    """UserError for what needs content, or both modalities, where the catalog does not have them."""
    found = catalog.modalities
    if len(found) > 1:
        return
    if not found:
        raise UserError(f"{config.catalog}: neither photos nor texts; set model.content=false adversarial.epochs=0")
    has = f"{config.catalog} has {found[0]} features alone"
    adversary_name = config.adversarial.adversary
    needs = {"uat_mc": "two modalities", "user_coordination": "two modalities", "amr": "visual features"}
    needs |= {f"{modality}_only": f"{modality} features" for modality in ("visual", "text")}
    possible = {f"{found[0]}_only", "amr" if found[0] == "visual" else ""}
    if config.adversarial.epochs and adversary_name in needs and adversary_name not in possible:
        raise UserError(
            f"adversarial.adversary: {adversary_name} needs {needs[adversary_name]}, and {has}; set "
            "adversarial.adversary=uat"
        )
    if config.clean.align_weight and config.start_from is None:
        raise UserError(f"clean.align_weight: InfoNCE needs two modalities, and {has}; set clean.align_weight=0")


def is_finite(model: TrainingModel) -> bool:
    """Whether no weight of any rank is NaN or Inf. Collective."""
    weights = [*(table.local_weight for table in model.tables), *model.dense_weights().values()]
    return not any_rank(int(not all(bool(weight.isfinite().all()) for weight in weights)))
