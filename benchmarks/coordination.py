"""How much the gradient of the cosine weighs against that of the loss, step by step: |HVP(omega)| / |g| by item,
at lambda = 1, and how far lambda = 4 (or --weight) turns the direction of the step.

python -m benchmarks.coordination configs/vbpr-hm-fashion.yaml runs/vbpr-hm-fashion-clean-s0
"""

import argparse
import tempfile
from pathlib import Path

import torch

from uatmc_dist.adversary import coordination
from uatmc_dist.adversary.coordination import AscentRule, LinearView
from uatmc_dist.config import load_config
from uatmc_dist.parallel import process_group
from uatmc_dist.training import Position, Trainer


def watch() -> None:
    """Prints what coordination does to each step's direction."""
    coordinated = coordination._coordinated

    def watched(view: LinearView, rule: AscentRule, items_nK: torch.Tensor, gradient_nd: torch.Tensor) -> torch.Tensor:
        turned_nd = coordinated(view, rule, items_nK, gradient_nd)
        hvp_nd = (turned_nd - gradient_nd) / rule.adv_align_weight
        ratios = hvp_nd.norm(dim=1) / gradient_nd.norm(dim=1)
        low, median, high = torch.quantile(ratios, torch.tensor([0.1, 0.5, 0.9])).tolist()
        cosine_n = torch.nn.functional.cosine_similarity(gradient_nd @ view.w_v, turned_nd @ view.w_v, dim=1, eps=0.0)
        degrees_n = torch.rad2deg(torch.acos(cosine_n.clamp(-1, 1)))
        shares = ", ".join(f"{(degrees_n > angle).double().mean():.0%} by more than {angle}" for angle in (1, 30, 90))
        print(f"  |HVP| / |g|: 10 % {low:.3g}, median {median:.3g}, 90 % {high:.3g}; degrees turned: {shares}")
        return turned_nd

    coordination._coordinated = watched


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("clean_run", type=Path)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--weight", type=float, default=4.0, help="lambda")
    arguments = parser.parse_args()
    world = process_group.join()
    watch()
    for objective in ("full_catalog", "sampled"):
        print(objective)
        with tempfile.TemporaryDirectory() as folder:
            overrides = [f"start_from={arguments.clean_run}", f"output_dir={folder}", "adversarial.epochs=1"]
            overrides += ["adversarial.adversary=uat_mc", f"adversarial.adv_align_weight={arguments.weight}"]
            config = load_config(arguments.config, [*overrides, f"adversarial.objective={objective}"])
            trainer = Trainer(config, world)
            trainer.begin(Position("adversarial"))
            for index in range(arguments.steps):
                trainer.train_step(trainer.sampler.batch(0, index))
            trainer.checkpoints.settle()
    process_group.leave()


if __name__ == "__main__":
    main()
