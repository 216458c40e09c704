"""prepare_data fetches Docker for machines whose image has none."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from infra import load
from infra.inputs import docker
from scripts import prepare_data
from scripts.support.common import UserError
from tests.scripts.google import project


class Download(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "6")
        self.end_headers()
        self.wfile.write(b"docker")

    def log_message(self, *_: object) -> None:
        pass


def test_prepare_data_fetches_docker_once_for_an_image_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project(tmp_path, machines={"imageFamily": "ubuntu-2204-lts"})
    stack = load.from_file("dev", tmp_path)
    target = docker.archive_file(stack)
    assert docker.archive_problem(stack) == (
        "machines.imageFamily: ubuntu-2204-lts may have no Docker, and machines without internet cannot fetch it;"
        " run `python -m scripts.prepare_data --stack dev`"
    )
    with ThreadingHTTPServer(("127.0.0.1", 0), Download) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        monkeypatch.setattr(docker, "ADDRESS", f"http://127.0.0.1:{server.server_port}/docker.tgz")
        with pytest.raises(UserError, match=r"docker\.tgz has the sha256 [0-9a-f]{64}, and 33e1ab8\w+ is expected"):
            prepare_data.fetch_docker(target)
        assert not target.exists()
        monkeypatch.setattr(docker, "SHA256", hashlib.sha256(b"docker").hexdigest())
        prepare_data.fetch_docker(target)
        server.shutdown()
    assert target.read_bytes() == b"docker"
    assert docker.archive_problem(stack) is None
    monkeypatch.setattr(docker, "ADDRESS", "http://127.0.0.1:9/docker.tgz")
    prepare_data.fetch_docker(target)
    assert capsys.readouterr().out.endswith("docker-29.9.0.tgz is there: kept\n")
    target.write_bytes(b"other")
    assert docker.archive_problem(stack) == (
        f"machines.imageFamily: {target} is damaged: its sha256 is not the pinned one; run"
        " `python -m scripts.prepare_data --stack dev` to fetch it again"
    )
    with pytest.raises(
        UserError, match=r"cannot be fetched .* or get the file elsewhere and put it at .*29\.9\.0\.tgz"
    ):
        prepare_data.fetch_docker(target)
