//! serde's errors, in the words of a person who wrote YAML.

use std::fmt;

use serde::de::{self, Expected, Unexpected};

use crate::problem::Position;
use crate::suggest::did_you_mean;

/// Why a reading stopped.
#[derive(Debug)]
pub(super) struct Stop {
    /// The node at fault, once a reader has claimed it.
    pub(super) node: Option<(usize, Position)>,
    pub(super) message: String,
    pub(super) remedy: Option<String>,
    /// Something is not there, perhaps only because it was left out.
    pub(super) is_absence: bool,
}

impl Stop {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self { node: None, message: message.into(), remedy: None, is_absence: false }
    }

    pub(super) fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Stop {}

impl de::Error for Stop {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(message.to_string())
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new(format!("expected {expected}, found {}", Found(found)))
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        match found {
            Unexpected::Signed(_) | Unexpected::Unsigned(_) => {
                Self::new(format!("{} is out of range", Bare(found))).remedy(format!("expected {expected}"))
            }
            _ => Self::new(format!("expected {expected}, found {}", Found(found))),
        }
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        let words: Vec<String> = expected.iter().map(|word| format!("`{word}`")).collect();
        let stop = Self::new(format!("`{variant}` is none of {}", words.join(", ")));
        match did_you_mean(variant, expected.iter().copied()) {
            Some(remedy) => stop.remedy(remedy),
            None => stop,
        }
    }

    fn missing_field(field: &'static str) -> Self {
        Self { is_absence: true, ..Self::new(format!("the field `{field}` is missing")) }
    }

    fn duplicate_field(field: &'static str) -> Self {
        Self::new(format!("the field `{field}` is here twice"))
    }
}

struct Found<'a>(Unexpected<'a>);

impl fmt::Display for Found<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Unexpected::Bool(b) => write!(f, "what YAML reads as {b}"),
            Unexpected::Unsigned(_) | Unexpected::Signed(_) | Unexpected::Float(_) => {
                write!(f, "the number {}", Bare(self.0))
            }
            Unexpected::Str(s) => {
                let short: String = s.chars().take(40).collect();
                write!(f, "the text {short:?}")
            }
            Unexpected::Unit | Unexpected::Option => f.write_str("nothing"),
            Unexpected::Seq => f.write_str("a list"),
            Unexpected::Map => f.write_str("a mapping"),
            other => write!(f, "{other}"),
        }
    }
}

struct Bare<'a>(Unexpected<'a>);

impl fmt::Display for Bare<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Unexpected::Unsigned(n) => write!(f, "{n}"),
            Unexpected::Signed(n) => write!(f, "{n}"),
            Unexpected::Float(n) => write!(f, "{n}"),
            other => write!(f, "{other}"),
        }
    }
}
