r"""A web application with an agent for each user: conversation, files, memory and checkpoints.

A user is a profile of the command line: `DEEPCTL_HOME=state deepctl checkpoints list --user alice` shows the
checkpoints of alice, also while this application runs. The application has a session of its own, so that it never
continues a conversation of `deepctl chat`.

It works with the offline model. Set DEEPCTL_MODEL for another model (`anthropic:…`), and STATE for another directory.

    pip install deepctl-agents fastapi uvicorn
    uvicorn --app-dir examples fastapi_app:app --workers 2 --timeout-graceful-shutdown 10
    curl 127.0.0.1:8000/chat -H 'X-User: alice' -H 'Content-Type: application/json' \
        -d '{"message": "remember I prefer window seats"}'
    curl -N 127.0.0.1:8000/stream -H 'X-User: alice' -H 'Content-Type: application/json' \
        -d '{"message": "recall window"}'

All state is on disk, so any number of workers on one machine may serve the same users. Turns of one user run one after
another: a lock on disk decides, and the others wait. At its end, the server gives turns ten seconds, then cancels them.
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deepctl import OpenProfile, create_deep_agent, end_runs, open_profile
from deepctl.errors import DeepctlError, TimedOut

STATE = Path(os.environ.get("STATE", "state")).absolute()
SESSION = "web"  # without a name, a run continues the session used last, also by `deepctl chat`
MAX_BODY = 64 * 1024  # bytes
MAX_PROMPT = 16 * 1024  # characters
MAX_SECONDS = float(os.environ.get("MAX_SECONDS", "120"))  # of a turn, with the wait for other turns of the user
MAX_WAIT = 30.0  # seconds, for a turn of the user in another process

STATUS_OF_EXIT_CODE = {2: 400, 3: 404, 4: 503, 5: 500, 6: 409, 7: 502, 8: 507, 124: 504}

# One agent serves all users: the state of a user is in the profile of each run.
agent = create_deep_agent(os.environ.get("DEEPCTL_MODEL") or "offline")
requests: set[asyncio.Task[Any]] = set()
"""The requests that are not answered yet."""


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """At the end of the application, store the ends of the turns that the server has cancelled, and answer."""
    yield
    await end_runs()
    if requests:
        await asyncio.wait(requests)


app = FastAPI(lifespan=lifespan)


async def signed_in(x_user: Annotated[str, Header()]) -> AsyncIterator[OpenProfile]:
    """The profile of a request's user. Replace this header, which is not authenticated, by your sign-in."""
    async with open_profile(x_user, root=STATE, wait=MAX_WAIT) as profile:
        yield profile


CurrentUser = Annotated[OpenProfile, Depends(signed_in)]


class Prompt(BaseModel):
    """The body of a chat request."""

    message: str = Field(min_length=1, max_length=MAX_PROMPT)


class Target(BaseModel):
    """The body of a rewind: an id, a label, or `~N` for N turns back."""

    to: str = Field(default="~1", max_length=100)


@app.post("/chat")
async def chat(prompt: Prompt, user: CurrentUser) -> dict[str, Any]:
    """Run a turn and return its answer."""
    async with asyncio.timeout(MAX_SECONDS):
        result = await user.run(agent, prompt.message, session=SESSION)
    return {"response": result.output, "checkpoint": result.checkpoint, "notices": result.notices}


@app.post("/stream")
async def stream(prompt: Prompt, user: CurrentUser) -> StreamingResponse:
    """Run a turn and send its events (server-sent events). The last one is `result` or `error`.

    A turn whose client goes away is cancelled. What is complete of it is stored.
    """

    async def events() -> AsyncIterator[str]:
        try:
            async with (
                asyncio.timeout(MAX_SECONDS),
                aclosing(user.stream(agent, prompt.message, session=SESSION)) as turn,
            ):
                async for event in turn:
                    yield server_sent(event)
        except Exception as error:
            yield server_sent({"type": "error", **error_of(error)})

    return StreamingResponse(events(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


def server_sent(event: dict[str, Any]) -> str:
    """An event in the form of server-sent events. JSON has no line breaks, so that it is one line of data."""
    return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n"


@app.get("/checkpoints")
async def checkpoints(user: CurrentUser) -> list[dict[str, Any]]:
    """The checkpoints of this user, newest first. `session` names the session of each."""
    return [asdict(checkpoint) for checkpoint in await user.checkpoints(limit=100)]


@app.post("/rewind")
async def rewind(target: Target, user: CurrentUser) -> dict[str, Any]:
    """Rewind conversation, files and memory. `safety` is the checkpoint with the state before: a rewind to it undoes
    this one.
    """
    return asdict(await user.rewind(target.to, session=SESSION))


@app.delete("/user", status_code=204)
async def delete(user: CurrentUser) -> None:
    """Delete everything of this user."""
    await user.wipe()


def error_of(error: Exception) -> dict[str, Any]:
    """An error in the form of `deepctl --json`. An unexpected one has no details, because they are not the user's."""
    if isinstance(error, TimeoutError):
        error = TimedOut(f"The turn took more than {MAX_SECONDS:.0f} seconds.", "What is complete of it is stored.")
    if not isinstance(error, DeepctlError):
        error = DeepctlError("Something went wrong.", code="unexpected")
    return error.document()


@app.exception_handler(DeepctlError)
@app.exception_handler(TimeoutError)
@app.exception_handler(Exception)
async def failed(_: Request, error: Exception) -> JSONResponse:
    """An error of a turn, or of this application."""
    document = error_of(error)
    status = STATUS_OF_EXIT_CODE.get(document["exit_code"], 500)
    return JSONResponse({"error": document}, status, {"Retry-After": "1"} if status == 503 else None)


@app.exception_handler(RequestValidationError)
@app.exception_handler(StarletteHTTPException)
async def refused(_: Request, error: Exception) -> JSONResponse:
    """A request that is not one of this application, in the same form."""
    status, message = (
        422,
        "; ".join(
            f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
            for problem in (error.errors() if isinstance(error, RequestValidationError) else [])
        ),
    )
    if isinstance(error, StarletteHTTPException):
        status, message = error.status_code, error.detail
    document = {"code": f"http_{status}", "message": message, "hint": None, "exit_code": 2, "retryable": False}
    return JSONResponse({"error": document}, status)


class BodyLimit:
    """Refuses a body that is too large, whatever its header says, and reads no more of it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count the bytes of a request."""
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > MAX_BODY:
                raise HTTPException(413, f"A request has at most {MAX_BODY} bytes.")
            return message

        await self.app(scope, counted, send)


class Ending:
    """Answers the requests that the server cancels at its end, instead of a traceback for each."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Remember a request until it is answered."""
        has_begun = False

        async def noted(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        task = asyncio.current_task()
        if scope["type"] != "http" or task is None:
            await self.app(scope, receive, send)
            return
        requests.add(task)
        try:
            await self.app(scope, receive, noted)
        except asyncio.CancelledError:
            error = DeepctlError("The server ends.", "What is complete is stored.", code="server_ends", retryable=True)
            if has_begun:  # events of a turn
                body = server_sent({"type": "error", **error.document()}).encode()
                await send({"type": "http.response.body", "body": body})
            else:
                await JSONResponse({"error": error.document()}, 503, {"Retry-After": "1"})(scope, receive, send)
        finally:
            requests.discard(task)


app.add_middleware(BodyLimit)
app.add_middleware(Ending)
