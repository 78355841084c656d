//! Every bound of the product, by name. A test hits each one and reads its named reason, or sees what
//! it does; `tests/tidy.rs` lists the paces, which bound nothing.
//!
//! The machine must not read what may change between versions: numbers that apply reads are
//! defaults here and live in the state (`SetCluster`); those marked *fixed* are part of the
//! machine version.

/// Bytes in a queue name's part. Fixed.
pub const MAX_NAME_BYTES: usize = 200;
/// Bytes in a package id. Fixed.
pub const MAX_ID_BYTES: usize = 256;
/// Bytes in a kind, a worker's name, a session id, a content type. Fixed.
pub const MAX_WORD_BYTES: usize = 256;
/// Labels of a package or worker, and bytes in a key and a value. Fixed.
pub const MAX_LABELS: usize = 64;
pub const MAX_LABEL_KEY_BYTES: usize = 128;
pub const MAX_LABEL_VALUE_BYTES: usize = 1024;
/// Bytes in a failure's message or a cancel's reason; longer ones are cut. Fixed.
pub const MAX_MESSAGE_BYTES: usize = 4096;
/// Bytes in a failure's code; longer ones are cut. Fixed.
pub const MAX_CODE_BYTES: usize = 256;
/// Bytes in a checkpoint. Fixed.
pub const MAX_CHECKPOINT_BYTES: usize = 64 * 1024;
/// The hard upper bound of `max_payload` and `max_result`.
pub const MAX_PAYLOAD_CEILING_BYTES: u64 = 8 << 20;
/// Priorities are 0 to 9, 9 first. Fixed.
pub const MAX_PRIORITY: u32 = 9;

/// Packages in one submit call.
pub const MAX_PACKAGES_A_SUBMIT: usize = 1000;
/// Settlements (completions, failures, extensions, releases) in one message.
pub const MAX_SETTLEMENTS_A_MESSAGE: usize = 1000;
/// Packages that one command may change; more becomes a sweep. Fixed.
pub const MAX_CHANGES_A_COMMAND: usize = 1000;
/// Grants that the matching after one batch may make; more becomes match debt. Fixed.
pub const MAX_GRANTS_A_BATCH: usize = 4096;
/// Every so many grants of a queue the oldest head is taken, whatever its priority. Fixed.
pub const OLDEST_EVERY: u64 = 16;

/// A session's `max_in_flight`: default and ceiling.
pub const DEFAULT_MAX_IN_FLIGHT: u32 = 64;
pub const MAX_IN_FLIGHT_CEILING: u32 = 1_000;
/// Leases that a Hello may name: those in hand, and as many that were settled without an answer yet.
pub const MAX_HELD_IN_A_HELLO: usize = 2 * MAX_IN_FLIGHT_CEILING as usize;
/// A session's `max_in_flight_bytes` by default.
pub const DEFAULT_MAX_IN_FLIGHT_BYTES: u64 = 16 << 20;
/// Queues times kinds that one subscription may name. Fixed.
pub const MAX_LANES_A_CLASS: usize = 64;
/// Different subscriptions at once. Fixed.
pub const MAX_CLASSES: usize = 1000;
/// Sessions at once, by default.
pub const DEFAULT_MAX_SESSIONS: u32 = 10_000;
/// Queues, by default.
pub const DEFAULT_MAX_QUEUES: u32 = 10_000;
/// Kinds known at once in one queue. Fixed.
pub const MAX_KINDS_A_QUEUE: usize = 10_000;
/// Bytes of packages held in memory, by default.
pub const DEFAULT_MEMORY_BUDGET_BYTES: u64 = 4 << 30;
/// Tombstones at once, by default.
pub const DEFAULT_DEDUP_BUDGET: u64 = 20_000_000;

/// A session without a stream is closed after this.
pub const DEFAULT_SESSION_GRACE_MS: u64 = 5_000;
/// The same after a change of leader.
pub const DEFAULT_FAILOVER_GRACE_MS: u64 = 15_000;
/// The state's ticks pass the last applied ones by at most this in one batch.
pub const MAX_TICK_STEP_MS: u64 = 1_000;
/// While timers are armed the leader proposes a tick at least so often.
pub const TICK_EVERY_MS: u64 = 500;

