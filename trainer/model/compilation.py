"""Compile the transformer's blocks and the head's cross-entropy with torch.compile, once for all numbers of rows.

Blocks are compiled one by one and not as one graph: all of them share the compiled code, gradients become final block
by block and can travel while backward continues, and FSDP can gather one block at a time.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

from trainer.contract.errors import first_line

ROWS, TOKENS = 0, 1  # dimensions of a block's input, which has the shape (rows, tokens, width)


class Compiler:
    """What torch.compile makes of functions. If it fails, log that once, and continue without it everywhere.

    Args:
        log: called with a line when compiling has failed.
        widths: whether the number of tokens in a row varies, as with pairs, and not only the number of rows.
    """

    def __init__(self, log: Callable[[str], None], *, widths: bool = False) -> None:
        self._log, self._dimensions = log, (ROWS, TOKENS) if widths else (ROWS,)
        self._failed = False
        self.active = False  # while a loss is computed: samples use the blocks uncompiled, as their shapes never repeat

    def blocks(self, model: GPT2LMHeadModel) -> None:
        """Compile the blocks in place. Hooks of the modules stay outside of the compiled code."""
        for block in model.transformer.h:
            block.forward = self._chosen(block.forward)

    def _chosen(self, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        fast = self.function(forward, self._dimensions)

        def call(hidden: Tensor, *arguments: Any, **options: Any) -> Tensor:
            return (fast if self.active else forward)(hidden, *arguments, **options)

        return call

    def function(self, function: Callable[..., Any], dimensions: tuple[int, ...] = (ROWS,)) -> Callable[..., Any]:
        """Return `function`, compiled when it is first called. dimensions: those of its tensors that vary."""
        compiled: Callable[..., Any] | None = None

        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal compiled
            if self._failed:
                return function(*arguments, **options)
            # A dimension of size 1 is compiled on its own: torch knows no variable that may be 1.
            for tensor in arguments:
                if isinstance(tensor, Tensor) and tensor.dim() > 0:
                    torch._dynamo.maybe_mark_dynamic(tensor, dimensions)
            if compiled is not None:
                return compiled(*arguments, **options)
            try:
                fast = torch.compile(function)
                result = fast(*arguments, **options)
            except Exception as error:  # any compiler failure: a missing g++, an unsupported GPU, a bug
                self._log(f"torch.compile failed ({first_line(error)}); continuing without it")
                self._failed = True
                return function(*arguments, **options)
            compiled = fast
            return result

        return call

    def within(self, loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Return `loss`, which computes with the compiled blocks."""

        def call(*arguments: Any, **options: Any) -> Tensor:
            self.active = True
            try:
                return loss(*arguments, **options)
            finally:
                self.active = False

        return call
