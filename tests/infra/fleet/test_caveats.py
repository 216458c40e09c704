"""infra.fleet.caveats: what a person should know of machines that no check refuses."""

from infra.fleet.caveats import image_caveats, network_caveats, untried_caveats, waiting_caveats
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


def test_image_that_google_does_not_name_for_a_machine_is_said() -> None:
    fleet = on_google({}, {"masterType": "a3-highgpu-8g", "workerType": "g4-standard-48"})
    high, g4 = image_caveats(fleet, "cos-129-lts")
    assert high.startswith("a3-highgpu-8g: Google names cos-121-lts for it, and nobody has tried cos-129-lts here; ")
    assert g4.startswith("g4-standard-48: its GPU needs NVIDIA's driver 580.126 or 590, and machines on cos-129-lts ")
    assert image_caveats(fleet, "cos-121-lts")[0].startswith("g4-standard-48: ")
    (other,) = image_caveats(fleet, "ubuntu-accelerator-2204-amd64-with-nvidia-595")
    assert other.startswith("a3-highgpu-8g: ")
    assert image_caveats(on_google({}, {"masterType": "a2-highgpu-1g", "workerType": "a3-megagpu-8g"}), "any") == []


def test_waiting_costs_money_for_several_machines_with_flex_start_alone() -> None:
    several = {"masterType": "a2-highgpu-1g", "workerType": "a2-highgpu-1g"}
    (sentence,) = waiting_caveats(on_google({"flexStart": True}, several))
    assert "those that came first are paid for while they wait for the others, until the deadline at most" in sentence
    assert waiting_caveats(on_google({}, several)) == []
    alone = several | {"workerType": None, "workerCount": 0}
    assert waiting_caveats(on_google({"flexStart": True}, alone)) == []


def test_machines_of_no_measured_run_are_named_once_each() -> None:
    fleet = on_google({}, {"masterType": "n1-standard-8", "workerType": "n1-standard-8"})
    (sentence,) = untried_caveats(fleet, {"n1-standard-4"})
    assert sentence.startswith("never tried on Google Cloud, as far as this checkout knows: n1-standard-8; ")
    assert untried_caveats(fleet, {"n1-standard-8"}) == []
