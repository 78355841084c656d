"""A Wharf worker without an SDK, over plain grpcio. Copy it: this file is all there is; work.py shows its use."""

import asyncio
import itertools
import logging
import random
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field

import grpc
from google.rpc.status_pb2 import Status
from grpc import StatusCode as Code
from wharf.v1 import worker_pb2 as pb
from wharf.v1.worker_pb2_grpc import WorkerServiceStub

# Seconds. The cluster cuts off a worker that says nothing for 5; the worker leaves a node that says nothing for 3.
PING_EVERY, SILENCE = 1.0, 3.0
OPTIONS = [("grpc.max_receive_message_length", 16 << 20)]  # a payload may have 8 MiB, gRPC takes 4 by itself
FOR_GOOD = (Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.PERMISSION_DENIED, Code.UNAUTHENTICATED)
NOT_NOW = [code.value[0] for code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED)]
log = logging.getLogger("wharf")


@dataclass
class Lease:
    """A package in our hands, until its settlement is answered."""

    delivery: pb.Delivery
    name: dict  # queue, id and fence: what every request about it says
    started: bool = False
    request: pb.WorkRequest | None = None  # not answered yet; one at a time
    answer: asyncio.Future[Status] = field(init=False)
    task: asyncio.Task = field(init=False)


class Worker:
    """Holds up to `max_in_flight` packages and works on `concurrency` of them. What the handler returns is the
    package's result; if it raises, the package has failed and is tried again by the queue's settings. A handler
    that blocks goes into a thread (`asyncio.to_thread`): the worker has to say that it lives meanwhile."""

    def __init__(self, addrs: Iterable[str], queue: str, handler: Callable[[pb.Delivery], Awaitable[bytes]],
                 name: str = "python", concurrency: int = 1, max_in_flight: int = 64) -> None:
        self._addrs, self._handler = itertools.cycle(addrs), handler
        self._hello = {"worker": name, "session": str(uuid.uuid4()), "queues": [queue],
                       "concurrency": concurrency, "max_in_flight": max_in_flight}
        self._hands = asyncio.Semaphore(concurrency)
        self._leases: dict[int, Lease] = {}  # by fence
        self._outbox: asyncio.Queue[pb.WorkRequest] | None = None  # of the stream, once we are welcome
        self._received_fence, self._leaving = 0, False

    async def run(self) -> None:
        """Works until the queue has ended or the worker is drained; comes back after every break."""
        while self._leases or not self._leaving:
            addr = next(self._addrs)  # any node will do: it passes us on to the leader
            try:
                async with grpc.aio.insecure_channel(addr, OPTIONS) as channel:
                    await self._attach(WorkerServiceStub(channel))
                self.drain()  # the cluster closed the stream in good order: somebody drained us
            except (grpc.aio.AioRpcError, ConnectionError, TimeoutError) as error:
                if isinstance(error, grpc.aio.AioRpcError) and error.code() in FOR_GOOD:
                    raise
                log.info("lost %s: %s", addr, getattr(error, "details", error.__repr__)())
            await asyncio.sleep(random.uniform(0.02, 0.2))

    def drain(self) -> None:
        """Takes nothing new, gives back what was not started, finishes the rest and goes."""
        self._leaving = True
        self._give_back(len(self._leases))
        self._say(pb.WorkRequest(drain=pb.Drain()))

    async def _attach(self, stub: WorkerServiceStub) -> None:
        """One stream, from our Hello to its end."""
        self._outbox = None
        outbox: asyncio.Queue[pb.WorkRequest] = asyncio.Queue()
        call = stub.Work(self._requests(outbox))
        while (response := await asyncio.wait_for(call.read(), SILENCE)) is not grpc.aio.EOF:
            match response.WhichOneof("response"):
                case "welcome":
                    self._outbox = outbox
                    self._welcomed(response.welcome)
                case "deliver":
                    for delivery in response.deliver.deliveries:
                        self._take(delivery)
                case "settled":
                    for outcome in response.settled.outcomes:
                        self._answered(outcome.fence, outcome.status)
                case "recall":
                    self._give_back(response.recall.count)
                case "revoke":
                    for held in response.revoke.held:
                        self._lose(held.fence)
                case "end_of_work":
                    self.drain()
                case "goaway":
                    raise ConnectionResetError(response.goaway.reason)

    async def _requests(self, outbox: asyncio.Queue[pb.WorkRequest]) -> AsyncIterator[pb.WorkRequest]:
        held = [pb.Held(**lease.name) for lease in self._leases.values()]
        request = pb.WorkRequest(hello=pb.Hello(**self._hello, held=held))
        while True:
            request.received_fence = self._received_fence
            yield request
            try:
                request = await asyncio.wait_for(outbox.get(), PING_EVERY)
            except TimeoutError:
                request = pb.WorkRequest(ping=pb.Ping())

    def _say(self, request: pb.WorkRequest) -> None:
        if self._outbox is not None:  # else it is said once there is a stream again
            self._outbox.put_nowait(request)

    async def _ask(self, lease: Lease, **request) -> Status:
        """Says something about a lease until it is answered, over as many streams as that takes."""
        lease.request, lease.answer = pb.WorkRequest(**request), asyncio.get_running_loop().create_future()
        self._say(lease.request)
        return await lease.answer

    def _welcomed(self, welcome: pb.Welcome) -> None:
        log.info("attached, epoch %d, holding %d", welcome.epoch, len(self._leases))
        for verdict in welcome.verdicts:
            if verdict.kind == pb.Verdict.SETTLED:
                self._answered(verdict.fence, verdict.outcome)
            elif verdict.kind == pb.Verdict.GONE:
                self._lose(verdict.fence)
        for lease in self._leases.values():
            if lease.request:
                self._say(lease.request)
        if self._leaving:
            self.drain()

    def _take(self, delivery: pb.Delivery) -> None:
        self._received_fence = max(self._received_fence, delivery.fence)
        if delivery.fence not in self._leases:  # else it was sent again
            name = {"queue": delivery.package.queue, "id": delivery.package.id, "fence": delivery.fence}
            lease = self._leases[delivery.fence] = Lease(delivery, name)
            lease.task = asyncio.create_task(self._carry(lease))
        if self._leaving:
            self._give_back(1)

    def _answered(self, fence: int, status: Status) -> None:
        if status.code in NOT_NOW:
            raise ConnectionResetError(status.message)  # a new stream tells what came of it
        if (lease := self._leases.get(fence)) and lease.request:
            lease.request = None
            lease.answer.set_result(status)

    def _lose(self, fence: int) -> None:
        """The lease is somebody else's: whatever is done for it is in vain."""
        if lease := self._leases.pop(fence, None):
            lease.task.cancel()

    def _give_back(self, count: int) -> None:
        """Releases the youngest of the packages that were not started."""
        waiting = [lease for _, lease in sorted(self._leases.items()) if not lease.started]
        for lease in waiting[-count:]:
            lease.started = True
            lease.task.cancel()
            release = pb.Release(held=[pb.Held(**lease.name)])
            lease.task = asyncio.create_task(self.settle(lease, release=release))

    async def _carry(self, lease: Lease) -> None:
        """Waits for its turn, works while it extends the lease, and settles."""
        async with self._hands:
            lease.started = True
            third = lease.delivery.lease.ToTimedelta().total_seconds() / 3
            work = asyncio.ensure_future(self._handler(lease.delivery))
            try:
                while not (await asyncio.wait([work], timeout=third))[0]:
                    await self._ask(lease, extend=pb.Extend(extensions=[pb.Extension(**lease.name)]))
                if len(work.result()) > 8 << 20:  # the most that any queue can take
                    raise ValueError("the result is too large")
                settlement = {"done": pb.Done(completions=[pb.Completion(**lease.name, result=work.result())])}
            except Exception as error:
                settlement = {"fail": pb.Fail(failed=[pb.Failed(**lease.name, message=repr(error))])}
            finally:
                work.cancel()
        await self.settle(lease, **settlement)

    async def settle(self, lease: Lease, **settlement) -> Status:
        """Ends a lease. The answer says whether that counted; override this to hear it."""
        status = await self._ask(lease, **settlement)
        if status.code == Code.INVALID_ARGUMENT.value[0]:  # such as a result that is too large: the lease stands
            status = await self._ask(lease, fail=pb.Fail(failed=[pb.Failed(**lease.name, message=status.message)]))
        self._leases.pop(lease.delivery.fence, None)
        return status
