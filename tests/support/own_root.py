"""A command in a mount namespace of its own, with further directories at the top of the file system.

The root of the machine stays unchanged. Needs root and `unshare`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

_SCRIPT = """
set -e
root=$1
shift
mount -t tmpfs -o mode=755 tmpfs "$root"
for entry in /*; do
    name=${entry#/}
    if [ -L "$entry" ]; then
        cp -P "$entry" "$root/$name"
    elif [ -d "$entry" ]; then
        mkdir "$root/$name"
        mount --rbind "$entry" "$root/$name"
    fi
done
while [ "$1" != -- ]; do
    if mountpoint -q "$root/$1"; then
        umount -l "$root/$1"
        rmdir "$root/$1"
    fi
    if [ -n "$2" ]; then
        ln -s "$2" "$root/$1"
    else
        mkdir "$root/$1"
    fi
    shift 2
done
shift
here=$PWD
cd "$root"
mkdir .old
pivot_root . .old
cd "$here"
umount -l /.old
rmdir /.old
exec "$@"
"""


def command(root: Path, places: Mapping[str, Path | None], words: Sequence[str]) -> list[str]:
    """The words that run a command in such a namespace.

    `root` is an empty directory for the new root. `places` are the names of the further directories: empty and in
    memory, or links to directories of the machine.
    """
    names = [word for name, target in places.items() for word in (name, str(target) if target is not None else "")]
    return ["unshare", "--mount", "sh", "-c", _SCRIPT, "sh", str(root), *names, "--", *words]
