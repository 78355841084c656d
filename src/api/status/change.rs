//! Why members stay as they are, as a status.

use tonic::Code;

use super::{Parts, of_propose};
use crate::raft::handle::ProposeError;
use crate::raft::membership::Error;

pub(super) fn of_change(error: &Error) -> Parts {
    use Code::{Aborted, AlreadyExists, FailedPrecondition, NotFound, ResourceExhausted, Unavailable};
    match error {
        Error::NotLeader { leader } => of_propose(&ProposeError::NotLeader { leader: leader.clone() }),
        Error::Unknown { why } => Parts::new(
            Unavailable,
            "OUTCOME_UNKNOWN",
            format!(
                "the change may or may not have been made ({why}); what was begun is finished or undone. Call again: \
                 what is done already is not done twice"
            ),
        )
        .retry_ms(500),
        Error::UnderWay => Parts::new(
            Aborted,
            "CHANGE_UNDER_WAY",
            "another change of members is under way, and one is made at a time. Try again when it has ended",
        )
        .retry_ms(500),
        Error::NoMember(node) => Parts::new(
            NotFound,
            "NODE_NOT_FOUND",
            format!(
                "node {node} is no member. See `wharf cluster status`, or add it (`wharf cluster add-node {node}`)"
            ),
        )
        .meta("node", node),
        Error::NoAnswer { node, addr, why } => Parts::new(
            FailedPrecondition,
            "NODE_UNREACHABLE",
            format!(
                "node {node} does not answer the leader at {addr} ({why}). Start it there with `--join`, or correct \
                 the address: it is the peer address, port 7412 by default"
            ),
        )
        .meta("node", node),
        Error::Misadvertised { node, told } => Parts::new(
            FailedPrecondition,
            "ADDRESS_UNREACHABLE",
            format!(
                "node {node} tells others to reach it at {told}, where it does not answer. Set `advertise.peer` \
                 on it to an address that every member can reach, and start it again"
            ),
        )
        .meta("node", node),
        Error::Loopback { node, addr } => Parts::new(
            FailedPrecondition,
            "ADDRESS_IS_LOOPBACK",
            format!(
                "node {node} is known by {addr}, which nodes on other hosts cannot reach. Set `listen.peer` or \
                 `advertise.peer` on node {node} to an address that all can reach, and start it again"
            ),
        )
        .meta("node", node),
        Error::OtherCluster(node) => Parts::new(
            FailedPrecondition,
            "OTHER_CLUSTER",
            format!(
                "node {node} belongs to another cluster, perhaps to one that it formed alone. If nothing there is \
                 needed, stop it, remove its data directory and start it with `--join`"
            ),
        )
        .meta("node", node),
        Error::Known { node, addr } => Parts::new(
            AlreadyExists,
            "NODE_EXISTS",
            format!(
                "node {node} is a member with another data directory. If that one is lost for good, replace it: \
                 wharf cluster replace {node} --peer {addr}. Otherwise give the new node another number"
            ),
        )
        .meta("node", node),
        Error::Alive(node) => Parts::new(
            FailedPrecondition,
            "NODE_ALIVE",
            format!("the member that node {node} should replace still answers. Stop it first, and call again"),
        )
        .retry_ms(1_000)
        .meta("node", node),
        Error::TooOld { node, knows, needs } => Parts::new(
            FailedPrecondition,
            "VERSION_TOO_OLD",
            format!(
                "node {node} applies machine version {knows} at most, and the cluster is at {needs}. Run the \
                 version of Wharf that the other nodes run"
            ),
        )
        .meta("node", node),
        Error::TooMany { limit } => Parts::new(
            ResourceExhausted,
            "TOO_MANY_MEMBERS",
            format!("there are {limit} members already. Remove one first (`wharf cluster remove`)"),
        )
        .quota("cluster:members")
        .meta("limit", limit),
        Error::Silent(node) => Parts::new(
            FailedPrecondition,
            "NODE_UNREACHABLE",
            format!("learner {node} does not answer the leader. Start it, see `wharf cluster status`, and call again"),
        )
        .retry_ms(1_000)
        .meta("node", node),
        Error::Behind { node, behind } => Parts::new(
            FailedPrecondition,
            "LEARNER_BEHIND",
            format!(
                "learner {node} is {behind} log entries behind and would hold the others up. Call again when it has \
                 caught up (LAG in `wharf cluster status`)"
            ),
        )
        .retry_ms(1_000)
        .meta("node", node)
        .meta("behind", behind),
        Error::LastVoter => Parts::new(
            FailedPrecondition,
            "LAST_VOTER",
            "no voter would remain, and with it everything would be gone. Add and promote another node first",
        ),
        Error::NotHandedOver(node) => Parts::new(
            Unavailable,
            "TRANSFER_TIMED_OUT",
            format!(
                "the leader is to be removed, and node {node} did not take over from it in time. Try again, or move \
                 leadership first (`wharf cluster transfer`)"
            ),
        )
        .retry_ms(1_000),
        Error::QuorumLost { current, voters } => Parts::new(
            FailedPrecondition,
            "WOULD_LOSE_QUORUM",
            format!(
                "of the {voters} voters that would remain only {current} answer and are current, which is no quorum: \
                 the cluster would stand still. Bring the others back first (`wharf cluster status`), or force it"
            ),
        )
        .meta("voters", voters)
        .meta("current", current),
    }
}

