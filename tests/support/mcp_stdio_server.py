"""An MCP server on stdin and stdout, written from the protocol's public description, with the standard library only.

What it does is told by its arguments:

    --report FILE     writes what it sees of its surroundings (pid, variables, directory, group) to FILE, as JSON
    --tools A,B       the tools it has; what each does is in `_TOOLS`
    --trouble HOW     `exit`: ends at once; `silent`: never answers; `garbage`: speaks nonsense; `greets`: speaks
                      nonsense first, then properly; `long`: a line without end; `stays`: does not end with its stdin;
                      `slow`: takes a second to tell its tools; `changes`: has only its first tool at first, and says
                      that it has others before it has told that one
    --resources       has resources: a note and a picture; --prompts: has prompts
    --child           starts a process of its own that does not look at stdin
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

_TOOLS: dict[str, dict[str, Any]] = {
    "echo": {"description": "Says it again.", "properties": {"text": {"type": "string"}}},
    "env": {"description": "Says what a variable is.", "properties": {"name": {"type": "string"}}},
    "write": {"description": "Writes a file.", "properties": {"path": {"type": "string"}}},
    "fail": {"description": "Fails.", "properties": {}},
    "refuse": {"description": "Is refused by the protocol.", "properties": {}},
    "die": {"description": "Ends the server.", "properties": {}},
    "sleep": {"description": "Takes long.", "properties": {"seconds": {"type": "number"}}},
    "interrupt": {"description": "Sends SIGINT, and answers after that.", "properties": {"pid": {"type": "integer"}}},
    "cancelled": {"description": "Says how many requests were cancelled.", "properties": {}},
    "big": {"description": "Says much.", "properties": {"lines": {"type": "integer"}}},
    "picture": {"description": "Shows something.", "properties": {}},
    "media": {"description": "Shows all kinds of content.", "properties": {}},
    "wordy picture": {"description": "Shows a picture and says much.", "properties": {}},
    "forecast": {"description": "Has structured content.", "properties": {"text": {"type": "string"}}},
    "task": {"description": "Only runs as a task.", "properties": {}},
    "half": {"description": "Says half a character.", "properties": {}},
    "pid": {"description": "Who it is.", "properties": {}},
    "more": {
        "description": "Gives the server the tool `echo`, and says that its tools have changed.",
        "properties": {},
    },
    "pattern": {"description": "Says what its output schema takes seconds to refuse.", "properties": {}},
    "odd name/with.dots": {"description": "\x1b[31mred\x07", "properties": {}},
}
_ODD_SCHEMAS: dict[str, Any] = {
    "textual": {"type": "string"},
    "lost": {"type": "object", "properties": {"a": {"$ref": "#/$defs/nothing"}}},
    "wrong": {"type": "object", "properties": {"a": {"type": "no such type"}}},
    "endless": {"type": "object", "properties": {"a": {"$ref": "#/properties/a"}}},
    "pointed": {"type": "object", "properties": {"a": {"type": "string"}, "b": {"$ref": "#/properties/a"}}},
}

_OUTPUTS: dict[str, Any] = {"pattern": {"type": "object", "properties": {"a": {"pattern": "^(a+)+$"}}}}
PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAIAAAD91JpzAAAAEElEQVR4nGP4z8AARAwQCgAf7gP9i18U1AAAAABJRU5ErkJggg=="
"""A picture of 2 × 2 pixels, as PNG in base64."""
_RESOURCES: dict[str, dict[str, Any]] = {
    "note://one": {"name": "one", "mimeType": "text/plain", "description": "The first note.", "size": 11},
    "pic://cat": {"name": "cat", "mimeType": "image/png"},
}
_PROMPTS: dict[str, dict[str, Any]] = {
    "review": {
        "description": "Reviews a file.",
        "arguments": [{"name": "path", "required": True}, {"name": "style", "description": "How."}],
    },
    "see": {"description": "Shows a picture.", "arguments": []},
}
_CANCELLED: list[Any] = []
_MORE: list[str] = []


def _say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def _tools(names: list[str]) -> list[dict[str, Any]]:
    found = []
    for name in names:
        known = _TOOLS.get(name.partition("#")[0], {"description": name, "properties": {}})
        schema = _ODD_SCHEMAS.get(name, {"type": "object", "properties": known["properties"]})
        found.append({"name": name, "description": known["description"], "inputSchema": schema})
        if name == "task":
            found[-1]["execution"] = {"taskSupport": "required"}
        if name in _OUTPUTS:
            found[-1]["outputSchema"] = _OUTPUTS[name]
    return found


def _call(identity: Any, name: str, arguments: dict[str, Any]) -> None:
    if name == "refuse":
        _say({"id": identity, "error": {"code": -32602, "message": "no such thing: " + os.environ.get("TOKEN", "")}})
        return
    content: list[dict[str, Any]] = []
    error = False
    structured = {}
    match name:
        case "echo":
            content = [{"type": "text", "text": arguments["text"]}]
        case "env":
            content = [{"type": "text", "text": os.environ.get(arguments["name"], "not there")}]
        case "write":
            with open(arguments["path"], "w") as file:
                file.write("by a server\n")
            content = [{"type": "text", "text": "written"}]
        case "fail":
            content, error = [{"type": "text", "text": "it does not work"}], True
        case "die":
            sys.stderr.write("the last words\n")
            sys.stderr.flush()
            os._exit(7)
        case "sleep":
            time.sleep(arguments["seconds"])
        case "interrupt":
            os.kill(arguments["pid"], signal.SIGINT)
            time.sleep(0.2)
        case "cancelled":
            content = [{"type": "text", "text": f"{len(_CANCELLED)} in {os.getpid()}"}]
        case "big":
            lines = "\n".join(f"line {number}" for number in range(arguments["lines"]))
            content = [{"type": "text", "text": lines}]
        case "picture":
            content = [
                {"type": "text", "text": "a cat"},
                {"type": "image", "data": "AAAA", "mimeType": "image/png"},
                {"type": "resource_link", "uri": "file:///cat.png", "name": "cat"},
            ]
        case "media":
            content = [
                {"type": "text", "text": "first"},
                {"type": "image", "data": PICTURE, "mimeType": "image/jpeg"},
                {"type": "audio", "data": "AAAA", "mimeType": "audio/wav"},
                {"type": "resource", "resource": {"uri": "note://a", "text": "a note"}},
                {"type": "resource", "resource": {"uri": "pic://a", "blob": PICTURE, "mimeType": "image/png"}},
                {"type": "resource", "resource": {"uri": "zip://a", "blob": "UEsDBA==", "mimeType": "application/zip"}},
                {"type": "image", "data": "no base64!", "mimeType": "image/png"},
                {"type": "text", "text": "last, with " + os.environ.get("TOKEN", "")},
            ]
        case "wordy picture":
            lines = "\n".join(f"line {number}" for number in range(9000))
            content = [{"type": "text", "text": lines}, {"type": "image", "data": PICTURE, "mimeType": "image/png"}]
        case "forecast":
            content = [{"type": "text", "text": arguments["text"]}] if arguments["text"] else []
            structured = {"structuredContent": {"sky": "blue", "degrees": 21}}
        case "more":
            _MORE.append("echo")
            _say({"method": "notifications/tools/list_changed"})
        case "pattern":
            content = [{"type": "text", "text": "some text"}]
            structured = {"structuredContent": {"a": "a" * 24 + "b"}}
        case "half":
            content = [{"type": "text", "text": "\ud83d and \U0001f600"}]
        case "pid":
            content = [{"type": "text", "text": str(os.getpid())}]
        case _:
            content = [{"type": "text", "text": f"{name} of {os.getpid()}"}]
    _say({"id": identity, "result": {"content": content, "isError": error, **structured}})


def _read(identity: Any, uri: str) -> None:
    if uri == "pic://cat":
        content = {"uri": uri, "mimeType": "image/png", "blob": PICTURE}
    elif uri.startswith("note://"):
        content = {"uri": uri, "mimeType": "text/plain", "text": f"the note {uri[7:]} of {os.environ.get('TOKEN', '')}"}
    else:
        _say({"id": identity, "error": {"code": -32002, "message": "Resource not found"}})
        return
    _say({"id": identity, "result": {"contents": [content]}})


def _prompt(identity: Any, name: str, arguments: dict[str, str]) -> None:
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": {"type": "text", "text": f"{name} {json.dumps(arguments)} @/etc/passwd"}}
    ]
    if name == "see":
        messages.append({"role": "user", "content": {"type": "image", "data": PICTURE, "mimeType": "image/png"}})
    if name == "review" and "path" not in arguments:
        _say({"id": identity, "error": {"code": -32602, "message": "path is missing"}})
        return
    if arguments.get("path") == "gone.py":
        _say({"id": identity, "error": {"code": -32602, "message": "There is no gone.py."}})
        return
    _say({"id": identity, "result": {"messages": messages}})


def main() -> None:
    """Answer until stdin ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--report")
    parser.add_argument("--tools", default="echo")
    parser.add_argument("--trouble", default="")
    parser.add_argument("--child", action="store_true")
    parser.add_argument("--resources", action="store_true")
    parser.add_argument("--prompts", action="store_true")
    given = parser.parse_args()
    child = subprocess.Popen(["sleep", "300"], stdin=subprocess.DEVNULL).pid if given.child else None
    if given.report:
        seen = {
            "pid": os.getpid(),
            "child": child,
            "env": dict(os.environ),
            "cwd": os.getcwd(),
            "group": os.getpgrp(),
            "session": os.getsid(0),
        }
        with open(f"{given.report}.tmp", "w") as file:
            json.dump(seen, file)
        os.rename(f"{given.report}.tmp", given.report)
    match given.trouble:
        case "exit":
            sys.stderr.write("Traceback\nModuleNotFoundError: no module named 'cats'\n")
            sys.exit(3)
        case "garbage":
            for _ in range(5000):
                print("Hello! I am not what you think.")
            sys.stdout.flush()
        case "greets":
            print("Welcome to the server\n\n{}\n[1]", flush=True)
        case "long":
            while True:
                sys.stdout.write("x" * (1 << 20))
        case "stays":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.stderr.write("a server's log\n")
    sys.stderr.flush()
    capabilities: dict[str, Any] = {kind: {} for kind in ("tools", "resources", "prompts") if vars(given)[kind]}
    for line in sys.stdin:
        message = json.loads(line)
        if message.get("method") == "notifications/cancelled":
            _CANCELLED.append(message["params"]["requestId"])
        if given.trouble in ("silent", "garbage") or "id" not in message:
            continue
        match message["method"]:
            case "initialize":
                version = message["params"]["protocolVersion"]
                info = {"name": "test", "version": "1"}
                _say(
                    {
                        "id": message["id"],
                        "result": {"protocolVersion": version, "capabilities": capabilities, "serverInfo": info},
                    }
                )
            case "tools/list":
                time.sleep(given.trouble == "slow")
                names = given.tools.split(",")
                if given.trouble == "changes":
                    given.trouble = ""
                    del names[1:]
                    _say({"method": "notifications/tools/list_changed"})
                _say({"id": message["id"], "result": {"tools": _tools(names + _MORE)}})
            case "resources/list":
                listing = [{"uri": uri, **facts} for uri, facts in _RESOURCES.items()]
                _say({"id": message["id"], "result": {"resources": listing}})
            case "resources/templates/list":
                template = {"uriTemplate": "note://{name}", "name": "note"}
                _say({"id": message["id"], "result": {"resourceTemplates": [template]}})
            case "resources/read":
                _read(message["id"], message["params"]["uri"])
            case "prompts/list":
                _say({"id": message["id"], "result": {"prompts": [{"name": n, **p} for n, p in _PROMPTS.items()]}})
            case "prompts/get":
                _prompt(message["id"], message["params"]["name"], message["params"].get("arguments") or {})
            case "tools/call":
                _call(message["id"], message["params"]["name"], message["params"].get("arguments", {}))
            case _:
                _say({"id": message["id"], "error": {"code": -32601, "message": "no such method"}})
    while given.trouble == "stays":
        time.sleep(1)


if __name__ == "__main__":
    main()
