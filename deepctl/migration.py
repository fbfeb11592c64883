"""Names and arguments of pydantic-deep that deepctl does not have, and what to use instead.

The tables in docs/library.md have the same rows, and a test compares them. It also compares the names with those of
pydantic-deep 0.3.32 and 0.3.50. The module is only loaded for an error.
"""

from __future__ import annotations

_NONE = "no counterpart"

ARGUMENT_ROWS: tuple[tuple[str, str], ...] = (
    ("include_plan include_todo", "`include_plans`, for both"),
    ("toolsets extra_toolsets", "`capabilities=[Toolset(t)]`, with `Toolset` of `pydantic_ai.capabilities`"),
    (
        "middleware hooks history_processors",
        "`capabilities=`, with capabilities of pydantic-ai such as `Hooks` and `ProcessHistory`",
    ),
    (
        "thinking web_search web_fetch mcp_servers instrument",
        "`capabilities=`, with `Thinking`, `WebSearch`, `WebFetch`, `MCP` and `Instrumentation` of pydantic-ai",
    ),
    (
        "interrupt_on",
        "`permissions=` with rules `ask`, and `ask=` with a function that shows the request to a person",
    ),
    (
        "context_files context_discovery memory_dir memory_namespace plans_dir",
        "`AGENTS.md` and `DEEP.md` of the workspace, and `.deep/`, which are fixed",
    ),
    ("backend workspace", "`DeepAgentDeps(backend=…)` of each run"),
    (
        "model_settings retries",
        "arguments of the run, `agent.run(…, model_settings=…)`; a failed call of a tool never ends a run",
    ),
    ("fallback_model", "`create_deep_agent(FallbackModel(…, …))`, with a model of pydantic-ai"),
    ("base_prompt output_style styles_dir", "`instructions=`, which are added to those of deepctl"),
    ("eviction_token_limit", "`context_window=`: no result of a tool takes more than about a quarter of it"),
    ("include_filesystem", "`disabled_tools=` with the names of tools"),
    ("name", "`agent_name=`"),
    (
        "context_manager context_manager_max_tokens summarization_model cost_tracking cost_budget_usd",
        "settings of a profile such as `compact_at`, `context_window`, `max_cost` and `max_cost_day`, with "
        "`open_profile`",
    ),
)
"""Arguments of `create_deep_agent`, and their counterpart."""

_OTHER_ARGUMENTS = """
edit_format forking history_messages_path include_builtin_subagents include_current_todos include_history_archive
include_improve include_liteparse include_monitoring include_skills include_subagents include_teams max_binary_content
max_nesting_depth message_queue on_after_compress on_before_compress on_context_update on_cost_update on_eviction
patch_tool_calls periodic_reminder skill_directories skills stuck_loop_detection subagent_ask_timeout_seconds
subagent_extra_toolsets subagent_registry subagent_usage_limits subagents tool_search
"""
"""Arguments without a counterpart."""

NAME_ROWS: tuple[tuple[str, str], ...] = (
    ("create_default_deps", "`DeepAgentDeps(backend=backend)`"),
    ("run_with_files", "`deepctl.run`, after the files are written to the backend"),
    ("LocalWorkspace ConfinedWorkspace", "`LocalBackend`"),
    ("StateWorkspace CompositeBackend", "`StateBackend`"),
    ("DockerWorkspace BaseSandbox", "`DockerSandbox`"),
    ("BackendProtocol SandboxProtocol ConsoleDeps", "`WorkspaceBackend` of `pydantic_ai.workspaces`"),
    (
        "create_console_toolset get_console_system_prompt TodoToolset create_plan_toolset PlanCapability "
        "AgentMemoryToolset MemoryCapability build_memory_capability ContextToolset ContextFilesCapability "
        "EvictionCapability EvictionProcessor create_eviction_processor CheckpointMiddleware CheckpointToolset",
        "a part of every agent of `create_deep_agent`; `include_memory=`, `include_plans=` and others leave it out",
    ),
    (
        "HooksCapability Hook HookEvent HookInput HookResult EXIT_ALLOW EXIT_DENY",
        "`Hooks` of `pydantic_ai.capabilities`, in `capabilities=`",
    ),
    (
        "default_security_hook DEFAULT_BLOCKED_COMMANDS DEFAULT_BLOCKED_READ_PATHS DEFAULT_BLOCKED_WRITE_PATHS "
        "DEFAULT_SECRET_PATTERNS InputBlocked ToolBlocked OutputBlocked PendingApprovalRequest",
        "`permissions=` and `ask=` of `create_deep_agent`",
    ),
    (
        "ContextManagerCapability SummarizationCapability SummarizationProcessor create_summarization_processor "
        "SlidingWindowCapability SlidingWindowProcessor create_sliding_window_processor LimitWarnerCapability",
        "compaction by `open_profile`, with the setting `compact_at`; or `ProcessHistory` of pydantic-ai",
    ),
    (
        "CostTracking CostInfo BudgetExceededError DEFAULT_USAGE_LIMITS",
        "`usage_limits=` of a run; or `open_profile`, with the settings `max_tokens` and `max_cost`",
    ),
    (
        "MCPServerConfig MCPAuth MCPRegistry MCPProbeResult MCPConfigError MCPNotInstalledError build_mcp_server "
        "create_mcp_resources_toolset probe_mcp_server auth_satisfied builtin_mcp_servers BUILTIN_MCP_NAMES "
        "parse_mcp_servers",
        "`MCP` of `pydantic_ai.capabilities`, in `capabilities=`; or MCP servers of a profile, with `open_profile`",
    ),
    (
        "BASE_PROMPT OutputStyle BUILTIN_STYLES resolve_style load_style_from_file discover_styles format_style_prompt",
        "`instructions=` of `create_deep_agent`",
    ),
    ("ResponseFormat", "`output_type=` of `create_deep_agent`"),
)
"""Names of pydantic-deep, and their counterpart in deepctl."""

