//! Durations and sizes as people write them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Serialize, Serializer};
use thiserror::Error;

/// A duration: numbers with units, added up. `10s`, `1m30s`, `1.5h`, `250ms`; a bare `0` is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl Span {
    /// So many seconds.
    pub const fn secs(n: u64) -> Self {
        Self(Duration::from_secs(n))
    }

    /// So many hours.
    pub const fn hours(n: u64) -> Self {
        Self(Duration::from_secs(n * 3600))
    }
}

impl From<Span> for Duration {
    fn from(span: Span) -> Self {
        span.0
    }
}

const UNITS: [(&str, f64); 7] =
    [("ms", 1e-3), ("us", 1e-6), ("µs", 1e-6), ("ns", 1e-9), ("h", 3600.0), ("m", 60.0), ("s", 1.0)];

/// Longer than any sensible setting, and far from overflow.
const LONGEST: f64 = 1e10;

impl FromStr for Span {
    type Err = ParseSpanError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let mut rest = s.trim();
        if rest == "0" {
            return Ok(Self::default());
        }
        if rest.is_empty() {
            return Err(ParseSpanError::Empty);
        }
        let mut total = Duration::ZERO;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
            let (number, after) = rest.split_at(digits);
            let number: f64 = number.parse().map_err(|_| ParseSpanError::Number(rest.to_owned()))?;
            let unit = UNITS.iter().find(|(unit, _)| after.starts_with(unit));
            let (unit, seconds) = unit.ok_or_else(|| ParseSpanError::Unit(after.to_owned()))?;
            let seconds = number * seconds;
            if seconds > LONGEST {
                return Err(ParseSpanError::TooLong);
            }
            total += Duration::from_nanos((seconds * 1e9).round() as u64);
            rest = &after[unit.len()..];
        }
        Ok(Self(total))
    }
}

/// The largest whole units first: `1h30m`, `1m30s`, `250ms`.
impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut nanos = self.0.as_nanos();
        if nanos == 0 {
            return f.write_str("0s");
        }
        let units = [
            ("h", 3_600_000_000_000),
            ("m", 60_000_000_000),
            ("s", 1_000_000_000),
            ("ms", 1_000_000),
            ("us", 1000),
            ("ns", 1),
        ];
        for (unit, size) in units {
            if nanos >= size {
                write!(f, "{}{unit}", nanos / size)?;
                nanos %= size;
            }
        }
        Ok(())
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Why a text is no duration.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ParseSpanError {
    /// There is nothing.
    #[error("it is empty")]
    Empty,
    /// A number was expected here.
    #[error("`{0}` does not begin with a number")]
    Number(String),
    /// A unit was expected here.
    #[error("`{0}` is no unit: use h, m, s, ms, us or ns")]
    Unit(String),
    /// Hundreds of years.
    #[error("it is longer than anyone can wait")]
    TooLong,
}

/// A size in bytes: `4096`, `64KiB`, `16MiB`, `1GiB`; `kB`, `MB` and `GB` are powers of ten.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

const SIZES: [(&str, u64); 8] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("B", 1),
    ("", 1),
];

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl FromStr for ByteSize {
    type Err = ParseByteSizeError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let s = s.trim();
        let digits = s.find(|c: char| !c.is_ascii_digit()).unwrap_or(s.len());
        let (number, unit) = s.split_at(digits);
        let number: u64 = number.parse().map_err(|_| ParseByteSizeError::Number(s.to_owned()))?;
        let unit = unit.trim_start();
        let size = SIZES.iter().find(|(name, _)| *name == unit);
        let (_, size) = size.ok_or_else(|| ParseByteSizeError::Unit(unit.to_owned()))?;
        number.checked_mul(*size).map(Self).ok_or_else(|| ParseByteSizeError::Number(s.to_owned()))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = SIZES[..3].iter().rev().find(|(_, size)| self.0 >= *size && self.0.is_multiple_of(*size));
        match whole {
            Some((unit, size)) => write!(f, "{}{unit}", self.0 / size),
            None => write!(f, "{}B", self.0),
        }
    }
}

/// Why a text is no size.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ParseByteSizeError {
    /// The number is missing or too large.
    #[error("`{0}` does not begin with a number of at most 64 bits")]
    Number(String),
    /// The unit is none.
    #[error("`{0}` is no unit: use KiB, MiB, GiB, kB, MB or GB")]
    Unit(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_they_are_written() {
        for (text, millis) in [
            ("10s", 10_000),
            ("1m30s", 90_000),
            ("1.5h", 5_400_000),
            ("250ms", 250),
            ("0", 0),
            ("24h0m0s", 86_400_000),
        ] {
            assert_eq!(text.parse::<Span>(), Ok(Span(Duration::from_millis(millis))), "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in ["", "10", "s", "10 s", "-1s", "1d", "1s2", "1..5s", "1e9h", "99999999999h"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_duration_prints_so_that_it_reads_back() {
        for text in ["0s", "1h30m", "1m30s", "250ms", "1s1us"] {
            assert_eq!(text.parse::<Span>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn sizes_read_as_they_are_written_and_back() {
        for (text, bytes, printed) in [
            ("4096", 4096, "4KiB"),
            ("64KiB", 65_536, "64KiB"),
            ("1 MB", 1_000_000, "1000000B"),
            ("7B", 7, "7B"),
        ] {
            assert_eq!(text.parse::<ByteSize>(), Ok(ByteSize(bytes)), "{text}");
            assert_eq!(ByteSize(bytes).to_string(), printed);
        }
        for text in ["", "KiB", "1kib", "1.5MiB", "-1", "99999999999GiB"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }
}
