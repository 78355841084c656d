//! What each node still hears while links are cut: from the shape of a fault, without doing anything.

use std::collections::{BTreeMap, BTreeSet};

use super::ground::{CLIENTS, addr};
use super::plan::Kind;
use crate::types::NodeId;

/// What is dropped on the way to a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inbound {
    /// Nothing from these addresses arrives.
    pub deaf: BTreeSet<String>,
    /// So many percent of all that comes in are lost.
    pub lossy: Option<u8>,
    /// What comes in on a connection is answered with a reset.
    pub reset: bool,
}

impl Inbound {
    fn deaf_to(addrs: impl IntoIterator<Item = String>) -> Self {
        Self { deaf: addrs.into_iter().collect(), ..Self::default() }
    }

    /// Everything that either drops is dropped.
    pub fn and(mut self, other: &Self) -> Self {
        self.deaf.extend(other.deaf.iter().cloned());
        self.lossy = self.lossy.max(other.lossy);
        self.reset |= other.reset;
        self
    }
}

/// What nodes hear, by node; who is not there hears all.
pub type Links = BTreeMap<NodeId, Inbound>;

/// What counts the packets that a fault of this kind takes.
pub fn counter(kind: Kind) -> &'static str {
    match kind {
        Kind::Loss => "lossy",
        Kind::Reset => "torn",
        _ => "deaf",
    }
}

/// What a fault of this kind leaves: of the nodes 1 to `count`, it hits `node`, and `second` besides where it takes
/// two. None: it does nothing to links.
pub fn shape(kind: Kind, count: u64, node: NodeId, second: NodeId, measure: i64) -> Option<Links> {
    let nodes = 1..=count;
    let others = || nodes.clone().filter(|other| *other != node);
    Some(match kind {
        Kind::Single => split(count, |a, b| (a == node) == (b == node)),
        Kind::Halves => {
            let apart = if count > 3 { vec![node, second] } else { vec![node] };
            let halves = split(count, |a, b| apart.contains(&a) == apart.contains(&b));
            // Clients stay with the larger half.
            let clients = apart.iter().map(|node| (*node, Inbound::deaf_to([CLIENTS.to_owned()])));
            both(halves, &clients.collect())
        }
        Kind::Pair => split(count, |a, b| !((a, b) == (node, second) || (b, a) == (node, second))),
        Kind::Ring => {
            // Of three a ring would be whole, so it is open.
            let far = |a: NodeId, b: NodeId| {
                let apart = a.abs_diff(b);
                if count == 3 { apart == 2 } else { apart.min(count - apart) > 1 }
            };
            split(count, |a, b| !far(a, b))
        }
        Kind::Bridge => {
            let side = |node: NodeId| others().position(|other| other == node).map(|place| place % 2);
            split(count, |a, b| a == node || b == node || side(a) == side(b))
        }
        Kind::Clients => Links::from([(node, Inbound::deaf_to([CLIENTS.to_owned()]))]),
        Kind::OneWay if measure != 0 => Links::from([(node, Inbound::deaf_to(others().map(addr)))]),
        Kind::OneWay => others().map(|other| (other, Inbound::deaf_to([addr(node)]))).collect(),
        Kind::Loss => Links::from([(node, Inbound { lossy: Some(measure.clamp(1, 99) as u8), ..Inbound::default() })]),
        Kind::Reset => Links::from([(node, Inbound { reset: true, ..Inbound::default() })]),
        _ => return None,
    })
}

/// What both leave.
pub fn both(mut one: Links, other: &Links) -> Links {
    for (node, inbound) in other {
        let joined = one.remove(node).unwrap_or_default().and(inbound);
        one.insert(*node, joined);
    }
    one
}

/// Nodes hear those that they are together with.
fn split(count: u64, together: impl Fn(NodeId, NodeId) -> bool) -> Links {
    let hears = |node: NodeId| {
        let deaf_to = (1..=count).filter(|other| *other != node && !together(node, *other)).map(addr);
        (node, Inbound::deaf_to(deaf_to))
    };
    (1..=count).map(hears).filter(|(_, inbound)| !inbound.deaf.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who does not hear whom, as `1<2`.
    fn deaf(kind: Kind, count: u64, node: NodeId, second: NodeId, measure: i64) -> Vec<String> {
        let links = shape(kind, count, node, second, measure).unwrap();
        let name = |from: &str| from.rsplit('.').next().unwrap_or_default().replace("254", "c");
        let all = links.iter().flat_map(|(to, inbound)| inbound.deaf.iter().map(move |from| (to, from)));
        all.map(|(to, from)| format!("{to}<{}", name(from))).collect()
    }

    #[test]
    fn every_shape_cuts_what_it_says() {
        assert_eq!(deaf(Kind::Single, 3, 2, 1, 0), ["1<2", "2<1", "2<3", "3<2"]);
        assert_eq!(deaf(Kind::Halves, 3, 2, 1, 0), ["1<2", "2<1", "2<c", "2<3", "3<2"]);
        let halves = deaf(Kind::Halves, 5, 1, 4, 0);
        assert!(halves.contains(&"4<5".into()) && !halves.contains(&"4<1".into()), "{halves:?}");
        assert_eq!(deaf(Kind::Pair, 3, 3, 1, 0), ["1<3", "3<1"]);
        assert_eq!(deaf(Kind::Ring, 3, 1, 2, 0), ["1<3", "3<1"]);
        assert_eq!(deaf(Kind::Ring, 5, 1, 2, 0).len(), 10, "each of five hears two of four");
        assert_eq!(deaf(Kind::Bridge, 3, 2, 1, 0), ["1<3", "3<1"]);
        assert_eq!(deaf(Kind::Bridge, 5, 3, 1, 0).len(), 8, "two and two, by a fifth");
        assert_eq!(deaf(Kind::Clients, 3, 2, 1, 0), ["2<c"]);
        assert_eq!(deaf(Kind::OneWay, 3, 2, 1, 1), ["2<1", "2<3"]);
        assert_eq!(deaf(Kind::OneWay, 3, 2, 1, 0), ["1<2", "3<2"]);
        assert_eq!(shape(Kind::Kill, 3, 2, 1, 0), None);
    }

    #[test]
    fn faults_that_overlap_add_up() {
        let loss = |percent| shape(Kind::Loss, 3, 1, 2, percent).unwrap();
        let all = both(both(loss(20), &loss(40)), &shape(Kind::Single, 3, 1, 2, 0).unwrap());
        assert_eq!((all[&1].lossy, all[&1].deaf.len(), all[&2].lossy), (Some(40), 2, None));
    }
}
