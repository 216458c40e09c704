"""infra.fleet.caveats: what a person should know of machines that no check refuses."""

from infra.fleet.caveats import network_caveats, untried_caveats
from tests.infra.fleet.test_fleet import on_google

SEVERAL = {"masterType": "a3-highgpu-8g", "workerType": "a3-megagpu-8g"}


def test_network_of_several_large_machines_is_said_to_be_partly_used() -> None:
    first, second = network_caveats(on_google({}, SEVERAL))
    assert first.startswith("a3-highgpu-8g: machines use one of their network cards, which carries 200 of 1,000 Gbit/s")
    assert second.startswith(
        "a3-megagpu-8g: machines use one of their network cards, which carries 200 of 1,800 Gbit/s"
    )


def test_network_of_one_machine_or_of_others_is_not_mentioned() -> None:
    alone = {"masterType": "a3-highgpu-8g", "workerType": None, "workerCount": 0}
    assert network_caveats(on_google({}, alone)) == []
    assert network_caveats(on_google({}, {"masterType": "g2-standard-96", "workerType": "a2-highgpu-1g"})) == []


def test_machines_of_no_measured_run_are_named_once_each() -> None:
    fleet = on_google({}, {"masterType": "n1-standard-8", "workerType": "n1-standard-8"})
    (sentence,) = untried_caveats(fleet, {"n1-standard-4"})
    assert sentence.startswith("never tried on Google Cloud, as far as this checkout knows: n1-standard-8; ")
    assert untried_caveats(fleet, {"n1-standard-8"}) == []
