"""Trained on two ranks, exported, and ranked by a program that knows numpy, safetensors and pyarrow alone."""

import ast
import json
import re
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from conftest import on_ranks, run_uatmc

PLAIN = """
import sys
import numpy as np, pyarrow.parquet as pq
from safetensors.numpy import load_file
export, catalog, lists = sys.argv[1:]
model = load_file(f"{export}/embeddings.safetensors")
train = pq.read_table(f"{catalog}/interactions.parquet", filters=[("split", "==", 0)])
scores = (model["user"].astype("f8") @ model["item"].astype("f8").T).astype("f4")
scores[train["user"].to_numpy(), train["item"].to_numpy()] = -np.inf
best = np.argsort(-scores, axis=1, kind="stable")[:, :20]
theirs = pq.read_table(lists)
for user, items in zip(theirs["user"].to_pylist(), theirs["items"].to_pylist()):
    assert best[user].tolist() == items[:20], user
vectors = pq.read_table(f"{export}/items.parquet")
assert np.array_equal(np.stack(vectors["vector"].to_numpy()), model["item"])
assert vectors["item"].to_pylist() == list(range(len(model["item"]))) and vectors["source_id"][7].as_py() == "7"
assert not {"torch", "torchrec", "uatmc_dist"} & sys.modules.keys()
print(len(theirs), "users agree")
"""


@pytest.mark.parametrize(("content", "user"), [(True, "history"), (False, "row")])
def test_the_same_lists_as_evaluate(write_config, tmp_path, tiny_catalog, content, user):
    adversarial = {"epochs": 1 if content else 0}
    config = write_config(model={"content": content, "user": user}, adversarial=adversarial)
    on_ranks(2, "train.py", config)
    run, lists = tmp_path / "runs/tiny", tmp_path / "lists.parquet"
    run_uatmc("evaluate", run, "--lists", lists)
    output = run_uatmc("export", run).stdout
    assert "embeddings.safetensors" in output and "items.parquet" in output
    done = subprocess.run(
        [sys.executable, "-I", "-c", PLAIN, run / "export", tiny_catalog, lists], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{len(pq.read_table(lists))} users agree\n"
    card = (run / "export/MODEL_CARD.md").read_text()
    recall = json.loads((run / "evaluation.json").read_text())["recall@20"]
    assert f"| this model | {recall:.4f} |" in card and "| popularity |" in card and f"uatmc attack {run}" in card
    plain, in_faiss = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    loaded = subprocess.run(
        [sys.executable, "-I", "-c", plain + in_faiss], cwd=run / "export", capture_output=True, text=True
    )
    assert loaded.returncode == 0, loaded.stderr
    best, found = map(ast.literal_eval, loaded.stdout.splitlines())
    assert len(best) == 20 and found == best
    listed = run_uatmc("recommend", run, "--history", "7, 8", "-k", "3", check=False)
    if user == "history":
        assert listed.returncode == 0 and "for a history of 2 items" in listed.stdout, listed.stderr
    else:
        assert listed.returncode == 2 and "model.user=history" in listed.stderr
    assert "projector_config.pbtxt" in run_uatmc("export", run, "--projector").stdout
    (labels,) = (run / "tensorboard").rglob("metadata.tsv")
    (rows,) = (run / "tensorboard").rglob("tensors.tsv")
    assert labels.read_text().startswith("source id\ttitle\tpurchases\n")
    assert len(labels.read_text().splitlines()) - 1 == len(rows.read_text().splitlines()) == 203
    refused = run_uatmc("export", run, "--out", config / "x", check=False)
    assert refused.returncode == 2 and refused.stderr.startswith("error: ") and refused.stderr.count("\n") == 1
    refused = run_uatmc("export", tmp_path, check=False)
    assert refused.returncode == 2 and "not a run" in refused.stderr
