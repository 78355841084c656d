//! Numbers that name things. Each is a newtype, so that a fence is never passed for a revision.

use std::fmt;

/// A node's number, as configured; never 0.
pub type NodeId = u64;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl From<u64> for $name {
            fn from(value: u64) -> Self {
                Self(value)
            }
        }
    };
}

number!(
    /// A lease's number: the state's revision when it was granted. Grows with each lease. 0: none.
    Fence
);
number!(
    /// The state's counter. Every change of a package bumps it.
    Revision
);
number!(
    /// Grows with each Hello of a session.
    Epoch
);
