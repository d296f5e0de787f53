#!/bin/bash
# node.sh STATE DASHBOARD_PORT AGENT_PORT: a node of Ray's in a job of gliotrail.sbatch, with what
# the allocation has of this machine, until STATE/done is there.
set -euo pipefail
state=$1
ulimit -n "$(ulimit -Hn)"
# short, for sockets' names; two jobs on a machine have nothing in common
folder=/tmp/gt-ray-$SLURM_JOB_ID-$SLURM_NODEID
options=(--num-cpus "${SLURM_CPUS_PER_TASK:-$SLURM_CPUS_ON_NODE}" --num-gpus "${SLURM_GPUS_ON_NODE:-0}"
	--min-worker-port 0 --max-worker-port 0 --dashboard-agent-listen-port "$3" --disable-usage-stats)
memory_mb=${SLURM_MEM_PER_NODE:-0}
if [ "$memory_mb" -gt 0 ]; then # Ray's own guess is of the whole machine
	options+=(--object-store-memory "$((memory_mb * 1000000 / 5))" --memory "$((memory_mb * 1000000 * 3 / 5))")
fi
if [ "$SLURM_NODEID" = 0 ]; then
	options+=(--head --node-ip-address "${RAY_ADDRESS%:*}" --port "${RAY_ADDRESS##*:}"
		--dashboard-host "${RAY_ADDRESS%:*}" --dashboard-port "$2"
		--ray-client-server-port "$(($3 + 1))" --temp-dir "$folder")
else
	until (: <>"/dev/tcp/${RAY_ADDRESS%:*}/${RAY_ADDRESS##*:}") 2>/dev/null; do
		[ $SECONDS -lt 300 ] || { echo "error: nothing answers at $RAY_ADDRESS" >&2; exit 1; }
		sleep 1
	done
	options+=(--address "$RAY_ADDRESS")
fi
# a node's Ray may need longer to start than the 30 s that Ray itself allows it
for _ in 1 2 3; do
	env -u RAY_ADDRESS RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0 ray start --block "${options[@]}" &
	ray=$!
	trap 'kill -TERM $ray; wait $ray || true; rm -rf "$folder"; exit 143' TERM
	started=$SECONDS
	while kill -0 $ray 2>/dev/null; do
		if [ -e "$state/done" ] || [ ! -d "$state" ]; then
			kill -TERM $ray
			wait $ray || true
			rm -rf "$folder"
			exit 0
		fi
		sleep 1
	done
	[ $((SECONDS - started)) -lt 120 ] || break
	sleep 5
done
echo "error: Ray ended on $(hostname)" >&2
exit 1
