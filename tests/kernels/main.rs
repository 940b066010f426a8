//! The CUDA kernels, built by a host compiler, against their CPU twins.

mod host;

use candle_core::Device;
use host::Host;
use unmask::selftest::{CHECKS, DEVICE_CHECKS, Extent};

/// Runs the checks whose names begin so, with blocks of `threads` that take turns in ascending or in
/// descending order.
fn holds(prefix: &str, threads: u32, reversed: bool) {
    let mut host = Host::new(threads, reversed);
    let mut checks = CHECKS
        .iter()
        .filter(|check| check.name.starts_with(prefix))
        .peekable();
    assert!(checks.peek().is_some(), "no check of {prefix}");
    for check in checks {
        let seen = (check.run)(&mut host, Extent::Small);
        let seen = seen.unwrap_or_else(|failure| {
            panic!("{}, {threads} threads a block: {failure}", check.name)
        });
        println!("{}: {seen}", check.name);
    }
}

#[test]
fn the_vocabulary_reduction_equals_its_twin() {
    holds("categorical:", 32, false);
    holds("categorical:", 256, true);
}

#[test]
fn draws_are_distributed_as_they_should_be() {
    holds("categorical draws:", 32, true);
}

#[test]
fn the_forward_process_equals_its_twin() {
    holds("corrupt:", 64, false);
}

#[test]
fn the_reverse_step_equals_its_twin() {
    holds("posterior:", 64, true);
}

#[test]
fn ragged_attention_equals_its_definition() {
    holds("ragged attention:", 128, true);
}

#[test]
fn long_attention_equals_its_definition() {
    holds("long attention:", 128, false);
    holds("long attention:", 128, true);
}

#[test]
fn attention_over_splits_of_keys_equals_its_definition() {
    holds("cut attention:", 128, true);
}

#[test]
fn fused_layers_equal_their_twins() {
    holds("layers:", 64, false);
    holds("layers:", 128, true);
}

#[test]
fn mixtures_of_experts_equal_their_twins() {
    holds("experts:", 256, false);
    holds("experts:", 256, true);
}

#[test]
fn every_check_is_of_a_kernel_that_is_tested_here() {
    let tested = [
        "categorical:",
        "categorical draws:",
        "corrupt:",
        "posterior:",
        "ragged attention:",
        "long attention:",
        "cut attention:",
        "layers:",
        "experts:",
    ];
    for check in CHECKS {
        let is_tested = |prefix: &&str| check.name.starts_with(*prefix);
        assert!(tested.iter().any(is_tested), "{}", check.name);
    }
}

#[test]
fn what_a_device_is_compared_with_holds_on_the_cpu_in_every_type_and_layout() {
    for check in DEVICE_CHECKS {
        let seen = (check.run)(&Device::Cpu).unwrap_or_else(|e| panic!("{}: {e}", check.name));
        println!("{}: {seen}", check.name);
    }
}
