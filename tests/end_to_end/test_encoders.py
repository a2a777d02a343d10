"""Real encoders on the CPU: the defaults, whose weights come with pip, and folders of others; no network."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import run_uatmc
from tests.unit import shop
from uatmc_dist.data.catalog import Catalog
from uatmc_dist.encoders.photos import open_photo
from uatmc_dist.encoders.text import open_text_encoder
from uatmc_dist.encoders.visual import PixelEncoder, open_visual_encoder
from uatmc_dist.errors import UserError

REAL = Path(__file__).parents[3] / "shared/data/hmfashion"


@pytest.fixture(scope="module")
def visual():
    return open_visual_encoder("efficientnet-lite0", "cpu")


@pytest.fixture(scope="module")
def text():
    return open_text_encoder("all-MiniLM-L6-v2", "cpu")


def photo(seed: int, size: tuple[int, int] = (40, 60)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def test_an_item_is_encoded_to_the_bit_whatever_else_is(visual, text):
    assert visual.batch == text.batch == 1
    alone, again = visual.encode([photo(1)]), [visual.encode([photo(seed)]) for seed in (2, 1)][1]
    assert alone.shape == (1, 1280) and torch.equal(alone, again)
    long, short = "a red coat " * 40, "a hat"
    assert torch.equal(text.encode([short]), [text.encode([each]) for each in (long, short)][1])
    reopened = open_visual_encoder("efficientnet-lite0", "cpu")
    assert reopened.record == visual.record and torch.equal(reopened.encode([photo(1)]), alone)


def test_the_record_says_how(visual, text):
    for encoder in (visual, text):
        record = json.loads(json.dumps(encoder.record))
        assert len(record["weights_sha256"]) == 64 and record["torch"] == torch.__version__
        assert record["library"].split()[1][0].isdigit() and record["preprocessing"]


def test_smoothing_is_the_mean_over_noise_and_differentiable(visual):
    smoothed = open_visual_encoder("smooth:8:efficientnet-lite0", "cpu")
    once, twice = smoothed.encode([photo(1)]), smoothed.encode([photo(1)])
    assert torch.equal(once, twice) and not torch.equal(once, visual.encode([photo(1)]))
    assert smoothed.record["preprocessing"]["smoothing"] == {"sigma": 8.0, "copies": 4}
    pixels = torch.from_numpy(np.array(photo(1))).permute(2, 0, 1)[None].float().requires_grad_()
    features = PixelEncoder("smooth:8:efficientnet-lite0", "cpu")([*pixels])
    torch.testing.assert_close(features, once, rtol=0.02, atol=0.02)
    (gradient,) = torch.autograd.grad(features.square().sum(), pixels)
    assert gradient.abs().sum() > 0
    barely = open_visual_encoder("smooth:1e-6:efficientnet-lite0", "cpu").encode([photo(1)])
    torch.testing.assert_close(barely, visual.encode([photo(1)]), rtol=1e-3, atol=1e-4)


def test_near_texts_are_near(text):
    cotton, shirt, drill = (text.encode([each])[0] for each in ("a cotton shirt", "a shirt of cotton", "a power drill"))
    assert float(cotton @ shirt) > 0.8 > 0.4 > float(cotton @ drill)


def test_a_folder_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    torch.manual_seed(0)
    config = transformers.ViTConfig(**sizes, image_size=32, patch_size=16)
    transformers.ViTModel(config).save_pretrained(tmp_path)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    encoder = open_visual_encoder(str(tmp_path), "cpu")
    features = encoder.encode([photo(1), photo(2)])
    assert features.shape == (2, 16) and not torch.equal(features[0], features[1])
    assert encoder.record["preprocessing"]["size"] == {"height": 32, "width": 32}


@pytest.mark.parametrize(
    "opened, name, expected",
    [
        (open_visual_encoder, "nobody/nothing", "--visual-encoder nobody/nothing: cannot be loaded"),
        (open_visual_encoder, "timm:nothing", "--visual-encoder timm:nothing: "),
        (open_visual_encoder, "open_clip:ViT-B-32", "--visual-encoder open_clip:ViT-B-32: "),
        (open_visual_encoder, "smooth:efficientnet-lite0", "--visual-encoder smooth:efficientnet-lite0: write smooth:"),
        (open_visual_encoder, "smooth:0:efficientnet-lite0", "--visual-encoder smooth:0:efficientnet-lite0: write"),
        (open_visual_encoder, "smooth:8:nobody/nothing", "--visual-encoder nobody/nothing: cannot be loaded"),
        (open_text_encoder, "nobody/nothing", "--text-encoder nobody/nothing: cannot be loaded"),
        (open_text_encoder, "/nowhere", "--text-encoder /nowhere: cannot be loaded"),
    ],
)
def test_what_cannot_be_had_is_one_line(opened, name, expected):
    with pytest.raises(UserError) as error:
        opened(name, "cpu")
    assert str(error.value).startswith(expected) and "\n" not in str(error.value)


def test_a_device_that_is_not_there_is_one_line():
    with pytest.raises(UserError, match="--device tpu: auto, cpu or cuda"):
        open_visual_encoder("efficientnet-lite0", "tpu")


def test_the_command(tmp_path):
    files = shop.write_shop(tmp_path / "shop")
    next(files["photos"].rglob("0103*")).write_text("no photo")
    arguments = [f"--{name}={path}" for name, path in files.items()]
    done = run_uatmc("data", "build", tmp_path / "out", *arguments)
    assert "broken photo, a row of zeros instead" in done.stdout
    assert f"{tmp_path / 'out'}: 12 users, 9 items, 48 train, 12 valid, 12 test interactions" in done.stdout
    catalog = Catalog(tmp_path / "out")
    assert {name: features.width for name, features in catalog.features.items()} == {"visual": 1280, "text": 384}
    described = run_uatmc("data", "describe", tmp_path / "out").stdout
    assert "broken photos" in described and "efficientnet-lite0" in described
    again = run_uatmc("data", "build", tmp_path / "out", *arguments, check=False)
    assert again.returncode == 2 and "holds a catalog already" in again.stderr and again.stderr.count("\n") == 1
    missing = run_uatmc("data", "build", tmp_path / "x", "--interactions", "/nowhere.csv", check=False)
    assert missing.returncode == 2 and missing.stderr.count("\n") == 1


@pytest.mark.skipif(not REAL.exists(), reason=f"{REAL} is not there")
def test_real_photos_and_texts_are_as_near_as_their_files_allow(visual, text):
    with (REAL / "item_text.csv").open(encoding="utf-8") as file:
        rows = [row for row, _ in zip(csv.DictReader(file), range(6), strict=False)]
    given = {
        name: np.load(REAL / f"{name}_feat.npy", mmap_mode="r")[:6].astype(np.float32) for name in ("image", "text")
    }
    for index, row in enumerate(rows):
        np.testing.assert_allclose(text.encode([row["text"]])[0].numpy(), given["text"][index], atol=2e-4)
        ours = visual.encode([open_photo(REAL / "photos" / f"{row['source_id']}.webp")])[0].numpy()
        theirs = given["image"][index]
        assert ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs) > 0.8  # they were made from larger files
