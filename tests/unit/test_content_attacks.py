"""Attacks on pixels: the differentiable chain, the balls, the climb, and what breaks them."""

import difflib
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.unit.random_model import RandomModel, scene
from uatmc_dist.adversary.budget import AnyContent
from uatmc_dist.attacks.base import Targets
from uatmc_dist.config import AttackConfig, ContentAttackConfig
from uatmc_dist.content_attacks.calibration import calibrate
from uatmc_dist.content_attacks.files import read_back
from uatmc_dist.content_attacks.kept import Kept, key_of
from uatmc_dist.content_attacks.photos import as_photo
from uatmc_dist.content_attacks.pixels import (
    LOSSES,
    BestRow,
    Climb,
    Expa,
    Insa,
    PixelBall,
    best_climb,
    best_rows,
    climb,
)
from uatmc_dist.content_attacks.report import summarise
from uatmc_dist.content_attacks.risen import risen
from uatmc_dist.content_attacks.suite import ContentAttacks, _Job
from uatmc_dist.content_attacks.texts import _WORD
from uatmc_dist.content_attacks.words import Judge, search, stuffed
from uatmc_dist.encoders import visual
from uatmc_dist.encoders.preprocessing import Preprocessing, as_pixels
from uatmc_dist.errors import UserError

DIM = 6


def photo(seed: int, size: tuple[int, int]) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return small.resize(size[::-1], Image.Resampling.BICUBIC)


@pytest.mark.parametrize("filter_name", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(50, 70), (20, 24)])
def test_preprocessing_is_pillows_and_differentiable(filter_name, size):
    picture, resample = photo(1, size), Image.Resampling[filter_name.upper()]
    chain = Preprocessing((32, 32), (24, 24), filter_name, [100.0] * 3, [50.0] * 3)
    pixels = as_pixels(picture, torch.device("cpu")).requires_grad_()
    found = chain(pixels[None])[0]
    truth = np.asarray(picture.resize((32, 32), resample), dtype=np.float32)[4:28, 4:28]
    apart = (found.detach() * 50 + 100 - torch.from_numpy(truth).permute(2, 0, 1)).abs()
    assert apart.max() <= 2 and apart.mean() < 0.1  # Pillow's weights are fixed-point numbers
    (gradient,) = torch.autograd.grad(found.sum(), pixels)
    assert torch.isfinite(gradient).all() and (gradient != 0).double().mean() > 0.3


def test_preprocessing_of_each_librarys_configuration():
    timm = {
        "input_size": (3, 224, 224),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": [0.5] * 3,
        "std": [0.2] * 3,
    }
    found = Preprocessing.of_timm(timm)
    assert (found.resize, found.crop) == (256, (224, 224)) and found.std == [51.0] * 3
    squashed = Preprocessing.of_timm(timm | {"crop_mode": "squash"})
    assert (squashed.resize, squashed.crop) == ((224, 224), None)
    # 235 to 224 leaves 5.5, which torchvision rounds to 6.
    columns = torch.arange(235.0).expand(1, 3, 235, 235)
    cropped = Preprocessing(235, (224, 224), "bicubic", [0.0] * 3, [1.0] * 3)(columns)
    assert (cropped[0, 0, 0, 0], cropped[0, 0, 0, -1]) == (6, 229)
    processor = {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}, "do_center_crop": True}
    processor |= {"resample": 3, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "rescale_factor": 1 / 255}
    found = Preprocessing.of_transformers(processor)
    assert (found.resize, found.crop, found.interpolation) == (40, (32, 32), "bicubic")
    assert found(torch.zeros(1, 3, 60, 80)).shape == (1, 3, 32, 32)
    torch.testing.assert_close(found(torch.full((1, 3, 40, 40), 255.0)), torch.ones(1, 3, 32, 32))


