//! From tokens to text as it becomes known, up to a stop string.

use std::sync::Arc;

/// Decodes UTF-8 that arrives in pieces: what is returned, end to end, equals
/// [`String::from_utf8_lossy`] of all the bytes.
#[derive(Debug, Default)]
struct Utf8Stream {
    /// The beginning of a character whose end has not come.
    incomplete: Vec<u8>,
}

impl Utf8Stream {
    fn push(&mut self, bytes: &[u8]) -> String {
        self.incomplete.extend_from_slice(bytes);
        let mut text = String::new();
        let mut kept = 0;
        for chunk in self.incomplete.utf8_chunks() {
            text.push_str(chunk.valid());
            kept += chunk.valid().len();
            let invalid = chunk.invalid();
            let rest = &self.incomplete[kept..];
            // Only an invalid sequence at the very end may be one that is not yet complete.
            let unfinished = invalid.len() == rest.len()
                && std::str::from_utf8(rest).is_err_and(|error| error.error_len().is_none());
            if unfinished {
                break;
            }
            if !invalid.is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
                kept += invalid.len();
            }
        }
        self.incomplete.drain(..kept);
        text
    }

    fn finish(&mut self) -> String {
        let rest = std::mem::take(&mut self.incomplete);
        String::from_utf8_lossy(&rest).into_owned()
    }

    /// Whether `bytes`, if they came next, would begin a character, and the beginning of one that waits for
    /// its end would come to nothing.
    fn is_broken_off_by(&self, bytes: &[u8]) -> bool {
        let Some(next) = bytes.first() else {
            return false;
        };
        let continued = [&self.incomplete[..], &[*next]].concat();
        let begins_well = std::str::from_utf8(&continued)
            .map_or_else(|error| error.error_len().is_none(), |_| true);
        !self.incomplete.is_empty() && !begins_well
    }
}

/// The text of a completion. It takes bytes in and gives out text as soon as it is certain: complete
/// characters that cannot become part of a stop string. All that is given out, end to end, depends on
/// the bytes only, not on how they were cut.
#[derive(Debug)]
pub(super) struct CompletionText {
    utf8: Utf8Stream,
    /// Text that may yet become part of a stop string.
    pending: String,
    stops: Arc<[String]>,
    /// Which of them has come.
    stopped_by: Option<usize>,
    /// Complete characters that were taken in.
    characters: usize,
}

impl CompletionText {
    /// An empty text that ends before the first of `stops`, none of which may be empty.
    pub fn new(stops: Arc<[String]>) -> Self {
        Self {
            utf8: Utf8Stream::default(),
            pending: String::new(),
            stops,
            stopped_by: None,
            characters: 0,
        }
    }

    /// At which character of the text `bytes` would begin if they were taken in next.
    pub fn offset_of(&self, bytes: &[u8]) -> usize {
        self.characters + usize::from(self.utf8.is_broken_off_by(bytes))
    }

    /// Whether a stop string has come; nothing is taken in or given out any more.
    pub fn is_stopped(&self) -> bool {
        self.stopped_by.is_some()
    }

    /// The stop string that has come.
    pub fn stop(&self) -> Option<&str> {
        Some(&self.stops[self.stopped_by?])
    }

