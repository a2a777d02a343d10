"""`uatmc plan`: properties of the memory and cost models, TorchRec's planner, and what the command refuses."""

import json
import math
import re
import sys
from dataclasses import asdict, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.kernels.floors import GPUS
from benchmarks.scaling import MADE_BY_A_STEP
from conftest import ROOT, environment
from tests import nursery
from uatmc_dist.cli import main
from uatmc_dist.data.catalog import Catalog
from uatmc_dist.data.synthetic import synthesize
from uatmc_dist.errors import UserError
from uatmc_dist.models.mmgcn import MMGCNContent
from uatmc_dist.models.projectors import ContentModel
from uatmc_dist.models.vbpr_own_users import OwnUsersContent
from uatmc_dist.parallel.cost_model import H100_INSTRUCTIONS, step_cost
from uatmc_dist.parallel.machine import Machine, h100, measured
from uatmc_dist.parallel.memory_model import fits, memory_per_rank
from uatmc_dist.parallel.placement import USABLE, plan_tables
from uatmc_dist.parallel.planner import candidates, plan, smallest_devices
from uatmc_dist.parallel.problem import Problem
from uatmc_kernels.triton._variants import VARIANTS

PHASES = "clean", "adversarial"
CPU = Machine(
    name="a CPU",
    kernels="tiled",
    ranks_per_node=4,
    device_memory=16e9,
    host_memory=16e9,
    rates={
        "score_flops": 8e10,
        "dense_flops": 8e10,
        "sigmas": 2e9,
        "logs": 1e9,
        "elementwise": 1e10,
        "updates": 8e7,
        "bytes": 5e10,
        "fresh_bytes": 2e9,
        "feature_bytes": 1e9,
        "ring_bytes": 1e9,
    },
    latency_s=1e-4,
    host_s=1e-2,
)
MACHINES = [CPU, h100("fp32"), h100("bf16")]


def possible(problem: Problem) -> Problem:
    """mmgcn has neither histories nor a certificate; at the encoder there is neither certificate nor coordination."""
    if problem.backbone == "mmgcn":
        problem = replace(problem, user="row")
    missing = {"certified"} if problem.backbone == "mmgcn" else set()
    missing |= {"certified", "uat_mc"} if problem.at == "encoder" else set()
    return replace(problem, adversary="uat" if problem.adversary in missing else problem.adversary)


problems = st.builds(
    Problem,
    backbone=st.sampled_from(["vbpr", "vbpr_own_users", "mmgcn"]),
    users=st.integers(1, 10**9),
    items=st.integers(2, 10**9),
    interactions=st.integers(1, 10**10),
    visual_dim=st.integers(1, 8192),
    text_dim=st.integers(1, 8192),
    embedding_dim=st.sampled_from([8, 64, 100, 512]),
    batch_size=st.integers(1, 1 << 16),
    optimizer=st.sampled_from(["adagrad", "rowwise_adagrad", "sgd"]),
    user=st.sampled_from(["row", "history", "both"]),
    objective=st.sampled_from(["sampled", "full_catalog", "softmax"]),
    adversary=st.sampled_from(["none", "noise", "visual_only", "text_only", "uat", "uat_mc", "certified"]),
    at=st.sampled_from(["projected", "encoder"]),
    score_precision=st.sampled_from(["fp32", "bf16"]),
    projected_precision=st.sampled_from(["fp32", "bf16"]),
).map(possible)
machines, phases = st.sampled_from(MACHINES), st.sampled_from(PHASES)


def sizes(problem, machine, ranks, phase):
    return {each.name: each.bytes for each in memory_per_rank(problem, machine, ranks, phase)}


@given(problems, machines, phases, st.integers(1, 600), st.integers(1, 600))
def test_no_component_rises_with_more_ranks(problem, machine, phase, one, other):
    few, many = (sizes(problem, machine, ranks, phase) for ranks in sorted((one, other)))
    assert all(0 <= many[name] <= few[name] for name in few.keys() - {"raw features kept"})  # where they fit


@given(
    problems.map(lambda problem: replace(problem, objective="full_catalog")),
    machines,
    phases,
    st.integers(1, 16),
    st.integers(20_000, 10**8),
    st.integers(64, 1 << 15),
)
def test_no_component_grows_with_batch_times_items(problem, machine, phase, ranks, items, batch):
    """Twice the batch costs as many bytes more in twice the catalog as in the catalog itself."""
    at = {
        (pairs, rows): sizes(replace(problem, items=rows, batch_size=pairs), machine, ranks, phase)
        for pairs in (batch, 2 * batch)
        for rows in (items * ranks, 2 * items * ranks)
    }
    for name in at[batch, items * ranks]:
        small, wide, long, both = (
            at[pairs, rows][name]
            for pairs, rows in (
                (batch, items * ranks),
                (batch, 2 * items * ranks),
                (2 * batch, items * ranks),
                (2 * batch, 2 * items * ranks),
            )
        )
        assert both - long - wide + small <= 1e-6 * both, name