@pytest.mark.parametrize("wrong", ["another mean", "another size", "unknown"])
def test_an_encoder_that_prepares_photos_otherwise_is_refused(monkeypatch, wrong):
    parts = visual._parts("efficientnet-lite0")
    known = parts.preprocessing()
    assert visual._differentiable("efficientnet-lite0", parts) == known
    otherwise = {
        "another mean": lambda: replace(known, mean=[120.0] * 3),
        "another size": lambda: replace(known, resize=(240, 240)),
        "unknown": lambda: {}["interpolation"],
    }
    with pytest.raises(UserError, match="in a way that pixels cannot be attacked through"):
        visual._differentiable("any", parts._replace(preprocessing=otherwise[wrong]))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_change_stays_in_its_ball_and_in_what_pixels_can_be(norm):
    ball, generator = PixelBall(4.0, norm), torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (3, 9, 7), generator=generator).float()
    delta = ball.project(50 * torch.randn(3, 9, 7, generator=generator), pixels)
    assert (pixels + delta).min() >= 0 and (pixels + delta).max() <= 255
    size = delta.abs().max() if norm == "linf" else delta.square().mean().sqrt()
    assert size <= 4.0001 and torch.equal(ball.project(torch.zeros(3, 9, 7), pixels), torch.zeros(3, 9, 7))
    step = ball.direction(torch.randn(3, 9, 7, generator=generator))
    assert float(step.abs().max() if norm == "linf" else step.square().mean().sqrt()) == pytest.approx(1.0)


class LinearRows:
    """Photos whose features are a random linear map of the means of 4 x 5 parts, so many pixels as most of them have;
    the chain may be broken on purpose."""

    def __init__(self, sign: float = 1.0, blind: bool = False, reversed_channels: bool = False, seed: int = 1) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._map = torch.randn(60, DIM, generator=generator) / 60**0.5
        self._sign, self._blind, self._reversed = sign, blind, reversed_channels

    def rows(self, photos):
        pixels = torch.stack(list(photos)) / 255 - 0.5
        if self._reversed:
            pixels = pixels.flip(1)
        if self._sign < 0:
            pixels = 2 * pixels.detach() - pixels  # the same value, the opposite gradient
        if self._blind:
            pixels = pixels.detach() + 0 * pixels
        features = torch.nn.functional.adaptive_avg_pool2d(pixels, (4, 5)).flatten(1) @ self._map
        return features, torch.nn.functional.normalize(features, dim=1)


def target_of(rows: LinearRows, pixels: torch.Tensor) -> Targets:
    model = RandomModel(300, 50, DIM)
    model.v_Nd[0] = rows.rows([pixels])[1][0]
    return scene(model, 5).targets.chosen(torch.tensor([0]))


def ours_of(target: Targets) -> BestRow:
    return BestRow(target, best_rows(target, ("visual",))[0])


def reached(
    rows: LinearRows, objective_of, size: float = 24.0, norm: str = "linf", judge: LinearRows | None = None
) -> tuple[float, float, float]:
    """(hits before, after, of the best row); after by the honest chain, or by another one."""
    honest = LinearRows()
    pixels = torch.full((3, 4, 5), 128.0) + 40 * torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(2))
    target = target_of(honest, pixels)
    objective = objective_of(target)
    climbs = [Climb(pixels, objective, torch.zeros_like(pixels))]
    (delta,) = best_climb(rows, [climbs], PixelBall(size, norm), 20)  # type: ignore[arg-type]
    row = (judge or honest).rows([pixels + delta])[1][0]
    zeros = torch.zeros_like(target.t_Td)
    best = best_rows(target, ("visual",))[0]
    hits = [float(target.hits((one - target.v_Td, zeros))) for one in (target.v_Td, row[None], best[None])]
    return hits[0], hits[1], hits[2]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pixels_reach_nearly_what_any_content_can(norm):
    before, after, best = reached(LinearRows(), ours_of, size=60.0, norm=norm)
    assert after >= 0.8 * best > before


