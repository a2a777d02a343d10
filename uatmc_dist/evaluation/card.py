"""MODEL_CARD.md beside an exported model: data, training, accuracy, attacks, certificates, limits, and how to load it.

Figures are those that the run's verbs have written; what was not measured is said, with the command that measures it.
"""

from collections.abc import Callable, Sequence
from typing import Any

from uatmc_dist.config import Config
from uatmc_dist.evaluation.comparison import TITLES
from uatmc_dist.tables.markdown import markdown_table

ReadJson = Callable[[str], dict[str, Any] | None]
"""A file of the run by its name; None where it is not there."""

_SHOWN = ("recall@20", "ndcg@20", "coverage@20", "cold_recall@20")
_USE = """```python
import numpy as np, pyarrow.parquet as pq
from safetensors.numpy import load_file

tensors = load_file("embeddings.safetensors")
items = pq.read_table("items.parquet")  # item, source_id, vector
vectors = np.stack(items["vector"].to_numpy())
bought = [3, 14, 15]  # rows of items.parquet
{user}
best = np.argsort(-(vectors @ user))[:20]
print(items["source_id"].take(best).to_pylist())
```

In an index (FAISS here; Qdrant and pgvector likewise, by the inner product, vectors as they are):

```python
import faiss

index = faiss.IndexFlatIP(vectors.shape[1])  # exact; IndexHNSWFlat or IndexIVFPQ for millions
index.add(vectors)
scores, best = index.search(user[None], 20)
print(items["source_id"].take(best[0]).to_pylist())
```"""
_BY_HISTORY = 'user = tensors["history"][bought].sum(0) / len(bought) ** 0.5'
_BY_ROW = 'user = tensors["user"][0]  # of one user of the training data'
_LIMITS = (
    "Attacks are made at inference: an item's photo and text change, the model and everybody's purchases stay.",
    "The attacks are the strongest that were tried, not the strongest there are; the certificate alone bounds all.",
    "Certificates concern one item at a time, and means over all items and users: single items may be easier to push.",
    "Nobody knows beforehand how the accuracy carries over to other users, seasons or ways of showing lists.",
)


def model_card(config: Config, catalog: dict[str, Any], read: ReadJson, has_history: bool) -> str:
    """Markdown with front matter, as model hubs read it. `catalog`: its catalog.json."""
    run = config.run_dir
    sections = [
        ("What it is", _what(config)),
        ("Data", _data(catalog)),
        ("Training", _training(config, read("environment.json"))),
        ("Accuracy", _accuracy(read("evaluation.json")) or _missing("evaluate", run)),
        ("How attackable it is", _attacks(read("attack.json")) or _missing("attack", run)),
        ("What no attack can pass", _certificate(read("certificate.json")) or _missing("certify", run)),
        ("Changed photos and words", _content(read("content_attack.json")) or _missing("attack-content", run)),
        ("What such changes are worth", _calibration(read("calibration.json")) or _missing("calibrate", run)),
        ("Limits", _bullets(_LIMITS)),
        ("Use", _USE.format(user=_BY_HISTORY if has_history else _BY_ROW)),
    ]
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections)
    front = "---\nlibrary_name: uatmc-dist\ntags: [recommendation, multimodal, adversarial-robustness]\n---"
    return f"{front}\n\n# {config.name}\n\n{body}\n"


def _missing(verb: str, run: object) -> str:
    return f"Not measured: `uatmc {verb} {run}`, then export again."


def _what(config: Config) -> str:
    model = config.model
    scored = "identity and content" if model.content else "identity alone"
    return (
        f"A recommender (`{model.backbone}`, d = {model.embedding_dim}, users as {model.user}) that ranks items by the "
        f"dot product of a user's and an item's vector; items are {scored}. Made by UAT-MC Dist, after "
        "[UAT-MC](https://arxiv.org/abs/2605.06238)."
    )


