"""The tool `ask_user`: the model asks the user questions with choices, and its turn waits for the answers.

The schema of the questions and its checks are those of the harness, and so is the result. deepctl asks one question
after the other, has a shorter description, and offers the tool only if a person can answer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from pydantic_ai import RunContext
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.tools import ToolDefinition
from pydantic_ai.toolsets import AbstractToolset, FunctionToolset, PreparedToolset
from pydantic_ai_harness.ask_user import AskUserAnswer, AskUserRequest, AskUserResponse, AskUserToolset

TOOL = "ask_user"
_DESCRIPTION = (
    "Ask the user, and wait for the answers, when the task is unclear and neither files nor a safe default decide it. "
    "Ask all of it in one call. The user may also give another answer than your options, or none."
)
_OPTIONS = {
    "type": "array",
    "minItems": 2,
    "maxItems": 6,
    "items": {
        "type": "object",
        "properties": {"label": {"type": "string", "maxLength": 50}, "description": {"type": "string"}},
        "required": ["label"],
    },
}
_SCHEMA = {
    "type": "object",
    "properties": {
        "questions": {
            "type": "array",
            "maxItems": 10,
            "items": {
                "type": "object",
                "properties": {
                    "header": {"type": "string", "maxLength": 25, "description": "unique; the key of the answer"},
                    "question": {"type": "string"},
                    "options": _OPTIONS,
                    "multi_select": {"type": "boolean"},
                },
                "required": ["header", "question", "options"],
            },
        }
    },
    "required": ["questions"],
}
"""The schema of the harness in fewer tokens. The harness checks the calls with its own."""


class QuestionChoice(NamedTuple):
    """One of the answers to choose from."""

    label: str
    description: str = ""


class UserQuestion(NamedTuple):
    """A question of the model to the user: number `number` of `total` in one call, from 1.

    With `is_multiple`, several of the choices may be an answer. The texts have no control characters.
    """

    text: str
    choices: tuple[QuestionChoice, ...]
    is_multiple: bool = False
    number: int = 1
    total: int = 1


Answerer = Callable[[UserQuestion], Awaitable[list[str] | str | None]]
"""Asks the user one question. Returns a list of chosen labels, or an answer in the user's own words; `None` if the user
does not want to answer.
"""


@dataclass
class AskUser(AbstractCapability[Any]):
    """The capability with the tool `ask_user`. `answerer` asks the user; there is no time limit for the answer.

    If the user does not want to answer one of the questions, the rest of the same call is not asked, and the model is
    told to go on without the answers.
    """

    answerer: Answerer
    id: str | None = field(default="ask_user", kw_only=True)

    def get_toolset(self) -> AbstractToolset[Any]:
        library: AskUserToolset[Any] = AskUserToolset(answerer=self._answers)
        toolset: FunctionToolset[Any] = FunctionToolset(id="questions")
        # A renamed tool could report no events.
        toolset.add_function(library.ask_user_question, name=TOOL)
        return PreparedToolset(toolset, _described)

    async def _answers(self, request: AskUserRequest) -> AskUserResponse:
        answers: list[AskUserAnswer] = []
        total = len(request.questions)
        for number, question in enumerate(request.questions, 1):
            choices = tuple(QuestionChoice(option.label, option.description or "") for option in question.options)
            answer = await self.answerer(UserQuestion(question.question, choices, question.multi_select, number, total))
            if answer is None or not answer:
                return AskUserResponse(cancelled=True)
            if isinstance(answer, str):
                answers.append(AskUserAnswer(header=question.header, custom_answer=answer))
            else:
                answers.append(AskUserAnswer(header=question.header, selected=tuple(dict.fromkeys(answer))))
        return AskUserResponse(answers=tuple(answers))


async def _described(ctx: RunContext[Any], definitions: list[ToolDefinition]) -> list[ToolDefinition]:
    return [replace(definition, description=_DESCRIPTION, parameters_json_schema=_SCHEMA) for definition in definitions]
