"""Choose the zones of a launch: where its machines are made, and where they may move while capacity is missing.

A run of one machine has one group in all zones, and Google chooses. The machines of a larger run exchange gradients,
so they share a zone. For that, each role has a group in each of a few zones, and only those of one zone have machines:
to move a run is to resize groups, which needs no right to make any.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pulumi

from infra.fleet.catalog import ACCELERATORS
from infra.fleet.fleet import Fleet, RoleMachines, may_move, spans_zones
from infra.stack.config import StackConfig
from trainer.gcloud.api import ApiError, GoogleApi
from trainer.runs.placement import Launched, Placement

MOST_ZONES = 3  # that have groups: each one more is a resource for every role
UNSUITABLE = "not supported in locations"  # Google's words for a zone without these machines


@dataclass(frozen=True)
class LaunchZones:
    """The zones of a launch.

    candidates: those that have groups, the first choice first.
    current: the one whose groups have machines; empty if one group spans all candidates.
    """

    candidates: tuple[str, ...]
    current: str

    @property
    def first(self) -> str:
        """The zone in which the launch began; empty if one group spans all candidates."""
        return self.candidates[0] if self.current else ""


def zones_of_launch(
    config: StackConfig,
    fleet: Fleet,
    parent: pulumi.Resource,
    launched: Launched | None,
    placement: Placement | None,
    left: str,
    connect: Callable[[], GoogleApi] | None = GoogleApi,
) -> LaunchZones:
    """Return the zones of the declared launch, as its records say; a launch without a record gets a fresh choice.

    Args:
        config: the stack.
        fleet: its machines.
        parent: the resource at which the choice is logged.
        launched: the record of the launch's start, if it has begun.
        placement: the record of where it is now, if it has moved.
        left: the zone in which the launch before it ended; empty if there was none.
        connect: returns the API that is asked for advice; None if no advice is wanted.
    """
    if spans_zones(config, fleet):
        return LaunchZones(fleet.zones, "")
    known = [zone for zone in launched.zones if zone in fleet.zones] if launched else []
    if not known:
        most = MOST_ZONES if may_move(config, fleet) else 1
        chosen = _ranked(config, fleet, parent, left, connect)[:most]
        return LaunchZones(tuple(chosen), chosen[0])
    now = placement.zone if placement else ""
    return LaunchZones(tuple(known), now if now in known else known[0])


def _ranked(
    config: StackConfig,
    fleet: Fleet,
    parent: pulumi.Resource,
    left: str,
    connect: Callable[[], GoogleApi] | None,
) -> list[str]:
    """Return all zones, best first: by Google's advice, else in turn. The zone that was left comes last."""
    in_turn = fleet.zones_in_turn(config.file.launch)
    if len(in_turn) == 1:
        return in_turn
    scores: dict[str, float] = {}
    if connect is not None and config.file.machines.reservation is None:
        try:
            scores = obtainability(connect(), config, fleet)
        except Exception as error:  # advice is no condition: whatever the answer was, there is an order without it
            why = (str(error).strip().splitlines() or [type(error).__name__])[0]
            pulumi.log.info(f"the zones are taken in turn, as Google gave no advice on capacity ({why})", parent)
    ranked = sorted(in_turn, key=lambda zone: (zone == left, -scores.get(zone, -1.0)))  # sorted() keeps the turn
    if scores:
        best = f"{ranked[0]}, by Google's advice on capacity ({scores.get(ranked[0], 0.0):.0%} likely to be there)"
        pulumi.log.info(f"this launch begins in {best}", parent)
    return ranked


def obtainability(api: GoogleApi, config: StackConfig, fleet: Fleet) -> dict[str, float]:
    """Return for each zone how likely it is that Google has the scarcest role's machines, from 0 to 1.

    A zone that lacks such machines is left out. Raise ApiError if Google answers for no zone; it knows no N1 with
    GPUs, and not every project gets an answer for machines on demand.
    """
    scores: dict[str, float] = {}
    refused: ApiError | None = None
    for zone in fleet.zones:
        path = f"projects/{config.project}/regions/{config.region}/advice/capacity"
        try:
            answer = api.call("compute", "POST", path, body=question(scarcest(fleet), zone))
        except ApiError as error:
            if UNSUITABLE not in str(error):
                raise
            refused = error
            continue
        for recommendation in answer.get("recommendations", [])[:1]:
            scores[zone] = float(recommendation["scores"]["obtainability"])
    if not scores and refused is not None:
        raise refused
    return scores


def scarcest(fleet: Fleet) -> RoleMachines:
    """Return the role whose machines are hardest to get: the most GPUs, of the newest model, else the most vCPUs."""

    def scarcity(machines: RoleMachines) -> tuple[float, float, int]:
        model = ACCELERATORS.get(machines.accelerator)
        newest = model.compute_capability if model else 0.0
        return newest, machines.count * machines.accelerators, machines.count * machines.machine.vcpus

    return max(fleet.roles, key=scarcity)


def question(machines: RoleMachines, zone: str) -> dict[str, Any]:
    """Return a CapacityAdviceRequest for all machines of a role in one zone."""
    selection: dict[str, Any] = {"machineTypes": [machines.machine.name]}
    if machines.attached:
        gpus = {"acceleratorType": machines.accelerator, "acceleratorCount": machines.accelerators}
        selection["guestAccelerators"] = [gpus]
    model = "SPOT" if machines.spot else "FLEX_START" if machines.flex_start else "STANDARD"
    return {
        "distributionPolicy": {"targetShape": "ANY_SINGLE_ZONE", "zones": [{"zone": f"zones/{zone}"}]},
        "instanceFlexibilityPolicy": {"instanceSelections": {"machines": selection}},
        "instanceProperties": {"scheduling": {"provisioningModel": model}},
        "size": machines.count,
    }
