//! An Earley recogniser, as plain as can be.

use std::collections::BTreeSet;

/// A symbol of an alternative.
#[derive(Debug, Clone, Copy)]
pub enum Symbol {
    /// A character from the first to the last.
    Range(char, char),
    /// A text of a rule.
    Rule(usize),
}

/// The alternatives of each rule, of which the first is that of whole texts.
#[derive(Debug, Default)]
pub struct Grammar {
    pub rules: Vec<Vec<Vec<Symbol>>>,
}

/// A rule, one of its alternatives, how much of that is read, and where it began.
type Item = (usize, usize, usize, usize);

impl Grammar {
    /// Adds a rule.
    pub fn add(&mut self, alternatives: Vec<Vec<Symbol>>) -> usize {
        self.rules.push(alternatives);
        self.rules.len() - 1
    }

    fn next(&self, (rule, alternative, read, _): Item) -> Option<&Symbol> {
        self.rules[rule][alternative].get(read)
    }

    fn begin(&self, rule: usize, at: usize) -> impl Iterator<Item = Item> {
        (0..self.rules[rule].len()).map(move |alternative| (rule, alternative, 0, at))
    }

    /// Whether a text is one of the first rule.
    pub fn parses(&self, text: &str) -> bool {
        let text: Vec<char> = text.chars().collect();
        let mut sets: Vec<BTreeSet<Item>> = vec![BTreeSet::new(); text.len() + 1];
        sets[0].extend(self.begin(0, 0));
        for at in 0..=text.len() {
            // Until nothing is new, so that empty texts are found too.
            loop {
                let mut new = Vec::new();
                for item in &sets[at] {
                    match self.next(*item) {
                        Some(Symbol::Rule(rule)) => new.extend(self.begin(*rule, at)),
                        Some(Symbol::Range(..)) => (),
                        None => new.extend(sets[item.3].iter().filter_map(|waiting| {
                            let waits = matches!(self.next(*waiting), Some(Symbol::Rule(rule)) if *rule == item.0);
                            waits.then_some((waiting.0, waiting.1, waiting.2 + 1, waiting.3))
                        })),
                    }
                }
                let before = sets[at].len();
                sets[at].extend(new);
                if sets[at].len() == before {
                    break;
                }
            }
            let Some(character) = text.get(at) else {
                break;
            };
            let read: Vec<Item> = sets[at]
                .iter()
                .filter(|item| matches!(self.next(**item), Some(Symbol::Range(first, last)) if (first..=last).contains(&character)))
                .map(|item| (item.0, item.1, item.2 + 1, item.3))
                .collect();
            sets[at + 1].extend(read);
        }
        let whole = |item: &Item| item.0 == 0 && item.3 == 0 && self.next(*item).is_none();
        sets[text.len()].iter().any(whole)
    }
}

#[test]
fn it_recognises() {
    let a = |c| Symbol::Range(c, c);
    let mut nested = Grammar::default();
    nested.add(vec![
        vec![],
        vec![a('('), Symbol::Rule(0), a(')'), Symbol::Rule(0)],
    ]);
    for (text, is) in [
        ("", true),
        ("(())()", true),
        ("(()", false),
        ("())", false),
        ("a", false),
    ] {
        assert_eq!(nested.parses(text), is, "{text}");
    }
    let mut left = Grammar::default();
    left.add(vec![
        vec![Symbol::Rule(0), Symbol::Rule(1)],
        vec![Symbol::Rule(1)],
    ]);
    left.add(vec![vec![], vec![a('x')]]);
    assert!(left.parses("") && left.parses("xxx") && !left.parses("xy"));
}
