"""infra/google/boot.sh on images that lack something: it brings that, or says what is missing."""

import io
import tarfile
from hashlib import sha256

import pytest

from tests.infra.google.test_boot import BOOT, DATA, Boot
from tests.infra.google.test_boot import boot as boot  # the fixture

ARCHIVE = "docker/docker-29.9.0.tgz"


@pytest.fixture
def cos(boot: Boot) -> Boot:
    """Return a machine with two GPUs and Container-Optimized OS."""
    boot.lacks("nvidia-ctk", "systemctl")
    boot.has("cos-extensions", "iptables", "mount")
    boot.attributes["gpt2-gpus"] = "2"
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (boot.root / "dev" / name).touch()
    boot.gpus(2)
    return boot


@pytest.fixture
def without_docker(boot: Boot) -> Boot:
    """Return a machine whose image has no Docker, which is in the bucket."""
    archive = boot.bin / "archive"
    with tarfile.open(archive, "w:gz") as file:
        for name, text in (("docker", boot.command("docker")), ("dockerd", "#!/bin/sh\n")):
            member = tarfile.TarInfo(f"docker/{name}")
            member.size, member.mode = len(text), 0o755
            file.addfile(member, io.BytesIO(text.encode()))
    boot.lacks("docker")
    boot.google.data[ARCHIVE] = archive.read_bytes()
    hashed = sha256(archive.read_bytes()).hexdigest()
    boot.attributes |= {"gpt2-docker": f"gs://{DATA}/{ARCHIVE}", "gpt2-docker-sha256": hashed}
    return boot


def test_boot_of_container_optimized_os_gives_the_container_driver_and_devices(cos: Boot) -> None:
    code, output = cos.run()
    assert code == 0, output
    nvidia = cos.root / "var/lib/nvidia"
    assert cos.calls("")[:4] == [
        "iptables --wait -C INPUT -p tcp -j ACCEPT",
        "docker info",
        "cos-extensions install gpu -- -version=R580",
        f"mount --bind {nvidia} {nvidia}",
    ]
    assert cos.calls("mount")[1:] == [f"mount -o remount,exec {nvidia}"]
    [run] = cos.calls("docker run")
    dev = cos.root / "dev"
    named = ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm")
    devices = " ".join(f"--device {dev}/{name}:/dev/{name}" for name in named)
    assert f" {devices} --volume {nvidia}/lib64:/usr/local/nvidia/lib64 --env LD_LIBRARY_PATH=/usr/local/n" in run
    assert f" --volume {nvidia}/bin:/usr/local/nvidia/bin --env PATH=/usr/local/nvidia/bin:/usr/local/sbin:" in run
    assert "--gpus" not in run
    assert "--runtime" not in run


def test_boot_of_container_optimized_os_admits_tcp_once(cos: Boot) -> None:
    cos.attributes["gpt2-gpus"] = "0"
    cos.plan("iptables", "1", "4 Another app is currently holding the xtables lock", "1", "0")
    code, output = cos.run()
    assert code == 0, output
    check, insert = (f"iptables --wait -{what} INPUT -p tcp -j ACCEPT" for what in "CI")
    assert cos.calls("iptables") == [check, insert, check, insert]
    assert "waiting for the machine's own firewall (Another app is currently holding the xtables lock)" in output
    assert cos.calls("cos-extensions") == []


def test_boot_installs_the_driver_again_when_that_fails(cos: Boot) -> None:
    cos.plan("cos-extensions", "1 failed to download driver: 403", "0")
    code, output = cos.run()
    assert code == 0, output
    assert "waiting for the NVIDIA driver's installation (failed to download driver: 403)" in output
    assert len(cos.calls("cos-extensions")) == 2


def test_boot_without_a_driver_says_what_failed(cos: Boot) -> None:
    cos.environment["BOOT_PATIENCE"] = "0"
    cos.plan("cos-extensions", *["1 failed to download driver: 403"] * 9)
    assert cos.run()[0] == 1
    assert cos.words().message == "waited 0 s for the NVIDIA driver's installation: failed to download driver: 403"


def test_boot_with_fewer_gpus_than_declared_says_both_numbers(cos: Boot) -> None:
    cos.gpus(1)
    assert cos.run()[0] == 1
    assert cos.words().message == "the driver finds 1 of 2 GPUs; raise `launch` to get another machine"
    assert cos.calls("docker run") == []


