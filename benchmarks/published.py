"""What the published gain of coordination is due to: each deviation of the public code from its own text, alone and all
together, with the published objective and settings (docs/coordination.md).

python -m benchmarks.published data/hmfashion --seeds 0 1 2 --write docs/coordination.md

swapped      in adversarial training the visual branch receives the textual rows and the other way round
inner        the gradients of the adversary's J(0) = L(0) + lambda mean cos stay in the parameters, so that the outer
             step descends L(0) twice, and lambda mean cos as well
frozen       MMGCN: preferences of the users never train
redrawn      MMGCN: preferences never train, and are drawn anew at attack time
together     all of them, and lambda inert

Lambda inert makes uat_mc uat, to the bit, so it has no rows of its own; `together` it takes the cosine out of `inner`.
Each is trained with uat and uat_mc from the same clean run; runs/published keeps what is done.
"""

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import document_parser, replace_block, with_interval
from benchmarks.defences import call as call_logged
from uatmc_dist.adversary.budget import Deltas
from uatmc_dist.adversary.coordination import sum_of_cosines
from uatmc_dist.adversary.defenses import Adversary, Problem
from uatmc_dist.data.batches import Batch
from uatmc_dist.evaluation.promotion import STRONGEST
from uatmc_dist.models.backbone import TrainingModel, View, backbone
from uatmc_dist.models.files import write_safetensors
from uatmc_dist.models.initial import initial_rows
from uatmc_dist.models.trained import ModelFile
from uatmc_dist.tables.markdown import markdown_table
from uatmc_dist.training import loop
from uatmc_dist.training.phase import Phase
from uatmc_dist.training.step import Step

RUNS = Path("runs/published")
BACKBONES = {
    "vbpr": ["adversarial.adv_weight=5"],
    "mmgcn": ["clean.epochs=20", "clean.objective=sampled", "adversarial.adv_weight=8"],
}
CONFIGS = {"vbpr": "configs/vbpr-hm-fashion-sampled.yaml", "mmgcn": "configs/mmgcn.yaml"}
LAMBDAS = {"vbpr": 3.0, "mmgcn": 8.0}
"""Weights of the published configurations of Amazon Clothing; their radius is 0.05."""
DEFENCE = ["adversarial.epochs=5", "adversarial.objective=sampled", "adversarial.epsilon=0.05"]
ATTACK = ["attack.seeds=[1]", "attack.epsilons=[0.05, 0.1]", "attack.attacks=[fgsm, pgd]"]
TARGETS = {"vbpr": ["attack.num_targets=50"], "mmgcn": ["attack.num_targets=20", "attack.any_content=false"]}
"""An attack on MMGCN recomputes three hops at every step."""
FROZEN = ["model.preference=frozen"]
_OTHER_SEED = 1 << 20
_REDRAWN_FROM = {"redrawn": "frozen", "together": "together-trained"}
"""The trained runs whose preferences are drawn anew."""


@dataclass(frozen=True)
class Deviation:
    training: tuple[str, ...] = ()
    """Of `swapped` and `inner`."""
    frozen: bool = False
    redrawn: bool = False
    inert: bool = False


DEVIATIONS = {
    "vbpr": {
        "none": Deviation(),
        "swapped": Deviation(("swapped",)),
        "inner": Deviation(("inner",)),
        "together": Deviation(("swapped", "inner")),
    },
    "mmgcn": {
        "none": Deviation(),
        "swapped": Deviation(("swapped",)),
        "inner": Deviation(("inner",)),
        "frozen": Deviation(frozen=True),
        "redrawn": Deviation(frozen=True, redrawn=True),
        "together": Deviation(("swapped", "inner"), frozen=True, redrawn=True, inert=True),
    },
}
"""VBPR's lambda has an effect in the public code, and it has no preferences of a modality."""


# Training with deviations


