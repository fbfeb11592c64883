#!/bin/sh
# The main job of deepctl with the offline model, in a throw-away root: two profiles, a rewind, an undo, a wipe.
set -eu

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT INT TERM
export DEEPCTL_HOME="$root/state" DEEPCTL_CONFIG="$root/config.toml"
unset DEEPCTL_USER DEEPCTL_MODEL 2>/dev/null || true

if [ -t 1 ]; then bold=$(printf '\033[1m') plain=$(printf '\033[0m'); else bold='' plain=''; fi

step() { # HEADING: a part of the demo, and what to look at
    printf '\n%s== %s%s\n' "$bold" "$1" "$plain"
    printf '   %s\n' "$2"
}

typed() { # ARGUMENTS: show a command as a person types it
    printf '\n%s$ deepctl' "$bold"
    for argument; do
        case "$argument" in *[\ \~]*) printf " '%s'" "$argument" ;; *) printf ' %s' "$argument" ;; esac
    done
    printf '%s\n' "$plain"
}

run() { # ARGUMENTS: show and run a command; `seen` keeps its output
    typed "$@"
    deepctl "$@" >"$root/output" 2>"$root/messages" </dev/null || { cat "$root/output" "$root/messages" >&2; exit 1; }
    sed 's/^/  /' "$root/output"
    seen=$(cat "$root/output")
}

list() { # ARGUMENTS: show and run a command whose output is a table at a terminal
    typed "$@"
    deepctl "$@" </dev/null
}

check() { # PATTERN: ends the demo if the last output does not have it
    case "$seen" in *$1*) ;; *) echo "demo: expected '$1'" >&2; exit 1 ;; esac
}

echo "This demo needs no network and no API key. It takes less than a minute, and removes its files at the end."
echo "The model is deepctl's offline model. It is not an LLM: it follows commands such as 'remember TEXT'."

step "1. A profile for alice" "One prompt: the agent notes a fact and writes a file."
run chat --user alice "remember I prefer window seats
write trip.txt: Lisbon in May"
run memory show --user alice
check "window seats"

step "2. A turn goes wrong" "The agent overwrites the file and notes something wrong."
run chat --user alice "write trip.txt: Porto in June
remember I prefer the aisle"
list checkpoints list --user alice

step "3. Rewind" "The preview changes nothing. The rewind restores the file, the memory and the conversation together."
run checkpoints rewind "~1" --user alice --dry-run
run checkpoints rewind "~1" --user alice
check "trip.txt"
run memory show --user alice
case "$seen" in *aisle*) echo "demo: the rewind left the note" >&2; exit 1 ;; esac

step "4. Undo" "The rewind itself can be undone, now or at any later time."
run checkpoints undo --user alice
run memory show --user alice
check "aisle"

step "5. A profile for bob" "Another profile, the same machine: bob's agent sees nothing of alice's."
run chat --user bob "recall window
read ../../alice/workspace/trip.txt"
check "nothing about that"
check "outside the workspace"

step "6. Wipe" "deepctl lists what it deletes. Afterwards only bob is left."
run wipe --user alice --yes
list profiles list
case "$(deepctl profiles list)" in *alice*) echo "demo: alice is still there" >&2; exit 1 ;; esac

printf '\n%sThe demo went well.%s Next: .venv/bin/deepctl chat --user YOUR-NAME\n' "$bold" "$plain"