/// Bytes in one batch; a group closes when it is reached.
pub const MAX_BATCH_BYTES: usize = 1 << 20;
/// Commands in one batch.
pub const MAX_BATCH_COMMANDS: usize = 1024;
/// Batches proposed and not yet answered.
pub const MAX_PROPOSALS_IN_FLIGHT: usize = 6;
/// Commands that wait for a batch; more are answered `OVERLOADED`.
pub const MAX_COMMANDS_WAITING: usize = 16 * 1024;
/// Bytes of commands that wait for a batch.
pub const MAX_BYTES_WAITING: usize = 64 << 20;
/// A proposal without an answer is reported as unknown after this.
pub const PROPOSAL_DEADLINE_MS: u64 = 5_000;

/// Packages in one page of a list: by default and at most. Queues and workers: always at most.
pub const DEFAULT_LIST_PAGE: usize = 100;
pub const MAX_LIST_PAGE: usize = 1000;
/// Bytes in one page of a list, unless it is a single item: what most gRPC clients take without being
/// told of more.
pub const MAX_LIST_BYTES: usize = 2 << 20;
/// Packages that a list looks at while apply waits, and in one call; then the page is closed.
pub const LIST_LOOKS_AT_ONCE: usize = 1000;
pub const MAX_LIST_LOOKS: usize = 50_000;
/// How long a call for work may wait.
pub const MAX_LEASE_WAIT_MS: u64 = 300_000;
/// Bytes of packages that one call for work leases, and one package more.
pub const MAX_LEASE_ANSWER_BYTES: u64 = 1 << 20;

/// One gRPC message between client and node, either way.
pub const MAX_CLIENT_MESSAGE_BYTES: usize = 16 << 20;
/// One gRPC message between nodes.
pub const MAX_PEER_MESSAGE_BYTES: usize = 32 << 20;
/// Bytes of log entries in one append.
pub const MAX_APPEND_BYTES: u64 = 2 << 20;
/// Bytes of package in one `Deliver`, unless it is a single one.
pub const MAX_DELIVER_BYTES: usize = 1 << 20;
/// Messages queued for one stream to a client; a reader that lags further is cut off.
pub const MAX_STREAM_QUEUE: usize = 1024;
/// Requests of one submit stream that wait for their answer.
pub const MAX_SUBMITS_IN_FLIGHT_A_STREAM: usize = 4096;
/// Settling requests of one worker stream whose answer was not yet taken by its reader.
pub const MAX_SETTLES_IN_FLIGHT_A_STREAM: usize = 256;
/// Calls that wait for a package or queue at once, on one node.
pub const MAX_WAITERS: usize = 100_000;
/// gRPC streams a connection.
pub const MAX_STREAMS_A_CONNECTION: u32 = 16_384;
/// Connections a listener.
pub const MAX_CONNECTIONS: usize = 10_000;
/// Changes of packages that a node keeps for watchers, and about how many bytes they may hold.
pub const CHANGES_KEPT: usize = 65_536;
pub const CHANGES_KEPT_BYTES: usize = 32 << 20;
/// Changes that a reader takes at once.
pub const CHANGES_A_READ: usize = 1024;
/// Watchers, and others who follow the changes, on one node.
pub const MAX_CHANGE_READERS: usize = 10_000;
/// Events on their way to one watcher.
pub const WATCH_QUEUE: usize = 256;
/// A watcher far behind that takes nothing for so long is cut off.
pub const WATCH_STALL_MS: u64 = 1_000;
/// An idle watcher is told so often how far it is.
pub const WATCH_BOOKMARK_MS: u64 = 10_000;
/// After so many changes that were not for it a watcher is told how far it is.
pub const WATCH_BOOKMARK_AFTER: u64 = 10_000;
/// Bytes of history that sled keeps in memory.
pub const HISTORY_CACHE_BYTES: u64 = 8 << 20;
/// How long and how much history is kept, by default.
pub const HISTORY_KEEP_MS: u64 = 7 * 24 * 3_600_000;
pub const HISTORY_MAX_BYTES: u64 = 256 << 20;
/// A result larger than this is left out of history.
pub const HISTORY_RESULT_BYTES: usize = 64 << 10;
/// Rows that go at once when history is trimmed.
pub const HISTORY_TRIM_ROWS: usize = 1_000;
/// Packages in a page of history by default and at most, and about how many bytes.
pub const HISTORY_PAGE_DEFAULT: usize = 100;
pub const HISTORY_PAGE: usize = 1_000;
pub const HISTORY_PAGE_BYTES: usize = 4 << 20;
/// The latest attempts of a package, and the latest gaps, that a page tells.
pub const HISTORY_ATTEMPTS: usize = 100;
pub const HISTORY_GAPS: usize = 100;
/// Writes and questions that wait for the thread that keeps history; past that its reader waits.
pub const HISTORY_JOBS: usize = 64;
/// Begins of leases that history remembers until they end; of more the begin is not known.
pub const HISTORY_LEASES: usize = 200_000;
/// Written history is flushed so often, at most.
pub const HISTORY_FLUSH_MS: u64 = 1_000;
/// How far history has come is written down so often if nothing else is.
pub const HISTORY_COVER_MS: u64 = 10_000;
/// A history whose disk failed is tried again after this.
pub const HISTORY_RETRY_MS: u64 = 30_000;
/// Damaged histories that were set aside and are kept.
pub const HISTORY_DAMAGED_KEPT: usize = 2;
/// A history that could not be opened so often is set aside, though nobody knows why.
pub const HISTORY_OPEN_TRIES: u64 = 2;
/// Batches of effects between apply and dispatch; past that dispatch rebuilds from state.
pub const MAX_EFFECT_BATCHES: usize = 4096;

