//! Many calls that wait and have nothing to wait for soon: what they cost the nodes.
//!
//! `cargo test --release --test it idle_waits -- --nocapture` prints the measure.

use std::time::Duration;

use tokio::task::JoinSet;
use tonic::transport::Channel;
use wharf::client::{QueueSettings, State};
use wharf::proto::v1;
use wharf::proto::v1::package_service_client::PackageServiceClient;
use wharf::testkit::wait;

use super::harness::{OPTIMIZED, QUEUE, SOON, Scene};
use super::workers::submit;

const CALLS: usize = 10_000;
/// Bytes that they may take, and the part of a core, over all nodes. What is not optimized is larger.
const MEMORY_BYTES: u64 = if OPTIMIZED { 100_000_000 } else { 300_000_000 };
const CORE: f64 = 0.01;
/// The processor's time is measured for so long.
const MEASURED: Duration = Duration::from_secs(15);

/// Nodes that use less in a second have nothing left to do.
const QUIET: Duration = Duration::from_millis(150);

/// What the nodes together use.
#[derive(Clone, Copy, Debug, Default)]
struct Used {
    memory_bytes: u64,
    cpu: Duration,
}

fn used(scene: &Scene) -> Used {
    let mut sum = Used::default();
    for node in scene.cluster.ids() {
        let usage = scene.cluster.usage(node).expect("the node runs");
        sum.memory_bytes += usage.memory_bytes;
        sum.cpu += usage.cpu;
    }
    sum
}

/// The part of a core that the nodes take while nothing happens.
async fn idle(scene: &Scene) -> f64 {
    let before = used(scene).cpu;
    tokio::time::sleep(MEASURED).await;
    (used(scene).cpu - before).as_secs_f64() / MEASURED.as_secs_f64()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_waits_cost_next_to_nothing() {
    let scene = Scene::new().await;
    scene.queue(QUEUE, QueueSettings::default()).await;
    let keys = submit(&scene, QUEUE, CALLS).await;
    let alone = (idle(&scene).await, used(&scene).memory_bytes);

    let mut nodes = Vec::new();
    for node in scene.cluster.ids() {
        let addr = format!("http://{}", scene.cluster.addr(node).unwrap());
        nodes.push(PackageServiceClient::new(Channel::from_shared(addr).unwrap().connect().await.unwrap()));
    }
    let mut calls = JoinSet::new();
    for (n, key) in keys.iter().enumerate() {
        // Two of three ask a node that does not lead, and are passed on.
        let mut node = nodes[n % nodes.len()].clone();
        let request = v1::WaitPackageRequest { queue: key.queue.clone(), id: key.id.clone() };
        calls.spawn(async move { node.wait_package(request).await });
    }
    // They have arrived when nothing is left to do.
    let quiet = || async {
        let before = used(&scene).cpu;
        tokio::time::sleep(Duration::from_secs(1)).await;
        (used(&scene).cpu - before < QUIET).then_some(())
    };
    wait::until("all calls to wait", SOON * 4, quiet).await.unwrap();

    let core = idle(&scene).await;
    let memory = used(&scene).memory_bytes.saturating_sub(alone.1);
    println!(
        "{CALLS} idle waits over all nodes: {:.1} MB, {:.2} % of a core (alone {:.2} %)",
        memory as f64 / 1e6,
        core * 100.0,
        alone.0 * 100.0
    );
    assert!(calls.try_join_next().is_none(), "a call was answered before its time");

    // All of them hear of the end all the same.
    assert_eq!(scene.client.purge_packages(QUEUE, &[State::Ready], false).await.unwrap(), CALLS as u64);
    for _ in 0..CALLS {
        let answer = tokio::time::timeout(SOON, calls.join_next()).await.expect("an answer in time");
        let answer = answer.expect("a call").expect("a task").expect("the finished package").into_inner();
        assert_eq!(answer.package.expect("a package").state(), State::Cancelled);
    }
    assert!(memory <= MEMORY_BYTES, "{memory} bytes");
    assert!(core - alone.0 <= CORE, "{core} of a core, {} without them", alone.0);
}
