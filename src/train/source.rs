//! Where windows come from: a stream of documents, or pairs of prompt and answer.

use super::batch::Windows;
use super::config::Packing;
use super::draws::Stream;

/// Encoded text that windows are taken from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Documents end to end, each followed by the end token. A window is any run of tokens: a document
    /// longer than a window is seen in parts, and a shorter one shares its window with its neighbours.
    Documents {
        /// The tokens.
        tokens: Vec<u32>,
        /// Where drawn windows may begin, ascending, a window's length from the end or more; `None` is anywhere.
        beginnings: Option<Vec<u32>>,
        /// The end token.
        end: u32,
        /// Whether documents of a window see each other.
        packing: Packing,
    },
    /// Pairs, each a window of its own.
    Pairs(Windows),
}

impl Source {
    /// All tokens, with what pads pairs to windows.
    pub fn tokens(&self) -> &[u32] {
        match self {
            Self::Documents { tokens, .. } => tokens,
            Self::Pairs(windows) => &windows.tokens,
        }
    }

    /// `count` windows at random places.
    pub(super) fn draw(&self, count: usize, context: usize, stream: &mut Stream) -> Windows {
        let mut drawn = Windows::new(context);
        for _ in 0..count {
            match self {
                Self::Documents {
                    tokens, beginnings, ..
                } => {
                    let start = match beginnings {
                        Some(places) => places[stream.below(places.len())] as usize,
                        None => stream.below(tokens.len() - context + 1),
                    };
                    self.push(&mut drawn, start);
                }
                Self::Pairs(pairs) => self.push(&mut drawn, stream.below(pairs.len())),
            }
        }
        drawn
    }

    /// Up to `count` windows, spread evenly and without overlap.
    pub(super) fn spread(&self, count: usize, context: usize) -> Windows {
        let (fitting, length) = match self {
            Self::Documents { tokens, .. } => (tokens.len() / context, context),
            Self::Pairs(pairs) => (pairs.len(), 1),
        };
        let count = count.min(fitting);
        let mut windows = Windows::new(context);
        for i in 0..count {
            self.push(&mut windows, i * fitting / count * length);
        }
        windows
    }

    /// Appends the window that begins at token `place`, or the pair of that number.
    fn push(&self, windows: &mut Windows, place: usize) {
        let context = windows.context;
        match self {
            Self::Documents {
                tokens,
                end,
                packing,
                ..
            } => {
                let window = &tokens[place..place + context];
                let borders: Vec<usize> = match packing {
                    Packing::Stream => Vec::new(),
                    Packing::Documents => (1..context).filter(|i| window[i - 1] == *end).collect(),
                };
                windows.push(window, 0, &borders);
            }
            Self::Pairs(pairs) => {
                let tokens = &pairs.tokens[place * context..(place + 1) * context];
                windows.push(tokens, pairs.prompts[place], &[]);
            }
        }
    }
}
