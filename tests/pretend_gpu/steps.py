"""Steps of training on the pretend GPU; prints a JSON list of what the cases of each job did (`done`).

python -m tests.pretend_gpu.steps CATALOG '[{"rank": 4, "size": 8, "only": "softmax, uat", "breaks": "uploads wait"}]'
"""

import itertools
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from tests.pretend_gpu import stand_ins
from tests.pretend_gpu.device import GPU, PretendGpu

BACKBONES = {
    "vbpr": {},
    "vbpr, history": {"user": "history"},
    "vbpr_own_users": {"backbone": "vbpr_own_users"},
    "mmgcn": {"backbone": "mmgcn"},
}
OBJECTIVES = ("sampled", "full_catalog", "softmax")
ADVERSARIES = {
    "none": {},
    "noise": {},
    "visual_only": {},
    "uat": {},
    "uat_mc": {},
    "uat_mc, 3 steps, linf": {"steps": 3, "norm": "linf"},
    "user_coordination": {"steps": 2},
    "conditional_gradient": {"steps": 3},
    "amr": {},
    "certified": {},
    "certified, any_content": {"budget": "any_content"},
    "uat, at the encoder": {"at": "encoder"},
}
CLEAN = {
    "clean": {},
    "clean, without known positives": {"exclude_known_positives": True},
    "clean, bf16": {"score_precision": "bf16"},
    "clean, correction": {"popularity_correction": 2.0},
}


def cases() -> Iterator[tuple[str, dict[str, Any], str]]:
    """(name, sections of the configuration, phase)."""
    for (backbone, model), objective in itertools.product(BACKBONES.items(), OBJECTIVES):
        if "history" in backbone and objective != "softmax":
            continue  # users are looked up alike whatever the objective
        for name, training in CLEAN.items():
            if (objective == "sampled" and training) or (objective != "softmax" and "correction" in name):
                continue
            clean = {"objective": objective, "align_weight": 0.1}
            yield f"{backbone}, {objective}, {name}", {"model": model, "training": training, "clean": clean}, "clean"
        for name, options in ADVERSARIES.items():
            kind = name.split(",")[0]
            if backbone == "mmgcn" and "3 steps" in name:
                continue  # thirteen thousand operations that the others have, too
            if backbone == "mmgcn" and kind in ("certified", "user_coordination"):
                continue  # it has no certificate; and checkpointing through it crashes PyTorch's Python backend
            adversarial = {"objective": objective, "adversary": kind, "epochs": 1, **options}
            yield f"{backbone}, {objective}, {name}", {"model": model, "adversarial": adversarial}, "adversarial"


FORMATS = torch.float32, torch.float64
AFTER = ("evaluate", "certify", "attack", "attack while training", "whiten")


def after_training() -> Iterator[tuple[str, dict[str, Any], str]]:
    """(name, sections of the configuration, verb)."""
    few = {
        "seeds": [1],
        "num_targets": 3,
        "epsilons": [0.1],
        "pgd_steps": 1,
        "apgd_steps": 1,
        "restarts": 2,
        "queries": 1,
    }
    attack = {**few, "attacks": ["pgd", "apgd", "coordinated", "exact_user", "exact_group", "square"]}
    for (backbone, model), verb in itertools.product(BACKBONES.items(), AFTER):
        if verb in (("certify", "attack while training", "whiten") if backbone == "mmgcn" else ()):
            continue  # it is not linear
        if backbone not in ("vbpr", "mmgcn") and "attack" in verb:
            continue  # others differ in their users
        if backbone == "mmgcn":  # each of its evaluations is many operations
            attack = {**few, "attacks": ["apgd"], "num_targets": 1, "any_content": False}
        evaluation = {"attack_epsilon": 0.1} if verb == "attack while training" else {}
        sections = {"model": model, "adversarial": {"epochs": 1}, "attack": attack, "evaluation": evaluation}
        yield f"{backbone}, {verb}", sections, verb


def measure(verb: str, model: Any, config: Any, catalog: Any, world: Any) -> None:
    """What is done with a trained model under torchrun, or before it is trained on; the numbers mean nothing."""
    from uatmc_dist.evaluation import certificate, kept, on_ranks, promotion, ranking
    from uatmc_dist.models.whitening import whiten
    from uatmc_dist.parallel.item_parallel import ItemBlock
    from uatmc_dist.training.attacked import attacked_now

    block = ItemBlock(catalog.num_items, world.rank, world.size)
    if verb == "evaluate":
        ranking.rank_catalog(model.ranking(), block, catalog, "test", 64)
    elif verb == "certify":
        certificate.certify_swept(on_ranks.swept_on_ranks(model, config, catalog, world), catalog, config.attack)
    elif verb == "attack":
        drawn, strata = promotion.draw_ids, promotion.strata
        promotion.strata = lambda catalog: dict([*strata(catalog).items()][:1])  # the others are the same operations
        # Targets of this rank: the others send nothing.
        promotion.draw_ids = lambda *words: (block.lo + torch.arange(config.attack.num_targets), drawn(*words)[1])
        given = lambda done, total: None, kept.KeptParts(None)
        on_ranks.attack_on_ranks(model, config, catalog, world, None, *given)
    elif verb == "whiten":
        whiten(model, catalog.num_users, 0.5)
    else:
        attacked_now(model, config, catalog, world)


