//! The way from the top of a document to a node.

use std::fmt;

/// A way, as a list that lives on the stack.
#[derive(Clone, Copy)]
pub(super) enum Path<'p> {
    Root,
    Field(&'p Path<'p>, &'p str),
    Index(&'p Path<'p>, usize),
}

/// `spec.rules[0].from`, or `the document` at its top.
impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Field(Path::Root, name) => f.write_str(name),
            Self::Field(parent, name) => write!(f, "{parent}.{name}"),
            Self::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

impl Path<'_> {
    /// The way as the subject of a sentence.
    pub(super) fn subject(&self) -> String {
        match self {
            Self::Root => "the object".to_owned(),
            _ => format!("`{self}`"),
        }
    }
}
