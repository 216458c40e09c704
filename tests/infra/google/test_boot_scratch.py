"""infra/google/boot.sh with local SSDs: they are one disk and the trainer's /tmp, or the run goes without them."""

import pytest

from tests.infra.google.test_boot import Boot
from tests.infra.google.test_boot import boot as boot  # the fixture

TOOLS = ("mountpoint", "mdadm", "mkfs.ext4", "mount", "chmod")


def attach(boot: Boot, count: int) -> list[str]:
    """Give the machine local SSDs and the commands that every image has; return the SSDs' paths."""
    boot.has(*TOOLS)
    boot.plan("mountpoint", "1 not mounted")
    folder = boot.root / "dev/disk/by-id"
    folder.mkdir(parents=True)
    disks = [folder / f"google-local-nvme-ssd-{i}" for i in range(count)]
    for disk in disks:
        disk.touch()
    return [str(disk) for disk in disks]


def test_boot_with_one_local_ssd_makes_it_the_trainers_tmp(boot: Boot) -> None:
    [disk] = attach(boot, 1)
    code, output = boot.run()
    assert code == 0, output
    scratch = f"{boot.root}/var/lib/gpt2-training/scratch"
    assert boot.calls("mkfs.ext4") == [f"mkfs.ext4 -q -F -m 0 {disk}"]
    assert boot.calls("mount ") == [f"mount -o discard {disk} {scratch}"]
    assert boot.calls("chmod") == [f"chmod 1777 {scratch}"]  # the container's user is not root
    assert boot.calls("mdadm") == []
    [run] = boot.calls("docker run")
    assert f" --volume {scratch}:/tmp " in run


def test_boot_with_several_local_ssds_joins_them(boot: Boot) -> None:
    disks = attach(boot, 16)
    boot.plan("mdadm", "1 nothing to stop")
    code, output = boot.run()
    assert code == 0, output
    stop, create = boot.calls("mdadm")
    assert stop == "mdadm --stop --scan"
    assert create.startswith(f"mdadm --create {boot.root}/dev/md0 --run --force --level 0 --raid-devices 16 ")
    assert sorted(create.split()[-16:]) == sorted(disks)
    assert boot.calls("mkfs.ext4") == [f"mkfs.ext4 -q -F -m 0 {boot.root}/dev/md0"]


def test_boot_that_runs_again_keeps_the_local_ssds_as_they_are(boot: Boot) -> None:
    attach(boot, 1)
    boot.plan("mountpoint", "0")
    code, output = boot.run()
    assert code == 0, output
    assert boot.calls("mkfs.ext4") == []
    assert "/scratch:/tmp " in boot.calls("docker run")[0]


@pytest.mark.parametrize("failing", ["mkfs.ext4", "mount"])
def test_boot_trains_without_local_ssds_that_it_cannot_prepare(boot: Boot, failing: str) -> None:
    attach(boot, 1)
    boot.plan(failing, "32 wrong fs type")
    code, output = boot.run()
    assert code == 0, output
    assert "the local SSDs stay unused (wrong fs type)" in output
    assert ":/tmp" not in boot.calls("docker run")[0]


def test_boot_without_local_ssds_prepares_nothing(boot: Boot) -> None:
    boot.has(*TOOLS)
    code, output = boot.run()
    assert code == 0, output
    assert [call for tool in TOOLS for call in boot.calls(f"{tool} ")] == []
    assert ":/tmp" not in boot.calls("docker run")[0]