/// The worker stream is silent for so long: cut off. With the looks in between, and the commands that
/// follow, less than 5 s pass, so that what a worker held is elsewhere within its grace and 5 s.
pub const WORKER_SILENCE_MS: u64 = 4_500;
/// Silence and lag of worker streams are looked at so often.
pub const LIVENESS_EVERY_MS: u64 = 100;
/// Prefetch that others could work on is looked for so often.
pub const RECALL_EVERY_MS: u64 = 100;
/// A recall that brought nothing for so long becomes a reclaim.
pub const RECALL_ANSWER_MS: u64 = 1_000;
/// HTTP/2 pings on an idle connection of a client or peer, and how long their answer may take.
pub const KEEPALIVE_EVERY_MS: u64 = 2_000;
pub const KEEPALIVE_ANSWER_MS: u64 = 3_000;
/// A call without a deadline of its own has this one, unless it waits for a package or queue.
pub const DEFAULT_CALL_DEADLINE_MS: u64 = 10_000;
/// A call waits for a leader at most so long, within its deadline.
pub const LEADER_WAIT_MS: u64 = 10_000;
/// Calls that wait for packages look so many at once; the others look next.
pub const WAIT_LOOKS_AT_ONCE: usize = 64;
/// While calls wait for packages, a node looks so often whether it still hears the leader.
pub const WAIT_CHECK_MS: u64 = 5_000;
/// The ends of so many sweeps are remembered for calls that come to ask.
pub const MAX_SWEEPS_REMEMBERED: usize = 1024;
/// Past so many queues, rates are no longer sampled.
pub const MAX_RATED_QUEUES: usize = 1000;
/// Log bytes after which a snapshot is taken.
pub const SNAPSHOT_EVERY_LOG_BYTES: u64 = 256 << 20;
/// A log segment; the very first one is smaller, so that a new node starts at once.
pub const SEGMENT_BYTES: u64 = 64 << 20;
pub const FIRST_SEGMENT_BYTES: u64 = 4 << 20;
/// A rest after each 256 KiB of a segment that is made ahead with time left: about 20 MB/s.
pub const SEGMENT_PIECE_REST_MS: u64 = 12;
/// Bytes of appended entries that wait for the flush thread; past that `append` waits.
pub const LOG_QUEUE_BYTES: usize = 64 << 20;
/// Bytes in one write of the log; a longer queue takes several.
pub const MAX_FLUSH_BYTES: usize = 8 << 20;
/// Bytes read from a segment at once.
pub const LOG_READ_BYTES: u64 = 1 << 20;
/// On a full disk the log looks for room for its next segment this often.
pub const LOG_RETRY_MS: u64 = 1_000;
/// Snapshots kept on disk, and bytes in a frame of one.
pub const SNAPSHOTS_KEPT: usize = 2;
pub const SNAPSHOT_FRAME_BYTES: usize = 256 << 10;
/// Bytes of the log's tail that stay in memory.
pub const LOG_CACHE_BYTES: usize = 16 << 20;
/// Disk space set aside for completions and snapshots, at least.
pub const DISK_RESERVE_BYTES: u64 = 256 << 20;

/// Queues that metrics name; more are only counted.
pub const MAX_QUEUES_IN_METRICS: usize = 500;
// The SDK (`client`).

