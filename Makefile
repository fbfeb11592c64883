# What a person types; CI types the same. Needs CPython 3.11 or later, make and a package index.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TESTS ?= tests
# Most tests wait more than they work, so there may be more of them at once than cores.
WORKERS ?= 4
DEV := $(VENV)/.ready-dev
MODELS := $(VENV)/.ready-models
PROJECTS := $(VENV)/.ready-sdists
MCP_SERVERS := $(VENV)/.ready-mcp-servers
SKILLS := $(VENV)/.ready-skills
SOAK := tests/agent/test_library_options.py tests/test_storage.py tests/cli/test_done_but.py tests/agent/test_interruption.py tests/agent/test_kill.py tests/agent/test_subagent_ends.py tests/agent/test_keys.py tests/agent/test_usage_soak.py tests/test_markdown.py tests/agent/test_git_directories.py \
  tests/test_fuzz_environment.py tests/attacks/test_races.py tests/attacks/test_planted.py \
  tests/cli/test_wipe.py::test_ctrl_c_around_the_line_that_takes_a_profile_away_says_what_becomes_of_it \
  tests/cli/test_repl_ends.py::test_ctrl_c_at_random_moments_in_a_large_workspace_stops_no_more_than_the_turn \
  $(addprefix tests/store/test_,crash.py index_db_faults.py damage.py stories.py author_stories.py attribution_model.py rewind_refusals.py session_delete.py stored_text.py repair.py) \
  tests/cli/test_roles.py $(addprefix tests/domain/test_,profile_copy.py memory_changes.py purge.py wipe.py command_rules.py)

SOAK_PROJECTS := tests/projects tests/store/test_project_crash.py tests/files/test_gitignore.py tests/store/test_coverage.py

# Every command once (test_schemas), and the parts that everything else stands on.
QUICK := tests/test_schemas.py tests/test_start.py tests/test_locks.py tests/test_layout_names.py tests/test_unicode.py \
  tests/files tests/domain/test_permissions.py tests/agent/test_agent.py tests/cli/test_interactive.py tests/cli/test_order.py \
  $(addprefix tests/store/test_,ledger.py object_store.py restore.py rewind_plan.py session_log.py trees.py)
