"""What a function does with tensors, recorded as it runs: a list of operations that can be called again without it.

A network's layers, autograd and autocast decide at every step what they decided at the step before. Recorded are the operations
that come of it, PyTorch's as they are dispatched below all three, and the kernels' calls into their library.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from sepnet.kernels import watching

__all__ = ["Program", "Recorder", "UnrecordableError"]

Program = Callable[[Tensor, Tensor], tuple[Tensor, ...]]

_WRITTEN_AS_THEY_ARE = {str, int, float, bool, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format}
_DEPENDS_ON_VALUES = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
_SAME_TENSOR = {torch.ops.aten.detach.default, torch.ops.aten.alias.default}  # where there is no autograd


class UnrecordableError(Exception):
    """The function reads what is not there at the next call: a value, or a tensor that no recorded operation has made."""


class Recorder(TorchDispatchMode):
    """Records what a function does with two tensors that are plain ones on the CPU, not the same, and without gradients.

    Args:
        known: tensors that the function may read beside its inputs. They stay where they are; their values may change.
    """

    def __init__(self, inputs: tuple[Tensor, Tensor], known: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._inputs = inputs
        self._graph = fx.Graph()
        # By weak references: who held the gradients here would make autograd copy them.
        self._nodes = WeakTensorKeyDictionary()
        for i, tensor in enumerate(inputs):
            self._nodes[tensor] = self._graph.placeholder(f"input_{i}")
        self._known = WeakTensorKeyDictionary(dict.fromkeys(known, True))
        self._shared: set[Any] = set()
        self._constants: list[Any] = []
        self._last_placeholder = self._graph.placeholder("no_constant")
        self._inside = False
        self._problem: str | None = None

    def run(self, function: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """The function's results, of a call that is recorded. What cannot be recorded is done as well."""
        with self, watching(self.native_call):
            return function(*self._inputs)

    def program(self, outputs: Sequence[Tensor]) -> Program:
        """From inputs to ``outputs``, tensors of the call that was recorded.

        To be called under ``torch.no_grad()`` and without autocast, with inputs of the same shapes, strides and types. Random
        numbers are drawn anew, in the same order.

        Raises:
            UnrecordableError: the message says what was met.
        """
        self._graph.output(self._written(tuple(outputs)))
        if self._problem is not None:
            raise UnrecordableError(self._problem)
        for node in reversed(self._graph.nodes):
            if node.target is operator.getitem and not node.users:
                self._graph.erase_node(node)
        call = fx.GraphModule({}, self._graph).forward
        constants = tuple(self._constants)
        return lambda x, y: call(x, y, None, *constants)

    # --- what runs -------------------------------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self._inside and func.namespace != "profiler":
            self._operation(func, args, kwargs or {}, result)
        return result

    def native_call(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Call a function of the kernels, whose inside is nobody's business."""
        if self._inside:
            return function(*args)
        self._inside = True
        try:
            result = function(*args)
        finally:
            self._inside = False
        self._write(function, args, {}, result)
        return result

    def _operation(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        if _DEPENDS_ON_VALUES & set(func.tags):
            self._refuse(f"{func} depends on values")
        elif torch.Tag.inplace_view in func.tags and args[0] in self._nodes and self._nodes[args[0]] in self._shared:
            self._refuse(f"{func} changes the shape of one of two tensors that are taken for the same")
        elif func in _SAME_TENSOR and args[0] in self._nodes:
            self._nodes[result] = self._nodes[args[0]]
            self._shared.add(self._nodes[result])
        elif func.is_view and isinstance(result, Tensor) and not kwargs and self._are_known(args):
            self._constant(result)
        else:
            self._write(func, args, kwargs, result)

    def _refuse(self, problem: str) -> None:
        """Not by an exception from within somebody's step, which is a real one and is to be finished."""
        self._problem = self._problem or problem

    # --- what is written -------------------------------------------------------------------------------------------------------

    def _write(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        if self._problem is None:
            node = self._graph.call_function(
                function, self._written(args), {name: self._written(value) for name, value in kwargs.items()}
            )
            self._made(result, node)

    def _written(self, value: Any) -> Any:
        """An argument, with nodes for its tensors."""
        if isinstance(value, Tensor):
            return self._node(value)
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*map(self._written, value))
        if isinstance(value, tuple | list):
            return type(value)(map(self._written, value))
        return value if type(value) in _WRITTEN_AS_THEY_ARE else self._constant(value)

    def _node(self, tensor: Tensor) -> Any:
        if tensor in self._nodes:
            return self._nodes[tensor]
        if tensor in self._known:
            return self._constant(tensor)
        self._refuse(f"a tensor of shape {tuple(tensor.shape)} comes from nowhere")
        return None

    def _constant(self, value: Any) -> fx.Node:
        """The program's own argument for what is the same at every call."""
        with self._graph.inserting_after(self._last_placeholder):
            node = self._graph.placeholder(f"constant_{len(self._constants)}")
        self._last_placeholder = node
        self._constants.append(value)
        if isinstance(value, Tensor):
            self._nodes[value] = node
            self._known[value] = True
        return node

    def _are_known(self, args: tuple[Any, ...]) -> bool:
        tensors = [a for a in args if isinstance(a, Tensor)]
        return bool(tensors) and all(t in self._known for t in tensors)

    def _made(self, result: Any, node: fx.Node) -> None:
        """Where the values of an operation's result are from now on."""
        if isinstance(result, Tensor):
            if result not in self._known:
                self._nodes[result] = node
        elif isinstance(result, tuple | list):
            for i, part in enumerate(result):
                if isinstance(part, Tensor | tuple | list):
                    self._made(part, self._graph.call_function(operator.getitem, (node, i)))
