//! Laying a text with gaps out on a canvas, and reading it back.

use crate::canvas::{Blank, Canvas, TokenId};
use crate::text::gaps::Piece;
use crate::text::{TextError, Tokenizer};

/// The pieces that a canvas was laid out from. Fixed text is read back from here, byte for byte as it
/// was given, and never from its tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    pieces: Vec<Piece>,
}

/// The whole text of a canvas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// Fixed text and gaps.
    pub text: String,
    /// The gaps in order.
    pub gaps: Vec<GapText>,
}

/// What a gap was filled with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GapText {
    /// Its text; tokens that are not yet committed, and special tokens, have none.
    pub text: String,
    /// Its bytes within the whole text.
    pub bytes: std::ops::Range<usize>,
    /// Its characters (Unicode scalar values) within the whole text.
    pub characters: std::ops::Range<usize>,
}

impl Layout {
    /// Lays `pieces` out on a canvas of a model whose gaps begin as `blank`.
    ///
    /// # Errors
    /// If a text cannot be encoded, or holds the mask token, or there is no gap.
    pub fn new(
        pieces: Vec<Piece>,
        tokenizer: &dyn Tokenizer,
        blank: impl Into<Blank>,
    ) -> Result<(Self, Canvas), TextError> {
        let mut builder = Canvas::builder(blank);
        for (at, piece) in pieces.iter().enumerate() {
            builder = match piece {
                Piece::Text(text) if at == 0 => builder.fixed(&tokenizer.encode_prompt(text)?),
                Piece::Text(text) => builder.fixed(&tokenizer.encode_continuation(text)?),
                Piece::Gap(tokens) => builder.gap(*tokens),
            };
        }
        Ok((Self { pieces }, builder.build()?))
    }

    /// The layout of a canvas that was built from token ids.
    pub fn of(pieces: Vec<Piece>) -> Self {
        Self { pieces }
    }

    /// Reads `canvas`, which was laid out from this. A gap at its end is read up to the first of `stop_tokens` in it.
    pub fn read_until(
        &self,
        canvas: &Canvas,
        stop_tokens: &[TokenId],
        tokenizer: &dyn Tokenizer,
    ) -> Reading {
        let open = canvas.open_gap();
        self.read_with(canvas, |gap, tokens| {
            let ends = |token: &TokenId| open == Some(gap) && stop_tokens.contains(token);
            let end = tokens.iter().position(ends);
            tokenizer.decode(&tokens[..end.unwrap_or(tokens.len())])
        })
    }

    /// Reads `canvas`; `gap_text` gives the text of each gap, from its index and its tokens.
    pub fn read_with(
        &self,
        canvas: &Canvas,
        mut gap_text: impl FnMut(usize, &[TokenId]) -> String,
    ) -> Reading {
        let mut reading = Reading {
            text: String::new(),
            gaps: Vec::new(),
        };
        let mut characters = 0;
        let mut slots = canvas.gaps().iter();
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => {
                    reading.text.push_str(text);
                    characters += text.chars().count();
                }
                Piece::Gap(_) => {
                    let tokens: Vec<TokenId> = slots
                        .next()
                        .into_iter()
                        .flat_map(|range| range.clone())
                        .map(|slot| canvas.token(slot))
                        .collect();
                    let text = gap_text(reading.gaps.len(), &tokens);
                    let (start, length) = (reading.text.len(), text.chars().count());
                    reading.text.push_str(&text);
                    reading.gaps.push(GapText {
                        bytes: start..reading.text.len(),
                        characters: characters..characters + length,
                        text,
                    });
                    characters += length;
                }
            }
        }
        reading
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::canvas::Commit;
    use crate::text::ByteTokenizer;

    const MASK: TokenId = 256;

    proptest! {
        #[test]
        fn fixed_text_is_read_back_byte_for_byte_and_gaps_stand_where_they_say(
            texts in proptest::collection::vec(".{0,12}", 1..5),
            fill in proptest::collection::vec(0u32..300, 40),
        ) {
            let tokenizer = ByteTokenizer::default();
            let mut pieces = Vec::new();
            for text in &texts {
                pieces.push(Piece::Text(text.clone()));
                pieces.push(Piece::Gap(3));
            }
            let (layout, mut canvas) = Layout::new(pieces, &tokenizer, MASK).unwrap();
            for (slot, token) in (0..canvas.len()).zip(fill.iter().cycle()) {
                if let Some(gap_slot) = canvas.gap_slot_mut(slot) {
                    gap_slot.commit(Commit { token: *token, probability: 1.0, score: 1.0, step: 1 });
                }
            }
            let reading = layout.read_until(&canvas, &[], &tokenizer);
            let characters: Vec<char> = reading.text.chars().collect();
            let mut expected = String::new();
            for (text, gap) in texts.iter().zip(&reading.gaps) {
                expected.push_str(text);
                prop_assert_eq!(gap.bytes.start, expected.len());
                expected.push_str(&gap.text);
                prop_assert_eq!(&reading.text[gap.bytes.clone()], &gap.text);
                let by_characters: String = characters[gap.characters.clone()].iter().collect();
                prop_assert_eq!(&by_characters, &gap.text);
            }
            prop_assert_eq!(&reading.text, &expected);
        }
    }

    #[test]
    fn a_mask_token_written_out_in_fixed_text_is_refused() {
        let error = Layout::new(vec![Piece::Text("a".into())], &ByteTokenizer::default(), 97);
        assert!(error.is_err());
    }
}
