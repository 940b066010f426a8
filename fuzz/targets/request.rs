//! Whatever is sent to whichever endpoint, the answer is no fault of the server.
#![no_main]

#[path = "../../tests/support/fuzz.rs"]
mod fuzzed;

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

static SERVER: LazyLock<fuzzed::Server> = LazyLock::new(fuzzed::Server::start);

fuzz_target!(|input: &[u8]| SERVER.request(input));
