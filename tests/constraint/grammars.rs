//! Texts by random grammars.

use std::sync::Arc;

use unmask::canvas::Canvas;
use unmask::constraint::{ByteDfa, ConstraintError, TokenDfa};
use unmask::decode::{Budget, DecodePlan};

use crate::babbler::{Babbler, MASK, constrained, denoise, text, vocabulary};
use crate::earley::{Grammar, Symbol};
use crate::random::Random;

/// A part of a rule.
enum Part {
    Text(&'static str),
    /// Characters from the first to the last.
    Range(char, char),
    Rule(usize),
    Sequence(Vec<Part>),
    Either(Vec<Part>),
    Repeat(Box<Part>, usize, Option<usize>),
}

const TEXTS: [&str; 8] = ["a", "b", "ab", "{\"", "é", "(", ")", "10"];
const RANGES: [(char, char); 3] = [('a', 'c'), ('0', '9'), ('à', 'ê')];

fn part(random: &mut Random, rules: usize, depth: usize) -> Part {
    let inner = |random: &mut Random| part(random, rules, depth - 1);
    match random.below(if depth == 0 { 4 } else { 9 }) {
        0 | 1 => Part::Text(random.pick(&TEXTS)),
        2 => {
            let (first, last) = random.pick(&RANGES);
            Part::Range(first, last)
        }
        3 => Part::Rule(random.below(rules)),
        4 | 5 => Part::Sequence((0..random.below(4)).map(|_| inner(random)).collect()),
        6 | 7 => Part::Either((0..1 + random.below(3)).map(|_| inner(random)).collect()),
        _ => {
            let least = random.below(3);
            let most = random.chance(0.5).then(|| (least + random.below(3)).max(1));
            Part::Repeat(Box::new(inner(random)), least, most)
        }
    }
}

/// How the two notations differ.
struct Notation {
    defines: &'static str,
    range: fn(char, char) -> String,
    name: fn(usize) -> String,
}

const GBNF: Notation = Notation {
    defines: " ::= ",
    range: |first, last| format!("[{first}-{last}]"),
    name: |rule| match rule {
        0 => "root".into(),
        _ => format!("rule-{rule}"),
    },
};

const LARK: Notation = Notation {
    defines: ": ",
    range: |first, last| format!("\"{first}\"..\"{last}\""),
    name: |rule| match rule {
        0 => "start".into(),
        _ => format!("rule_{rule}"),
    },
};

impl Notation {
    fn grammar(&self, rules: &[Part]) -> String {
        let rules = rules.iter().enumerate();
        let line =
            |(rule, part)| format!("{}{}{}\n", (self.name)(rule), self.defines, self.part(part));
        rules.map(line).collect()
    }

