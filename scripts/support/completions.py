"""Check a request of OpenAI's completions API and answer it, at once or while the text is written."""

import json
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal

from anyio import to_thread
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from scripts.support.common import UserError
from scripts.support.writing import Sampling, Writer, WrittenText

MOST_TEXTS = 16  # of one request: prompts x n
DONE = "data: [DONE]\n\n"
CheckConnected = Callable[[], Awaitable[None]]  # awaited before each token; raises if the text is not needed any more
SEED = Field(ge=-(1 << 63), lt=1 << 63)  # the seeds that a generator accepts


class Refused(Exception):
    """A request that is not served, with the HTTP status and OpenAI's form of an error."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, kind: str | None = None
    ) -> None:
        super().__init__(message)
        kind = kind or ("invalid_request_error" if status < 500 else "server_error")
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")
    include_usage: bool | None = None


class Request(BaseModel):
    """The body of POST /v1/completions. An unknown option is refused and not ignored, as it might change the text."""

    model_config = ConfigDict(strict=True, extra="forbid")
    model: str | None = None
    prompt: str | list[str] = ""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None  # not in OpenAI's API, but in other servers'; 0 means all
    n: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, SEED] | None = None
    stop: str | list[str] | None = None
    echo: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None  # ignored
    # Options of OpenAI's API that are accepted only with their defaults.
    best_of: Literal[1] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    logprobs: None = None
    suffix: Literal[""] | None = None


class Completion:
    """A valid request. Either `whole()` or `events()` writes its texts, one after the other."""

    def __init__(self, writer: Writer, body: bytes, longest: int) -> None:
        """Check the request `body`, whose texts may have `longest` tokens. Raise Refused if it is not valid."""
        self._writer, self._request = writer, _parse_request(body)
        request = self._request
        if request.model not in (None, writer.name):
            message = f"The model {request.model!r} is not here; {writer.name!r} is"
            raise Refused(404, message, param="model", code="model_not_found")
        prompts = [request.prompt] if isinstance(request.prompt, str) else request.prompt
        stops = [request.stop] if isinstance(request.stop, str) else request.stop or []
        if not prompts or len(prompts) * (request.n or 1) > MOST_TEXTS:
            raise Refused(400, f"From 1 to {MOST_TEXTS} texts at a time, prompts times n", param="n")
        if len(stops) > 4 or not all(stops):
            raise Refused(400, "Up to 4 texts, none of them empty", param="stop")
        if (request.max_tokens or 0) > longest:
            raise Refused(400, f"At most {longest} tokens a text on this server", param="max_tokens")
        self._sampling = Sampling(
            tokens=min(16, longest) if request.max_tokens is None else request.max_tokens,
            temperature=1.0 if request.temperature is None else request.temperature,
            top_k=request.top_k or 0,
            top_p=1.0 if request.top_p is None else request.top_p,
            seed=secrets.randbits(63) if request.seed is None else request.seed,
            stop=tuple(stops),
        )
        self._prompts = [(prompt, self._encode(prompt)) for prompt in prompts]
        self._head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": writer.name,
        }
        self.stream = bool(request.stream)
        self.tokens = 0  # written so far

    def _encode(self, prompt: str) -> list[int]:
        try:
            ids = self._writer.encode(prompt)
        except UserError as error:
            raise Refused(400, str(error), param="prompt") from None
        if len(ids) >= self._writer.window:
            message = f"The prompt has {len(ids)} tokens, and this model takes {self._writer.window - 1} at most"
            raise Refused(400, message, param="prompt", code="context_length_exceeded")
        return ids

    def _texts(self) -> list[tuple[int, str, WrittenText]]:
        """Return (index, prompt, text) of each choice. The i-th text of the same prompt has the seed + i."""
        n = self._request.n or 1
        texts = []
        for prompt_index, (prompt, ids) in enumerate(self._prompts):
            for i in range(n):
                sampling = replace(self._sampling, seed=_signed(self._sampling.seed + i))
                texts.append((prompt_index * n + i, prompt, self._writer.write(ids, sampling)))
        return texts

    async def whole(self, check_connected: CheckConnected) -> dict[str, Any]:
        """Return the answer in one piece."""
        choices = []
        for index, prompt, text in self._texts():
            pieces = [prompt] if self._request.echo else []
            pieces += [piece async for piece in self._pieces(text, check_connected)]
            choices.append(_choice(index, "".join(pieces), text.finish))
        return {**self._head, "choices": choices, "usage": self._usage()}

    async def events(self, check_connected: CheckConnected) -> AsyncIterator[str]:
        """Yield the answer as server-sent events, one for each piece of text."""
        usage = self._request.stream_options is not None and bool(self._request.stream_options.include_usage)
        try:
            for index, prompt, text in self._texts():
                if self._request.echo:
                    yield _event({**self._head, "choices": [_choice(index, prompt, None)]})
                async for piece in self._pieces(text, check_connected):
                    if piece or text.finish:
                        yield _event({**self._head, "choices": [_choice(index, piece, text.finish)]})
        except (UserError, Refused) as error:  # the status is sent already
            yield _event(error.body if isinstance(error, Refused) else Refused(500, str(error)).body)
            return
        if usage:
            yield _event({**self._head, "choices": [], "usage": self._usage()})
        yield DONE

    async def _pieces(self, text: WrittenText, check_connected: CheckConnected) -> AsyncIterator[str]:
        before = self.tokens
        await check_connected()
        while (piece := await to_thread.run_sync(partial(next, text, None))) is not None:
            self.tokens = before + text.tokens
            yield piece
            await check_connected()

    def _usage(self) -> dict[str, int]:
        prompt = sum(len(ids) for _, ids in self._prompts)
        return {"prompt_tokens": prompt, "completion_tokens": self.tokens, "total_tokens": prompt + self.tokens}


def _parse_request(body: bytes) -> Request:
    try:
        options = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(400, "The body is not JSON") from None
    if not isinstance(options, dict):
        raise Refused(400, "The body is not a JSON object")
    try:
        return Request.model_validate(options)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        param = str(first["loc"][0]) if first["loc"] else None
        raise Refused(400, _message(param, first["type"], first["msg"]), param=param) from None


def _message(param: str | None, kind: str, message: str) -> str:
    if kind == "extra_forbidden":
        return f"{param}: this server does not know it; leave it out"
    if param in ("best_of", "frequency_penalty", "presence_penalty", "logit_bias", "logprobs", "suffix"):
        return f"{param}: this server cannot do that; leave it out"
    if param == "prompt":
        return "prompt: a text or a list of texts is needed; tokens are not taken"
    return f"{param}: {message}"


def _signed(number: int) -> int:
    """Return a seed as a signed 64-bit number, as a generator needs it."""
    return number if number < 1 << 63 else number - (1 << 64)


def _choice(index: int, text: str, finish: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": finish}


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"
