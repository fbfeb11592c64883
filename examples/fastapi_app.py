"""A web application in which every user has an agent of their own: files, memory, conversation and checkpoints.

Works with the offline model as it stands; set MODEL to another (`anthropic:…`), and STATE to where it keeps things.

    pip install fastapi uvicorn
    uvicorn --app-dir examples fastapi_app:app
    curl 127.0.0.1:8000/chat -H 'X-User: alice' --json '{"message": "remember I prefer window seats"}'

Conversations are held in this process, so run one worker, or send each user to the same one.
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
    names,
    offline_model,
)
from deepctl.errors import BadName, Refused

STATE = Path(os.environ.get("STATE", "state")).absolute()

# One agent serves everybody: what is a user's lies in the deps of each run.
agent = create_deep_agent(os.environ.get("MODEL") or offline_model())
app = FastAPI()


class User:
    """What is one user's: two directories, which outlive the process, and the conversation."""

    def __init__(self, name: str) -> None:
        self.workspace = STATE / name / "workspace"
        self.store = FileCheckpointStore(STATE / name / "checkpoints")
        self.history: list[ModelMessage] | None = None
        self.turn = asyncio.Lock()

    async def say(self, message: str) -> str:
        """Run one turn."""
        if self.history is None:
            # After a restart: every turn ends with a checkpoint, which has the messages.
            kept = await self.store.list_all()
            self.history = kept[-1].messages if kept else []
        deps = DeepAgentDeps(backend=LocalBackend(root_dir=self.workspace), checkpoint_store=self.store)
        prompt: Any = message
        while True:
            try:
                result = await agent.run(prompt, deps=deps, message_history=self.history)
            except RewindRequested as request:  # the agent went back to a checkpoint, and begins again from there
                prompt, self.history = request.prompt(message), request.messages
            else:
                self.history = result.all_messages()
                return result.output

    async def go_back(self, checkpoint: str) -> list[str]:
        """Take back what the agent did since; returns the files that changed. Raises `Refused`, `KeyError`."""
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
    """Whoever asks. A header anybody can write stands here for your sign-in; the name becomes a directory."""
    try:
        name = names.fold(names.check(x_user))
    except BadName as error:
        raise HTTPException(400, str(error)) from None
    return users.setdefault(name, User(name))


Someone = Annotated[User, Depends(signed_in)]


class Message(BaseModel):
    """What a user says."""

    message: str


@app.post("/chat")
async def chat(said: Message, user: Someone) -> dict[str, str]:
    """Answer. A user's turns run one after another, those of several users at once."""
    async with user.turn:
        return {"response": await user.say(said.message)}


@app.get("/checkpoints")
async def checkpoints(user: Someone) -> list[dict[str, Any]]:
    """Where this user can go back to, oldest first."""
    return [
        {"id": one.id, "label": one.label, "turn": one.turn, "at": one.created_at}
        for one in await user.store.list_all()
    ]


@app.post("/rewind/{checkpoint}")
async def rewind(checkpoint: str, user: Someone) -> dict[str, list[str]]:
    """Go back: files, memory and conversation."""
    async with user.turn:
        try:
            return {"changed": await user.go_back(checkpoint)}
        except KeyError:
            raise HTTPException(404, "There is no such checkpoint.") from None
        except Refused as error:  # somebody changed a file after the agent did
            raise HTTPException(409, str(error)) from None
