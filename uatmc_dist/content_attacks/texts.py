"""From an item's text to its projected row, and the words that the catalog itself uses.

d  width of a projected row    D  width of a token's embedding
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F

from uatmc_dist.data.catalog import Catalog
from uatmc_dist.encoders.base import check_weights
from uatmc_dist.encoders.text import WordGradients, open_rough_text_encoder, open_text_encoder
from uatmc_dist.errors import UserError

_MOST_WORDS, _LEAST_OFTEN = 4000, 2
# To re a combining mark is no letter: without them words of most Indian languages fall to pieces.
_MARKS = "".join(filter(lambda sign: unicodedata.category(sign)[0] == "M", map(chr, range(0x300, 0x20000))))
_LETTERS = rf"(?:[^\W\d_]+|[{_MARKS}]+)+"
_WORD = re.compile(rf"[^\W\d_]{_LETTERS}(?:-{_LETTERS})*")


class TextRows:
    """Of one trained model. Raises UserError for a catalog that does not know its texts and their encoder."""

    def __init__(self, model: Any, catalog: Catalog, device: str = "auto") -> None:
        encoding = catalog.meta["modalities"].get("text", {}).get("encoding")
        self._texts = catalog.contents("text")
        if encoding is None or self._texts is None:
            raise UserError(
                f"{catalog.path}: has no texts and no encoder to attack; build the catalog from texts (uatmc data "
                "build, or uatmc data synthesize --photos)"
            )
        self.titles = catalog.titles()[1]
        self._encoder = open_text_encoder(encoding["encoder"], device)
        check_weights(self._encoder, encoding, catalog.path)
        self._rough_encode = open_rough_text_encoder(encoding["encoder"], device)
        self._gradients = WordGradients(encoding["encoder"], device)
        self._project = model.dense.text.cpu()

    def text(self, item: int) -> str:
        """Empty where the item has none."""
        assert self._texts is not None
        return self._texts[item] or ""

    @torch.no_grad()
    def rows_of(self, texts: Sequence[str]) -> torch.Tensor:
        """[n, d], as the catalog would have them: features kept in float16, rows of length 1."""
        return self._projected(self._encoder.encode(texts))

    @torch.no_grad()
    def rough_rows_of(self, texts: Sequence[str]) -> torch.Tensor:
        """[n, d]: the same to three digits, in half the time."""
        return self._projected(self._rough_encode(texts))

    def _projected(self, features: torch.Tensor) -> torch.Tensor:
        return F.normalize(self._project(features.half().float()), dim=1)

    def gradient(self, words: Sequence[str], towards: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """[len(words), D]: where each word's embedding should go for the row to gain in the direction that
        `towards(row)` [d] gives."""

        def of_features(features: torch.Tensor) -> torch.Tensor:
            leaf = features.cpu().detach().requires_grad_()
            row_d = F.normalize(self._project(leaf[None]), dim=1)[0]
            (gradient,) = torch.autograd.grad(row_d, leaf, towards(row_d.detach()))
            return gradient.to(features.device)

        return self._gradients(words, of_features)

    def embedding(self, word: str) -> torch.Tensor:
        """Mean of the embeddings of its tokens, [D]."""
        return self._gradients.embedding(word)

    @cached_property
    def vocabulary(self) -> tuple[list[str], torch.Tensor]:
        """(words that at least two texts use, the most common first, their embeddings [W, D])."""
        assert self._texts is not None
        counts = Counter(word for text in self._texts for word in {*_WORD.findall((text or "").lower())})
        words = [word for word, count in counts.most_common(_MOST_WORDS) if count >= _LEAST_OFTEN]
        if not words:
            raise UserError("no word occurs in two texts of this catalog, so there is nothing to write into others")
        return words, torch.stack([self._gradients.embedding(word) for word in words])

    def of_kind(self, item: int) -> torch.Tensor:
        """[W]: which words of the vocabulary occur in texts of items of the same kind: those whose titles end in the
        same word."""
        assert self._texts is not None
        kind = _kind(self.titles[item])
        alike = (text for text, title in zip(self._texts, self.titles, strict=True) if _kind(title) == kind)
        used = {word for text in alike for word in _WORD.findall((text or "").lower())}
        return torch.tensor([word in used for word in self.vocabulary[0]])


def _kind(title: str) -> str:
    words = title.lower().split()
    return words[-1] if words else ""
