"""Tables of Markdown: in model cards, and in the documents that benchmarks write into."""

from collections.abc import Iterable


def markdown_table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
