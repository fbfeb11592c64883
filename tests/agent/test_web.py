"""The web tools: what they fetch, what they refuse, and what never leaves this machine."""

from __future__ import annotations

import asyncio
import gzip
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic_ai import _ssrf
from pydantic_ai.exceptions import ToolFailed
from pydantic_ai.messages import BinaryContent, ModelMessage, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.native_tools import WebSearchTool

from deepctl import distribution
from deepctl.agent import web
from deepctl.agent.approver import ApprovalAnswer, ApprovalRequest, Approve, Choice
from deepctl.agent.extensions import AgentExtensions
from deepctl.agent.factory import DeepAgentDeps, create_deep_agent
from deepctl.agent.web import WebAccess
from deepctl.cli import chat_setup
from deepctl.errors import UsageError
from deepctl.layout import Root
from tests.support.command import InProcess
from tests.support.loopback import Text, provider

KEY = "sk-canary-0123456789abcdef"
Page = Callable[[BaseHTTPRequestHandler], None]


def sends(body: bytes, kind: str = "text/html; charset=utf-8", status: int = 200, **headers: str) -> Page:
    def page(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return page


def leads(address: str, **headers: str) -> Page:
    return sends(b"", status=302, Location=address, **headers)


class Site:
    """A server on 127.0.0.1 with pages by path; `requests` are the paths and the headers that it got."""

    def __init__(self, pages: dict[str, Page]) -> None:
        self.requests: list[tuple[str, dict[str, str]]] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                site.requests.append((self.path, {key.lower(): value for key, value in self.headers.items()}))
                self.close_connection = True
                pages[self.path.partition("?")[0]](self)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]

    def at(self, domain: str, path: str = "/") -> str:
        return f"http://{domain}:{self.port}{path}"


@contextmanager
def site(monkeypatch: pytest.MonkeyPatch, pages: dict[str, Page]) -> Iterator[Site]:
    """Domains below `example` are on this machine, which counts as public in this process. No setting can do that."""
    place = Site(pages)
    threading.Thread(target=place.server.serve_forever, args=(0.01,), daemon=True).start()
    resolve, is_private = socket.getaddrinfo, _ssrf.is_private_ip

    def getaddrinfo(host: Any, port: Any, *rest: Any, **options: Any) -> Any:
        return resolve("127.0.0.1" if str(host).endswith(".example") else host, port, *rest, **options)

    public: set[str] = {"127.0.0.1"}
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(_ssrf, "is_private_ip", lambda ip: ip not in public and is_private(ip))
    try:
        yield place
    finally:
        place.server.shutdown()
        place.server.server_close()


class Person:
    """Answers approval requests in the order of `answers`, then with no."""

    def __init__(self, *answers: ApprovalAnswer) -> None:
        self.asked: list[ApprovalRequest] = []
        self._answers = list(answers)

    async def ask(self, request: ApprovalRequest) -> ApprovalAnswer:
        self.asked.append(request)
        return self._answers.pop(0) if self._answers else ApprovalAnswer(allow=False)


YES, ALWAYS = ApprovalAnswer(allow=True), ApprovalAnswer(allow=True, always=True)


def used(access: WebAccess, *calls: tuple[str, dict[str, Any]]) -> list[Any]:
    """The results of calls by an agent, in one run."""
    steps: list[ToolCallPart | TextPart] = [
        *(ToolCallPart(name, arguments) for name, arguments in calls),
        TextPart("done"),
    ]
    results: list[Any] = []

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        results.extend(part.content for part in messages[-1].parts if isinstance(part, ToolReturnPart))
        return ModelResponse(parts=[steps.pop(0)])

    agent = create_deep_agent(FunctionModel(answer), capabilities=[access], environment={"OPENAI_API_KEY": KEY})
    asyncio.run(agent.run("go", deps=DeepAgentDeps()))
    return results


