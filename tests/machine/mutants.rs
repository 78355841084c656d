//! Every planted fault of the machine turns some of these tests red.

use wharf::testkit::mutants::{Layer, survivors};

#[test]
fn mutants_are_caught_by_the_machine() {
    assert_eq!(survivors(Layer::Machine, "mutants_are_caught"), []);
}
