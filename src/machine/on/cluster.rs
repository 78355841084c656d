//! What concerns the whole: settings, versions, leaders.

use std::sync::Arc;

use crate::machine::command::{LeaderStarted, RaiseVersion, SetCluster};
use crate::machine::index::Timer;
use crate::machine::{Machine, Meta, Reply, Result};

impl Machine {
    pub(in crate::machine) fn on_set_cluster(&mut self, op: &SetCluster) -> Result<Reply> {
        let merged = self.state.cluster.merged(&op.settings.unwrap_or_default())?;
        let before = std::mem::replace(&mut self.state.cluster, merged);
        let after = &self.state.cluster;
        for (number, session) in self.state.sessions.iter() {
            if let Some(since) = session.detached {
                self.index.timers.remove(&(since.plus(before.session_grace_ms), Timer::Grace(number)));
                self.index.timers.insert((since.plus(after.session_grace_ms), Timer::Grace(number)));
            }
        }
        if self.state.failover_armed {
            let since = self.state.leader_ticks;
            self.index.timers.remove(&(since.plus(before.failover_grace_ms), Timer::Failover));
            self.index.timers.insert((since.plus(after.failover_grace_ms), Timer::Failover));
        }
        let show = self.state.cluster.show();
        self.state.bump();
        Ok(Reply::Cluster(Arc::new(show)))
    }

    /// `version::check` has refused what this program does not know.
    pub(in crate::machine) fn on_raise_version(&mut self, op: &RaiseVersion) -> Result<Reply> {
        self.state.version = self.state.version.max(op.version);
        self.state.bump();
        Ok(Reply::Done)
    }

    /// Every stream is gone with the old leader: sessions attached before this entry are detached,
    /// which is compared lazily, and have `failover_grace` to come back.
    pub(in crate::machine) fn on_leader_started(&mut self, meta: Meta, _op: &LeaderStarted) -> Result<Reply> {
        let grace = self.state.cluster.failover_grace_ms;
        if self.state.failover_armed {
            self.index.timers.remove(&(self.state.leader_ticks.plus(grace), Timer::Failover));
        }
        self.state.leader_index = meta.index;
        self.state.leader_ticks = self.state.ticks;
        self.state.failover_armed = true;
        self.state.stale_cursor = None;
        self.index.timers.insert((self.state.ticks.plus(grace), Timer::Failover));
        self.index.detach_all();
        self.state.bump();
        Ok(Reply::Done)
    }
}