def test_photos_that_climb_together_climb_as_each_alone():
    rows, generator = LinearRows(), torch.Generator().manual_seed(4)
    photos = [128 + 40 * torch.randn(3, 4, 5, generator=generator) for _ in range(3)]
    climbs = [Climb(photo, ours_of(target_of(rows, photo)), torch.zeros_like(photo)) for photo in photos]
    together = climb(rows, climbs, PixelBall(8.0, "linf"), 6)  # type: ignore[arg-type]
    alone = [climb(rows, [one], PixelBall(8.0, "linf"), 6)[0] for one in climbs]  # type: ignore[arg-type]
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one.delta_3hw, other.delta_3hw)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_climbs(name):
    before, after, best = reached(
        LinearRows(), lambda target: LOSSES[name](target, best_rows(target, ("visual",))[0]), size=60.0
    )
    assert after > before and after >= (0.8 if name == "best_row" else 0.3) * best


def test_of_several_tries_each_photo_keeps_its_best():
    rows, generator = LinearRows(), torch.Generator().manual_seed(4)
    photos = [128 + 40 * torch.randn(3, 4, 5, generator=generator) for _ in range(3)]
    targets, ball = [target_of(rows, photo) for photo in photos], PixelBall(8.0, "linf")
    starts = [ball.random(photo, generator) for photo in photos]
    assert all(float(start.abs().max()) == pytest.approx(8.0, abs=1e-4) for start in starts)
    tries = [
        [Climb(*one) for one in zip(photos, map(ours_of, targets), starts, strict=True)],
        [Climb(photo, Insa(target), torch.zeros_like(photo)) for photo, target in zip(photos, targets, strict=True)],
    ]
    each = [climb(rows, climbs, ball, 6) for climbs in tries]  # type: ignore[arg-type]
    kept = best_climb(rows, tries, ball, 6)  # type: ignore[arg-type]
    for found, first, second in zip(kept, *each, strict=True):
        torch.testing.assert_close(found, (first if first.won >= second.won else second).delta_3hw)


def test_as_many_photos_go_together_as_the_encoder_takes():
    content = object.__new__(ContentAttacks)
    content._photos = SimpleNamespace(batch=3)  # type: ignore[assignment]
    names = ["pixels"] * 5 + ["insa"] + ["words"] * 2
    groups = content._grouped([_Job(1, index, index, name) for index, name in enumerate(names)])
    assert [len(group) for group in groups] == [3, 2, 1, 1, 1]
    assert [job.index for group in groups for job in group] == list(range(8))


def test_attacks_of_the_literature_find_less_or_as_much():
    before, ours, _ = reached(LinearRows(), ours_of)
    _, insa, _ = reached(LinearRows(), Insa)
    _, expa, _ = reached(LinearRows(), lambda target: Expa(target, torch.randn(DIM)))
    assert before < insa <= ours + 0.02 and expa <= ours


@pytest.mark.parametrize("broken", [{"sign": -1.0}, {"blind": True}])
def test_a_broken_chain_is_caught_by_the_checks(broken):
    found = {}
    for name, rows in (("whole", LinearRows()), ("broken", LinearRows(**broken))):
        before, after, best = reached(rows, ours_of, size=60.0)
        record = {"seed": 1, "attack": "pixels", "item": 0, "before": before, "after": after, "any_content": best}
        record |= {"size": 60.0, "any_content_bound": 1.0, "moved": {"visual_l2": 1.0}}
        records = [record | {"file": file} for file in ("as computed", "png")]
        report = summarise(records, ContentAttackConfig(attacks=["pixels"], pixels=[60.0]), 5)
        found[name] = {check["check"]: check["passed"] for check in report["checks"]}
    assert found["whole"]["pixels_reach_what_any_photo_can"] is True
    assert found["broken"]["pixels_reach_what_any_photo_can"] is False


