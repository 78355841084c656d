//! The states of a package and the causes that end a lease. Numbers are those of the public API.

/// Where a package stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum State {
    /// Not yet due.
    Scheduled = 1,
    /// Waiting for a worker.
    Ready = 2,
    /// In a worker's hands.
    Leased = 3,
    Completed = 4,
    /// Out of attempts or failed for good; never evicted.
    Dead = 5,
    Cancelled = 6,
    Expired = 7,
}

impl State {
    /// By number, lowest first.
    pub const ALL: [State; 7] = [
        State::Scheduled,
        State::Ready,
        State::Leased,
        State::Completed,
        State::Dead,
        State::Cancelled,
        State::Expired,
    ];

    /// A terminal state.
    pub const fn is_finished(self) -> bool {
        matches!(self, State::Completed | State::Dead | State::Cancelled | State::Expired)
    }

    /// As in the API, the command line and metrics labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            State::Scheduled => "SCHEDULED",
            State::Ready => "READY",
            State::Leased => "LEASED",
            State::Completed => "COMPLETED",
            State::Dead => "DEAD",
            State::Cancelled => "CANCELLED",
            State::Expired => "EXPIRED",
        }
    }

    /// None: no such state.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|state| *state as u32 == number)
    }
}

/// Why a lease ended without a completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Cause {
    Failed = 1,
    TimedOut = 2,
    WorkerLost = 3,
    Released = 4,
    Drained = 5,
    Reclaimed = 6,
}

impl Cause {
    /// By number, lowest first.
    pub const ALL: [Cause; 6] =
        [Cause::Failed, Cause::TimedOut, Cause::WorkerLost, Cause::Released, Cause::Drained, Cause::Reclaimed];

    /// As in the API, the command line and metrics labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Cause::Failed => "FAILED",
            Cause::TimedOut => "TIMED_OUT",
            Cause::WorkerLost => "WORKER_LOST",
            Cause::Released => "RELEASED",
            Cause::Drained => "DRAINED",
            Cause::Reclaimed => "RECLAIMED",
        }
    }

    /// None: no such cause.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|cause| *cause as u32 == number)
    }
}
