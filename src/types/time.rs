//! The two clocks of the state. Both pass only through the log.

use std::fmt;

/// Cluster time in milliseconds: passes only while a leader lives. Leases, backoff, windows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticks(pub u64);

/// Calendar time in milliseconds since the Unix epoch. `not_before`, expiry, what people read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Wall(pub u64);

macro_rules! arithmetic {
    ($name:ident) => {
        impl $name {
            /// `ms` later, at the end of time if that overflows.
            pub const fn plus(self, ms: u64) -> Self {
                Self(self.0.saturating_add(ms))
            }

            /// Milliseconds since `earlier`; 0 if it lies ahead.
            pub const fn since(self, earlier: Self) -> u64 {
                self.0.saturating_sub(earlier.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}ms", self.0)
            }
        }
    };
}

arithmetic!(Ticks);
arithmetic!(Wall);
