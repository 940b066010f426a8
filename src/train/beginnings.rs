//! Where windows may begin.

use super::config::WindowStart;
use crate::text::Tokenizer;

/// What may close a sentence after its full stop.
const CLOSING: [char; 6] = ['"', '\'', '”', '’', ')', ']'];

/// The places in `tokens` at which a window may begin by `start`, ascending. `end` is the token between documents,
/// each of which begins a sentence and a paragraph.
pub(super) fn beginnings(
    tokens: &[u32],
    end: u32,
    tokenizer: &dyn Tokenizer,
    start: WindowStart,
) -> Vec<u32> {
    let mut places = Vec::new();
    // Whether a sentence has just ended, and whether a line has.
    let (mut sentence, mut line) = (true, true);
    for (place, &token) in (0..).zip(tokens) {
        if token == end {
            (sentence, line) = (true, true);
            continue;
        }
        let text = String::from_utf8_lossy(tokenizer.bytes(token));
        let of_line = line && !text.starts_with('\n');
        let begins = match start {
            WindowStart::Anywhere => true,
            WindowStart::Sentence => of_line || (sentence && text.starts_with(' ')),
            WindowStart::Paragraph => of_line,
        };
        if begins {
            places.push(place);
        }
        line = text.ends_with('\n');
        let said = text.trim_end();
        let inner = said.trim_end_matches(CLOSING);
        // White space and closing marks leave it as it was.
        if !inner.is_empty() {
            sentence = inner.ends_with(['.', '!', '?']);
        }
    }
    places
}