#[cfg(test)]
mod tests {
    use tonic::Status;
    use tonic_types::StatusExt;

    use super::super::{Refusal, reason};
    use super::*;

    #[test]
    fn every_reason_has_its_name_and_says_what_to_do() {
        let addr = || "n4:7412".to_owned();
        for (error, code, named) in [
            (Error::NotLeader { leader: None }, Code::Unavailable, "NO_LEADER"),
            (Error::Unknown { why: "lost" }, Code::Unavailable, "OUTCOME_UNKNOWN"),
            (Error::UnderWay, Code::Aborted, "CHANGE_UNDER_WAY"),
            (Error::NoMember(4), Code::NotFound, "NODE_NOT_FOUND"),
            (Error::NoAnswer { node: 4, addr: addr(), why: addr() }, Code::FailedPrecondition, "NODE_UNREACHABLE"),
            (Error::Misadvertised { node: 4, told: addr() }, Code::FailedPrecondition, "ADDRESS_UNREACHABLE"),
            (Error::Loopback { node: 1, addr: addr() }, Code::FailedPrecondition, "ADDRESS_IS_LOOPBACK"),
            (Error::OtherCluster(4), Code::FailedPrecondition, "OTHER_CLUSTER"),
            (Error::Known { node: 4, addr: addr() }, Code::AlreadyExists, "NODE_EXISTS"),
            (Error::Alive(4), Code::FailedPrecondition, "NODE_ALIVE"),
            (Error::TooOld { node: 4, knows: 1, needs: 2 }, Code::FailedPrecondition, "VERSION_TOO_OLD"),
            (Error::TooMany { limit: 16 }, Code::ResourceExhausted, "TOO_MANY_MEMBERS"),
            (Error::Silent(4), Code::FailedPrecondition, "NODE_UNREACHABLE"),
            (Error::Behind { node: 4, behind: 5_000 }, Code::FailedPrecondition, "LEARNER_BEHIND"),
            (Error::LastVoter, Code::FailedPrecondition, "LAST_VOTER"),
            (Error::NotHandedOver(4), Code::Unavailable, "TRANSFER_TIMED_OUT"),
            (Error::QuorumLost { current: 1, voters: 2 }, Code::FailedPrecondition, "WOULD_LOSE_QUORUM"),
        ] {
            let status = Status::from(Refusal::from(error.clone()));
            assert_eq!((status.code(), reason(&status).as_deref()), (code, Some(named)), "{error:?}");
            assert!(status.message().len() > 40, "{error:?}");
            let quota = status.get_error_details().quota_failure().is_some();
            assert_eq!(quota, code == Code::ResourceExhausted, "{error:?}");
        }
    }
}
