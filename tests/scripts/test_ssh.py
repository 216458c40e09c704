"""scripts.ssh finds a machine and starts gcloud for it."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts import ssh
from scripts.support import common
from scripts.support.common import UserError
from tests.scripts.google import FakeGoogle, project

ELSEWHERE = {"name": "dev-worker-76543210", "targetSize": 0}  # the group of a zone where the run is not
GROUPS = "projects/test-project/regions/us-central1/instanceGroupManagers"


def instance(name: str, state: str, zone: str = "us-central1-b") -> dict[str, Any]:
    base = "https://www.googleapis.com/compute/v1/projects/test-project"
    return {"instance": f"{base}/zones/{zone}/instances/{name}", "instanceStatus": state}


@pytest.fixture(autouse=True)
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(common, "CHECKOUT", project(tmp_path))
    (tmp_path / "Pulumi.local.yaml").write_text(
        "config:\n  gpt2-training:trainingInput: {}\n  gpt2-training:model: {size: tiny}\n"
        "  gpt2-training:data: {path: x.txt}\n"
    )
    return tmp_path


def machines(google: FakeGoogle, *instances: dict[str, Any], size: int = 3) -> None:
    google.on("compute", "GET", GROUPS, {"items": [{"name": "dev-worker-01234567", "targetSize": size}, ELSEWHERE]})
    google.on("compute", "POST", f"{GROUPS}/.*/listManagedInstances", {"managedInstances": list(instances)})
    google.on("compute", "GET", f"{GROUPS}/.*/listErrors", {})


def test_printed_command_is_that_of_gcloud(google: FakeGoogle, capsys: pytest.CaptureFixture[str]) -> None:
    machines(
        google,
        instance("dev-worker-01234567-cccc", "RUNNING"),
        instance("dev-worker-01234567-aaaa", "STAGING"),
        instance("dev-worker-01234567-bbbb", "RUNNING", "us-central1-c"),
    )
    assert ssh.main(["worker", "--print"]) == 0
    assert capsys.readouterr().out == (
        "gcloud compute ssh dev-worker-01234567-bbbb --tunnel-through-iap --project test-project --zone us-central1-c\n"
    )
    ssh.main(["--print", "worker", "--index", "1", "--", "tail", "-n", "5", "a file"])
    assert capsys.readouterr().out.endswith("-cccc --tunnel-through-iap --project test-project --zone us-central1-b"
                                            " --command 'tail -n 5 '\"'\"'a file'\"'\"''\n")  # fmt: skip
    with pytest.raises(UserError, match=r"--index 2: 2 machines of role worker run; use 0 to 1"):
        ssh.main(["worker", "--print", "--index", "2"])


def test_gcloud_replaces_the_process_and_gives_its_exit_code(google: FakeGoogle, stack: Path) -> None:
    machines(google, instance("dev-worker-01234567-bbbb", "RUNNING"))
    gcloud = stack / "bin" / "gcloud"
    gcloud.parent.mkdir()
    gcloud.write_text('#!/bin/sh\necho "gcloud was called: $*"\nexit 7\n')
    gcloud.chmod(0o755)
    code = (
        "import sys; from pathlib import Path; from scripts import ssh; from scripts.support import common;"
        f"common.CHECKOUT = Path({str(stack)!r}); ssh.main(['worker'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PATH": f"{gcloud.parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (7, "")
    assert done.stdout.startswith("gcloud was called: compute ssh dev-worker-01234567-bbbb --tunnel-through-iap")


def test_missing_machine_is_one_line(google: FakeGoogle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machines(google, instance("dev-worker-01234567-bbbb", "STAGING"))
    with pytest.raises(UserError, match=r"worker: no machine now, none of 3 runs yet; .*scripts\.watch --stack dev"):
        ssh.main(["worker", "--print"])
    with pytest.raises(UserError, match=r"ps: stack dev has no such machines now \(it has: worker\)"):
        ssh.main(["ps", "--print"])
    machines(google, size=0)
    with pytest.raises(UserError, match="size 0: the run has ended"):
        ssh.main(["worker", "--print"])
    with pytest.raises(UserError, match="local runs on this machine"):
        ssh.main(["worker", "--print", "--stack", "local"])
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no gcloud on PATH"):
        ssh.main(["worker"])


@pytest.mark.usefixtures("nobody")
def test_stack_file_alone_reports_a_missing_role_without_a_login(stack: Path) -> None:
    project(stack, "single", trainingInput={"masterType": "n1-standard-4", "hyperparameters": {}}, machines=None)
    with pytest.raises(UserError, match=r"^worker: stack single has no such machines by its stack file \(it has: mast"):
        ssh.main(["worker", "--print", "--stack", "single"])
    needs = "the machine's name and zone, which Google must be asked for, are not known: no Google credentials; run"
    with pytest.raises(UserError, match=f"^{needs}"):
        ssh.main(["worker", "--print"])


def test_missing_permission_is_one_line_and_exit_code_2(google: FakeGoogle, stack: Path) -> None:
    google.deny("compute")
    code = (
        "from pathlib import Path; from scripts import ssh; from scripts.support import common;"
        "from trainer.gcloud.api import ApiError;"
        f"common.CHECKOUT = Path({str(stack)!r}); common.run_main(lambda: ssh.main(['worker', '--print']), ApiError)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: compute GET projects/test-project/")
    assert done.stderr.endswith("403, no permission\n")