@given(problems, machines, phases, st.sampled_from([(1, 1), (2, 1), (4, 1), (16, 4), (512, 64)]))
def test_terms_are_positive_and_add_up(problem, machine, phase, cluster):
    cost = step_cost(problem, machine, *cluster, phase)
    for term in cost.terms:
        assert all(amount > 0 for amount in term.work.counts().values())
        assert (term.seconds > 0) == bool(term.work.counts())
    total = sum(term.seconds for term in cost.terms) + machine.host_s
    assert math.isclose(cost.device_seconds + cost.host_seconds, total)
    expected = max(cost.device_seconds, cost.host_seconds) if machine.overlaps else total
    assert math.isclose(cost.seconds, expected) and math.isfinite(cost.seconds)
    assert cost.bottleneck and cost.largest_term


@settings(max_examples=20, deadline=None)
@given(problems, machines)
def test_the_smallest_number_of_devices_fits_and_the_one_before_does_not(problem, machine):
    asked = {"clean": replace(problem, objective="sampled"), "adversarial": problem}

    def fit(devices):
        return all(
            fits(memory_per_rank(each, machine, devices, phase), machine, USABLE) for phase, each in asked.items()
        )

    tried = list(candidates(machine.ranks_per_node))
    found = smallest_devices(asked, machine)
    if found is None:
        assert not fit(tried[-1])
        return
    position = tried.index(found)
    assert fit(found) and (position == 0 or not fit(tried[position - 1]))
    assert all(fit(devices) for devices in tried[position : position + 50])


def test_a_ring_over_nodes_is_limited_by_what_a_node_sends():
    machine = h100()
    ring = [machine.network_seconds(1e9, 0, nodes)["ring_bytes"] for nodes in (1, 2)]
    assert ring == [1e9 / (0.8 * 450e9), 1e9 / (0.8 * 8 * 50e9)]


def test_collectives_of_a_step_are_those_that_a_profile_shows():
    """Two gloo ranks, full catalog, uat_mc: 9 sums and DeepSpeed's, a gather, a scatter; of histories a sum more each
    way instead of the two."""
    for user in ("row", "history", "both"):
        cost = step_cost(Problem(1000, 1000, 10_000, user=user), CPU, 2)
        assert sum(term.work.collectives for term in cost.terms) == 12
    assert sum(term.work.collectives for term in step_cost(Problem(1000, 1000, 10_000), CPU, 1).terms) == 0


@pytest.mark.parametrize(
    "backbone, kind", [("vbpr", ContentModel), ("vbpr_own_users", OwnUsersContent), ("mmgcn", MMGCNContent)]
)
def test_dense_parameters_are_those_of_the_content_model(backbone, kind):
    problem = Problem(10, 10, 10, 20, 12, (16, 12), (12,), backbone, embedding_dim=8)
    model = kind({"visual": 20, "text": 12}, {"visual": [16, 12], "text": [12]}, 8)
    assert problem.dense_parameters("clean") == sum(p.numel() for p in model.parameters())
    at_encoder = replace(problem, at="encoder")
    assert at_encoder.dense_parameters("adversarial") == problem.dense_parameters("clean")
    model.freeze_projectors()
    assert problem.dense_parameters("adversarial") == sum(p.numel() for p in model.parameters() if p.requires_grad)


def printed(folder, program, config):
    """The last line of what a program prints on one rank."""
    script = folder / "program.py"
    script.write_text(program)
    return nursery.run(1, [str(script), str(config)], ROOT, environment(), timeout=120).stdout.splitlines()[-1]


PERSISTENT = """
import json, sys
from pathlib import Path
from uatmc_dist.config import load_config
from uatmc_dist.data.batches import KnownPositives
from uatmc_dist.data.catalog import Catalog
from uatmc_dist.models.backbone import backbone
from uatmc_dist.parallel import process_group

world = process_group.join()
config = load_config(Path(sys.argv[1]))
catalog = Catalog(config.catalog)
given = catalog, KnownPositives.of_training(catalog), config, world, "adversarial", None, lambda done, total: None
model = backbone(config.model).training_model(*given)
rows = model.content._projected
found = {"projected features": sum(one.nbytes for one in rows)}
if config.model.backbone == "mmgcn":
    parts = [m for side in (model.graph._of_users, model.graph._of_items) for m in (side._matrix, side._transposed)]
    found["adjacency and its transpose"] = sum(
        part.nbytes for m in parts for part in (m.crow_indices(), m.col_indices(), m.values())
    )
for table in model.tables:
    state = [entry for of_table in table.optimizer_state().values() for entry in of_table.values()]
    found[f"{table.name} table"] = table.local_weight.nbytes
    found[f"{table.name} table, optimiser state"] = sum(
        shard.tensor.nbytes for entry in state if hasattr(entry, "local_shards") for shard in entry.local_shards()
    )
print(json.dumps(found))
process_group.leave()
"""


