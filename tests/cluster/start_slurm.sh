#!/usr/bin/env bash
# A Slurm cluster of one node, this machine, without systemd: bash start_slurm.sh FOLDER
# Needs root and the Debian packages slurm-wlm and munge. State, logs and slurm.conf lie in FOLDER.
set -euo pipefail
folder=$1
mkdir -p "$folder"/{ctld,slurmd} /run/munge
host=$(hostname -s)

[ -e /etc/munge/munge.key ] || mungekey --create
chown -R munge: /etc/munge /run/munge /var/lib/munge /var/log/munge
pgrep -x munged > /dev/null || runuser -u munge -- /usr/sbin/munged

cat > "$folder/slurm.conf" << END
ClusterName=test
SlurmctldHost=localhost
AuthType=auth/munge
AuthInfo=cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SlurmUser=root
SlurmdUser=root
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MailProg=/bin/true
StateSaveLocation=$folder/ctld
SlurmdSpoolDir=$folder/slurmd
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
SlurmctldTimeout=30
SlurmdTimeout=30
KillWait=15
MinJobAge=600
SchedulerParameters=sched_interval=2,bf_interval=2
NodeName=localhost NodeHostname=$host NodeAddr=127.0.0.1 CPUs=$(nproc --all) State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
END
export SLURM_CONF=$folder/slurm.conf
slurmctld -f "$SLURM_CONF"
slurmd -f "$SLURM_CONF" -N localhost
for _ in $(seq 60); do
    [ "$(sinfo -h -o %T 2> /dev/null)" = idle ] && exit 0
    sleep 0.5
done
sinfo >&2 || true
tail -5 "$folder"/*.log >&2
exit 1
