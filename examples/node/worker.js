// A Wharf worker without an SDK, over @grpc/grpc-js. Copy it: this file is all there is; work.js shows its use.

import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";

// The cluster cuts off a worker that says nothing for 5 s; the worker leaves a node that says nothing for 3 s.
const PING_EVERY_MS = 1_000;
const SILENCE_MS = 3_000;
const { INVALID_ARGUMENT, NOT_FOUND, PERMISSION_DENIED, UNAUTHENTICATED } = grpc.status;
const FOR_GOOD = [INVALID_ARGUMENT, NOT_FOUND, PERMISSION_DENIED, UNAUTHENTICATED];
const NOT_NOW = [grpc.status.UNAVAILABLE, grpc.status.DEADLINE_EXCEEDED, grpc.status.RESOURCE_EXHAUSTED];
const OPTIONS = { "grpc.max_receive_message_length": 16 << 20 }; // a payload may have 8 MiB, gRPC takes 4 by itself

const protos = fileURLToPath(new URL("../../proto", import.meta.url));
const loaded = loadSync("wharf/v1/worker.proto", {
  includeDirs: [protos], longs: String, enums: String, defaults: true, oneofs: true,
});
const { WorkerService } = grpc.loadPackageDefinition(loaded).wharf.v1;

/**
 * Holds up to `maxInFlight` packages and works on `concurrency` of them. What the handler's promise brings is the
 * package's result (bytes or text); if it is rejected, the package has failed and is tried again by the queue's
 * settings. The handler's signal is aborted once the lease is gone: what it does then is in vain.
 */
export class Worker {
  #addrs;
  #handler;
  #hello;
  #leases = new Map(); // by fence, in the order of their delivery
  #receivedFence = 0n;
  #stream = null; // once we are welcome
  #leaving = false;

  constructor(addrs, queue, handler, { name = "node", concurrency = 1, maxInFlight = 64 } = {}) {
    this.#addrs = [...addrs];
    this.#handler = handler;
    this.#hello = { worker: name, session: randomUUID(), queues: [queue], concurrency, maxInFlight };
  }

  /** Works until the queue has ended or the worker is drained; comes back after every break. */
  async run() {
    while (this.#leases.size > 0 || !this.#leaving) {
      const addr = this.#addrs[0]; // any node will do: it passes us on to the leader
      try {
        await this.#attach(addr);
        this.drain(); // the cluster closed the stream in good order: somebody drained us
      } catch (error) {
        if (FOR_GOOD.includes(error.code)) throw error;
        console.error(`lost ${addr}: ${error.message}`);
        this.#addrs.push(this.#addrs.shift());
      }
      await sleep(20 + 180 * Math.random());
    }
  }

  /** Takes nothing new, gives back what was not started, finishes the rest and goes. */
  drain() {
    this.#leaving = true;
    this.#giveBack(this.#leases.size);
    this.#say({ drain: {} });
  }