@pytest.mark.parametrize("backbone, user", [("vbpr", "both"), ("vbpr_own_users", "row"), ("mmgcn", "row")])
def test_what_a_rank_keeps_is_what_the_classes_keep(write_config, tiny_catalog, tmp_path, backbone, user):
    config = write_config(model={"user": user, "backbone": backbone})
    pairs = len(Catalog(tiny_catalog).split("train")[0])
    kept = json.loads(printed(tmp_path, PERSISTENT, config))
    problem = Problem(230, 203, pairs, 20, 12, (16, 12), (12,), backbone, user, embedding_dim=8, batch_size=128)
    modelled = sizes(problem, CPU, 1, "adversarial")
    assert kept.pop("adjacency and its transpose", 0) == pytest.approx(
        modelled.get("adjacency and its transpose", 0), rel=0.01
    )
    assert kept == {name: modelled[name] for name in kept}


PEAK = """
import sys
from pathlib import Path
from benchmarks.scaling import peak_bytes
from uatmc_dist.config import load_config
from uatmc_dist.parallel import process_group
from uatmc_dist.training import Position, Trainer

trainer = Trainer(load_config(Path(sys.argv[1])), process_group.join())
trainer.begin(Position("adversarial"))
trainer.train_step(trainer.sampler.batch(0, 0))  # the first one allocates what stays
print(peak_bytes(lambda: trainer.train_step(trainer.sampler.batch(0, 1))))
process_group.leave()
"""


@pytest.mark.parametrize("adversary", ["noise", "uat"])
def test_a_step_at_the_encoder_holds_what_is_said(write_config, tmp_path, adversary):
    """Both passes' activations and raw rows, on top of what a step holds anyway."""
    users, items, pairs = 200, 8000, 2000
    sizes_of = {"users": users, "items": items, "interactions": pairs, "visual_dim": 192, "text_dim": 64}
    synthesize(tmp_path / "wide", **sizes_of, seed=0)
    chosen = {"adversary": adversary, "at": "encoder", "objective": "full_catalog", "epochs": 1}
    config = write_config(catalog=str(tmp_path / "wide"), adversarial=chosen, training={"batch_size": 64})
    held = int(printed(tmp_path, PEAK, config))
    problem = Problem(
        users, items, pairs, 192, 64, (16, 12), (12,), embedding_dim=8, batch_size=64, adversary=adversary, at="encoder"
    )
    modelled = sizes(problem, CPU, 1, "adversarial")
    assert "projected features" not in modelled
    said = sum(modelled[name] for name in (*MADE_BY_A_STEP, "raw features and activations"))
    assert 0.75 * said < held <= said


def test_what_mmgcn_keeps_does_not_grow_with_users_times_items():
    small, large = (
        sum(sizes(Problem(10**6 * k, 10**5 * k, 10**7 * k, backbone="mmgcn"), CPU, 4, "adversarial").values())
        for k in (1, 2)
    )
    assert large < 2.01 * small