class Looking:
    """An adversary that keeps J(0) of the problem it sees, for the parameters to differentiate."""

    def __init__(self, adversary: Adversary, adv_align_weight: float, num_items: int) -> None:
        self._adversary, self._adv_align_weight, self._num_items = adversary, adv_align_weight, num_items
        self.weight = adversary.weight
        self.inner = torch.zeros(())

    def __call__(self, problem: Problem, clean_loss: torch.Tensor, step: int) -> Deltas:
        self.inner = inner_objective(problem, self._adv_align_weight, self._num_items)
        return self._adversary(problem, clean_loss, step)


class StepWithInnerGradients(Step):
    """The gradients of J(0) are added to those of the step."""

    def losses(self, batch: Batch, number: int) -> dict[str, torch.Tensor]:
        assert isinstance(self.adversary, Looking)
        return {**super().losses(batch, number), "inner": self.adversary.inner}


def inner_objective(problem: Problem, adv_align_weight: float, num_items: int) -> torch.Tensor:
    """J(0) = L(0) + lambda mean cos, differentiable in the parameters."""
    view: View = problem.view
    leaves = [rows.detach().clone().requires_grad_() for rows in (view.v_nd, view.t_nd)]
    loss = problem.loss(view.at(*leaves))
    if adv_align_weight == 0:
        return loss
    gradients = torch.autograd.grad(loss, leaves, create_graph=True)
    return loss + adv_align_weight * sum_of_cosines(*gradients) / num_items


def swap_modalities(model: TrainingModel) -> None:
    """What the branches receive in training; the ranking of the saved model is not concerned."""
    content: Any = model.content  # type: ignore[attr-defined]
    content._projected = content._projected[::-1]


def train_with(deviations: Sequence[str], arguments: Sequence[str]) -> None:
    """train.py, with deviations in the adversarial phase."""
    from uatmc_dist import launch

    class DeviatingPhase(Phase):
        @classmethod
        def build(cls, name: Any, *rest: Any) -> Phase:
            phase = Phase.build(name, *rest)
            if name != "adversarial":
                return phase
            if "swapped" in deviations:
                swap_modalities(phase.model)
            if "inner" in deviations:
                values = {field.name: getattr(phase.step, field.name) for field in fields(phase.step)}
                adv_align_weight = phase.step.config.adversarial.adv_align_weight
                looking = Looking(values["adversary"], adv_align_weight, phase.step.block.num_items)
                phase = replace(phase, step=StepWithInnerGradients(**{**values, "adversary": looking}))
            return phase

    loop.Phase = DeviatingPhase  # type: ignore[misc]
    sys.argv = ["train.py", *arguments]
    launch.main()


def redraw_preferences(run: Path, to: Path) -> None:
    """A copy of a run whose users have other preferences."""
    file = ModelFile(run)
    tables = file.tables()
    shapes = backbone(file.config.model).tables(file.config, len(tables["user"]), len(tables["item"]))
    for name, shape in shapes.items():
        if name.startswith("preference_"):
            seed = file.config.seed + _OTHER_SEED
            tables[name] = initial_rows(name, 0, shape.rows, shape.width, shape.std, seed)
    # The model itself comes last: a run that has one is whole.
    left_out = shutil.ignore_patterns("*.json", "checkpoints", "tensorboard", "model.safetensors")
    shutil.copytree(run, to, dirs_exist_ok=True, ignore=left_out)
    dense = {f"dense.{name}": weight for name, weight in file.dense_weights().items()}
    write_safetensors(to / "model/model.safetensors", {**tables, **dense})


# The experiment


def run_of(catalog: str, kind: str, name: str, seed: int) -> Path:
    return RUNS / f"{catalog}-{kind}-{name}-s{seed}"


def adversary_of(deviation: Deviation, adversary: str) -> str:
    return "uat" if deviation.inert else adversary


