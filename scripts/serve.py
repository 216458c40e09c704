"""Serve a trained model by OpenAI's completions API, and a page to try it in a browser.

Only this machine can reach the server, unless --host says otherwise. Ctrl-C ends it.
"""

import argparse
import base64
import contextlib
import hashlib
import ipaddress
import re
import socket
import sys
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import uvicorn
from anyio import to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from scripts.support.arguments import positive
from scripts.support.common import UserError, run_main
from scripts.support.completions import DONE, Completion, Refused
from scripts.support.writing import Writer, add_model_arguments, open_writer

PAGE = Path(__file__).with_name("serve.html")
BODY_BYTES, BODY_SECONDS = 1 << 20, 30.0
CONNECTIONS = 200  # more at the same time get a bare 503
OWN_NAMES = (socket.gethostname().lower(), "localhost")


class HostCheck:
    """Middleware that accepts only requests whose Host is this machine's address or name.

    Otherwise a page of another site could point its own name at this machine and use the model.
    """

    def __init__(self, app: ASGIApp, names: Sequence[str]) -> None:
        self._app, self._names = app, {*OWN_NAMES, *(name.lower() for name in names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._is_ours(Request(scope).headers.get("host", "")):
            refused = Refused(403, "The Host of this request is not this machine's address or name")
            await JSONResponse(refused.body, refused.status)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _is_ours(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
            ipaddress.ip_address(name)
        except ValueError:
            return bool(re.fullmatch(r"[A-Za-z0-9.-]+(:\d+)?", host)) and host.lower().partition(":")[0] in self._names
        return True


class CompletionServer:
    """The routes of the server.

    It answers at most `concurrent` requests at the same time, each text with up to `longest` tokens.
    """

    def __init__(self, writer: Writer, *, longest: int, concurrent: int) -> None:
        self._writer, self._longest, self._concurrent = writer, longest, concurrent
        self._began, self._writing = int(time.time()), 0
        self.ending: Callable[[], bool] = lambda: False  # whether the server stops, so that texts need not be finished
        self._page = PAGE.read_text(encoding="utf-8")
        script = re.search(r"<script>(.*?)</script>", self._page, re.DOTALL)
        assert script, "the page has its script"
        digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
        self._policy = (
            f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; connect-src 'self';"
            " img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )

    def app(self, names: Sequence[str] = ()) -> Starlette:
        """Return the application. `names` are accepted as Host in addition to the machine's own name and addresses."""
        app = Starlette(
            routes=[
                Route("/", self.page),
                Route("/healthz", self.health),
                Route("/v1/models", self.models),
                Route("/v1/models/{model:path}", self.model),
                Route("/v1/completions", self.completions, methods=["POST"]),
            ],
            exception_handlers={Refused: _refused, HTTPException: _no_route, UserError: _failed, Exception: _failed},
        )
        app.add_middleware(HostCheck, names=names)
        return app

    async def page(self, request: Request) -> Response:
        return HTMLResponse(self._page, headers={"Content-Security-Policy": self._policy, "Cache-Control": "no-store"})

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok", "model": self._writer.name, "writing": self._writing})

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        if (model_name := request.path_params["model"]) != self._writer.name:
            message = f"The model {model_name!r} is not here; {self._writer.name!r} is"
            raise Refused(404, message, param="model", code="model_not_found")
        return JSONResponse(self._model())

    def _model(self) -> dict[str, object]:
        return {
            "id": self._writer.name,
            "object": "model",
            "created": self._began,
            "owned_by": "gpt2-training",
            "max_model_len": self._writer.window,  # as other servers of open models name it
        }

    async def completions(self, request: Request) -> Response:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            # This also refuses pages of other sites: a browser asks this server before it sends this type for them.
            raise Refused(415, "Send Content-Type: application/json")
        if self._writing >= self._concurrent:
            raise self._busy()
        body = await _body(request)
        completion = await to_thread.run_sync(Completion, self._writer, body, self._longest)
        if self._writing >= self._concurrent:  # other requests may have begun while the body arrived
            raise self._busy()
        counted = self._counted(completion)

        async def check_connected() -> None:
            if self.ending():
                raise Refused(503, "The server is being stopped")
            if not completion.stream and await request.is_disconnected():  # sending a stream fails by itself
                raise ClientDisconnect

        if completion.stream:
            return _Events(counted, completion.events(check_connected))

        with counted:
            try:
                return JSONResponse(await completion.whole(check_connected))
            except ClientDisconnect:
                return Response(status_code=499)  # nobody reads it

    @contextlib.contextmanager
    def _counted(self, completion: Completion) -> Iterator[None]:
        began = time.monotonic()
        self._writing += 1
        try:
            yield
        finally:
            self._writing -= 1
            print(f"{completion.tokens} tokens in {time.monotonic() - began:.1f} s", file=sys.stderr)

    def _busy(self) -> Refused:
        message = f"{self._writing} requests are being written, and this server takes no more at once; try again soon"
        return Refused(429, message, code="rate_limit_exceeded", kind="rate_limit_error")


class _Events(StreamingResponse):
    """Server-sent events, which end when the client disconnects. The request counts as long as they are sent."""

    def __init__(self, counted: contextlib.AbstractContextManager[None], events: AsyncIterator[str]) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(self._events(events), media_type="text/event-stream", headers=headers)
        self._counted, self._slot = counted, contextlib.ExitStack()

    async def _events(self, events: AsyncIterator[str]) -> AsyncIterator[str]:
        async for event in events:
            if event == DONE:  # a client that asks again as soon as it sees this must find its slot free
                self._slot.close()
            yield event

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._slot, contextlib.suppress(ClientDisconnect):
            self._slot.enter_context(self._counted)
            await super().__call__(scope, receive, send)


async def _body(request: Request) -> bytes:
    """Return the body of a request. Raise Refused if it is too long or does not arrive in time."""
    data = b""
    try:
        with anyio.fail_after(BODY_SECONDS):
            async for chunk in request.stream():
                data += chunk
                if len(data) > BODY_BYTES:
                    raise Refused(413, f"The body is longer than {BODY_BYTES} bytes")
    except TimeoutError:
        raise Refused(408, f"The body did not come in {BODY_SECONDS:.0f} s") from None
    return data


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    headers = {"Retry-After": "1"} if error.status == 429 else None
    return JSONResponse(error.body, error.status, headers=headers)


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}; there are POST /v1/completions, GET /v1/models, /"
    return JSONResponse(Refused(error.status_code, message).body, error.status_code, headers=error.headers)


async def _failed(request: Request, error: Exception) -> Response:
    message = str(error)
    if isinstance(error, UserError):
        print(f"error: {message}", file=sys.stderr)
    else:
        message = "Something is wrong with this server; its output says what"
        traceback.print_exception(error)
    return JSONResponse(Refused(500, message).body, 500)


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket. Port 0 means any free port. Raise UserError if the address cannot be used."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=128)
    except OSError as error:
        fix = "choose another --port" if host in ("127.0.0.1", "localhost") else "check --host and --port"
        raise UserError(f"cannot listen on {host}:{port}: {error.strerror}; {fix}") from None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.serve", description=__doc__)
    parser.add_argument(
        "--host", default="127.0.0.1", help="the address to listen on (default %(default)s: this machine alone)"
    )
    parser.add_argument("--port", type=port, default=8000, help="0 takes a free one (default %(default)s)")
    parser.add_argument("--max-tokens", type=positive, default=1024, help="most tokens of a text (default %(default)s)")
    parser.add_argument(
        "--concurrent",
        type=positive,
        default=4,
        help="most requests at the same time; others get 429 (default %(default)s)",
    )
    add_model_arguments(parser)
    options = parser.parse_args(arguments)
    with contextlib.closing(listen(options.host, options.port)) as listener:
        writer = open_writer(options)
        server = CompletionServer(writer, longest=options.max_tokens, concurrent=options.concurrent)
        address, number = listener.getsockname()[:2]
        if not ipaddress.ip_address(address.partition("%")[0]).is_loopback:
            print(
                f"WARNING: listening on {address}, not on this machine alone. Whoever reaches port {number} can use the"
                " model: there is no password and no encryption.",
                file=sys.stderr,
            )
        shown = f"[{address}]" if ":" in address else address
        print(f"{writer.name} at http://{shown}:{number} (OpenAI's base_url: http://{shown}:{number}/v1)", flush=True)
        config = uvicorn.Config(
            server.app([options.host]),
            log_level="critical",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=2,
            lifespan="off",
        )
        loop = uvicorn.Server(config)
        server.ending = lambda: loop.should_exit
        with contextlib.suppress(KeyboardInterrupt):
            loop.run(sockets=[listener])
        print("stopped", file=sys.stderr)
    return 0


def port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 5 or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 65535")
    return int(text)


if __name__ == "__main__":
    run_main(main)
