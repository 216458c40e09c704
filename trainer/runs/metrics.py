"""Write a run's metrics as JSON lines and as TensorBoard's events.

Nothing can be appended to an object in a bucket, so the newest file is written again as a whole every few seconds, and
a new file begins when it is large. Every trainer collects records, but only the leader writes them; the others can
fill in what a leader had not written when it was lost. trainer/runs/metrics_reader.py reads them.
"""

import json
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from trainer.contract import pace, paths
from trainer.runs.records import Record
from trainer.storage.base import Storage

FLUSH = 2.0  # seconds, in a folder
LAST_TRIES = 12.0  # seconds to try to write the last records: fewer than a machine has that is asked to leave
SEGMENT = 256 * 1024  # bytes of a file, after which a new one begins


class Metrics:
    """The records of one member, written in the background until close()."""

    def __init__(self, storage: Storage, run: str, name: str, log: Callable[[str], None]) -> None:
        self._storage, self._run, self._name, self._log = storage, run, name, log
        self._every = FLUSH if storage.local_path(paths.RUNS) is not None else pace.METRICS
        self._pending: deque[Record] = deque(maxlen=1000)  # not written yet; bounded, as some members never lead
        self._segment: list[str] = []
        self._size = self._count = 0
        self._shown: list[Record] = []  # written, but not in TensorBoard's files yet
        self._leads = self._fill = False
        self._begun = int(time.time())  # in file names, so that a process that was restarted overwrites none
        self._board: Any = None
        self._writing = threading.Lock()
        self._wake, self._closed = threading.Event(), False
        self._thread = threading.Thread(target=self._loop, name="metrics", daemon=True)
        self._thread.start()

    def add(self, record: Record, *, leads: bool) -> None:
        self._leads = leads
        self._pending.append(record)

    def fill_in(self) -> None:
        """Write the records of this member now: another continues from its state, and perhaps nobody else has them.

        If that fails, it is tried again in the background.
        """
        self._fill = True
        self.flush()

    def flush(self) -> None:
        """Write all records now. If that fails, log it and keep the records for the next time."""
        with self._writing:
            try:
                if self._pending:
                    self._flush()
                self._fill = False
            except Exception as error:  # the storage is away, or the disk is full
                self._log(f"metrics could not be written ({error}); trying again")

    def close(self) -> None:
        """Write the records that are left, and end the thread."""
        self._closed = True
        self._wake.set()
        self._thread.join()

    def _loop(self) -> None:
        closing = False
        while not closing:
            self._wake.wait(self._every)
            closing = self._closed  # read before the last flush, which then writes everything
            if self._leads or self._fill:
                self.flush()
            self._tensorboard()
        end = time.monotonic() + LAST_TRIES
        while (self._leads or self._fill) and self._pending and time.monotonic() < end:  # nobody else may have them
            time.sleep(0.5)
            self.flush()
        self._tensorboard()
        if self._board is not None:
            self._board.close()

    def _flush(self) -> None:
        fresh = [self._pending.popleft() for _ in range(len(self._pending))]
        lines = [json.dumps(r.to_json()) + "\n" for r in fresh]
        if self._size > SEGMENT:
            self._segment, self._size, self._count = [], 0, self._count + 1
        self._segment += lines
        self._size += sum(map(len, lines))
        path = paths.metrics_file(self._run, fresh[0].attempt, self._name, self._begun, self._count)
        try:
            self._storage.write(path, "".join(self._segment).encode())
        except Exception:
            del self._segment[len(self._segment) - len(lines) :]
            self._size -= sum(map(len, lines))
            self._pending.extendleft(reversed(fresh))
            raise
        self._shown += fresh

    def _tensorboard(self) -> None:
        with self._writing:
            fresh, self._shown = self._shown, []
        try:
            self._show(fresh)
        except Exception as error:  # disk full
            self._log(f"TensorBoard's files could not be written ({error}); continuing")

    def _show(self, records: list[Record]) -> None:
        folder = self._storage.local_path(paths.tensorboard(self._run))
        if not records or folder is None:
            return
        # 0.4 s of imports that the first step should not wait for; only the member that writes needs them.
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        if self._board is None:
            self._board = EventFileWriter(str(folder), flush_secs=10)
        names = {
            "loss/train": "loss",
            "loss/validation": "validation_loss",
            "optimizer/learning_rate": "learning_rate",
            "optimizer/gradient_norm": "gradient_norm",
            "speed/tokens_per_second": "tokens_per_second",
            "speed/mfu": "mfu",
        }
        for record in records:
            for tag, field in names.items():
                value = getattr(record, field)
                if value is not None:
                    summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
                    self._board.add_event(Event(wall_time=record.time, step=record.step, summary=summary))
