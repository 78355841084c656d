"""Push and pull, with a clean end: one sender, many pullers, deaths on both sides of the counter.

    examples/python/run examples/push_pull

A cluster of three nodes gets packages from one sender, and six processes pull them. One of them is slow, one is killed
in the middle of a package, and so is the leading node. Then the sender seals the queue: that tells everybody that no
more will come. It hears when all is done, and the pullers end by themselves, none in the middle of a package.

What the pullers wrote down is checked at the end: exit code 1 if anything was lost, done twice or torn away.
"""

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from local_cluster import LocalCluster, dying_with_parent
from wharf.v1.package_pb2 import Package, State
from wharf_client import Client

QUEUE = "letters"
PACKAGES = 1_500
A_SECOND = 250
PACE = {"ann": 0.01, "bob": 0.01, "cid": 0.01, "dot": 0.01, "slow": 0.5, "victim": 0.2}  # seconds a package
END_WITHIN = 20  # seconds
HERE = Path(__file__).resolve().parent


@dataclass
class Puller:
    """A process that pulls, and its diary."""

    name: str
    process: subprocess.Popen
    diary: Path

    @classmethod
    def start(cls, name: str, addrs: list[str], folder: Path) -> "Puller":
        diary = folder / f"{name}.jsonl"
        diary.touch()
        command = [sys.executable, HERE / "pull.py", "--addr", ",".join(addrs), "--queue", QUEUE, "--name", name,
                   "--diary", diary, "--seconds", str(PACE[name])]
        with open(folder / f"{name}.log", "wb") as log:
            return cls(name, subprocess.Popen(dying_with_parent(command), stderr=log), diary)

    def ids(self, event: str) -> list[str]:
        """The packages of which the diary says so."""
        lines = (json.loads(line) for line in self.diary.read_text(encoding="utf-8").splitlines())
        return [line["id"] for line in lines if line["event"] == event]

    def torn(self) -> list[str]:
        """The packages that it began and did not end."""
        return list((Counter(self.ids("begin")) - Counter(self.ids("end"))).elements())


async def push(client: Client, confirmed: list[str]) -> None:
    """Hands in all packages at an even pace; an id counts once the cluster has confirmed it."""

    async def one(number: int) -> None:
        await client.submit(QUEUE, f"letter {number}".encode(), id=f"letter-{number}")
        confirmed.append(f"letter-{number}")

    async with asyncio.TaskGroup() as pushing:
        for number in range(PACKAGES):
            pushing.create_task(one(number))
            await asyncio.sleep(1 / A_SECOND)


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.02)


async def main() -> int:
    with tempfile.TemporaryDirectory(prefix="push-pull-") as folder:
        async with LocalCluster() as cluster, Client(cluster.addrs) as client:
            await client.create_queue(QUEUE)
            pullers = [Puller.start(name, cluster.addrs, Path(folder)) for name in PACE]
            victim = pullers[-1]
            confirmed: list[str] = []
            pushing = asyncio.create_task(push(client, confirmed))

            await until(lambda: len(confirmed) > PACKAGES // 4)
            leader = await cluster.leader()
            cluster.kill(leader)
            say(f"{len(confirmed)} confirmed: killed the leader (-9), node {leader}")
            await until(lambda: len(confirmed) > PACKAGES // 2 and victim.torn())
            victim.process.kill()
            say(f"{len(confirmed)} confirmed: killed a puller (-9) in the middle of a package")
            await until(lambda: len(confirmed) > PACKAGES * 3 // 4)
            cluster.start(leader)
            say(f"{len(confirmed)} confirmed: started node {leader} again")

            await pushing
            await client.seal_queue(QUEUE)
            say(f"{len(confirmed)} confirmed: sealed the queue, no more will come")
            stats = (await client.wait_queue(QUEUE, within=60)).stats
            say(f"all is done: {stats.completed} completed, {stats.dead} dead, {stats.ready + stats.leased} left")
            ends = [await asyncio.to_thread(puller.process.wait, END_WITHIN) for puller in pullers]
            packages = [await client.get(QUEUE, id) for id in confirmed]
        return judge(pullers, ends, packages, stats.completed)


def judge(pullers: list[Puller], ends: list[int], packages: list[Package], completed: int) -> int:
    """Compares what the cluster says with what the pullers wrote."""
    print(f"\n{'puller':8} {'a package':>10} {'begun':>6} {'accepted':>9} {'torn':>5}  end")
    for puller, end in zip(pullers, ends, strict=True):
        how = "by itself" if end == 0 else f"killed ({end})" if end < 0 else f"FAILED ({end})"
        print(f"{puller.name:8} {PACE[puller.name]:8.2f} s {len(puller.ids('begin')):6}"
              f" {len(puller.ids('accepted')):9} {len(puller.torn()):5}  {how}")
    accepted = Counter(id for puller in pullers for id in puller.ids("accepted"))
    victim = pullers[-1]
    unheard = set(victim.ids("end")) - set(victim.ids("accepted"))  # it died before the answer came
    problems = {
        "lost": [package.id for package in packages if package.state != State.COMPLETED],
        "completed twice": [id for id, times in accepted.items() if times > 1],
        "completed by nobody": [p.id for p in packages if not accepted[p.id] and p.id not in unheard],
        "torn away by the shutdown": [id for puller in pullers[:-1] for id in puller.torn()],
        "ended badly": [puller.name for puller, end in zip(pullers[:-1], ends[:-1], strict=True) if end != 0],
        "counted wrongly": [] if completed == len(packages) == PACKAGES else [completed],
    }
    print()
    for problem, found in problems.items():
        print(f"{problem}: {len(found)}  {' '.join(map(str, found[:5]))}".rstrip())
    return 1 if any(problems.values()) else 0


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
