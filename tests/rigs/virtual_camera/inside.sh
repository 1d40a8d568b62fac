#!/bin/bash
# inside.sh DIR COMMAND...: run a command in the root, with the project at /edge; its mounts end with it. PROJECT names the
# project's directory; what is set in RIG_ENV (NAME=VALUE words) is set inside. --kill-child: a test that gives up leaves nothing.
set -eu
root=$1
shift
# shellcheck disable=SC2016  # expanded inside
exec unshare --mount --pid --fork --kill-child bash -c '
  root=$1; shift
  mount -t proc proc "$root/proc"
  mount --rbind /dev "$root/dev"
  mount -t tmpfs tmpfs "$root/tmp"
  if [ -n "${PROJECT:-}" ]; then mount --bind "$PROJECT" "$root/edge"; fi
  for shared in ${RIG_SHARED:-}; do mkdir -p "$root$shared"; mount --bind "$shared" "$root$shared"; done
  cd /
  exec chroot "$root" env -i -C "${RIG_CWD:-/}" HOME=/root PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 \
    DEBIAN_FRONTEND=noninteractive ${RIG_ENV:-} "$@"' _ "$root" "$@"
