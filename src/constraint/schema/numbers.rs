//! Numbers between bounds, as regular expressions.

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
    fn of(keywords: &mut Keywords<'_>, is_whole: bool) -> Result<Option<Self>, ConstraintError> {
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
            let bound = value
                .as_f64()
                .filter(|bound| value.is_number() && (!is_whole || bound.fract() == 0.0));
            let Some(bound) = bound else {
                let allowed = match is_whole {
                    true => "a whole number",
                    false => "a number",
                };
                let reason = format!("it is {value}; allowed: {allowed}");
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

    /// The least and the most integer within that is written; the least is more than the most if there is none.
    fn integers(&self) -> (i64, i64) {
        let (least, most) = self.clamped();
        let excludes = |bound: Option<(f64, bool)>| bound.is_some_and(|(_, excluded)| excluded);
        let least = match excludes(self.least) {
            true => least.floor() as i64 + 1,
            false => least.ceil() as i64,
        };
        let most = match excludes(self.most) {
            true => most.ceil() as i64 - 1,
            false => most.floor() as i64,
        };
        (least.max(-LARGEST), most.min(LARGEST))
    }
}

/// A pattern of the integers within the bounds that `keywords` set; none without bounds.
pub(super) fn integers(keywords: &mut Keywords<'_>) -> Result<Option<String>, ConstraintError> {
    let bounds = Bounds::of(keywords, false)?;
    Ok(bounds.map(|bounds| {
        let (least, most) = bounds.integers();
        between(least, most)
    }))
}

/// A pattern of the numbers, without exponents, within the whole bounds that `keywords` set; none without
/// bounds.
pub(super) fn decimals(keywords: &mut Keywords<'_>) -> Result<Option<String>, ConstraintError> {
    let Some(bounds) = Bounds::of(keywords, true)? else {
        return Ok(None);
    };
    let (least, most) = bounds.integers();
    let mut either = vec![between(least, most)];
    // What is after the point leads away from zero, by less than one.
    let (least, most) = bounds.clamped();
    let (least, most) = (least as i64, most as i64);
    either.extend(fractions(least.max(0), most - 1));
    let negative = fractions((-most).max(0), -least - 1);
    either.extend(negative.map(|digits| format!("-{digits}")));
    Ok(Some(format!("(?:{})", either.join("|"))))
}

/// Patterns of numbers whose whole part is from `least` to `most` and that are not whole.
fn fractions(least: i64, most: i64) -> impl Iterator<Item = String> {
    naturals(least, most).filter_map(|(length, digits)| {
        let after = DIGITS.checked_sub(length + 1)?;
        Some(format!(r"{digits}\.[0-9]{{0,{after}}}[1-9]"))
    })
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
        let bounds = [-20, -3, 0, 1, 12];
        for least in bounds {
            for most in bounds.into_iter().filter(|most| *most > least) {
                let closed = language(json!({"minimum": least, "maximum": most}));
                let open = language(json!({"exclusiveMinimum": least, "exclusiveMaximum": most}));
                for tenths in -250..250 {
                    let number = f64::from(tenths) / 10.0;
                    let text = number.to_string();
                    if text == "-0" {
                        continue;
                    }
                    let (low, high) = (f64::from(least), f64::from(most));
                    let is_closed = low <= number && number <= high;
                    assert_eq!(
                        closed.matches(text.as_bytes()),
                        is_closed,
                        "{text} {least} {most}"
                    );
                    let is_open = low < number && number < high;
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
