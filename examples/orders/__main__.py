"""A package coordinator: a day at an order desk, whose cluster loses its leader in the middle of the work.

    examples/python/run examples/orders

It starts a cluster of three nodes, takes orders, has three workers pack them and shows how the queue stands. Each step
is checked; exit code 1 if anything is not as it should be.
"""

import asyncio
import itertools
import json
import logging
import sys
import urllib.request
from statistics import mean

from coordinator import Coordinator, IdTaken, Order
from local_cluster import LocalCluster
from wharf.v1.worker_pb2 import Delivery
from wharf_client import Client
from wharf_worker import Worker

GOOD = [f"order-{number}" for number in range(1, 450)]  # one more will be dead
PACKING = 0.02  # seconds an order
LOOK_EVERY = 0.5
DONE_WITHIN = 60
HALF_BROKEN, BROKEN = "half-broken", "broken"  # orders of such an item fail once, and always


class Desk:
    """The story, step by step."""

    def __init__(self, cluster: LocalCluster, client: Client) -> None:
        self.cluster, self.addrs = cluster, cluster.addrs
        self.coordinator = Coordinator(client, "orders")
        self.packed: list[str] = []  # urgencies, in the order of the work
        self.wrong = 0

    def check(self, what: str, holds: bool) -> None:
        print(f"  {'ok   ' if holds else 'WRONG'} {what}", flush=True)
        self.wrong += not holds

    async def pack(self, delivery: Delivery) -> bytes:
        """What a worker does. Returning acknowledges; raising says that it failed."""
        items = json.loads(delivery.package.payload)["items"]
        if BROKEN in items or (HALF_BROKEN in items and delivery.attempt == 1):
            raise ValueError("an item is broken")
        await asyncio.sleep(PACKING)
        self.packed.append(delivery.package.labels["urgency"])
        return f"{len(items)} items packed".encode()

    async def check_ids(self) -> None:
        print("ids are checked, and an order is there the moment it is taken:")
        order = Order("order-1", "normal", ("cup",))
        receipt = await self.coordinator.accept(order)
        self.check(f"{order.number} is taken and {receipt.state}", not receipt.repeated and receipt.state == "READY")
        again = await self.coordinator.accept(order)
        self.check("the same order again is known, and still one", again.repeated and again.state == "READY")
        try:
            await self.coordinator.accept(Order("order-1", "normal", ("cup", "plate")))
            self.check("another order of that number is refused", False)
        except IdTaken:
            self.check("another order of that number is refused", True)
        self.check("one order waits", (await self.coordinator.overview()).ready == 1)

    async def take_orders(self) -> None:
        print("hundreds of orders come in, of all urgencies:")
        urgencies = itertools.cycle(("bulk", "normal", "express"))
        orders = [Order(number, next(urgencies), ("cup",)) for number in GOOD[1:-1]]
        orders += [Order(GOOD[-1], "express", (HALF_BROKEN,)), Order("order-x", "express", (BROKEN,))]
        receipts = await asyncio.gather(*(self.coordinator.accept(order) for order in orders))
        self.check("each was there the moment it was taken", all(r.state == "READY" for r in receipts))
        print(f"  {await self.coordinator.overview()}")

    async def work_through_a_kill(self) -> None:
        print("three workers pack; the leader is killed in the middle:")
        workers = [Worker(self.addrs, self.coordinator.queue, self.pack, name=name, concurrency=2, max_in_flight=8)
                   for name in ("ann", "bob", "cid")]
        working = [asyncio.create_task(worker.run()) for worker in workers]
        watching = asyncio.create_task(self.watch())
        while len(self.packed) < len(GOOD) // 3:
            await asyncio.sleep(0.05)
        leader = await self.cluster.leader()
        self.cluster.kill(leader)
        print(f"  killed node {leader}, which led (-9)", flush=True)
        while len(self.packed) < 2 * len(GOOD) // 3:
            await asyncio.sleep(0.05)
        self.cluster.start(leader)
        print(f"  node {leader} is started again", flush=True)
        counts = await self.coordinator.close(DONE_WITHIN)
        await asyncio.wait_for(asyncio.gather(*working), DONE_WITHIN)
        watching.cancel()
        self.check(f"the queue has ended: {counts.completed} completed, {counts.dead} dead",
                   (counts.completed, counts.dead, counts.ready, counts.leased) == (len(GOOD), 1, 0, 0))

    async def watch(self) -> None:
        while True:
            print(f"  {await self.coordinator.overview()}", flush=True)
            await asyncio.sleep(LOOK_EVERY)

    async def check_orders(self) -> None:
        print("at the end of the day:")
        packages = [await self.coordinator.look(number) for number in GOOD]
        self.check(f"all {len(GOOD)} good ones have a result", all(p.result.endswith(b"packed") for p in packages))
        self.check("each was packed once", len(self.packed) == len(GOOD))
        again = packages[-1]
        self.check(f"{again.id} failed once and was tried again: attempt {again.attempts}", again.attempts == 2)
        dead = await self.coordinator.look("order-x")
        self.check(f"order-x is dead after {dead.attempts} attempts: {dead.last_failure.message}", dead.attempts == 3)
        places = {of: mean(i for i, urgency in enumerate(self.packed) if urgency == of) for of in set(self.packed)}
        ranking = sorted(places, key=places.__getitem__)
        self.check(f"the urgent ones came first: {', '.join(ranking)}", ranking == ["express", "normal", "bulk"])

    async def check_monitoring(self) -> None:
        print("monitoring, as operators see it:")
        node = self.cluster.admin_url(await self.cluster.leader())
        stats = json.loads(await fetch(f"{node}/stats.json"))
        [queue] = [queue for queue in stats["queues"] if queue["name"] == self.coordinator.queue]
        self.check(f"{node}/stats.json: completed {queue['completed']}, dead {queue['dead']},"
                   f" failed {queue['lease_ends']['failed']}", queue["completed"] == len(GOOD))
        lines = (await fetch(f"{node}/metrics")).splitlines()
        depths = [line for line in lines if line.startswith("wharf_queue_packages") and '"orders"' in line]
        print("\n".join(f"        {line}" for line in depths))
        self.check(f"{node}/metrics: {len(lines)} lines", any(line.endswith('state="dead"} 1') for line in depths))


async def fetch(url: str) -> str:
    return await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=5).read().decode())


async def main() -> int:
    async with LocalCluster() as cluster, Client(cluster.addrs) as client:
        desk = Desk(cluster, client)
        await desk.coordinator.open()
        await desk.check_ids()
        await desk.take_orders()
        await desk.work_through_a_kill()
        await desk.check_orders()
        await desk.check_monitoring()
    return 1 if desk.wrong else 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    sys.exit(asyncio.run(main()))