COVERED := deepctl/store/*,deepctl/domain/*,deepctl/files/*

.PHONY: help demo test test-quick models projects soak soak-library soak-mcp soak-models soak-projects soak-skills coverage lint bench completions pictures clean

help:
	@echo "make demo    the main features with the offline model, in a throw-away root, under a minute"
	@echo "make test    all tests, after saying what this machine lacks for them and how long they take"
	@echo "make test-quick   every command once and the parts below them, in less than two minutes"
	@echo "make models   install llama.cpp and download chat templates of open models (110 MB), for the tests in tests/models"
	@echo "make projects   download the source distributions of three packages (50 MB), for the tests in tests/projects"
	@echo "make soak-models   conversations with llama.cpp and every chat template"
	@echo "make coverage   branch coverage of store, domain and files by all tests (takes three times as long)"
	@echo "make soak    the crash, damage and story tests in full: every call, ten times the examples"
	@echo "make soak-library   50 users of one web application with 20 turns each; throughput and memory against pydantic-deep"
	@echo "make soak-mcp   six published MCP servers, and a login to one of FastMCP; needs npm; installs 150 MB"
	@echo "make soak-projects   a rewind in a project with a fault at every call to the file system; its rules against git"
	@echo "make soak-skills   skills of two published packages (10 MB): listed, loaded, run, exported and imported"
	@echo "make lint    ruff, mypy and the import rules"
	@echo "make bench   speed, as ratios measured in one run, and tokens of the first request"
	@echo "make completions   the scripts in completions/, anew from the commands"
	@echo "make pictures   the pictures in docs/pictures/, anew from real runs"
	@echo "make clean   remove what the others made"

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit("deepctl needs CPython 3.11 or later; set PYTHON=…" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(READY): pyproject.toml constraints.txt | $(BIN)/pip
	$(BIN)/pip uninstall -qq --yes deepctl  # its name before 0.2
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(DEV): pyproject.toml constraints.txt | $(BIN)/pip
	$(BIN)/pip uninstall -qq --yes deepctl
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@ $(READY)

# The source distribution is the place of the templates. It is not built; pip reads its version only.
$(MODELS): pyproject.toml constraints.txt | $(DEV)
	$(BIN)/pip install --quiet --constraint constraints.txt xllamacpp
	rm -rf $(VENV)/llama-cpp-python
	$(BIN)/pip download --quiet --no-deps --no-binary llama-cpp-python --constraint constraints.txt \
	  --dest $(VENV)/llama-cpp-python llama-cpp-python
	$(BIN)/python -m tests.models.templates $(VENV)/llama-cpp-python/*.tar.gz
	rm -r $(VENV)/llama-cpp-python
	@touch $@

# The source distributions are the projects of tests; pydantic-deep's have its own tests, and the guide that deepctl
# follows. They are not built; pip reads their versions only.
$(PROJECTS): pyproject.toml constraints.txt | $(DEV)
	rm -rf $(VENV)/sdists
	$(BIN)/pip download --quiet --no-deps --no-binary :all: --constraint constraints.txt --dest $(VENV)/sdists click MarkupSafe
	$(BIN)/pip download --quiet --no-deps --no-binary :all: --dest $(VENV)/sdists pydantic-deep==0.3.32
	$(BIN)/pip download --quiet --no-deps --no-binary :all: --dest $(VENV)/sdists pydantic-deep==0.3.50
	@touch $@

# The versions that docs/mcp.md names, and the server half of FastMCP, whose logins are tested. It needs a later certifi
# than constraints.txt has.
$(MCP_SERVERS): Makefile pyproject.toml | $(DEV)
	rm -rf $(VENV)/mcp-servers
	$(BIN)/pip install --quiet --target $(VENV)/mcp-servers/python 'fastmcp-slim[server]==4.2.1'
	npm install --silent --no-audit --no-fund --no-save --prefix $(VENV)/mcp-servers \
	  $(addprefix @modelcontextprotocol/server-,everything@2026.8.31 filesystem@2026.8.31 memory@2026.8.31)
	@touch $@

# The packages have skills of others, which tests read. They are not installed.
$(SKILLS): pyproject.toml constraints.txt | $(DEV)
	rm -rf $(VENV)/skills
	$(BIN)/pip download --quiet --no-deps --only-binary :all: --dest $(VENV)/skills claude-data-skills==3.5.3 bitranox-skills==8.24.0
	@touch $@

demo: $(READY)
	@PATH="$(abspath $(BIN)):$$PATH" sh examples/demo.sh

test: $(DEV)
	@$(BIN)/python -m tests.support.preflight
	$(BIN)/pytest -n $(WORKERS) --dist worksteal $(TESTS)

test-quick: $(DEV)
	$(BIN)/pytest -n $(WORKERS) --dist worksteal $(QUICK)

models: $(MODELS)

projects: $(PROJECTS)

coverage: $(DEV)
	$(BIN)/pip install --quiet --constraint constraints.txt coverage
	rm -f .coverage .coverage.*
	-COVERAGE_FILE=$(abspath .coverage) $(BIN)/coverage run --rcfile .ci/coverage.ini -m pytest -n $(WORKERS) --dist worksteal $(TESTS)
	$(BIN)/coverage combine --quiet --rcfile .ci/coverage.ini
	$(BIN)/coverage report --rcfile .ci/coverage.ini --include '$(COVERED)' --skip-covered --sort cover
	@for package in store domain files; do printf '%s: ' $$package; \
	  $(BIN)/coverage report --rcfile .ci/coverage.ini --format=total --precision=2 --include "deepctl/$$package/*"; done

soak: $(DEV)
	DEEPCTL_SOAK=1 $(BIN)/pytest $(SOAK)

soak-library: $(DEV)
	DEEPCTL_SOAK=1 $(BIN)/pytest -s --timeout 3600 tests/test_web_soak.py
	$(BIN)/python -m benchmarks.applications

soak-projects: $(PROJECTS)
	DEEPCTL_SOAK=1 $(BIN)/pytest --timeout 3600 $(SOAK_PROJECTS)

soak-mcp: $(MCP_SERVERS)
	DEEPCTL_SOAK=1 $(BIN)/pytest -s tests/agent/test_real_mcp_servers.py tests/agent/published_mcp_login.py

soak-models: $(MODELS)
	DEEPCTL_SOAK=1 $(BIN)/pytest tests/models

soak-skills: $(SKILLS)
	$(BIN)/pytest -s tests/agent/published_skills.py

lint: $(DEV)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: $(DEV)
	$(BIN)/python -m benchmarks

completions: $(DEV)
	$(BIN)/python -m deepctl.cli.completion_scripts completions

pictures: $(DEV)
	$(BIN)/python -m docs.pictures.make

clean:
	rm -rf $(VENV) .venv-guide .venv-peer build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage .coverage.*
	find . -name __pycache__ -prune -exec rm -rf {} +
