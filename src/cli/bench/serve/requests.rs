//! The requests of a load: drawn from distributions of lengths, or read from a file.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use hyper::body::Bytes;
use serde_json::{Map, Value, json};
use unmask::sampling::philox::philox4x32;

/// The most bytes of a file of requests, which is held in memory.
const FILE_BYTES: u64 = 256 << 20;

/// Words whose tokens the drawn prompts are made of.
const WORDS: &str = "the a of and to in he was that she it his her with had for they on said one day there \
    little big old red blue dog cat bird house tree garden mother father friend boy girl morning night sun \
    moon river mountain went came saw found took gave made liked wanted played looked asked told then when \
    because but so very happy sad";

/// How many of them, one after the other in random order, are tokenized.
const WORD_COUNT: usize = 4096;

/// A distribution of lengths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lengths {
    /// Every length between two, both included, with equal probability.
    Between(usize, usize),
    /// One of these with equal probability.
    OneOf(Vec<usize>),
}

impl FromStr for Lengths {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let length = |text: &str| match text.trim().parse::<usize>() {
            Ok(length) if (1..=1 << 20).contains(&length) => Ok(length),
            _ => Err(
                "allowed: a length, a list such as 32,64,128, or a range such as 16..128, of \
                 lengths from 1 to 1048576"
                    .to_owned(),
            ),
        };
        if let Some((least, most)) = text.split_once("..") {
            let (least, most) = (length(least)?, length(most)?);
            if least > most {
                return Err(format!("{least} is more than {most}"));
            }
            return Ok(Self::Between(least, most));
        }
        let lengths = text.split(',').map(length).collect::<Result<_, _>>()?;
        Ok(Self::OneOf(lengths))
    }
}

impl Lengths {
    /// The greatest.
    pub fn most(&self) -> usize {
        match self {
            Self::Between(_, most) => *most,
            Self::OneOf(lengths) => lengths.iter().copied().max().unwrap_or(0),
        }
    }

    /// The length at `word` of 32 random bits.
    fn at(&self, word: u32) -> usize {
        let below = |count: usize| ((u64::from(word) * count as u64) >> 32) as usize;
        match self {
            Self::Between(least, most) => least + below(most - least + 1),
            Self::OneOf(lengths) => lengths[below(lengths.len())],
        }
    }
}

/// A numbered endless list of requests: the same under the same seed.
pub enum Requests {
    /// Prompts of token ids with a gap after them.
    Drawn {
        /// The tokens that prompts are pieces of.
        tokens: Vec<u64>,
        /// Tokens a prompt.
        prompt: Lengths,
        /// Slots a gap.
        gap: Lengths,
        /// The `diffusion` object of every request.
        diffusion: Option<Map<String, Value>>,
        /// The seed of lengths and prompts.
        seed: u64,
    },
    /// Those of a file, in its order and again from its beginning.
    Listed(Vec<Map<String, Value>>),
}

impl Requests {
    /// Reads a file with the body of a request in each line.
    ///
    /// # Errors
    /// If it cannot be read, or a line is no JSON object or streams in a way of its own.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let name = path.display();
        let file = File::open(path).with_context(|| format!("--requests {name}"))?;
        let bytes = file.metadata()?.len();
        ensure!(
            bytes <= FILE_BYTES,
            "--requests {name} has {bytes} bytes; allowed: at most {FILE_BYTES}"
        );
        let mut bodies = Vec::new();
        for (index, line) in BufReader::new(file).lines().enumerate() {
            let line = line?;
            if line.trim().is_empty() {
                continue;
            }
            let at = || format!("--requests {name}, line {}", index + 1);
            let body: Map<String, Value> = serde_json::from_str(&line)
                .with_context(|| format!("{}: not the JSON object of a request", at()))?;
            for field in ["stream", "stream_options", "diffusing"] {
                if body.contains_key(field) {
                    bail!("{}: {field} is set by the measurement; leave it out", at());
                }
            }
            bodies.push(body);
        }
        ensure!(!bodies.is_empty(), "--requests {name} has no request");
        Ok(Self::Listed(bodies))
    }

    /// The body of request `number`, which asks for a stream; with `frames` also for the canvas after each step.
    pub fn body(&self, number: u64, frames: bool) -> Bytes {
        let mut body = match self {
            Self::Drawn {
                tokens,
                prompt,
                gap,
                diffusion,
                seed,
            } => {
                let [at, prompt_at, gap_at, _] = random(*seed, number, 0);
                let start = at as usize % tokens.len();
                let prompt = tokens.iter().cycle().skip(start).take(prompt.at(prompt_at));
                let mut body = json!({
                    "prompt": prompt.collect::<Vec<_>>(),
                    "max_tokens": gap.at(gap_at),
                    "seed": number,
                });
                if let Some(diffusion) = diffusion {
                    body["diffusion"] = Value::Object(diffusion.clone());
                }
                body
            }
            Self::Listed(bodies) => {
                let index = number % bodies.len() as u64;
                Value::Object(bodies[index as usize].clone())
            }
        };
        body["stream"] = true.into();
        body["stream_options"] = match frames {
            true => json!({"include_usage": true, "diffusion": "frames"}),
            false => json!({"include_usage": true}),
        };
        Bytes::from(body.to_string())
    }
}

