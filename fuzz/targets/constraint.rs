//! Whatever regular expression or JSON Schema is given, a language is made of it or it is refused.
#![no_main]

#[path = "../../tests/support/fuzz.rs"]
mod fuzzed;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| fuzzed::constraint(input));
