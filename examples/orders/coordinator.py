"""The coordinator itself: what a program of yours would put in front of Wharf. It keeps nothing; Wharf does."""

import json
from dataclasses import dataclass
from datetime import timedelta

from google.protobuf.duration_pb2 import Duration
from grpc import StatusCode
from wharf.v1 import package_pb2, queue_pb2
from wharf.v1.queue_pb2_grpc import QueueServiceStub
from wharf_client import Client, Refused

PRIORITIES = {"express": 9, "normal": 4, "bulk": 0}


class IdTaken(Exception):
    """There is an order with this number and another content."""


@dataclass(frozen=True)
class Order:
    number: str
    urgency: str
    items: tuple[str, ...]

    def to_json(self) -> bytes:
        """Always the same bytes for the same order: a repeat is known by its content."""
        return json.dumps({"number": self.number, "items": self.items}, sort_keys=True).encode()


@dataclass(frozen=True)
class Receipt:
    """What whoever ordered is told: it is safe, and this is how it stands."""

    number: str
    repeated: bool
    state: str


@dataclass(frozen=True)
class Overview:
    """How the queue stands."""

    ready: int
    leased: int
    scheduled: int
    completed: int
    dead: int
    oldest: timedelta
    workers: list[str]

    def __str__(self) -> str:
        return (f"ready {self.ready:4}  leased {self.leased:3}  retrying {self.scheduled:2}"
                f"  completed {self.completed:4}  dead {self.dead:2}  oldest {self.oldest.total_seconds():4.1f} s"
                f"  workers {' '.join(self.workers)}")


class Coordinator:
    """Takes orders, tells how they stand, and keeps an eye on the work."""

    def __init__(self, client: Client, queue: str) -> None:
        self._client, self.queue = client, queue

    async def open(self) -> None:
        backoff = queue_pb2.Backoff(initial=Duration(nanos=200_000_000), multiplier=2)
        await self._client.create_queue(self.queue, lease=Duration(seconds=10), max_attempts=3, backoff=backoff)

    async def accept(self, order: Order) -> Receipt:
        """Takes an order once, however often it is sent. Raises `IdTaken` if its number stands for another one."""
        try:
            taken = await self._client.submit(
                self.queue, order.to_json(), id=order.number, kind="order", priority=PRIORITIES[order.urgency],
                content_type="application/json", labels={"urgency": order.urgency})
        except Refused as refusal:
            if refusal.code is StatusCode.ALREADY_EXISTS:
                raise IdTaken(order.number) from refusal
            raise
        return Receipt(order.number, taken.duplicate, await self.state(order.number))

    async def state(self, number: str) -> str:
        """How an order stands now, never how it stood: the cluster reads what its majority knows."""
        return package_pb2.State.Name((await self.look(number)).state)

    async def look(self, number: str) -> package_pb2.Package:
        return await self._client.get(self.queue, number)

    async def overview(self) -> Overview:
        get = queue_pb2.GetQueueRequest(name=self.queue)
        stats = (await self._client.call(QueueServiceStub, "GetQueue", get)).queue.stats
        of_queue = queue_pb2.ListWorkersRequest(queue=self.queue)
        workers = (await self._client.call(QueueServiceStub, "ListWorkers", of_queue)).workers
        return Overview(stats.ready, stats.leased, stats.scheduled, stats.completed, stats.dead,
                        stats.oldest_ready_age.ToTimedelta(), [f"{w.worker}:{w.leased}" for w in workers])

    async def close(self, within: float) -> queue_pb2.QueueStats:
        """No more orders; answers once every one is done, with the counts."""
        await self._client.seal_queue(self.queue)
        return (await self._client.wait_queue(self.queue, within)).stats