def make(catalog: Path, kind: str, deviation_name: str, adversary: str, seed: int) -> Path:
    """The run, trained, evaluated and attacked."""
    deviation = DEVIATIONS[kind][deviation_name]
    adversary = adversary_of(deviation, adversary)
    own = FROZEN if deviation.frozen else []
    common = [f"catalog={catalog}", f"output_dir={RUNS}", f"seed={seed}", *BACKBONES[kind], *own]
    clean = run_of(catalog.name, kind, "clean-frozen" if deviation.frozen else "clean", seed)
    if not (clean / "model/model.safetensors").exists():
        call("train.py", CONFIGS[kind], f"name={clean.name}", *common)
    run = run_of(catalog.name, kind, f"{deviation_name}-{adversary}", seed)
    trained = run
    if deviation.redrawn:
        trained = run_of(catalog.name, kind, f"{_REDRAWN_FROM[deviation_name]}-{adversary}", seed)
    if not (trained / "model/model.safetensors").exists():
        weight = LAMBDAS[kind] if adversary == "uat_mc" else 0.0
        options = [f"name={trained.name}", f"start_from={clean}", *DEFENCE]
        options += [f"adversarial.adversary={adversary}", f"adversarial.adv_align_weight={weight}"]
        call("-m", "benchmarks.published", "--train", ",".join(deviation.training), CONFIGS[kind], *common, *options)
    if not (run / "model/model.safetensors").exists():
        redraw_preferences(trained, run)
    if not (run / "evaluation.json").exists():
        call("-m", "uatmc_dist.cli", "evaluate", run)
    if not (run / "attack.json").exists():
        call("-m", "uatmc_dist.cli", "attack", run, *ATTACK, *TARGETS[kind])
    return run


def call(*command: object) -> None:
    RUNS.mkdir(parents=True, exist_ok=True)
    call_logged(RUNS / "log.txt", *command)


def figures(run: Path) -> dict[str, float]:
    read = lambda name: json.loads((run / name).read_text(encoding="utf-8"))  # noqa: E731
    found = {"recall@20": read("evaluation.json")["recall@20"]}
    for result in read("attack.json")["results"]:
        if result["attack"] == STRONGEST and result["stratum"] == "random":
            found["before"] = result["hit@50_before"]
            found[f"{result['epsilon']:g}"] = result["hit@50_after"]
    return found


def table(catalog: Path, kind: str, seeds: Sequence[int]) -> str:
    rows = []
    for name, deviation in DEVIATIONS[kind].items():
        runs = {adversary: f"{name}-{adversary_of(deviation, adversary)}" for adversary in ("uat", "uat_mc")}
        found = {
            adversary: [figures(run_of(catalog.name, kind, run, seed)) for seed in seeds]
            for adversary, run in runs.items()
        }
        cells = [
            with_interval([one[key] for one in found[adversary]], ".4f")
            for adversary in found
            for key in ("recall@20", "before", "0.05", "0.1")
        ]
        pairs = list(zip(found["uat_mc"], found["uat"], strict=True))
        gains = [with_interval([a[key] - b[key] for a, b in pairs], "+.4f") for key in ("recall@20", "0.05", "0.1")]
        rows.append([f"{kind}, {name}", *cells, *gains])
    head = ["deviation"]
    columns = ("Recall@20", "before", "0.05", "0.1")
    head += [f"{adversary}: {what}" for adversary in ("uat", "uat_mc") for what in columns]
    return markdown_table([*head, "gain: Recall@20", "0.05", "0.1"], rows)


def main() -> None:
    if sys.argv[1:2] == ["--train"]:
        train_with(sys.argv[2].split(","), sys.argv[3:])
        return
    parser = document_parser(__doc__)
    parser.add_argument("catalog", type=Path)
    parser.add_argument("--backbones", nargs="+", choices=tuple(DEVIATIONS), default=list(DEVIATIONS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments = parser.parse_args()
    for seed in arguments.seeds:
        for kind in arguments.backbones:
            for name in DEVIATIONS[kind]:
                for adversary in ("uat", "uat_mc"):
                    print(f"{make(arguments.catalog, kind, name, adversary, seed)}: done", flush=True)
    for kind in arguments.backbones:
        text = table(arguments.catalog, kind, arguments.seeds)
        print(text)
        if arguments.write is not None:
            replace_block(arguments.write, f"published-{arguments.catalog.name}-{kind}", text)


if __name__ == "__main__":
    main()
