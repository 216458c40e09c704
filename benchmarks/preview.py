"""Compare `pulumi preview` of the dev stack with an empty program, in seconds: `python -m benchmarks.preview`.

It uses the stand-in cloud, without credentials. The empty program loads the same parts of the same SDK and declares
only the provider. The programs take turns, and each figure is the median of the rounds. A single machine is no
resource, so 1,000 workers should take as long as 10.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.gcs import fake_gcs_server
from tests.google_cloud import conftest as stand_in
from tests.google_cloud.install import environment, install, without_google

CHECKOUT = Path(__file__).resolve().parents[1]
EMPTY = """import pulumi
import pulumi_gcp as gcp
from pulumi_gcp import artifactregistry, billing, cloudscheduler, compute, logging, monitoring, projects
from pulumi_gcp import serviceaccount, storage
import pulumi_docker_build
(artifactregistry.Repository, cloudscheduler.Job, compute.Network, logging.Metric, monitoring.Dashboard)
(projects.Service, serviceaccount.Account, storage.Bucket, pulumi_docker_build.Image)
gcp.Provider("google", project="{project}", region="us-central1")
"""


def project(folder: Path, name: str, workers: int | None) -> Path:
    """Copy the project, with the empty program if workers is None. Return its folder."""
    root = folder / f"project-{workers}"
    stand_in.copy_project(root, name)
    (root / ".venv").symlink_to(sys.prefix)
    (root / "data" / "my-data.txt").write_text("To be, or not to be, that is the question.\n" * 100_000)
    (root / "data" / "gpt2-vocabulary").mkdir(exist_ok=True)
    for file in ("vocab.json", "merges.txt"):
        (root / "data" / "gpt2-vocabulary" / file).touch()
    if workers is None:
        (root / "__main__.py").write_text(EMPTY.format(project=name))
        return root
    path = root / "Pulumi.dev.yaml"
    text = path.read_text().replace("workerCount: 10", f"workerCount: {workers}")
    text = text.replace("batchSize: 32", "batchSize: 2048").replace("maxCostUsd: 200", "maxCostUsd: 20000")
    path.write_text(text)
    return root


def preview(root: Path, variables: dict[str, str]) -> float:
    begun = time.perf_counter()
    command = ["pulumi", "preview", "--non-interactive", "--stack", "dev"]
    done = subprocess.run(command, cwd=root, env=variables, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"pulumi preview failed:\n{done.stdout}{done.stderr}")
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.preview", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    console = Console()
    with tempfile.TemporaryDirectory() as temporary, fake_gcs_server(Path(temporary) / "gcs.log") as address:
        folder, name, storage = Path(temporary), f"gpt2-{uuid.uuid4().hex[:8]}", f"http://{address}"
        (folder / "cloud").mkdir()
        install(folder / "home", Path(sys.executable))
        base = without_google()
        daemon = stand_in.start_daemon(folder / "cloud", {**base, "STORAGE_EMULATOR_HOST": storage})
        url = ""
        try:
            url = stand_in.wait_for(lambda: stand_in.daemon_url(folder / "cloud", daemon), "the stand-in cloud")
            variables = {
                **base,
                **environment(url, storage, folder / "cloud"),
                "PATH": (CHECKOUT / ".venv" / "pulumi-path").read_text().strip() + os.pathsep + os.environ["PATH"],
                "PULUMI_HOME": str(folder / "home"),
                "PULUMI_CONFIG_PASSPHRASE": "benchmark",
                "PULUMI_SKIP_UPDATE_CHECK": "true",
                "PULUMI_OPTION_SKIP_PLUGIN_PRE_INSTALL": "true",
            }
            settings = {}
            for workers in (None, 10, 1000):
                state = folder / f"state-{workers}"
                state.mkdir()
                own = {**variables, "PULUMI_BACKEND_URL": state.as_uri()}
                root = project(folder, name, workers)
                command = ["pulumi", "stack", "init", "dev"]
                subprocess.run(command, cwd=root, env=own, check=True, capture_output=True)
                settings[workers] = root, own
            seconds: dict[int | None, list[float]] = {workers: [] for workers in settings}
            for done in range(rounds + 1):
                for workers, (root, own) in settings.items():
                    taken = preview(root, own)
                    if done:  # the first preview writes bytecode
                        seconds[workers].append(taken)
                print(f"round {done} of {rounds}", file=sys.stderr, flush=True)
        finally:
            stand_in.stop(daemon, url)
    medians = {workers: statistics.median(all_of_them) for workers, all_of_them in seconds.items()}
    table = Table("program", "seconds", "ratio", title=f"pulumi preview, medians of {rounds}")
    table.add_row("empty, same SDK and provider", f"{medians[None]:.2f}", "")
    table.add_row("dev, 10 workers", f"{medians[10]:.2f}", f"{medians[10] / medians[None]:.2f} of empty")
    table.add_row("dev, 1,000 workers", f"{medians[1000]:.2f}", f"{medians[1000] / medians[10]:.2f} of 10 workers")
    console.print(table)


if __name__ == "__main__":
    main()
