"""scripts.bootstrap: what it refuses, and how it calls Pulumi. tests/google_cloud/test_pipeline.py runs the program."""

import json
from pathlib import Path

import pytest

from scripts import bootstrap
from scripts.support import common
from scripts.support.common import UserError
from tests.scripts.google import project

KEY = "gpt2-training:pipeline: {repository: acme/models, repositoryId: 123456789}\n  gpt2-training:platform"
PULUMI = """#!/bin/sh
case "$*" in
  *export*) cat state; cat refusal >&2; exit "$(cat code)" ;;
  *) echo "$PULUMI_BACKEND_URL $*" >> calls ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a checkout whose stack dev has a pipeline, in which `pulumi` writes down its calls."""
    project(tmp_path)
    (tmp_path / "Pulumi.yaml").write_text("name: gpt2-training\nruntime: python\n")
    file = tmp_path / "Pulumi.dev.yaml"
    file.write_text(file.read_text().replace("gpt2-training:platform", KEY, 1))
    (tmp_path / "pulumi").write_text(PULUMI)
    (tmp_path / "pulumi").chmod(0o755)
    exported(tmp_path, "pulumi:pulumi:Stack")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("PULUMI_BACKEND_URL", raising=False)
    monkeypatch.setattr(common, "CHECKOUT", tmp_path)
    return tmp_path


def exported(checkout: Path, *types: str, refusal: str = "") -> None:
    """Let `pulumi stack export` give a state with resources of these types, or fail."""
    state = {"deployment": {"resources": [{"type": kind} for kind in types]}}
    (checkout / "state").write_text(json.dumps(state))
    (checkout / "refusal").write_text(refusal)
    (checkout / "code").write_text("1" if refusal else "0")


def run(checkout: Path, *, yes: bool = False, destroy: bool = False) -> list[str]:
    assert bootstrap.run(common.google_stack("dev"), yes=yes, destroy=destroy, checkout=checkout) == 0
    return [line.replace(str(checkout), "ROOT") for line in (checkout / "calls").read_text().splitlines()]


def test_bootstrap_selects_the_stack_of_this_name_and_asks(checkout: Path) -> None:
    assert run(checkout) == [" --cwd ROOT/bootstrap stack select --create dev", " --cwd ROOT/bootstrap up --stack dev"]


def test_bootstrap_uses_the_stacks_backend_and_its_key(checkout: Path) -> None:
    with (checkout / "Pulumi.yaml").open("a") as file:
        file.write("backend: {url: gs://states}\n")
    with (checkout / "Pulumi.dev.yaml").open("a") as file:
        file.write("secretsprovider: gcpkms://key\n")
    assert run(checkout, yes=True) == [
        "gs://states --cwd ROOT/bootstrap stack select --create dev --secrets-provider gcpkms://key",
        "gs://states --cwd ROOT/bootstrap up --stack dev --yes",
    ]


def test_bootstrap_of_a_stack_that_the_backend_does_not_have_yet_continues(checkout: Path) -> None:
    exported(checkout, refusal="error: no stack named 'dev' found")
    assert len(run(checkout)) == 2


def test_bootstrap_of_a_stack_that_made_its_own_accounts_is_refused(checkout: Path) -> None:
    exported(checkout, "gcp:serviceaccount/account:Account")
    with pytest.raises(UserError, match=r"its own `up` made the accounts.*; run `pulumi destroy --stack dev` before"):
        run(checkout)


def test_bootstrap_is_destroyed_only_after_its_stack(checkout: Path) -> None:
    exported(checkout, "gcp:storage/bucket:Bucket")
    with pytest.raises(UserError, match=r"its machines use these accounts; run `pulumi destroy --stack dev` first"):
        run(checkout, destroy=True)
    exported(checkout, "pulumi:pulumi:Stack")
    assert run(checkout, destroy=True)[-1] == " --cwd ROOT/bootstrap destroy --stack dev"


def test_bootstrap_without_access_to_the_state_is_refused(checkout: Path) -> None:
    exported(checkout, refusal="error: could not read bucket: no credentials")
    with pytest.raises(UserError, match=r"stack dev: its state cannot be read: .*no credentials"):
        run(checkout)


def test_bootstrap_of_a_stack_without_a_pipeline_is_refused(checkout: Path) -> None:
    file = checkout / "Pulumi.dev.yaml"
    file.write_text(file.read_text().replace(KEY, "gpt2-training:platform"))
    with pytest.raises(UserError, match=r"gpt2-training:pipeline: stack dev has none"):
        run(checkout)