  /** One stream, from our Hello to its end. */
  async #attach(addr) {
    const client = new WorkerService(addr, grpc.credentials.createInsecure(), OPTIONS);
    const stream = client.work();
    stream.on("error", () => {}); // the loop below hears it too; this is for what comes after
    let heard = Date.now();
    const pings = setInterval(() => {
      if (Date.now() - heard > SILENCE_MS) stream.destroy(new Error("silence"));
      else this.#say({ ping: {} });
    }, PING_EVERY_MS);
    try {
      const held = [...this.#leases.values()].map((lease) => lease.name);
      stream.write({ receivedFence: `${this.#receivedFence}`, hello: { ...this.#hello, held } });
      for await (const message of stream) {
        heard = Date.now();
        this.#hear(message, stream);
      }
    } finally {
      this.#stream = null;
      clearInterval(pings);
      stream.cancel();
      client.close();
    }
  }

  #hear(message, stream) {
    switch (message.response) {
      case "welcome":
        this.#stream = stream;
        return this.#welcomed(message.welcome);
      case "deliver":
        return message.deliver.deliveries.forEach((delivery) => this.#take(delivery));
      case "settled":
        return message.settled.outcomes.forEach((outcome) => this.#answered(outcome.fence, outcome.status));
      case "recall":
        return this.#giveBack(message.recall.count);
      case "revoke":
        return message.revoke.held.forEach((held) => this.#lose(held.fence));
      case "endOfWork":
        return this.drain();
      case "goaway":
        throw new Error(message.goaway.reason);
    }
  }

  /** Without a stream nothing is said; what matters is said again on the next one. */
  #say(request) {
    this.#stream?.write({ receivedFence: `${this.#receivedFence}`, ...request });
  }

  /** Says something about a lease until it is answered, over as many streams as that takes. */
  #ask(lease, request) {
    lease.request = request;
    this.#say(request);
    return new Promise((resolve) => (lease.answer = resolve));
  }

  #welcomed({ epoch, verdicts }) {
    console.error(`attached, epoch ${epoch}, holding ${this.#leases.size}`);
    for (const { kind, fence, outcome } of verdicts) {
      if (kind === "SETTLED") this.#answered(fence, outcome);
      if (kind === "GONE") this.#lose(fence);
    }
    for (const { request } of this.#leases.values()) if (request) this.#say(request);
    if (this.#leaving) this.drain();
  }

  #take(delivery) {
    const { fence } = delivery;
    if (BigInt(fence) > this.#receivedFence) this.#receivedFence = BigInt(fence);
    if (!this.#leases.has(fence)) { // else it was sent again
      const { queue, id } = delivery.package;
      this.#leases.set(fence, { delivery, name: { queue, id, fence }, gone: new AbortController() });
    }
    if (this.#leaving) this.#giveBack(1);
    this.#startSome();
  }

  #startSome() {
    const leases = [...this.#leases.values()];
    const working = leases.filter((lease) => lease.working).length;
    const waiting = leases.filter((lease) => !lease.started);
    waiting.slice(0, this.#hello.concurrency - working).forEach((lease) => this.#carry(lease));
  }

  /** An absent status is the same as code 0. */
  #answered(fence, status) {
    const lease = this.#leases.get(fence);
    if (NOT_NOW.includes(status?.code)) throw new Error(status.message); // a new stream tells what came of it
    if (!lease?.request) return;
    lease.request = null;
    lease.answer(status ?? { code: 0, message: "" });
  }

  /** The lease is somebody else's. */
  #lose(fence) {
    this.#leases.get(fence)?.gone.abort();
    this.#leases.delete(fence);
    this.#startSome();
  }

  /** Releases the youngest of the packages that were not started. */
  #giveBack(count) {
    const waiting = [...this.#leases.values()].filter((lease) => !lease.started);
    for (const lease of waiting.reverse().slice(0, count)) {
      lease.started = true;
      this.settle(lease, { release: { held: [lease.name] } });
    }
  }

  /** Works while it extends the lease, and settles. */
  async #carry(lease) {
    lease.started = lease.working = true;
    const { seconds, nanos } = lease.delivery.lease;
    const extending = setInterval(() => {
      if (!lease.request) lease.extended = this.#ask(lease, { extend: { extensions: [lease.name] } });
    }, (seconds * 1_000 + nanos / 1e6) / 3);
    const settlement = await this.#work(lease);
    clearInterval(extending);
    await lease.extended; // one thing at a time
    lease.working = false;
    this.#startSome();
    if (!lease.gone.signal.aborted) await this.settle(lease, settlement);
  }

  async #work(lease) {
    try {
      const result = Buffer.from((await this.#handler(lease.delivery, lease.gone.signal)) ?? "");
      if (result.length > 8 << 20) throw new Error("the result is too large"); // no queue can take more
      return { done: { completions: [{ ...lease.name, result }] } };
    } catch (error) {
      return { fail: { failed: [{ ...lease.name, message: String(error) }] } };
    }
  }

  /** Ends a lease. The answer says whether that counted; override this to hear it. */
  async settle(lease, settlement) {
    let status = await this.#ask(lease, settlement);
    if (status.code === INVALID_ARGUMENT) { // such as a result that is too large: the lease stands
      status = await this.#ask(lease, { fail: { failed: [{ ...lease.name, message: status.message }] } });
    }
    this.#leases.delete(lease.name.fence);
    return status;
  }
}
