#!/usr/bin/env bash
# Starts a one-node Slurm from Debian's packages for the tests, with its files in the folder given.
# Needs root, for apt and for the daemons; says why and fails where it cannot.
set -euo pipefail
folder=$(realpath -m "$1")
export SLURM_CONF=$folder/slurm.conf
if [ -e "$SLURM_CONF" ] && timeout 5 sinfo >/dev/null 2>&1; then exit 0; fi
if [ "$(id -u)" != 0 ]; then echo "a Slurm for the tests needs root" >&2; exit 1; fi
if ! command -v slurmctld slurmd munged >/dev/null; then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends \
    slurmctld slurmd slurm-client munge >/dev/null
fi
mkdir -p "$folder"/{state,spool}
host=$(hostname -s)
cat >"$SLURM_CONF" <<END
ClusterName=quantlab
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) State=UNKNOWN
PartitionName=test Nodes=$host Default=YES MaxTime=INFINITE State=UP
END
mkdir -p /run/munge && chown munge:munge /run/munge
munge -n </dev/null >/dev/null 2>&1 || runuser -u munge -- munged --force 2>/dev/null
slurmctld
slurmd
for _ in $(seq 20); do
  if sinfo --noheader --states=idle 2>/dev/null | grep -q .; then exit 0; fi
  sleep 0.5
done
echo "Slurm did not come up, see $folder/*.log" >&2
exit 1
