"""Every content attack on every target, target by target, kept as they are done: content_attack.json.

Targets and anchors are drawn as those of feature-space attacks (evaluation/scenes.py). What counts is the file: the
changed photo is written, read back and encoded as the catalog's photos were.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from uatmc_dist.attacks.base import Targets
from uatmc_dist.config import AttackConfig, ContentAttackConfig
from uatmc_dist.content_attacks.drawn import Attacked, Drawn, check_alike, most_popular
from uatmc_dist.content_attacks.files import read_back
from uatmc_dist.content_attacks.kept import AS_COMPUTED, Kept, Record, changed_photo, key_of, photos_folder, save_photo
from uatmc_dist.content_attacks.photos import PhotoRows, as_photo
from uatmc_dist.content_attacks.pixels import LOSSES, Climb, Expa, Insa, Objective, PixelBall, best_climb, best_rows
from uatmc_dist.content_attacks.risen import edits_of, photo_size, risen, text_of
from uatmc_dist.content_attacks.texts import TextRows
from uatmc_dist.content_attacks.words import Judge, search, stuffed
from uatmc_dist.data.catalog import MODALITIES, Catalog
from uatmc_dist.encoders.cache import content_hash
from uatmc_dist.encoders.preprocessing import as_pixels
from uatmc_dist.seeding import generator

Rows = tuple[torch.Tensor, torch.Tensor]
_CLIMBS = ("pixels", "insa", "expa", "transfer")
ON_LINEAR_FUSION = ("insa",)
"""INSA's weights are those of users who do not move."""
MODALITIES_OF: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("pixels", "insa", "expa", "transfer", "copy_photo"), ("visual",)),
    **dict.fromkeys(("words", "stuffing", "copy_text"), ("text",)),
    "both": MODALITIES,
}


class _Stopped(Exception):
    """The command was interrupted; what this target would have become is not kept."""


@dataclass(frozen=True)
class _Job:
    seed: int
    index: int
    """Of the target in its scene."""
    item: int
    attack: str


