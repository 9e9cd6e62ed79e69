"""Ray clusters of several nodes on this machine, started as a person starts them."""

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from stores import PATIENCE, free_port

# Ray reads these when it is imported. With the first 0, a driver takes the machine's own address for 127.0.0.1 no more
LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
TOKEN = {LOOPBACK: "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
os.environ |= TOKEN
# `ray start`, which would take the machine's own address for 127.0.0.1 and then listen on every interface
RAY = """
from ray._private import services
services.resolve_ip_for_localhost = str
from ray.scripts.scripts import main
main()
"""


class Nodes:
    """The nodes of a cluster, a group of processes each; the first is its head."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = f"127.0.0.1:{free_port()}"
        self.nodes: list[subprocess.Popen[bytes]] = []

    def add(self, cores: int = 1) -> "subprocess.Popen[bytes]":
        """Start one more node, and wait until it is up."""
        host, port = self.address.split(":")
        role = ["--address", self.address] if self.nodes else ["--head", "--port", port, "--include-dashboard=false"]
        log = self.folder / f"node{len(self.nodes)}.log"
        options = [
            "--node-ip-address", host, "--num-cpus", str(cores), "--object-store-memory", "500000000",
            "--disable-usage-stats", "--block",
        ]  # fmt: skip
        with log.open("wb") as output:
            node = subprocess.Popen(
                [sys.executable, "-c", RAY, "start", *role, *options],
                stdout=output,
                stderr=output,
                start_new_session=True,
                cwd=self.folder,
                env=os.environ | {LOOPBACK: "1", "RAY_TMPDIR": str(self.folder)},
            )
        self.nodes.append(node)
        while b"Ray runtime started" not in log.read_bytes():
            assert node.poll() is None, log.read_text()
            time.sleep(0.1)
        return node

    def workers(self) -> list[psutil.Process]:
        """The processes of its nodes in which tasks run."""
        groups = {node.pid for node in self.nodes}
        found = []
        for each in psutil.process_iter(["name"]):
            with suppress(psutil.NoSuchProcess):
                if (each.info["name"] or "").startswith("ray::_advance") and groups & {p.pid for p in each.parents()}:
                    found.append(each)
        return found

    def kill(self, node: "subprocess.Popen[bytes]") -> None:
        """Kill all processes of a node."""
        os.killpg(node.pid, signal.SIGKILL)
        node.wait(PATIENCE)


@contextmanager
def cluster(folder: Path, cores: Sequence[int] = (1, 1)) -> Iterator[Nodes]:
    """A cluster with a node for each of these numbers of cores, which ends with the block."""
    made = Nodes(folder)
    try:
        for each in cores:
            made.add(each)
        yield made
    finally:
        for node in reversed(made.nodes):
            if node.poll() is None:
                made.kill(node)
