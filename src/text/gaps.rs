//! Texts with gaps: `The cat {{2}} the mat.`

use crate::text::TextError;

/// A piece of a text with gaps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Text that stays as it is.
    Text(String),
    /// A gap of this many tokens.
    Gap(usize),
}

const OPEN: &str = "{{";
const CLOSE: &str = "}}";

/// Splits a text at its gaps: `{{8}}` is a gap of 8 tokens, `\{{` stands for two literal braces. Of more than two
/// braces in a row the last two open the gap: `{{{8}}}` is a gap in braces.
///
/// # Errors
/// If braces are opened without a number of at least 1 and the closing braces, or with one that cannot be counted.
pub fn parse(text: &str) -> Result<Vec<Piece>, TextError> {
    let mut pieces = Vec::new();
    let mut literal = String::new();
    let mut at = 0;
    while let Some(found) = text[at..].find(OPEN) {
        let open = at + found;
        if let Some(before) = text[at..open].strip_suffix('\\') {
            literal.push_str(before);
            literal.push_str(OPEN);
            at = open + OPEN.len();
            continue;
        }
        let braces = text[open..].bytes().take_while(|byte| *byte == b'{');
        let open = open + braces.count() - OPEN.len();
        literal.push_str(&text[at..open]);
        let inner = open + OPEN.len();
        let digits = text[inner..]
            .find(CLOSE)
            .map(|length| &text[inner..inner + length])
            .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
            // Not all zeros, and not none.
            .filter(|digits| digits.bytes().any(|byte| byte != b'0'))
            .ok_or(TextError::GapSyntax { at: open })?;
        let tokens = digits
            .parse()
            .map_err(|_| TextError::GapTooLong { at: open })?;
        let end = inner + digits.len() + CLOSE.len();
        if !literal.is_empty() {
            pieces.push(Piece::Text(std::mem::take(&mut literal)));
        }
        pieces.push(Piece::Gap(tokens));
        at = end;
    }
    literal.push_str(&text[at..]);
    if !literal.is_empty() {
        pieces.push(Piece::Text(literal));
    }
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(text: &str) -> Piece {
        Piece::Text(text.to_owned())
    }

    #[test]
    fn gaps_split_the_text() {
        assert_eq!(
            parse("{{2}}The cat {{8}} mat.{{1}}").unwrap(),
            [
                Piece::Gap(2),
                text("The cat "),
                Piece::Gap(8),
                text(" mat."),
                Piece::Gap(1)
            ]
        );
        assert_eq!(parse("").unwrap(), []);
        assert_eq!(parse("{{1}}{{2}}").unwrap(), [Piece::Gap(1), Piece::Gap(2)]);
    }

    #[test]
    fn escaped_braces_are_literal() {
        assert_eq!(
            parse(r"a \{{8}} b {{3}}").unwrap(),
            [text("a {{8}} b "), Piece::Gap(3)]
        );
    }

    #[test]
    fn a_gap_may_stand_in_braces() {
        assert_eq!(
            parse(r"{{{8}}}{{{{1}} }}\{{{{{2}}").unwrap(),
            [
                text("{"),
                Piece::Gap(8),
                text("}{{"),
                Piece::Gap(1),
                text(" }}{{{"),
                Piece::Gap(2)
            ]
        );
    }

    #[test]
    fn braces_without_a_number_are_refused_where_they_stand() {
        for (given, at) in [
            ("a {{x}}", 2),
            ("{{0}}", 0),
            ("{{-1}}", 0),
            ("{{+1}}", 0),
            ("{{8}", 0),
            ("é{{}}", 2),
            ("{{00}}", 0),
        ] {
            assert_eq!(parse(given), Err(TextError::GapSyntax { at }), "{given}");
        }
    }

    #[test]
    fn a_gap_that_cannot_be_counted_is_refused_as_too_long_where_it_stands() {
        let given = "a {{99999999999999999999999}}";
        assert_eq!(parse(given), Err(TextError::GapTooLong { at: 2 }));
        assert_eq!(parse("{{0008}}").unwrap(), [Piece::Gap(8)]);
    }

    proptest! {
        #[test]
        fn text_without_double_braces_is_one_piece(given in "[^{]{1,40}") {
            prop_assert_eq!(parse(&given).unwrap(), [text(&given)]);
        }
    }
}
