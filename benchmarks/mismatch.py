"""The premise of coordination for several runs side by side, from the mismatch.json that `uatmc mismatch` wrote.

python -m benchmarks.mismatch runs/hmfashion-uat-s0 runs/hmfashion-own-users-uat-s0 --write docs/coordination.md
"""

import json
from pathlib import Path
from typing import Any

from benchmarks.common import document_parser, replace_block
from uatmc_dist.tables.markdown import markdown_table


def spread(values: dict[str, float] | None) -> str:
    return "" if values is None else f"{values['10%']:.2f} to {values['90%']:.2f}"


def premise(report: dict[str, Any]) -> list[str]:
    return [
        f"{report['single_matrix_residual']:.2f}",
        f"{report['cosine']['mean']:.2f} ({spread(report['cosine'])})",
        f"{report['user_cosine']['mean']:.2f} ({spread(report['user_cosine'])})",
        f"{report['contributors']['overlap']['mean']:.0%}",
        spread(report["shift_ratio"]),
        spread(report["reach_ratio"]),
    ]


def main() -> None:
    parser = document_parser(__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    arguments = parser.parse_args()
    reports = {run.name: json.loads((run / "mismatch.json").read_text(encoding="utf-8")) for run in arguments.runs}
    stages = [(f"{name}, {stage}", report[stage]) for name, report in reports.items() for stage in ("before", "after")]
    head = ["residual of a single matrix", "cosine in item space", "in user space", "top contributors in common"]
    head += ["visual / textual shift", "visual / textual reach"]
    parts = ["Mean, and 10 % to 90 %:", markdown_table(["", *head], ([name, *premise(of)] for name, of in stages))]
    columns = [(name, entry) for name, of in stages for entry in of["strength"]]
    steps = list(columns[0][1]["rise"])
    parts += [
        "Rise of the loss, over that of a separate step (`uat`) of the same radius:",
        markdown_table(
            ["", "ε", *steps],
            (
                [
                    name,
                    f"{entry['epsilon']:g}",
                    *(f"{entry['rise'][step] / entry['rise']['uat']:.3f}" for step in steps),
                ]
                for name, entry in columns
            ),
        ),
    ]
    text = "\n\n".join(parts)
    print(text)
    if arguments.write is not None:
        replace_block(arguments.write, "mismatch", text)


if __name__ == "__main__":
    main()
