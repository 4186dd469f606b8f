//! The types of resource that travel.

use std::fmt;

use serde::{Serialize, Serializer};

/// A type of resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TypeUrl {
    /// Policies.
    ///
    /// They come first wherever both types have something to say: a workload must not be reachable before the policies
    /// that select it are in force.
    Authorization,
    /// Workloads and services.
    Address,
}

impl TypeUrl {
    /// All of them, in the order in which they are asked for and pushed.
    pub const ALL: [Self; 2] = [Self::Authorization, Self::Address];

    /// How many there are.
    pub(crate) const COUNT: usize = Self::ALL.len();

    /// The type's name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Authorization => "type.googleapis.com/istio.security.Authorization",
            Self::Address => "type.googleapis.com/istio.workload.Address",
        }
    }

    /// The type of that name.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.as_str() == text)
    }

    /// Its place in tables that have one slot a type.
    pub(crate) const fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for TypeUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for TypeUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}
