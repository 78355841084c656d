//! Ports for nodes on loopback: [client, peer, admin] of each.

use anyhow::Context;

use crate::env::Env;

/// Outside the range from which the kernel takes ports for outgoing connections: the port of a node
/// that is down for a moment is still its own.
const FREE_FROM: u64 = 10_000;
const FREE_TO: u64 = 32_000;
/// Ports are looked for so often before there are none.
const TRIES: usize = 1_000;

/// `first`, `first + 1` and `first + 2` for node 1; node i adds 10(i-1).
pub fn fixed(first: u16, nodes: u64) -> anyhow::Result<Vec<[u16; 3]>> {
    let node = |i: u64| {
        let client = u16::try_from(u64::from(first) + 10 * i).ok()?;
        Some([client, client.checked_add(1)?, client.checked_add(2)?])
    };
    (0..nodes).map(node).collect::<Option<_>>().with_context(|| format!("{nodes} nodes do not fit above port {first}"))
}

/// Ports that nobody listens on.
pub async fn free(env: &Env, nodes: u64) -> anyhow::Result<Vec<[u16; 3]>> {
    let wanted = usize::try_from(nodes)? * 3;
    let mut found = Vec::with_capacity(wanted);
    for _ in 0..TRIES {
        let port = (FREE_FROM + env.random.next() % (FREE_TO - FREE_FROM)) as u16;
        let taken = found.contains(&port) || env.net.bind(&format!("127.0.0.1:{port}")).await.is_err();
        if !taken {
            found.push(port);
        }
        if found.len() == wanted {
            return Ok(found.chunks_exact(3).map(|ports| [ports[0], ports[1], ports[2]]).collect());
        }
    }
    anyhow::bail!("found only {} of {wanted} free ports", found.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_ports_are_ten_apart() {
        assert_eq!(fixed(7411, 3).unwrap(), [[7411, 7412, 7413], [7421, 7422, 7423], [7431, 7432, 7433]]);
        assert!(fixed(65_530, 2).is_err());
    }

    #[tokio::test]
    async fn free_ports_are_free_and_distinct() {
        let mut ports: Vec<u16> = free(&Env::real(), 3).await.unwrap().into_iter().flatten().collect();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 9);
    }
}
