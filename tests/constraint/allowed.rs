//! The allowed tokens of every slot, held to an enumeration of all fillings.

use std::collections::BTreeSet;
use std::sync::Arc;

use unmask::canvas::{Canvas, TokenId};
use unmask::constraint::{
    ByteDfa, CanvasConstraint, ConstraintError, GapConstraint, TokenDfa, Vocabulary,
};

use crate::random::Random;

const MASK: TokenId = 99;

/// A regular expression over a, b and é.
fn pattern(random: &mut Random, depth: usize) -> String {
    if depth == 0 || random.chance(0.2) {
        return random
            .pick(&["a", "b", "é", "[ab]", ".", "ab", "", "[^a]"])
            .into();
    }
    let mut part = || pattern(random, depth - 1);
    let (a, b) = (part(), part());
    match random.below(6) {
        0 => format!("(?:{a}|{b})"),
        1 => format!("(?:{a})*"),
        2 => format!("(?:{a})?{b}"),
        3 => format!("(?:{a}){{1,2}}"),
        _ => format!("{a}{b}"),
    }
}

/// Every filling of `slots` slots that is of the language.
fn fillings(
    language: &ByteDfa,
    tokens: &[&[u8]],
    ends: &[TokenId],
    slots: usize,
    may_end: bool,
) -> Vec<Vec<TokenId>> {
    let mut all: Vec<Vec<TokenId>> = vec![Vec::new()];
    for _ in 0..slots {
        let longer = all.into_iter().flat_map(|filling| {
            (0..tokens.len() as TokenId).map(move |token| [&filling[..], &[token]].concat())
        });
        all = longer.collect();
    }
    all.retain(|filling| {
        let is_end = |token: &TokenId| ends.contains(token);
        let length = filling.iter().position(is_end).unwrap_or(slots);
        let text: Vec<u8> = filling[..length]
            .iter()
            .flat_map(|token| tokens[*token as usize])
            .copied()
            .collect();
        let is_special = |token: &TokenId| tokens[*token as usize].is_empty() && !is_end(token);
        (length == slots || may_end)
            && filling[length..].iter().all(is_end)
            && !filling.iter().any(is_special)
            && language.matches(&text)
    });
    all
}

#[test]
fn the_allowed_tokens_are_those_of_all_fillings_with_what_is_committed() {
    let mut random = Random(1);
    let (mut compared, mut refused, mut impossible) = (0, 0, 0);
    let pieces: [&[u8]; 10] = [
        b"a",
        b"b",
        b"ab",
        "é".as_bytes(),
        &"é".as_bytes()[..1],
        &"é".as_bytes()[1..],
        b"ba",
        b"aab",
        b"a",
        b"",
    ];
    while compared < 2500 {
        let tokens: Vec<&[u8]> = (0..5)
            .map(|_| random.pick(&pieces))
            .chain([&b"stop"[..]])
            .collect();
        let ends = [5];
        let (slots, may_end) = (1 + random.below(4), random.chance(0.5));
        let Ok(bytes) = ByteDfa::regex(&pattern(&mut random, 4)) else {
            continue;
        };
        let vocabulary = Vocabulary::new(tokens.len(), &ends, |token| tokens[token as usize]);
        let language = Arc::new(TokenDfa::new(bytes.clone(), Arc::new(vocabulary)).unwrap());
        let all = fillings(&bytes, &tokens, &ends, slots, may_end);
        assert_eq!(language.lengths(slots, may_end)[slots], !all.is_empty());
        let canvas = Canvas::builder(MASK)
            .fixed(&[0])
            .gap(slots)
            .build()
            .unwrap();
        let constraint = GapConstraint {
            gap: 0,
            language,
            may_end,
        };
        let mut constraint = match CanvasConstraint::new(&canvas, [constraint]) {
            Ok(constraint) => constraint,
            Err(error) => {
                assert_eq!((error, all.len()), (ConstraintError::Empty, 0));
                impossible += 1;
                continue;
            }
        };
        let mut held: Vec<Option<TokenId>> = vec![None; slots];
        let fits = |held: &[Option<TokenId>], slot: usize, token: TokenId| {
            all.iter().any(|filling| {
                let mut pairs = filling.iter().zip(held).enumerate();
                pairs
                    .all(|(at, (token, held))| at == slot || held.is_none_or(|held| held == *token))
                    && filling[slot] == token
            })
        };
        for _ in 0..12 {
            for slot in 0..slots {
                let wanted = (0..6).filter(|token| fits(&held, slot, *token));
                let wanted: BTreeSet<TokenId> = wanted.collect();
                let given = constraint.allowed(slot + 1).unwrap();
                assert_eq!(given.tokens().collect::<BTreeSet<_>>(), wanted);
                compared += 1;
            }
            // Any token, so that some are refused; or a slot is masked again.
            let (slot, token) = (random.below(slots), random.below(6) as TokenId);
            if random.chance(0.2) {
                constraint.free(slot + 1);
                held[slot] = None;
                continue;
            }
            let does_fit = fits(&held, slot, token);
            assert_eq!(constraint.commit(slot + 1, token), does_fit);
            match does_fit {
                true => held[slot] = Some(token),
                false => refused += 1,
            }
        }
        assert!(constraint.allowed(0).is_none());
    }
    assert!(refused > 100 && impossible > 20, "{refused} {impossible}");
}
