"""One puller of the example: works packages and writes down what it does, so that the sender can check it later."""

import argparse
import asyncio
import json
import logging
import signal
from pathlib import Path

from google.rpc.status_pb2 import Status
from wharf.v1.worker_pb2 import Delivery
from wharf_worker import Lease, Worker


class Puller(Worker):
    """Takes `seconds` for a package. Its diary is one JSON object a line, and survives a kill."""

    def __init__(self, addrs: list[str], queue: str, name: str, diary: Path, seconds: float) -> None:
        super().__init__(addrs, queue, self.work, name=name, concurrency=2, max_in_flight=16)
        self._diary = open(diary, "a", encoding="utf-8", buffering=1)
        self._seconds = seconds

    async def work(self, delivery: Delivery) -> bytes:
        self.note("begin", delivery)
        await asyncio.sleep(self._seconds)
        self.note("end", delivery)
        return delivery.package.payload[::-1]

    async def settle(self, lease: Lease, **settlement) -> Status:
        status = await super().settle(lease, **settlement)
        if "done" in settlement:
            self.note("refused" if status.code else "accepted", lease.delivery)
        return status

    def note(self, event: str, delivery: Delivery) -> None:
        self._diary.write(json.dumps({"event": event, "id": delivery.package.id, "fence": delivery.fence}) + "\n")


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--addr", required=True)
    parser.add_argument("--queue", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--diary", required=True, type=Path)
    parser.add_argument("--seconds", required=True, type=float)
    args = parser.parse_args()
    puller = Puller(args.addr.split(","), args.queue, args.name, args.diary, args.seconds)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, puller.drain)
    await puller.run()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    asyncio.run(main())
