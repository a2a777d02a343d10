"""A planted-taste shop with photos and texts as files: what `uatmc data build` reads, made without a download.

Behaviour is that of the planted-taste catalog (synthetic.py). Photos draw an item's shared and visual-only latents as
colours, stripes and shapes; texts say its shared and textual-only latents in words. So an encoder that has seen neither
finds in them what users go by.
"""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from uatmc_dist.data.synthetic import Planted, check_sizes
from uatmc_dist.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

ORDERS, ARTICLES, PHOTOS = "orders.csv", "articles.csv", "photos"
_SIZE = 96
_LEVELS = np.array([-0.84, -0.25, 0.25, 0.84])
"""Quintiles of a standard normal latent."""
_NOUNS = (
    *(
        "shirt",
        "dress",
        "jacket",
        "trousers",
        "skirt",
        "sweater",
        "coat",
        "jeans",
        "blouse",
        "shorts",
        "hoodie",
        "vest",
    ),
    *("scarf", "hat", "gloves", "boots", "sandals", "sneakers", "belt", "bag", "swimsuit", "pyjamas", "socks", "suit"),
    "cardigan",
)
_SHARED_WORDS = (
    ("black", "blue", "green", "red", "white"),
    ("cotton", "wool", "silk", "linen", "leather"),
    ("slim fit", "regular fit", "loose fit", "oversized", "cropped"),
    ("plain", "striped", "checked", "dotted", "floral"),
)
_OWN_WORDS = (
    ("for the office", "for parties", "for sport", "for the beach", "for home"),
    ("vintage", "classic", "modern", "romantic", "sporty"),
    ("with a hood", "with pockets", "with buttons", "with a zip", "with lace"),
    ("warm", "light", "waterproof", "breathable", "soft"),
    ("handmade", "recycled", "organic", "designer", "budget"),
)


def synthesize_shop(
    folder: Path,
    *,
    users: int = 3000,
    items: int = 2000,
    interactions: int = 24000,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Writes orders.csv (with the split), articles.csv and photos/ID.png, 96 x 96 pixels.

    `progress(done, total)` is told of photos. Raises UserError where the sizes cannot be met or nothing can be written.
    """
    check_sizes(users, items, interactions)
    planted = Planted.draw(users, items, seed)
    try:
        (folder / PHOTOS).mkdir(parents=True, exist_ok=True)
        with (folder / ORDERS).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["user_id", "item_id", "timestamp", "split"])
            for block in planted.interactions(interactions):
                columns = block.users, block.items, block.timestamps, block.splits
                writer.writerows(zip(*(column.tolist() for column in columns), strict=True))
        texts = [_text(planted, item) for item in range(items)]
        with (folder / ARTICLES).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["item_id", "title", "text"])
            writer.writerows([item, text.partition(".")[0], text] for item, text in enumerate(texts))
        for item in range(items):
            draw_photo(planted, item, seed).save(folder / PHOTOS / f"{item}.png")
            progress(item + 1, items)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); give another folder") from None


def _text(planted: Planted, item: int) -> str:
    shared, own = planted.shared(item), planted.text_only[item]
    said = lambda words, value: words[int(np.searchsorted(_LEVELS, value))]  # noqa: E731
    colour, material, fit, pattern = (said(words, shared[at]) for at, words in enumerate(_SHARED_WORDS))
    noun = _NOUNS[5 * int(np.searchsorted(_LEVELS, shared[4])) + int(np.searchsorted(_LEVELS, shared[5]))]
    occasion, style, detail, feel, origin = (said(words, own[at]) for at, words in enumerate(_OWN_WORDS))
    return (
        f"{colour.capitalize()} {material} {noun}. {fit.capitalize()}, {pattern}, {detail}. "
        f"{feel.capitalize()} and {style}, {origin}, {occasion}."
    )


def draw_photo(planted: Planted, item: int, seed: int) -> "Image.Image":
    """RGB: a gradient with stripes, a block and, from what the photo alone says, a checked disc; light and noise."""
    from PIL import Image

    share = lambda values: 0.5 + 0.5 * np.tanh(values)  # noqa: E731
    shared, own = share(planted.shared(item)), share(planted.visual_only[item])
    style = np.random.default_rng((seed, 3, item))
    y, x = np.meshgrid(*[np.linspace(-1, 1, _SIZE)] * 2, indexing="ij")
    picture = shared[:3] + (shared[3:6] - shared[:3]) * (0.5 + 0.5 * y)[..., None]
    angle, stripes = np.pi * shared[6], 4 + 20 * shared[7]
    wave = np.sin(stripes * (np.cos(angle) * x + np.sin(angle) * y))
    picture = picture + 0.35 * shared[8] * wave[..., None]
    block = (np.abs(x) < 0.25 + 0.5 * shared[9]) & (np.abs(y) < 0.25 + 0.5 * shared[10])
    picture = np.where(block[..., None], 0.25 * picture + 0.75 * shared[11:14], picture)
    centre, radius = own[:2] - 0.5, 0.15 + 0.3 * own[2]
    checks = np.sign(np.sin((6 + 20 * own[6]) * x) * np.sin((6 + 20 * own[6]) * y))
    disc = ((x - centre[0]) ** 2 + (y - centre[1]) ** 2 < radius**2)[..., None]
    picture = np.where(disc, own[3:6] + 0.3 * own[7] * checks[..., None], picture)
    picture = picture + style.normal(0, 0.03) + style.normal(0, 0.02, picture.shape)
    return Image.fromarray((255 * picture.clip(0, 1)).round().astype(np.uint8))