class ContentAttacks:
    """Of one run. `folder` keeps what is done: records-KEY.jsonl, and the changed photos as PNG."""

    def __init__(
        self,
        attacked: Attacked,
        attack: AttackConfig,
        config: ContentAttackConfig,
        folder: Path,
        device: str = "auto",
        surrogate: Attacked | None = None,
    ) -> None:
        """`surrogate`: what the attacker of `transfer` sees instead. Raises UserError for a catalog without the photos
        or texts to attack, a surrogate with other users or items."""
        model, catalog = attacked.model, attacked.catalog
        self._config, self._folder, self._stopping = config, folder, threading.Event()
        touched = {modality for name in config.attacks for modality in MODALITIES_OF[name]}
        self._photos = PhotoRows(model, catalog, device) if "visual" in touched else None
        self._texts = TextRows(model, catalog, device) if "text" in touched else None
        drawn = attack.model_copy(update={"num_targets": config.num_targets})
        self._drawn = Drawn(attacked, drawn, config.seeds)
        self._surrogate: tuple[PhotoRows, Drawn] | None = None
        if surrogate is not None:
            check_alike(catalog, surrogate)
            rows = PhotoRows(surrogate.model, surrogate.catalog, device)
            self._surrogate = rows, Drawn(surrogate, drawn, config.seeds)
        self._popular = self._most_popular(catalog)
        self._key = key_of(config, attack, self._popular, [one for one in (attacked, surrogate) if one is not None])
        if self._texts is not None and "words" in config.attacks:
            _ = self._texts.vocabulary  # before there are threads

    def _most_popular(self, catalog: Catalog) -> dict[str, int]:
        """What is copied of each modality that is attacked."""
        found = {}
        if (photos := self._photos) is not None:
            found["visual"] = most_popular(catalog, "photo", lambda item: photos.path(item) is not None)
        if (texts := self._texts) is not None:
            found["text"] = most_popular(catalog, "text", lambda item: bool(texts.text(item)))
        return found

    @property
    def workers(self) -> int:
        return self._photos.workers if self._photos is not None else 1

    def run(self, progress: Callable[[int, int], None] = lambda done, total: None) -> list[Record]:
        """A record for each seed, attack, target, size and file; goes on where it was interrupted."""
        with closing(Kept(self._folder, self._key)) as kept:
            return self._run(kept, progress)

    def _run(self, kept: Kept, progress: Callable[[int, int], None]) -> list[Record]:
        jobs = [
            _Job(seed, index, item, attack)
            for seed, items in self._drawn.items.items()
            for attack in sorted(self._config.attacks, key=lambda name: name == "both")  # made of what others did
            for index, item in enumerate(items)
        ]
        missing = [job for job in jobs if (job.seed, job.attack, job.item) not in kept.done]
        done = len(jobs) - len(missing)
        progress(done, len(jobs))
        threads = {"initializer": torch.set_num_threads, "initargs": (1,)} if self.workers > 1 else {}
        pool = ThreadPoolExecutor(self.workers, **threads)
        try:
            for of_both in (False, True):
                some = [job for job in missing if (job.attack == "both") == of_both]
                for found in pool.map(lambda group: self._attack(group, kept), self._grouped(some)):
                    for records in found:
                        kept.add(records)
                        done += 1
                        progress(done, len(jobs))
        finally:  # Ctrl-C does not wait for the targets that are left
            self._stopping.set()
            pool.shutdown(cancel_futures=True)
            self._stopping.clear()
        wanted = {(job.seed, job.attack, job.item) for job in jobs}
        return [record for record in kept.records if (record["seed"], record["attack"], record["item"]) in wanted]

    def _grouped(self, jobs: list[_Job]) -> list[list[_Job]]:
        """What is attacked at once: as many photos as the encoder takes, anything else alone."""
        groups: list[list[_Job]] = []
        for job in jobs:
            most = self._photos.batch if self._photos is not None and job.attack in _CLIMBS else 1
            if groups and len(groups[-1]) < most and groups[-1][0].attack == job.attack:
                groups[-1].append(job)
            else:
                groups.append([job])
        return groups

    def _attack(self, jobs: list[_Job], kept: Kept) -> list[list[Record]]:
        """Of each job, all of one attack."""
        attack, modalities = jobs[0].attack, MODALITIES_OF[jobs[0].attack]
        targets = [self._drawn.target(job.seed, job.index) for job in jobs]
        bests = [best_rows(target, modalities) for target in targets]
        if attack in _CLIMBS:
            found = self._climbed(jobs, targets, bests)
        else:
            made = {"copy_photo": self._copied_photo, "both": self._both}.get(attack, self._words)
            found = [list(made(job, target, kept)) for job, target in zip(jobs, targets, strict=True)]
        return [
            [{**self._common(job, target, best), **one} for one in of_job or [{"size": None, "file": None}]]
            for job, target, best, of_job in zip(jobs, targets, bests, found, strict=True)
        ]  # without a file: nothing to change

    def _common(self, job: _Job, target: Targets, best: Rows) -> Record:
        return {
            "seed": job.seed,
            "attack": job.attack,
            "item": job.item,
            "before": self._drawn.won(job.seed, job.index, target.v_Td[0], target.t_Td[0]),
            "any_content": self._drawn.won(job.seed, job.index, *best),
            "any_content_bound": self._drawn.bound(job.seed, job.index, MODALITIES_OF[job.attack]),
        }

    def _copied_photo(self, job: _Job, target: Targets, kept: Kept) -> Iterator[Record]:
        assert self._photos is not None
        copied = self._photos.photo(self._popular["visual"])
        assert copied is not None
        yield {"size": None, **self._drawn.reached(job.seed, job.index, "png", v_d=self._photos.row_of(copied))}

    def _climbed(self, jobs: list[_Job], targets: list[Targets], bests: list[Rows]) -> list[list[Record]]:
        """Photos of several targets at once, for as many as the encoder takes."""
        rows, found = self._photos, [[] for _ in jobs]  # type: ignore[var-annotated]
        assert rows is not None
        photos = {index: photo for index, job in enumerate(jobs) if (photo := rows.photo(job.item)) is not None}
        pixels = [as_pixels(photo, rows.device) for photo in photos.values()]
        seen = rows if jobs[0].attack != "transfer" or self._surrogate is None else self._surrogate[0]
        # One of each kind for each photo.
        objectives = list(zip(*(self._objectives(jobs[i], targets[i], bests[i][0]) for i in photos), strict=True))
        deltas, before = [torch.zeros_like(photo_3hw) for photo_3hw in pixels], 0.0
        for size in self._config.pixels if photos else ():
            ball = PixelBall(size, self._config.norm)
            starts = [[delta_3hw * (size / before) if before else delta_3hw for delta_3hw in deltas]]
            for number in range(1, self._config.restarts):
                drawn = (generator(jobs[index].seed, jobs[index].item, number, round(1000 * size)) for index in photos)
                starts.append(list(map(ball.random, pixels, drawn)))
            tries = [list(map(Climb, pixels, kind, start)) for kind in objectives for start in starts]
            deltas, before = best_climb(seen, tries, ball, self._config.steps, self._stop_if_asked), size
            changed = [photo_3hw + delta_3hw for photo_3hw, delta_3hw in zip(pixels, deltas, strict=True)]
            with torch.no_grad():
                computed_nd = rows.rows(changed)[1].cpu()
            for index, changed_3hw, row_d in zip(photos, changed, computed_nd, strict=True):
                job, photo = jobs[index], as_photo(changed_3hw)
                files = {AS_COMPUTED: row_d}
                files |= {name: rows.row_of(read_back(photo, name)) for name in self._config.formats}
                for name, of_file_d in files.items():
                    found[index].append({"size": size, **self._drawn.reached(job.seed, job.index, name, v_d=of_file_d)})
                save_photo(photo, self._photo_file(job.seed, job.attack, job.item, size))
        return found

    def _stop_if_asked(self) -> None:
        if self._stopping.is_set():
            raise _Stopped

    def _photo_file(self, seed: int, attack: str, item: int, size: float) -> Path:
        return photos_folder(self._folder, self._key) / f"{attack}-{item}-{size:g}-seed{seed}.png"

    def _objectives(self, job: _Job, target: Targets, best_row_d: torch.Tensor) -> list[Objective]:
        """What the attack climbs, each for itself."""
        if job.attack == "insa":
            return [Insa(target)]
        if job.attack == "transfer":
            assert self._surrogate is not None
            target = self._surrogate[1].target(job.seed, job.index)
            best_row_d = best_rows(target, ("visual",))[0]
        if job.attack in ("pixels", "transfer"):
            return [LOSSES[name](target, best_row_d) for name in self._config.losses]
        assert self._photos is not None
        hook = self._photos.photo(self._popular["visual"])
        assert hook is not None
        with torch.no_grad():
            return [Expa(target, self._photos.rows([as_pixels(hook, self._photos.device)])[0][0])]

    def _words(self, job: _Job, target: Targets, kept: Kept) -> Iterator[Record]:
        rows = self._texts
        assert rows is not None
        popular = self._popular["text"]
        text, copied = rows.text(job.item), rows.text(popular)
        if job.attack == "copy_text":
            texts: dict[int | None, str] = {None: copied}
        elif job.attack == "stuffing":
            title = rows.titles[popular] or copied
            judge = Judge(target, rows)
            tried = {edits: stuffed(text, title, edits) for edits in self._config.edits}
            texts = {edits: max(zip(judge(both), both, strict=True))[1] for edits, both in tried.items()}
        elif not text:
            return
        else:
            allowed = rows.of_kind(job.item) if self._config.same_kind else torch.ones(len(rows.vocabulary[0])).bool()
            texts = {edits: found for edits, found in search(rows, target, text, self._config.edits, allowed).items()}
        for edits, changed in texts.items():
            (row_d,) = rows.rows_of([changed])
            yield {"size": edits, "text": changed, **self._drawn.reached(job.seed, job.index, "text", t_d=row_d)}

    def _both(self, job: _Job, target: Targets, kept: Kept) -> Iterator[Record]:
        """The photo of `pixels` and the text of `words`: the first size with the first number of edits and so on; the
        sizes that are left go with the last number. Who may change both may leave one of them alone."""
        assert self._photos is not None and self._texts is not None
        of_words = {r["size"]: r for r in kept.of(job.seed, "words", job.item) if r["file"] is not None}
        sizes, numbers = self._config.pixels, self._config.edits
        for place, size in enumerate(sizes):
            edits = numbers[min(place, len(numbers) - 1)]
            file = self._photo_file(job.seed, "pixels", job.item, size)
            if self._photos.path(job.item) is None or edits not in of_words:
                continue
            photo_d = self._photos.row_of(changed_photo(file))
            (text_d,) = self._texts.rows_of([of_words[edits]["text"]])
            tried = {None: (photo_d, text_d), "text": (photo_d, target.t_Td[0]), "photo": (target.v_Td[0], text_d)}
            made = [
                {"left_alone": left_alone, **self._drawn.reached(job.seed, job.index, "png", *rows)}
                for left_alone, rows in tried.items()
            ]
            yield {"size": size, "edits": edits, **max(made, key=lambda one: one["after"])}

    def risen(self, records: list[Record], most: int = 10) -> list[Record]:
        """The targets that rose most, with what was changed and the median anchor's rank before and after."""
        return [self._shown(record, text_of(record, records), photo_size(record)) for record in risen(records)[:most]]

    def _shown(self, record: Record, text: str | None, size: float | None) -> Record:
        item, index = record["item"], self._drawn.items[record["seed"]].index(record["item"])
        target = self._drawn.target(record["seed"], index)
        shown: Record = {name: record[name] for name in ("attack", "item", "before", "after")}
        v_d, t_d = target.v_Td[0], target.t_Td[0]
        if size is not None and self._photos is not None:
            file = self._photo_file(record["seed"], "pixels", item, size)
            v_d = self._photos.row_of(changed_photo(file))
            uploaded, changed = self._photos.path(item), file.relative_to(self._folder.parent)
            assert uploaded is not None
            shown |= {"photo_before": str(uploaded.resolve()), "photo_after": str(changed), "pixels": size}
            shown["photo_xxh3"] = content_hash(uploaded.read_bytes())
        if text is not None and self._texts is not None:
            (t_d,) = self._texts.rows_of([text])
            shown |= {"text_before": self._texts.text(item), "text_after": text, "edits": edits_of(record)}
        before, after = self._drawn.median_ranks(record["seed"], index, v_d, t_d)
        return shown | {"median_rank_before": before, "median_rank_after": after}
