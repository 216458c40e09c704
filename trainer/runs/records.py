"""The records of a run, written while it trains: Status, MachineStatus, Record. contract/paths.py names the files."""

from typing import Literal

from pydantic import Field

from trainer.contract.options import Strict
from trainer.contract.spec import Role

State = Literal["PROVISIONING", "STARTING", "RUNNING", "RECOVERING", "SUCCEEDED", "FAILED", "STOPPED"]
FINAL_STATES: frozenset[State] = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})
# A run that is STOPPED for one of these reasons continues when it is declared again; any other end needs a raised
# `launch`.
DESTROYED, REPLACED = "destroyed; ", "replaced by "


class Status(Strict):
    """status.json: the state of the run. It is changed by conditional writes only."""

    state: State
    step: int = 0
    attempt: int = 0  # counts the clusters that formed, and so fences off writers that were believed dead
    launch: int = 1
    reason: str = ""  # why the run is FAILED or STOPPED, or what it waits for while RECOVERING or STARTING
    updated: float  # seconds since the epoch
    started: float | None = None  # when the first step began
    finished: float | None = None
    traceback: list[str] | None = None  # the last lines, if an error of the program made the run FAILED

    @property
    def taken_back(self) -> bool:
        """Return whether declaring the run again continues it: its machines were only destroyed or replaced."""
        return self.state == "STOPPED" and self.reason.startswith((DESTROYED, REPLACED))


class Exit(Strict):
    """The end of a process."""

    code: int  # as in subprocess: a negative one is a signal
    reason: str  # one line
    time: float


class Event(Strict):
    """Something that happened to a machine."""

    kind: Literal["started", "back", "lost", "exit", "notice", "left"]
    time: float
    words: str = ""


class MachineStatus(Strict):
    """machines/<name>.json, which the machine's supervisor writes every few seconds and at its end."""

    name: str
    role: Role
    state: Literal["starting", "running", "restarting", "finished", "failed", "stopped"]
    message: str = ""  # what the machine is doing or waiting for
    step: int = 0
    heartbeat: float  # seconds since the epoch
    started: float
    pid: int  # of the supervisor, on its own machine
    trainer_pid: int | None = None  # the process that computes
    host: str = ""
    restarts: int = 0
    memory_mb: int | None = None
    last_exit: Exit | None = None
    environment: dict[str, str] = Field({})  # hardware and software (trainer/machine/environment.py)
    before: float = 0.0  # seconds in which earlier boots under this name sent heartbeats
    history: list[Event] = Field([])  # the newest events of all boots under this name
    log: list[str] = Field([])  # the last lines that the machine printed


class Record(Strict):
    """A line of metrics: a training step, an evaluation (with validation_loss) or a notice (with notice_seconds)."""

    step: int  # steps done: the first record has 1
    time: float
    attempt: int
    loss: float | None = None  # nats, the mean over the tokens of the step
    learning_rate: float | None = None
    gradient_norm: float | None = None  # before clipping
    step_seconds: float | None = None
    tokens_per_second: float | None = None
    mfu: float | None = None  # fraction of the device's peak FLOP/s; None if the peak is not known
    trainers: int | None = None
    communication_seconds: float | None = None  # the part of step_seconds spent waiting for gradients and parameters
    notice_seconds: float | None = None  # from a notice to leave to a whole checkpoint
    skipped: bool | None = None  # True: the step was not taken, because a gradient was not finite
    validation_loss: float | None = None
