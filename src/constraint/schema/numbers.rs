//! Numbers between bounds, as regular expressions.

use super::keywords::Keywords;
use super::refused;
use crate::constraint::ConstraintError;

/// The largest integer that is written.
const LARGEST: i64 = 999_999_999_999_999;

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

    /// The least and the most integer within. Conversions saturate.
    fn integers(&self) -> (i64, i64) {
        let least = self
            .least
            .map_or(-LARGEST, |(bound, excluded)| match excluded {
                true => (bound.floor() as i64).saturating_add(1),
                false => bound.ceil() as i64,
            });
        let most = self
            .most
            .map_or(LARGEST, |(bound, excluded)| match excluded {
                true => (bound.ceil() as i64).saturating_sub(1),
                false => bound.floor() as i64,
            });
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
    let least = bounds.least.map_or(-LARGEST, |(bound, _)| bound as i64);
    let most = bounds.most.map_or(LARGEST, |(bound, _)| bound as i64);
    let fraction = r"\.[0-9]{0,14}[1-9]";
    either.extend(naturals(least.max(0), most - 1).map(|digits| digits + fraction));
    let negative = naturals((-most).max(0), -least - 1);
    either.extend(negative.map(|digits| format!("-{digits}{fraction}")));
    Ok(Some(format!("(?:{})", either.join("|"))))
}

/// A pattern of the integers from `least` to `most`.
fn between(least: i64, most: i64) -> String {
    let mut either = Vec::new();
    if least < 0 {
        either.extend(naturals((-most).max(1), -least).map(|digits| format!("-{digits}")));
    }
    if most >= 0 {
        either.extend(naturals(least.max(0), most));
    }
    match either.is_empty() {
        // No text at all.
        true => "[a&&b]".into(),
        false => format!("(?:{})", either.join("|")),
    }
}

/// Patterns of the natural numbers from `least` to `most`, one a number of digits.
fn naturals(least: i64, most: i64) -> impl Iterator<Item = String> {
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
        of_equal_length(low.as_bytes(), high.as_bytes())
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
}
