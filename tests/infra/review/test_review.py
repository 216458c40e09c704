"""scripts.review on previews: its first line, its content, the secrets that it never shows, and its exit code."""

import json
import os
import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infra.review.interruption import machines
from infra.review.resource_types import GROUP
from infra.review.steps import Preview, parse_preview
from infra.stack import reading
from policy import rules
from scripts import review
from scripts.support.common import UserError
from trainer.runs.records import Status
from trainer.storage.factory import open_storage

Json = dict[str, Any]
UNKNOWN = "04da6b54-80e4-46f7-96ec-b56ff0331ba9"
BUCKET, OBJECT = "gcp:storage/bucket:Bucket", "gcp:storage/bucketObject:BucketObject"
FIREWALL, NETWORK = "gcp:compute/firewall:Firewall", "gcp:compute/network:Network"
SUBNETWORK, MEMBER = "gcp:compute/subnetwork:Subnetwork", "gcp:projects/iAMMember:IAMMember"
MACHINE, RUN = "pulumi-python:dynamic/local:Machine", "gpt2-training:run:TrainingRun"
KEPT = {"name": "keep", "forceDestroy": False, "softDeletePolicy": {"retentionDurationSeconds": 604800}}
WORDS = {
    "trainingInput": {"hyperparameters": {"learningRate": 0.1}},
    "model": {"size": "tiny"},
    "data": {"path": "data/default.txt"},
}


def urn(kind: str, name: str) -> str:
    return f"urn:pulumi:dev::gpt2-training::{RUN}${kind}::{name}"


def step(op: str, kind: str, name: str, old: Json | None = None, new: Json | None = None, **state: Any) -> Json:
    """Return a preview's step. state: values of both states beside their inputs; replaced: the paths that replace."""
    replaced = state.pop("replaced", None)
    found: Json = {"op": op, "urn": urn(kind, name), "replaceReasons": replaced}
    for key, inputs in (("oldState", old), ("newState", new)):
        if inputs is not None:
            found[key] = {"type": kind, "inputs": inputs, **state}
    return found


Review = Callable[..., str]


