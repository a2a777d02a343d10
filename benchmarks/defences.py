"""Defences compared: trains, evaluates, attacks and certifies every variant of a plan, over several training seeds.

python -m benchmarks.defences configs/defences/vbpr.yaml --write docs/results.md
python -m benchmarks.defences configs/defences/mmgcn.yaml --catalog baby   # one of its catalogs alone

A plan (configs/defences/) names a configuration, catalogs, training seeds, and for each variant its overrides; every
variant but those under `clean` starts from the run `clean` of its seed. `shrunk` are the shares of its content half
that a copy of the clean run keeps: a defence that costs no training. A plan may start from another (`base`), leave
variants of it out (`without`) and have others in their place. Runs are runs/NAME-VARIANT-sSEED; what is there already
is not made again. Each run has one process and one thread, and as many run at once as there are cores. Prints the
tables (means with 95 % intervals over the seeds, Student's t), writes every figure by seed to benchmarks/results/, and
with --write puts the tables between the marks `<!-- PLAN -->`, or `<!-- PLAN-CATALOG -->`, and `<!-- end -->` of a
Markdown file. A plan with `content_attack` attacks the catalog's photos and words as well, and its tables are of those.
What a step costs is measured apart: python -m benchmarks.defence_cost PLAN.
"""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from benchmarks.common import RESULTS, document_parser, one_thread, replace_block, with_interval
from benchmarks.content_table import content_figures, content_markdown
from uatmc_dist.config import ATTACKS, Config, dump_config, load_config
from uatmc_dist.evaluation.promotion import STRONGEST
from uatmc_dist.models.files import write_safetensors
from uatmc_dist.models.trained import ModelFile
from uatmc_dist.tables.markdown import markdown_table


@dataclass(frozen=True)
class Plan:
    name: str
    config: str
    runs: str
    """What the names of its runs begin with."""
    seeds: list[int]
    clean: dict[str, list[str]]
    """Variants with a clean phase of their own; `clean` is what the others start from."""
    defences: dict[str, list[str]]
    overrides: list[str] = field(default_factory=list)
    """Of the configuration, for all variants."""
    shrunk: list[float] = field(default_factory=list)
    split: str = "test"
    """What accuracy is measured on: valid for plans that choose, test for those that report."""
    attack: list[str] = field(default_factory=list)
    certify: bool = True
    content_attack: list[str] = field(default_factory=list)
    """Options of `uatmc attack-content`; none: photos and words are left alone."""
    fewer_seeds: dict[str, list[int]] = field(default_factory=dict)
    """Of variants that are far off; in a plan's file by catalog."""

    @classmethod
    def read(cls, path: Path) -> "list[Plan]":
        """One plan for each of its catalogs, or one alone where the configuration says which."""
        keys = _with_base(path)
        without, overrides = keys.pop("without", []), keys.pop("overrides", [])
        runs = keys.pop("runs", None) or load_config(Path(keys["config"]), overrides).name
        catalogs, fewer_seeds = keys.pop("catalogs", {None: None}), keys.pop("fewer_seeds", {})
        keys["defences"] = {name: value for name, value in keys["defences"].items() if name not in without}
        return [
            cls(
                name=path.stem if catalog is None else f"{path.stem}-{catalog}",
                runs=runs.format(catalog=catalog),
                fewer_seeds=fewer_seeds.get(catalog, {}),
                overrides=overrides if catalog is None else [f"catalog={folder}", *overrides],
                **keys,
            )
            for catalog, folder in catalogs.items()
        ]

    @classmethod
    def chosen(cls, path: Path, catalog: str | None) -> "list[Plan]":
        """All of a file's plans, or that of one catalog."""
        plans = cls.read(path)
        found = [plan for plan in plans if catalog is None or plan.name.endswith(f"-{catalog}")]
        if not found:
            raise SystemExit(f"--catalog {catalog}: not in {path}: {', '.join(plan.name for plan in plans)}")
        return found

    @property
    def base(self) -> Config:
        return load_config(Path(self.config), self.overrides)

    def seeds_of(self, variant: str) -> list[int]:
        return self.fewer_seeds.get(variant, self.seeds)

    @property
    def shares(self) -> dict[str, float]:
        return {f"shrunk-{share:g}": share for share in self.shrunk}

    @property
    def variants(self) -> list[str]:
        """Those that have a seed."""
        return [name for name in (*self.clean, *self.shares, *self.defences) if self.seeds_of(name)]

    def run(self, variant: str, seed: int) -> Path:
        return self.base.output_dir / f"{self.runs}-{variant}-s{seed}"