/// A text of random words, the same under the same seed.
pub fn text(seed: u64) -> String {
    let words: Vec<&str> = WORDS.split_whitespace().collect();
    let chosen = (0..WORD_COUNT as u64).map(|number| {
        let [word, ..] = random(seed, number, 1);
        words[word as usize % words.len()]
    });
    chosen.collect::<Vec<_>>().join(" ")
}

/// Time between two Poisson arrivals at a rate of one a second: exponential with mean 1.
pub fn exponential(seed: u64, number: u64) -> f64 {
    let [word, ..] = random(seed, number, 2);
    -(f64::from(word) + 0.5).ln() + 2f64.powi(32).ln()
}

/// How long the client of a request waits before it hangs up, if it is one of the `share` that do: up to a second,
/// so that some go before their answer begins and others in its middle.
pub fn patience(seed: u64, number: u64, share: f64) -> Option<Duration> {
    let [whether, after, ..] = random(seed, number, 3);
    let unit = |word: u32| f64::from(word) / 2f64.powi(32);
    (unit(whether) < share).then(|| Duration::from_secs_f64(unit(after)))
}

/// Four random words of `number` for one of several uses.
fn random(seed: u64, number: u64, usage: u32) -> [u32; 4] {
    let halves = |word: u64| [word as u32, (word >> 32) as u32];
    let [low, high] = halves(number);
    philox4x32([low, high, usage, 0], halves(seed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_a_range_with_both_ends_or_one_of_a_list() {
        let between: Lengths = "3..5".parse().unwrap();
        assert_eq!([between.at(0), between.at(u32::MAX)], [3, 5]);
        let list: Lengths = "32, 64,128".parse().unwrap();
        assert_eq!(list, Lengths::OneOf(vec![32, 64, 128]));
        assert_eq!(
            [list.at(0), list.at(1 << 31), list.at(u32::MAX)],
            [32, 64, 128]
        );
        for wrong in ["", "0", "5..3", "1..", "a", "1,,2", "9999999999"] {
            assert!(wrong.parse::<Lengths>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_asked_for_share_of_clients_hangs_up_within_a_second() {
        let hung_up = |share: f64| {
            let times = (0..10_000).filter_map(|number| patience(5, number, share));
            times
                .inspect(|time| assert!(*time < Duration::from_secs(1)))
                .count()
        };
        assert_eq!([hung_up(0.0), hung_up(1.0)], [0, 10_000]);
        assert!((1_850..2_150).contains(&hung_up(0.2)), "{}", hung_up(0.2));
    }

    #[test]
    fn arrivals_come_at_their_mean_rate_and_never_backwards() {
        let gaps: Vec<f64> = (0..20_000).map(|number| exponential(7, number)).collect();
        assert!(gaps.iter().all(|gap| *gap > 0.0));
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        assert!((mean - 1.0).abs() < 0.03, "{mean}");
        let longer = gaps.iter().filter(|gap| **gap > 1.0).count() as f64 / gaps.len() as f64;
        assert!((longer - (-1f64).exp()).abs() < 0.02, "{longer}");
    }
}
