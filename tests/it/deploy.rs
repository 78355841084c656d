//! What `deploy/` relies on: the example configuration is the defaults, and a node tells its service
//! manager the truth.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::net::UnixDatagram;
use tokio::process::{Child, Command};
use wharf::config::Config;

use super::harness::{SOON, binary};

#[test]
fn the_example_configuration_is_the_defaults() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/wharf.toml");
    let config = Config::load(Some(&file), vec![]).unwrap();
    assert_eq!(config, Config::default());
}

/// A node on free ports, of a cluster whose other members are not there.
fn start(dir: &Path, notify: &Path) -> Child {
    let free =
        ["--listen-client", "--listen-peer", "--listen-admin"].into_iter().flat_map(|flag| [flag, "127.0.0.1:0"]);
    let nodes =
        ["1=127.0.0.1:1", "2=127.0.0.1:2", "3=127.0.0.1:3"].into_iter().flat_map(|node| ["--cluster-node", node]);
    let mut command = Command::new(binary());
    command.arg("serve").args(free).args(nodes).arg("--data-dir").arg(dir.join("data"));
    command.env("NOTIFY_SOCKET", notify).stderr(Stdio::null()).kill_on_drop(true);
    command.spawn().expect("the binary is there")
}

/// The next thing that the node tells.
async fn told(socket: &UnixDatagram, within: Duration) -> Option<String> {
    let mut buffer = [0; 1024];
    let length = tokio::time::timeout(within, socket.recv(&mut buffer)).await.ok()?.expect("the socket is open");
    Some(String::from_utf8_lossy(&buffer[..length]).trim_end().to_owned())
}

#[tokio::test]
async fn the_service_manager_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let notify = dir.path().join("notify");
    let socket = UnixDatagram::bind(&notify).unwrap();
    let mut node = start(dir.path(), &notify);

    assert_eq!(told(&socket, SOON).await.as_deref(), Some("READY=1"), "without a leader");
    assert_eq!(told(&socket, Duration::from_millis(300)).await, None, "until something happens");
    let pid = rustix::process::Pid::from_raw(node.id().unwrap() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(told(&socket, SOON).await.as_deref(), Some("STOPPING=1"));
    let ended = tokio::time::timeout(SOON, node.wait()).await.expect("the node ends").unwrap();
    assert!(ended.success(), "{ended}");
}

#[tokio::test]
async fn a_node_that_cannot_start_never_says_ready() {
    let dir = tempfile::tempdir().unwrap();
    let notify = dir.path().join("notify");
    let socket = UnixDatagram::bind(&notify).unwrap();
    // Where the data directory should be is a file.
    std::fs::write(dir.path().join("data"), "").unwrap();
    let mut node = start(dir.path(), &notify);
    let ended = tokio::time::timeout(SOON, node.wait()).await.expect("the node ends").unwrap();
    assert_eq!(ended.code(), Some(1));
    assert_eq!(told(&socket, Duration::from_millis(1)).await, None);
}