def _with_base(path: Path) -> dict[str, Any]:
    keys: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    base = keys.pop("base", None)
    if base is None:
        return keys
    inherited = _with_base(path.parent / base)
    return {**inherited, **keys, "defences": {**inherited["defences"], **keys.get("defences", {})}}


def call(log: Path, *command: object) -> None:
    with log.open("a", encoding="utf-8") as file:
        done = subprocess.run([sys.executable, *map(str, command)], env=one_thread(), stdout=file, stderr=file)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}: failed; see {log}")


def make(plan: Plan, variant: str, seed: int) -> None:
    """What is missing of one run: model, evaluation, attack, certificate."""
    run = plan.run(variant, seed)
    log = RESULTS.parent / "logs" / f"{run.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    overrides = {**plan.clean, **plan.defences}.get(variant, [])
    start = [f"start_from={plan.run('clean', seed)}"] if variant in plan.defences else []
    if not (run / "model/model.safetensors").exists():
        if variant in plan.shares:
            shrink(plan.run("clean", seed), run, plan.shares[variant])
        else:
            own = [f"name={run.name}", f"seed={seed}", *start, *overrides]
            call(log, "train.py", plan.config, *plan.overrides, *own)
    uatmc = ["-m", "uatmc_dist.cli"]
    if _read(run, "evaluation").get("split") != plan.split:
        call(log, *uatmc, "evaluate", run, "--split", plan.split)
    if "model.content=false" in overrides:
        return
    wanted = load_config(run / "config.yaml", plan.attack).attack.model_dump(mode="json")
    if _read(run, "attack").get("options") != wanted:
        call(log, *uatmc, "attack", run, *plan.attack)
    if plan.certify and "any_content" not in _read(run, "certificate"):
        call(log, *uatmc, "certify", run)
    wanted = load_config(run / "config.yaml", plan.content_attack).content_attack.model_dump(mode="json")
    if plan.content_attack and _read(run, "content_attack").get("options") != wanted:
        call(log, *uatmc, "attack-content", run, *plan.content_attack)


def make_all(plan: Plan, at_once: int) -> None:
    for variants in (["clean"], [v for v in plan.variants if v != "clean"]):
        jobs = [(variant, seed) for seed in plan.seeds for variant in variants if seed in plan.seeds_of(variant)]
        with ThreadPoolExecutor(at_once) as pool:
            for done, (variant, seed) in enumerate(pool.map(lambda job: make(plan, *job) or job, jobs), start=1):
                print(f"{plan.name}: {variant} seed {seed}: done ({done} of {len(jobs)})", flush=True)


def shrink(clean: Path, run: Path, share: float) -> None:
    """A copy of a trained run whose users weigh content by `share` of what they did."""
    file = ModelFile(clean)
    tables = file.tables()
    for name, rows in tables.items():
        if name != "item":
            rows[:, file.config.model.embedding_dim :] *= share
    dense = {f"dense.{name}": weight for name, weight in file.dense_weights().items()}
    (run / "model").mkdir(parents=True, exist_ok=True)
    for folder in (run, run / "model"):
        (folder / "config.yaml").write_text(dump_config(file.config.model_copy(update={"name": run.name})))
    write_safetensors(run / "model/model.safetensors", {**tables, **dense})


