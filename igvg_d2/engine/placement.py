"""Which of how many processes is this one? Answers of torchrun and SLURM, read from environment."""

import fcntl
import re
import socket
import struct
from dataclasses import dataclass
from typing import List, Mapping, MutableMapping, Optional
from urllib.parse import urlsplit

# Linux: ask a network interface for its IPv4 address.
_SIOCGIFADDR = 0x8915
# Port of the first process under SLURM when MASTER_PORT does not name one; jobs that share a node
# get different ones.
_FIRST_PORT, _NUM_PORTS = 20000, 10000


@dataclass(frozen=True)
class Placement:
    """Place of one process in a job whose processes somebody else starts.

    Attributes:
        starter: "torchrun" or "SLURM", for messages.
        rank: of this process, from 0.
        world_size: processes of the job.
        local_rank: of this process on its machine.
        dist_url: where they meet, for ``torch.distributed.init_process_group``.
    """

    starter: str
    rank: int
    world_size: int
    local_rank: int
    dist_url: str


@dataclass(frozen=True)
class SlurmTask:
    """Place of this task in its SLURM step.

    Attributes:
        rank, world_size, local_rank: as in :class:`Placement`, counting tasks.
        hosts: names of the step's nodes; may be empty.
        dist_url: of the first task.
    """

    rank: int
    world_size: int
    local_rank: int
    hosts: List[str]
    dist_url: str


def find_torchrun(environ: Mapping[str, str]) -> Optional[Placement]:
    """The place ``torchrun`` (or ``python -m torch.distributed.run``) gave this process, or None.

    Args:
        environ: environment of the process.

    Raises:
        ValueError: some of torchrun's variables are there, others are not.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    if any(name not in environ for name in names[:3]):
        return None
    missing = [name for name in names[3:] if name not in environ]
    if missing:
        raise ValueError(
            f"RANK, WORLD_SIZE and LOCAL_RANK are set as torchrun sets them, but not {missing}; "
            "start with torchrun, or unset all of them"
        )
    rank, world_size, local_rank = (_integer(environ, name) for name in names[:3])
    return Placement("torchrun", rank, world_size, local_rank, "env://")


def find_slurm_task(environ: Mapping[str, str]) -> Optional[SlurmTask]:
    """The task ``srun`` made of this process; None without it or when it is the only task.

    A batch script is not a task, although SLURM sets ``SLURM_PROCID`` in it too.

    Args:
        environ: environment of the process.

    Raises:
        ValueError: a number or the node list makes no sense.
    """
    if "SLURM_PROCID" not in environ:
        return None
    in_step = "SLURM_STEP_NUM_TASKS" in environ
    if not in_step and (environ.get("ENVIRONMENT") == "BATCH" or "SLURM_NTASKS" not in environ):
        return None
    world_size = _integer(environ, "SLURM_STEP_NUM_TASKS" if in_step else "SLURM_NTASKS")
    if world_size == 1:
        return None
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_NODELIST")
    nodes = nodes or environ.get("SLURM_JOB_NODELIST", "")
    hosts = expand_hosts(nodes)
    master = environ.get("MASTER_ADDR") or (hosts[0] if hosts else "127.0.0.1")
    port = environ.get("MASTER_PORT")
    if port is None:
        port = _FIRST_PORT + int(environ.get("SLURM_JOB_ID", "0")) % _NUM_PORTS
    return SlurmTask(
        rank=_integer(environ, "SLURM_PROCID"),
        world_size=world_size,
        local_rank=_integer(environ, "SLURM_LOCALID"),
        hosts=hosts,
        dist_url=f"tcp://{master}:{port}",
    )


def expand_hosts(nodes: str) -> List[str]:
    """Host names of a SLURM node list: "a[01-02,5],b" is a01, a02, a5, b.

    Raises:
        ValueError: brackets that do not match.
    """
    hosts = []
    # A comma outside of brackets separates.
    for part in re.findall(r"(?:[^,\[\]]|\[[^\[\]]*\])+", nodes):
        names = [""]
        for text, ranges in re.findall(r"([^\[\]]+)|\[([^\[\]]*)\]", part):
            ends = [text] if text else _expand_ranges(ranges)
            names = [name + end for name in names for end in ends]
        hosts += names
    if nodes.count("[") != nodes.count("]") or "" in hosts:
        raise ValueError(
            f"SLURM_NODELIST: expected names as in 'node[1-4,7],gpu1', found {nodes!r}"
        )
    return hosts


def choose_gloo_interface(environ: MutableMapping[str, str], dist_url: str) -> None:
    """Let gloo use the network interface that leads to the first machine; a choice made is kept.

    Left alone, gloo listens at whatever address the machine's own name resolves to, which on many
    clusters, and in containers and network namespaces, the other machines cannot reach.

    Args:
        environ: gets ``GLOO_SOCKET_IFNAME``.
        dist_url: "tcp://host:port"; "env://" means ``MASTER_ADDR`` and ``MASTER_PORT``.
    """
    url = urlsplit(dist_url)
    host, port = url.hostname, url.port
    if url.scheme == "env":
        host, port = environ["MASTER_ADDR"], int(environ["MASTER_PORT"])
    if "GLOO_SOCKET_IFNAME" in environ or not host:
        return
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # No packet is sent: connecting a datagram socket only looks up the route.
            probe.connect((host, port or 1))
        except OSError:
            return  # unknown or IPv6 host: joining the group says what is wrong with it
        address = probe.getsockname()[0]
        for _, name in socket.if_nameindex():
            if _address_of(probe, name) == address:
                environ["GLOO_SOCKET_IFNAME"] = name
                return
    if address.startswith("127."):
        environ["GLOO_SOCKET_IFNAME"] = "lo"


def _address_of(open_socket: socket.socket, interface: str) -> Optional[str]:
    """IPv4 address of a network interface, None if it has none."""
    request = struct.pack("256s", interface.encode()[:15])
    try:
        reply = fcntl.ioctl(open_socket.fileno(), _SIOCGIFADDR, request)
    except OSError:
        return None
    return socket.inet_ntoa(reply[20:24])


def _expand_ranges(ranges: str) -> List[str]:
    """ "01-03,7" -> 01, 02, 03, 7."""
    numbers = []
    for item in ranges.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", item.strip())
        if match is None:
            raise ValueError(f"SLURM_NODELIST: expected numbers as in [1-4,7], found [{ranges}]")
        first, last = match[1], match[2] or match[1]
        numbers += [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
    return numbers


def _integer(environ: Mapping[str, str], name: str) -> int:
    """A number from the environment."""
    value = environ.get(name, "")
    if not re.fullmatch(r"\d+", value):
        raise ValueError(f"environment variable {name}: expected a number, found {value!r}")
    return int(value)