_OTHER_NAMES = """
AgentTeam BINARY_PRUNED_TEMPLATE BUILTIN_RUNTIMES BackendSkillResource BackendSkillScript BackendSkillScriptExecutor
BackendSkillsDirectory BranchChange BranchCost BranchDiffAgreement BranchDiffOperation BranchDiffReport BranchIsolation
BranchOutcome BranchOverlay BranchSpec BranchState BranchStatus BrowseResult BrowserCapability BrowserToolset
CANCELLED_MESSAGE CallableSkillScriptExecutor CompiledSubAgent ConfidenceSignals ContextFile DEFAULT_CONTEXT_FILENAMES
DEFAULT_EVICTION_PATH DEFAULT_GOAL_MODEL DEFAULT_MAX_BINARY_CONTENT DEFAULT_MAX_CONTEXT_CHARS DEFAULT_MAX_MEMORY_LINES
DEFAULT_MEMORY_DIR DEFAULT_MEMORY_FILENAME DEFAULT_TOKEN_LIMIT DaytonaWorkspace DeepAgent DeepAgentSpec DiffSummary
EVICTION_MESSAGE_TEMPLATE EditResult ExecuteResponse FileBasedSkillResource FileBasedSkillScript FileChange FileData
FileInfo FlushError FlushReport ForkBranchLimitError ForkCoordinator ForkCostSummary ForkDepthLimitError ForkHandle
ForkStateStore GoalEvaluation GoalEvaluator GoalState GrepMatch InMemoryForkStateStore JUDGE_SYSTEM_PROMPT JudgeAgent
JudgeVerdict KubernetesWorkspace LLMReminderGenerator LiteparseToolset LiveForkCapability LocalBranchOverlay
LocalSkillScriptExecutor MemoryAccessError MemoryFile MemoryNamespace MergeResult MergeStrategy MonitorEvent
MonitorInfo MonitorManager NUM_CHARS_PER_TOKEN PARSE_DOCUMENT_DESCRIPTION PatchToolCallsCapability PathDiff
PeriodicReminderCapability PeriodicReminderConfig PlanOption ReminderGenerator ResolveOutcome RuntimeConfig
SCREENSHOT_DOCUMENT_DESCRIPTION SUBAGENT_CONTEXT_ALLOWLIST SandboxdWorkspace SharedTodoItem SharedTodoList Skill
SkillException SkillNotFoundError SkillResource SkillResourceLoadError SkillResourceNotFoundError SkillScript
SkillScriptExecutionError SkillValidationError SkillWrapper SkillsCapability SkillsDirectory SkillsToolset
StuckLoopDetection StuckLoopError SubAgentConfig SubAgentToolset TeamCapability TeamMember TeamMemberHandle
TeamMemberSpec TeamMessage TeamMessageBus Todo UploadedFile WorkspaceSkillResource WorkspaceSkillScript
WorkspaceSkillsDirectory WriteResult branch_workspace build_diff_report build_goal_transcript clone_for_branch
compute_confidence count_retry_parts count_stuck_loop_hits create_content_preview create_fork_toolset
create_monitor_toolset create_team_toolset discover_context_files format_context_prompt format_goal_status
format_memory_prompt get_memory_path get_runtime goal_continue_directive load_context_files load_memory
make_config_for_mode parse_goal_command patch_tool_calls_processor
"""
"""Names of pydantic-deep without a counterpart."""


def _table(rows: tuple[tuple[str, str], ...]) -> dict[str, str]:
    return {name: text for names, text in rows for name in names.split()}


ARGUMENTS = _table((*ARGUMENT_ROWS, (_OTHER_ARGUMENTS, _NONE)))
NAMES = _table((*NAME_ROWS, (_OTHER_NAMES, _NONE)))


def about_name(name: str) -> str | None:
    """The message for a name that cannot be imported from `deepctl`; `None` if it is not one of pydantic-deep."""
    text = NAMES.get(name)
    return f"cannot import name {name!r} of pydantic-deep from 'deepctl'; in deepctl: {text}" if text else None


def about_argument(name: str) -> str:
    """The message for an argument that `create_deep_agent` does not have."""
    text = ARGUMENTS.get(name)
    about = f"in deepctl: {text}" if text is not None else "`help(deepctl.create_deep_agent)` lists its arguments"
    return f"create_deep_agent() got an unexpected keyword argument {name!r}; {about}"
