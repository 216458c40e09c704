"""Say what a person should know of a fleet's machines that no check of the stack file refuses."""

from collections.abc import Collection

from infra.fleet.fleet import Fleet

# Gbit/s of all network cards that Google offers with a machine, where only one is declared here.
ALL_CARDS = {"a3-highgpu-8g": 1000, "a3-megagpu-8g": 1800}


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


def untried_caveats(fleet: Fleet, tried: Collection[str]) -> list[str]:
    """Return a sentence that names the machines of a fleet with which no run was measured.

    tried: the labels of machines with which this checkout has measured a finished run.
    """
    untried = [label for label in dict.fromkeys(m.label for m in fleet.roles) if label not in tried]
    if fleet.local or not untried:
        return []
    where = "docs/google-cloud.md says what rests on documents alone"
    return [f"never tried on Google Cloud, as far as this checkout knows: {', '.join(untried)}; {where}"]
