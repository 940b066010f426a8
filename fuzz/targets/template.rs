//! Texts with gaps come apart and together again.
#![no_main]

#[path = "../../tests/support/fuzz.rs"]
mod fuzzed;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| fuzzed::template(input));
