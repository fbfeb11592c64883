"""A llama.cpp server on 127.0.0.1 whose model gives known answers, in the format of a chat template.

The real parts are the HTTP server, the template engine, the tokenizer and the parser that turns text of the model into
tool calls. `python -m tests.models.llama_server MODEL TEMPLATE WINDOW` is the child process: it prints the address, and
ends when its stdin is closed.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tests.models import scripted_model

WINDOW = 32_768
_PROMPT, _RESULT, _ANSWER = "PROMPT-END", "RESULT-END", "ANSWER-END"
"""Texts that are found again in the prompts that a template makes."""
_CALL_ID = "call00001"
"""Some templates accept ids of nine letters and digits only."""
_OPEN_TAG = re.compile(r"(<[^<>\s]*)?$")
_THINKING = re.compile(r"<(think|thinking)>\s*$")


class Call(NamedTuple):
    """An answer that calls one tool."""

    tool: str
    arguments: dict[str, Any]


class Server(NamedTuple):
    """A running server."""

    address: str

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The JSON answer to a JSON request. Raises `urllib.error.HTTPError` for an error of the server."""
        request = urllib.request.Request(
            self.address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)


@contextmanager
def serving(model: Path, template: str, window: int = WINDOW) -> Iterator[Server]:
    """A server with a model and a template; its log is beside the model."""
    source = model.with_suffix(".jinja")
    source.write_text(template, "utf-8")
    with model.with_suffix(".log").open("wb") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "tests.models.llama_server", str(model), str(source), str(window)],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        )
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            address = child.stdout.readline().decode().strip()
            assert address, model.with_suffix(".log").read_text("utf-8", "replace")
            yield Server(address)
        finally:
            child.stdin.close()
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            child.stdout.close()


@contextmanager
def scripted(
    directory: Path,
    template: str,
    prompts: Mapping[str, str | Call],
    results: Mapping[str, str],
    *,
    other: str,
    words: frozenset[str] = frozenset(),
    window: int = WINDOW,
) -> Iterator[Server]:
    """A server whose model has an answer for each prompt, for each result of a tool, and for anything `other`.

    A key is the end of the prompt's or the result's text. The text that the template puts after it, and the text of a
    call, are parts of prompts that llama.cpp makes with the template.
    """
    model = directory / "model.gguf"
    scripted_model.write(model, {})
    with serving(model, template) as server:
        form = _Form(server)
        answers = {f"{prompt}{form.after_prompt}": form.written(answer) for prompt, answer in prompts.items()}
        for result, answer in results.items():
            answers[f"{result}{form.after_result()}"] = form.written(answer)
        answers[form.after_prompt] = form.written(other)
    scripted_model.write(model, answers, words)
    with serving(model, template, window) as server:
        yield server


class _Form:
    """The texts of a template around prompts and answers, from prompts with known texts."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.after_prompt = self._prompt([]).rpartition(_PROMPT)[2]
        self._before, _, self._end = self._answer({"role": "assistant", "content": _ANSWER}).partition(_ANSWER)

    def after_result(self) -> str:
        """What follows the text of a result, up to the answer."""
        result = {"role": "tool", "tool_call_id": _CALL_ID, "content": _RESULT}
        return self._prompt([_call("tool", {"key": "value"}), result]).rpartition(_RESULT)[2]

    def written(self, answer: str | Call) -> str:
        """What the model writes for an answer."""
        if isinstance(answer, str):
            return self._before + answer
        call = self._answer(_call(*answer))
        same = _same(call[::-1], self._end[::-1])
        # Other characters of the tag that ends the turn are left over where the end of a call has a tag of its own.
        return _OPEN_TAG.sub("", call[: len(call) - same], count=1)

    def _prompt(self, messages: list[dict[str, Any]], ended: bool = False) -> str:
        """The prompt of the model; `ended` means that the conversation ends, so that no answer begins."""
        body = {
            "messages": [{"role": "user", "content": _PROMPT}, *messages],
            "add_generation_prompt": not ended,
        }
        return str(self._server.post("/apply-template", body)["prompt"])

    def _answer(self, message: dict[str, Any]) -> str:
        """What a message adds to the prompt that it answers, up to the end of the conversation."""
        begun, whole = self._prompt([]), self._prompt([message], ended=True)
        same = _same(begun, whole)
        # Both may go on with a tag, of which the first characters are the same.
        same -= len(_OPEN_TAG.search(whole[:same])[0])  # type: ignore[index]
        thinking = _THINKING.search(begun[same:])
        closed = f"</{thinking[1]}>" if thinking else ""
        return whole[same:] if whole[same:].lstrip().startswith(closed) else f"{closed}\n\n{whole[same:]}"


def _same(first: str, second: str) -> int:
    """The number of characters at the beginning that are the same."""
    pairs = zip(first, second, strict=False)
    return next((index for index, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second)))


def _call(tool: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    call = {"id": _CALL_ID, "type": "function", "function": {"name": tool, "arguments": json.dumps(arguments)}}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def _serve(model: str, template: str, window: str) -> None:
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = model
    parameters.model_alias = {"tiny"}
    parameters.chat_template = Path(template).read_text("utf-8")
    parameters.use_jinja = True
    parameters.prefill_assistant = False
    parameters.n_ctx = int(window)
    parameters.n_parallel = 1
    parameters.cpuparams.n_threads = 1
    parameters.warmup = False
    parameters.fit_params = False
    parameters.ui = False
    server = xllamacpp.Server(parameters)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    _serve(*sys.argv[1:])
