//! The formats of strings, as regular expressions.

/// Days of every month but for leap days.
const DATE: &str = "[1-9][0-9]{3}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])\
    |(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))";
const TIME: &str = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?(?:Z|[+-](?:0[0-9]|1[0-3]):[0-5][0-9])";
const UUID: &str = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}";
const EMAIL: &str = r"[A-Za-z0-9_+-]+(?:\.[A-Za-z0-9_+-]+)*@[a-z0-9]+(?:-[a-z0-9]+)*(?:\.[a-z0-9]+(?:-[a-z0-9]+)*)*\.[a-z]{2,10}";
const IPV4: &str = r"(?:(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])\.){3}(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])";

/// The formats that are known.
pub(super) const NAMES: &str = "date, time, date-time, uuid, email, ipv4";

/// A pattern of texts of a format; not of all of them, but of none that is not. None if it is not known.
pub(super) fn pattern(format: &str) -> Option<String> {
    match format {
        "date" => Some(DATE.into()),
        "time" => Some(TIME.into()),
        "date-time" => Some(format!("(?:{DATE})T(?:{TIME})")),
        "uuid" => Some(UUID.into()),
        "email" => Some(EMAIL.into()),
        "ipv4" => Some(IPV4.into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::constraint::ByteDfa;

    #[test]
    fn formats_have_texts_of_theirs_and_no_others() {
        for (format, yes, no) in [
            ("date", "2024-04-30", "2024-04-31"),
            ("date", "1999-02-28", "1999-02-30"),
            ("time", "23:59:00.5Z", "24:00:00Z"),
            (
                "date-time",
                "2024-12-31T00:00:00+01:30",
                "2024-12-31 00:00:00",
            ),
            ("uuid", "123e4567-e89b-12d3-a456-426614174000", "123e4567"),
            ("email", "a.b+c@mail.example-site.org", "a..b@example.org"),
            ("ipv4", "255.0.10.199", "256.0.0.1"),
        ] {
            let language = ByteDfa::regex(&pattern(format).unwrap()).unwrap();
            assert!(language.matches(yes.as_bytes()), "{yes}");
            assert!(!language.matches(no.as_bytes()), "{no}");
        }
        assert_eq!(pattern("uri"), None);
        assert!(NAMES.split(", ").all(|name| pattern(name).is_some()));
    }
}
