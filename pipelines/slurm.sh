#!/usr/bin/env bash
# A fedpgp command on one Ray cluster of all nodes of a SLURM job. Submit it from a folder that every node sees, with the
# environment active in which fedpgp is installed:
#
#   sbatch --nodes=2 --gpus-per-node=4 --time=8:00:00 pipelines/slurm.sh sweep demo storage.root=/shared/fedpgp
#
# Two minutes before its time limit, the job stops fedpgp and puts itself back into the queue; a preempted job is put there
# by SLURM. It then continues with --resume: no committed round is repeated. `scancel` ends it for good.
#
#SBATCH --job-name=fedpgp
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
set -euo pipefail

fail() {
    echo "error: $*" >&2
    exit 2
}

[[ -n "${SLURM_JOB_ID:-}" && -n "${SLURM_JOB_NODELIST:-}" ]] ||
    fail "SLURM_JOB_ID and SLURM_JOB_NODELIST are not set: submit this script with sbatch"
command -v fedpgp >/dev/null || fail "no fedpgp on this node: activate its environment, on storage that all nodes see, before sbatch"
(($#)) || fail "no command: sbatch pipelines/slurm.sh run|sweep|lodo|reproduce CONFIG [a.b=value ...]"

again=()
if ((${SLURM_RESTART_COUNT:-0} > 0)) && [[ "$1" == run || "$1" == sweep ]]; then  # lodo and reproduce always continue
    again=(--resume)
fi

# Ports of their own for every job, as two jobs may share a node; a token, which other users of the nodes cannot read.
port=$((20000 + SLURM_JOB_ID % 2000 * 5))
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN RAY_USAGE_STATS_ENABLED=0
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
ip=$(srun --quiet --overlap --nodes=1 --ntasks=1 --nodelist="$first" hostname --ip-address | awk '{print $1}')
address=$ip:$port

# start NODES ARGUMENTS...: one Ray node on each of these hosts, with the cores and GPUs that the job has there
start() {
    local hosts=$1 count
    shift
    count=$(wc -w <<<"${hosts//,/ }")
    srun --quiet --overlap --nodes="$count" --ntasks="$count" --nodelist="$hosts" bash -c \
        'exec ray start --block --log-style=record --num-cpus="${SLURM_CPUS_ON_NODE:?}" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" "$@" >/dev/null' ray "$@" &
}

finish() {
    trap - EXIT
    kill $(jobs -p) 2>/dev/null || true
    wait 2>/dev/null || true
}
trap finish EXIT

start "$first" --head --node-ip-address="$ip" --port="$port" --include-dashboard=false \
    --ray-client-server-port=$((port + 1)) --dashboard-agent-listen-port=$((port + 2)) --metrics-export-port=$((port + 3))
others=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | tail -n +2 | paste -sd, -)
if [[ -n "$others" ]]; then
    start "$others" --address="$address" --dashboard-agent-listen-port=$((port + 4))
fi

python - "$address" "$SLURM_JOB_NUM_NODES" <<'WAIT'
"""Wait until every node of the job has joined."""
import sys, time
import ray

address, wanted, alive, deadline = sys.argv[1], int(sys.argv[2]), 0, time.monotonic() + 300
while alive < wanted:
    if time.monotonic() > deadline:
        sys.exit(f"error: {alive} of {wanted} nodes of the job joined Ray at {address} within 300 s; see their logs in /tmp/ray")
    try:
        if not ray.is_initialized():
            ray.init(address, logging_level="ERROR", log_to_driver=False)
        alive = sum(node["Alive"] for node in ray.nodes())
    except ConnectionError:
        pass
    time.sleep(1)
WAIT

stop() {
    if kill -TERM "$pid" 2>/dev/null; then
        echo "fedpgp is stopped ($1)" >&2
    fi
}
requeue=no
trap 'requeue=yes; stop "time limit"' USR1
trap 'stop "by SLURM"' TERM
fedpgp "$@" "${again[@]}" "resources.address=$address" &
pid=$!
code=0
wait "$pid" || code=$?
while kill -0 "$pid" 2>/dev/null; do  # a signal ended `wait`, not fedpgp
    code=0
    wait "$pid" || code=$?
done
if [[ $requeue == yes && $code == 130 ]]; then
    trap '' TERM  # of the requeue itself
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
