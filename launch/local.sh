#!/usr/bin/env bash
# Runs N processes of one command on this machine, each with its share of the CPU cores: a rehearsal for many machines.
#
#   launch/local.sh 2 ddpm-jax train --config digits --workdir runs/digits
#
# The first process prints. Ctrl-C or SIGTERM sends SIGTERM to all: a training run saves and ends. A second one kills them.
# The exit code is the first that is not 0.
set -euo pipefail

if [[ $# -lt 2 || ! $1 =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: launch/local.sh N COMMAND ..." >&2
  exit 2
fi
processes=$1
shift

cores=$(nproc)
export JAX_NUM_CPU_DEVICES=${JAX_NUM_CPU_DEVICES:-$((cores > processes ? cores / processes : 1))}
export JAX_COORDINATOR_ADDRESS=${JAX_COORDINATOR_ADDRESS:-127.0.0.1:$((20000 + RANDOM % 10000))}
export JAX_NUM_PROCESSES=$processes

signal=TERM now=''
trap 'now=$signal signal=KILL heard=yes; kill -s $now $(jobs -p) 2>/dev/null || true' HUP INT TERM
started=()
for ((process = 0; process < processes; process++)); do
  [[ $signal == TERM ]] || break # asked to stop before all have started
  JAX_PROCESS_ID=$process "$@" &
  started+=($!)
done

code=0
for child in "${started[@]}"; do
  heard=yes
  while [[ $heard ]]; do # a signal ends the wait, perhaps not the child; bash keeps the code of one that has ended
    heard='' result=0
    wait "$child" || result=$?
  done
  if ((code == 0)); then code=$result; fi
done
exit "$code"