def fetched(*urls: str, mode: Any = "auto", person: Person | None = None, approve: Approve = "ask") -> list[Any]:
    access = WebAccess(mode, person.ask if person else None, approve, {"OPENAI_API_KEY": KEY})
    return used(access, *(("web_fetch", {"url": url}) for url in urls))


def test_a_page_becomes_markdown_and_nothing_of_the_user_goes_along(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / ".netrc"
    netrc.write_text(f"default login me password {KEY}\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HOME", str(tmp_path))
    page = b"<html><head><title>Tea\n time</title></head><body><h1>Green</h1><p>A <b>leaf</b>.</p></body></html>"
    with site(monkeypatch, {"/": sends(page)}) as place:
        (result,) = fetched(place.at("tea.example"))
    assert result.startswith(f"[text of a web page, from {place.at('tea.example')}]\nTea\n")
    assert result.endswith("\n\nA **leaf**.")
    ((path, headers),) = place.requests
    assert path == "/"
    assert headers.pop("host") == f"tea.example:{place.port}"
    assert headers.pop("user-agent") == f"deepctl/{distribution.__version__}"
    assert headers.keys() == {"accept", "accept-encoding", "connection"}
    assert KEY not in str(headers)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://localhost/",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0177.0.0.1/",
        "http://127.1/",
        "http://0/",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:7f00:1]/",
        "http://[64:ff9b::7f00:1]/",
        "http://[fe80::1]/",
        "http://10.0.0.1/",
        "http://192.168.1.1/",
        "http://169.254.169.254/latest/meta-data/",
        "http://[fd00:ec2::254]/",
        "http://127.0.0.1.:80/",
        "http://168.63.129.16/",
    ],
)
def test_addresses_that_are_not_public_are_refused(url: str) -> None:
    (result,) = fetched(url)
    assert "not public" in result or "resolution failed" in result, result


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://tea.example/",
        "gopher://tea.example/",
        "data:text/html,hello",
        "javascript:1",
        "//tea.example/",
        "tea.example",
        "http://",
        "http:///path",
        "http://user:pass@tea.example/",
        "http://tea.example@127.0.0.1/",
        "http://tea.example\\@127.0.0.1/",
        "http://tea.example/a b",
        "http://tea.example/\n",
        "http://tea.example:99999/",
        "http://[::1",
        f"http://tea.example/{'a' * 3000}",
    ],
)
def test_addresses_that_are_none_are_refused_before_anybody_is_asked(url: str) -> None:
    person = Person(YES)
    access = WebAccess("ask", person.ask, environment={})
    with pytest.raises(ToolFailed):
        asyncio.run(access._fetch(None, url))  # type: ignore[arg-type]
    assert person.asked == []


