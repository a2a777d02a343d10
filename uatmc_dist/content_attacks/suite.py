"""Every content attack on every target, target by target, kept as they are done: content_attack.json.

Targets and anchors are drawn as those of feature-space attacks (evaluation/scenes.py). What counts is the file: the
changed photo is written, read back and encoded as the catalog's photos were.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from uatmc_dist.adversary.budget import AnyContent
from uatmc_dist.attacks.base import best_of
from uatmc_dist.attacks.single_modality import visual_only
from uatmc_dist.config import AttackConfig, ContentAttackConfig
from uatmc_dist.content_attacks.files import read_back
from uatmc_dist.content_attacks.photos import PhotoRows, as_photo, as_pixels
from uatmc_dist.content_attacks.pixels import Expa, Insa, Objective, PixelBall, Rank, climb, single
from uatmc_dist.data.catalog import Catalog
from uatmc_dist.errors import UserError
from uatmc_dist.evaluation.scenes import Bars, Scene, draw_ids, strata
from uatmc_dist.evaluation.stage import lengths
from uatmc_dist.models.linear_model import LinearModel
from uatmc_dist.seeding import generator

Record = dict[str, Any]
AS_COMPUTED = "as computed"
"""The changed pixels themselves, before they are rounded and written."""


@dataclass(frozen=True)
class _Job:
    seed: int
    index: int
    """Of the target in its scene."""
    item: int
    attack: str


class ContentAttacks:
    """Of one run. `folder` keeps what is done: records.jsonl, and the changed photos as PNG."""

    def __init__(
        self,
        model: LinearModel,
        catalog: Catalog,
        attack: AttackConfig,
        config: ContentAttackConfig,
        folder: Path,
        device: str = "auto",
    ) -> None:
        """Raises UserError for a model or a catalog without photos, or without linear fusion."""
        if not model.is_linear:
            raise UserError("attacks on files need linear fusion; `uatmc attack` replaces rows by any others instead")
        self._config, self._folder = config, folder
        self._rows = PhotoRows(model, catalog, device)
        self._model, self._k = model, attack.k
        self._scenes = dict(self._drawn(catalog, attack.model_copy(update={"num_targets": config.num_targets})))
        self._popular = self._most_popular(catalog)

    def _drawn(self, catalog: Catalog, attack: AttackConfig) -> Iterator[tuple[int, tuple[Scene, torch.Tensor]]]:
        bars = Bars.of(self._model, lengths(self._k, len(self._model.identity_Nd)))
        for seed in self._config.seeds:
            items, anchors = draw_ids(attack, seed, "random", strata(catalog)["random"], catalog.num_users)
            yield seed, (Scene.draw(self._model, bars, self._k, items, anchors, None), items)

    def _most_popular(self, catalog: Catalog) -> int:
        """Of the items with a photo."""
        counts = np.bincount(catalog.split("train")[1], minlength=catalog.num_items)
        with_photo = [item for item in np.argsort(-counts, kind="stable").tolist() if self._rows.path(item) is not None]
        if not with_photo:
            raise UserError("no item has a photo, so there is nothing to attack")
        return with_photo[0]

    def run(self, progress: Callable[[int, int], None] = lambda done, total: None) -> list[Record]:
        """A record for each seed, attack, target and size; goes on where it was interrupted."""
        kept = _Kept(self._folder, self._key())
        jobs = [
            _Job(seed, index, int(item), attack)
            for seed, (_, items) in self._scenes.items()
            for attack in self._config.attacks
            for index, item in enumerate(items)
        ]
        missing = [job for job in jobs if (job.seed, job.attack, job.item) not in kept.done]
        progress(len(jobs) - len(missing), len(jobs))
        threads = {"initializer": torch.set_num_threads, "initargs": (1,)} if self._rows.workers > 1 else {}
        with ThreadPoolExecutor(self._rows.workers, **threads) as pool:
            for done, records in enumerate(pool.map(self._attack, missing), start=len(jobs) - len(missing) + 1):
                kept.add(records)
                progress(done, len(jobs))
        wanted = {(job.seed, job.attack, job.item) for job in jobs}
        return [record for record in kept.records if (record["seed"], record["attack"], record["item"]) in wanted]

    def _key(self) -> str:
        """Of what a record depends on besides its target and attack."""
        options = self._config.model_dump(mode="json", exclude={"attacks", "seeds"})
        weights = [self._model.users_UK.double().sum(), self._model.items().double().abs().sum()]
        words = json.dumps([options, self._k, [float(weight) for weight in weights]])
        return hashlib.sha256(words.encode()).hexdigest()[:16]

    def _attack(self, job: _Job) -> list[Record]:
        scene, _ = self._scenes[job.seed]
        target, photo = single(scene.targets, job.index), self._rows.photo(job.item)
        bound = float(scene.certified_hits(AnyContent(), ("visual",))[job.index])
        common = {"seed": job.seed, "attack": job.attack, "item": job.item, "before": self._judged(job, target.v_Td[0])}
        common |= {"any_photo": self._any_photo(job, target), "any_photo_bound": bound}
        if job.attack == "copy_photo":
            copied = self._rows.photo(self._popular)
            assert copied is not None
            return [common | {"size": None, **self._figures(job, target, self._rows.row_of(copied), "png")}]
        if photo is None:
            return [common | {"size": None, "file": None}]  # nothing to change
        pixels = as_pixels(photo, self._rows.device)
        objective = self._objective(job.attack, target)
        delta, before, found = torch.zeros_like(pixels), 0.0, []
        for size in self._config.pixels:
            start = delta * (size / before) if before else delta
            delta, before = (
                climb(self._rows, pixels, PixelBall(size, self._config.norm), objective, self._config.steps, start),
                size,
            )
            changed = as_photo(pixels + delta)
            with torch.no_grad():
                row = self._rows.rows((pixels + delta)[None])[1][0].cpu()
            found.append(common | {"size": size, **self._figures(job, target, row, AS_COMPUTED)})
            for name in self._config.formats:
                row = self._rows.row_of(read_back(changed, name))
                found.append(common | {"size": size, **self._figures(job, target, row, name)})
            photos = self._folder / "photos"
            photos.mkdir(parents=True, exist_ok=True)
            changed.save(photos / f"{job.attack}-{job.item}-{size:g}.png")
        return found

    def _objective(self, attack: str, target: Any) -> Objective:
        if attack == "pixels":
            return Rank(target)
        if attack == "insa":
            return Insa(target)
        hook = self._rows.photo(self._popular)
        assert hook is not None
        with torch.no_grad():
            return Expa(target, self._rows.rows(as_pixels(hook, self._rows.device)[None])[0][0])

    def _judged(self, job: _Job, row_d: torch.Tensor) -> float:
        """Exact share of anchors won with this visual row, the text as it is."""
        scene, _ = self._scenes[job.seed]
        deltas = torch.zeros_like(scene.targets.v_Td), torch.zeros_like(scene.targets.t_Td)
        deltas[0][job.index] = row_d - scene.targets.v_Td[job.index]
        alone = Scene(single(scene.targets, job.index), scene.clean_TK[job.index : job.index + 1], scene.bars, scene.k)
        one = slice(job.index, job.index + 1)
        return float(alone.hits(alone.moved((deltas[0][one], deltas[1][one]), AnyContent())))

    def _any_photo(self, job: _Job, target: Any) -> float:
        """What the best row of length 1 reaches: any photo at all."""
        delta_v, _ = best_of(target, visual_only(15)(target, AnyContent(), generator(0)))
        return self._judged(job, (target.v_Td + delta_v)[0])

    def _figures(self, job: _Job, target: Any, row_d: torch.Tensor, file: str) -> Record:
        delta_d = row_d - target.v_Td[0]
        length = max(float(target.v_Td[0].norm()), 1e-12)
        return {
            "file": file,
            "after": self._judged(job, row_d),
            "moved_l2": float(delta_d.norm()) / length,
            "moved_linf": float(delta_d.abs().max()) / length,
        }


class _Kept:
    """Records on disk, a line each; those of other options are left alone."""

    def __init__(self, folder: Path, key: str) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder}: cannot be written ({error.strerror}); free space") from None
        self._path = folder / f"records-{key}.jsonl"
        lines = self._path.read_text(encoding="utf-8").splitlines() if self._path.exists() else []
        whole = [line for line in lines if _is_json(line)]
        if len(whole) < len(lines):  # interrupted in the middle of one
            self._path.write_text("".join(f"{line}\n" for line in whole), encoding="utf-8")
        self.records: list[Record] = [record for line in whole for record in json.loads(line)]
        self.done = {(record["seed"], record["attack"], record["item"]) for record in self.records}

    def add(self, records: list[Record]) -> None:
        """Of one target: a line."""
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(records) + "\n")
        except OSError as error:
            raise UserError(f"{self._path}: cannot be written ({error.strerror}); free space") from None
        self.records += records


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