def test_a_chain_that_prepares_photos_otherwise_is_caught_by_the_checks():
    found = {}
    for name, rows in (("whole", LinearRows()), ("wrong", LinearRows(reversed_channels=True))):
        before, png, best = reached(rows, ours_of, size=60.0)
        computed = reached(rows, ours_of, size=60.0, judge=rows)[1]
        record = {"seed": 1, "attack": "pixels", "item": 0, "before": before, "any_content": best}
        record |= {"size": 60.0, "any_content_bound": 1.0, "moved": {"visual_l2": 1.0}}
        records = [record | {"file": "as computed", "after": computed}, record | {"file": "png", "after": png}]
        report = summarise(records, ContentAttackConfig(attacks=["pixels"], pixels=[60.0]), 5)
        found[name] = {check["check"]: check["passed"] for check in report["checks"]}
    assert found["whole"]["the_file_is_what_was_computed"] is True
    assert found["wrong"]["the_file_is_what_was_computed"] is False


@settings(max_examples=25)
@given(
    seed=st.integers(0, 1000),
    scale=st.sampled_from([0.1, 1.0, 10.0]),
    norm=st.sampled_from(["linf", "l2"]),
    size=st.sampled_from([1.0, 8.0, 60.0]),
    file=st.sampled_from(["png", "jpeg95", "jpeg75", "webp"]),
)
def test_no_file_passes_the_certificate(seed, scale, norm, size, file):
    """Of random models: changed photos as they are read back, changed words, and both."""
    rows, words, uploaded = LinearRows(seed=seed), WordRows(), photo(seed, (16, 20))
    pixels, text = as_pixels(uploaded, torch.device("cpu")), "af bg ch"
    model = RandomModel(60, 30, DIM, seed, scale)
    model.v_Nd[0], model.t_Nd[0] = rows.rows([pixels])[1][0], words.rows_of([text])[0]
    drawn = scene(model, 5).alone(0)
    ball, objective = PixelBall(size, norm), ours_of(drawn.targets)
    (delta,) = best_climb(rows, [[Climb(pixels, objective, torch.zeros_like(pixels))]], ball, 6)  # type: ignore[arg-type]
    written = as_pixels(read_back(as_photo(pixels + delta), file), torch.device("cpu"))
    edited = search(words, drawn.targets, text, [1, 2], torch.ones(len(words.words)).bool())[2]  # type: ignore[arg-type]
    moved = rows.rows([written])[1] - drawn.targets.v_Td, words.rows_of([edited]) - drawn.targets.t_Td
    stays = torch.zeros_like(moved[0])
    for modalities, deltas in (
        (("visual",), (moved[0], stays)), (("text",), (stays, moved[1])), (("visual", "text"), moved)
    ):  # fmt: skip
        reached_T = drawn.hits(drawn.moved(deltas, AnyContent()))
        assert (reached_T <= drawn.certified_hits(AnyContent(), modalities)).all()


def test_other_preprocessing_than_the_catalogs_and_a_broken_certificate_are_caught():
    record = {"seed": 1, "attack": "pixels", "item": 0, "before": 0.01, "any_content": 0.1, "any_content_bound": 0.5}
    record |= {"size": 8.0, "moved": {"visual_l2": 1.0}}
    config = ContentAttackConfig(attacks=["pixels"], pixels=[8.0])
    passed = lambda after, png: {  # noqa: E731
        check["check"]: check["passed"]
        for check in summarise(
            [record | {"file": "as computed", "after": after}, record | {"file": "png", "after": png}], config, 5
        )["checks"]
    }
    assert all(passed(0.09, 0.09).values())
    assert passed(0.09, 0.02)["the_file_is_what_was_computed"] is False
    assert passed(0.6, 0.6)["never_above_certificate"] is False
    # Nothing was reached, though most of the hits were there before.
    record |= {"before": 0.09}
    assert passed(0.09, 0.09)["pixels_reach_what_any_photo_can"] is False
    record |= {"before": 0.099}
    assert passed(0.099, 0.099)["pixels_reach_what_any_photo_can"] is None