/// Addresses that one client may be given.
pub const CLIENT_MAX_ADDRESSES: usize = 64;
/// A call's deadline, unless its caller sets another.
pub const CLIENT_CALL_DEADLINE_MS: u64 = 30_000;
/// One try of a call that is safe to repeat waits so long before another node is asked.
pub const CLIENT_TRY_MS: u64 = 2_500;
/// One try of a wait; each longer wait is several. Long, so that many idle waits cost nothing: a node
/// that dies is noticed by its connection.
pub const CLIENT_WAIT_TRY_MS: u64 = 300_000;
/// Pause before a node that lags is asked again for the same page.
pub const CLIENT_LIST_PAUSE_MS: u64 = 50;
/// The command line gives up after this if every address refuses the connection.
pub const CLIENT_REFUSED_MS: u64 = 1_000;
/// A connection is up after this, or another address is tried.
pub const CLIENT_CONNECT_MS: u64 = 1_000;
/// The first and the longest pause between tries.
pub const CLIENT_BACKOFF_FIRST_MS: u64 = 5;
pub const CLIENT_BACKOFF_MAX_MS: u64 = 1_000;
/// For so long after a break pauses stay short: a failover is over by then.
pub const CLIENT_BACKOFF_QUICK_FOR_MS: u64 = 2_000;
pub const CLIENT_BACKOFF_QUICK_MAX_MS: u64 = 40;
/// HTTP/2 windows of the SDK's connections.
pub const CLIENT_STREAM_WINDOW_BYTES: u32 = 8 << 20;
pub const CLIENT_CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// A leader that was named but cannot be reached is not tried again for so long: briefly if the
/// client was given its address, else long, for then it probably never can be.
pub const CLIENT_AVOID_SEED_MS: u64 = 1_000;
pub const CLIENT_AVOID_LEADER_MS: u64 = 30_000;
/// Bytes of packages or results that the SDK puts into one message, unless it is a single one.
pub const CLIENT_MESSAGE_BYTES: usize = 512 << 10;
/// Messages that wait for the network on one of the SDK's streams.
pub const CLIENT_STREAM_QUEUE: usize = 16;
/// Packages submitted by a `Submitter` and not yet confirmed, unless its owner sets another number.
pub const CLIENT_SUBMIT_WINDOW: usize = 4_096;
/// A worker sends a sign of life so often, and takes its stream for dead after so long a silence.
pub const CLIENT_PING_EVERY_MS: u64 = 1_000;
pub const CLIENT_SILENCE_MS: u64 = 3_000;
/// Who owes an answer and is silent for so long is doubted: the other nodes are asked who leads, and
/// again after the second.
pub const CLIENT_DOUBT_MS: u64 = 300;
pub const CLIENT_DOUBT_AGAIN_MS: u64 = 100;
/// A Hello is answered within this, or another node is tried.
pub const CLIENT_WELCOME_MS: u64 = 2_500;
/// A worker gives up when it could not attach for so long: the first time, and later.
pub const CLIENT_ATTACH_MS: u64 = 60_000;
pub const CLIENT_REATTACH_MS: u64 = 600_000;
/// A handler that was cancelled is dropped after this.
pub const CLIENT_CANCEL_GRACE_MS: u64 = 5_000;
/// A draining worker waits so long for its handlers.
pub const CLIENT_DRAIN_MS: u64 = 300_000;
/// A worker that leaves waits so long for the cluster's goodbye.
pub const CLIENT_GOODBYE_MS: u64 = 1_000;
/// A settlement that the cluster could not take now is sent again after this.
pub const CLIENT_RESEND_MS: u64 = 50;
/// A watch that hears nothing for so long goes on elsewhere.
pub const CLIENT_WATCH_SILENCE_MS: u64 = 3 * WATCH_BOOKMARK_MS;
/// Extensions of one lease that wait for their turn.
pub const CLIENT_MAX_EXTENSIONS_WAITING: usize = 16;

