"""Say what a person should know of a fleet's machines that no check of the stack file refuses."""

from collections.abc import Collection

from infra.fleet.boot_image import CONTAINER_OPTIMIZED, image_project
from infra.fleet.fleet import Fleet
from infra.fleet.host import host_gpus
from infra.stack.config import StackConfig

# Gbit/s of all network cards that Google offers with a machine, where only one is declared here.
ALL_CARDS = {"a3-highgpu-8g": 1000, "a3-megagpu-8g": 1800}
A3_HIGH_FAMILY = "cos-121-lts"  # the image family that Google names for machines of A3 High


def network_caveats(fleet: Fleet) -> list[str]:
    """Return a sentence for each machine type whose network is only partly used between several machines."""
    if fleet.size < 2:
        return []
    names = dict.fromkeys(m.machine.name for m in fleet.roles if m.machine.links == "one NIC")
    return [
        f"{name}: machines use one of their network cards, which carries 200 of {ALL_CARDS[name]:,} Gbit/s at most;"
        " GPUDirect is not built here, so the exchange of gradients is the limit"
        for name in names
    ]


def image_caveats(fleet: Fleet, family: str) -> list[str]:
    """Return a sentence for each machine type for which Google names another image or driver than the fleet gets.

    Sources: docs/google-cloud.md, section 11. family: the image family that the machines boot from.
    """
    sentences = []
    driver_580 = image_project(family) == CONTAINER_OPTIMIZED or family.endswith("-580")
    for name in dict.fromkeys(machines.machine.name for machines in fleet.roles):
        if name.startswith("a3-highgpu-") and family != A3_HIGH_FAMILY:
            sentences.append(
                f"{name}: Google names {A3_HIGH_FAMILY} for it, and nobody has tried {family} here; start with one"
                f" machine, or set machines.imageFamily: {A3_HIGH_FAMILY}"
            )
        if name.startswith("g4-") and driver_580:
            sentences.append(
                f"{name}: its GPU needs NVIDIA's driver 580.126 or 590, and machines on {family} get branch R580, whose"
                " newest version nobody has tried on it here; start with one machine"
            )
    return sentences


def waiting_caveats(fleet: Fleet) -> list[str]:
    """Return what machines that wait in Google's queue cost before the run can begin."""
    if fleet.size < 2 or not any(machines.flex_start for machines in fleet.roles):
        return []
    sentence = (
        "machines.flexStart: machines may come one by one, and those that came first are paid for while they wait for"
        " the others, until the deadline at most; keep limits.maxHours low, or use one machine"
    )
    return [sentence]


def sharing_caveats(config: StackConfig, fleet: Fleet) -> list[str]:
    """Return what is unusual in the way in which trainers share GPUs and steps."""
    sentences = []
    gpus, trainers = len(host_gpus()) if fleet.local else 0, 1 + config.workers
    if trainers <= gpus and gpus % trainers:
        each = fleet.gpus_per_trainer
        sentences.append(
            f"{gpus} GPUs over {trainers} trainers: {each} each, and {gpus % trainers} stay unused; another"
            " trainingInput.workerCount may use all"
        )
    if config.file.parallel.wire == "bf16" and config.file.training_input.hyperparameters.precision == "fp32":
        sentences.append(
            "parallel.wire: bf16 rounds on the way what precision: fp32 computes; use fp32 for both, or precision: auto"
        )
    return sentences


def untried_caveats(fleet: Fleet, tried: Collection[str]) -> list[str]:
    """Return a sentence that names the machines of a fleet with which no run was measured.

    tried: the labels of machines with which this checkout has measured a finished run.
    """
    untried = [label for label in dict.fromkeys(m.label for m in fleet.roles) if label not in tried]
    if fleet.local or not untried:
        return []
    where = "docs/google-cloud.md says what rests on documents alone"
    return [f"never tried on Google Cloud, as far as this checkout knows: {', '.join(untried)}; {where}"]
