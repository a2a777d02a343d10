"""The attacks of a configuration, by name."""

from collections.abc import Sequence

from uatmc_dist.attacks.apgd import APGD
from uatmc_dist.attacks.base import Attack
from uatmc_dist.attacks.coordinated import Coordinated
from uatmc_dist.attacks.exact_group import ExactGroup
from uatmc_dist.attacks.exact_user import ExactUser
from uatmc_dist.attacks.fgsm import FGSM
from uatmc_dist.attacks.pgd import PGD
from uatmc_dist.attacks.single_modality import text_only, visual_only
from uatmc_dist.attacks.square import Square
from uatmc_dist.attacks.transfer import Transfer
from uatmc_dist.config import AttackConfig

OF_TWO_MODALITIES = ("coordinated", "anti_aligned", "visual_only", "text_only")
"""Attacks that are another one, or none at all, where items have one modality."""


OF_LINEAR_FUSION = ("exact_user", "exact_group", "coordinated", "anti_aligned", "square", "transfer")
"""Attacks that are made for linear fusion."""


def attacks_of(config: AttackConfig, modalities: Sequence[str], is_linear: bool = True) -> list[Attack]:
    """`modalities` that the model has, and whether its fusion is linear."""
    apgd = APGD(config.apgd_steps, config.restarts)
    known: list[Attack] = [
        FGSM(),
        PGD(config.pgd_steps),
        apgd,
        ExactUser(),
        ExactGroup(),
        Coordinated(config.pgd_steps),
        Coordinated(config.pgd_steps, sign=-1),
        visual_only(config.apgd_steps),
        text_only(config.apgd_steps),
        Square(config.queries),
        Transfer(apgd),
    ]
    left_out: tuple[str, ...] = OF_TWO_MODALITIES if len(modalities) < 2 else ()
    left_out += () if is_linear else OF_LINEAR_FUSION
    return [attack for attack in known if attack.name in config.attacks and attack.name not in left_out]