def _data(catalog: dict[str, Any]) -> str:
    counts = catalog["num_interactions"]
    lines = [
        f"Catalog `{catalog['name']}`: {catalog['num_users']:,} users, {catalog['num_items']:,} items, "
        f"{counts['train']:,} training interactions, {counts['valid']:,} to validate, {counts['test']:,} to test."
    ]
    for name, modality in catalog["modalities"].items():
        weights = modality.get("encoding", {}).get("weights_sha256")
        known = f", weights {weights[:12]}" if weights else ""
        lines.append(f"{name.capitalize()} features: {modality['encoder']}, {modality['width']} wide{known}.")
    return _bullets(lines)


def _training(config: Config, environment: dict[str, Any] | None) -> str:
    adversarial, lines = config.adversarial, []
    if config.start_from is None:
        lines.append(f"Clean phase: {config.clean.objective}, at most {config.clean.epochs} epochs.")
    else:
        lines.append(f"Started from the run `{config.start_from}`.")
    if adversarial.epochs:
        lines.append(
            f"Defence: `{adversarial.adversary}`, {adversarial.epochs} epochs, ε = {adversarial.epsilon:g} "
            f"({adversarial.budget}, {adversarial.norm}), {adversarial.objective}"
            + (f", after whitening of {adversarial.whitening:g}." if adversarial.whitening else ".")
        )
    else:
        lines.append("No defence.")
    lines.append(f"Seed {config.seed}.")
    if environment is not None:
        versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
        lines.append(f"{environment['world_size']} rank(s) on {environment['device']}; {versions}.")
    return _bullets(lines)


def _accuracy(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    baselines = found.get("baselines", {})
    rows = {"this model": found, **{TITLES.get(name, name): figures for name, figures in baselines.items()}}
    cells = [
        [name, *(f"{row[metric]:.4f}" for metric in _SHOWN)] for name, row in rows.items() if set(_SHOWN) <= set(row)
    ]
    said = f"{found['split']} split, all items ranked, training items left out."
    return f"{said}\n\n{markdown_table(['', *_SHOWN], cells)}"


def _attacks(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    k = found["k"]
    strongest = [
        result
        for result in [*found["results"], *found.get("any_content", [])]
        if result["attack"] == "strongest" and result["stratum"] == "random"
    ]
    cells = [
        [
            "any photo and text" if result["epsilon"] is None else f"ε = {result['epsilon']:g}",
            *(f"{result[f'hit@{k}_{when}']:.4f}" for when in ("before", "after")),
        ]
        for result in strongest
    ]
    said = f"Share of users who get a random item into their {k} best, before and after the strongest attack."
    return f"{said}\n\n{markdown_table(['change', 'before', 'after'], cells)}" if cells else ""


def _certificate(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    key = f"certified_hit@{found['k']}"
    cells = [[f"{e['norm']}, {e['budget']}, ε = {e['epsilon']:g}", f"{e[key]:.4f}"] for e in found["results"]]
    cells += [
        [f"any {' and '.join('photo' if name == 'visual' else name for name in e['modalities'])}", f"{e[key]:.4f}"]
        for e in found.get("any_content", [])
    ]
    return f"{found['meaning'].capitalize()}.\n\n" + markdown_table(["change", "at most"], cells)


def _content(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    k = found["k"]
    best = [result for result in found["results"] if result["file"] == "best file"]
    cells = [
        [
            result["attack"],
            "" if result["size"] is None else f"{result['size']:g}",
            *(f"{result[f'hit@{k}_{when}']:.4f}" for when in ("before", "after")),
        ]
        for result in best
    ]
    head = ["attack", "size (1/255, or words)", "before", "after"]
    return "Files that a seller could upload, the best of each target.\n\n" + markdown_table(head, cells)


def _calibration(found: dict[str, Any] | None) -> str:
    if found is None or found["recommended"] is None:
        return ""
    options = " ".join(f"adversarial.{name}={value}" for name, value in found["recommended"]["options"].items())
    return f"Recommended for this catalog: `{options}`; {found['recommended']['why']}."


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"* {line}" for line in lines)
