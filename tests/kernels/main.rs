//! The CUDA kernels, built by a host compiler, against their CPU twins.

mod host;

use host::Host;
use unmask::selftest::{CHECKS, Extent};

/// Runs the checks of a kernel with blocks of several sizes, threads taking turns in both directions.
fn holds(kernel: &str) {
    let checks = || CHECKS.iter().filter(|check| check.name.starts_with(kernel));
    assert!(checks().next().is_some(), "no check of {kernel}");
    for (threads, reversed) in [(64, false), (256, true)] {
        let mut host = Host::new(threads, reversed);
        for check in checks() {
            let seen = (check.run)(&mut host, Extent::Small);
            let seen = seen.unwrap_or_else(|failure| {
                panic!("{}, {threads} threads a block: {failure}", check.name)
            });
            println!("{}: {seen}", check.name);
        }
    }
}

#[test]
fn the_vocabulary_reduction_equals_its_twin() {
    holds("categorical");
}

#[test]
fn every_check_is_of_a_kernel_that_is_tested_here() {
    let tested = ["categorical"];
    for check in CHECKS {
        assert!(
            tested.iter().any(|kernel| check.name.starts_with(kernel)),
            "{}",
            check.name
        );
    }
}
