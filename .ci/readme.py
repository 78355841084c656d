#!/usr/bin/env python3
"""Runs every `sh` block of README.md, in order, as a newcomer would type it.

A block after `<!-- run: background -->` is started and left running until the end; the next
block starts once the text after `until:` has appeared in its output. A block after
`<!-- run: no, because … -->` is not run.
"""
import os
import signal
import subprocess
import sys
import tempfile
import time

import blocks

LIMIT_SECONDS = 40 * 60
WAIT_SECONDS = 60


def main() -> int:
    env = dict(os.environ, PATH=os.path.abspath("target/release") + os.pathsep + os.environ["PATH"])
    background = []
    try:
        for note, code in blocks.of("README.md"):
            print(f"\n$ {code.strip()}", flush=True)
            if blocks.is_left_out(note):
                print(f"(not run: {note})", flush=True)
            elif note.startswith("background"):
                background.append(start(code, note, env))
            else:
                begin = time.monotonic()
                done = subprocess.run(blocks.typed(code), env=env, timeout=LIMIT_SECONDS)
                if done.returncode != 0:
                    print(f"README block failed with {done.returncode}", file=sys.stderr)
                    return 1
                print(f"(ok, {time.monotonic() - begin:.0f} s)", flush=True)
    finally:
        for process in background:
            os.killpg(process.pid, signal.SIGINT)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
    return 0


def start(code: str, note: str, env: dict) -> subprocess.Popen:
    until = note.split("until: ", 1)[1]
    log = tempfile.NamedTemporaryFile("w+", suffix=".log")
    process = subprocess.Popen(
        blocks.typed(code),
        env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
    )
    end = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < end and process.poll() is None:
        if until in open(log.name, encoding="utf-8").read():
            print(f"(running: printed {until!r})", flush=True)
            return process
        time.sleep(0.1)
    print(open(log.name, encoding="utf-8").read(), file=sys.stderr)
    os.killpg(process.pid, signal.SIGKILL)
    sys.exit(f"README block never printed {until!r}")


if __name__ == "__main__":
    sys.exit(main())
