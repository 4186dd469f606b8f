//! Host names of endpoints that have no address: looked up when a connection needs them, as its node looks up names.

mod resolver;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::future::join_all;
use thiserror::Error;

pub use resolver::Resolver;

/// Why a name has no addresses.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LookupError {
    /// Nobody looks up names here.
    #[error("this proxy looks up no names")]
    Nobody,
    /// There is no such name.
    #[error("there is no such name")]
    NoSuchName,
    /// There is, and it has no address.
    #[error("the name has no address")]
    NoAddress,
    /// It could not be found out.
    #[error("{0}")]
    Failed(String),
}

/// Looks up names. An answer is kept for as long as it says that it holds.
pub trait Lookup: fmt::Debug + Send + Sync {
    /// The addresses of a host, v4 and v6.
    fn look_up(&self, host: Arc<str>) -> Looking;
}

/// Where a name leads.
type Found = Result<Vec<IpAddr>, LookupError>;

/// A name being looked up. Dropping it gives up the wait, not the look-up.
pub type Looking = Pin<Box<dyn Future<Output = Found> + Send>>;

/// Who looks up names. Cloning is cheap and shares them.
#[derive(Clone, Debug)]
pub struct Names(Arc<dyn Lookup>);

impl Names {
    /// By such a one.
    pub fn by(lookup: impl Lookup + 'static) -> Self {
        Self(Arc::new(lookup))
    }

    /// Looks up all of these at the same time.
    pub(crate) async fn look_up(&self, hosts: BTreeSet<Arc<str>>) -> Resolved {
        let looking = hosts.into_iter().map(async |host| (host.clone(), self.0.look_up(host).await));
        Resolved(Some(join_all(looking).await.into_iter().collect()))
    }
}

impl Default for Names {
    /// By nobody.
    fn default() -> Self {
        #[derive(Debug)]
        struct Nobody;
        impl Lookup for Nobody {
            fn look_up(&self, _: Arc<str>) -> Looking {
                Box::pin(async { Err(LookupError::Nobody) })
            }
        }
        Self::by(Nobody)
    }
}

/// What came of looking names up, for one connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolved(Option<BTreeMap<Arc<str>, Found>>);

/// What is known of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known<'a> {
    /// It may be asked for.
    NotYet,
    /// Its addresses: at least one.
    At(&'a [IpAddr]),
    /// None, or none that was asked for in time.
    Nowhere,
}

impl Resolved {
    /// What is known of a name. Names are asked for once: what was not among them then counts as nowhere.
    pub fn of(&self, host: &str) -> Known<'_> {
        let Some(all) = &self.0 else { return Known::NotYet };
        match all.get(host) {
            Some(Ok(addresses)) if !addresses.is_empty() => Known::At(addresses),
            _ => Known::Nowhere,
        }
    }

    /// Why names that were asked for have no addresses: `api.example.com: there is no such name`.
    pub fn failures(&self) -> String {
        let all = self.0.iter().flatten();
        let failed = all.filter_map(|(host, result)| match result {
            Err(why) => Some(format!("{host}: {why}")),
            Ok(addresses) if addresses.is_empty() => Some(format!("{host}: {}", LookupError::NoAddress)),
            Ok(_) => None,
        });
        failed.collect::<Vec<_>>().join("; ")
    }
}

#[cfg(test)]
impl FromIterator<(Arc<str>, Found)> for Resolved {
    fn from_iter<I: IntoIterator<Item = (Arc<str>, Found)>>(all: I) -> Self {
        Self(Some(all.into_iter().collect()))
    }
}