    /// Takes bytes in; gives out the text that is certain by now.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        if self.is_stopped() {
            return String::new();
        }
        let text = self.utf8.push(bytes);
        self.take(&text)
    }

    /// Takes in that no more bytes come; gives out the rest.
    pub fn finish(&mut self) -> String {
        if self.is_stopped() {
            return String::new();
        }
        let text = self.utf8.finish();
        let mut text = self.take(&text);
        text.push_str(&std::mem::take(&mut self.pending));
        text
    }

    /// Takes in that what comes next is not waited for; gives out the characters that are complete.
    pub fn cut(&mut self) -> String {
        self.utf8 = Utf8Stream::default();
        std::mem::take(&mut self.pending)
    }

    fn take(&mut self, text: &str) -> String {
        self.characters += text.chars().count();
        self.pending.push_str(text);
        // The stop string that is complete first wins; of several that are, the one that begins first.
        let found = self
            .stops
            .iter()
            .enumerate()
            .filter_map(|(index, stop)| {
                let start = self.pending.find(stop.as_str())?;
                Some((start + stop.len(), start, index))
            })
            .min();
        let certain = match found {
            Some((_, start, index)) => {
                self.stopped_by = Some(index);
                start
            }
            None => self.pending.len() - self.held_back(),
        };
        let rest = self.pending.split_off(certain);
        let out = std::mem::replace(&mut self.pending, rest);
        if self.is_stopped() {
            self.pending.clear();
        }
        out
    }

    /// Length of the longest end of the pending text with which a stop string begins.
    fn held_back(&self) -> usize {
        let held = |stop: &String| {
            stop.char_indices()
                .map(|(at, _)| at)
                .rev()
                .find(|&length| self.pending.ends_with(&stop[..length]))
                .unwrap_or(0)
        };
        self.stops.iter().map(held).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(stops: &[&str]) -> CompletionText {
        CompletionText::new(stops.iter().map(|stop| (*stop).to_owned()).collect())
    }

    #[test]
    fn a_character_waits_for_its_last_byte() {
        let mut text = text(&[]);
        assert_eq!(text.push(&[b'a', 0xE2, 0x82]), "a");
        assert_eq!(text.push(&[0xAC, 0xF0]), "€");
        assert_eq!(text.finish(), "\u{FFFD}");
    }

    #[test]
    fn a_text_that_is_cut_ends_with_its_last_whole_character() {
        let mut text = text(&["stop"]);
        let given = text.push(&[b'a', 0xC3, 0xA9, b's', b't', 0xE2, 0x82]);
        assert_eq!(given, "aé");
        assert_eq!(text.cut(), "st");
        assert_eq!(text.finish(), "");
    }

    #[test]
    fn what_may_become_a_stop_string_is_held_back() {
        let mut text = text(&["\n\nQ:"]);
        assert_eq!(text.push(b"one\n"), "one");
        assert_eq!(text.push(b"two\n\n"), "\ntwo");
        assert_eq!(text.push(b"\nQ"), "\n");
        assert_eq!(text.push(b"uit"), "\n\nQuit");
        assert_eq!(text.push(b"\n\nQ: more"), "");
        assert!(text.is_stopped());
        assert_eq!(text.push(b"x"), "");
        assert_eq!(text.finish(), "");
    }

    #[test]
    fn the_stop_string_that_is_complete_first_wins() {
        let mut text = text(&["abcd", "c"]);
        assert_eq!(text.push(b"xabcd"), "xab");
    }

    proptest! {
        #[test]
        fn the_text_does_not_depend_on_how_the_bytes_are_cut(
            bytes in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..60),
                "[ab€🦀]{0,30}".prop_map(String::into_bytes),
                "[ab€🦀]{0,30}".prop_map(|s| s.bytes().skip(1).collect()),
            ],
            cuts in proptest::collection::vec(0usize..60, 0..12),
            stops in proptest::collection::vec("[ab€🦀\u{FFFD}]{1,4}", 0..4),
        ) {
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let mut cut = text(&stops);
            let mut given: String = cuts.windows(2).map(|pair| cut.push(&bytes[pair[0]..pair[1]])).collect();
            given.push_str(&cut.finish());

            let whole = String::from_utf8_lossy(&bytes);
            let ends = whole.char_indices().map(|(at, c)| at + c.len_utf8());
            let expected = ends
                .filter_map(|end| {
                    let starts = stops.iter().filter_map(|stop| whole[..end].strip_suffix(*stop));
                    starts.map(str::len).min()
                })
                .next()
                .map_or(&*whole, |start| &whole[..start]);
            prop_assert_eq!(given, expected);
        }
    }
}
