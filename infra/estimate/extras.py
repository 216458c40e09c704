"""Estimate what a run costs on Google Cloud besides its machines: storage, operations, the controller, logs, NAT."""

from collections.abc import Iterator

from infra.estimate.parts import HOUR, Part
from infra.fleet import prices
from infra.fleet.fleet import Fleet
from infra.sizing import workload
from infra.sizing.ranges import NOTHING, Range
from infra.stack.config import StackConfig
from trainer.contract import geometry, pace

PRICE_BOOK = "infra/fleet/prices.yaml"  # the origin of a price, as estimates name it
GIGABYTE = 1e9
TOKENS = Range(0.5, 2)  # bytes of tokens for a byte of text: two for each token, of about four letters or of one
# Bytes that are written again and again, and days until the lifecycle rules, which Google looks at about once a day,
# have deleted the old versions. Ours.
BEAT, SEGMENT, UNTIL_DELETED = 8e3, 128e3, Range(1, 2)
# The controller's executions, and the steps of one that changes nothing, for three roles in four zones, one more than
# a run may have: as counted on the stand-in cloud (tests/google_cloud/test_controller.py). One zone takes less than 20.
TICKS_AN_HOUR, STEPS_A_TICK = 12, 150
LOG_BYTES = 1e6  # of each machine in an hour, at most. Ours
IMAGE_GB = 5.0
DAYS_A_MONTH = 30


def extras(
    config: StackConfig, fleet: Fleet, size: geometry.Dimensions, hours: Range, text_bytes: float
) -> Iterator[Part]:
    """Yield the parts of the cost; none on this machine.

    Args:
        config: The stack.
        fleet: Its machines.
        size: The model's dimensions.
        hours: The length of the run.
        text_bytes: The size of the source text.
    """
    if fleet.local:
        return
    model = 4 * size.parameters / GIGABYTE
    yield _bucket(config, fleet, size, hours, text_bytes)
    yield _operations(config, fleet, hours)
    yield _controller(hours)
    origin = f"{IMAGE_GB:g} GB in the registry, for a month (ours); 0.5 GB an account are free: {PRICE_BOOK}"
    yield _priced("image", Range(IMAGE_GB, IMAGE_GB), "registry_gb_month", origin, "Artifact Registry")
    logged = hours.times(fleet.size * LOG_BYTES / GIGABYTE)
    origin = f"at most {logged.high:.2g} GB of logs (ours); 50 GiB a project are free a month: {PRICE_BOOK}"
    yield _priced("logs", Range(0, logged.high), "logging_gb", origin, "Cloud Logging")
    origin = f"{model:.2g} GB out of Google Cloud, once, if you download the model: {PRICE_BOOK}"
    yield _priced("download", Range(0, model), "egress_gb", origin, "what leaves Google Cloud")
    if config.file.network.nat:
        yield _way_out(fleet.size, model, hours)


def _bucket(config: StackConfig, fleet: Fleet, size: geometry.Dimensions, hours: Range, text_bytes: float) -> Part:
    """Return the cost of what the buckets keep for a month, and of old versions until they are deleted.

    Old checkpoints are no part of it: the trainer deletes them for good.
    """
    checkpoint, model = workload.checkpoint_bytes(config, size), 4 * size.parameters
    kept = config.file.checkpoints.keep * checkpoint + model
    if (often := config.file.checkpoints.keep_every) is not None:
        kept += config.file.training_input.hyperparameters.steps // often * checkpoint
    if config.file.sweep is not None:
        kept *= config.file.sweep.max_trials
    month = Range(kept + text_bytes * (1 + TOKENS.low), kept + text_bytes * (1 + TOKENS.high))
    hourly = HOUR * (fleet.size * BEAT / pace.HEARTBEAT + SEGMENT / pace.METRICS)
    old = Range(hourly * hours.low * UNTIL_DELETED.low, hourly * hours.high * UNTIL_DELETED.high).times(
        1 / DAYS_A_MONTH
    )
    price = prices.storage_gb_month(config.region)
    origin = (
        f"{month.high / GIGABYTE:.2g} GB at most are kept, for a month, and old versions of metrics and heartbeats"
        f" for a day or two: {PRICE_BOOK}"
    )
    usd = (month + old).times((price or 0) / GIGABYTE)
    return Part("bucket", usd, origin, () if price is not None else (f"storage in {config.region}",))


