#!/usr/bin/env bash
# A real Slurm of one node, from Debian's packages (slurm-wlm, munge), for tests: no root needed,
# nothing outside FOLDER is written, no port is fixed. Two partitions: `low` is preempted by `high`.
#   tests/support/slurm_node.sh start FOLDER   prints the file to source (SLURM_CONF and the like)
#   tests/support/slurm_node.sh stop FOLDER
set -euo pipefail

say() { printf 'slurm: %s\n' "$*" >&2; }
fail() { say "FAILED: $*"; exit 1; }

free_port() {
  python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# Calls a command until it succeeds, for at most ten seconds.
await() {
  local _
  for _ in $(seq 100); do
    if "$@" >/dev/null 2>&1; then return; fi
    sleep 0.1
  done
  tail -n 20 "$folder"/log/*.log >&2
  fail "not up after ten seconds: $*"
}

configure() {
  local user host cores memory controller_port node_port
  user="$(id -un)"; host="$(hostname -s)"; cores="$(nproc --all)"
  memory="$(awk '/MemTotal/ { print int($2 / 1024) - 256 }' /proc/meminfo)"
  controller_port="$(free_port)"; node_port="$(free_port)"
  cat > "$folder/slurm.conf" <<CONF
ClusterName=mimbench
SlurmctldHost=$host(127.0.0.1)
SlurmUser=$user
SlurmdUser=$user
SlurmctldPort=$controller_port
SlurmdPort=$node_port
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
KillWait=2
MinJobAge=300
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cores RealMemory=$memory State=UNKNOWN
PartitionName=low Nodes=$host Default=YES MaxTime=INFINITE State=UP PriorityTier=1 OverSubscribe=NO
PartitionName=high Nodes=$host MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
CONF
  printf 'export SLURM_CONF=%q\nexport MUNGE_SOCKET=%q\n' "$folder/slurm.conf" "$folder/munge/socket" \
    > "$folder/environment"
}

start() {
  local name
  for name in munged slurmctld slurmd sbatch; do
    command -v "$name" >/dev/null || fail "no $name; on Debian: sudo apt install slurm-wlm munge"
  done
  mkdir -p "$folder"/{munge,state,spool,log}
  chmod 700 "$folder/munge"
  head -c 1024 /dev/urandom > "$folder/munge/key"
  chmod 600 "$folder/munge/key"
  configure
  munged --key-file="$folder/munge/key" --socket="$folder/munge/socket" --force \
    --pid-file="$folder/munge/pid" --seed-file="$folder/munge/seed" --log-file="$folder/log/munged.log"
  await munge -S "$folder/munge/socket" -n
  export SLURM_CONF="$folder/slurm.conf"
  slurmctld -c
  await scontrol ping
  slurmd -c
  await bash -c 'sinfo -h -o %t | grep -qx idle'
  say "one node is up: source $folder/environment"
  echo "$folder/environment"
}

# Jobs first: their steps are processes of their own, which outlive the daemons.
stop() {
  local file place
  if [ -s "$folder/environment" ]; then
    . "$folder/environment"
    timeout 5 scancel --user="$(id -un)" --full 2>/dev/null || true
    for _ in $(seq 50); do
      [ -n "$(timeout 5 squeue --noheader --states=running,completing 2>/dev/null)" ] || break
      sleep 0.1
    done
  fi
  for file in slurmd.pid slurmctld.pid munge/pid; do
    if [ -s "$folder/$file" ]; then kill "$(cat "$folder/$file")" 2>/dev/null || true; fi
  done
  for place in /proc/[0-9]*/cwd; do
    case "$(readlink "$place" 2>/dev/null)" in
      "$folder"/log*) file="${place#/proc/}"; kill -KILL "${file%/cwd}" 2>/dev/null || true ;;
    esac
  done
}

[ $# -eq 2 ] || fail "usage: $0 start|stop FOLDER"
folder="$(mkdir -p "$2" && cd "$2" && pwd -P)"
case "$1" in
  start) start ;;
  stop) stop ;;
  *) fail "unknown verb $1, expected start or stop" ;;
esac
