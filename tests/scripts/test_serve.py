"""scripts.serve: the command itself with a tiny model, called by OpenAI's client, by plain HTTP and by a browser."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI
from playwright.sync_api import Browser, Page, expect, sync_playwright

from scripts.generate import main as generate
from scripts.serve import BODY_BYTES, main
from scripts.support.common import UserError
from tests.scripts.tiny_model import POSITIONS, tiny_model

# The tiny model's greedy text repeats itself without end.
ENDLESS = {"prompt": "xyz", "temperature": 0.0, "max_tokens": 1_000_000}
expect.set_options(timeout=60_000)  # milliseconds that anything may take on a busy machine
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str, int]]:
    """Start the command; yield it, the line that it prints when it is ready, and its port."""
    command = [sys.executable, "-m", "scripts.serve", "--model", str(folder), "--port", "0", *options]
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "PYTHONWARNINGS": "default"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )  # fmt: skip
    try:
        assert process.stdout
        line = process.stdout.readline()
        found = re.search(r":(\d+) ", line)
        assert found, process.communicate()
        yield process, line, int(found[1])
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("bucket") / "tiny-run" / "model")


@pytest.fixture(scope="module")
def port(folder: Path) -> Iterator[int]:
    with serving(folder, "--max-tokens", "1000000", "--concurrent", "2") as (_, _, port):
        yield port


@pytest.fixture
def client(port: int) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as client:
        yield client


def call(port: int, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, Any]:
    connection = HTTPConnection("127.0.0.1", port)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, json.loads(content) if "json" in response.getheader("Content-Type", "") else content


def wait_until_writing(port: int, wanted: int) -> None:
    while call(port, "GET", "/healthz")[1]["writing"] != wanted:
        pass


# -- OpenAI's client ---------------------------------------------------------------------------------------------------


def test_completion_is_the_text_that_generate_writes(
    client: OpenAI, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = client.models.list().data[0].id
    found = client.completions.create(model=model, prompt="abc", max_tokens=12, temperature=0.8, seed=5, echo=True)
    generate(["abc", "--model", str(folder), "--tokens", "12", "--top-k", "0", "--seed", "5"])
    assert found.choices[0].text + "\n" == capsys.readouterr().out
    assert (found.object, found.model, found.choices[0].finish_reason) == ("text_completion", "tiny-run", "length")
    assert found.usage
    assert (found.usage.prompt_tokens, found.usage.completion_tokens, found.usage.total_tokens) == (3, 12, 15)


def test_stream_is_the_same_text_in_pieces(client: OpenAI) -> None:
    request: dict[str, Any] = {"model": "tiny-run", "prompt": ["ab", "cd"], "max_tokens": 20, "seed": 3, "n": 2}
    whole = client.completions.create(**request)
    texts, ends, usage, pieces = ["", "", "", ""], {}, None, 0
    for chunk in client.completions.create(**request, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage
        for choice in chunk.choices:
            pieces += 1
            texts[choice.index] += choice.text
            if choice.finish_reason:
                ends[choice.index] = choice.finish_reason
    assert texts == [choice.text for choice in whole.choices]
    assert ends == {choice.index: choice.finish_reason for choice in whole.choices}
    assert usage == whole.usage
    assert pieces > 10
    assert texts[0] != texts[1]


def test_completion_depends_on_the_seed_and_its_second_choice_on_the_next(client: OpenAI) -> None:
    def texts(**options: Any) -> list[str]:
        found = client.completions.create(model="tiny-run", prompt="abc", max_tokens=15, **options)
        return [choice.text for choice in found.choices]

    assert texts(seed=7) == texts(seed=7)
    assert texts(seed=7, n=2) == texts(seed=7) + texts(seed=8)
    assert texts(seed=-1, n=2)[1] == texts(seed=0)[0]
    assert len(texts(seed=(1 << 63) - 1, n=2)) == 2
    assert texts() != texts()


def test_texts_written_at_the_same_time_are_the_same_as_alone(client: OpenAI) -> None:
    def begin(seed: int) -> Iterator[str]:
        stream = client.completions.create(model="tiny-run", prompt="abc", max_tokens=60, seed=seed, stream=True)
        return (chunk.choices[0].text for chunk in stream)

    alone = ["".join(begin(seed)) for seed in (1, 2)]
    first, second = begin(1), begin(2)
    together = [next(first), next(second)]
    together[0] += "".join(first)
    together[1] += "".join(second)
    assert together == alone


def test_stop_is_not_part_of_the_text_also_in_a_stream(client: OpenAI) -> None:
    request: dict[str, Any] = {"model": "tiny-run", "prompt": "ab", "max_tokens": 30, "seed": 3}
    whole = client.completions.create(**request).choices[0].text
    stop = whole[10:13]
    stopped = client.completions.create(**request, stop=["never there", stop]).choices[0]
    assert (stopped.text, stopped.finish_reason) == (whole[: whole.index(stop)], "stop")
    chunks = list(client.completions.create(**request, stop=stop, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == stopped.text
    assert chunks[-1].choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    ("options", "param", "said"),
    [
        ({"max_tokens": 1_000_001}, "max_tokens", "At most 1000000 tokens"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"temperature": -1}, "temperature", "greater than or equal to 0"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"n": 17}, "n", "From 1 to 16 texts"),
        ({"stop": ["a", ""]}, "stop", "none of them empty"),
        ({"logprobs": 1}, "logprobs", "cannot do that; leave it out"),
        ({"presence_penalty": 0.5}, "presence_penalty", "cannot do that; leave it out"),
        ({"prompt": [1, 2]}, "prompt", "tokens are not taken"),
        ({"prompt": []}, "n", "From 1 to 16 texts"),
        ({"prompt": "x" * POSITIONS}, "prompt", f"has {POSITIONS} tokens, and this model takes {POSITIONS - 1}"),
        ({"seed": 1 << 63}, "seed", "less than"),
        ({"extra_body": {"what": 1}}, "what", "does not know it"),
    ],
)
def test_bad_request_gets_openais_error(client: OpenAI, options: dict[str, Any], param: str, said: str) -> None:
    with pytest.raises(openai.BadRequestError, match=re.escape(said)) as refused:
        client.completions.create(**({"model": "tiny-run", "prompt": "a", "stream": True} | options))
    assert (refused.value.param, refused.value.type) == (param, "invalid_request_error")


def test_other_model_is_not_found(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="'gpt-4' is not here; 'tiny-run' is") as refused:
        client.completions.create(model="gpt-4", prompt="a")
    assert refused.value.code == "model_not_found"
    assert client.models.retrieve("tiny-run").owned_by == "gpt2-training"
    with pytest.raises(openai.NotFoundError, match="'gpt-4' is not here"):
        client.models.retrieve("gpt-4")


def test_requests_beyond_the_limit_are_refused_until_a_client_leaves(client: OpenAI, port: int) -> None:
    streams = [client.completions.create(model="tiny-run", **ENDLESS, stream=True) for _ in range(2)]
    for stream in streams:
        next(iter(stream))
    with pytest.raises(openai.RateLimitError, match="2 requests are being written") as refused:
        client.completions.create(model="tiny-run", prompt="a")
    assert refused.value.response.headers["Retry-After"] == "1"
    streams[0].close()
    wait_until_writing(port, 1)
    assert client.completions.create(model="tiny-run", prompt="a").choices
    streams[1].close()
    wait_until_writing(port, 0)


def test_text_whose_client_left_is_stopped_also_without_a_stream(port: int) -> None:
    connection = HTTPConnection("127.0.0.1", port)
    connection.request("POST", "/v1/completions", json.dumps(ENDLESS), {"Content-Type": "application/json"})
    wait_until_writing(port, 1)
    connection.close()
    wait_until_writing(port, 0)


@pytest.mark.slow
def test_client_that_waits_for_each_answer_is_never_refused(folder: Path) -> None:
    with serving(folder, "--concurrent", "1") as (_, _, port):
        client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
        for _ in range(20):
            assert list(client.completions.create(model="tiny-run", prompt="a", max_tokens=1, stream=True))
            assert client.completions.create(model="tiny-run", prompt="a", max_tokens=1).choices


# -- plain HTTP --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "not JSON"),
        (b"[1]", "not a JSON object"),
        (b"[" * 100_000, "not JSON"),
        (b'{"prompt": "\\ud800"}', "the prompt is not text"),
        (b'{"prompt": "a", "max_tokens": "5"}', "max_tokens: Input should be a valid integer"),
        (b'{"prompt": "a", "temperature": NaN}', "temperature: "),
    ],
)
def test_invalid_body_is_refused(port: int, body: bytes, said: str) -> None:
    status, answer = call(port, "POST", "/v1/completions", body, Content_Type="application/json")
    assert status == 400
    assert said in answer["error"]["message"]


def test_body_beyond_the_limit_is_refused(port: int) -> None:
    body = b'{"prompt": "' + b"a" * BODY_BYTES + b'"}'
    status, answer = call(port, "POST", "/v1/completions", body, Content_Type="application/json")
    assert (status, answer["error"]["message"]) == (413, f"The body is longer than {BODY_BYTES} bytes")


def test_body_other_than_json_is_refused_so_that_no_other_site_can_send_one(port: int) -> None:
    status, answer = call(port, "POST", "/v1/completions", b'{"prompt": "a"}', Content_Type="text/plain")
    assert (status, answer["error"]["message"]) == (415, "Send Content-Type: application/json")
    status, _ = call(port, "OPTIONS", "/v1/completions", Origin="http://evil.example")
    assert status == 405


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:1", 200), ("127.0.0.1", 200), ("[::1]:80", 200), ("LOCALHOST", 200), ("192.168.1.5:8000", 200),
        ("evil.example", 403), ("localhost.evil.example:80", 403), ("127.0.0.1.evil.example", 403),
        ("evil.example@localhost", 403), ("", 403), ("[", 403), ("localhost:80:80", 403),
    ],
)  # fmt: skip
def test_request_with_another_host_is_refused(port: int, host: str, status: int) -> None:
    assert call(port, "GET", "/healthz", Host=host)[0] == status


def test_missing_route_lists_the_routes(port: int) -> None:
    status, answer = call(port, "POST", "/v1/chat/completions", b"{}", Content_Type="application/json")
    assert status == 404
    assert "there are POST /v1/completions" in answer["error"]["message"]
    assert call(port, "GET", "/v1/completions")[0] == 405


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_server_on_another_address_warns_and_ends_with_one_line_at_ctrl_c(folder: Path) -> None:
    with serving(folder, "--max-tokens", "1000000", "--host", "0.0.0.0") as (process, line, port):
        assert line == f"tiny-run at http://0.0.0.0:{port} (OpenAI's base_url: http://0.0.0.0:{port}/v1)\n"
        with OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as client:
            stream = client.completions.create(model="tiny-run", **ENDLESS, stream=True)
            next(iter(stream))
            process.send_signal(signal.SIGINT)
            with pytest.raises(openai.APIError, match="The server is being stopped"):
                list(stream)
        out, err = process.communicate()
    assert (process.returncode, out) == (0, "")
    warning, counted, stopped = err.splitlines()
    assert warning.startswith("WARNING: listening on 0.0.0.0, not on this machine alone.")
    assert re.fullmatch(r"\d+ tokens in [\d.]+ s", counted)
    assert stopped == "stopped"


def test_server_listens_on_this_machine_only_by_default(port: int) -> None:
    with socket.socket() as other, pytest.raises(ConnectionRefusedError):
        other.connect(("127.0.0.2", port))


def test_port_that_is_taken_is_one_line(port: int, folder: Path) -> None:
    with pytest.raises(UserError, match=rf"cannot listen on 127\.0\.0\.1:{port}: .*; choose another --port"):
        main(["--model", str(folder), "--port", str(port)])


@pytest.mark.parametrize(
    ("option", "said"),
    [("--port=70000", "'70000' is not a number from 0 to 65535"), ("--concurrent=0", "at least 1 is needed")],
)
def test_invalid_option_of_serve_is_refused(option: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([option])
    assert said in capsys.readouterr().err


# -- the page ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on PATH: the page is not tried in a browser")
    # Chromium needs this option as root.
    options: dict[str, Any] = {"executable_path": CHROMIUM, "args": ["--no-sandbox"]}
    with sync_playwright() as playwright, playwright.chromium.launch(**options) as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, port: int, request: pytest.FixtureRequest) -> Iterator[Page]:
    """Open the page; an error of the browser or a request to another address fails the test."""
    with browser.new_context(**getattr(request, "param", {})) as context:
        page = context.new_page()
        wrong: list[str] = []
        page.on("console", lambda message: wrong.append(message.text) if message.type != "log" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"http://127.0.0.1:{port}/")
        expect(page).to_have_title("tiny-run")
        yield page
        assert [line for line in wrong if "400 (Bad Request)" not in line] == []
        assert [url for url in asked if not url.startswith((f"http://127.0.0.1:{port}/", "data:"))] == []


def test_page_writes_the_text_that_the_client_gets(page: Page, client: OpenAI) -> None:
    page.get_by_label("The text begins with").fill("<b>&abc\n")
    page.get_by_label("Tokens").fill("25")
    page.get_by_label("Seed").fill("9")
    page.get_by_role("button", name="Write").click()
    expect(page.locator(".how")).to_have_text(re.compile(r"25 tokens, \d+ a second, seed 9"))
    request: dict[str, Any] = {"prompt": "<b>&abc\n", "max_tokens": 25, "seed": 9, "temperature": 0.8, "echo": True}
    text = client.completions.create(model="tiny-run", **request, extra_body={"top_k": 50}).choices[0].text
    assert page.locator(".text").evaluate("element => element.textContent") == text


def test_page_shows_a_text_while_it_is_written_and_stops_it(page: Page, port: int) -> None:
    page.get_by_label("The text begins with").fill("xyz")
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Tokens").fill("1000000")
    page.get_by_label("The text begins with").press("Control+Enter")
    expect(page.locator(".text")).to_have_text(re.compile(".{100}", re.DOTALL))
    expect(page.get_by_role("status")).to_have_text("writing…")
    expect(page.get_by_role("button", name="Write")).to_be_disabled()  # the page writes one text at a time
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("status")).to_have_text("stopped")
    expect(page.get_by_role("button", name="Stop")).to_be_hidden()
    expect(page.get_by_role("button", name="Write")).to_be_enabled()
    wait_until_writing(port, 0)


def test_page_shows_the_servers_error(page: Page) -> None:
    page.get_by_label("The text begins with").fill("x" * POSITIONS)
    page.get_by_role("button", name="Write").click()
    expect(page.get_by_role("status")).to_have_text(
        f"The prompt has {POSITIONS} tokens, and this model takes 31 at most"
    )
    assert page.locator("article").count() == 0


@pytest.mark.parametrize(
    "page",
    [{"color_scheme": "dark", "viewport": {"width": 320, "height": 640}}, {"color_scheme": "light"}],
    indirect=True,
    ids=["dark on a phone", "light"],
)
def test_page_fits_the_screen_and_can_be_read(page: Page) -> None:
    page.get_by_label("The text begins with").fill("x" * 30)
    page.get_by_label("Tokens").fill("40")
    page.get_by_label("Seed").fill("1")
    page.get_by_role("button", name="Write").click()
    expect(page.locator(".how")).to_have_text(re.compile("seed 1"))
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    contrast = """(selector) => {
        const light = (color) => {
            const [r, g, b] = color.match(/[\\d.]+/g).map((c) => c / 255).map(
                (c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const element = document.querySelector(selector), style = getComputedStyle(element);
        const own = style.backgroundColor;
        const under = own === "rgba(0, 0, 0, 0)" ? getComputedStyle(document.body).backgroundColor : own;
        const [low, high] = [light(style.color), light(under)].sort((a, b) => a - b);
        return (high + 0.05) / (low + 0.05);
    }"""
    for selector in ("h1", "label", "textarea", "input", "#write", ".text", ".text span", ".how"):
        assert page.evaluate(contrast, selector) >= 4.5, selector
    of_placeholder = "getComputedStyle(document.querySelector('#seed'), '::placeholder').color"
    assert page.evaluate(f"{of_placeholder} === getComputedStyle(document.querySelector('label')).color")
