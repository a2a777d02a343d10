"""Which targets rose most, and what was changed for it: what the report's gallery shows."""

from uatmc_dist.content_attacks.kept import AS_COMPUTED, Record, best_by


def risen(records: list[Record]) -> list[Record]:
    """Each target's best file, of equals the one that changes most; the largest gain first."""
    best = best_by(
        (record for attack in ("both", "pixels", "words") for record in _shown(records, attack)), "seed", "item"
    )
    return sorted(best, key=lambda record: record["after"] - record["before"], reverse=True)


def _shown(records: list[Record], attack: str) -> list[Record]:
    """Files as they are kept, pixels as PNG; where PNG was not asked for, any."""
    written = [r for r in records if r["attack"] == attack and r["file"] not in (None, AS_COMPUTED)]
    return [record for record in written if record["file"] in ("png", "text")] or written


def photo_size(record: Record) -> float | None:
    """In 1/255; None where the photo was left alone."""
    return None if record["attack"] == "words" or record.get("left_alone") == "photo" else record["size"]


def edits_of(record: Record) -> int:
    return record["size"] if record["attack"] == "words" else record["edits"]


def text_of(record: Record, records: list[Record]) -> str | None:
    """The changed text, which is that of `words`; None where the text was left alone."""
    if record["attack"] == "pixels" or record.get("left_alone") == "text":
        return None
    wanted = record["seed"], "words", record["item"], edits_of(record)
    return next(r["text"] for r in records if (r["seed"], r["attack"], r["item"], r["size"]) == wanted)
