r"""Pattern B: a directory per user. Files, memory, checkpoints and the conversation survive a restart.

It works with the offline model. Set DEEPCTL_MODEL for another model (`anthropic:…`), and STATE for another directory.

    pip install deepctl-agents fastapi uvicorn
    uvicorn --app-dir examples pattern_b:app
    curl 127.0.0.1:8000/chat -H 'X-User: alice' -H 'Content-Type: application/json' \
        -d '{"message": "remember I prefer window seats"}'

Turns of one user run one after another in this process, so run one worker. fastapi_app.py has several.
"""

import asyncio
import os
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

from fastapi import FastAPI, Header, HTTPException
from pydantic import BaseModel

from deepctl import DeepAgentDeps, FileCheckpointStore, LocalBackend, create_deep_agent, end_runs, run, user_directory
from deepctl.errors import BadName

STATE = Path(os.environ.get("STATE", "state")).absolute()

# The newest 100 checkpoints of a user are enough; those with a label stay.
agent = create_deep_agent(os.environ.get("DEEPCTL_MODEL") or "offline", max_checkpoints=100)
turns: defaultdict[Path, asyncio.Lock] = defaultdict(asyncio.Lock)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """At the end of the application, store the ends of the turns that the server has cancelled."""
    yield
    await end_runs()


app = FastAPI(lifespan=lifespan)


class Message(BaseModel):
    """The body of a chat request."""

    message: str


@app.post("/chat")
async def chat(request: Message, x_user: Annotated[str, Header()]) -> dict[str, str]:
    """Run a turn. Replace the header, which is not authenticated, by your sign-in."""
    try:
        home = Path(user_directory(STATE, x_user))
    except BadName as error:
        raise HTTPException(400, str(error)) from None
    async with turns[home]:
        store = FileCheckpointStore(home / "checkpoints")
        deps = DeepAgentDeps(backend=LocalBackend(root_dir=home / "workspace"), checkpoint_store=store)
        newest = await store.newest()  # every turn ends with a checkpoint, which contains the conversation
        history = newest.messages if newest is not None else []
        result = await run(agent, request.message, deps=deps, message_history=history)
    return {"response": result.output}