def test_boot_keeps_the_login_where_it_may_write(boot: Boot) -> None:
    boot.environment["HOME"] = "/no/such/folder"
    (boot.bin / "docker").write_text(boot.command("docker").replace("code=0 ", 'echo "$HOME" >> homes; code=0 ', 1))
    assert boot.run()[0] == 0
    assert set((boot.bin / "homes").read_text().split()) == {f"{boot.root}/var/lib/gpt2-training"}
    assert (boot.root / "var/lib/gpt2-training").is_dir()


def test_boot_of_an_image_without_docker_brings_it_from_the_bucket(without_docker: Boot) -> None:
    code, output = without_docker.run()
    assert code == 0, output
    assert without_docker.calls("systemctl") == ["systemctl daemon-reload", "systemctl enable --now docker"]
    unit = (without_docker.root / "etc/systemd/system/docker.service").read_text()
    assert "\nExecStart=/usr/local/bin/dockerd\n" in unit
    assert (without_docker.root / "usr/local/bin/dockerd").exists()
    assert len(without_docker.calls("docker run")) == 1


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"gpt2-docker-sha256": "0" * 64}, "docker-29.9.0.tgz: sha256sum: WARNING: 1 computed checksum did NOT match"),
        ({"gpt2-docker": f"gs://{DATA}/docker/other.tgz"}, "docker/other.tgz: curl: (22) The requested URL returned"),
    ],
)
def test_boot_refuses_a_docker_that_is_not_the_declared_one(
    without_docker: Boot, wrong: dict[str, str], said: str
) -> None:
    without_docker.attributes |= wrong
    without_docker.environment["BOOT_PATIENCE"] = "0"
    assert without_docker.run()[0] == 1
    assert without_docker.words().message.startswith("waited 0 s for Docker's archive gs://")
    assert said in without_docker.words().message
    assert not list((without_docker.root / "usr/local/bin").iterdir())


def test_boot_without_docker_in_image_and_stack_names_the_key_to_set(boot: Boot) -> None:
    boot.lacks("docker")
    assert boot.run()[0] == 1
    assert boot.words().message == (
        "the image has no Docker, and the stack brings none; set machines.imageFamily to cos-129-lts"
    )


def test_boot_tells_docker_of_the_nvidia_runtime(boot: Boot) -> None:
    boot.attributes["gpt2-gpus"] = "1"
    boot.gpus(1)
    boot.plan("info", "0", '0 {"runc": {}}', '0 {"runc": {}, "nvidia": {}}')
    code, output = boot.run()
    assert code == 0, output
    assert boot.calls("nvidia-ctk") == ["nvidia-ctk runtime configure --runtime=docker"]
    assert boot.calls("systemctl") == ["systemctl restart docker"]
    assert " --runtime nvidia " in boot.calls("docker run")[0]


def test_boot_without_nvidias_toolkit_says_so(boot: Boot) -> None:
    boot.lacks("nvidia-ctk")
    boot.attributes["gpt2-gpus"] = "1"
    boot.gpus(1)
    assert boot.run()[0] == 1
    assert boot.words().message.startswith("the image has no NVIDIA Container Toolkit (nvidia-ctk);")


def test_boot_runs_again_as_a_unit_of_its_own_where_systemd_is(boot: Boot) -> None:
    (boot.root / "run/systemd/system").mkdir(parents=True)
    boot.has("systemd-run")
    code, output = boot.run()
    assert (code, output) == (0, "")
    copy = boot.root / "run/gpt2-boot.sh"
    assert copy.read_text() == BOOT.read_text()
    assert boot.calls("") == [
        (
            "systemd-run --no-block --quiet --collect --unit gpt2-boot --property=After=docker.service"
            f" --property=KillMode=mixed --property=TimeoutStopSec=120 --property=StandardOutput=journal+console"
            f" /bin/bash {copy} unit"
        )
    ]


def test_boot_without_a_unit_of_its_own_still_trains(boot: Boot) -> None:
    (boot.root / "run/systemd/system").mkdir(parents=True)
    boot.has("systemd-run")
    boot.plan("systemd-run", "1 Failed to connect to bus")
    code, output = boot.run()
    assert code == 0
    assert output.startswith("Failed to connect to bus\ngpt2-training: systemd-run failed: at a shutdown the trainer")
    assert len(boot.calls("docker run")) == 1