def _operations(config: StackConfig, fleet: Fleet, hours: Range) -> Part:
    """Return the cost of the requests to the bucket, whose pace trainer/contract/pace.py has."""
    class_a, class_b = operations_an_hour(fleet.size, sweep=config.file.sweep is not None)
    saved = config.file.training_input.hyperparameters.steps // config.file.checkpoints.every
    saved *= config.file.sweep.max_trials if config.file.sweep is not None else 1
    checkpoints = saved * (2 * (config.servers or 1) + 3)  # two files of each writer, a manifest, two listings
    written, read = prices.anywhere("class_a_thousand"), prices.anywhere("class_b_thousand")
    origin = (
        f"{class_a:,.0f} of class A and {class_b:,.0f} of class B an hour, and {checkpoints:,} for checkpoints:"
        f" trainer/contract/pace.py, {PRICE_BOOK}"
    )
    if written is None or read is None:
        return Part("operations", NOTHING, origin, ("operations of Cloud Storage",))
    usd = hours.times((class_a * written + class_b * read) / 1000)
    once = checkpoints * written / 1000
    return Part("operations", usd + Range(once, once), origin)


def operations_an_hour(machines: int, sweep: bool = False) -> tuple[float, float]:
    """Return how many operations of class A and of class B a run makes in an hour, without checkpoints.

    In a sweep each machine reports in the trial's folder and in the sweep's, and asks whether either is over.
    """
    folders = 2 if sweep else 1
    class_a = machines * folders / pace.HEARTBEAT + 1 / pace.METRICS + 1 / pace.STATUS + 1 / pace.LEASE
    class_b = machines * (folders / pace.LOOK + 1 / pace.HEARTBEAT) + 1 / pace.STATUS
    return HOUR * (class_a + 1 / pace.MONITORING), HOUR * (class_b + 1 / pace.MONITORING)


def _controller(hours: Range) -> Part:
    """Return the cost of the scheduler job and the workflow that end the machines. Small runs are in the free tier."""
    job, step = prices.anywhere("scheduler_job_month"), prices.anywhere("workflow_steps_thousand")
    steps = hours.high * TICKS_AN_HOUR * STEPS_A_TICK
    origin = (
        f"a job of Cloud Scheduler, a month, and {steps:,.0f} steps of a workflow at most; 3 jobs and 5,000 steps an"
        f" account are free: {PRICE_BOOK}"
    )
    unknown = [name for name, price in (("Cloud Scheduler", job), ("Workflows", step)) if price is None]
    return Part("controller", Range(0, (job or 0) + steps / 1000 * (step or 0)), origin, tuple(unknown))


def _way_out(machines: int, gigabytes: float, hours: Range) -> Part:
    """Return the cost of network.nat: its gateway, no dearer beyond 32 machines, and the data through it."""
    each, address, passing = map(prices.anywhere, ("nat_machine_hour", "nat_address_hour", "nat_gb"))
    if each is None or address is None or passing is None:
        return Part("way out", NOTHING, "network.nat", ("Cloud NAT",))
    gateway = hours.times(min(machines, 32) * each + address)
    origin = f"network.nat: a gateway; {gigabytes:.2g} GB for each machine at most pass it (ours): {PRICE_BOOK}"
    return Part("way out", gateway + Range(0, passing * gigabytes * machines), origin)


def _priced(name: str, units: Range, price_name: str, origin: str, words: str) -> Part:
    """Return the cost of some units at a price that is the same everywhere. words: the price, for people."""
    price = prices.anywhere(price_name)
    return Part(name, units.times(price or 0), origin, () if price is not None else (words,))
