//! A round of what `cargo fuzz` does without end, from the same seeds. `UNMASK_FUZZ_ROUNDS` makes it longer and
//! `UNMASK_FUZZ_SEED` another one.

use std::path::Path;

use serde_json::{Map, Value, json};
use unmask::sampling::philox::philox4x32;

use crate::fuzzed::{Server, constraint, template};

/// Reads a number of the environment.
fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// The seeds of a target.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
    let files = std::fs::read_dir(folder.join(target)).unwrap();
    let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    files.sort();
    files
        .iter()
        .map(|path| std::fs::read(path).unwrap())
        .collect()
}

/// Random numbers of one input.
struct Dice {
    seed: [u32; 2],
    input: u32,
    thrown: u32,
}

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.thrown += 1;
        let [word, ..] = philox4x32([self.thrown, self.input, 0, 0], self.seed);
        word as usize % end
    }

    fn one_of<'a, T>(&mut self, values: &'a [T]) -> &'a T {
        &values[self.below(values.len())]
    }
}

/// Inputs made of `seeds`, each given to `check`; of one that fails the number is printed.
fn fuzz(seeds: &[Vec<u8>], rounds: u64, check: impl Fn(&[u8]), is_json: impl Fn(&[u8]) -> bool) {
    struct Shown(u32);
    impl Drop for Shown {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("input {} of the round failed", self.0);
            }
        }
    }
    for seed in seeds {
        check(seed);
    }
    let seed = setting("UNMASK_FUZZ_SEED", 0);
    let values = Values::of(seeds);
    for input in 0..rounds as u32 {
        let shown = Shown(input);
        let mut dice = Dice {
            seed: [seed as u32, (seed >> 32) as u32],
            input,
            thrown: 0,
        };
        let mut bytes = dice.one_of(seeds).clone();
        let parsed = is_json(&bytes).then(|| serde_json::from_slice::<Value>(&bytes[1..]));
        if let Some(Ok(mut value)) = parsed {
            for _ in 0..=dice.below(3) {
                values.change(&mut value, &mut dice);
            }
            bytes.truncate(1);
            bytes.extend_from_slice(value.to_string().as_bytes());
        }
        if !is_json(&bytes) || dice.below(8) == 0 {
            for _ in 0..=dice.below(4) {
                change_bytes(&mut bytes, seeds, &mut dice);
            }
        }
        check(&bytes);
        drop(shown);
    }
}

/// Changes, removes or inserts bytes.
fn change_bytes(bytes: &mut Vec<u8>, seeds: &[Vec<u8>], dice: &mut Dice) {
    let at = dice.below(bytes.len() + 1);
    match dice.below(4) {
        0 if at < bytes.len() => bytes[at] ^= 1 << dice.below(8),
        1 if at < bytes.len() => {
            let end = (at + 1 + dice.below(4)).min(bytes.len());
            bytes.drain(at..end);
        }
        2 => {
            let other = dice.one_of(seeds);
            let from = dice.below(other.len());
            let to = (from + 1 + dice.below(12)).min(other.len());
            bytes.splice(at..at, other[from..to].iter().copied());
        }
        _ => bytes.insert(at, *dice.one_of(b"{}[]()\\\",:*+?|0919.-e\xC3\xF0 a^$")),
    }
}

/// What requests are changed with: names and values of all seeds, and values that are hard.
struct Values {
    names: Vec<String>,
    values: Vec<Value>,
}

impl Values {
    fn of(seeds: &[Vec<u8>]) -> Self {
        let nested = (0..200).fold(json!(1), |value, _| json!([value]));
        let mut values = vec![
            Value::Null,
            json!(true),
            json!(-1),
            json!(0),
            json!(1),
            json!(3.5),
            json!(1 << 20),
            json!(1_u64 << 32),
            json!(1_u64 << 63),
            json!(u64::MAX),
            json!(i64::MIN),
            json!(1e308),
            json!(-1e-300),
            json!(""),
            json!("\0"),
            json!("é🦀\u{301}\u{FFFD}"),
            json!("x".repeat(5000)),
            json!("{{3}}"),
            json!("{{99}}{{99999999999999999999}}"),
            json!("(a|b)*c{0,9}"),
            json!([]),
            json!({}),
            json!([null, [], {}]),
            json!(vec!["a"; 40]),
            json!({"": {"": 0}}),
            nested,
        ];
        let mut names = vec![String::new(), "nonsense".into(), "model".into()];
        for seed in seeds {
            if let Ok(value) = serde_json::from_slice::<Value>(&seed[1..]) {
                gather(&value, &mut names, &mut values);
            }
        }
        Self { names, values }
    }

    /// Changes a value, or one that is in it.
    fn change(&self, value: &mut Value, dice: &mut Dice) {
        let is_leaf = match value {
            Value::Object(fields) => fields.is_empty(),
            Value::Array(items) => items.is_empty(),
            _ => true,
        };
        if is_leaf || dice.below(6) == 0 {
            *value = dice.one_of(&self.values).clone();
            return;
        }
        let what = dice.below(5);
        match value {
            Value::Object(fields) => self.change_fields(fields, what, dice),
            Value::Array(items) => {
                let at = dice.below(items.len());
                match what {
                    0 => drop(items.remove(at)),
                    1 => items.insert(at, dice.one_of(&self.values).clone()),
                    2 => items.insert(at, items[at].clone()),
                    _ => self.change(&mut items[at], dice),
                }
            }
            _ => {}
        }
    }

    fn change_fields(&self, fields: &mut Map<String, Value>, what: usize, dice: &mut Dice) {
        let at = dice.below(fields.len());
        let Some(name) = fields.keys().nth(at).cloned() else {
            return;
        };
        match what {
            0 => drop(fields.remove(&name)),
            1 => {
                let value = dice.one_of(&self.values).clone();
                fields.insert(dice.one_of(&self.names).clone(), value);
            }
            _ => self.change(&mut fields[&name], dice),
        }
    }
}

/// Collects the names and values that are in `value`.
fn gather(value: &Value, names: &mut Vec<String>, values: &mut Vec<Value>) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                names.push(name.clone());
                gather(field, names, values);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| gather(item, names, values)),
        _ => {}
    }
    values.push(value.clone());
}

#[test]
fn no_request_is_answered_with_a_fault() {
    let server = Server::start();
    let rounds = setting("UNMASK_FUZZ_ROUNDS", 3000);
    fuzz(
        &seeds("request"),
        rounds,
        |input| server.request(input),
        |_| true,
    );
}

#[test]
fn no_form_of_a_gap_cannot_be_answered() {
    let is_schema = |input: &[u8]| input.first() == Some(&b's');
    let rounds = setting("UNMASK_FUZZ_ROUNDS", 1000);
    fuzz(&seeds("constraint"), rounds, constraint, is_schema);
}

#[test]
fn texts_with_gaps_come_apart_and_together_again() {
    let rounds = setting("UNMASK_FUZZ_ROUNDS", 10_000);
    fuzz(&seeds("template"), rounds, template, |_| false);
}
