"""Every kernel that is launched, with its compile-time arguments: one definition for launching and for looking at it.

A variant is a kernel with its flags fixed. The launchers and the static report take tile shapes and options from the
same entry, so that the code measured in docs/kernels.md is the code that runs.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from triton import next_power_of_2

from uatmc_kernels.triton import _ranking, _rows, _softmax, _sweeps
from uatmc_kernels.triton._launches import Launch, launch_for


@dataclass(frozen=True)
class Variant:
    """One entry of the launch table: a kernel and the flags that make it another program."""

    name: str
    kernel: Any
    flags: dict[str, Any] = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    """Pointer arguments that are None in the compiled form that is reported."""
    of_content: bool = False
    """Whether its output has the content's columns alone."""
    float32: str = "bf16x3"
    """How float32 is multiplied: as three products of bfloat16, to 2^-16 of |u| |v| (as PyTorch's "high"), or, where an
    order or a bound hangs on it, of TF32, as exact as PyTorch's default."""

    @property
    def hoists(self) -> bool:
        """Whether its launches say if it does."""
        return "HOIST" in self.kernel.arg_names

    def precision(self, dtype: torch.dtype) -> str:
        return self.float32 if dtype == torch.float32 else "ieee"

    def block_arguments(self, launch: Launch, widths: dict[str, int]) -> dict[str, int]:
        """What the kernel takes of a launch, its tile shapes for the widths K (scores), D (content), M (modalities).

        A launch is made for its table's width; narrower rows need no wider columns.
        """
        blocks = {"BO": launch.block_owner, "BS": launch.block_stream, "HOIST": launch.hoist}
        for letter, width in widths.items():
            narrow = max(16, next_power_of_2(width))
            blocks[f"{letter}C"] = min(launch.block_k, narrow)
            blocks[f"{letter}O"] = min(launch.out_k, narrow)
        return {name: size for name, size in blocks.items() if name in self.kernel.arg_names}


_WITHOUT_CHANGE = ("owner_change", "stream_change", "mean_change")
VARIANTS = {
    variant.name: variant
    for variant in (
        Variant(
            "loss",
            _sweeps.sweep,
            {"OWNER_IS_USER": True, "WITH_LOSS": True, "WITH_GRADIENT": False, "ACCUMULATE": True},
            ("weights", "sigma_out", "gradient_out"),
        ),
        Variant(
            "loss_and_user_gradients",
            _sweeps.sweep,
            {"OWNER_IS_USER": True, "WITH_LOSS": True, "WITH_GRADIENT": True, "ACCUMULATE": True},
            ("weights",),
        ),
        Variant(
            "item_gradients",
            _sweeps.sweep,
            {"OWNER_IS_USER": False, "WITH_LOSS": False, "WITH_GRADIENT": True, "ACCUMULATE": False},
            ("weights", "loss_out", "sigma_out"),
        ),
        Variant("atomic", _sweeps.atomic_sweep),
        Variant("second_order_of_users", _sweeps.second_order, {"OWNER_IS_USER": True, "ACCUMULATE": True}),
        Variant(
            "second_order_of_items",
            _sweeps.second_order,
            {"OWNER_IS_USER": False, "ACCUMULATE": False},
            ("d_weights_out", "d_sigma_out"),
        ),
        Variant("hvp", _sweeps.hvp, of_content=True),
        Variant("logsumexp", _softmax.logsumexp),
        *(
            Variant(
                name,
                _softmax.softmax_sweep,
                {
                    "OWNER_IS_USER": of_users,
                    "WITH_CHANGE": with_change,
                    "VALUES_ARE_THERE": are_there,
                    "ACCUMULATE": of_users,
                },
                absent,
                of_content=with_change and are_there,
            )
            for name, of_users, with_change, are_there, absent in (
                ("softmax_of_users", True, False, True, (*_WITHOUT_CHANGE, "weights", "sums_out")),
                ("softmax_of_items", False, False, True, (*_WITHOUT_CHANGE, "sums_out")),
                ("softmax_change", True, True, False, ("mean_change", "weights", "values", "gradient_out")),
                ("softmax_hvp", False, True, True, ("weights", "sums_out")),
                ("softmax_second_of_users", True, True, False, ("weights", "sums_out")),
                ("softmax_second_of_items", False, True, False, ("sums_out",)),
            )
        ),
        Variant("coordinate", _rows.coordinate, float32="tf32x3"),
        Variant("perturb", _rows.perturb, {"LINF": False}, float32="tf32x3"),
        Variant("perturbed_content", _rows.perturbed_content, {"LINF": False}, float32="tf32x3"),
        Variant("topk_64", _ranking.topk, {"KEPT": 64}, float32="tf32x3"),
        Variant("topk_128", _ranking.topk, {"KEPT": 128}, float32="tf32x3"),
        Variant("count_above", _ranking.count_above, float32="tf32x3"),
    )
}


@dataclass(frozen=True)
class _OnDevice:
    """A kernel whose launches go to the device of a tensor, whichever is the current one: Triton takes that one."""

    kernel: Any
    like: torch.Tensor

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*arguments: Any, **constants: Any) -> None:
            with torch.cuda.device_of(self.like):
                self.kernel[grid](*arguments, **constants)

        return launch


@dataclass(frozen=True)
class Prepared:
    """A kernel ready to be launched on tensors like one given."""

    kernel: "_OnDevice"
    blocks: dict[str, int]
    constants: dict[str, Any]
    """The variant's flags, tile shapes, precision and compiler options: what every launch of it passes."""


def prepare(name: str, widths: dict[str, int], like: torch.Tensor, **flags: Any) -> Prepared:
    """The table's launch for rows of these widths (letters as in `block_arguments`); `flags` replace the variant's."""
    variant, launch = VARIANTS[name], launch_for(name, widths.get("K", max(widths.values())), like)
    blocks = variant.block_arguments(launch, widths)
    constants = {**variant.flags, **flags, **blocks, "PRECISION": variant.precision(like.dtype), **launch.options}
    return Prepared(_OnDevice(variant.kernel, like), blocks, constants)
