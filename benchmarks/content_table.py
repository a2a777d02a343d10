"""Tables of attacks on photos and words, of a plan of benchmarks/defences.py with `content_attack`."""

from typing import TYPE_CHECKING, Any

from uatmc_dist.tables.markdown import markdown_table

if TYPE_CHECKING:
    from benchmarks.defences import Results

_ANY = {"pixels": "any photo", "words": "any text", "both": "any photo and text"}
_REPLACED = {"visual": "any photo", "text": "any text", "visual and text": "any photo and text"}
_FAILED = "content checks failed"


def content_figures(report: dict[str, Any]) -> dict[str, float]:
    """Of a run's content_attack.json: Hit@k of the best file of each target, by attack and size."""
    if not report:
        return {}
    k, found, of_any = report["k"], {}, {}
    for result in report["results"]:
        if result["file"] != "best file":
            continue
        sizes = (result.get(name) for name in ("size", "edits"))
        size = "".join(f" {each:g}" for each in sizes if each is not None)
        found["content before"] = result[f"hit@{k}_before"]
        found[f"content {result['attack']}{size}"] = result[f"hit@{k}_after"]
        if result["attack"] in _ANY:
            of_any[f"content {_ANY[result['attack']]}"] = result[f"hit@{k}_any_content"]
    found = {**found, "content strongest file": max(found.values()), **of_any}
    found[_FAILED] = sum(check["passed"] is False for check in report["checks"])
    return found


def content_markdown(results: "Results") -> str:
    """Accuracy, hits after each attack on files, and what no file whatsoever can pass."""
    attacked = [variant for variant in results.variants if "content before" in results.found(variant)]
    measured = [name for name in results.found(attacked[0]) if name.startswith("content ") and name != _FAILED]
    columns = {name: _head(name.removeprefix("content ")) for name in measured}
    certified = {f"certified any {key}": head for key, head in _REPLACED.items()}
    return "\n\n".join(
        [
            f"Accuracy ({results.plan.split} split) and certified Hit@50 of all items with the photo, the text or both "
            "replaced by any other:",
            markdown_table(
                ["defence", "Recall@20", "NDCG@20", *certified.values()],
                [
                    [v, *(results.cell(v, name) for name in ("recall@20", "ndcg@20", *certified))]
                    for v in results.variants
                ],
            ),
            "Hit@50 of random targets before and after changed files (of each target the best file), and with any "
            "photo or text at all:",
            markdown_table(
                ["", *attacked],
                [
                    *([head, *(results.cell(v, name) for v in attacked)] for name, head in columns.items()),
                    ["checks failed", *(results.count(v, _FAILED) for v in attacked)],
                ],
            ),
        ]
    )


def _head(name: str) -> str:
    attack, *sizes = name.split()
    if attack == "pixels":
        return f"pixels ±{sizes[0]}/255"
    if attack in ("words", "stuffing"):
        return f"{attack}, {_edits(sizes[0])}"
    if attack == "both":
        return f"photo (±{sizes[0]}/255) and text ({_edits(sizes[1])})"
    return name.replace("_", " ").replace("copy", "copied")


def _edits(number: str) -> str:
    return f"{number} {'edit' if number == '1' else 'edits'}"
