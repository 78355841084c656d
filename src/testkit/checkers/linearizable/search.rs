//! Whether calls that overlap can be put in an order that a sequential object allows, and that respects time
//! (Wing and Gong's search, with Lowe's memory of what was tried).

use std::collections::HashSet;
use std::hash::Hash;

/// What one object does, one call after the other.
pub trait Model {
    type State: Clone + Eq + Hash;
    type Op;

    /// The states that `op`, with the answer that it got, may lead to; none: it cannot have happened here.
    fn step(&self, state: &Self::State, op: &Self::Op) -> Vec<Self::State>;
}

/// A call with its answer. It took effect at some moment from `from` to `until`.
#[derive(Clone, Debug)]
pub struct Call<Op> {
    pub op: Op,
    pub from: u64,
    /// None: at any later moment, or never.
    pub until: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// There is such an order.
    Order,
    /// There is none.
    None,
    /// The search was cut off.
    Undecided,
}

/// Calls of one object at most: each is a bit of what was done.
pub const MAX_CALLS: usize = 128;
/// States that one search visits at most.
pub const MAX_VISITS: usize = 200_000;

/// Looks for an order, beginning in `state`.
pub fn search<M: Model>(model: &M, state: M::State, calls: &[Call<M::Op>]) -> Found {
    if calls.len() > MAX_CALLS {
        return Found::Undecided;
    }
    let must = calls.iter().zip(0..).filter(|(call, _)| call.until.is_some());
    let must: u128 = must.map(|(_, place): (_, u32)| 1 << place).sum();
    let mut tried: HashSet<(u128, M::State)> = HashSet::new();
    let mut open = vec![(0_u128, state)];
    while let Some((done, state)) = open.pop() {
        if done & must == must {
            return Found::Order;
        }
        if !tried.insert((done, state.clone())) {
            continue;
        }
        if tried.len() > MAX_VISITS {
            return Found::Undecided;
        }
        // What began after another call had ended cannot come before that one.
        let waiting = || calls.iter().enumerate().filter(|(place, _)| done & (1 << place) == 0);
        let first_end = waiting().filter_map(|(_, call)| call.until).min().unwrap_or(u64::MAX);
        for (place, call) in waiting().filter(|(_, call)| call.from <= first_end) {
            for next in model.step(&state, &call.op) {
                open.push((done | 1 << place, next));
            }
        }
    }
    Found::None
}

#[cfg(test)]
mod tests {
    use stateright::semantics::register::{Register, RegisterOp, RegisterRet};
    use stateright::semantics::{ConsistencyTester, LinearizabilityTester};

    use super::super::super::super::sim::plan::Dice;
    use super::*;

    /// One value that is written and read.
    struct Cell;

    #[derive(Clone, Copy, Debug)]
    enum Op {
        Write(u8),
        Read(u8),
    }

    impl Model for Cell {
        type State = u8;
        type Op = Op;

        fn step(&self, state: &u8, op: &Op) -> Vec<u8> {
            match op {
                Op::Write(value) => vec![*value],
                Op::Read(value) => (value == state).then_some(*state).into_iter().collect(),
            }
        }
    }

    type Tester = LinearizabilityTester<u8, Register<u8>>;

    /// A small history of three threads, and what another implementation says of it. Half of the reads answer what the
    /// cell held at their end, the others anything.
    fn draw(seed: u64) -> (Vec<Call<Op>>, bool) {
        let mut dice = Dice::new(seed);
        let mut tester = Tester::new(Register(0));
        let (mut calls, mut under_way) = (Vec::<Call<Op>>::new(), [None::<usize>; 3]);
        let mut held = 0;
        for now in 1..=6 + dice.below(8) {
            let thread = dice.below(3) as u8;
            match under_way[thread as usize].take() {
                None => {
                    let op = if dice.coin() { Op::Write(dice.below(3) as u8) } else { Op::Read(0) };
                    let told = match op {
                        Op::Write(value) => RegisterOp::Write(value),
                        Op::Read(_) => RegisterOp::Read,
                    };
                    tester.on_invoke(thread, told).unwrap();
                    under_way[thread as usize] = Some(calls.len());
                    calls.push(Call { op, from: now, until: None });
                }
                Some(place) => {
                    calls[place].until = Some(now);
                    let told = match &mut calls[place].op {
                        Op::Write(value) => {
                            held = *value;
                            RegisterRet::WriteOk
                        }
                        Op::Read(value) => {
                            *value = if dice.coin() { held } else { dice.below(3) as u8 };
                            RegisterRet::ReadOk(*value)
                        }
                    };
                    tester.on_return(thread, told).unwrap();
                }
            }
        }
        // A read without an answer tells nothing.
        calls.retain(|call| call.until.is_some() || matches!(call.op, Op::Write(_)));
        (calls, tester.is_consistent())
    }

    #[test]
    fn ten_thousand_small_histories_are_judged_as_another_implementation_does() {
        let mut orders = 0;
        for seed in 0..10_000 {
            let (calls, consistent) = draw(seed);
            let found = search(&Cell, 0, &calls);
            assert_eq!(found == Found::Order, consistent, "seed {seed}: {found:?}, {calls:?}");
            orders += u64::from(consistent);
        }
        assert!((2_000..8_000).contains(&orders), "{orders} of 10000 have an order: too one-sided to show much");
    }

    #[test]
    fn what_is_too_large_is_not_decided() {
        let at_once = |op| Call { op, from: 0, until: Some(1_000) };
        let many: Vec<_> = (0..=MAX_CALLS).map(|_| at_once(Op::Write(1))).collect();
        assert_eq!(search(&Cell, 0, &many), Found::Undecided);
        let hard: Vec<_> = (0..40).map(|value| at_once(Op::Write(value))).chain([at_once(Op::Read(99))]).collect();
        assert_eq!(search(&Cell, 0, &hard), Found::Undecided);
    }
}
