"""The GitHub workflows: legal, pinned, and with no more rights than they need."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.google.pipeline import ENVIRONMENT
from infra.review.markdown import MARK
from tools.go_tools import build

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
ACTIONS = [*FILES, *(ROOT / ".github" / "actions").glob("*/action.yml")]


def jobs() -> list[tuple[str, str, dict[str, Any]]]:
    """Yield (file, job, its content)."""
    return [(file.stem, name, job) for file in FILES for name, job in yaml.safe_load(file.read_text())["jobs"].items()]


@pytest.mark.slow
def test_workflows_pass_actionlint() -> None:
    """actionlint calls shellcheck, which is in the environment."""
    done = subprocess.run([build("actionlint"), *FILES], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    scripts = [ROOT / ".github" / name for name in ("changed_stacks", "comment", "stack_there")]
    script = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True)
    assert (script.returncode, script.stdout) == (0, "")


def test_actions_are_pinned_by_their_hashes() -> None:
    used = [line.strip() for file in ACTIONS for line in file.read_text().splitlines() if "uses:" in line]
    others = [line for line in used if "uses: ./" not in line]
    assert others
    for line in others:
        assert re.search(r"uses: [\w.-]+/[\w.-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$", line), line


def test_rights_are_given_job_by_job() -> None:
    for file in FILES:
        assert yaml.safe_load(file.read_text())["permissions"] == {"contents": "read"}, file.name
    rights = {(file, name): job["permissions"] for file, name, job in jobs() if "permissions" in job}
    login = {"contents": "read", "id-token": "write"}
    assert rights == {
        ("deploy", "up"): login,
        ("destroy", "destroy"): login,
        ("drift", "stacks"): login,
        ("review", "review"): {**login, "pull-requests": "write"},
    }


def test_jobs_that_deploy_wait_for_approval_and_jobs_that_read_do_not() -> None:
    for file, name, job in jobs():
        said = json.dumps(job)
        assert ("PIPELINE_DEPLOYER" in said) == (job.get("environment") == ENVIRONMENT), (file, name)
        assert not ("PIPELINE_DEPLOYER" in said and "PIPELINE_PREVIEWER" in said), (file, name)


def test_code_of_a_fork_runs_without_credentials() -> None:
    found = {name: job for file, name, job in jobs() if file == "review"}
    same = "github.event.pull_request.head.repo.full_name == github.repository"
    assert same in found["review"]["if"]
    assert same.replace("==", "!=") in found["offline"]["if"]
    assert not re.search(r"google-github-actions|GH_TOKEN|secrets\.", json.dumps(found["offline"]))
    (destroy,) = [job for file, _, job in jobs() if file == "destroy"]  # pull_request_target has rights
    (checkout,) = [step for step in destroy["steps"] if "actions/checkout" in step.get("uses", "")]
    assert checkout["with"]["ref"] == "${{ github.event.repository.default_branch }}"


def test_scripts_contain_no_text_that_a_stranger_writes() -> None:
    steps = [(f"{file}: {name}", step) for file, name, job in jobs() for step in job["steps"]]
    for path in ACTIONS[len(FILES) :]:
        steps += [(path.parent.name, step) for step in yaml.safe_load(path.read_text())["runs"]["steps"]]
    assert "set-up" in dict(steps)
    for where, step in steps:
        assert "${{" not in step.get("run", ""), where


def test_comment_script_finds_its_comment_by_the_reviews_mark() -> None:
    assert f"mark='{MARK}'" in (ROOT / ".github" / "comment").read_text()


def test_workflows_check_the_policies_before_and_after_a_merge() -> None:
    said = {name: json.dumps(job) for file, name, job in jobs() if file in ("review", "deploy")}
    assert "pulumi up --yes --non-interactive --policy-pack policy" in said["up"]
    assert "pulumi preview --policy-pack policy" in said["review"]
    assert said["up"].count("tools/setup_policy") == said["review"].count("tools/setup_policy") == 1


def test_variables_of_the_workflows_are_in_the_docs() -> None:
    text = (ROOT / "docs" / "pipeline.md").read_text()
    used = {name for file in FILES for name in re.findall(r"vars\.(\w+)", file.read_text())}
    assert used == {"STACKS", "PIPELINE_PROVIDER", "PIPELINE_PREVIEWER", "PIPELINE_DEPLOYER"}
    assert not {name for name in used if f"`{name}`" not in text}


# -- .github/changed_stacks --------------------------------------------------------------------------------------------


def changed(
    folder: Path, files: list[str], gone: list[str] | None = None, base: str = "HEAD~1"
) -> tuple[str, list[str]]:
    """Return the outputs `changed` and `list` for the stacks dev and single after a commit that changes these files."""

    def git(*command: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
        subprocess.run(["git", *identity, *command], cwd=folder, check=True, capture_output=True)

    git("init", "--quiet")
    for stack in ("dev", "single"):
        (folder / f"Pulumi.{stack}.yaml").write_text("config: {a: of a length by which git sees a file renamed}\n")
    git("add", "--all")
    git("commit", "--quiet", "--message", "base")
    for name in gone or []:
        (folder / name).rename(folder / f"{name}.old")
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("new\n")
    git("add", "--all")
    git("commit", "--quiet", "--allow-empty", "--message", "head")
    output = folder.parent / "output"
    environment = {**os.environ, "STACKS": "dev single", "BASE": base, "GITHUB_OUTPUT": str(output)}
    subprocess.run([ROOT / ".github" / "changed_stacks"], cwd=folder, env=environment, check=True)
    said = dict(line.split("=", 1) for line in output.read_text().splitlines())
    return said["changed"], json.loads(said["list"])


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["README.md", "docs/estimate.md", "tests/test_x.py", "Pulumi.devel.yaml", "infrastructure/x"], []),
        (["Pulumi.dev.yaml"], ["dev"]),
        (["Pulumi.single.yaml", "README.md"], ["single"]),
        (["trainer/training/loop.py"], ["dev", "single"]),
        (["__main__.py"], ["dev", "single"]),
        (["policy/rules.py"], ["dev", "single"]),
        (["data/my-data.txt.lock.json"], ["dev", "single"]),
    ],
)
def test_changed_stacks_are_those_of_the_changed_files(tmp_path: Path, files: list[str], expected: list[str]) -> None:
    (tmp_path / "checkout").mkdir()
    assert changed(tmp_path / "checkout", files) == (" ".join(expected), expected)


def test_changed_stacks_without_a_base_are_all(tmp_path: Path) -> None:
    (tmp_path / "checkout").mkdir()
    nothing = "0" * 40  # GitHub gives this base for a branch's first push
    assert changed(tmp_path / "checkout", ["README.md"], base=nothing) == ("dev single", ["dev", "single"])


def test_changed_stacks_with_a_deleted_file_are_reviewed_and_not_deployed(tmp_path: Path) -> None:
    (tmp_path / "checkout").mkdir()
    gone = ["Pulumi.dev.yaml"]
    assert changed(tmp_path / "checkout", [], gone) == ("dev", [])
    (tmp_path / "again").mkdir()
    assert changed(tmp_path / "again", ["infra/x.py"], gone) == ("dev single", ["single"])


# -- .github/comment ---------------------------------------------------------------------------------------------------

# The calls of gh that the script makes: it lists the comment's id, and prints the text and its address.
GH = """#!/usr/bin/env bash
case "$*" in
  *--paginate*) printf '%s' "$THERE" ;;
  *) echo "$@" | sed 's/--silent //'; cat review.md ;;
