//! Numbers between bounds, as regular expressions.

use std::cmp::Ordering;

use super::keywords::Keywords;
use super::refused;
use crate::constraint::ConstraintError;

/// How many digits of a number are written: a double keeps any two such numbers apart.
const DIGITS: u32 = 15;

/// The largest integer that is written.
const LARGEST: i64 = 10i64.pow(DIGITS) - 1;

/// What is larger than all that is written; a bound beyond it says no more than it does.
const BEYOND: i64 = LARGEST + 1;

/// The bounds that a schema sets.
#[derive(Default)]
struct Bounds {
    /// The least, and whether it is itself excluded.
    least: Option<(f64, bool)>,
    most: Option<(f64, bool)>,
}

impl Bounds {
    /// Reads them; none if there are none.
    fn of(keywords: &mut Keywords<'_>) -> Result<Option<Self>, ConstraintError> {
        let mut bounds = Self::default();
        for (name, is_least, excluded) in [
            ("minimum", true, false),
            ("maximum", false, false),
            ("exclusiveMinimum", true, true),
            ("exclusiveMaximum", false, true),
        ] {
            let Some(value) = keywords.take(name) else {
                continue;
            };
            let Some(bound) = value.as_f64() else {
                let reason = format!("it is {value}; allowed: a number");
                return Err(refused(keywords.path(name), reason));
            };
            let given = match is_least {
                true => &mut bounds.least,
                false => &mut bounds.most,
            };
            // The tighter of two; of equal ones the one that excludes.
            let is_tighter = given.is_none_or(|(other, _)| match is_least {
                true => bound >= other,
                false => bound <= other,
            });
            if is_tighter {
                *given = Some((bound, excluded));
            }
        }
        let is_bounded = bounds.least.is_some() || bounds.most.is_some();
        Ok(is_bounded.then_some(bounds))
    }

    /// The bounds themselves, at most [`BEYOND`] from zero.
    fn clamped(&self) -> (f64, f64) {
        let beyond = BEYOND as f64;
        let clamp = |bound: Option<(f64, bool)>, otherwise: f64| {
            bound.map_or(otherwise, |(bound, _)| bound.clamp(-beyond, beyond))
        };
        (clamp(self.least, -beyond), clamp(self.most, beyond))
    }

    /// Whether the least and the most are themselves excluded.
    fn excluded(&self) -> (bool, bool) {
        let excludes = |bound: Option<(f64, bool)>| bound.is_some_and(|(_, excluded)| excluded);
        (excludes(self.least), excludes(self.most))
    }

    /// The least and the most integer within that is written; the least is more than the most if there is none.
    fn integers(&self) -> (i64, i64) {
        let (least, most) = self.clamped();
        let (excludes_least, excludes_most) = self.excluded();
        let least = match excludes_least {
            true => least.floor() as i64 + 1,
            false => least.ceil() as i64,
        };
        let most = match excludes_most {
            true => most.ceil() as i64 - 1,
            false => most.floor() as i64,
        };
        (least.max(-LARGEST), most.min(LARGEST))
    }
}

/// A pattern of the integers within the bounds that `keywords` set; none without bounds.
pub(super) fn integers(keywords: &mut Keywords<'_>) -> Result<Option<String>, ConstraintError> {
    let bounds = Bounds::of(keywords)?;
    Ok(bounds.map(|bounds| {
        let (least, most) = bounds.integers();
        between(least, most)
    }))
}

/// A pattern of the numbers, without exponents, within the bounds that `keywords` set; none without bounds.
pub(super) fn decimals(keywords: &mut Keywords<'_>) -> Result<Option<String>, ConstraintError> {
    let Some(bounds) = Bounds::of(keywords)? else {
        return Ok(None);
    };
    let (least, most) = bounds.integers();
    let mut either = vec![between(least, most)];
    // What is after the point leads away from zero.
    let (least, most) = bounds.clamped();
    let (excludes_least, excludes_most) = bounds.excluded();
    either.extend(fractions(
        &Bound::of(least.max(0.0), excludes_least),
        &Bound::of(most, excludes_most),
    ));
    let negative = fractions(
        &Bound::of((-most).max(0.0), excludes_most),
        &Bound::of(-least, excludes_least),
    );
    either.extend(negative.into_iter().map(|digits| format!("-{digits}")));
    Ok(Some(format!("(?:{})", either.join("|"))))
}

/// A bound of the numbers on one side of zero.
struct Bound {
    /// Its whole part; −1 if it lies on the other side.
    whole: i64,
    /// The digits after its point, of which the last is not 0.
    digits: Vec<u8>,
    /// Whether it is itself excluded.
    is_excluded: bool,
}

