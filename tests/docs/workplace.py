"""A folder in which the commands of the documents run in seconds: the project's own files, with small configurations,
a drawn shop, and a catalog or a trained run wherever a command names one."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import yaml

from tests import nursery
from tests.conftest import ROOT, environment, run_uatmc
from uatmc_dist.data import synthetic_shop

_COPIED = ("configs", "docs", "launch", "train.py", "README.md")
_SMALL: dict[str, dict[str, Any]] = {
    "model": {"embedding_dim": 8},
    "training": {"batch_size": 256},
    "clean": {"epochs": 1},
    "attack": {"num_targets": 3, "seeds": [1], "attacks": ["fgsm", "pgd"]},
    "content_attack": {"num_targets": 1, "pixels": [4], "edits": [1], "formats": ["png"], "steps": 2},
}


def _overrides(*sections: str) -> list[str]:
    return [f"{section}.{name}={json.dumps(value)}" for section in sections for name, value in _SMALL[section].items()]


SMALL = {
    "train": [*_overrides("model", "training", "clean"), "adversarial.epochs=1"],
    "attack": _overrides("attack"),
    "attack-content": [*_overrides("content_attack"), "content_attack.attacks=[pixels, words]"],
    "calibrate": _overrides("content_attack"),
}
"""The same as options of a verb."""

_CONFIG_OF = {
    "mmgcn": "mmgcn",
    "vbpr-hm-fashion-sampled": "vbpr-hm-fashion-sampled",
    "vbpr-hm-fashion": "vbpr-hm-fashion",
    "million": "million-items",
}
"""Of a trained run, by a part of its name."""
_NAMED = ("hmfashion", "hmfashion-built", "hmfashion-smoothed", "baby", "quickstart")
"""Catalogs that configurations name."""


class Workplace:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in _COPIED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, folder / name)
        shutil.copytree(ROOT / "benchmarks", folder / "benchmarks", ignore=shutil.ignore_patterns("__pycache__"))
        for path in (folder / "configs").glob("*.yaml"):
            path.write_text(yaml.safe_dump(_merged(yaml.safe_load(path.read_text()), _SMALL)))
        for path in (folder / "configs/defences").glob("*.yaml"):
            path.write_text(yaml.safe_dump(_short(yaml.safe_load(path.read_text()))))
        plan = folder / "configs/plans/accuracy.yaml"
        plan.write_text(yaml.safe_dump({**yaml.safe_load(plan.read_text()), "seeds": [0]}))
        synthetic_shop.synthesize_shop(folder, users=120, items=90, interactions=900, seed=0)
        self._built = folder / "data/built"
        files = ("--interactions", "orders.csv", "--items", "articles.csv", "--photos", "photos")
        run_uatmc("data", "build", self._built, *files, folder=folder)
        orders = (folder / "orders.csv").read_text().splitlines()[1:]
        rows = ["userID,itemID,timestamp,x_label", *orders]
        (folder / "hmfashion.inter").write_text("\n".join(rows).replace(",", "\t"))
        shutil.copy(folder / "articles.csv", folder / "item_text.csv")
        (folder / "tests").symlink_to(ROOT / "tests")
        for name in _NAMED:
            shutil.copytree(self._built, folder / "data" / name)

    def prepare(self, words: list[str]) -> None:
        """Makes the catalogs and trained runs that a command names, and takes away those that it makes."""
        made = words[3] if words[1:3] in (["data", "build"], ["data", "synthesize"]) else None
        for word in words:
            name = word.rpartition("=")[2]
            if name == made:
                shutil.rmtree(self.folder / name, ignore_errors=True)
            elif name.startswith("data/"):
                self._catalog(name)
            elif name.startswith("runs/"):
                self._trained(name)
            elif word.startswith("name=") and words[1] in ("train", "tune"):
                shutil.rmtree(self.folder / "runs" / name, ignore_errors=True)
        if words[1] in ("train", "tune"):
            config = words[2] if words[2].endswith(".yaml") else "configs/quickstart.yaml"
            values = yaml.safe_load((self.folder / config).read_text())
            self._catalog(values["catalog"])
            for run in (values["name"], f"{values['name']}-tuning"):
                shutil.rmtree(self.folder / "runs" / run, ignore_errors=True)

    def _catalog(self, name: str) -> None:
        if not (self.folder / name).exists():
            shutil.copytree(self._built, self.folder / name)

    def _trained(self, name: str) -> None:
        """Clean, of the backbone in its name."""
        run = self.folder / name
        if run.exists():
            return
        config = next((file for part, file in _CONFIG_OF.items() if part in name), "default")
        given = [f"name={run.name}", "catalog=data/built", "adversarial.epochs=0"]
        given += ["model.backbone=vbpr_own_users"] if "own-users" in name else []
        command = ["train.py", f"configs/{config}.yaml", *given]
        done = nursery.run(1, command, self.folder, environment(), timeout=300)
        assert done.returncode == 0, done.stderr


def _merged(values: dict[str, Any], small: dict[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for name, value in small.items():
        merged[name] = {**merged.get(name, {}), **value}
    if merged.get("adversarial", {}).get("epochs"):
        merged["adversarial"]["epochs"] = 1
    return merged


def _short(plan: dict[str, Any]) -> dict[str, Any]:
    """Of a plan of defences: one seed, one catalog, the clean model, the first defence and the last, small attacks."""
    short = {**plan, "seeds": [0], "shrunk": plan.get("shrunk", [])[:1], "fewer_seeds": {}}
    if "catalogs" in plan:
        short["catalogs"] = dict([*plan["catalogs"].items()][:1])
    defences = [*plan.get("defences", {}).items()]
    kept = defences[-1:] if "content_attack" in plan else defences[:1] + defences[-1:]
    short["defences"] = {name: _brief(given) for name, given in kept}
    if "clean" in plan:
        short["clean"] = {"clean": _brief(plan["clean"]["clean"])}
    short["attack"] = [*plan.get("attack", []), *SMALL["attack"]]
    if "content_attack" in plan:  # an encoder is loaded for each model: two are enough
        short["without"] = [*plan.get("without", []), "none", "certified_any"]
        short["content_attack"] = [*plan["content_attack"], *SMALL["attack-content"]]
    return short


def _brief(overrides: list[str]) -> list[str]:
    return [re.sub(r"epochs=[1-9]\d*", "epochs=1", override) for override in overrides]
