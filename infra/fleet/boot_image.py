"""Tell from the name of an image family what the images have that machines boot from.

Sources: Google's pages "Choose an image" of Deep Learning VM and "Versioning" of Container-Optimized OS, and reports of
people who found no Docker in the first, read in 2026-11: docs/google-cloud.md, section 11.
"""

import re

CONTAINER_OPTIMIZED = "cos-cloud"
DEEP_LEARNING = "deeplearning-platform-release"
UBUNTU = "ubuntu-os-cloud"
UBUNTU_ACCELERATOR = "ubuntu-os-accelerator-images"
# Families whose contents we have read of. boot.sh looks what is there, so others may do as well.
_KNOWN = {
    r"cos-(121|125|129|133)-lts": "has Docker, and gets NVIDIA's driver at each boot",
    r"(common|pytorch-2-9)-cu129-ubuntu-(2204|2404)-nvidia-580": "has no Docker; the stack brings its own",
}


def image_project(family: str) -> str:
    """Return the Google project that offers an image family."""
    if family.startswith("cos-"):
        return CONTAINER_OPTIMIZED
    if family.startswith("ubuntu-accelerator-"):
        return UBUNTU_ACCELERATOR
    if family.startswith("ubuntu-"):
        return UBUNTU
    return DEEP_LEARNING


def has_docker(family: str) -> bool:
    """Return whether an image is sure to have Docker, so that the stack need not bring one."""
    return image_project(family) == CONTAINER_OPTIMIZED


def contents(family: str) -> str | None:
    """Return in words what an image has that matters to a run; None if the family is not known."""
    return next((words for pattern, words in _KNOWN.items() if re.fullmatch(pattern, family)), None)
