"""How ranks join: a name for each attempt, a device for each rank, and one line where a GPU cannot be used."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection

from uatmc_dist.doctor import gpu_problems
from uatmc_dist.errors import UserError
from uatmc_dist.models.tables import _row_wise_plan
from uatmc_dist.parallel.process_group import _agreed_attempt, is_loss_of_a_rank, own_device, start_triton


def test_ranks_agree_whatever_dead_attempts_left_in_the_store():
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=30))
    stores = [dist.TCPStore("127.0.0.1", server.port, is_master=False, timeout=timedelta(seconds=30)) for _ in range(3)]
    # A rank that died while it waited, one that died after its answer.
    stores[0].set("question_1", "of a dead rank")
    stores[0].set("question_2", "of another dead rank")
    stores[0].set("answer_of another dead rank", "dead attempt")
    names = []
    with ThreadPoolExecutor(3) as pool:
        for _ in range(3):
            first, *others = pool.map(
                lambda rank: _agreed_attempt(stores[rank], rank, 3, timedelta(minutes=1)), range(3)
            )
            assert others == [first, first]
            names.append(first)
    assert len({*names, "dead attempt"}) == 4


def test_gpus_that_torch_cannot_use_are_no_reason_to_train_on_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(UserError, match=r"CUDA 13\.0 needs a newer one"):
        own_device(0)
    for hidden in ("", "-1", "NoDevFiles"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert own_device(0) == torch.device("cpu") and gpu_problems() == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert own_device(3) == torch.device("cpu")


def test_more_ranks_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (8, 9))
    assert own_device(1) == torch.device("cuda", 1)
    with pytest.raises(UserError, match="rank 2 of this machine has no GPU, PyTorch sees 2"):
        own_device(2)


@pytest.mark.parametrize("capability, is_refused", [((8, 6), False), ((9, 0), False), ((10, 3), True), ((12, 0), True)])
def test_gpus_that_the_tables_have_no_code_for_are_refused(monkeypatch, capability, is_refused):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    if is_refused:
        with pytest.raises(UserError, match=f"compute capability {capability[0]}.{capability[1]}, and fbgemm-gpu"):
            own_device(0)
    else:
        assert own_device(0) == torch.device("cuda", 0)


def test_a_driver_that_triton_cannot_compile_is_one_line(monkeypatch):
    driver = pytest.importorskip("triton.runtime.driver").driver

    class NoCompiler:
        def get_current_device(self):
            raise RuntimeError("Failed to find C compiler.\nPlease specify via CC")

    monkeypatch.setattr(driver, "_active", NoCompiler())
    with pytest.raises(
        UserError, match=r"Failed to find C compiler\. Please specify via CC.*gcc.*python3-dev"
    ) as error:
        start_triton()
    assert "\n" not in str(error.value)


def test_ranks_of_the_second_machine_lie_on_its_own_gpus(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    config = EmbeddingConfig(name="item", embedding_dim=4, num_embeddings=64, feature_names=["item"])
    collection = EmbeddingCollection(tables=[config], device=torch.device("meta"))
    plan = _row_wise_plan(collection, EmbeddingCollectionSharder(), "item", 16, "cuda")
    placed = [str(shard.placement) for shard in plan["item"].sharding_spec.shards]
    assert placed == [f"rank:{rank}/cuda:{rank % 8}" for rank in range(16)]


def test_a_lost_rank_is_recognised_under_gloo_and_nccl():
    nccl = RuntimeError("NCCL error in: ProcessGroupNCCL.cpp:1, remote process exited or there was a network error")
    assert all(is_loss_of_a_rank(error) for error in (nccl, RuntimeError("[gloo] Connection closed by peer")))
    assert not is_loss_of_a_rank(RuntimeError("shape mismatch"))
