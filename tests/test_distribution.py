"""The distribution is `deepctl-agents`; no hint installs the other product that is called `deepctl`."""

from __future__ import annotations

import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import deepctl as package
from deepctl import distribution
from tests.support.command import InProcess

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = sorted(set(PROJECT["optional-dependencies"]) - {"dev"})


def test_the_distribution_the_package_and_the_command_have_their_names_and_one_version(deepctl: InProcess) -> None:
    assert PROJECT["name"] == distribution.NAME == "deepctl-agents"
    assert PROJECT["scripts"] == {distribution.COMMAND: distribution.SCRIPT}
    assert PROJECT["version"] == package.__version__ == metadata.version(distribution.NAME)
    assert deepctl("--version").ok().stdout == f"deepctl {package.__version__} (deepctl-agents)\n"
    assert PROJECT["urls"]


@pytest.mark.parametrize("extra", EXTRAS)
def test_a_hint_for_an_extra_names_its_packages_and_this_interpreter(extra: str) -> None:
    command = distribution.to_install(extra)
    assert command.startswith(f"{sys.executable} -m pip install ")
    named = {re.split(r"[\[<>=]", one)[0] for one in distribution.requirements(extra)}
    assert named == {re.split(r"[\[<>=]", one)[0] for one in PROJECT["optional-dependencies"][extra]}
    assert all(name in command for name in named)
    assert "deepctl" not in command.replace(sys.executable, "")


def test_an_extra_of_pydantic_ai_is_installed_in_the_version_that_is_here() -> None:
    version = metadata.version("pydantic-ai-slim")
    assert distribution.to_install("voyageai").endswith(f" 'pydantic-ai-slim[voyageai]=={version}'")


def test_without_metadata_a_hint_installs_from_a_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distribution, "_required", list)
    assert distribution.to_install("mcp") == "pip install '.[mcp]', in a checkout of deepctl"


def test_pipx_and_uv_install_into_their_environments_by_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "deepctl-agents"))
    (tmp_path / "deepctl-agents").mkdir()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert distribution.to_install("docker").startswith(f"uv pip install --python {sys.executable} 'docker")
    assert distribution.to_uninstall("deepctl") == f"uv pip uninstall --python {sys.executable} deepctl"
    (tmp_path / "deepctl-agents" / "pipx_metadata.json").touch()
    assert distribution.to_install("docker").startswith("pipx inject deepctl-agents 'docker")
    assert distribution.to_uninstall("deepctl") == "pipx uninject deepctl-agents deepctl"


def test_no_text_of_ours_installs_the_other_product() -> None:
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("deepctl/**/*.py"), *ROOT.glob("examples/*")]
    assert len(pages) > 100
    wrong = re.compile(r"(?:pipx?|uvx?|tool) (?:install|run|inject)(?: -\S+)* ['\"]?deepctl(?!-agents)\b")
    assert [page.name for page in pages if page.is_file() and wrong.search(page.read_text())] == []


def test_no_code_asks_for_the_metadata_of_another_distribution_of_that_name() -> None:
    asks = re.compile(r"""(?:version|requires|distribution|metadata|files)\(\s*["']deepctl["']""")
    assert [str(path) for path in ROOT.glob("deepctl/**/*.py") if asks.search(path.read_text())] == []


def _installed(place: Path, name: str, version: str, script: str) -> None:
    directory = place / f"{name}-{version}.dist-info"
    directory.mkdir(parents=True)
    (directory / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (directory / "entry_points.txt").write_text(f"[console_scripts]\ndeepctl = {script}\n")


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("deepctl.__main__:run", "deepctl 0.1.0 is this program under its old name, and shares its files"),
        ("deepctl.main:main", "deepctl 0.1.0 is another product, and its command has the same name"),
    ],
)
def test_doctor_says_that_a_distribution_called_deepctl_must_go_first(
    deepctl: InProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str
) -> None:
    _installed(tmp_path / "site", "deepctl", "0.1.0", script)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    (check,) = _namesakes(deepctl)
    assert (check["status"], check["found"]) == ("problem", said)
    assert check["hint"] == (
        f"Uninstall it first: {sys.executable} -m pip uninstall deepctl, then install deepctl-agents again."
    )


def test_doctor_names_another_program_called_deepctl_on_the_path(
    deepctl: InProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in (
        ("ours", "#!/x\nfrom deepctl.__main__ import run\n"),
        ("theirs", "#!/x\nfrom deepctl.main import m\n"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "deepctl").write_text(text)
        (tmp_path / name / "deepctl").chmod(0o755)
    (tmp_path / "directory" / "deepctl").mkdir(parents=True)
    monkeypatch.setenv("PATH", f"{tmp_path / 'ours'}:{tmp_path / 'theirs'}:{tmp_path / 'directory'}:/nowhere")
    (check,) = _namesakes(deepctl)
    assert check["status"] == "warning"
    assert check["found"] == f"{tmp_path / 'theirs' / 'deepctl'} is another program called deepctl"


def _namesakes(deepctl: InProcess) -> list[dict[str, str]]:
    return [check for check in deepctl("doctor", "--json").json["checks"] if check["name"] == "namesakes"]


def test_doctor_says_nothing_of_names_where_there_is_nothing_to_say(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    assert _namesakes(deepctl) == []
