"""Read micro-batches into tensors. With a GPU, a thread reads those of the next step while this step computes."""

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from trainer.data.batches import Batches, Examples, Indices, PairBatches, Windows


@dataclass(frozen=True)
class RowTensors:
    """The rows of a micro-batch."""

    inputs: Tensor  # int64 [rows, tokens]
    targets: Tensor  # of the same shape
    counted: Tensor | None  # int64: the positions of the flattened targets that count; None if all do
    tokens: int  # targets that count

    def to(self, device: torch.device) -> Self:
        """Return it on `device`. From pinned memory the copy goes on while the caller continues."""
        inputs, targets = (rows.to(device, non_blocking=True) for rows in (self.inputs, self.targets))
        counted = None if self.counted is None else self.counted.to(device, non_blocking=True)
        return replace(self, inputs=inputs, targets=targets, counted=counted)


def read(source: Windows | Examples, indices: Indices, *, pinned: bool) -> RowTensors:
    """Return the rows of these indices in memory, in pinned memory if asked, from which a GPU copies by itself."""
    inputs, targets = source.rows(indices)
    tensors = [torch.from_numpy(inputs), torch.from_numpy(targets)]
    if isinstance(source, Examples):  # found here, because a GPU could only be asked for them by waiting for it
        tensors.append(torch.from_numpy(np.flatnonzero(targets.reshape(-1) >= 0)))
    if pinned:
        tensors = [tensor.pin_memory() for tensor in tensors]
    return RowTensors(tensors[0], tensors[1], tensors[2] if len(tensors) > 2 else None, source.counted(indices))


class Prefetch:
    """The micro-batches of one process, step by step.

    Reading takes 0.1 ms a micro-batch. A GPU would wait for it; a CPU has to spend it anyway, and a thread costs more
    (docs/performance.md). So by default only a process with a GPU reads ahead.
    """

    def __init__(self, batches: Batches | PairBatches, device: torch.device, *, ahead: bool | None = None) -> None:
        """Read nothing yet.

        Args:
            batches: of the run.
            device: of this process. With CUDA, it is the current device of this thread.
            ahead: whether to read ahead; None decides by the device.
        """
        self._batches, self._pinned = batches, device.type == "cuda"
        self._gpu = torch.cuda.current_device() if self._pinned else -1
        self._reads_ahead = self._pinned if ahead is None else ahead
        self._wanted: tuple[int, list[slice]] | None = None  # what is read ahead
        self._future: Future[list[RowTensors]] = Future()

    def take(self, step: int, parts: list[slice]) -> Iterator[RowTensors]:
        """Yield the micro-batches of a step. After the first, when a GPU has work, begin to read the next step's.

        Args:
            step: counts from 0.
            parts: the micro-batches' rows, as slices of the batch. The next step's are probably the same. If not,
                because the members have changed, what was read ahead is thrown away.
        """
        future = self._future if self._wanted == (step, parts) else None
        micro_batches = self._read(step, parts) if future is None else future.result()  # raises what the thread raised
        for i, micro_batch in enumerate(micro_batches):
            yield micro_batch
            if i == 0 and self._reads_ahead:
                self._begin(step + 1, parts)

    def _read(self, step: int, parts: list[slice]) -> Iterable[RowTensors]:
        indices = self._batches.batch(step)
        return (read(self._batches, indices[part], pinned=self._pinned) for part in parts)

    def _begin(self, step: int, parts: list[slice]) -> None:
        future: Future[list[RowTensors]] = Future()

        def work() -> None:
            try:
                if self._pinned:  # a thread begins with the first GPU
                    torch.cuda.set_device(self._gpu)
                future.set_result(list(self._read(step, parts)))
            except BaseException as error:  # for the thread that takes the result
                future.set_exception(error)

        self._wanted, self._future = (step, parts), future
        threading.Thread(target=work, name="prefetch", daemon=True).start()