esac
"""


def commented(folder: Path, review: str, changed: str, listed: str, there: str = "") -> str:
    """Return the calls to GitHub. there: the id of the comment that a former push got."""
    (folder / "gh").write_text(GH)
    (folder / "gh").chmod(0o755)
    (folder / "review.md").write_text(review)
    environment = {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "GITHUB_REPOSITORY": "a/b",
        "NUMBER": "7",
        "JOB": "http://j",
    }
    environment |= {"CHANGED": changed, "LIST": listed, "THERE": there}
    script = ROOT / ".github" / "comment"
    return subprocess.run([script], cwd=folder, env=environment, check=True, capture_output=True, text=True).stdout


def test_comment_is_written_once_and_then_replaced(tmp_path: Path) -> None:
    assert (
        commented(tmp_path, "text\n", "dev", '["dev"]')
        == "api repos/a/b/issues/7/comments --field body=@review.md\ntext\n"
    )
    again = commented(tmp_path, "text\n", "dev", '["dev"]', there="12\n13\n")
    assert again == "api --method PATCH repos/a/b/issues/comments/12 --field body=@review.md\ntext\n"


def test_comment_of_a_former_push_is_replaced_when_no_stack_changes(tmp_path: Path) -> None:
    assert commented(tmp_path, "", "", "[]") == ""  # there was no earlier comment
    undone = commented(tmp_path, "", "", "[]", there="12\n")
    assert "comments/12" in undone
    assert f"**No changes**: no stack is touched.\n\n{MARK}\n" in undone
    for changed_stacks in (("dev", '["dev"]'), ("", "")):
        failed = commented(tmp_path, "", *changed_stacks, there="12\n")
        assert (
            f"**The review failed**: what this pull request does is not known; see [the job](http://j).\n\n{MARK}"
            in failed
        )


# -- the jobs' own scripts, with stubs of what they call ---------------------------------------------------------------

# UNREADY: the stack for which prepare_data fails. SAID, CONFIG: the errors of `pulumi stack` and `pulumi config get`.
PULUMI = """#!/usr/bin/env bash
echo "pulumi $*" >> calls
case "$1" in
  stack) [ -z "$SAID" ] || { echo "error: $SAID" >&2; exit 6; } ;;
  config) [ -z "$CONFIG" ] || { echo "error: $CONFIG" >&2; exit 1; }; echo europe-west4 ;;
