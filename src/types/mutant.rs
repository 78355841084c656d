//! Planted faults: ways in which the program would break a promise, to see that some test catches each
//! (docs/TESTING.md). One may be chosen for a process of a build with `testkit`; other builds have none of them.

/// One planted fault. The test kit's table says which promise it breaks and who catches it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mutant {
    AcceptAnyFence,
    AcceptIntoSealed,
    AcceptWipedPeer,
    AckBeforeSync,
    BelieveAnyRecord,
    BlameTheInnocent,
    ClockInApply,
    CreditWithoutEnd,
    DeliverEarly,
    EndOfWorkEarly,
    ForgetDuplicates,
    ForgetHeld,
    ForgetSettlement,
    ForgetTombstones,
    ForgetVote,
    KeepBytes,
    LoseCredit,
    NeverDie,
    NewestFirst,
    PublishUnsynced,
    SkipChange,
    SkipSync,
    StaleRead,
}

/// Whether this process was told to break its promise so.
#[cfg(not(feature = "testkit"))]
pub const fn is(_: Mutant) -> bool {
    false
}

#[cfg(feature = "testkit")]
pub use chosen::{ALL, VARIABLE, chosen, is, name};

#[cfg(feature = "testkit")]
mod chosen {
    use std::sync::LazyLock;

    use super::Mutant;

    /// Names the mutant of a process.
    pub const VARIABLE: &str = "WHARF_MUTANT";

    pub const ALL: [Mutant; 23] = {
        use Mutant::*;
        [
            AcceptAnyFence,
            AcceptIntoSealed,
            AcceptWipedPeer,
            AckBeforeSync,
            BelieveAnyRecord,
            BlameTheInnocent,
            ClockInApply,
            CreditWithoutEnd,
            DeliverEarly,
            EndOfWorkEarly,
            ForgetDuplicates,
            ForgetHeld,
            ForgetSettlement,
            ForgetTombstones,
            ForgetVote,
            KeepBytes,
            LoseCredit,
            NeverDie,
            NewestFirst,
            PublishUnsynced,
            SkipChange,
            SkipSync,
            StaleRead,
        ]
    };

    static CHOSEN: LazyLock<Option<Mutant>> = LazyLock::new(|| {
        let wanted = std::env::var(VARIABLE).ok()?;
        let found = ALL.into_iter().find(|mutant| name(*mutant) == wanted);
        assert!(found.is_some(), "{VARIABLE}={wanted} names no mutant");
        found
    });

    /// The one of this process.
    pub fn chosen() -> Option<Mutant> {
        *CHOSEN
    }

    pub fn is(mutant: Mutant) -> bool {
        *CHOSEN == Some(mutant)
    }

    /// Its words, in lower case.
    pub fn name(mutant: Mutant) -> String {
        let mut name = String::new();
        for letter in format!("{mutant:?}").chars() {
            if letter.is_uppercase() && !name.is_empty() {
                name.push('_');
            }
            name.push(letter.to_ascii_lowercase());
        }
        name
    }
}
