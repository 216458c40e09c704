"""Runs made by hand for reports, and a report as a reader without a browser sees it."""

import json
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from trainer.contract.spec import JobSpec
from trainer.runs.records import MachineStatus, Record, Status
from trainer.storage.base import Storage
from trainer.storage.factory import open_storage

BEGAN = 1_790_000_000.0


class Page(HTMLParser):
    """A parsed page: elements as (tag, attributes), rows of tables as lists of cells, and all text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html, self.elements, self.rows, self.words = html, [], [], []
        self.scripts: list[str] = []
        self._open = ""
        self.feed(html)
        self.rows = [[" ".join(cell.split()) for cell in row] for row in self.rows]
        self.text = " ".join(" ".join(self.words).split())

    elements: list[tuple[str, dict[str, str | None]]]
    rows: list[list[str]]
    words: list[str]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open = tag
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style", "table"):
            self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open == "script":
            self.scripts.append(data)
        elif self._open != "style":
            self.words.append(data)
            if self.rows and self.rows[-1] and self._open in ("td", "th", "span"):
                self.rows[-1][-1] = self.rows[-1][-1] + data

    def row(self, first: str) -> list[str]:
        """Return the cells of the row that begins with this cell, without that one."""
        return next(row[1:] for row in self.rows if row and row[0] == first)

    def attributes(self, tag: str, name: str) -> list[str]:
        return [str(found[name]) for each, found in self.elements if each == tag and name in found]


def bucket(folder: Path) -> Storage:
    return open_storage(str(folder))


def declare(storage: Storage, run: str = "a-run", state: str = "SUCCEEDED", **overrides: Any) -> JobSpec:
    """Write a run's job.json and status.json; by default the run took 100 s."""
    fields: dict[str, Any] = {
        "run": run,
        "model": {"layers": 2, "heads": 2, "width": 32, "positions": 32},
        "data": {"path": "data/0/text.txt", "tokenizer": "byte"},
        "fingerprint": "0",
        "code": "c0de",
        "hyperparameters": {"batchSize": 8, "sequenceLength": 32, "steps": 100},
        "evaluation": {"every": 50},
    }
    status = {"reason": "", "traceback": None} | overrides.pop("status", {})
    for key, value in overrides.items():
        fields[key] = {**fields.get(key, {}), **value} if isinstance(value, dict) else value
    spec = JobSpec.model_validate(fields)
    storage.write(f"runs/{run}/job.json", json.dumps(spec.to_json()).encode())
    written = Status(
        state=state, step=100, updated=BEGAN + 100, started=BEGAN, finished=BEGAN + 100, **status
    )  # fmt: skip
    storage.write(f"runs/{run}/status.json", json.dumps(written.to_json()).encode())
    return spec


def record(step: int, **fields: Any) -> Record:
    """Return the record of a step that took a second, at 256 tokens/s."""
    usual = {"attempt": 1, "time": BEGAN + step}
    if not {"validation_loss", "notice_seconds"} & set(fields):
        usual |= {
            "loss": 5.0 - step / 50, "learning_rate": 1e-3, "gradient_norm": 1.5, "step_seconds": 1.0,
            "tokens_per_second": 256.0, "trainers": 1,
        }  # fmt: skip
    return Record(step=step, **(usual | fields))


def write_records(storage: Storage, records: Iterable[Record], run: str = "a-run", name: str = "1") -> None:
    lines = "".join(json.dumps(each.to_json()) + "\n" for each in records)
    storage.write(f"runs/{run}/metrics/{name}.jsonl", lines.encode())


def write_machine(storage: Storage, name: str, run: str = "a-run", **fields: Any) -> None:
    """Write the status of a machine that ran for an hour."""
    role = {"m": "master", "w": "worker", "p": "ps"}[name[0]]
    usual = {"state": "finished", "started": BEGAN, "heartbeat": BEGAN + 3600, "pid": 1}
    machine = MachineStatus.model_validate({"name": name, "role": role, **usual, **fields})
    storage.write(f"runs/{run}/machines/{name}.json", json.dumps(machine.to_json()).encode())
