"""Submits packages and waits for their results. An id makes repeats harmless, even from another process.

    examples/python/run examples/python/submit.py --addr 127.0.0.1:7411 --queue jobs --count 100
"""

import argparse
import asyncio
import os
import sys

from wharf_client import Client, Refused, Unknown

IN_FLIGHT = 32  # how many are submitted or waited for at once


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--addr", default=os.environ.get("WHARF_ADDR", "127.0.0.1:7411"), help="host:port[,host:port…]")
    parser.add_argument("--queue", required=True)
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--prefix", default="package", help="ids are PREFIX-0, PREFIX-1, …")
    args = parser.parse_args()
    room = asyncio.Semaphore(IN_FLIGHT)

    async with Client(args.addr.split(",")) as client:
        async def one(number: int) -> None:
            async with room:
                id = f"{args.prefix}-{number}"
                taken = await client.submit(args.queue, f"hello {number}".encode(), id=id)
                print(f"{id} {'was there before' if taken.duplicate else 'is safe'}", flush=True)
                package = await client.wait(args.queue, id, within=300)
                print(f"{id} is finished: {package.result.decode()}", flush=True)

        await asyncio.gather(*(one(number) for number in range(args.count)))


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except (Refused, Unknown) as error:
        sys.exit(str(error))
