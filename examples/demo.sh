#!/bin/sh
# A conversation with the offline model in a throw-away root: alice is remembered, bob sees nothing of hers.
set -eu

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT INT TERM
export DEEPCTL_HOME="$root/state" DEEPCTL_CONFIG="$root/config.toml"
unset DEEPCTL_USER DEEPCTL_MODEL 2>/dev/null || true

say() {
    printf '\n$ deepctl'
    for argument; do
        case "$argument" in *" "*) printf " '%s'" "$argument" ;; *) printf ' %s' "$argument" ;; esac
    done
    printf '\n'
    # The notice that this is the offline model would come with every command; once is enough.
    deepctl "$@" 2>"$root/notices" </dev/null || { cat "$root/notices" >&2; exit 1; }
}

echo "deepctl demo: no network, no key; everything goes to a directory that is removed afterwards."
say chat --user alice "remember I prefer window seats
write trip.txt: Lisbon in May
plan Trip to Lisbon: book the flight; find a room; pack"
cat "$root/notices"

echo
echo "A second process, the same alice:"
say chat --user alice "recall window"
answer=$(deepctl chat --user alice "recall window" 2>/dev/null </dev/null)
case "$answer" in *"window seats"*) ;; *) echo "alice was forgotten" >&2; exit 1 ;; esac
say memory show --user alice
say chat --user alice "read trip.txt
list plans"
say sessions list --user alice

echo
echo "A turn that went wrong, taken back and brought again, files and memory and conversation together:"
say chat --user alice "write trip.txt: Porto in June
remember I prefer the aisle"
say checkpoints diff "~1" --stat --user alice
say checkpoints rewind --user alice
say chat --user alice "read trip.txt"
case "$(deepctl memory show --user alice)" in *aisle*) echo "the rewind left the memory" >&2; exit 1 ;; esac
say checkpoints undo --user alice
case "$(deepctl memory show --user alice)" in *aisle*) ;; *) echo "the undo lost the memory" >&2; exit 1 ;; esac

echo
echo "Bob, on the same machine:"
say chat --user bob "recall window
read ../../alice/workspace/trip.txt"
answer=$(deepctl chat --user bob "recall window" 2>/dev/null </dev/null)
case "$answer" in *"window seats"*) echo "bob saw alice's memory" >&2; exit 1 ;; esac
say profiles list
echo
echo "The demo went well. Next: .venv/bin/deepctl chat --user YOU"
