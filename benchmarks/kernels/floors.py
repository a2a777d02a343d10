"""The least time an op can take on a machine: bytes, tensor FLOPs and special functions, each at its peak rate.

python -m benchmarks.kernels.floors     # the table of docs/kernels.md
"""

import time
from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Work:
    """What an op cannot avoid: every input read once, every output written once, every score computed once."""

    bytes: float
    flops: float
    special: float = 0.0
    """exp, log and reciprocal; one logarithm serves many scores and is not counted."""
    float32: str = "bf16x3"
    """What products of float32 are made of: three of bfloat16, or three of TF32."""

    def __add__(self, other: "Work") -> "Work":
        return replace(
            self, bytes=self.bytes + other.bytes, flops=self.flops + other.flops, special=self.special + other.special
        )


@dataclass(frozen=True)
class Machine:
    """Peak rates, per second."""

    name: str
    bytes: float
    flops: dict[str, float]
    """Of bf16, and of float32 by what its products are made of (`Work.float32`)."""
    special: float

    def times(self, work: Work, dtype: str) -> dict[str, float]:
        return {
            "bytes": work.bytes / self.bytes,
            "tensor FLOPs": work.flops / self.flops["bf16" if dtype == "bf16" else work.float32],
            "special functions": work.special / self.special,
        }

    def floor(self, work: Work, dtype: str) -> float:
        return max(self.times(work, dtype).values())


def _products(bf16: float, tf32: float) -> dict[str, float]:
    return {"bf16": bf16, "bf16x3": bf16 / 3, "tf32x3": tf32 / 3}


# NVIDIA's data sheets (dense rates, SXM); 16 special functions a clock and multiprocessor, at the boost clock.
GPUS = {
    "A100": Machine("A100", 2.04e12, _products(312e12, 156e12), 16 * 108 * 1.41e9),
    "H100": Machine("H100", 3.35e12, _products(989e12, 494e12), 16 * 132 * 1.83e9),
    "H200": Machine("H200", 4.8e12, _products(989e12, 494e12), 16 * 132 * 1.83e9),
    "B200": Machine("B200", 8.0e12, _products(2250e12, 1100e12), 16 * 148 * 1.85e9),
}


def this_machine(device: str) -> Machine | None:
    """Data-sheet rates of a known GPU; measured ones of this CPU, special functions as one pass of sigmoid."""
    if device == "cuda":
        name = torch.cuda.get_device_name()
        return next((machine for known, machine in GPUS.items() if known in name), None)
    left, right = torch.randn(2048, 2048), torch.randn(2048, 2048)
    product = torch.empty(2048, 2048)
    flops = 2 * 2048**3 / _best(lambda: torch.mm(left, right, out=product))
    long = torch.randn(64 << 20)
    other = torch.empty_like(long)
    bandwidth = 2 * 4 * len(long) / _best(lambda: other.copy_(long))
    short = torch.randn(256 << 10)
    special = 2 * len(short) / _best(lambda: torch.sigmoid(short, out=other[: len(short)]))
    return Machine("this CPU", bandwidth, dict.fromkeys(("bf16", "bf16x3", "tf32x3"), flops), special)


def _best(function, repeats: int = 7) -> float:  # type: ignore[no-untyped-def]
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def loss(num_users: int, num_items: int, width: int, itemsize: int) -> Work:
    """Scores and softplus; users and items are read."""
    scores = num_users * num_items
    return Work((num_users + num_items) * width * itemsize, 2 * scores * width, scores)


def loss_and_gradients(num_users: int, num_items: int, width: int, itemsize: int) -> Work:
    """Scores, softplus and sigma (an exponential and a reciprocal), and two more products."""
    scores = num_users * num_items
    return Work(2 * (num_users + num_items) * width * itemsize, 6 * scores * width, 2 * scores)


def logsumexp(num_users: int, num_items: int, width: int, itemsize: int) -> Work:
    """Scores and one exponential each."""
    return loss(num_users, num_items, width, itemsize)


def logsumexp_and_gradients(num_users: int, num_items: int, width: int, itemsize: int) -> Work:
    """The sum has to be there before the gradients: scores and exponentials twice, and two more products."""
    scores = num_users * num_items
    return Work(2 * (num_users + num_items) * width * itemsize, 8 * scores * width, 2 * scores)


def hvp(num_users: int, num_items: int, width: int, content: int, itemsize: int) -> Work:
    scores = num_users * num_items
    rows = (num_users + num_items) * width + 2 * num_items * content
    return Work(rows * itemsize, 2 * scores * (width + 2 * content), 2 * scores)


def coordinate(num_items: int, width: int, itemsize: int) -> Work:
    """g read, omega written in float32; two projections there and back."""
    return Work(num_items * width * (itemsize + 4), 8 * num_items * width**2, float32="tf32x3")


def perturb(num_items: int, width: int, itemsize: int) -> Work:
    """g, v, t read, both deltas written; two projections."""
    return Work(5 * num_items * width * itemsize, 4 * num_items * width**2, float32="tf32x3")


def perturbed_content(num_items: int, width: int, itemsize: int) -> Work:
    """g, v, t read, content written; two projections there and back."""
    return Work(4 * num_items * width * itemsize, 8 * num_items * width**2, float32="tf32x3")


def ranking(num_users: int, num_items: int, width: int, itemsize: int) -> Work:
    """Scores; users and items are read, results are small."""
    return Work((num_users + num_items) * width * itemsize, 2 * num_users * num_items * width, float32="tf32x3")


def table(num_users: int = 2048, num_items: int = 1_000_000, width: int = 128) -> list[str]:
    """Floors in milliseconds by op, dtype and GPU; the larger of a row's three is the limit."""
    lines = [
        "| op | dtype | " + " | ".join(f"{gpu}: bytes, FLOPs, special" for gpu in GPUS) + " |",
        "| --- | --- |" + " --- |" * len(GPUS),
    ]
    content = width // 2
    for dtype, size in (("bf16", 2), ("fp32", 4)):
        works = {
            "bpr_all_items, loss": loss(num_users, num_items, width, size),
            "bpr_all_items, loss and gradients": loss_and_gradients(num_users, num_items, width, size),
            "bpr_all_items_hvp": hvp(num_users, num_items, width, content, size),
            "logsumexp_all_items, with gradients": logsumexp_and_gradients(num_users, num_items, width, size),
            "coordinate": coordinate(num_items, content, size),
            "perturb": perturb(num_items, content, size),
            "perturbed_content": perturbed_content(num_items, content, size),
            "topk_all_items, count_above": ranking(num_users, num_items, width, size),
        }
        for op, work in works.items():
            cells = []
            for gpu in GPUS.values():
                times = gpu.times(work, dtype)
                largest = max(times, key=times.__getitem__)
                cells.append(", ".join(_milliseconds(seconds, kind == largest) for kind, seconds in times.items()))
            lines.append(f"| {op} | {dtype} | " + " | ".join(cells) + " |")
    return lines


def _milliseconds(seconds: float, is_limit: bool) -> str:
    text = f"{seconds * 1e3:.2f}"
    return f"**{text}**" if is_limit else text


if __name__ == "__main__":
    print("\n".join(table()))