impl Bound {
    /// That of `bound`, which is at most [`BEYOND`].
    fn of(bound: f64, is_excluded: bool) -> Self {
        if bound < 0.0 {
            return Self {
                whole: -1,
                digits: Vec::new(),
                is_excluded,
            };
        }
        // The shortest decimal that is the double, without exponent.
        let text = bound.to_string();
        let digits = text.split_once('.').map_or("", |(_, digits)| digits);
        Self {
            whole: bound.floor() as i64,
            digits: digits.as_bytes().to_vec(),
            is_excluded,
        }
    }

    /// What it says of the digits after the point of numbers whose whole part is its own.
    fn edge(&self) -> Edge<'_> {
        Edge {
            digits: &self.digits,
            is_excluded: self.is_excluded,
        }
    }
}

/// A bound of the digits after a point.
#[derive(Clone, Copy)]
struct Edge<'a> {
    /// Its digits, of which the last is not 0.
    digits: &'a [u8],
    is_excluded: bool,
}

impl<'a> Edge<'a> {
    /// How a digit compares with its first one, and what is left of it.
    fn after(&self, digit: u8) -> (Ordering, Self) {
        let (first, digits) = self.digits.split_first().unwrap_or((&b'0', &[]));
        (digit.cmp(first), Self { digits, ..*self })
    }
}

/// Patterns of the numbers of at least 0 between two bounds that are not whole.
fn fractions(least: &Bound, most: &Bound) -> Vec<String> {
    let mut either = Vec::new();
    // Whole parts whose numbers are all within, and those of which some may be.
    let first = least.whole + i64::from(!least.digits.is_empty());
    let last = most.whole - 1;
    either.extend(naturals(first, last).filter_map(|(length, whole)| {
        let after = fraction(None, None, DIGITS.checked_sub(length)?)?;
        Some(format!(r"{whole}\.{after}"))
    }));
    let mut edges = Vec::new();
    if least.whole < first && least.whole <= most.whole {
        let upper = (least.whole == most.whole).then(|| most.edge());
        edges.push((least.whole, Some(least.edge()), upper));
    }
    if most.whole >= first {
        edges.push((most.whole, None, Some(most.edge())));
    }
    either.extend(edges.into_iter().filter_map(|(whole, lower, upper)| {
        let whole = whole.to_string();
        let after = fraction(lower, upper, DIGITS.checked_sub(whole.len() as u32)?)?;
        Some(format!(r"{whole}\.{after}"))
    }));
    either
}

/// A pattern of 1 to `most` digits after a point, the last of which is not 0, between two edges; none if there are
/// no such digits.
fn fraction(lower: Option<Edge<'_>>, upper: Option<Edge<'_>>, most: u32) -> Option<String> {
    // Digits of which the last is not 0 are above an edge of no digits, and never at or below it.
    let lower = lower.filter(|lower| !lower.digits.is_empty());
    if most == 0 || upper.is_some_and(|upper| upper.digits.is_empty()) {
        return None;
    }
    if lower.is_none() && upper.is_none() {
        return Some(format!("[0-9]{{0,{}}}[1-9]", most - 1));
    }
    let mut either = Vec::new();
    let mut free = String::new();
    for digit in b'0'..=b'9' {
        let lower = lower.map(|lower| lower.after(digit));
        let upper = upper.map(|upper| upper.after(digit));
        let is_below = lower.is_some_and(|(order, _)| order == Ordering::Less);
        let is_above = upper.is_some_and(|(order, _)| order == Ordering::Greater);
        if is_below || is_above {
            continue;
        }
        let lower = lower
            .filter(|(order, _)| order.is_eq())
            .map(|(_, rest)| rest);
        let upper = upper
            .filter(|(order, _)| order.is_eq())
            .map(|(_, rest)| rest);
        let digit = char::from(digit);
        if lower.is_none() && upper.is_none() {
            free.push(digit);
            continue;
        }
        let is_at_lower = lower.is_none_or(|edge| edge.digits.is_empty() && !edge.is_excluded);
        let is_at_upper = upper.is_none_or(|edge| !edge.digits.is_empty() || !edge.is_excluded);
        if digit != '0' && is_at_lower && is_at_upper {
            either.push(digit.to_string());
        }
        if let Some(rest) = fraction(lower, upper, most - 1) {
            either.push(format!("{digit}{rest}"));
        }
    }
    if let Some(rest) = fraction(None, None, most - 1)
        && !free.is_empty()
    {
        either.push(format!("[{free}]{rest}"));
    }
    let ends = free.trim_start_matches('0');
    if !ends.is_empty() {
        either.push(format!("[{ends}]"));
    }
    (!either.is_empty()).then(|| format!("(?:{})", either.join("|")))
}