@pytest.mark.parametrize("form", [KEY, KEY.replace("-", "%2D"), "".join(f"%{ord(c):02x}" for c in KEY)])
def test_a_key_never_leaves(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    person = Person(YES)
    with site(monkeypatch, {"/": sends(b"x")}) as place:
        (result,) = fetched(place.at("tea.example", f"/?q={form}"), mode="ask", person=person)
        assert "contains a key" in result
        assert (place.requests, person.asked) == ([], [])
    monkeypatch.setattr(
        "pydantic_ai.common_tools.duckduckgo.duckduckgo_search_tool", lambda **_: pytest.fail("it was sent")
    )
    (result,) = used(
        WebAccess("auto", environment={"OPENAI_API_KEY": KEY}), ("web_search", {"query": f"what is {KEY}"})
    )
    assert "contains a key" in result


def test_each_domain_is_asked_about_once_or_for_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    person = Person(YES, ALWAYS, ApprovalAnswer(allow=False, word="not this one"))
    with site(monkeypatch, {"/": sends(b"leaf", "text/plain"), "/b": sends(b"b", "text/plain")}) as place:
        tea, other = place.at("tea.example"), place.at("Other.example")
        results = fetched(tea, tea, place.at("TEA.example.", "/b"), other, mode="ask", person=person)
    assert [request.target for request in person.asked] == [tea, tea, other]
    assert person.asked[0].wish == "read a web page of tea.example"
    assert [result.rpartition("\n")[2] for result in results[:3]] == ["leaf", "leaf", "b"]
    assert "The reason: not this one" in results[3]
    assert len(place.requests) == 3


def test_a_domain_is_allowed_for_good_in_the_profile(
    deepctl: InProcess, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deepctl("profiles", "create", "alice").ok()
    deepctl("config", "set", "web_domains", "known.example", "-u", "alice").ok()
    person = Person(ApprovalAnswer(allow=True, choice="domain tea.example"))
    with site(monkeypatch, {"/": sends(b"leaf", "text/plain")}) as place:
        access = WebAccess("ask", person.ask, "ask", {}, ["known.example"])
        calls = [("web_fetch", {"url": place.at(domain)}) for domain in ("KNOWN.example", "tea.example", "tea.example")]
        assert [result[-4:] for result in used(access, *calls)] == ["leaf"] * 3
    (request,) = person.asked
    assert [choice.name for choice in request.choices] == ["always", "domain tea.example"]
    assert "can be sent there" in request.choices[1].rule
    rules = chat_setup.allowed_for_good(Root(str(home)), "alice")
    rules.give("domain tea.example")
    rules.give("kind git log")
    assert deepctl("config", "get", "web_domains", "-u", "alice").stdout.strip() == "known.example,tea.example"
    assert deepctl("config", "get", "allowed_commands", "-u", "alice").stdout.strip() == "git log"
    assert "config unset web_domains --user alice" in rules.hint("domain tea.example")
    # Without a place for it, the choice is not there.
    assert [choice.name for choice in _asked_in_an_application(monkeypatch)] == ["always"]


def _asked_in_an_application(monkeypatch: pytest.MonkeyPatch) -> tuple[Choice, ...]:
    person = Person()
    with site(monkeypatch, {"/": sends(b"leaf", "text/plain")}) as place:
        fetched(place.at("tea.example"), mode="ask", person=person)
    return person.asked[0].choices


def test_a_redirect_to_another_domain_is_asked_about_too(monkeypatch: pytest.MonkeyPatch) -> None:
    pages: dict[str, Page] = {"/": leads("/there"), "/b": sends(b"goal", "text/plain")}
    with site(monkeypatch, pages) as place:
        pages["/there"] = leads(place.at("other.example", "/b"))
        person = Person(YES, YES)
        (result,) = fetched(place.at("tea.example"), mode="ask", person=person)
        assert result.endswith("goal")
        assert [request.wish for request in person.asked] == [
            "read a web page of tea.example",
            "read a web page of other.example",
        ]
        before = len(place.requests)
        (result,) = fetched(place.at("tea.example"), mode="ask", person=Person(YES))
        assert "did not allow" in result
        assert "/b" not in [path for path, _ in place.requests[before:]]


@pytest.mark.parametrize(
    "target",
    [
        "http://10.0.0.1/",
        "http://[::1]/",
        "http://169.254.169.254/",
        "http://localhost.localdomain./",
        "file:///etc/passwd",
    ],
)
def test_a_redirect_to_an_address_that_is_not_public_is_refused(monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    with site(monkeypatch, {"/": leads(target)}) as place:
        (result,) = fetched(place.at("tea.example"))
    assert "root:" not in result
    assert "not public" in result or "not allowed" in result or "resolution failed" in result, result
    assert len(place.requests) == 1


@pytest.mark.parametrize("ip", ["127.0.0.2", "::1", "::ffff:10.0.0.1", "192.168.0.9", "169.254.169.254"])
def test_a_name_of_an_address_that_is_not_public_is_refused(monkeypatch: pytest.MonkeyPatch, ip: str) -> None:
    pages: dict[str, Page] = {}
    with site(monkeypatch, pages) as place:
        pages |= {"/": leads(place.at("inside.example", "/admin")), "/admin": sends(b"secret", "text/plain")}
        resolve = socket.getaddrinfo
        family = socket.AF_INET6 if ":" in ip else socket.AF_INET

        def resolved(host: Any, port: Any, *rest: Any, **options: Any) -> Any:
            if host == "inside.example":
                return [(family, socket.SOCK_STREAM, 6, "", (ip, port))]
            return resolve(host, port, *rest, **options)

        monkeypatch.setattr(socket, "getaddrinfo", resolved)
        for result in fetched(place.at("inside.example", "/admin"), place.at("tea.example")):
            assert "not public" in result, result
    assert [path for path, _ in place.requests] == ["/"]


def test_redirects_end(monkeypatch: pytest.MonkeyPatch) -> None:
    with site(monkeypatch, {"/": leads("/")}) as place:
        (result,) = fetched(place.at("tea.example"))
    assert "Too many redirects" in result
    assert len(place.requests) < 15


def test_another_answer_of_the_name_server_has_no_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    """The address that was checked is the one of the connection; the second answer is never asked for."""
    answers: list[str] = []
    with site(monkeypatch, {"/": sends(b"first", "text/plain")}) as place:
        resolve = socket.getaddrinfo

        def changing(host: Any, port: Any, *rest: Any, **options: Any) -> Any:
            if host == "rebinding.example":
                answers.append(host)
                if len(answers) > 1:
                    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", 0))]
            return resolve(host, port, *rest, **options)

        monkeypatch.setattr(socket, "getaddrinfo", changing)
        (result,) = fetched(place.at("rebinding.example"))
    assert result.endswith("first")
    assert answers == ["rebinding.example"]


def test_one_private_address_among_several_is_enough_to_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    both = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, 0)) for ip in ("93.184.215.14", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
    assert "not public" in fetched("http://tea.example/")[0]


def test_a_huge_page_a_bomb_and_a_slow_page_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "MOST_BYTES", 200_000)
    monkeypatch.setattr(web, "SECONDS", 1.0)

    def slow(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/plain")
        handler.end_headers()
        for _ in range(200):
            handler.wfile.write(b"a")
            time.sleep(0.05)

    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/plain")
        handler.end_headers()
        while True:
            handler.wfile.write(b"a" * 65536)

    bomb = gzip.compress(b"\0" * 50_000_000)
    pages = {
        "/large": sends(b"a" * 300_000, "text/plain"),
        "/endless": endless,
        "/bomb": sends(bomb, "text/plain", Content_Encoding="gzip"),
        "/brotli": sends(b"x", "text/plain", Content_Encoding="br"),
        "/slow": slow,
    }
    with site(monkeypatch, pages) as place:
        began = time.monotonic()
        results = fetched(*(place.at("tea.example", path) for path in pages))
        assert time.monotonic() - began < 15
    assert all("maximum size" in result for result in results[:3]), results
    assert "content-encoding" in results[3]
    assert "was not complete after 1 s" in results[4]


@pytest.mark.parametrize(
    ("body", "kind", "expected"),
    [
        ("Grün".encode("latin-1"), "text/plain; charset=iso-8859-1", "Grün"),
        (b"Gr\xfcn", "text/plain; charset=utf-8", "Gr\N{REPLACEMENT CHARACTER}n"),
        (b"abc", "text/plain; charset=rot_13", "Failed to decode"),
        (b"abc", "text/plain; charset=nonsense", "abc"),
        (b"\x1b[2Jabc", "text/plain", "\x1b[2Jabc"),
        (b'{"a": [1]}', "application/json", '"a": ['),
        (b"<p>" * 3000, "text/html", ""),
        (b"MZ\0\0", "application/x-msdownload", "neither text nor a picture"),
    ],
)
def test_other_contents(monkeypatch: pytest.MonkeyPatch, body: bytes, kind: str, expected: str) -> None:
    with site(monkeypatch, {"/": sends(body, kind)}) as place:
        (result,) = fetched(place.at("tea.example"))
    assert expected in result


def test_a_picture_is_a_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    access = WebAccess("auto", environment={})
    with site(monkeypatch, {"/": sends(b"\x89PNG\r\n\x1a\n", "image/png")}) as place:
        page = asyncio.run(access._fetch(None, place.at("tea.example")))  # type: ignore[arg-type]
    assert isinstance(page, BinaryContent)
    assert page.is_image


def test_a_failed_page_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    with site(monkeypatch, {"/": sends(b"no", status=404)}) as place:
        (result,) = fetched(place.at("tea.example"))
    assert "404" in result


class _Search:
    def __init__(self, results: list[dict[str, str]]) -> None:
        self.queries: list[str] = []
        self._results = results

    async def function(self, query: str) -> list[dict[str, str]]:
        self.queries.append(query)
        return self._results


def test_each_search_is_asked_about_with_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    search = _Search([{"title": "Tea\n", "href": "https://tea.example/", "body": "A \x1b leaf"}])
    monkeypatch.setattr("pydantic_ai.common_tools.duckduckgo.duckduckgo_search_tool", lambda **_: search)
    person = Person(YES, ALWAYS)
    access = WebAccess("ask", person.ask, environment={})
    calls = [("web_search", {"query": f"green  tea {number}"}) for number in range(3)]
    results = used(access, *calls)
    assert [request.target for request in person.asked] == ["green tea 0", "green tea 1"]
    assert search.queries == ["green tea 0", "green tea 1", "green tea 2"]
    assert "1. Tea\\n\n   https://tea.example/\n   A \\x1b leaf" in results[0]


def test_the_search_of_the_provider_is_used_only_without_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    from pydantic_ai.models.openai import OpenAIResponsesModel
    from pydantic_ai.providers.openai import OpenAIProvider

    public = OpenAIResponsesModel("gpt-5", provider=OpenAIProvider(api_key="sk-nothing"))
    own = OpenAIResponsesModel("gpt-5", provider=OpenAIProvider(base_url="http://models.test/v1", api_key="sk-nothing"))
    assert WebSearchTool in public.profile["supported_native_tools"]
    assert WebAccess("auto", environment={})._searches_itself(public)
    assert not WebAccess("ask", environment={})._searches_itself(public)
    assert not WebAccess("auto", environment={})._searches_itself(own)


@pytest.mark.parametrize(
    ("mode", "approve", "has_person", "offered"),
    [
        ("off", "auto", True, False),
        ("ask", "ask", True, True),
        ("ask", "ask", False, False),
        ("ask", "never", True, False),
        ("ask", "auto", False, True),
        ("auto", "never", False, True),
    ],
)
def test_the_tools_are_offered_if_they_can_be_used(
    mode: Any, approve: Approve, has_person: bool, offered: bool
) -> None:
    ask = Person().ask if has_person else None
    capabilities = AgentExtensions(web=mode).capabilities(approve=approve, ask=ask, answerer=None, environment={})
    assert bool(capabilities) is offered


def test_without_the_packages_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "markdownify", None)
    with pytest.raises(UsageError, match="packages that are not installed"):
        WebAccess()


def test_no_network_switches_the_web_off_and_an_imported_setting_waits(
    deepctl: InProcess, home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-nothing")
    deepctl("profiles", "create", "alice").ok()
    deepctl("config", "set", "web", "auto", "-u", "alice").ok()
    with provider(Text(["Hello."]), repeat_last=True) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
        chat = ("chat", "-u", "alice", "--model", "openai-chat:gpt-4o", "hello")
        deepctl(*chat).ok()
        deepctl(*chat, "--no-network").ok()
    offered = [{tool["function"]["name"] for tool in request["tools"]} for request in server.requests]
    assert {"web_fetch", "web_search"} <= offered[0]
    assert not {"web_fetch", "web_search"} & offered[1]
    deepctl("profiles", "export", str(tmp_path / "alice.tar.gz"), "-u", "alice").ok()
    deepctl("profiles", "import", str(tmp_path / "alice.tar.gz"), "--as", "bob").ok()
    assert "auto" not in deepctl("config", "get", "web", "-u", "bob").stdout
