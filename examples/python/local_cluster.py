"""Three Wharf nodes on this machine, for the examples: real processes on a real disk, which can be killed."""

import asyncio
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import grpc
from wharf.v1.cluster_pb2 import GetStatusRequest
from wharf.v1.cluster_pb2_grpc import ClusterServiceStub

TARGET = Path(__file__).resolve().parents[2] / "target"
READY_WITHIN = 30  # seconds
STOP_WITHIN = 10


class LocalCluster:
    """`async with LocalCluster() as cluster`: it runs and has a leader inside, and is gone afterwards."""

    def __init__(self, nodes: int = 3) -> None:
        self._program = find_wharf()
        self._dir = Path(tempfile.mkdtemp(prefix="wharf-example-"))
        self._ports = {node: free_ports(3) for node in range(1, nodes + 1)}
        self._processes: dict[int, subprocess.Popen] = {}

    @property
    def addrs(self) -> list[str]:
        """Where clients and workers connect."""
        return [f"127.0.0.1:{client}" for client, _, _ in self._ports.values()]

    def admin_url(self, node: int) -> str:
        """Where health, metrics and statistics of a node are."""
        return f"http://127.0.0.1:{self._ports[node][2]}"

    def start(self, node: int) -> None:
        """Starts a node that does not run, on the directory that it had before."""
        client, peer, admin = (f"127.0.0.1:{port}" for port in self._ports[node])
        command = [self._program, "serve", "--node", str(node), "--data-dir", self._dir / f"node-{node}",
                   "--listen-client", client, "--listen-peer", peer, "--listen-admin", admin]
        for other, (_, port, _) in self._ports.items():
            command += ["--cluster-node", f"{other}=127.0.0.1:{port}"]
        with open(self._dir / f"node-{node}.log", "ab") as log:
            self._processes[node] = subprocess.Popen(dying_with_parent(command), stdout=log, stderr=log)

    def kill(self, node: int) -> None:
        """SIGKILL: as when the power of one machine fails."""
        process = self._processes.pop(node)
        process.kill()
        process.wait()

    def signal(self, node: int, sign: signal.Signals) -> None:
        self._processes[node].send_signal(sign)

    async def leader(self) -> int:
        """The node that leads; waits until one does."""
        end = time.monotonic() + READY_WITHIN
        while time.monotonic() < end:
            statuses = await asyncio.gather(*(self._status(node) for node in self._processes))
            leading = [status for status in statuses if status and status.leader == status.node]
            if leading:  # one that was replaced and does not know it yet is of an older term
                return max(leading, key=lambda status: status.term).node
            await asyncio.sleep(0.05)
        raise TimeoutError(f"no node leads; their logs are in {self._dir}")

    async def _status(self, node: int):
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self._ports[node][0]}") as channel:
            try:
                return await ClusterServiceStub(channel).GetStatus(GetStatusRequest(), timeout=0.5)
            except grpc.aio.AioRpcError:
                return None

    async def __aenter__(self) -> "LocalCluster":
        for node in self._ports:
            self.start(node)
        try:
            await self.leader()
        except BaseException:
            self._stop()
            raise
        return self

    async def __aexit__(self, failed: type | None, *_: object) -> None:
        self._stop()
        if failed:
            print(f"the nodes' files are in {self._dir}", file=sys.stderr)
        else:
            shutil.rmtree(self._dir)

    def _stop(self) -> None:
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            try:
                process.wait(STOP_WITHIN)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def find_wharf() -> str:
    """The program: WHARF names it, or it was built here, or it is installed."""
    built = [str(TARGET / profile / "wharf") for profile in ("release", "debug")]
    for program in (os.environ.get("WHARF"), *built, "wharf"):
        if program and shutil.which(program):
            return program
    sys.exit("there is no wharf yet: cargo build --release")


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, outside the range from which the kernel takes those of connections."""
    ports: list[int] = []
    while len(ports) < count:
        with socket.socket() as tried:
            try:
                tried.bind(("127.0.0.1", random.randrange(10_000, 32_000)))
                ports.append(tried.getsockname()[1])
            except OSError:
                pass
    return ports


def dying_with_parent(command: list) -> list:
    """The same command, which Linux ends if this program is killed. (Not by `preexec_fn`: that forks, and a fork of
    a program that runs gRPC can hang.)"""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", "--", *command] if setpriv else command