/// The leader speaks at least so often.
pub const HEARTBEAT_MS: u64 = 200;
/// A leader's lease lasts for the second of these. A follower that hears nothing stands for election
/// after the lease and a random time between the two.
pub const ELECTION_MIN_MS: u64 = 300;
pub const ELECTION_MAX_MS: u64 = 500;
/// A leader that no quorum answered for so long serves nobody until one does again.
pub const QUORUM_LOST_MS: u64 = 2_000;
/// A connection to a peer is made within this.
pub const PEER_CONNECT_MS: u64 = 1_000;
/// A silent connection to a peer is probed after this, and given up after that.
pub const PEER_KEEPALIVE_MS: u64 = 1_000;
pub const PEER_KEEPALIVE_TIMEOUT_MS: u64 = 3_000;
/// An append that waits for its answer longer than this ends the stream.
pub const PEER_ANSWER_MS: u64 = 5_000;
/// While entries follow each other by less than this, a follower hears of a commit with the next ones; no later
/// than this.
pub const PEER_NOTICE_MS: u64 = 3;
/// HTTP/2 between nodes.
pub const PEER_STREAM_WINDOW_BYTES: u32 = 8 << 20;
pub const PEER_CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
pub const PEER_FRAME_BYTES: u32 = 1 << 20;
/// A snapshot travels in pieces of this size, within this time.
pub const SNAPSHOT_CHUNK_BYTES: usize = 1 << 20;
pub const SNAPSHOT_TRANSFER_MS: u64 = 600_000;
/// Log bytes kept behind a snapshot, so that a follower that was away briefly needs none.
pub const LOG_KEEP_BYTES: u64 = 64 << 20;
/// Bytes of one command; what the API lets through is smaller.
pub const MAX_COMMAND_BYTES: usize = 24 << 20;
/// While completions come in, as many packages are submitted as are settled (so many of them may have come
/// before), or this many a millisecond, if that is more.
pub const MAX_SUBMITS_EARNED: usize = MAX_BATCH_COMMANDS;
pub const SUBMITS_A_MS_WHILE_BUSY: usize = 64;
/// While completions come in, a batch takes so many bytes of submits.
pub const MAX_SUBMIT_BYTES_WHILE_BUSY: usize = MAX_BATCH_BYTES / 4;
/// Submits that wait before `ready` holds further ones back.
pub const SUBMITS_WAITING_BEFORE_HOLD: usize = 2 * MAX_BATCH_COMMANDS;
/// Read barriers that wait for the next round; more wait outside.
pub const MAX_BARRIERS_WAITING: usize = 1024;
/// What was proposed by a leader that lost its office may still be answered within this.
pub const STEP_DOWN_GRACE_MS: u64 = 300;
/// A peer's clock that was not heard for so long does not count.
pub const PEER_CLOCK_STALE_MS: u64 = 5_000;
/// Clocks further than this from the quorum's raise CLOCK_SKEW.
pub const CLOCK_SKEW_MS: u64 = 2_000;
/// A peer that answered within this is reachable.
pub const PEER_REACHABLE_MS: u64 = 1_500;
/// Fast failover: a node starts at most one election in this time.
pub const FAILOVER_EVERY_MS: u64 = 2_000;
/// Fast failover: the node next in rank waits so long for the one before it.
pub const FAILOVER_STAGGER_MS: u64 = 40;
/// Fast failover: a peer is given so long to notice the loss itself.
pub const FAILOVER_ASK_MS: u64 = 60;
/// Whether a lost leader is gone is asked again for so long; then the election timeout covers it.
pub const FAILOVER_TRY_MS: u64 = 400;
/// Fast failover: a vote carries the word that the leader is gone for so long.
pub const FAILOVER_VOTE_MS: u64 = 400;
/// Pause between the rounds of a bootstrap.
pub const BOOTSTRAP_RETRY_MS: u64 = 150;
/// A probe is answered within this.
pub const PROBE_MS: u64 = 1_000;
/// Whoever is to take leadership over does so within this.
pub const TRANSFER_MS: u64 = 5_000;
/// Members of a cluster, learners included: each gets the whole log from the leader.
pub const MAX_MEMBERS: usize = 16;
/// A learner that is no more log entries behind may become a voter; a voter that is further behind
/// does not count where others are about to stop.
pub const CAUGHT_UP_ENTRIES: u64 = 1_000;
/// A peer address, `host:port`.
pub const MAX_ADDR_BYTES: usize = 300;
/// Leadership is handed over within this at shutdown.
pub const SHUTDOWN_TRANSFER_MS: u64 = 2_000;

/// A node that stops lets calls under way finish for so long.
pub const SHUTDOWN_CALLS_MS: u64 = 3_000;

/// What the command line reads of a node's answer about its health.
pub const MAX_HEALTH_ANSWER_BYTES: u64 = 4 << 10;
