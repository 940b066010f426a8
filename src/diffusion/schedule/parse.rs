//! Schedules as text: `log-linear`, `cosine:0.008`, `polynomial:2`, …

use std::fmt;
use std::str::FromStr;

use super::Schedule;
use crate::diffusion::Error;

/// Nichol & Dhariwal's offset.
const COSINE_OFFSET: f64 = 0.008;

impl FromStr for Schedule {
    type Err = Error;

    /// Reads NAME or NAME:NUMBER,NUMBER,…; the names are listed in the [module](super).
    fn from_str(given: &str) -> Result<Self, Error> {
        let (name, parameters) = match given.split_once(':') {
            Some((name, parameters)) => (name, Some(parameters)),
            None => (given, None),
        };
        let syntax = |expected| Error::ScheduleSyntax {
            given: given.to_owned(),
            expected,
        };
        let numbers = |expected| match parameters {
            None => Ok(Vec::new()),
            Some(text) => text
                .split(',')
                .map(|number| number.trim().parse::<f64>().map_err(|_| syntax(expected)))
                .collect::<Result<Vec<_>, _>>(),
        };
        let none = |schedule, expected| match parameters {
            None => Ok(schedule),
            Some(_) => Err(syntax(expected)),
        };
        match name {
            "log-linear" => none(Self::LogLinear, "log-linear without parameters"),
            "d3pm" => none(Self::LogLinear, "d3pm without parameters"),
            "maskgit" => none(Self::MaskGit, "maskgit without parameters"),
            "cosine" => {
                let expected = "cosine or cosine:OFFSET, such as cosine:0.008";
                match numbers(expected)?[..] {
                    [] => Self::cosine(COSINE_OFFSET),
                    [s] => Self::cosine(s),
                    _ => Err(syntax(expected)),
                }
            }
            "polynomial" => {
                let expected = "polynomial:POWER, such as polynomial:2";
                match numbers(expected)?[..] {
                    [power] => Self::polynomial(power),
                    _ => Err(syntax(expected)),
                }
            }
            "geometric" => {
                let expected = "geometric:MIN,MAX, such as geometric:1e-5,20";
                match numbers(expected)?[..] {
                    [min, max] => Self::geometric(min, max),
                    _ => Err(syntax(expected)),
                }
            }
            "linear-beta" => {
                let expected = "linear-beta:MIN,MAX, such as linear-beta:0.1,20";
                match numbers(expected)?[..] {
                    [min, max] => Self::linear_beta(min, max),
                    _ => Err(syntax(expected)),
                }
            }
            "table" => Self::table(&numbers("table:ALPHA,ALPHA,…, such as table:1,0.7,0")?),
            _ => Err(Error::UnknownSchedule {
                given: given.to_owned(),
            }),
        }
    }
}

impl fmt::Display for Schedule {
    /// The text that parses to this schedule again.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LogLinear => f.write_str("log-linear"),
            Self::Cosine(cosine) => write!(f, "cosine:{}", cosine.offset()),
            Self::MaskGit => f.write_str("maskgit"),
            Self::Polynomial(polynomial) => write!(f, "polynomial:{}", polynomial.power()),
            Self::Geometric(geometric) => {
                write!(f, "geometric:{},{}", geometric.min(), geometric.max())
            }
            Self::LinearBeta(linear) => write!(f, "linear-beta:{},{}", linear.min(), linear.max()),
            Self::Table(table) => {
                let alphas: Vec<_> = table.alphas().iter().map(f64::to_string).collect();
                write!(f, "table:{}", alphas.join(","))
            }
        }
    }
}
