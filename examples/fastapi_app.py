"""A web application with an agent for each user: files, memory, conversation and checkpoints.

It works with the offline model. Set MODEL for another model (`anthropic:…`), and STATE for another directory.

    pip install fastapi uvicorn
    uvicorn --app-dir examples fastapi_app:app
    curl 127.0.0.1:8000/chat -H 'X-User: alice' --json '{"message": "remember I prefer window seats"}'

Conversations are in the memory of this process. Run one worker, or send each user to the same worker.
"""

import asyncio
import dataclasses
import os
import uuid
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, HTTPException
from pydantic import BaseModel
from pydantic_ai.messages import ModelMessage

from deepctl import (
    DeepAgentDeps,
    FileCheckpointStore,
    LocalBackend,
    RewindRequested,
    create_deep_agent,
    layout,
    offline_model,
)
from deepctl.errors import BadName, Refused

STATE = Path(os.environ.get("STATE", "state")).absolute()

# One agent serves all users: the state of a user is in the deps of each run.
agent = create_deep_agent(os.environ.get("MODEL") or offline_model())
app = FastAPI()


class User:
    """The state of one user: two directories on disk, and the conversation in memory."""

    def __init__(self, name: str) -> None:
        self.workspace = STATE / name / "workspace"
        self.store = FileCheckpointStore(STATE / name / "checkpoints")
        self.history: list[ModelMessage] | None = None
        self.turn = asyncio.Lock()

    async def say(self, message: str) -> str:
        """Run one turn."""
        if self.history is None:
            # After a restart: the last checkpoint has the messages, because every turn ends with one.
            kept = await self.store.list_all()
            self.history = kept[-1].messages if kept else []
        deps = DeepAgentDeps(backend=LocalBackend(root_dir=self.workspace), checkpoint_store=self.store)
        prompt: Any = message
        while True:
            try:
                result = await agent.run(prompt, deps=deps, message_history=self.history)
            except RewindRequested as request:  # the agent rewound to a checkpoint, and starts again from there
                prompt, self.history = request.prompt(message), request.messages
            else:
                self.history = result.all_messages()
                return result.output

    async def go_back(self, checkpoint: str) -> list[str]:
        """Rewind the files to a checkpoint; returns the files that changed. Raises `Refused`, `KeyError`."""
        target = await self.store.get(checkpoint)
        if target is None:
            raise KeyError(checkpoint)
        changed = await self.store.rewind(target.id, self.workspace)
        now = dataclasses.replace(target, id=uuid.uuid4().hex, label="", created_at=datetime.now(timezone.utc))
        await self.store.save(now, workspace=self.workspace)
        self.history = target.messages
        return changed


users: dict[str, User] = {}


def signed_in(x_user: Annotated[str, Header()]) -> User:
    """The user of a request. Replace this header, which is not authenticated, by your sign-in."""
    try:
        name = layout.folded_name(layout.check_name(x_user))
    except BadName as error:
        raise HTTPException(400, str(error)) from None
    return users.setdefault(name, User(name))


CurrentUser = Annotated[User, Depends(signed_in)]


class Message(BaseModel):
    """The body of a chat request."""

    message: str


@app.post("/chat")
async def chat(request: Message, user: CurrentUser) -> dict[str, str]:
    """Run a turn. Turns of one user run one after another, turns of several users in parallel."""
    async with user.turn:
        return {"response": await user.say(request.message)}


@app.get("/checkpoints")
async def checkpoints(user: CurrentUser) -> list[dict[str, Any]]:
    """The checkpoints of this user, oldest first."""
    return [
        {"id": one.id, "label": one.label, "turn": one.turn, "at": one.created_at}
        for one in await user.store.list_all()
    ]


@app.post("/rewind/{checkpoint}")
async def rewind(checkpoint: str, user: CurrentUser) -> dict[str, list[str]]:
    """Rewind files, memory and conversation."""
    async with user.turn:
        try:
            return {"changed": await user.go_back(checkpoint)}
        except KeyError:
            raise HTTPException(404, "There is no such checkpoint.") from None
        except Refused as error:  # a file has changes by another author
            raise HTTPException(409, str(error)) from None
