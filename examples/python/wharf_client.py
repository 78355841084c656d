"""A Wharf client without an SDK, over plain grpcio. Copy it: this file is all there is; submit.py shows its use.

What makes it safe through a change of leader is one rule: after UNAVAILABLE or DEADLINE_EXCEEDED nobody knows whether
the call was carried out, so it is made again, with the same ids, at the next node. Whatever was done before is then a
duplicate, never a second package.
"""

import asyncio
import random
import time
import uuid
from collections.abc import Sequence

import grpc
from google.protobuf.message import Message
from grpc import StatusCode as Code
from wharf.v1 import package_pb2, queue_pb2
from wharf.v1.package_pb2_grpc import PackageServiceStub
from wharf.v1.queue_pb2_grpc import QueueServiceStub

OPTIONS = [
    ("grpc.max_receive_message_length", 16 << 20),  # a payload may have 8 MiB, gRPC takes 4 by itself
    ("grpc.max_reconnect_backoff_ms", 1000),  # a node that was killed is soon back
    ("grpc.keepalive_time_ms", 2000),  # a frozen node keeps its connections and answers nothing
    ("grpc.keepalive_timeout_ms", 3000),
    ("grpc.http2.max_pings_without_data", 0),
]
AGAIN = (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED)
BY_NUMBER = {code.value[0]: code for code in Code}


class Refused(Exception):
    """The cluster said no, for certain, and why: a code and a sentence for people."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(f"{code.name}: {message}")
        self.code = code


class Unknown(Exception):
    """No answer in time: the call may have been carried out. The same again, with the same ids, is safe."""


class Client:
    """Talks to the leader if it knows it, else to the nodes in turn: each passes calls on."""

    def __init__(self, addrs: Sequence[str], follow_leader: bool = True) -> None:
        self._addrs, self._follow_leader = list(addrs), follow_leader
        self._leader: str | None = None
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(channel.close() for channel in self._channels.values()))

    async def submit(self, queue: str, payload: bytes, *, id: str = "", **fields) -> package_pb2.SubmitResult:
        """Hands in one package. When this returns, a majority of the nodes has it on disk. `fields` are those of
        NewPackage: priority, kind, labels, delay, …"""
        new = package_pb2.NewPackage(queue=queue, id=id or str(uuid.uuid4()), payload=payload, **fields)
        [result] = await self.submit_many([new])
        if result.error.code:
            raise Refused(BY_NUMBER[result.error.code], result.error.message)
        return result

    async def submit_many(self, packages: Sequence[package_pb2.NewPackage]) -> Sequence[package_pb2.SubmitResult]:
        """Up to 1 000 packages, each with an id. Each result tells for itself whether it was taken."""
        request = package_pb2.SubmitRequest(packages=packages)
        return (await self.call(PackageServiceStub, "Submit", request)).results

    async def get(self, queue: str, id: str) -> package_pb2.Package:
        """The package as it is now, whichever node answers."""
        request = package_pb2.GetPackageRequest(queue=queue, id=id)
        return (await self.call(PackageServiceStub, "GetPackage", request)).package

    async def wait(self, queue: str, id: str, within: float) -> package_pb2.Package:
        """The package once it is finished."""
        request = package_pb2.WaitPackageRequest(queue=queue, id=id)
        return (await self.call(PackageServiceStub, "WaitPackage", request, within, per_try=20)).package

    async def create_queue(self, name: str, **settings) -> queue_pb2.Queue:
        request = queue_pb2.CreateQueueRequest(name=name, settings=queue_pb2.QueueSettings(**settings))
        return (await self.call(QueueServiceStub, "CreateQueue", request)).queue

    async def seal_queue(self, name: str) -> queue_pb2.Queue:
        """Nothing more will come: once all is done, the workers are told that the work has ended."""
        return (await self.call(QueueServiceStub, "SealQueue", queue_pb2.SealQueueRequest(name=name))).queue

    async def wait_queue(self, name: str, within: float) -> queue_pb2.Queue:
        """The sealed queue once all in it is done, with the counts."""
        request = queue_pb2.WaitQueueRequest(name=name)
        return (await self.call(QueueServiceStub, "WaitQueue", request, within, per_try=20)).queue

    async def call(self, service: type, method: str, request: Message, within: float = 30, per_try: float = 2.5):
        """Any call that may be made twice, until there is an answer or the time is over."""
        end, pause = time.monotonic() + within, 0.02
        while True:
            addr = self._leader or self._addrs[0]
            rpc = getattr(service(self._channel(addr)), method)
            call = rpc(request, timeout=min(per_try, max(end - time.monotonic(), 0.1)))
            try:
                answer = await call
                self._learn(await call.initial_metadata())
                return answer
            except grpc.aio.AioRpcError as error:
                if error.code() not in AGAIN:
                    raise Refused(error.code(), error.details()) from error
                if time.monotonic() + pause >= end:
                    raise Unknown(f"{method}: {error.details()}") from error
                self._leave(addr)
            await asyncio.sleep(pause * random.uniform(0.5, 1))
            pause = min(2 * pause, 1)

    def _channel(self, addr: str) -> grpc.aio.Channel:
        if addr not in self._channels:
            self._channels[addr] = grpc.aio.insecure_channel(addr, OPTIONS)
        return self._channels[addr]

    def _learn(self, metadata: grpc.aio.Metadata) -> None:
        """Every answer names the leader: going there oneself saves a hop."""
        if self._follow_leader:
            self._leader = metadata.get("wharf-leader", self._leader)

    def _leave(self, addr: str) -> None:
        """This node does not help now: ask another one next."""
        self._leader = None if self._leader == addr else self._leader
        if self._addrs[0] == addr:
            self._addrs.append(self._addrs.pop(0))