def _read(run: Path, name: str) -> dict[str, Any]:
    path = run / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def figures(plan: Plan, variant: str, seed: int) -> dict[str, float]:
    """Every figure of one run, by name."""
    run = plan.run(variant, seed)
    accuracy = _read(run, "evaluation")
    found = {name: accuracy[name] for name in ("recall@20", "ndcg@20")}
    attack = _read(run, "attack")
    for result in [*attack.get("results", []), *attack.get("any_content", [])]:
        epsilon, stratum = result["epsilon"], result["stratum"]
        if stratum == "random":
            found["before"] = result["hit@50_before"]
        key = f"{stratum} any" if epsilon is None else f"{stratum} {epsilon:g}"
        found[f"{key} {result['attack']}"] = result["hit@50_after"]
        if result["attack"] == STRONGEST and result["certified_hit@50"] is not None:
            found[f"{key} bound"] = result["certified_hit@50"]
    if attack:
        found["checks failed"] = sum(check["passed"] is False for check in attack["checks"])  # None: not made
    for entry in _read(run, "certificate").get("results", []):
        found[f"certified {entry['norm']} {entry['budget']} {entry['epsilon']:g}"] = entry["certified_hit@50"]
    for entry in _read(run, "certificate").get("any_content", []):
        found[f"certified any {' and '.join(entry['modalities'])}"] = entry["certified_hit@50"]
    return found | content_figures(_read(run, "content_attack"))


