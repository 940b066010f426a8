//! Dates as Python's `strftime` writes them, of a clock in UTC.

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = [
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
];
const SECONDS_A_DAY: u64 = 86_400;

/// A moment, taken apart.
struct Moment {
    year: u64,
    /// From 0.
    month: usize,
    /// From 1.
    day: u64,
    /// From 1.
    day_of_year: u64,
    /// From 0 for Sunday.
    weekday: usize,
    hour: u64,
    minute: u64,
    second: u64,
}

impl Moment {
    fn of(unix_time: u64) -> Self {
        let days = unix_time / SECONDS_A_DAY;
        let (mut year, mut day_of_year) = (1970, days);
        while day_of_year >= days_in(year) {
            day_of_year -= days_in(year);
            year += 1;
        }
        let (mut month, mut day) = (0, day_of_year);
        for length in month_lengths(year) {
            if day < length {
                break;
            }
            day -= length;
            month += 1;
        }
        let second = unix_time % SECONDS_A_DAY;
        Self {
            year,
            month,
            day: day + 1,
            day_of_year: day_of_year + 1,
            // 1 January 1970 was a Thursday.
            weekday: ((days + 4) % 7) as usize,
            hour: second / 3600,
            minute: second / 60 % 60,
            second: second % 60,
        }
    }

    fn hour_of_12(&self) -> u64 {
        (self.hour + 11) % 12 + 1
    }
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn days_in(year: u64) -> u64 {
    if is_leap(year) { 366 } else { 365 }
}

fn month_lengths(year: u64) -> [u64; 12] {
    let february = if is_leap(year) { 29 } else { 28 };
    [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
}

/// The moment `unix_time`, in seconds since the Unix epoch, written as `format` says.
///
/// # Errors
/// Names a directive that is not known.
pub(super) fn strftime(format: &str, unix_time: u64) -> Result<String, String> {
    let moment = Moment::of(unix_time);
    let mut text = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            text.push(character);
            continue;
        }
        // glibc's flag for numbers without padding.
        let mut directive = characters.next();
        let is_padded = directive != Some('-');
        if !is_padded {
            directive = characters.next();
        }
        let number = |value: u64, width: usize| match is_padded {
            true => format!("{value:0width$}"),
            false => value.to_string(),
        };
        let (month, weekday) = (MONTHS[moment.month], WEEKDAYS[moment.weekday]);
        text += &match directive {
            Some('Y') => moment.year.to_string(),
            Some('y') => number(moment.year % 100, 2),
            Some('m') => number(moment.month as u64 + 1, 2),
            Some('B') => month.to_owned(),
            Some('b') => month[..3].to_owned(),
            Some('d') => number(moment.day, 2),
            Some('j') => number(moment.day_of_year, 3),
            Some('A') => weekday.to_owned(),
            Some('a') => weekday[..3].to_owned(),
            Some('w') => moment.weekday.to_string(),
            Some('H') => number(moment.hour, 2),
            Some('I') => number(moment.hour_of_12(), 2),
            Some('p') => if moment.hour < 12 { "AM" } else { "PM" }.to_owned(),
            Some('M') => number(moment.minute, 2),
            Some('S') => number(moment.second, 2),
            Some('F') => strftime("%Y-%m-%d", unix_time)?,
            Some('T') => strftime("%H:%M:%S", unix_time)?,
            Some('Z') => "UTC".to_owned(),
            Some('z') => "+0000".to_owned(),
            Some('%') => "%".to_owned(),
            Some(other) => return Err(format!("strftime_now: %{other} is not known")),
            None => return Err("strftime_now: % at the end of the format".to_owned()),
        };
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_python_writes_them() {
        let every = "%Y %y %m %-m %B %b %d %-d %j %A %a %w %H %I %-I %p %M %S %F %T %Z %z %%";
        for (unix_time, expected) in [
            (
                0,
                "1970 70 01 1 January Jan 01 1 001 Thursday Thu 4 00 12 12 AM 00 00 1970-01-01 00:00:00 UTC +0000 %",
            ),
            (
                951_827_696,
                "2000 00 02 2 February Feb 29 29 060 Tuesday Tue 2 12 12 12 PM 34 56 2000-02-29 12:34:56 UTC +0000 %",
            ),
            (
                1_735_689_599,
                "2024 24 12 12 December Dec 31 31 366 Tuesday Tue 2 23 11 11 PM 59 59 2024-12-31 23:59:59 UTC +0000 %",
            ),
            (
                4_107_542_400,
                "2100 00 03 3 March Mar 01 1 060 Monday Mon 1 00 12 12 AM 00 00 2100-03-01 00:00:00 UTC +0000 %",
            ),
        ] {
            assert_eq!(strftime(every, unix_time).unwrap(), expected);
        }
    }

    #[test]
    fn directives_that_are_not_known_are_named() {
        assert!(strftime("%Q", 0).unwrap_err().contains("%Q"));
        assert!(strftime("100 %", 0).is_err());
    }
}
