"""DeepSpeed engine of the dense parameters: ZeRO, mixed precision, clipping; and its state by parameter name."""

import logging
import os

import torch
from torch import nn

from uatmc_dist.config import EngineConfig, TrainingConfig
from uatmc_dist.parallel.process_group import World
from uatmc_dist.parallel.traffic import TRAFFIC

_MOMENTS = ("exp_avg", "exp_avg_sq")


class DenseEngine:
    """The dense parameters that train, under AdamW. Without any (BPR-MF), only the backward pass is left."""

    def __init__(self, module: nn.Module, training: TrainingConfig, config: EngineConfig, world: World) -> None:
        self._world = world
        self._stage = config.zero_stage
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        if not self.parameters:
            self._engine = None
            return
        deepspeed = _import_deepspeed()
        optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=training.lr, weight_decay=training.weight_decay, fused=True
        )
        per_rank = -(-training.batch_size // world.size)
        self._engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=optimizer,
            dist_init_required=False,
            config={
                "train_micro_batch_size_per_gpu": per_rank,
                "gradient_accumulation_steps": 1,
                "zero_optimization": {"stage": config.zero_stage},
                "bf16": {"enabled": config.precision == "bf16"},
                "gradient_clipping": config.gradient_clipping,
                "steps_per_print": 1 << 60,
            },
        )
        self._make_moments()

    def backward(self, partial_loss: torch.Tensor) -> None:
        """Gradients of the sum over ranks of `partial_loss`. The tables' optimisers run inside."""
        TRAFFIC.all_reduced(sum(p.nbytes for p in self.parameters.values()))
        # DeepSpeed averages dense gradients over the ranks, and so does TorchRec for the tables.
        loss = partial_loss if self._world.size == 1 else partial_loss * self._world.size
        if self._engine is None:
            loss.backward()
        else:
            self._engine.backward(loss)

    def step(self) -> None:
        if self._engine is not None:
            self._engine.step()

    def set_lr(self, lr: float) -> None:
        if self._engine is not None:
            for group in self._engine.optimizer.param_groups:
                group["lr"] = lr

    def weights(self) -> dict[str, torch.Tensor]:
        """float32 weights by parameter name. Collective."""
        if self._engine is None:
            return {}
        if self._stage == 0:
            return {name: p.detach().float() for name, p in self.parameters.items()}
        from deepspeed.utils import safe_get_full_fp32_param

        return {name: safe_get_full_fp32_param(p).detach().clone() for name, p in self.parameters.items()}

    def state(self) -> dict[str, torch.Tensor]:
        """AdamW state under global names (`PARAMETER.exp_avg`, ..., `step`). Collective."""
        if self._engine is None:
            return {}
        state = {"step": torch.tensor(self._num_steps())}
        for name, parameter in self.parameters.items():
            for moment in _MOMENTS:
                state[f"{name}.{moment}"] = self._moment(parameter, moment)
        return state

    def load(self, weights: dict[str, torch.Tensor], state: dict[str, torch.Tensor]) -> None:
        """Puts back what `weights` and `state` gave, at any world size. Collective."""
        if self._engine is None:
            return
        self.load_weights(weights)
        for name, parameter in self.parameters.items():
            for moment in _MOMENTS:
                self._set_moment(parameter, moment, state[f"{name}.{moment}"])
        for entry in self._torch_optimizer.state.values():
            entry["step"] = state["step"].to(entry["step"].device, copy=True)

    def load_weights(self, weights: dict[str, torch.Tensor]) -> None:
        for name, parameter in self.parameters.items():
            if self._stage:
                from deepspeed.utils import safe_set_full_fp32_param

                safe_set_full_fp32_param(parameter, weights[name])
            with torch.no_grad():
                parameter.copy_(weights[name])

    @property
    def _torch_optimizer(self) -> torch.optim.Optimizer:
        assert self._engine is not None
        return getattr(self._engine.optimizer, "optimizer", self._engine.optimizer)

    def _num_steps(self) -> float:
        return next((float(entry["step"]) for entry in self._torch_optimizer.state.values() if "step" in entry), 0.0)

    def _make_moments(self) -> None:
        """Adam's moments are made at the first step, which is too late to load them: make them now."""
        if self._stage == 0:
            for parameter in self.parameters.values():
                zeros = {moment: torch.zeros_like(parameter) for moment in _MOMENTS}
                self._torch_optimizer.state[parameter] = {"step": _no_step(parameter), **zeros}
            return
        zero = self._engine.optimizer  # type: ignore[union-attr]
        for flat in zero.single_partition_of_fp32_groups:
            zeros = {moment: torch.zeros_like(flat) for moment in _MOMENTS}
            zero.optimizer.state[flat] = {"step": _no_step(flat), **zeros}
        zero._lazy_init_hp_params_optimizer_state()

    def _moment(self, parameter: nn.Parameter, moment: str) -> torch.Tensor:
        if self._stage == 0:
            return self._torch_optimizer.state[parameter][moment].detach().clone()
        from deepspeed.utils import safe_get_full_optimizer_state

        return safe_get_full_optimizer_state(parameter, moment).detach().reshape(parameter.shape).clone()

    def _set_moment(self, parameter: nn.Parameter, moment: str, value: torch.Tensor) -> None:
        if self._stage == 0:
            self._torch_optimizer.state[parameter][moment].copy_(value)
            return
        from deepspeed.utils import safe_set_full_optimizer_state

        safe_set_full_optimizer_state(parameter, value, moment)


def _no_step(parameter: torch.Tensor) -> torch.Tensor:
    """AdamW's count, where its one kernel for all parameters reads it."""
    return torch.zeros((), device=parameter.device)


def _import_deepspeed():  # type: ignore[no-untyped-def]
    os.environ.setdefault("DS_LOG_LEVEL", "error")
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    if not torch.cuda.is_available():
        # Otherwise every op is probed at start-up, with a C compiler, and its shared-memory collectives are built. On a
        # GPU they are not, and nothing asks for the list.
        deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}
    deepspeed.init_distributed(dist_init_required=False, verbose=False)
    return deepspeed
