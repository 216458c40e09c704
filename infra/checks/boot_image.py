"""Find what Google would refuse, or what would lack a driver, in the image that machines boot from."""

import re
from collections.abc import Mapping

from infra.fleet.boot_image import DEEP_LEARNING, UBUNTU, image_project
from infra.fleet.catalog import MACHINE_TYPES
from infra.fleet.fleet import attached_accelerator
from infra.stack.config import StackConfig
from infra.stack.keys import IMAGE_FAMILY
from trainer.contract.settings import TYPE_KEYS
from trainer.contract.spec import Role


def image_problems(config: StackConfig, named: Mapping[Role, str | None]) -> list[str]:
    """Return what is wrong with machines.imageFamily for these machine types, without the project's name."""
    family = config.file.machines.image_family
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,62}", family):
        return [f"machines.imageFamily: found {family!r}, must be an image family's name"]
    project = image_project(family)
    for role, name in named.items():
        key = f"trainingInput.{TYPE_KEYS[role]}"
        if project == DEEP_LEARNING and str(name).startswith("g2-"):
            return [
                (
                    f"machines.imageFamily: {family} is of the Deep Learning VM images, which Google refuses on {name}"
                    f" ({key}); use {IMAGE_FAMILY}"
                )
            ]
        machine = MACHINE_TYPES.get(str(name))
        attached = attached_accelerator(config.file) is not None and role != "ps"
        if project == UBUNTU and (attached or (machine is not None and machine.accelerators)):
            return [
                (
                    f"machines.imageFamily: {family} has no NVIDIA driver for {name} ({key}), and machines without"
                    f" internet cannot install one; use {IMAGE_FAMILY}"
                )
            ]
    return []