@pytest.fixture
def said(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Return a function that reviews one preview, or two without state, and checks the exit code.

    It returns the Markdown.
    """
    monkeypatch.setattr(review, "check", lambda _resources: [])

    def run(*previews: list[Json], code: int, config: Json | None = None, diagnostics: list[Json] | None = None) -> str:
        names = []
        for i, steps in enumerate(previews):
            names.append(str(tmp_path / f"{i}.json"))
            content = {"config": config or {}, "steps": steps, "diagnostics": diagnostics or []}
            Path(names[-1]).write_text(json.dumps(content))
        assert review.main(["--previews", *names]) == code
        return capsys.readouterr().out

    return run


def test_review_without_changes_is_one_line(said: Review) -> None:
    assert said([step("same", BUCKET, "b", KEPT, KEPT)], code=0).startswith("**No changes**: dev.\n")


# Data. --------------------------------------------------------------------------------------------------------------


def test_deleted_bucket_with_its_objects_is_in_the_first_line(said: Review) -> None:
    files = [step("delete", OBJECT, "text", {"bucket": "keep", "name": "data/a"})]
    text = said(
        [
            step("delete", BUCKET, "b", {**KEPT, "forceDestroy": True}),
            *files,
            step("update", FIREWALL, "ssh", {"allows": [], "disabled": True}, {"allows": [{"protocol": "tcp"}]}),
        ],
        code=20,
    )
    lost = "bucket keep with everything in it (Google can restore it for 7 days)"
    first, *_ = text.splitlines()
    assert first.startswith(f"**dev: data would be lost: {lost}**; open to everybody: firewall ssh")
    assert f"- **Lost**: `{lost}`" in text
    assert "data/a" not in text.partition("<details>")[0]  # the object is deleted with its bucket
    assert text.index("#### Data") < text.index("#### Access")


@pytest.mark.parametrize(
    ("inputs", "state", "code", "first"),
    [
        ({}, {"retainOnDelete": True}, 10, "left behind, and billed: bucket keep"),
        ({"deletionPolicy": "ABANDON"}, {}, 10, "left behind, and billed: bucket keep"),
        ({}, {}, 20, "`pulumi up` would fail: bucket keep cannot be deleted unless it is empty"),
        ({}, {"protect": True}, 20, "`pulumi up` would fail: bucket keep is protected from being deleted"),
    ],
)
def test_deleted_bucket_that_keeps_its_objects_is_no_loss(
    said: Review, inputs: Json, state: Json, code: int, first: str
) -> None:
    text = said([step("delete", BUCKET, "b", {**KEPT, **inputs}, **state)], code=code)
    assert text.startswith(f"**dev: {first}**")


def test_replaced_object_is_lost_unless_its_name_stays(said: Review) -> None:
    old, new = {"bucket": "keep", "name": "a", "contentType": "x"}, {"bucket": "keep", "name": "a", "contentType": "y"}
    assert "lost" not in said([step("replace", OBJECT, "o", old, new, replaced=["contentType"])], code=10)
    text = said([step("replace", OBJECT, "o", old, {**new, "name": "b"}, replaced=["name"])], code=20)
    assert text.startswith("**dev: data would be lost: object keep/a**")
    kept = [step("replace", OBJECT, "o", old, {**new, "name": "b"}, replaced=["name"], retainOnDelete=True)]
    assert "left behind" not in said(kept, code=10)  # a new run leaves the old one's files on purpose


def test_removed_protection_of_a_bucket_is_reported(said: Review) -> None:
    text = said([step("update", BUCKET, "b", KEPT, {**KEPT, "forceDestroy": True})], code=10)
    assert text.startswith("**dev: less protected: bucket keep: pulumi destroy would delete it with everything in it**")


# Access. ------------------------------------------------------------------------------------------------------------


def test_changed_grants_name_member_role_and_place(said: Review) -> None:
    one = {"project": "p", "role": "roles/viewer", "member": "serviceAccount:a@p"}
    other = {"project": "p", "role": "roles/owner", "member": "serviceAccount:a@p"}
    text = said([step("replace", MEMBER, "m", one, other, replaced=["role"])], code=10)
    assert "`serviceAccount:a@p` gets `roles/owner` on `project p`" in text
    assert "`serviceAccount:a@p` loses `roles/viewer` on `project p`" in text
    again = [step("delete", MEMBER, "m", one), step("create", MEMBER, "n", new=one)]
    assert "#### Access" not in said(again, code=10)  # the same member has the same role


RIGHT = "gcp:storage/bucketIAMMember:BucketIAMMember"


def right(*runs: str, **others: Any) -> Json:
    """Return a grant on the objects of runs; without one, on the whole bucket."""
    limits = [f'resource.name.startsWith("projects/_/buckets/b/objects/runs/{run}/")' for run in runs]
    condition = {"condition": {"title": "t", "expression": " || ".join(limits)}} if runs else {}
    return {"bucket": "b", "role": "roles/storage.objectUser", "member": "serviceAccount:a@p", **condition, **others}


@pytest.mark.parametrize(
    ("old", "new", "gets"),
    [
        (right("m-0a1b2c3d"), right(), ""),
        (right("m-0a1b2c3d"), right("m-0a1b2c3d", "m-22222222"),
         " where `resource.name.startsWith('runs/m-0a1b2c3d/') || resource.name.startsWith('runs/m-22222222/')`"),
        (right("m-0a1b2c3d"), right("m"), " where `resource.name.startsWith('runs/m/')`"),
        (right("m-0a1b2c3d"), right("m-0a1b2c3d/../.."), " where `resource.name.startsWith('runs/m-0a1b2c3d/../../')`"),
    ],
)  # fmt: skip
def test_grant_whose_condition_is_wider_or_gone_is_reported(said: Review, old: Json, new: Json, gets: str) -> None:
    text = said([step("replace", RIGHT, "m", old, new, replaced=["condition"])], code=10)
    assert f"`serviceAccount:a@p` gets `roles/storage.objectUser` on `bucket b`{gets}\n" in text.replace('"', "'")
    assert "`serviceAccount:a@p` loses `roles/storage.objectUser` on `bucket b` where" in text


def test_grants_that_follow_the_run_are_one_line(said: Review) -> None:
    steps = [
        step("replace", RIGHT, member, *(right(run, member=member) for run in ("m-0a1b2c3d", "m-22222222")))
        for member in ("a", "b")
    ]
    text = said(steps, code=10)
    assert "`2 grants on objects of m-0a1b2c3d now hold for m-22222222`" in text
    assert " gets " not in text


@pytest.mark.parametrize(
    ("kind", "inputs", "first"),
    [
        (FIREWALL, {"allows": [{"protocol": "tcp", "ports": ["22", "80"]}], "sourceRanges": ["10.0.0.0/8", "::/0"]},
         "firewall x lets the whole internet in (tcp 22, 80)"),
        (FIREWALL, {"allows": [{"protocol": "all"}]}, "firewall x lets the whole internet in (all)"),
        ("gcp:storage/bucketIAMMember:BucketIAMMember",
         {"bucket": "b", "role": "roles/storage.objectViewer", "member": "allUsers"},
         "roles/storage.objectViewer on bucket b for allUsers"),
        ("gcp:compute/instance:Instance", {"networkInterfaces": [{"accessConfigs": [{}]}]},
         "machines of x get public addresses"),
        ("gcp:compute/instance:Instance", {"networkInterfaces": [{"ipv6AccessConfigs": [{}]}]},
         "machines of x get public addresses"),
        ("gcp:compute/address:Address", {"name": "a"}, "address x is on the internet"),
        (FIREWALL, {"allows": [{"protocol": "tcp"}], "sourceRanges": ["0.0.0.0/1", "128.0.0.0/1"]},
         "firewall x lets the whole internet in (tcp)"),
        ("gcp:storage/bucketIAMPolicy:BucketIAMPolicy",
         {"bucket": "b", "policyData": '{"bindings": [{"role": "roles/viewer", "members": ["user:a", "allUsers"]}]}'},
         "roles/viewer on bucket b for allUsers"),
        ("gcp:storage/bucketACL:BucketACL", {"bucket": "b", "predefinedAcl": "publicRead"},
         "bucket b: predefinedAcl: publicRead"),
        ("gcp:storage/defaultObjectAccessControl:DefaultObjectAccessControl",
         {"bucket": "b", "entity": "allAuthenticatedUsers"}, "bucket b: entity: allAuthenticatedUsers"),
    ],
)  # fmt: skip
def test_resource_open_to_everybody_is_in_the_first_line(said: Review, kind: str, inputs: Json, first: str) -> None:
    assert said([step("create", kind, "x", new=inputs)], code=20).startswith(f"**dev: open to everybody: {first}**")
    assert "open to everybody" not in said([step("same", kind, "x", inputs, inputs)], code=0)  # it was open before


def test_narrow_or_disabled_firewall_is_no_alarm(said: Review) -> None:
    narrow = {"allows": [{"protocol": "tcp"}], "sourceRanges": ["35.235.240.0/20"]}
    text = said([step("create", FIREWALL, "x", new=narrow)], code=10)
    assert "firewall x is new: 35.235.240.0/20, tcp" in text
    off = {"allows": [{"protocol": "tcp"}], "sourceRanges": ["0.0.0.0/0"], "disabled": True}
    assert "Open" not in said([step("create", FIREWALL, "x", new=off)], code=10)


def test_custom_role_with_more_permissions_is_reported(said: Review) -> None:
    old = {"roleId": "r", "permissions": ["a.b.c", "d.e.f"]}
    new = {"roleId": "r", "permissions": ["a.b.c", "g.h.i"]}
    text = said([step("update", "gcp:projects/iAMCustomRole:IAMCustomRole", "r", old, new)], code=10)
    assert "role r gains g.h.i, loses d.e.f" in text


# The run. -----------------------------------------------------------------------------------------------------------


def machine(bucket: Path, run: str, launch: int = 1) -> Json:
    return {"bucket": bucket.as_uri(), "run": run, "launch": launch, "name": "master-0", "role": "master"}


def stands(bucket: Path, state: str, step: int, checkpoint: int | None = None) -> None:
    storage = open_storage(bucket.as_uri())
    status = Status.model_validate({"state": state, "step": step, "updated": time.time()})
    storage.write("runs/old/status.json", json.dumps(status.to_json()).encode())
    if checkpoint is not None:
        storage.write(f"runs/old/checkpoints/step-{checkpoint:08}-attempt-1/manifest.json", b"{}")


def test_new_run_is_reported_to_end_the_current_one(said: Review, tmp_path: Path) -> None:
    stands(tmp_path, "RUNNING", 4812, 4750)
    (manifest,) = tmp_path.rglob("manifest.json")
    os.utime(manifest, (0, time.time() - 25 * 60 - 3))
    steps = [step("replace", MACHINE, "master-0", machine(tmp_path, "old"), machine(tmp_path, "new"), replaced=["run"])]
    text = said(steps, code=20)
    assert text.startswith("**dev: run old (RUNNING at step 4,812) ends: run new takes its place**")
    assert "run new starts at step 0; its newest checkpoint (step 4,750, 25 minutes old) is the last of it" in text
    assert "master: 1 x `process here`, all of them replaced" in text


def test_interrupted_run_is_reported_with_the_steps_it_repeats(said: Review, tmp_path: Path) -> None:
    stands(tmp_path, "RECOVERING", 4812, 4750)
    old, new = machine(tmp_path, "old"), machine(tmp_path, "old", 2)
    steps = [step("replace", MACHINE, "master-0", old, new, replaced=["launch"])]
    text = said(steps, code=20)
    assert text.startswith("**dev: run old (RECOVERING at step 4,812) is interrupted: its machines are replaced**")
    assert "so that 62 steps are done again" in text


def test_removed_workers_do_not_end_the_run(said: Review, tmp_path: Path) -> None:
    stands(tmp_path, "RUNNING", 100)
    master, worker = machine(tmp_path, "old"), machine(tmp_path, "old") | {"role": "worker"}
    steps = [step("same", MACHINE, "master-0", master, master), step("delete", MACHINE, "worker-0", worker)]
    assert said(steps, code=10).startswith("**dev: 1 → 0 workers**")


@pytest.mark.parametrize("state", ["SUCCEEDED", "FAILED", "STOPPED"])
def test_run_that_is_over_is_not_interrupted(said: Review, tmp_path: Path, state: str) -> None:
    stands(tmp_path, state, 100)
    steps = [step("delete", MACHINE, "master-0", machine(tmp_path, "old"))]
    text = said(steps, code=10)
    assert text.startswith(f"**dev: run old has {state}, so none is interrupted; all machines go**")


def test_run_whose_status_cannot_be_read_may_be_interrupted(
    said: Review, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(review, "look_up_run", lambda _bucket, _run: "no credentials")
    steps = [step("delete", MACHINE, "master-0", machine(tmp_path, "old"))]
    text = said(steps, code=20)
    assert text.startswith("**dev: whether run old is running is not known: all machines go**")
    assert "is not known: no credentials. If it is, it ends;" in text


def test_changed_settings_are_a_table_with_the_stack_files_keys(said: Review) -> None:
    new = {**WORDS, "trainingInput": {"hyperparameters": {"learningRate": 0.2, "steps": 5}}}
    text = said([step("update", RUN, "training", WORDS, new)], code=10)
    assert text.startswith("**dev: settings that change no resource**")
    assert "| `trainingInput.hyperparameters.learningRate` | `0.1` | `0.2` |" in text
    assert "| `trainingInput.hyperparameters.steps` | `not set` | `5` |" in text


def test_cost_before_and_after_is_a_table(said: Review) -> None:
    values, _ = reading.stack_values("dev")
    more = {**values, "trainingInput": {**values["trainingInput"], "workerCount": 16}}
    place = {"project": "p-12345", "region": "us-central1"}
    provider = step("same", "pulumi:providers:gcp", "google", place, place)
    text = said([provider, step("update", RUN, "training", values, more)], code=10)
    assert text.splitlines()[0].endswith("; $8.19 → $11.40 an hour.")
    head = "#### Cost\n\n| by the list price | before | after |\n|---|---|---|\n"
    assert f"{head}| all machines, an hour | $8.19 | $11.40 |\n" in text
    hours, usd = r"0\.\d+ to 0\.\d+", r"\$\d\.\d0 to \$\d\.\d0"
    assert re.search(rf"\| a whole run, hours \| {hours} \| {hours} \|\n\| a whole run \| {usd} \| {usd} \|\n", text), (
        text
    )


# Secrets, order, length and markup. ---------------------------------------------------------------------------------


def test_secret_is_never_shown(said: Review) -> None:
    old = {**WORDS, "notify": "quiet@example.com"}
    new = {**WORDS, "notify": "hidden@example.com"}
    channel = "gcp:monitoring/notificationChannel:NotificationChannel"
    mails = [{"labels": {"email": f"to {name}@example.com"}} for name in ("quiet", "hidden")]
    wire = {"4dabf18193072939515e22adb298388d": "1b47061264138c4ac30d75fd1eb44270", "value": "deepest"}
    steps = [
        step("update", RUN, "training", old, new),
        step("update", channel, "mail", *mails),
        step("update", BUCKET, "b", {**KEPT, "key": wire}, {**KEPT, "key": {**wire, "value": "other"}}),
    ]
    text = said(steps, code=10, config={"gpt2-training:notify": "[secret]"})
    assert "hidden@" not in text
    assert "quiet@" not in text
    assert "deepest" not in text
    assert "| `notify` | `[secret 1]` | `[secret 2]` |" in text


@pytest.mark.parametrize("new", [{}, {"notify": "open@example.com"}], ids=["removed", "made plain"])
def test_former_secret_is_never_shown(said: Review, new: Json) -> None:
    """The configuration of the change does not mark it as secret; the state does, from the program that made it."""
    old = {**WORDS, "notify": "quiet@example.com", "secretKeys": ["notify"]}
    mail = {"labels": {"email": "quiet@example.com"}}
    channel = "gcp:monitoring/notificationChannel:NotificationChannel"
    steps = [step("update", RUN, "training", old, {**WORDS, **new}), step("delete", channel, "mail", mail)]
    text = said(steps, code=10)
    assert "quiet@" not in text.replace("\u200b", "")
    assert f"| `notify` | `[secret 1]` | `{'[secret 2]' if new else 'not set'}` |" in text
    assert "| `secretKeys`" not in text


@pytest.mark.parametrize(
    "secret", ["me@example.com", "tick`tock", "two  spaces", "l" * 200, 'quo"te', "line 1\nline 2"]
)
def test_secret_is_hidden_before_it_is_cut_or_escaped(said: Review, secret: str) -> None:
    old, new = {**WORDS, "notify": "before"}, {**WORDS, "notify": secret}
    job = json.dumps({"mail": f"to {secret}"})
    steps = [
        step("update", RUN, "training", old, new),
        step(
            "update", BUCKET, "b", {**KEPT, "labels": {"a": "x"}}, {**KEPT, "labels": {"a": job, "b": [f"-{secret}"]}}
        ),
        step("create", MEMBER, "m", new={"project": "p", "role": "r", "member": f"user:{secret}"}),
    ]
    warned = [{"severity": "warning", "message": f"warning: mails go to {secret}\n"}]
    text = said(steps, code=10, config={"gpt2-training:notify": "[secret]"}, diagnostics=warned)
    assert "- mails go to \\[secret 2\\]" in text
    assert "`user:[secret 2]` gets `r`" in text
    seen = text.replace("@\u200b", "@").replace("'", "`")
    for part in (secret, *secret.split("\n"), "tock", " spaces", "l" * 20, "quo", "sha256"):
        assert part not in seen


def test_equal_previews_give_equal_texts(said: Review) -> None:
    steps = [step("create", BUCKET, f"b{i}", new={**KEPT, "name": f"n{i}"}) for i in range(20)]
    steps += [step("create", MEMBER, f"m{i}", new={"project": "p", "role": "r", "member": f"m{i}"}) for i in range(9)]
    first = said(steps, code=10)
    random.Random(1).shuffle(steps)
    assert said(steps, code=10) == first


def test_comment_is_cut_to_githubs_limit_with_a_note(said: Review) -> None:
    steps = [step("create", BUCKET, f"bucket-{i}-{'x' * 100}", new=KEPT) for i in range(5000)]
    steps += [
        step("delete", BUCKET, f"gone-{i}", {**KEPT, "name": f"gone-{i}", "forceDestroy": True}) for i in range(99)
    ]
    text = said(steps, code=20)
    assert 60_000 < len(text) < 65_536
    assert "**Cut**: a comment may have 65,536 characters, so " in text
    assert "- … and 69 more" in text
    assert text.count("```") == 2
    assert text.endswith("</details>\n\n<!-- gpt2-training review -->\n")


def test_text_from_a_stranger_is_no_markup(said: Review) -> None:
    evil = "`` ```\n</details> @everybody ![x](http://x) <b> | **dev: no changes**"
    words = [{**WORDS, "data": {"path": path}} for path in ("a", evil)]
    steps = [
        step("update", RUN, "training", *words),
        step("update", NETWORK, "n", {"description": "a"}, {"description": evil}),
    ]
    diagnostics = [{"severity": "warning", "message": f"warning: {evil.splitlines()[1]}\n"}]
    text = said(steps, code=10, diagnostics=diagnostics)
    visible = re.sub("`[^`]*`", "", re.sub("```text\n.*?\n```", "", text, flags=re.DOTALL))
    for markup in ("@everybody", " <b>", "![x]"):
        assert markup not in visible
    assert text.splitlines().count("</details>") == 1


def test_failed_preview_gives_the_reason(said: Review) -> None:
    message = "error: gpt2-training:model: missing\ngpt2-training:data: missing\n"
    text = said(
        [step("same", BUCKET, "b", KEPT, KEPT)], code=40, diagnostics=[{"severity": "error", "message": message}]
    )
    assert text.startswith("**dev: cannot be previewed: gpt2-training:model: missing**")
    assert "- `gpt2-training:data: missing`" in text


def test_mandatory_policy_decides_the_exit_code(said: Review, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(resources: Any) -> list[rules.Finding]:
        assert [(one.type, one.name, one.properties["name"]) for one in resources] == [(BUCKET, "b", "keep")]
        return [
            rules.Finding("labels", "advisory", "give it labels", resources[0].urn),
            rules.Finding("private-buckets", "mandatory", "make it private", resources[0].urn),
        ]

    monkeypatch.setattr(review, "check", check)
    text = said([step("create", BUCKET, "b", new=KEPT)], code=30)
    assert text.startswith("**dev: against the policy: private-buckets**")
    assert "- **fails**: `private-buckets`: make it private (`b`)\n- advice: `labels`: give it labels (`b`)" in text


# Two previews that know no state. -----------------------------------------------------------------------------------


def test_two_previews_without_state_are_compared_by_urn(said: Review) -> None:
    network, subnet = {"name": "n", "mtu": 1}, {"name": "s", "network": UNKNOWN}
    waits = {"propertyDependencies": {"network": [urn(NETWORK, "n")]}}
    base = [step("create", NETWORK, "n", new=network), step("create", SUBNETWORK, "s", new=subnet, **waits)]
    base += [step("create", BUCKET, "b", new={**KEPT, "name": "b-1234567"})]
    head = json.loads(json.dumps(base))
    head[2]["newState"]["inputs"]["name"] = "b-7654321"  # Pulumi makes this name up
    assert said(base, head, code=0).startswith("**No changes**: dev (offline)")
    head[0]["newState"]["inputs"]["mtu"] = 2
    assert "`~ 1 changed`, `-/+ 0 replaced`" in said(base, head, code=10)
    head[0]["newState"]["inputs"]["name"] = "m"
    text = said(base, head, code=10)
    assert "`~ 0 changed`, `-/+ 2 replaced`" in text  # a resource in a replaced network is replaced with it
    assert "name: n → m (replaces)" in text
    assert "**Offline** (from 0.json to 1.json)" in text


def test_resource_type_missing_in_the_table_is_reported_as_unknown(said: Review) -> None:
    kind = "gcp:redis/instance:Instance"
    text = said([step("create", kind, "r", new={"a": 1})], [step("create", kind, "r", new={"a": 2})], code=10)
    assert "~   gcp:redis/instance:Instance r (or replaced: unknown to this review)" in text


def test_preview_against_a_state_is_refused_in_a_pair(said: Review) -> None:
    new = [step("create", BUCKET, "b", new=KEPT)]
    for op, old in (("same", KEPT), ("update", KEPT), ("replace", KEPT), ("delete", KEPT)):
        made = [step(op, BUCKET, "b", old, None if op == "delete" else KEPT)]
        with pytest.raises(
            UserError, match=r"0\.json: it was made with a state, and two previews must be made without; make "
        ):
            said(made, new, code=0)
        with pytest.raises(UserError, match=r"1\.json: it was made with a state"):
            said(new, made, code=0)


def test_base_is_ignored_with_a_note_when_the_state_is_read(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(review, "online", lambda name, _root: Preview(name, ()))
    assert review.main(["--stack", "dev", "--base", "HEAD"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("**No changes**: dev.\n")
    assert err == "--base HEAD: not used for dev, whose state is asked; --offline compares with it\n"


# Mistakes. ----------------------------------------------------------------------------------------------------------


def test_mistakes_of_the_command_are_one_line(tmp_path: Path) -> None:
    other = tmp_path / "x.json"
    other.write_text("[]")
    for arguments, words in (
        (["--previews", str(other)], "is not what `pulumi preview --json` writes"),
        (["--previews", str(tmp_path / "none")], "No such file"),
        (["--stack", "nope"], "there is no Pulumi.nope.yaml; there are dev, local, questions, "),
    ):
        with pytest.raises(UserError, match=words):
            review.main(arguments)


def test_machines_of_a_run_that_moved_are_counted_once_and_do_not_end() -> None:
    steps = [
        step("update", GROUP, "worker-us-central1-a-group", {"targetSize": 10}, {"targetSize": 0}),
        step("update", GROUP, "worker-us-central1-c-group", {"targetSize": 0}, {"targetSize": 10}),
    ]
    (workers,) = machines(parse_preview(json.dumps({"steps": steps})))
    assert (workers.count, workers.ended, workers.changed) == ((10, 10), False, False)
