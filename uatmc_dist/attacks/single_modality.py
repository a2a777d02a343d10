"""What one modality alone can do: APGD that may touch the photo only, or the text only; from its first start."""

from uatmc_dist.attacks.apgd import APGD
from uatmc_dist.data.catalog import MODALITIES


def visual_only(steps: int) -> APGD:
    return APGD(steps, 1, MODALITIES[:1], "visual_only")


def text_only(steps: int) -> APGD:
    return APGD(steps, 1, MODALITIES[1:], "text_only")