def test_files_are_read_back_as_the_catalog_would():
    picture = photo(3, (40, 30))
    assert np.array_equal(np.asarray(read_back(picture, "png")), np.asarray(picture))
    for name in ("jpeg95", "jpeg75", "webp"):
        again = np.asarray(read_back(picture, name), dtype=float)
        assert again.shape == (40, 30, 3) and 0 < np.abs(again - np.asarray(picture)).mean() < 10
    pixels = as_pixels(picture, torch.device("cpu"))
    assert np.array_equal(np.asarray(as_photo(pixels + 0.3)), np.asarray(picture))
    with pytest.raises(UserError, match="webp cannot hold a photo of 16400 x 2 pixels"):
        read_back(Image.new("RGB", (16400, 2)), "webp")


def test_words_of_every_script_that_has_them():
    assert _WORD.findall("t-shirt 100% cotton_mix, caf\u00e9 cafe\u0301") == [
        "shirt",
        "cotton",
        "mix",
        "caf\u00e9",
        "cafe\u0301",
    ]
    assert _WORD.findall("\u0939\u093f\u0928\u094d\u0926\u0940 \u0915\u092a\u0921\u093c\u093e") == [
        "\u0939\u093f\u0928\u094d\u0926\u0940",
        "\u0915\u092a\u0921\u093c\u093e",
    ]


def test_the_gallery_has_each_targets_best_file():
    record = lambda attack, item, after, file: {  # noqa: E731
        "seed": 1, "attack": attack, "item": item, "before": 0.1, "after": after, "file": file, "size": 1
    }  # fmt: skip
    records = [record("both", 1, 0.3, "png"), record("pixels", 1, 0.3, "png"), record("pixels", 2, 0.5, "png")]
    records += [record("pixels", 2, 0.9, "jpeg95"), record("words", 3, 0.2, "text"), record("words", 1, 0.4, "text")]
    found = [(one["item"], one["attack"], one["after"]) for one in risen(records)]
    assert found == [(2, "pixels", 0.5), (1, "words", 0.4), (3, "words", 0.2)]
    without_png = [record("pixels", 2, 0.9, "jpeg95"), record("pixels", 2, 0.95, "as computed")]
    assert [one["file"] for one in risen(without_png)] == ["jpeg95"]


