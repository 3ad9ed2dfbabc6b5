#!/usr/bin/env bash
# Process 1 of the cluster's namespace: start the daemons, then wait until the standard input is closed.
# usage: daemons.sh FOLDER NODE…
set -eu
[ $$ = 1 ] || { echo "this belongs into a namespace of its own: see mini_slurm.py" >&2; exit 1; }
folder=$1
shift

mount --make-rprivate /
mount --bind "$folder/hosts" /etc/hosts # the nodes' names are known in here only

munge=$folder/munge
munged --foreground --force --socket "$munge/socket" --key-file "$munge/key" --pid-file "$munge/pid" \
    --seed-file "$munge/seed" --log-file "$munge/log" </dev/null &
while [ ! -S "$munge/socket" ]; do sleep 0.05; done

slurmctld -D -f "$SLURM_CONF" </dev/null &
for node in "$@"; do
    mkdir -p "$folder/spool/$node"
    unshare --uts bash -c 'hostname "$0" && exec slurmd -D -N "$0" -f "$SLURM_CONF"' "$node" </dev/null &
done

read -r _ || true
kill -KILL $(jobs -p) 2>/dev/null || true # what they started ends with this shell
rm -rf "$folder"
