"""Promotion by a few edits of a text: words inserted, replaced or deleted, from the vocabulary of the catalog.

Which words may help is read from the gradient at the token embeddings (HotFlip, arXiv 1712.06751); which do is decided
by encoding the candidates and scoring them, with a beam.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from uatmc_dist.adversary.budget import AnyContent
from uatmc_dist.attacks.apgd import SOFTNESS
from uatmc_dist.attacks.base import Targets
from uatmc_dist.attacks.losses import LogHinge
from uatmc_dist.content_attacks.texts import TextRows

_BEAM = 2
_REPLACEMENTS, _INSERTIONS, _DELETIONS = 24, 24, 8

Score = tuple[float, float]
"""Anchors won, then the mean log hinge of those that are not."""


@dataclass(frozen=True)
class Candidate:
    words: tuple[str, ...]
    score: Score

    @property
    def text(self) -> str:
        return " ".join(self.words)


class Judge:
    """Scores of texts of one target: the anchors that each of them wins."""

    def __init__(self, target: Targets, rows: TextRows) -> None:
        self._target, self._rows = target, rows
        self._loss = LogHinge(SOFTNESS * target.typical_reach(AnyContent()))

    def __call__(self, texts: Sequence[str]) -> list[Score]:
        return self._scores(self._rows.rows_of(texts))

    def roughly(self, texts: Sequence[str]) -> list[Score]:
        """From rows that are good to three digits."""
        return self._scores(self._rows.rough_rows_of(texts))

    def _scores(self, rows_nd: torch.Tensor) -> list[Score]:
        found = []
        for row_d in rows_nd:
            seen = self._target.evaluate(self._deltas(row_d), self._loss)
            found.append((float(seen.hits_T), float(seen.value_T)))
        return found

    def towards(self, row_d: torch.Tensor) -> torch.Tensor:
        """Gradient of the log hinge in the textual row, [d]."""
        seen = self._target.evaluate(self._deltas(row_d), self._loss)
        return self._target.in_rows(seen.pull_Td)[1][0]

    def _deltas(self, row_d: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros_like(self._target.v_Td), row_d - self._target.t_Td


def search(
    rows: TextRows,
    target: Targets,
    text: str,
    edits: Sequence[int],
    allowed_W: torch.Tensor,
    judge: Judge | None = None,
) -> dict[int, str]:
    """The best text found with at most so many edits, for each number of them. `allowed_W`: words of the vocabulary
    that may be used."""
    judge = judge or Judge(target, rows)
    start = Candidate(tuple(text.split()), judge([text])[0])
    beam, best, found = [start], start, {}
    for edit in range(1, max(edits) + 1):
        proposed = {words for candidate in beam for words in _edited(candidate.words, rows, judge, allowed_W)}
        kept = _best(sorted(proposed), judge.roughly)[:_BEAM]
        beam = _best([candidate.words for candidate in kept], judge) or beam
        best = max(best, beam[0], key=lambda one: one.score)
        if edit in edits:
            found[edit] = text if best is start else best.text
    return found


def _best(edited: Sequence[tuple[str, ...]], scored: Callable[[Sequence[str]], list[Score]]) -> list[Candidate]:
    """All of them, the best first."""
    scores = scored([" ".join(words) for words in edited]) if edited else []
    return sorted(map(Candidate, edited, scores), key=lambda one: one.score, reverse=True)


def _edited(words: tuple[str, ...], rows: TextRows, judge: Judge, allowed_W: torch.Tensor) -> set[tuple[str, ...]]:
    """Texts one edit away of which the gradient promises most."""
    vocabulary, embeddings_WD = rows.vocabulary
    index_W = allowed_W.nonzero().squeeze(1)
    if not words:
        return {(vocabulary[index],) for index in index_W[:_INSERTIONS].tolist()}
    gradient_LD = rows.gradient(words, judge.towards)
    own_LD = torch.stack([rows.embedding(word) for word in words])
    owed_L = (gradient_LD * own_LD).sum(1)
    deleted = owed_L.topk(min(_DELETIONS, len(words) - 1), largest=False).indices.tolist()
    found = {words[:place] + words[place + 1 :] for place in deleted}
    gains_LW = gradient_LD @ embeddings_WD[index_W].T - owed_L[:, None]
    for flat in gains_LW.flatten().topk(min(_REPLACEMENTS, gains_LW.numel())).indices.tolist():
        place, word = divmod(flat, len(index_W))
        found.add((*words[:place], vocabulary[index_W[word]], *words[place + 1 :]))
    # A word that comes in shares in the mean of all tokens, wherever it stands.
    gains_W = gradient_LD.mean(0) @ embeddings_WD[index_W].T
    for word in gains_W.topk(min(_INSERTIONS, len(gains_W))).indices.tolist():
        for place in (0, len(words)):
            found.add((*words[:place], vocabulary[index_W[word]], *words[place:]))
    return found


def stuffed(text: str, title: str, edits: int) -> tuple[str, str]:
    """Keyword stuffing: the first words of a popular item's title at the start, where every encoder reads them, or at
    the end."""
    own, words = text.split(), title.split()[:edits]
    return " ".join([*words, *own]), " ".join([*own, *words])