class Results:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.variants = plan.variants
        self._found = {
            v: [figures(plan, v, seed) if seed in plan.seeds_of(v) else {} for seed in plan.seeds]
            for v in self.variants
        }
        costs = RESULTS.parent / f"cost-{plan.name}.csv"
        self.costs = dict(csv.reader(costs.open(encoding="utf-8"))) if costs.exists() else {}
        self.attacked = [v for v in self.variants if "before" in self._found[v][0]]
        reports = [_read(plan.run(v, plan.seeds[0]), "attack") for v in self.attacked]
        self.epsilons = reports[0]["epsilons"]
        done = {result["attack"] for report in reports for result in report["results"]}
        self.attacks = [name for attack in (*ATTACKS, STRONGEST) for name in (attack, f"{attack}_held") if name in done]

    @property
    def _any(self) -> list[str]:
        """Head of the column without an epsilon, where it was measured."""
        return ["any content"] if f"random any {STRONGEST}" in self._found[self.attacked[0]][0] else []

    def found(self, variant: str) -> dict[str, float]:
        """Figures of its first seed."""
        return self._found[variant][0]

    def cell(self, variant: str, name: str) -> str:
        return with_interval([found[name] for found in self._found[variant] if name in found], ".4f")

    def count(self, variant: str, name: str) -> str:
        """Of all seeds together."""
        return str(int(sum(found.get(name, 0) for found in self._found[variant])))

    def difference(self, variant: str, other: str, name: str) -> str:
        """Seed by seed: what two variants share by their seed cancels."""
        pairs = zip(self._found[variant], self._found[other], strict=True)
        return with_interval([a[name] - b[name] for a, b in pairs if name in a and name in b], "+.4f")

    def table(self, head: list[str], cells: Callable[[str], list[str]], variants: list[str] | None = None) -> str:
        return markdown_table(head, ([v, *cells(v)] for v in variants or self.variants))

    def markdown(self) -> str:
        if self.plan.content_attack:
            return content_markdown(self)
        largest, content = max(self.epsilons), self.attacked
        parts = [
            f"Accuracy ({self.plan.split} split), Hit@50 of random targets before and after the strongest attack, and "
            "cost of a training step relative to one without an adversary:",
            self.table(
                [
                    "defence",
                    "Recall@20",
                    "NDCG@20",
                    "before",
                    *(f"ε = {e:g}" for e in self.epsilons),
                    *self._any,
                    "cost",
                    "checks failed",
                ],
                lambda v: [
                    *(self.cell(v, name) for name in ("recall@20", "ndcg@20", "before")),
                    *(self.cell(v, f"random {epsilon:g} {STRONGEST}") for epsilon in self.epsilons),
                    *(self.cell(v, f"random any {STRONGEST}") for _ in self._any),
                    f"{float(self.costs[v]):.2f}" if v in self.costs else "",
                    self.count(v, "checks failed") if v in content else "",
                ],
            ),
            f"Hit@50 of random targets after each attack, ε = {largest:g} (`bound`: certificate of the same targets):",
            self.table(
                ["attack", *content],
                lambda name: [self.cell(v, f"random {largest:g} {name}").split(" ")[0] for v in content],
                [*self.attacks, "bound"],
            ),
        ]
        if len(self.plan.seeds) > 1:
            shown = {"Recall@20": "recall@20", "NDCG@20": "ndcg@20", "strongest": f"random {largest:g} {STRONGEST}"}
            if self._any:
                shown["strongest, any content"] = f"random any {STRONGEST}"
            shown[f"certified linf paper, ε = {self.epsilons[1]:g}"] = f"certified linf paper {self.epsilons[1]:g}"
            parts += [
                f"Differences to `uat`, seed by seed (`strongest` at ε = {largest:g}):",
                self.table(
                    ["defence", *shown],
                    lambda v: [self.difference(v, "uat", name) for name in shown.values()],
                    [v for v in content if v != "uat"],
                ),
                f"Cold and popular targets after the strongest attack, ε = {largest:g}:",
                self.table(
                    ["defence", "cold", "popular"],
                    lambda v: [self.cell(v, f"{name} {largest:g} {STRONGEST}") for name in ("cold", "popular")],
                    content,
                ),
                "Every attack at every ε (random targets, means):",
                self.table(
                    ["defence, attack", *(f"ε = {e:g}" for e in self.epsilons)],
                    lambda row: [
                        self.cell(row.split(", ")[0], f"random {epsilon:g} {row.split(', ')[1]}").split(" ")[0]
                        for epsilon in self.epsilons
                    ],
                    [f"{v}, {name}" for v in content for name in (*self.attacks, "bound")],
                ),
            ]
        if self.plan.certify:
            threats = (("linf", "paper"), ("l2", "training"))
            parts += [
                "Certified Hit@50: no perturbation within the budget passes it, mean over all items and users:",
                self.table(
                    ["defence", *(f"{norm} {budget}, ε = {e:g}" for norm, budget in threats for e in self.epsilons)],
                    lambda v: [
                        self.cell(v, f"certified {norm} {budget} {epsilon:g}")
                        for norm, budget in threats
                        for epsilon in self.epsilons
                    ],
                    content,
                ),
            ]
        if self.plan.certify and self._any:
            replaced = list(
                dict.fromkeys(name for name in self._found[content[0]][0] if name.startswith("certified any "))
            )
            parts += [
                "Any photo or text (no ε, any encoder): random targets after the strongest attack that replaces both, "
                "the bound of the same targets, and certified Hit@50 of all items and users by what is replaced:",
                self.table(
                    ["defence", "strongest", "bound", *(name.removeprefix("certified any ") for name in replaced)],
                    lambda v: [
                        self.cell(v, name) for name in (f"random any {STRONGEST}", "random any bound", *replaced)
                    ],
                    content,
                ),
            ]
        return "\n\n".join(parts)

    def write_csv(self) -> Path:
        names = list(dict.fromkeys(name for v in self.variants for found in self._found[v] for name in found))
        path = RESULTS.parent / f"defences-{self.plan.name}.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["defence", "seed", "figure", "value"])
            for variant in self.variants:
                for seed, found in zip(self.plan.seeds, self._found[variant], strict=True):
                    writer.writerows([variant, seed, name, f"{found[name]:.6g}"] for name in names if name in found)
        return path


def main() -> None:
    parser = document_parser(__doc__)
    parser.add_argument("plan", type=Path)
    parser.add_argument("--catalog", help="name of the one catalog of the plan to run")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at once")
    arguments = parser.parse_args()
    for plan in Plan.chosen(arguments.plan, arguments.catalog):
        make_all(plan, arguments.jobs)
        results = Results(plan)
        print(f"written: {results.write_csv()}\n\n{results.markdown()}", flush=True)
        if arguments.write is not None:
            replace_block(arguments.write, plan.name, results.markdown())


if __name__ == "__main__":
    main()
