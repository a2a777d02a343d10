"""content_attack.json: what changed files reach, beside what any photo could, and whether it can be trusted."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from uatmc_dist.config import ContentAttackConfig
from uatmc_dist.content_attacks.kept import AS_COMPUTED, Record, best_by

_STRONG, _STRONG_SHARE, _KEPT = 0.8, 0.5, 0.8
_ROOM = 1.05
"""Times the hits before: where no photo brings more than that, an attack cannot show that it works."""
_STRONG_SIZE = 2.0
"""In 1/255: from here on pixels are to reach nearly what any photo can."""


def summarise(records: Sequence[Record], config: ContentAttackConfig, k: int) -> dict[str, Any]:
    """Means over targets, an entry for each attack, size and file; `best file` has each target's best one."""
    whole = [record for record in records if record["file"] is not None]
    results = []
    for attack in config.attacks:
        of_attack = [record for record in whole if record["attack"] == attack]
        for size in dict.fromkeys(record["size"] for record in of_attack):
            of_size = [record for record in of_attack if record["size"] == size]
            files = {
                name: [r for r in of_size if r["file"] == name] for name in dict.fromkeys(r["file"] for r in of_size)
            }
            written = [record for record in of_size if record["file"] != AS_COMPUTED]
            files["best file"] = best_by(written, "seed", "item")
            results += [_entry(attack, size, name, of_file, k) for name, of_file in files.items()]
    return {
        "k": k,
        "options": config.model_dump(mode="json"),
        "without_content": len({(r["seed"], r["item"]) for r in records if r["file"] is None}),
        "results": results,
        "checks": _checks(results, k),
    }


def _entry(attack: str, size: float | None, file: str, records: Sequence[Record], k: int) -> dict[str, Any]:
    column = lambda name: np.array([record[name] for record in records])  # noqa: E731
    before, after, any_content = column("before"), column("after"), column("any_content")
    bound = None if records[0]["any_content_bound"] is None else column("any_content_bound")
    gain = any_content.mean() - before.mean()
    return {
        "attack": attack,
        "size": size,
        **({"edits": records[0]["edits"]} if attack == "both" else {}),
        "file": file,
        "targets": len(records),
        f"hit@{k}_before": float(before.mean()),
        f"hit@{k}_after": float(after.mean()),
        f"hit@{k}_any_content": float(any_content.mean()),
        f"certified_hit@{k}_any_content": None if bound is None else float(bound.mean()),
        "share_of_any_content": float((after.mean() - before.mean()) / gain) if gain > 0 else None,
        "above_certificate": None if bound is None else int((after > bound).sum()),
        "moved": {
            name: dict(zip(("10%", "median", "90%"), np.quantile(values, [0.1, 0.5, 0.9]).tolist(), strict=True))
            for name in records[0]["moved"]
            for values in [[record["moved"][name] for record in records]]
        },
    }


def _checks(results: Sequence[dict[str, Any]], k: int) -> list[dict[str, Any]]:
    certified = [result["above_certificate"] for result in results if result["above_certificate"] is not None]
    of_pixels = {(r["size"], r["file"]): r for r in results if r["attack"] == "pixels"}
    large = [size for size, file in of_pixels if file == AS_COMPUTED and size is not None and size >= _STRONG_SIZE]
    strong = share = None
    if large:
        best = of_pixels[min(large), AS_COMPUTED]
        before, after, any_content = (best[f"hit@{k}_{name}"] for name in ("before", "after", "any_content"))
        if any_content > _ROOM * before:
            strong, share = after / any_content, best["share_of_any_content"]
    kept = None
    if large and (max(large), "png") in of_pixels:
        computed, png = (of_pixels[max(large), file] for file in (AS_COMPUTED, "png"))
        gains = [result[f"hit@{k}_after"] - result[f"hit@{k}_before"] for result in (png, computed)]
        kept = gains[0] / gains[1] if gains[1] > 0 else None
    return [
        {
            "check": "never_above_certificate",
            "passed": sum(certified) == 0 if certified else None,
            "measured": {"targets above": sum(certified)} if certified else {},
            "a_failure_means": "a file brought a row that no photo can have, or the certificate is wrong",
        },
        {
            "check": "pixels_reach_what_any_photo_can",
            "passed": None if strong is None else strong >= _STRONG and (share or 0.0) >= _STRONG_SHARE - 1e-9,
            "measured": {}
            if strong is None
            else {"hits over those of any photo": strong, "share of what any photo gains": share},
            "a_failure_means": "the attack is stuck: no gradient comes through, its sign is wrong, or too few steps",
        },
        {
            "check": "the_file_is_what_was_computed",
            "passed": None if kept is None else kept >= _KEPT,
            "measured": {} if kept is None else {"share of the gain that the PNG keeps": kept},
            "a_failure_means": "the differentiable chain is not what the catalog does to a photo: other preprocessing",
        },
    ]
