"""Ops of torch.library (namespace uatmc), with fake kernels and derivatives of their own.

What torch.library.custom_op does, but for its wrappers: these import torch._dynamo at the first call, more than a
second of every program, and stand between each call and the function.
"""

from collections.abc import Callable
from typing import Any

import torch

_NAMESPACE = "uatmc"
_Function = Callable[..., Any]


class Op:
    """A function of tensors that torch.compile and the dispatcher know; it changes none of its arguments."""

    def __init__(self, name: str, function: _Function) -> None:
        self._name = f"{_NAMESPACE}::{name}"
        self._backward: _Function = self._no_derivative
        self._setup_context: _Function = lambda ctx, inputs, output: None
        torch.library.define(self._name, torch.library.infer_schema(function, mutates_args=()))
        torch.library.impl(self._name, "default", function)
        torch.library.register_autograd(
            self._name,
            lambda ctx, *gradients: self._backward(ctx, *gradients),
            setup_context=lambda ctx, inputs, output: self._setup_context(ctx, inputs, output),
        )
        self._overload = getattr(getattr(torch.ops, _NAMESPACE), name).default

    def __call__(self, *arguments: Any) -> Any:
        return self._overload(*arguments)

    def register_fake(self, function: _Function) -> _Function:
        """Shapes and dtypes of what comes out."""
        return torch.library.register_fake(self._name, function)

    def register_autograd(self, backward: _Function, setup_context: _Function) -> None:
        """As torch.library.register_autograd; without it a backward pass raises RuntimeError."""
        self._backward, self._setup_context = backward, setup_context

    def _no_derivative(self, ctx: Any, *gradients: Any) -> None:
        raise RuntimeError(f"{self._name} has no derivative")


def op(name: str) -> Callable[[_Function], Op]:
    """Decorator: the function as an op."""
    return lambda function: Op(name, function)
