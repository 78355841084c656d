// Works the packages of a queue until it has ended; SIGTERM or Ctrl-C lets it finish what it works on.
//
//   examples/node/run examples/node/work.js --addr 127.0.0.1:7411 --queue jobs

import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { Worker } from "./worker.js";

const { values: args } = parseArgs({
  options: {
    addr: { type: "string", default: process.env.WHARF_ADDR ?? "127.0.0.1:7411" }, // host:port[,host:port…]
    queue: { type: "string" },
    concurrency: { type: "string", default: "4" },
    seconds: { type: "string", default: "0.01" }, // what a package takes
  },
});
if (!args.queue) throw new Error("which queue? --queue NAME");

/** The work itself. */
async function shout({ package: { id, payload }, attempt, fence }, signal) {
  console.log(`working on ${id}, attempt ${attempt}, fence ${fence}`);
  await sleep(1_000 * args.seconds, null, { signal });
  return payload.toString().toUpperCase();
}

const worker = new Worker(args.addr.split(","), args.queue, shout, { concurrency: Number(args.concurrency) });
for (const sign of ["SIGTERM", "SIGINT"]) process.on(sign, () => worker.drain());
await worker.run().catch((error) => {
  console.error(error.details ?? error);
  process.exitCode = 1;
});