/// A pattern of the integers from `least` to `most`.
fn between(least: i64, most: i64) -> String {
    let mut either = Vec::new();
    if least < 0 {
        either.extend(naturals((-most).max(1), -least).map(|(_, digits)| format!("-{digits}")));
    }
    if most >= 0 {
        either.extend(naturals(least.max(0), most).map(|(_, digits)| digits));
    }
    match either.is_empty() {
        // No text at all.
        true => "[a&&b]".into(),
        false => format!("(?:{})", either.join("|")),
    }
}

/// Patterns of the natural numbers from `least` to `most`, one a number of digits, which comes with it.
fn naturals(least: i64, most: i64) -> impl Iterator<Item = (u32, String)> {
    let digits = |number: i64| number.to_string().len() as u32;
    let lengths = match least <= most {
        true => digits(least)..digits(most) + 1,
        false => 1..1,
    };
    lengths.map(move |length| {
        let smallest = match length {
            1 => 0,
            _ => 10i64.pow(length - 1),
        };
        let low = least.max(smallest).to_string();
        let high = most.min(10i64.pow(length) - 1).to_string();
        (length, of_equal_length(low.as_bytes(), high.as_bytes()))
    })
}

/// A pattern of the texts of digits from `low` to `high`, which are of one length.
fn of_equal_length(low: &[u8], high: &[u8]) -> String {
    let ([first, low @ ..], [last, high @ ..]) = (low, high) else {
        return String::new();
    };
    let any = |count: usize| format!("[0-9]{{{count}}}");
    let class = |from: u8, to: u8| format!("[{}-{}]", char::from(from), char::from(to));
    if low.iter().all(|digit| *digit == b'0') && high.iter().all(|digit| *digit == b'9') {
        return class(*first, *last) + &any(low.len());
    }
    if first == last {
        return char::from(*first).to_string() + &of_equal_length(low, high);
    }
    let nines = vec![b'9'; low.len()];
    let zeros = vec![b'0'; low.len()];
    let mut either = vec![
        char::from(*first).to_string() + &of_equal_length(low, &nines),
        char::from(*last).to_string() + &of_equal_length(&zeros, high),
    ];
    if first + 1 < *last {
        either.push(class(first + 1, last - 1) + &any(low.len()));
    }
    format!("(?:{})", either.join("|"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::constraint::ByteDfa;

    #[test]
    fn decimals_are_within_their_bounds() {
        let language = |schema: serde_json::Value| {
            let fields = schema.as_object().cloned().unwrap_or_default();
            let pattern = decimals(&mut Keywords::new(&fields, "")).unwrap().unwrap();
            ByteDfa::regex(&pattern).unwrap()
        };
        let bounds = [
            -20.0, -3.07, -3.0, -2.5, -0.25, 0.0, 0.1, 0.25, 0.5, 1.0, 1.05, 12.0, 12.75,
        ];
        for least in bounds {
            for most in bounds.into_iter().filter(|most| *most > least) {
                let closed = language(json!({"minimum": least, "maximum": most}));
                let open = language(json!({"exclusiveMinimum": least, "exclusiveMaximum": most}));
                for hundredths in -2100..2100 {
                    let number = f64::from(hundredths) / 100.0;
                    let text = number.to_string();
                    if text == "-0" {
                        continue;
                    }
                    let is_closed = least <= number && number <= most;
                    assert_eq!(
                        closed.matches(text.as_bytes()),
                        is_closed,
                        "{text} {least} {most}"
                    );
                    let is_open = least < number && number < most;
                    assert_eq!(
                        open.matches(text.as_bytes()),
                        is_open,
                        "{text} {least} {most}"
                    );
                }
            }
        }
        let positive = language(json!({"exclusiveMinimum": 0}));
        assert!(positive.matches(b"0.001") && positive.matches(b"123456.75"));
        assert!(!positive.matches(b"0") && !positive.matches(b"0.0") && !positive.matches(b"-1"));
        let half = language(json!({"exclusiveMinimum": 0.5}));
        for (text, is_above) in [
            ("0.5", false),
            ("0.50", false),
            ("0.500001", true),
            ("0.51", true),
            ("0.4999", false),
            ("0.6", true),
            ("1", true),
            ("-0.6", false),
        ] {
            assert_eq!(half.matches(text.as_bytes()), is_above, "{text}");
        }
        let tiny = language(json!({"minimum": 1e-300, "maximum": 0.3}));
        assert!(tiny.matches(b"0.00000000000001") && tiny.matches(b"0.3"));
        assert!(!tiny.matches(b"0") && !tiny.matches(b"0.30000000000001"));
        // More digits than are written.
        let sum = language(json!({"minimum": 0.1 + 0.2, "exclusiveMaximum": 0.4}));
        assert!(sum.matches(b"0.31") && !sum.matches(b"0.3") && !sum.matches(b"0.4"));
    }

    #[test]
    fn a_pattern_has_the_integers_between_its_bounds_and_no_others() {
        for (least, most) in [
            (0, 0),
            (-3, 12),
            (7, 230),
            (-105, -9),
            (99, 1001),
            (-1, 1),
            (-1200, 999),
        ] {
            let language = ByteDfa::regex(&between(least, most)).unwrap();
            for number in -1300..1300 {
                let is_between = (least..=most).contains(&number);
                let text = number.to_string();
                assert_eq!(language.matches(text.as_bytes()), is_between, "{number}");
            }
            assert!(!language.matches(b"-0") && !language.matches(b"00"));
        }
        assert!(ByteDfa::regex(&between(3, 2)).is_err());
        let widest = ByteDfa::regex(&between(-LARGEST, LARGEST)).unwrap();
        assert!(widest.matches(b"-999999999999999") && !widest.matches(b"1000000000000000"));
    }

    /// A text of the language, of at most 40 bytes.
    fn sample(language: &ByteDfa, random: &mut u64) -> String {
        let mut text = Vec::new();
        let mut state = 0;
        loop {
            let bytes: Vec<u8> = (0..=u8::MAX)
                .filter(|byte| language.walk(state, &[*byte]) != u32::MAX)
                .collect();
            *random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let draw = (*random >> 33) as usize;
            if bytes.is_empty() || (language.is_accepting(state) && draw.is_multiple_of(20)) {
                return String::from_utf8(text).unwrap();
            }
            let byte = bytes[draw % bytes.len()];
            assert!(text.len() < 40);
            text.push(byte);
            state = language.walk(state, &[byte]);
        }
    }

    #[test]
    fn bounds_of_any_size_are_kept() {
        let bounds = [
            json!(1e15),
            json!(-1e15),
            json!(999_999_999_999_999_i64),
            json!(-999_999_999_999_998_i64),
            json!(1e16),
            json!(1e18),
            json!(1e19),
            json!(-1e19),
            json!(-1e30),
            json!(1e300),
            json!(-1e300),
            json!(i64::MAX),
            json!(i64::MIN),
            json!(u64::MAX),
            json!(20),
            json!(0),
            json!(0.1),
            json!(-2.75),
            json!(123_456_789_012_345.6),
        ];
        let forms = [
            ("minimum", "maximum"),
            ("exclusiveMinimum", "exclusiveMaximum"),
        ];
        let mut schemas = Vec::new();
        for (least, most) in forms {
            for bound in &bounds {
                schemas.push(json!({ least: bound }));
                schemas.push(json!({ most: bound }));
                schemas.extend(
                    bounds
                        .iter()
                        .map(|other| json!({least: bound, most: other})),
                );
            }
        }
        let mut random = 1;
        let (mut sampled, mut empty) = (0, 0);
        for schema in &schemas {
            let fields = schema.as_object().unwrap();
            let pattern = |is_whole| {
                let mut keywords = Keywords::new(fields, "");
                let pattern = match is_whole {
                    true => integers(&mut keywords),
                    false => decimals(&mut keywords),
                };
                pattern.unwrap().unwrap()
            };
            for is_whole in [true, false] {
                let language = match ByteDfa::regex(&pattern(is_whole)) {
                    Ok(language) => language,
                    Err(error) => {
                        assert_eq!(error, ConstraintError::Empty, "{schema}");
                        empty += 1;
                        continue;
                    }
                };
                for _ in 0..8 {
                    let text = sample(&language, &mut random);
                    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
                    let number = value.as_f64().unwrap();
                    for (name, bound) in fields {
                        let bound = bound.as_f64().unwrap();
                        let is_kept = match name.as_str() {
                            "minimum" => number >= bound,
                            "maximum" => number <= bound,
                            "exclusiveMinimum" => number > bound,
                            _ => number < bound,
                        };
                        assert!(is_kept, "{text} {schema}");
                    }
                    let whole = text.trim_start_matches('-').split('.').next().unwrap();
                    assert!(whole.len() <= 15, "{text}");
                    sampled += 1;
                }
            }
        }
        assert!(sampled > 500 && empty > 100, "{sampled} {empty}");
    }
}
