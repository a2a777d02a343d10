"""Starts one of MMRec's models from a clone of it and measures it from outside; run by benchmarks.peers, in MMRec's
src/.

Writes a line of JSON an epoch: train_s, valid_s (full ranking of the validation users) and both Recall@20.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

OWN: dict[str, dict[str, Any]] = {"VBPR": {}, "MMGCN": {"learning_rate": [0.001]}}
"""What its files leave to a search."""


def main(model: str, name: str, epochs: str, out: str) -> None:
    torch.set_num_threads(1)
    sys.path.insert(0, os.getcwd())
    from common.trainer import Trainer  # MMRec's
    from utils.quick_start import quick_start  # MMRec's

    line: dict[str, float] = {}
    train_epoch, evaluate = Trainer._train_epoch, Trainer.evaluate

    def timed_epoch(self: Any, *arguments: Any, **options: Any) -> Any:
        since = time.perf_counter()
        loss = train_epoch(self, *arguments, **options)
        line["train_s"] = time.perf_counter() - since
        return loss

    def timed_evaluation(self: Any, *arguments: Any, **options: Any) -> Any:
        """Called for validation first and for test after it."""
        since = time.perf_counter()
        metrics = evaluate(self, *arguments, **options)
        if "valid_s" not in line:
            line["valid_s"], line["valid"] = time.perf_counter() - since, metrics["recall@20"]
        else:
            line["test"] = metrics["recall@20"]
            with Path(out).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            line.clear()
        return metrics

    Trainer._train_epoch, Trainer.evaluate = timed_epoch, timed_evaluation
    never = 10**6
    options = {"use_gpu": False, "gpu_id": 0, "epochs": int(epochs), "stopping_step": never}
    quick_start(model=model, dataset=name, config_dict={**options, "reg_weight": [0.01], "seed": [999], **OWN[model]})


if __name__ == "__main__":
    main(*sys.argv[1:])
