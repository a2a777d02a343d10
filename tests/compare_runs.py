"""For launch/*/*.sh: every step of the second run is in the first exactly once, with the same losses (1e-6)."""

import json
import sys
from pathlib import Path

ours, truth = ([json.loads(line) for line in (Path(run) / "metrics.jsonl").open()] for run in sys.argv[1:])
keys = [(line["step"], "loss" in line) for line in ours]
assert len(set(keys)) == len(keys), "a step is there twice"
assert keys == [(line["step"], "loss" in line) for line in truth], "a step is missing"
pairs = [(line["loss"], other["loss"]) for line, other in zip(ours, truth, strict=True) if "loss" in line]
apart = max(abs(loss - other) / abs(other) for loss, other in pairs)
assert apart < 1e-6, f"losses are apart by {apart:.1e}"
print(
    f"{len(pairs)} steps, each once; losses differ from those of the undisturbed run by at most {apart:.1e} (relative)"
)
