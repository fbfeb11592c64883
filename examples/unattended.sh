#!/usr/bin/env bash
# A nightly job: an agent works, a check decides which results are kept, and the profile is exported and wiped.
# It works with the offline model. Set DEEPCTL_MODEL for another model.
#
#     examples/unattended.sh ARCHIVE     exports the profile to ARCHIVE at the end
set -euo pipefail

archive=${1:?usage: unattended.sh ARCHIVE}
export DEEPCTL_USER=nightly

if [ -e "$archive" ] || [ -e "$archive.md" ]; then
    echo "$archive is there already" >&2
    exit 1
fi
# Exit code 3 is "no such profile", the expected result here.
if deepctl profiles path >/dev/null 2>&1; then
    echo "the profile $DEEPCTL_USER exists already; it is not this script's to wipe" >&2
    exit 1
fi
deepctl profiles create "$DEEPCTL_USER" >/dev/null
trap 'echo "failed; the profile $DEEPCTL_USER is kept: deepctl sessions show --user $DEEPCTL_USER" >&2' ERR

field() { # NAME, of the JSON document on stdin
    python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"
}

workspace=$(deepctl profiles path)/workspace
printf 'host = "localhost"\nport = 8080\n' >"$workspace/app.toml"
deepctl memory add "app.toml must stay valid TOML." >/dev/null

# A label is easier to remember than an id, and labelled checkpoints are never pruned.
deepctl checkpoints save before-work >/dev/null

check() { python3 -c 'import sys, tomllib; tomllib.load(open(sys.argv[1], "rb"))' "$workspace/app.toml" 2>/dev/null; }

# The first task passes the check, the second does not.
for task in 'write app.toml: port = 9090' 'write app.toml: port = = oops'; do
    # Without a terminal, deepctl reads stdin as part of the prompt, so the loop passes an empty one.
    deepctl chat --timeout 600 "$task" </dev/null >/dev/null
    if check; then
        echo "kept:   $task"
    else
        deepctl checkpoints rewind --json | field turns_removed | sed 's/^/turns taken back: /'
        check
        echo "undone: $task"
    fi
done

deepctl checkpoints diff before-work --stat
deepctl sessions export --format markdown --redact >"$archive.md"
deepctl profiles export "$archive"
echo "exported $(deepctl sessions list --json | python3 -c 'import json, sys; print(len(json.load(sys.stdin)["sessions"]))') session(s)"
deepctl wipe --yes >/dev/null
