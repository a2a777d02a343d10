"""Which targets rose most, and what was changed for it: what the report's gallery shows."""

from uatmc_dist.content_attacks.kept import Record, best_by


def risen(records: list[Record]) -> list[Record]:
    """Of the attack that changes most each target's best file, the largest gain first."""
    of_kind: list[Record] = []
    for attack in ("both", "pixels", "words"):
        of_kind = of_kind or [r for r in records if r["attack"] == attack and r["file"] in ("png", "text")]
    best = best_by(of_kind, "seed", "item")
    return sorted(best, key=lambda record: record["after"] - record["before"], reverse=True)


def photo_size(record: Record) -> float | None:
    """In 1/255; None where the photo was left alone."""
    return None if record["attack"] == "words" else record["size"]


def edits_of(record: Record) -> int:
    return record["size"] if record["attack"] == "words" else record["edits"]


def text_of(record: Record, records: list[Record]) -> str | None:
    """The changed text, which is that of `words`; None where the text was left alone."""
    if record["attack"] == "pixels":
        return None
    wanted = record["seed"], "words", record["item"], edits_of(record)
    return next(r["text"] for r in records if (r["seed"], r["attack"], r["item"], r["size"]) == wanted)
