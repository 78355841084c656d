"""Works the packages of a queue until it has ended; SIGTERM or Ctrl-C lets it finish what it works on.

    examples/python/run examples/python/work.py --addr 127.0.0.1:7411 --queue jobs
"""

import argparse
import asyncio
import logging
import os
import signal
import sys

import grpc
from wharf.v1.worker_pb2 import Delivery
from wharf_worker import Worker


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--addr", default=os.environ.get("WHARF_ADDR", "127.0.0.1:7411"), help="host:port[,host:port…]")
    parser.add_argument("--queue", required=True)
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=0.01, help="what a package takes")
    args = parser.parse_args()

    async def shout(delivery: Delivery) -> bytes:
        """The work itself."""
        print(f"working on {delivery.package.id}, attempt {delivery.attempt}, fence {delivery.fence}", flush=True)
        await asyncio.sleep(args.seconds)
        return delivery.package.payload.upper()

    worker = Worker(args.addr.split(","), args.queue, shout, concurrency=args.concurrency)
    for sign in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(sign, worker.drain)
    await worker.run()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        asyncio.run(main())
    except grpc.aio.AioRpcError as error:
        sys.exit(error.details())
