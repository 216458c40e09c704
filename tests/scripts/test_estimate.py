"""scripts.estimate: its output, its JSON, and the finished runs that it measures first."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.estimate import measured
from infra.fleet import prices
from scripts import estimate
from scripts.support import common
from scripts.support.common import UserError
from tests.infra.google_graph import CHECKOUT, make_root, stack_values
from trainer.storage.base import StorageError
from trainer.storage.factory import open_storage

RECORDED = Path(__file__).parents[1] / "infra" / "estimate" / "recorded" / "first.json"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a checkout with the committed stacks; dev has no project."""
    make_root(tmp_path)
    for stack in ("local", "dev"):
        (tmp_path / f"Pulumi.{stack}.yaml").write_text((CHECKOUT / f"Pulumi.{stack}.yaml").read_text())
    monkeypatch.setattr(common, "CHECKOUT", tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def finished_run(root: Path, stack: str = "local") -> str:
    found = json.loads(RECORDED.read_text())
    storage, run = open_storage(str(root / "artifacts" / stack)), found["job"]["run"]
    storage.write(f"runs/{run}/job.json", json.dumps(found["job"]).encode())
    storage.write(f"runs/{run}/status.json", json.dumps(found["status"]).encode())
    lines = "".join(json.dumps(record) + "\n" for record in found["records"])
    storage.write(f"runs/{run}/metrics/attempt-1-ps-0-0-00000.jsonl", lines.encode())
    return str(run)


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert estimate.main(list(arguments)) == 0
    return capsys.readouterr().out


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    return dict(json.loads(printed(capsys, *arguments, "--json")))


def test_estimate_of_the_reference_job_needs_no_project(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = printed(capsys, "--stack", "dev", "--origins")
    for words in (
        "dev: gpt2 in us-central1:",
        "USD an hour",
        "6·N + 12·L·H·Q·T",
        "hierarchical plan, 3 servers",
        "nvidia-tesla-t4: 12% to 30% of 65 TFLOP/s",
        "28 bytes a parameter, shared by 3",
        "cheapest within the limits",
        "fastest within the limits",
        "europe-west4",
        "AWS",
        "gcp:project is not set",
    ):
        assert words in found, words
    assert "6·N" not in printed(capsys, "--stack", "dev")


def test_json_of_an_estimate_is_stable_and_agrees_with_the_stacks_outputs(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = as_json(capsys, "--stack", "dev")
    assert found == as_json(capsys, "--stack", "dev")
    assert set(found["hours"]) == {"low", "high"}
    assert found["hours"]["low"] < found["hours"]["high"]
    assert found["cheapest"] in found["alternatives"]
    assert found["cheapest"]["withinLimits"]
    assert {need["role"] for need in found["memory"]} == {"master", "worker", "ps"}
    assert found["regions"]["us-central1"]["usd"] == found["usd"]
    assert {(one["cloud"], one["machine"]) for one in found["elsewhere"]} == {
        *(("AWS", "g4dn.4xlarge"), ("Azure", "Standard_NC16as_T4_v3")),  # each has 16 vCPUs and a T4
        *(("AWS", "r5.2xlarge"), ("Azure", "Standard_E8s_v5")),
    }
    assert found["measuredRun"] is None


def test_documented_estimates_agree_with_the_commands(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    """Only times are compared, as dollars change with the price list."""
    said = (CHECKOUT / "docs" / "estimate.md").read_text()
    commands = re.findall(r"^\| [^|]+ \| ([^|]+) \| [^|]+ \| [^|]+ \| `(--stack [^`]+)` \|$", said, re.MULTILINE)
    assert len(commands) == 4
    monkeypatch.chdir(CHECKOUT)
    for time, command in commands:
        assert f": {time}, " in printed(capsys, *command.split()).splitlines()[0], command


def test_table_says_where_another_cloud_has_no_similar_machine(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = root / "Pulumi.dev.yaml"
    path.write_text(path.read_text().replace("count: 1}", "count: 2}"))
    found = printed(capsys, "--stack", "dev")
    assert re.search(r"11 x n1-highmem-16 \+ 2 x nvidia-tesla-t4 +│ Azure +│ none near ", found), found


def test_unpriced_machine_has_an_unknown_fit_and_is_not_the_cheapest(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    book = copy.deepcopy(prices.book())
    for name, entry in book["regions"]["us-central1"]["machines"].items():
        book["regions"]["us-central1"]["machines"][name] = {**entry, "on_demand": "unknown"}
    monkeypatch.setattr(prices, "book", lambda: book)
    found = as_json(capsys, "--stack", "dev")
    unknown = [one for one in found["alternatives"] if one["withinLimits"] is None]
    assert unknown
    assert all(one["unpriced"] for one in unknown)
    assert found["cheapest"]["withinLimits"] is True
    monkeypatch.setattr(estimate, "ROWS", 99)
    assert "unknown: no price for " in printed(capsys, "--stack", "dev")


def test_finished_run_is_measured_once(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = as_json(capsys)
    assert before["measuredRun"] is None
    assert any("rough" in note for note in before["notes"])
    run = finished_run(root)
    assert f"learned from run {run}" in printed(capsys)
    assert [one.run for one in measured.read(root)] == [run]
    after = as_json(capsys)
    assert after["measuredRun"] == run
    assert not any("learned from" in note for note in after["notes"])
    assert after["hours"]["high"] / after["hours"]["low"] < before["hours"]["high"] / before["hours"]["low"]
    assert "it costs nothing but this machine" in printed(capsys)


def test_unreadable_bucket_is_a_note_and_no_error(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "Pulumi.dev.yaml").write_text(yaml.safe_dump({"config": stack_values()}))

    def closed(url: str) -> None:
        raise StorageError(f"{url}: no valid Google credentials")

    monkeypatch.setattr(estimate, "open_storage", closed)
    found = as_json(capsys, "--stack", "dev")
    assert "finished runs in gs://my-project-dev-gpt2 were not looked at" in " ".join(found["notes"])
    assert "no valid Google credentials" in " ".join(found["notes"])


def test_mistake_in_the_stack_file_is_one_line(root: Path) -> None:
    content = (root / "Pulumi.dev.yaml").read_text()
    (root / "Pulumi.dev.yaml").write_text(content.replace("{size: gpt2}", "{size: gpt2-xl}"))
    with pytest.raises(UserError, match=r"^gpt2-training:trainingInput.masterType: a nvidia-tesla-t4 .*\n.*workerType"):
        estimate.main(["--stack", "dev"])
    with pytest.raises(UserError, match=r"there is no Pulumi\.devv\.yaml"):
        estimate.main(["--stack", "devv"])
