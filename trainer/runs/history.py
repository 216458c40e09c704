"""Keep a machine's history in its MachineStatus: what happened to it, over all boots under its name."""

from trainer.runs.records import Event, MachineStatus

LONGEST = 60  # events, as the file is written again at each heartbeat
ENDS = ("finished", "failed", "stopped")


def after_boot(former: MachineStatus | None, now: MachineStatus) -> MachineStatus:
    """Return the status of a machine that starts, with its history.

    former: the last status of an earlier boot under its name, which may have been lost without a word.
    """
    if former is None:
        return _with(now, [Event(kind="started", time=now.started)])
    events = list(former.history)
    if former.state not in ENDS:
        events.append(Event(kind="lost", time=former.heartbeat))
    events.append(Event(kind="back", time=now.started))
    return _with(now.model_copy(update={"before": seconds_present(former)}), events)


def after_report(before: MachineStatus, now: MachineStatus, notice: tuple[float, str] | None) -> MachineStatus:
    """Return a machine's next status, with what happened since `before` in its history.

    notice: when the machine was asked to leave, and why; None if it was not.
    """
    events = list(before.history)
    if notice is not None and not any(e.kind == "notice" and e.time == notice[0] for e in events):
        events.append(Event(kind="notice", time=notice[0], words=notice[1]))
    end = now.last_exit if now.last_exit != before.last_exit else None
    # A process that was asked to leave exits with a code above 0, too, which is not worth an event.
    if end is not None and (end.code < 0 or (end.code > 0 and notice is None)):
        events.append(Event(kind="exit", time=end.time, words=end.reason))
    if now.state in ENDS and now.state != before.state:
        events.append(Event(kind="left", time=now.heartbeat, words=now.message))
    return _with(now, events)


def seconds_present(machine: MachineStatus) -> float:
    """Return the seconds in which a machine sent heartbeats, over all boots under its name."""
    return machine.before + max(machine.heartbeat - machine.started, 0.0)


def _with(status: MachineStatus, events: list[Event]) -> MachineStatus:
    return status.model_copy(update={"history": events[-LONGEST:]})
