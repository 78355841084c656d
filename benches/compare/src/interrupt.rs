//! The signals that ask to end. A run hears them itself, so that it stops its servers first.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

pub struct Interrupt {
    interrupt: Signal,
    terminate: Signal,
    told: Option<&'static str>,
}

impl Interrupt {
    pub fn listen() -> io::Result<Self> {
        let (interrupt, terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        Ok(Self { interrupt, terminate, told: None })
    }

    /// Waits for the first such signal, and remembers it.
    pub async fn told(&mut self) -> &'static str {
        if let Some(told) = self.told {
            return told;
        }
        let told = tokio::select! {
            _ = self.interrupt.recv() => "interrupted",
            _ = self.terminate.recv() => "terminated",
        };
        *self.told.insert(told)
    }
}
