"""A VM of the stand-in cloud: a folder, a metadata server, a way to storage, and the processes of its startup script.

The VM is on until it is stopped or lost, also after its startup script has ended, like a real one. All of its processes
carry a mark in their environment (infra/local/processes.py), so that none survives it.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from infra.local import processes
from tests.google_cloud import vm_image
from tests.google_cloud.cloud import Cloud
from tests.google_cloud.discovery import UNDOCUMENTED, VERSIONS
from tests.google_cloud.metadata import MetadataServer, tokens_of, tree
from tests.google_cloud.storage_proxy import StorageProxy

ADDRESS = "127.0.0.1"  # every VM has this address: only for it does the trainer bind gloo to the loopback interface
NOTICE = 120.0  # seconds from a preemption's notice to the shutdown
LAST_CALL = 10.0  # seconds that processes of no unit have at the end of a shutdown
GRACE = {True: 30.0, False: 90.0}  # seconds from the shutdown to the end of power, for Spot and other VMs
KEPT = ("LANG", "TZ", "LD_LIBRARY_PATH", "TMPDIR")  # these variables of the daemon's environment are kept
KEPT_PREFIXES = ("LC_", "BOOT_", "SSL_", "COVERAGE_")


@dataclass(frozen=True)
class Wanted:
    """A VM as a template describes it."""

    project: str
    name: str
    zone: str
    machine_type: str
    spot: bool
    gpus: int
    image: str  # the address of the boot disk's image
    account: str  # the e-mail address of its service account
    attributes: dict[str, str]
    template: dict[str, Any] = field(default_factory=dict)  # for its bill: disks, accelerators


class Machine:
    """One VM, from boot() until `ended`. `on_end` is called once, in a thread of its own, when its power is off."""

    def __init__(self, cloud: Cloud, wanted: Wanted, on_end: Callable[["Machine"], None]) -> None:
        self.wanted, self._cloud, self._on_end = wanted, cloud, on_end
        self.id = str(time.time_ns())
        self.folder = cloud.folder / "vms" / wanted.name
        self._disk = self.folder / self.id  # a machine that is made anew has an empty disk
        self._kind = vm_image.kind_of(wanted.image)
        self._path = vm_image.furnish(self._disk, self._kind)
        self.serial = self.folder / "serial.log"  # the log of all machines that had this name
        self.mark = f"{mark_of(cloud)}{wanted.name}/{self.id}/"
        self.script_exit: int | None = None  # the exit status of the startup script
        self.ended = threading.Event()
        self._ending = threading.Lock()
        # fmt: off
        instance = {
            "id": self.id, "name": wanted.name, "zone": wanted.zone, "machineType": wanted.machine_type, "ip": ADDRESS,
            "preemptible": "TRUE" if wanted.spot else "FALSE",
        }
        # fmt: on
        tokens = tokens_of(cloud)
        known = tree(wanted.project, instance, wanted.attributes, wanted.account, lambda: tokens.issue(wanted.account))
        self.metadata = MetadataServer(known)
        self.storage = StorageProxy(cloud, wanted.account, wanted.name)
        cloud.tell("on", self)

    def boot(self) -> None:
        """Run the startup script; returns at once."""
        script = self._disk / "startup-script"
        script.write_text(self.wanted.attributes.get("startup-script", ""))
        self._note(f"({self.id}) boots in {self.wanted.zone}")
        with self.serial.open("ab") as log:
            process = subprocess.Popen(
                ["bash", script],
                cwd=self._disk,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        threading.Thread(target=self._watch, args=(process,), daemon=True).start()

    def environment(self) -> dict[str, str]:
        """Return the startup script's environment. GPT2_TRAINING_STANDIN_* is for the commands in bin/."""
        kept = {k: v for k, v in os.environ.items() if k in KEPT or k.startswith(KEPT_PREFIXES)}
        overrides = {
            f"CLOUDSDK_API_ENDPOINT_OVERRIDES_{service.upper()}": f"{self._cloud.url}/{service}/{version}/"
            for service, version in {**VERSIONS, **UNDOCUMENTED}.items()
        }
        return {
            "BOOT_PAUSE": "1",
            **kept,
            **overrides,
            "PATH": self._path,
            "HOME": str(self._disk / "root"),
            "BOOT_ROOT": str(self._disk),
            "GCE_METADATA_HOST": self.metadata.address,
            "GCE_METADATA_IP": self.metadata.address,
            "STORAGE_EMULATOR_HOST": self.storage.url,
            "GPT2_TRAINING_STANDIN": self._cloud.url,
            "GPT2_TRAINING_STANDIN_DISK": str(self._disk),
            "GPT2_TRAINING_STANDIN_KIND": self._kind,
            "GPT2_TRAINING_STANDIN_GPUS": str(self.wanted.gpus),
            "GPT2_TRAINING_STANDIN_PYTHON": os.environ.get("GPT2_TRAINING_STANDIN_PYTHON", sys.executable),
            "GPT2_TRAINING_STANDIN_ROOT": os.environ.get("GPT2_TRAINING_STANDIN_ROOT", str(Path.cwd())),
            processes.MARK: self.mark,
        }

    def _watch(self, process: "subprocess.Popen[bytes]") -> None:
        self.script_exit = process.wait()
        if not self.ended.is_set():
            self._note(f"the startup script ended with {self.script_exit}")

    def _note(self, text: str) -> None:
        with self.serial.open("ab") as log:
            log.write(f"--- {self.wanted.name}: {text}\n".encode())

    def preempt(self, notice: bool) -> None:
        """Announce a preemption in the metadata; without notice, shut down at once."""
        if notice:
            self._note("is told of its preemption")
            self.metadata.set("instance/preempted", "TRUE")
        else:
            self.kill()

    def freeze(self) -> None:
        """Stop all processes, as in a VM that hangs; only kill() and the end of a shutdown's time help."""
        for process in processes.marked(self.mark):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGSTOP)

    def stop(self, grace: float | None = None) -> None:
        """Shut down like the power button, then switch off. It returns at once; `ended` is set when it is over."""
        limit = GRACE[self.wanted.spot] if grace is None else grace
        self._note(f"shuts down, within {limit:g} s")
        threading.Thread(target=self._end, args=(limit,), name=f"stop {self.wanted.name}", daemon=True).start()

    def kill(self) -> None:
        """Switch the power off now. It returns when none of its processes runs any more."""
        self._end(0.0)

    def _shut_down(self, grace: float) -> None:
        """End processes as systemd does: its units, then Docker's containers, then the rest, all within the grace.

        The startup script's service passes no notice on (KillMode=process): a script of no unit is of the rest.
        """
        deadline = time.monotonic() + grace
        stages: list[tuple[str, Callable[[], list[psutil.Process]], float]] = [
            ("units", self._units, grace),
            ("Docker's containers", self._containers, grace),
            ("everything else", self._rest, LAST_CALL),
        ]
        for name, members, patience in stages:
            if asked := members():
                self._note(f"stops {name}")
            for process in asked:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.terminate()
            psutil.wait_procs(asked, timeout=max(0.0, min(patience, deadline - time.monotonic())))

    def _units(self) -> list[psutil.Process]:
        return self._living(int(path.read_text()) for path in self._disk.glob("run/units/*") if not path.suffix)

    def _containers(self) -> list[psutil.Process]:
        described = [json.loads(path.read_text() or "{}") for path in self._disk.glob("docker/containers/*.json")]
        return self._living(container["pid"] for container in described if "pid" in container)

    def _rest(self) -> list[psutil.Process]:
        return processes.marked(self.mark)

    def _living(self, pids: Iterable[int]) -> list[psutil.Process]:
        living = {process.pid: process for process in processes.marked(self.mark)}
        return [living[pid] for pid in pids if pid in living]

    def _end(self, grace: float) -> None:
        # While one thread waits for a shutdown, another may switch the power off.
        if grace:
            self._shut_down(grace)
        while members := processes.marked(self.mark):
            for member in members:
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.kill()
            psutil.wait_procs(members, timeout=0.05)  # a zombie that nobody waits for would take all of the time
        with self._ending:
            if self.ended.is_set():
                return
            self.ended.set()
        self._cloud.tell("off", self)
        self._note("is off")
        self.metadata.close()
        self.storage.close()
        threading.Thread(target=self._on_end, args=(self,), daemon=True).start()


def mark_of(cloud: Cloud) -> str:
    """Return the beginning of the marks of all VMs of a cloud; processes.marked(...) finds their processes."""
    return f"{cloud.folder}::"