    fn part(&self, part: &Part) -> String {
        let parts = |parts: &[Part], between: &str| {
            let parts: Vec<String> = parts.iter().map(|part| self.part(part)).collect();
            format!("({})", parts.join(between))
        };
        match part {
            Part::Text(text) => format!("\"{}\"", text.replace('"', "\\\"")),
            Part::Range(first, last) => (self.range)(*first, *last),
            Part::Rule(rule) => (self.name)(*rule),
            Part::Sequence(sequence) => parts(sequence, " "),
            Part::Either(either) => parts(either, " | "),
            Part::Repeat(part, least, most) => {
                let part = self.part(part);
                match (least, most) {
                    (0, None) => format!("({part})*"),
                    (1, None) => format!("({part})+"),
                    (0, Some(1)) => format!("({part})?"),
                    (least, None) => format!("({part}){{{least},}}"),
                    (least, Some(most)) => format!("({part}){{{least},{most}}}"),
                }
            }
        }
    }
}

/// The symbols of a part, for which rules are added.
fn symbols(part: &Part, grammar: &mut Grammar) -> Vec<Symbol> {
    match part {
        Part::Text(text) => text.chars().map(|c| Symbol::Range(c, c)).collect(),
        Part::Range(first, last) => vec![Symbol::Range(*first, *last)],
        Part::Rule(rule) => vec![Symbol::Rule(*rule)],
        Part::Sequence(parts) => {
            let parts = parts.iter().map(|part| symbols(part, grammar));
            parts.collect::<Vec<_>>().concat()
        }
        Part::Either(parts) => {
            let alternatives = parts.iter().map(|part| symbols(part, grammar)).collect();
            vec![Symbol::Rule(grammar.add(alternatives))]
        }
        Part::Repeat(part, least, most) => {
            let once = symbols(part, grammar);
            let mut all = once.repeat(*least);
            let rest = match most {
                Some(most) => (0..most - least).fold(Vec::new(), |rest, _| {
                    let more = [once.clone(), rest].concat();
                    vec![Symbol::Rule(grammar.add(vec![Vec::new(), more]))]
                }),
                None => {
                    let rule = grammar.add(vec![Vec::new()]);
                    let more = [once, vec![Symbol::Rule(rule)]].concat();
                    grammar.rules[rule].push(more);
                    vec![Symbol::Rule(rule)]
                }
            };
            all.extend(rest);
            all
        }
    }
}

/// The same grammar for the recogniser.
fn recogniser(rules: &[Part]) -> Grammar {
    let mut grammar = Grammar::default();
    rules.iter().for_each(|_| {
        grammar.add(Vec::new());
    });
    for (rule, part) in rules.iter().enumerate() {
        let body = symbols(part, &mut grammar);
        grammar.rules[rule].push(body);
    }
    grammar
}

/// One of the lengths that texts of a language may have.
fn length(language: &TokenDfa, random: &mut Random) -> Option<usize> {
    let lengths = language.lengths(24, false);
    let possible: Vec<usize> = (1..lengths.len())
        .filter(|length| lengths[*length])
        .collect();
    (!possible.is_empty()).then(|| random.pick(&possible))
}

#[test]
fn what_is_denoised_by_a_random_grammar_always_parses() {
    let engine = Babbler::engine();
    let mut random = Random(7);
    let (mut texts, mut recursive) = (0, 0);
    for seed in 0..500 {
        let count = 1 + random.below(4);
        let rules: Vec<Part> = (0..count).map(|_| part(&mut random, count, 3)).collect();
        let judge = recogniser(&rules);
        for notation in [GBNF, LARK] {
            let written = notation.grammar(&rules);
            let language = match ByteDfa::grammar(&written) {
                Ok(language) => language,
                Err(ConstraintError::Empty | ConstraintError::TooLarge(_)) => continue,
                Err(error) => panic!("{written}: {error}"),
            };
            let language = Arc::new(TokenDfa::new(language, vocabulary()).unwrap());
            let Some(length) = length(&language, &mut random) else {
                continue;
            };
            let fixed = [40, 41];
            let canvas = Canvas::builder(MASK)
                .fixed(&fixed)
                .gap(length)
                .fixed(&fixed)
                .build()
                .unwrap();
            let mut plan = DecodePlan {
                budget: random.pick(&[Budget::Even, Budget::Threshold(0.1)]),
                steps: Some(1 + random.below(6)),
                ..DecodePlan::default()
            };
            plan.sampling.temperature = 1.0;
            plan.sampling.seed = seed;
            plan.sampling.stop_tokens = unmask::decode::StopTokens::AtEnd;
            let constraint = constrained(&canvas, &plan, &[(0, language)]);
            let (_, finished) = denoise(&engine, &canvas, &plan, Some(constraint));
            let text = text(&finished, 0);
            assert!(judge.parses(&text), "{text:?} of {written}");
            for slot in [0, 1, length + 2, length + 3] {
                assert_eq!(finished.token(slot), canvas.token(slot));
            }
            texts += 1;
            recursive += usize::from(written.lines().any(|line| {
                let (name, body) = line.split_once([' ', ':']).unwrap();
                body.contains(name)
            }));
        }
    }
    assert!(
        texts > 500 && recursive > 100,
        "{texts} texts, {recursive} of recursion"
    );
}

#[test]
fn short_texts_of_a_grammar_are_missed_only_where_they_nest_deep() {
    let mut random = Random(8);
    let mut found = 0;
    for _ in 0..200 {
        let count = 1 + random.below(3);
        let rules: Vec<Part> = (0..count).map(|_| part(&mut random, count, 2)).collect();
        let judge = recogniser(&rules);
        let Ok(language) = ByteDfa::grammar(&GBNF.grammar(&rules)) else {
            continue;
        };
        for _ in 0..40 {
            let text: String = (0..random.below(5)).map(|_| random.pick(&TEXTS)).collect();
            assert_eq!(
                language.matches(text.as_bytes()),
                judge.parses(&text),
                "{text:?} of {}",
                GBNF.grammar(&rules)
            );
            found += usize::from(judge.parses(&text));
        }
    }
    assert!(found > 100, "{found}");
}
