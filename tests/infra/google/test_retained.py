"""What the registry's cleanup policies keep, as a stack declares them."""

from pathlib import Path
from typing import Any

from infra.google.retained import as_json, image_name, repository_settings
from tests.google_cloud.cleanup import Version, deleted
from tests.infra.google_graph import declare, make_root, read, stack_values

DAY = 86400
PINNED = f"sha256:{'7' * 64}"


def policies(root: Path, **more: Any) -> tuple[list[dict[str, Any]], str]:
    """Return the declared policies, and the tag of the image that the stack builds."""
    made = read({**stack_values(), **more}, root)
    graph, job = declare(made)
    (repository,) = graph.of("Repository")
    declared: list[dict[str, Any]] = repository.inputs["cleanupPolicies"]
    return declared, job.code


def images(*of_the_run: Version) -> list[Version]:
    """Return images that others pushed since, one a day, and those of the run."""
    return [*(Version(f"sha256:{day:064d}", (f"{day:016x}",), day * DAY) for day in range(45)), *of_the_run]


def test_image_that_the_stack_builds_is_kept_as_long_as_the_run_names_it(tmp_path: Path) -> None:
    declared, tag = policies(make_root(tmp_path))
    mine = Version(f"sha256:{'9' * 64}", (tag,), 90 * DAY)
    gone = deleted(declared, images(mine))
    assert mine.digest not in gone
    assert len(gone) == 14  # older than 30 days, and none of the newest 10
    assert mine.digest in deleted(as_json(repository_settings("dev"))["cleanupPolicies"], images(mine))  # without a run


def test_image_that_is_pinned_is_kept_by_its_digest(tmp_path: Path) -> None:
    root = make_root(tmp_path)
    name = image_name(read(stack_values(), root))
    declared, _ = policies(root, **{"gpt2-training:image": f"{name}@{PINNED}"})
    mine, other = Version(PINNED, (), 90 * DAY), Version(f"sha256:{'8' * 64}", (), 90 * DAY)
    gone = deleted(declared, images(mine, other))
    assert mine.digest not in gone
    assert other.digest in gone