def pretend(breaks: str | None) -> None:
    """Puts the stand-ins in place, and the mistake that is asked for."""
    import uatmc_kernels._dispatch as dispatch
    from uatmc_dist.adversary import defenses
    from uatmc_dist.models import linear_fusion, mmgcn, neighbourhood, own_content, propagation, tables, users
    from uatmc_dist.parallel import engine, upload

    for module in (linear_fusion, users, tables):
        for name in ("ShardedTable", "ShardedBags"):
            setattr(module, name, stand_ins.Table)
    for module in (linear_fusion, engine):
        module.DenseEngine = stand_ins.Engine
    own_content.projected_items = stand_ins.projected_items
    to = mmgcn.MMGCNContent.to
    mmgcn.MMGCNContent.to = lambda self, what: (stand_ins.in_format if what in FORMATS else to)(self, what)
    for module in (propagation, neighbourhood):
        module.csr, module.sparse_product = stand_ins.Matrix, stand_ins.sparse_product
    dispatch._triton_problem = lambda device, index, dtype: (
        "" if dtype in (torch.float32, torch.bfloat16) else f"no Triton kernel for {dtype}"
    )
    normal = defenses.normal_rows
    defenses.normal_rows = lambda lo, hi, width, *words, block, device: torch.empty(hi - lo, width, device=device)
    if breaks == "indices stay on the CPU":
        _replace("upload", upload.upload, lambda tensor, device: tensor)
    elif breaks == "uploads wait":
        _replace("upload", upload.upload, lambda tensor, device: tensor.to(device))
    elif breaks == "noise from the CPU":
        defenses.normal_rows = lambda *words, block, device: normal(*words, block=block).to(device)
    elif breaks == "the host asks the device":
        from uatmc_dist.models import objectives

        loss = objectives.Softmax.loss
        objectives.Softmax.loss = lambda *given: loss(*given) + 0 * float(loss(*given))
    elif breaks == "anchors stay on the CPU":
        from uatmc_dist.evaluation.scenes import Cast

        rows = Cast._anchor_rows
        Cast._anchor_rows = lambda *given: rows(*given).cpu()  # type: ignore[method-assign]
    elif breaks == "skipped entries stay on the CPU":
        from uatmc_dist.models.objectives import full_catalog

        given = full_catalog.bpr_all_items
        full_catalog.bpr_all_items = lambda u, i, p, skip, seen=None: given(
            u, i, p, skip.new_zeros(len(skip), device="cpu"), seen=seen
        )


def _replace(name: str, before: Any, after: Any) -> None:
    """Wherever it was imported to."""
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("uatmc_dist") and getattr(module, name, None) is before:
            setattr(module, name, after)


def build(catalog: Any, known: Any, world: Any, sections: dict[str, Any], phase: str) -> tuple[Any, Any]:
    """(configuration, built phase)."""
    from uatmc_dist.config import Config
    from uatmc_dist.training.phase import Phase

    sections = {name: dict(values) for name, values in sections.items()}
    model = {"embedding_dim": 16, "visual_hidden": [], "text_hidden": [], **sections.pop("model", {})}
    training = {"batch_size": 64, **sections.pop("training", {})}
    config = Config.model_validate(
        {"name": "x", "catalog": catalog.path, "model": model, "training": training, **sections}
    )
    weights = None
    if phase == "adversarial":
        from uatmc_dist.models.backbone import backbone

        weights = dict(backbone(config.model).dense_module(config, catalog).state_dict())
    return config, Phase.build(phase, config, catalog, known, world, weights)  # type: ignore[arg-type]


def done(catalog_path: Path, rank: int, size: int, only: str = "", breaks: str | None = None) -> dict[str, Any]:
    """What each case with `only` in its name did, as this rank of so many, with a mistake put back (`breaks`)."""
    from uatmc_dist.data.batches import KnownPositives
    from uatmc_dist.data.catalog import Catalog

    stand_ins.join(rank, size)
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    pretend(breaks)
    catalog = Catalog(catalog_path)
    known = KnownPositives.of_training(catalog)
    world = SimpleNamespace(rank=rank, size=size, device=GPU, is_first=False)
    found: dict[str, Any] = {}
    mode = PretendGpu()
    for name, sections, kind in [*cases(), *after_training()]:
        if only not in name:
            continue
        is_step = kind not in AFTER
        result: dict[str, Any] = {"elsewhere": [], "is_after": not is_step}
        try:
            with mode:
                config, built = build(catalog, known, world, sections, kind if is_step else "adversarial")
                batch = built.sampler.batch(0, 0)
                mode.clear()
                stand_ins.COLLECTIVES.clear()
                if is_step:
                    terms = built.step.losses(batch, 0)
                    built.step.update(terms)
                    result["elsewhere"] = [name for name, term in terms.items() if term.device != GPU]
                else:
                    with torch.set_grad_enabled(kind == "attack"):
                        measure(kind, built.model, config, catalog, world)
        except Exception as error:
            result["error"] = f"{type(error).__name__}: {str(error)[:300]}"
            if os.environ.get("TRACE"):
                traceback.print_exc()
        result["operations"] = mode.operations
        result["waits"] = [[*place, count] for place, count in sorted(mode.waits.items())]
        result["collectives"] = [[*key, count] for key, count in sorted(stand_ins.COLLECTIVES.items())]
        found[name] = result
    return found


def main() -> None:
    catalog, jobs = Path(sys.argv[1]), json.loads(sys.argv[2])
    import uatmc_dist.models.linear_fusion
    import uatmc_dist.training.phase  # noqa: F401  # once for all jobs

    found = []
    for job in jobs:
        with tempfile.TemporaryFile("w+") as file:
            if (child := os.fork()) == 0:
                json.dump(done(catalog, **job), file)
                file.flush()
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0, job
            file.seek(0)
            found.append(json.load(file))
    print(json.dumps(found))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
