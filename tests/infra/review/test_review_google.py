"""Reviews of pull requests to the `dev` stack on the stand-in cloud: the real CLI and the real program."""

import shutil
import subprocess
from pathlib import Path

import pytest

from policy import rules
from scripts import review
from tests.google_cloud.conftest import StandIn, cloud

__all__ = ["cloud"]  # the fixture
pytestmark = pytest.mark.slow
STORAGE, NETWORK = "infra/google/storage.py", "infra/google/network.py"
# The stack uses a bucket that others made in place of its own.
NO_BUCKET = (
    'self.artifacts = self._bucket("artifacts", config.bucket, existing_buckets)',
    'self.artifacts = type("Shared", (), {"name": pulumi.Output.from_input(config.bucket.removeprefix("gs://"))})()',
)
PINNED = "us-central1-docker.pkg.dev/p/r/trainer@sha256:" + "a" * 64


class PullRequests:
    """Previews of versions of the program whose stack was never made."""

    def __init__(self, cloud: StandIn):
        self.cloud = cloud
        folder = cloud.root / "data" / "gpt2-vocabulary"
        folder.mkdir()
        for name in ("vocab.json", "merges.txt"):
            (folder / name).touch()
        self.base = self.preview("base")

    def preview(self, name: str) -> str:
        path = self.cloud.root / f"{name}.json"
        path.write_text(self.cloud.pulumi("preview", "--json", "--show-sames"))
        return str(path)

    def review(self, name: str, file: str, *edits: tuple[str, str]) -> tuple[int, str]:
        """Change a file, review the change and undo it; return the exit code and the Markdown."""
        path = self.cloud.root / file
        before = path.read_text()
        text = before
        for old, new in edits:
            assert old in text
            text = text.replace(old, new)
        path.write_text(text)
        head, out = self.preview(name), self.cloud.root / f"{name}.md"
        path.write_text(before)
        code = review.main(["--previews", self.base, head, "--to", str(out)])
        return code, out.read_text()


def test_review_of_a_pull_request_begins_with_its_most_important_change(cloud: StandIn) -> None:
    prs = PullRequests(cloud)
    code, text = prs.review("rate", "Pulumi.dev.yaml", ("learningRate: 0.01", "learningRate: 0.02"))
    assert text.startswith("**dev: whether run gpt2-")
    assert "takes its place**; learningRate: 0.01 → 0.02.\n" in text.splitlines(keepends=True)[0]
    assert code == 20
    assert "worker: 10 x `n1-highmem-16 + 1 x nvidia-tesla-t4, Spot`, all of them replaced" in text
    assert "| `trainingInput.hyperparameters.learningRate` | `0.01` | `0.02` |" in text

    gpu = ("{type: nvidia-tesla-t4, count: 1}", "{type: nvidia-tesla-t4, count: 2}")
    image = ("gpt2-training:platform: google", f"gpt2-training:platform: google\n  gpt2-training:image: {PINNED}")
    code, text = prs.review("gpu", "Pulumi.dev.yaml", gpu, image)
    first = text.splitlines()[0]
    assert first.startswith("**dev: whether run gpt2-")
    assert "; n1-highmem-16 + 1 x nvidia-tesla-t4 → n1-highmem-16 + 2 x nvidia-tesla-t4; $" in first
    assert code == 20

    code, text = prs.review("firewall", NETWORK, ("source_ranges=[IAP]", 'source_ranges=["0.0.0.0/0"]'))
    said = "**dev: open to everybody: firewall ssh lets the whole internet in (tcp 22)**; against the policy: "
    assert text.startswith(f"{said}no-open-firewall.\n")
    assert code == 30

    code, text = prs.review("bucket", STORAGE, NO_BUCKET)
    assert text.startswith(f"**dev: left behind, and billed: bucket {cloud.project}-dev-gpt2**.\n")
    assert code == 10
    assert f"- Left behind: `bucket {cloud.project}-dev-gpt2` stays, is billed, and no stack manages it" in text