esac
"""
PYTHON = """#!/usr/bin/env bash
echo "python $*" >> calls
case "$*" in
  *prepare_data*"$UNREADY") exit 1 ;;
  *review*) touch review.md ;;
esac
"""


def ran(folder: Path, file: str, part: str, **environment: str) -> tuple[int, str, list[str]]:
    """Run the step with that part in its script as GitHub does; return its exit code, output and calls."""
    (script,) = [
        step["run"]
        for name, _, job in jobs()
        for step in job["steps"]
        if name == file and part in step.get("run", "") and "--offline" not in step["run"]
    ]
    (folder / "tools").mkdir()
    (folder / ".github").mkdir()
    stubs = {"pulumi": PULUMI, "python": PYTHON, "docker": '#!/bin/sh\necho "docker $*" >> calls\n'}
    stubs |= {"tools/activate": "", "tools/setup_policy": "#!/bin/sh\n", "calls": ""}
    for name, text in stubs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    (folder / ".github" / "stack_there").symlink_to(ROOT / ".github" / "stack_there")
    for stack in ("dev", "single"):
        (folder / f"Pulumi.{stack}.yaml").touch()
    given = {"PATH": f"{folder}:{os.environ['PATH']}", "UNREADY": "nothing", "SAID": "", "CONFIG": "", "BASE": "main"}
    given |= {"GITHUB_OUTPUT": str(folder / "output"), "GITHUB_STEP_SUMMARY": str(folder / "summary"), "TOKEN": "t"}
    command = ["bash", "-e", "-c", script]
    done = subprocess.run(command, cwd=folder, env=given | environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr, (folder / "calls").read_text().splitlines()


def test_review_step_continues_when_prepare_data_fails(tmp_path: Path) -> None:
    code, _, calls = ran(tmp_path, "review", "scripts.review", CHANGED="dev single", UNREADY="dev")
    assert (code, len(calls)) == (0, 3)
    assert calls[2].startswith("python -m scripts.review --base main ")


def test_drift_step_continues_with_the_next_stack_and_fails(tmp_path: Path) -> None:
    code, _, calls = ran(tmp_path, "drift", "--refresh", STACKS="dev single", UNREADY="dev")
    assert code == 1
    assert [call.split()[-1] for call in calls if call.startswith("pulumi preview")] == ["single"]


MISSING = "no stack named 'dev' found"


@pytest.mark.parametrize(("said", "code", "previews"), [("", 0, 1), (MISSING, 0, 0), ("no credentials", 1, 0)])
def test_review_step_skips_policies_only_for_a_missing_stack(
    tmp_path: Path, said: str, code: int, previews: int
) -> None:
    found, text, calls = ran(tmp_path, "review", "pulumi preview --policy-pack", CHANGED="dev", SAID=said)
    assert (found, sum(call.startswith("pulumi preview") for call in calls)) == (code, previews)
    assert said in text or "the backend has no stack dev: `pulumi stack init dev " in text


@pytest.mark.parametrize(
    ("said", "config", "region"),
    [
        ("", "", "europe-west4"),
        ("", "configuration key 'gcp:region' not found for stack 'dev'", "us-central1"),
        ("", "no permission", None),
        (MISSING, "", None),
        ("no credentials", "", None),
    ],
)
def test_deploy_step_reads_the_images_region_from_the_stack(
    tmp_path: Path, said: str, config: str, region: str | None
) -> None:
    code, text, calls = ran(tmp_path, "deploy", "docker login", STACK="dev", SAID=said, CONFIG=config)
    assert (code == 0) == (region is not None)
    assert [call.split("//")[1] for call in calls if "docker" in call] == (
        [f"{region}-docker.pkg.dev"] if region else []
    )
    assert region or (said if said == "no credentials" else config or "pulumi stack init dev") in text
