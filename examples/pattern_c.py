r"""Pattern C: a container per user. Commands of the agent run in it; files, memory and checkpoints are on this machine.

It works with the offline model. Set DEEPCTL_MODEL for another model (`anthropic:…`), STATE for another directory, and
IMAGE for another image, which must be on this machine. It needs a Docker daemon.

    pip install 'deepctl-agents[docker]' fastapi uvicorn
    docker pull python:3.12-slim
    uvicorn --app-dir examples pattern_c:app
    curl 127.0.0.1:8000/chat -H 'X-User: alice' -H 'Content-Type: application/json' \
        -d '{"message": "run id"}'

Turns of one user run one after another in this process, so run one worker.
"""

import asyncio
import os
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

from fastapi import FastAPI, Header, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from deepctl import DeepAgentDeps, FileCheckpointStore, SessionManager, create_deep_agent, end_runs, layout, run
from deepctl.errors import DeepctlError

STATE = Path(os.environ.get("STATE", "state")).absolute()
IMAGE = os.environ.get("IMAGE", "python:3.12-slim")

agent = create_deep_agent(os.environ.get("DEEPCTL_MODEL") or "offline", include_execute=True, max_checkpoints=100)
# A container that is not used for ten minutes is removed. The next command makes another one.
sandboxes = SessionManager(STATE / "workspaces", image=IMAGE, default_idle_timeout=600)
turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """At the end of the application, store the ends of turns that the server has cancelled, and remove containers."""
    async with sandboxes:
        yield
        await end_runs()


app = FastAPI(lifespan=lifespan)


@app.exception_handler(DeepctlError)
async def failed(_: Request, error: DeepctlError) -> JSONResponse:
    """An error of deepctl as JSON: `Refused` without a Docker daemon or the image, for example."""
    status = {2: 400, 6: 503}.get(error.exit_code, 500)
    return JSONResponse({"error": error.document()}, status)


class Message(BaseModel):
    """The body of a chat request."""

    message: str


@app.post("/chat")
async def chat(request: Message, x_user: Annotated[str, Header()]) -> dict[str, str]:
    """Run a turn. Replace the header, which is not authenticated, by your sign-in."""
    user = layout.folded_name(layout.check_name(x_user, "user"))
    async with turns[user]:
        sandbox = await sandboxes.get_or_create(user)
        store = FileCheckpointStore(STATE / "checkpoints" / user)
        newest = await store.newest()  # every turn ends with a checkpoint, which contains the conversation
        history = newest.messages if newest is not None else []
        deps = DeepAgentDeps(backend=sandbox, checkpoint_store=store)
        result = await run(agent, request.message, deps=deps, message_history=history)
    return {"response": result.output}
