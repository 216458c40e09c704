"""A machine's history in machines/<name>.json: what happened to it, over all boots under its name."""

from trainer.runs.records import Event, MachineStatus

LONGEST = 60  # events: the file is written again at each heartbeat
ENDS = ("finished", "failed", "stopped")


def begun(former: MachineStatus | None, now: MachineStatus) -> MachineStatus:
    """A machine starts. former: what an earlier boot under its name left; it may have been lost without a word."""
    if former is None:
        return _with(now, [Event(kind="started", time=now.started)])
    events = list(former.history)
    if former.state not in ENDS:
        events.append(Event(kind="lost", time=former.heartbeat))
    events.append(Event(kind="back", time=now.started))
    return _with(now.model_copy(update={"before": present(former)}), events)


def continued(before: MachineStatus, now: MachineStatus, notice: tuple[float, str] | None) -> MachineStatus:
    """What a machine says next. notice: when it was told to leave, and why."""
    events = list(before.history)
    if notice is not None and not any(e.kind == "notice" and e.time == notice[0] for e in events):
        events.append(Event(kind="notice", time=notice[0], words=notice[1]))
    end = now.last_exit if now.last_exit != before.last_exit else None
    if end is not None and (end.code < 0 or (end.code > 0 and notice is None)):  # who is told to leave has a code, too
        events.append(Event(kind="exit", time=end.time, words=end.reason))
    if now.state in ENDS and now.state != before.state:
        events.append(Event(kind="left", time=now.heartbeat, words=now.message))
    return _with(now, events)


def present(machine: MachineStatus) -> float:
    """Seconds for which a machine was heard, all boots under its name together."""
    return machine.before + max(machine.heartbeat - machine.started, 0.0)


def _with(status: MachineStatus, events: list[Event]) -> MachineStatus:
    return status.model_copy(update={"history": events[-LONGEST:]})
