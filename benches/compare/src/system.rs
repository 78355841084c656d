//! Who is compared, and one measurement of it: fresh servers, one run, nothing left behind.

use anyhow::{Context as _, Result, anyhow};

use crate::drive;
use crate::figures::Figures;
use crate::interrupt::Interrupt;
use crate::mode::{Mode, Workload};
use crate::peer::nats::Nats;
use crate::peer::rabbit::Rabbit;
use crate::servers::{Cluster, Ports};
use crate::tree::Tree;
use crate::wharf::Wharf;

#[derive(Clone, Debug)]
pub enum System {
    /// JetStream, three replicas, as shipped: it confirms what is not on disk yet.
    Nats,
    /// The same with `sync_interval: always`, which is what Wharf promises.
    NatsSync,
    /// A quorum queue of three members.
    Rabbit,
    Wharf(Wharf),
}

/// Where and how long systems are measured.
pub struct Place<'a> {
    pub tree: &'a Tree,
    pub ports: Ports,
    pub interrupt: &'a mut Interrupt,
}

impl System {
    pub fn name(&self) -> &'static str {
        match self {
            System::Nats => "nats",
            System::NatsSync => "nats sync",
            System::Rabbit => "rabbitmq",
            System::Wharf(_) => "wharf",
        }
    }

    /// One run of a mode. Its servers are stopped and their data is gone when this returns.
    pub async fn measure(&self, mode: Mode, workload: Workload, place: &mut Place<'_>) -> Result<Figures> {
        let data = place.tree.data_dir()?;
        let ran = match self {
            System::Wharf(wharf) => wharf.run(workload, &data, place.interrupt).await,
            peer => peer.measure_cluster(workload, Cluster::new(data), place).await,
        };
        let figures = ran.and_then(|figures| figures.of_mode(mode));
        figures.with_context(|| format!("{} in mode {}", self.name(), mode.name()))
    }

    async fn measure_cluster(
        &self,
        workload: Workload,
        mut cluster: Cluster,
        place: &mut Place<'_>,
    ) -> Result<Figures> {
        let ran = tokio::select! {
            ran = self.run(&mut cluster, workload, place.tree, place.ports) => ran,
            signal = place.interrupt.told() => Err(anyhow!(signal)),
        };
        let ran = ran.map_err(|error| match cluster.why() {
            Some(why) => error.context(why),
            None => error,
        });
        cluster.stop().await?;
        ran
    }

    async fn run(&self, cluster: &mut Cluster, workload: Workload, tree: &Tree, ports: Ports) -> Result<Figures> {
        match self {
            System::Nats | System::NatsSync => {
                cluster.start_nats(tree, ports, matches!(self, System::NatsSync)).await?;
                drive::run(&Nats::new(&ports.clients()), cluster, workload).await
            }
            System::Rabbit => {
                cluster.start_rabbit(tree, ports)?;
                drive::run(&Rabbit::new(&ports.clients()), cluster, workload).await
            }
            System::Wharf(_) => Err(anyhow!("wharf starts its own servers")),
        }
    }
}
