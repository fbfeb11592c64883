r"""Pattern A: a workspace in memory per session. Files, memory and checkpoints end with the session.

It works with the offline model. Set DEEPCTL_MODEL for another model (`anthropic:…`).

    pip install deepctl-agents fastapi uvicorn
    uvicorn --app-dir examples pattern_a:app
    curl 127.0.0.1:8000/sessions -X POST
    curl 127.0.0.1:8000/sessions/ID -H 'Content-Type: application/json' \
        -d '{"message": "remember I prefer window seats"}'

A session is in the memory of one process, so run one worker.
"""

import asyncio
import os
import secrets

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel
from pydantic_ai.messages import ModelMessage

from deepctl import DeepAgentDeps, InMemoryCheckpointStore, StateBackend, create_deep_agent, run

MAX_SESSIONS = 1000

# One agent serves all sessions: the state of a session is in the deps of its runs.
agent = create_deep_agent(os.environ.get("DEEPCTL_MODEL") or "offline")
app = FastAPI()


class Session:
    """The whole state of one session."""

    def __init__(self) -> None:
        self.deps = DeepAgentDeps(backend=StateBackend(), checkpoint_store=InMemoryCheckpointStore())
        self.history: list[ModelMessage] = []
        self.turn = asyncio.Lock()


sessions: dict[str, Session] = {}


class Message(BaseModel):
    """The body of a chat request."""

    message: str


@app.post("/sessions")
async def begin() -> dict[str, str]:
    """Start a session. The oldest one ends if there are too many."""
    if len(sessions) >= MAX_SESSIONS:
        del sessions[next(iter(sessions))]
    session = secrets.token_urlsafe()  # a client that knows it may use the session
    sessions[session] = Session()
    return {"session": session}


@app.post("/sessions/{name}")
async def chat(name: str, request: Message) -> dict[str, str]:
    """Run a turn. Turns of one session run one after another, turns of several sessions in parallel."""
    session = sessions.get(name)
    if session is None:
        raise HTTPException(404, "There is no such session.")
    async with session.turn:
        result = await run(agent, request.message, deps=session.deps, message_history=session.history)
        session.history = result.all_messages()
    return {"response": result.output}


@app.delete("/sessions/{name}", status_code=204)
async def end(name: str) -> None:
    """End a session. Nothing of it remains."""
    sessions.pop(name, None)
