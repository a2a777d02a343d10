"""The name of an attempt: common to its ranks, unlike that of any other attempt, whatever the store still holds."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import torch.distributed as dist

from uatmc_dist.parallel.process_group import _agreed_attempt


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
