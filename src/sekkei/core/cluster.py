"""Scripts that start a run on several machines: Slurm's `sbatch`, Kubernetes' indexed Job.

    node 0                      node 1                 …    one launcher (torch's) per node
    launcher ── rendezvous ──── launcher                    at node 0, by name and port
      ├─ sekkei run R             ├─ sekkei run R           one process per GPU

    a process dies       -> all launchers start their processes again, at most `restarts` times
    time is up, SIGTERM  -> the run finishes its step, saves, exits; Slurm puts the job back into its queue, Kubernetes
                            starts the pod again; both go on from the checkpoint

What runs is the same `sekkei run` as on one machine, so every machine must see the same run folder. Texts only: nothing
here talks to a cluster. It does not build images, and does not choose a network device (NCCL_SOCKET_IFNAME).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from sekkei.core.errors import ConfigError

WARNING_SECONDS = 300  # before Slurm's limit: a step and a checkpoint must fit
SAVING_SECONDS = 240  # of these a launcher leaves to its processes before it kills them (torch: 30)
PORT = 29400  # of the rendezvous, where a pod has a network of its own
TIME = re.compile(r"(\d+-)?\d{1,2}(:\d{2}){0,2}|\d+")
LABEL = re.compile(r"[a-z]([a-z0-9-]{0,50}[a-z0-9])?")
QUANTITY = re.compile(r"\d+(\.\d+)?([KMGTP]i?)?")
WORD = re.compile(r"[A-Za-z0-9._@:/+-]+")


@dataclass(frozen=True, kw_only=True)
class Slurm:
    """What `sbatch` is asked for.

    Args:
        nodes, gpus_per_node: machines and GPUs of each; one process per GPU.
        partition, account, qos, constraint: as Slurm's options; empty: the site's default.
        time: limit as `days-hours:minutes:seconds`. cpus_per_gpu: cores per process (0: the site's default).
        restarts: after a process has died. python: interpreter on the nodes. setup: a shell file read first.
        job: name in the queue (empty: the recipe's).
    """

    nodes: int
    gpus_per_node: int
    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    time: str = "24:00:00"
    cpus_per_gpu: int = 8
    restarts: int = 3
    python: str = "python3"
    setup: str = ""
    job: str = ""

    def __post_init__(self) -> None:
        _check_counts(self.nodes, self.gpus_per_node, self.restarts)
        if not TIME.fullmatch(self.time):
            raise ConfigError("time", f"got {self.time!r}, must be Slurm's days-hours:minutes:seconds, as 24:00:00")
        if self.cpus_per_gpu < 0:
            raise ConfigError("cpus_per_gpu", f"got {self.cpus_per_gpu}, must be >= 0 (0: the site's default)")
        for key in ("partition", "account", "qos", "constraint", "job"):
            value = getattr(self, key)
            if value and not WORD.fullmatch(value):
                raise ConfigError(key, f"got {value!r}, must be letters, digits and . _ @ : / + -")


@dataclass(frozen=True, kw_only=True)
class Kubernetes:
    """What a Job of a cluster is made of.

    Args:
        nodes, gpus_per_node: pods and GPUs of each; one process per GPU.
        image: holds sekkei and torch. claim: of a shared (ReadWriteMany) volume, mounted at `mount`, where the run
        folder and the recipe lie. namespace, cpus, memory: of a pod; empty: the cluster's default.
        shm: shared memory of a pod, for NCCL and loaders. resource: the GPUs' name. restarts: as `Slurm`'s.
        job: name (empty: the recipe's).
    """

    nodes: int
    gpus_per_node: int
    image: str
    claim: str
    mount: str = "/work"
    namespace: str = ""
    cpus: str = ""
    memory: str = ""
    shm: str = "16Gi"
    resource: str = "nvidia.com/gpu"
    restarts: int = 3
    python: str = "python3"
    job: str = ""

    def __post_init__(self) -> None:
        _check_counts(self.nodes, self.gpus_per_node, self.restarts)
        for key in ("image", "resource"):
            if not WORD.fullmatch(getattr(self, key)):
                raise ConfigError(key, f"got {getattr(self, key)!r}, must be letters, digits and . _ @ : / + -")
        for key in ("claim", "namespace", "job"):
            value = getattr(self, key)
            if (value or key == "claim") and not LABEL.fullmatch(value):
                raise ConfigError(key, f"got {value!r}, must be lower-case letters, digits and '-'")
        for key in ("cpus", "memory", "shm"):
            value = getattr(self, key)
            if (value or key == "shm") and not QUANTITY.fullmatch(value):
                raise ConfigError(key, f"got {value!r}, must be a quantity, as 16Gi or 32")
        if not self.mount.startswith("/") or not WORD.fullmatch(self.mount):
            raise ConfigError("mount", f"got {self.mount!r}, must be an absolute path")


def slurm_script(name: str, arguments: Sequence[str], job: Slurm) -> str:
    """A bash script for `sbatch`.

    Args:
        name: of the job, unless `job` has one. arguments: what follows `sekkei`, as ["run", "big.yaml"].
    """
    options = {
        "job-name": job.job or name,
        "nodes": job.nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": job.gpus_per_node,
        "cpus-per-task": job.cpus_per_gpu * job.gpus_per_node,
        "time": job.time,
        "partition": job.partition,
        "account": job.account,
        "qos": job.qos,
        "constraint": job.constraint,
        "output": f"{job.job or name}-%j.log",
        "open-mode": "append",
        "signal": f"B:TERM@{WARNING_SECONDS}",
    }
    asked = "\n".join(f"#SBATCH --{key}={value}" for key, value in options.items() if value not in ("", 0))
    setup = f"source {shlex.quote(job.setup)}\n" if job.setup else ""
    threads = f'export OMP_NUM_THREADS="${{OMP_NUM_THREADS:-{job.cpus_per_gpu}}}"\n' if job.cpus_per_gpu else ""
    return f"""#!/usr/bin/env bash
{asked}
#SBATCH --requeue
# Written by `sekkei launch`; submit with: sbatch FILE. The log goes on in the same file after a restart.
set -euo pipefail
{setup}{threads}export TORCH_ELASTIC_SHUTDOWN_TIMEOUT={SAVING_SECONDS}

first_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
port=$((20000 + SLURM_JOB_ID % 20000))

# {WARNING_SECONDS} s before the time limit this shell gets SIGTERM: the processes finish their step, save and exit, and
# the job goes back into the queue, from where it goes on.
stopping=0
on_term() {{
  stopping=1
  kill -TERM "$step" 2>/dev/null || true
}}
trap on_term TERM

srun --kill-on-bad-exit=1 {shlex.quote(job.python)} -m torch.distributed.run \\
  --nnodes={job.nodes} --nproc-per-node={job.gpus_per_node} --max-restarts={job.restarts} \\
  --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID.${{SLURM_RESTART_COUNT:-0}}" --rdzv-endpoint="$first_node:$port" \\
  -m sekkei {shlex.join(arguments)} &
step=$!

code=0
wait "$step" || code=$?
if [ "$stopping" = 1 ]; then # the first wait ended at the signal, the processes are still saving
  code=0
  wait "$step" || code=$?
  if [ "$code" != 0 ]; then
    echo "stopped by SIGTERM: back into the queue"
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
  fi
fi
exit "$code"
"""


def kubernetes_manifest(name: str, arguments: Sequence[str], job: Kubernetes) -> str:
    """A headless Service, by which pods find the first one, and an indexed Job, as YAML for `kubectl apply -f`.

    Raises:
        ConfigError: the run's name is none for Kubernetes.
    """
    import yaml

    name = job.job or name.lower().replace("_", "-").replace(".", "-")
    if not LABEL.fullmatch(name):
        raise ConfigError("job", f"{name!r} is no name for Kubernetes: set job= to lower-case letters, digits and '-'")
    place = {"name": name, **({"namespace": job.namespace} if job.namespace else {})}
    command = (
        f"exec {shlex.quote(job.python)} -m torch.distributed.run "
        f"--nnodes={job.nodes} --nproc-per-node={job.gpus_per_node} "
        f"--max-restarts={job.restarts} --rdzv-backend=c10d --rdzv-id={name} --rdzv-endpoint={name}-0.{name}:{PORT} "
        '--rdzv-conf="is_host=$([ "$JOB_COMPLETION_INDEX" = 0 ] && echo true || echo false)" '
        f"-m sekkei {shlex.join(arguments)}"
    )
    sizes = {"cpu": job.cpus, "memory": job.memory}
    limits = {job.resource: job.gpus_per_node, **{key: value for key, value in sizes.items() if value}}
    container = {
        "name": "train",
        "image": job.image,
        "workingDir": job.mount,
        "command": ["/bin/sh", "-c", command],
        "env": [{"name": "TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "value": str(SAVING_SECONDS)}],
        "resources": {"limits": limits, "requests": dict(limits)},
        "volumeMounts": [{"name": "run", "mountPath": job.mount}, {"name": "shm", "mountPath": "/dev/shm"}],
    }
    pod = {
        "subdomain": name,
        "restartPolicy": "OnFailure",
        "terminationGracePeriodSeconds": WARNING_SECONDS,
        "containers": [container],
        "volumes": [
            {"name": "run", "persistentVolumeClaim": {"claimName": job.claim}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": job.shm}},
        ],
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": place,
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,  # a pod must be found before it is ready
            "selector": {"job-name": name},
            "ports": [{"name": "rendezvous", "port": PORT}],
        },
    }
    batch = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": dict(place),
        "spec": {
            "completions": job.nodes,
            "parallelism": job.nodes,
            "completionMode": "Indexed",
            "backoffLimit": job.nodes * (job.restarts + 1),
            "template": {"metadata": {"labels": {"app": name}}, "spec": pod},
        },
    }
    head = "# Written by `sekkei launch`; start with: kubectl apply -f FILE\n"
    return head + "---\n".join(yaml.safe_dump(part, sort_keys=False, width=4096) for part in (service, batch))


def _check_counts(nodes: int, gpus_per_node: int, restarts: int) -> None:
    for key, value, least in (("nodes", nodes, 1), ("gpus_per_node", gpus_per_node, 1), ("restarts", restarts, 0)):
        if value < least:
            raise ConfigError(key, f"got {value}, must be >= {least}")