@pytest.mark.parametrize("optimizer", ["adagrad", "rowwise_adagrad", "sgd"])
@pytest.mark.parametrize("machine, devices", [(CPU, 4), (h100(), 16)])
def test_torchrecs_planner_agrees_about_the_tables(machine, devices, optimizer):
    problem = Problem(10**6, 10**6, 10**7, user="both", optimizer=optimizer)
    found = {each.name: each for each in plan_tables(problem, machine, devices, 1 if machine is CPU else 2)}
    assert set(found) == {"user", "history", "item"}
    modelled = sizes(problem, machine, devices, "adversarial")
    for name, table in found.items():
        ours = modelled[f"{name} table"] + modelled[f"{name} table, optimiser state"]
        assert (table.sharding, table.kernel, table.shards) == ("row_wise", "fused", devices)
        assert table.rows_per_shard == -(-table.rows // devices)
        # Beside weights and state TorchRec counts the rows of a step going in and out, which are ours elsewhere.
        passing = 4 * table.width * 4 * (problem.rows(devices) if name == "item" else problem.batch_size)
        assert 0.95 * ours <= table.bytes_per_rank <= 1.05 * ours + passing


def test_tables_that_fit_nowhere_are_told():
    problem = Problem(10**11, 10**6, 10**7)
    found = plan(problem, 8, None, "h100", "sampled")
    assert found.tables is None and "no placement" in found.tables_problem
    assert not found.fits and found.smallest_devices is None
    with pytest.raises(UserError, match="no placement"):
        plan_tables(problem, h100(), 8, 1)


def test_rates_of_the_h100_are_those_of_the_kernels_floors():
    for precision, kind in (("fp32", VARIANTS["hvp"].float32), ("bf16", "bf16")):
        rates, floors = h100(precision).rates, GPUS["H100"]
        assert rates["score_flops"] == floors.flops[kind] and rates["bytes"] == floors.bytes
        assert rates["sigmas"] == floors.special / 2 and rates["logs"] == floors.special


def test_instructions_are_those_of_the_static_report():
    report = (ROOT / "docs/kernels.md").read_text()
    for (precision, width), counts in H100_INSTRUCTIONS.items():
        for kernel, count in zip(("loss_and_user_gradients", "item_gradients", "hvp"), counts, strict=True):
            (row,) = re.findall(rf"^\| {kernel} \| sm_90 \| {width} \| {precision} \| (.*) \|$", report, re.MULTILINE)
            columns = row.split(" | ")
            # Every slice of the output's columns is a sweep of its own.
            of_output = width // 2 if kernel == "hvp" else width
            slices = of_output // min(int(columns[1].split(", ")[1]), of_output)
            assert slices * float(columns[10]) == pytest.approx(count)


def test_a_cpu_is_measured():
    machine = measured(64, 8, 1000)
    assert machine.is_cpu and all(rate > 0 and math.isfinite(rate) for rate in machine.rates.values())
    assert machine.device_memory > torch.finfo(torch.float16).max
    assert step_cost(Problem(100, 1000, 1000, batch_size=64, embedding_dim=8), machine, 1).seconds > machine.host_s


def call(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["uatmc", "plan", *arguments])
    with pytest.raises(SystemExit) as exit_:
        main()
    return exit_.value.code


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ("--devices 0", "--devices 0: at least 1 is needed"),
        ("--devices 12 --nodes 5", "--devices 12: not a multiple of --nodes 5"),
        ("--devices 9", "--devices 9: not a multiple of --nodes 2"),
        ("--devices 2 --nodes 4", "--nodes 4: at most 2 (no more than --devices)"),
        ("--devices 16 --nodes 1", "--nodes 1: --devices 16 need at least 2"),
        ("--devices 100000", "--devices 100000: at most 4096"),
        ("--items -3", "--items -3: at least 2 is needed"),
        ("--users 0", "--users 0: at least 1 is needed"),
        ("--users 99999999999999", "--users 99999999999999: at most"),
        ("--interactions 0", "--interactions 0: at least 1 is needed"),
        ("--batch -1", "--batch -1: at least 1 is needed"),
        ("--visual-dim 0", "--visual-dim 0: at least 1 is needed"),
        ("--device tpu", "--device tpu: h100, cpu are known"),
        ("--device cpu --nodes 2", "--nodes 2: at most 1 (--device cpu is this machine)"),
        ("--objective best", "--objective best: sampled, full_catalog, softmax are known"),
        ("--backbone gcn", "--backbone gcn: vbpr, vbpr_own_users, mmgcn are known"),
        ("--backbone mmgcn --user history", "--user history: mmgcn has users of its own kind"),
        ("--backbone mmgcn --adversary certified", "--adversary certified: mmgcn has no certificate"),
        ("--at encoder", "--adversary uat_mc: is not for rows at the encoder; give another, such as uat"),
        ("--at pixels", "--at pixels: projected, encoder are known"),
        ("--user nobody", "--user nobody: row, history, both are known"),
        ("--adversary me", "--adversary me: none, noise"),
        ("--score-precision fp8", "--score-precision fp8: fp32, bf16 are known"),
    ],
)
def test_nonsense_is_refused_in_one_line(monkeypatch, capsys, arguments, expected):
    assert call(monkeypatch, "--users", "100", "--items", "100", *arguments.split()) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith(f"error: {expected}")


def test_json_is_all_that_is_printed_and_the_tables_say_the_same(monkeypatch, capsys):
    arguments = "--users", "10000000", "--items", "1000000", "--devices", "8"
    assert call(monkeypatch, *arguments, "--json") == 0
    out, err = capsys.readouterr()
    made = json.loads(out)
    assert err == "" and made["fits"] is True and made["smallest_devices"] == 1
    step = made["phases"]["adversarial"]["step"]
    assert step["terms"] and step["bottleneck"] and step["seconds"] > 0
    assert {table["name"] for table in made["tables"]} == {"user", "item"}
    assert made["problem"] == json.loads(json.dumps(asdict(Problem(10**7, 10**6, 2 * 10**8))))
    assert call(monkeypatch, *arguments) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for words in (step["bottleneck"], "row_wise", "user table, optimiser state", "score, HVP", "smallest number"):
        assert words in out