def test_review_of_a_checkout_without_a_stack_compares_it_with_its_base(cloud: StandIn) -> None:
    """The checkout has no credentials, text, vocabulary or state, like a pull request from a fork."""
    shutil.copytree(Path(rules.__file__).parent, cloud.root / "policy", ignore=shutil.ignore_patterns(".venv"))
    shutil.rmtree(cloud.root / "data")
    # This is the committed form.
    dev = (cloud.root / "Pulumi.dev.yaml").read_text().replace(f"  gcp:project: {cloud.project}\n", "")
    account = "billingAccount: {secure: v1:unreadable}"
    dev = dev.replace("maxCostUsd: 200}", f"maxCostUsd: 200, {account}}}")
    dev = f"{dev}\n  gpt2-training:notify: {{secure: v1:unreadable}}\nencryptionsalt: v1:lost\n"
    assert account in dev
    (cloud.root / "Pulumi.dev.yaml").write_text(dev)
    (cloud.root / ".gitignore").write_text("/.venv\n/data/\n__pycache__/\n")
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "base"]):
        who = ["-c", "user.name=test", "-c", "user.email=test@example.com"]
        subprocess.run(["git", *who, *command], cwd=cloud.root, check=True)
    cloud.edit("dev", "workerCount: 10", "workerCount: 16")
    cloud.edit("local", "workerCount: 1 ", "workerCount: 2 ")
    files = {path.name: path.read_text() for path in cloud.root.glob("Pulumi*")}
    out = cloud.script("scripts.review", "--stack", "dev", "local", "--base", "HEAD", ok=False)
    lines = out.splitlines()
    assert lines[0].startswith("**dev: 10 → 16 workers**; no machine is replaced; $"), out
    assert "**Offline** (the backend has no stack dev; against HEAD): the program's two versions are compared" in out
    assert "targetSize: 10 → 16" in out
    assert any(line.startswith("**local: 1 → 2 workers**") for line in lines), out
    assert "+   pulumi-python:dynamic/local:Machine worker-1" in out
    for path in (str(cloud.root), "/tmp/"):
        assert path not in out
    assert {path.name: path.read_text() for path in cloud.root.glob("Pulumi*")} == files

    (cloud.root / "Pulumi.dev.yaml").unlink()
    out = cloud.script("scripts.review", "--stack", "dev", "--base", "HEAD", ok=False)
    assert out.startswith("**dev: Pulumi.dev.yaml is gone**; merging that destroys nothing: "), out
    assert "`pulumi destroy -s dev` (or the label destroy:dev) must come before the merge.\n" in out.splitlines(True)[0]
    assert "its machines cost $8.19 an hour" in out
    assert "=   gcp:storage/bucket:Bucket artifacts\n" in out
    assert "Lost" not in out
    shutil.copy(cloud.root / "Pulumi.yaml", cloud.root / "Pulumi.bad.yaml")  # this stack was never made
    for command in (["add", "Pulumi.bad.yaml"], ["commit", "--quiet", "--message", "bad"]):
        subprocess.run(["git", *who, *command], cwd=cloud.root, check=True)
    (cloud.root / "Pulumi.bad.yaml").unlink()
    out = cloud.script("scripts.review", "--stack", "bad", "--base", "HEAD", ok=False)
    assert out.startswith("**bad: Pulumi.bad.yaml is gone**; merging that destroys nothing: "), out
    (cloud.root / "Pulumi.dev.yaml").write_text(files["Pulumi.dev.yaml"])

    cloud.environment["PULUMI_CONFIG_PASSPHRASE"] = ""  # Pulumi.local.yaml was made with this passphrase
    cloud.pulumi("stack", stack="local")
    (cloud.root / "data").mkdir()
    (cloud.root / "data" / "default.txt").write_text("To be, or not to be, that is the question.\n" * 5000)
    out = cloud.script("scripts.review", "--stack", "local", ok=False)
    assert out.startswith("**local: a new stack, run gpt2-"), out
    assert " on 4 machines**" in out.splitlines()[0]
    assert "Offline" not in out
