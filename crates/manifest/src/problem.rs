//! What is wrong with a file, and where.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

/// A place in a text: both numbers count from 1, columns in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Position {
    /// The line.
    pub line: u32,
    /// The column.
    pub column: u32,
}

impl Position {
    /// The beginning of a text.
    pub const START: Self = Self { line: 1, column: 1 };

    pub(crate) fn new(line: usize, column: usize) -> Self {
        let clip = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).max(1);
        Self { line: clip(line), column: clip(column) }
    }
}

/// What a finding means for the object that it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Severity {
    /// The object cannot be used; a source keeps what it last had.
    Error,
    /// The object is refused when it is applied. Where it already stands it is used, and what a proxy cannot enforce
    /// of it fails closed.
    Refused,
}

/// One thing that is wrong, told so that it can be put right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The file, as its reader named it.
    pub file: Arc<str>,
    /// The line, from 1.
    pub line: u32,
    /// The column, from 1.
    pub column: u32,
    /// What is wrong.
    pub message: String,
    /// What to do instead, where that is known: a did-you-mean, a way out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    /// What it means for the object.
    pub severity: Severity,
}

impl Problem {
    /// An error at a place of a file.
    pub fn error(file: &Arc<str>, at: Position, message: impl Into<String>) -> Self {
        Self {
            file: file.clone(),
            line: at.line,
            column: at.column,
            message: message.into(),
            remedy: None,
            severity: Severity::Error,
        }
    }

    /// The same with a way out.
    pub fn with_remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
}

/// `file:line:column: message (remedy)`.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: {}", self.file, self.line, self.column, self.message)?;
        match &self.remedy {
            Some(remedy) => write!(f, " ({remedy})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Problem {}
