//! The example of a coordinator, while its cluster's leader is killed.

#[path = "../../examples/coordinator/coordinator.rs"]
#[expect(clippy::module_inception, reason = "the example's modules are siblings")]
mod coordinator;
#[path = "../../examples/coordinator/dispatcher.rs"]
mod dispatcher;
#[path = "../../examples/coordinator/notifier.rs"]
mod notifier;
#[path = "../../examples/coordinator/state.rs"]
mod state;

use super::harness::{SOON, Scene};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_coordinator_of_the_examples_outlives_a_leader() {
    const ORDERS: usize = 300;
    let mut scene = Scene::new().await;
    let client = scene.cluster.client().unwrap();
    let day = tokio::spawn(async move { coordinator::run(&client, ORDERS).await });
    let half = || async {
        let stats = scene.client.get_queue("parcels").await.ok()?.stats?;
        (stats.completed > 20).then_some(())
    };
    wharf::testkit::wait::until("a part of the day's work", SOON, half).await.unwrap();
    let leader = scene.cluster.leader().await.unwrap();
    scene.cluster.kill(leader).await.unwrap();
    let report = day.await.unwrap().expect("the day ends well");
    println!("{report}");
    assert!(report.is_good(), "{report:?}");
    assert_eq!((report.orders, report.failed), (ORDERS, ORDERS / 25));
    scene.cluster.restart(leader).await.unwrap();
    scene.cluster.check_agreement().await.unwrap();
}