class WordRows:
    """Texts whose features are the mean of their words' embeddings; gradients are exact then."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(4)
        self.words = [f"{a}{b}" for a in "abcde" for b in "fghij"]
        self._embeddings = torch.randn(len(self.words), DIM, generator=generator)
        self.vocabulary = self.words, self._embeddings

    def embedding(self, word: str) -> torch.Tensor:
        return self._embeddings[self.words.index(word)] if word in self.words else torch.zeros(DIM)

    def rows_of(self, texts):
        means = [torch.stack([self.embedding(word) for word in text.split()]).mean(0) for text in texts]
        return torch.nn.functional.normalize(torch.stack(means), dim=1)

    rough_rows_of = rows_of

    def gradient(self, words, towards):
        leaf = torch.stack([self.embedding(word) for word in words]).requires_grad_()
        row = torch.nn.functional.normalize(leaf.mean(0), dim=0)
        return torch.autograd.grad(row, leaf, towards(row.detach()))[0]


def test_edited_words_climb_with_the_edits_and_stay_within_them():
    rows = WordRows()
    model, text = RandomModel(300, 50, DIM), " ".join(rows.words[:5])
    model.t_Nd[0] = rows.rows_of([text])[0]
    target = scene(model, 5).targets.chosen(torch.tensor([0]))
    judge = Judge(target, rows)  # type: ignore[arg-type]
    everything = torch.ones(25, dtype=torch.bool)
    found = search(rows, target, text, [1, 2, 4], everything, judge=judge)  # type: ignore[arg-type]
    scores = [judge([one])[0] for one in (text, *found.values())]
    assert scores == sorted(scores) and scores[1] > scores[0]
    for edits, changed in found.items():
        matcher = difflib.SequenceMatcher(a=text.split(), b=changed.split(), autojunk=False)
        touched = sum(max(i2 - i1, j2 - j1) for kind, i1, i2, j1, j2 in matcher.get_opcodes() if kind != "equal")
        assert touched <= edits
    few = everything & (torch.arange(25) < 8)
    changed = search(rows, target, text, [3], few, judge=judge)[3]  # type: ignore[arg-type]
    assert set(changed.split()) <= {*rows.words[:8]}
    assert stuffed("a red coat", "Blue Wool Hat", 2) == ("Blue Wool a red coat", "a red coat Blue Wool")


def test_a_modality_whose_smallest_changes_were_not_measured_counts_with_larger_ones():
    def record(attack, size, moved, share=0.05, bound=0.9):
        modality = "visual" if attack == "pixels" else "text"
        moved = {f"{modality}_{norm}": moved for norm in ("l2", "linf")}
        return {
            "attack": attack, "size": size, "file": "png", "seed": 1, "item": 1, "before": 0.1,
            "after": 0.1 + share * 0.4, "any_content": 0.5, "any_content_bound": bound, "moved": moved,
        }  # fmt: skip

    words, large, small = record("words", 1, 0.2), record("pixels", 4, 0.6), record("pixels", 1, 0.3)
    alone = calibrate([words, large], 50)["recommended"]
    assert alone["options"]["epsilon"] == 0.6 and "pixels of 4" in alone["why"]
    assert (alone["options"]["visual_weight"], alone["options"]["text_weight"]) == (1.0, 0.34)
    both = calibrate([words, large, small, record("pixels", 0.5, 0.1)], 50)["recommended"]
    assert both["options"]["epsilon"] == 0.3 and "may be seen" not in both["why"]
    assert "visual_weight" not in calibrate([words], 50)["recommended"]["options"]
    assert both["options"]["norm"] == "l2"
    many = [record("pixels", 1, 0.01 * number) | {"item": number} for number in range(1, 13)]
    (entry,) = calibrate(many, 50)["sizes"]
    assert entry["epsilon"]["l2"] == 0.12  # 11 of 12 are not 95 %
    worse = [record("pixels", 1, 1.2, -0.1), record("words", 1, 1.2, -0.3)]
    weights = calibrate(worse, 50)["recommended"]["options"]
    assert weights["visual_weight"] == weights["text_weight"] == 0.05
    for bound, adversary in ((0.9, "certified"), (None, "uat")):  # MMGCN has no certificate to train
        options = calibrate([record("pixels", 1, 1.2, 0.8, bound)], 50)["recommended"]["options"]
        assert (options["budget"], options["adversary"]) == ("any_content", adversary)


def test_what_is_kept_goes_by_all_that_it_depends_on():
    def key(attack=None, popular=3, digest="one", model="a", **options):
        seen = [SimpleNamespace(catalog=SimpleNamespace(digest=digest), digest=model)]
        return key_of(ContentAttackConfig(**options), attack or AttackConfig(), {"visual": popular}, seen)  # type: ignore[arg-type]

    keys = [key(), key(AttackConfig(anchor_share=0.1)), key(AttackConfig(k=7)), key(popular=4), key(digest="other")]
    keys += [key(model="b"), key(steps=3), key(losses=["soft_rank"])]
    assert len(set(keys)) == len(keys) and key() == key(seeds=[4]) == key(attacks=["pixels"])


def test_what_is_kept_is_written_by_one_process_and_counts_once(tmp_path):
    record = {"seed": 1, "attack": "words", "item": 4, "file": "text", "after": 0.3}
    kept = Kept(tmp_path, "key")
    kept.add([record, {**record, "size": 2}])
    with pytest.raises(UserError, match="another process"):
        Kept(tmp_path, "key")
    kept.close()
    with (tmp_path / "records-key.jsonl").open("ab") as file:
        for line in (json.dumps([record]), '{"a": 1}', "3", '[{"seed": 1}]', "[]", '[{"seed": 1, "attack'):
            file.write(b"\n" + line.encode())
        file.write(b"\n\xff\xfe\n")
    again = Kept(tmp_path, "key")
    assert again.records == kept.records and again.done == {(1, "words", 4)}
    again.close()
