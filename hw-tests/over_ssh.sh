#!/bin/sh
# over_ssh.sh HOST [options]: copy this checkout to a Raspberry Pi, run `./dev hw-test` there, and fetch the report.
set -eu
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || { echo "hw-test: --ssh needs a host, as in --ssh pi@camera.local" >&2; exit 2; }
host=$1
shift
there=edge-streamer-hw-test
report=hw-tests/hw-report.json

options=
while [ $# -gt 0 ]; do
  case $1 in
    --json=*) report=${1#--json=} ;;
    --json)
      [ $# -gt 1 ] || { echo "hw-test: --json needs a file" >&2; exit 2; }
      report=$2
      shift
      ;;
    *) options="$options '$(printf '%s' "$1" | sed "s/'/'\\\\''/g")'" ;;
  esac
  shift
done

# Delete the previous copy except its environment, which takes minutes to create.
tar -c --exclude='./.git' --exclude='./.venv*' --exclude='__pycache__' --exclude='./.*_cache' --exclude='./.hypothesis' \
  --exclude='./bench/results' --exclude='./hw-tests/hw-report*.json' . |
  ssh "$host" "mkdir -p $there && cd $there && find . -mindepth 1 -maxdepth 1 ! -name '.venv*' -exec rm -rf {} + && tar -x"

status=0
# -t: a Ctrl-C here also stops the remote command.
ssh -t "$host" "cd $there && ./dev hw-test$options" || status=$?
if ssh "$host" "cat $there/hw-tests/hw-report.json" >"$report.part"; then
  mv "$report.part" "$report"
  echo "hw-test: report of $host written to $report" >&2
else
  rm -f "$report.part"
  echo "hw-test: $host has no report" >&2
fi
exit "$status"
