"""What a run writes about itself while it goes: status, machines, metrics; trainer/contract/spec.py lists where."""

from typing import Literal

from pydantic import Field

from trainer.contract.spec import Role, Strict

State = Literal["PROVISIONING", "STARTING", "RUNNING", "RECOVERING", "SUCCEEDED", "FAILED", "STOPPED"]
FINAL_STATES: frozenset[State] = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})
# STOPPED for these reasons is taken back by declaring the run again; any other end needs a raised `launch`.
DESTROYED, REPLACED = "destroyed; ", "replaced by "


class Status(Strict):
    """runs/<run>/status.json: where the run is. Written with generation preconditions."""

    state: State
    step: int = 0
    attempt: int = 0  # counts the clusters that formed: fences off writers that were believed dead
    launch: int = 1
    reason: str = ""  # why FAILED or STOPPED; what RECOVERING or STARTING waits for
    updated: float  # seconds since the epoch
    started: float | None = None  # when the first step began
    finished: float | None = None
    traceback: list[str] | None = None  # FAILED by an error of the program: its last lines

    @property
    def taken_back(self) -> bool:
        """Whether declaring the run again is enough to go on: its machines were only destroyed or replaced."""
        return self.state == "STOPPED" and self.reason.startswith((DESTROYED, REPLACED))


class Exit(Strict):
    code: int  # as subprocess gives it: negative is a signal
    reason: str  # one line
    time: float


class Event(Strict):
    """What happened to a machine."""

    kind: Literal["started", "back", "lost", "exit", "notice", "left"]
    time: float
    words: str = ""


class MachineStatus(Strict):
    """runs/<run>/machines/<name>.json: written by the machine's supervisor every few seconds and at its end."""

    name: str
    role: Role
    state: Literal["starting", "running", "restarting", "finished", "failed", "stopped"]
    message: str = ""  # what it is doing or waiting for, in words
    step: int = 0
    heartbeat: float  # seconds since the epoch
    started: float
    pid: int  # of the supervisor, on its own machine
    trainer_pid: int | None = None  # of the process that computes
    host: str = ""
    restarts: int = 0
    memory_mb: int | None = None
    last_exit: Exit | None = None
    environment: dict[str, str] = Field({})  # what this machine is, in words (trainer/machine/environment.py)
    before: float = 0.0  # seconds that earlier boots under this name were heard
    history: list[Event] = Field([])  # the newest, of all boots under this name
    log: list[str] = Field([])  # the last lines that it printed


class Record(Strict):
    """One line of runs/<run>/metrics/*.jsonl: a training step, an evaluation (validation_loss) or a notice."""

    step: int  # steps done, so the first record has step 1
    time: float
    attempt: int
    loss: float | None = None  # mean over the step's tokens, nats
    learning_rate: float | None = None
    gradient_norm: float | None = None  # before clipping
    step_seconds: float | None = None
    tokens_per_second: float | None = None
    mfu: float | None = None  # fraction of the device's peak; None where the peak is not known
    trainers: int | None = None
    communication_seconds: float | None = None  # of step_seconds: waiting for gradients and parameters to travel
    notice_seconds: float | None = None  # a record of its own: from a notice to leave to a whole checkpoint
    skipped: bool | None = None  # a gradient was not finite: the step was not taken
    validation_loss: float | None = None
