//! The table of nftables in a pod that captures its connections where eBPF programs do not load.
//!
//! What a SYN is sent to instead is ztunnel's to ask of connection tracking (SO_ORIGINAL_DST). The table is put in place
//! in one piece or not at all, says on itself whose it is, and is looked at by its generation: as long as nothing of a
//! namespace's tables has changed, nothing need be compared.

mod expr;
mod probes;
mod rules;
mod wire;

use net::{Netns, NetnsError};
use thiserror::Error;

use expr::COUNTER;
pub use probes::{Kubelet, NodePlan};
pub use rules::{EXEMPT, EXEMPT_MASK, INBOUND, OUTBOUND, PROBES_V4, PROBES_V6, Plan, TUNNELS};
pub use wire::WireError;
use wire::{Attributes, Batch, Kind, Link};

/// The tables of one instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tables {
    name: String,
}

/// What is in a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The pod's uid.
    pub uid: String,
    /// Whether its connections are captured.
    pub captures: bool,
    /// Whether what it asks over IPv4 and over IPv6 goes to ztunnel.
    pub questions: [bool; 2],
}

/// A table that was put in place, as it is to stay.
#[derive(Debug)]
pub struct Watched {
    link: Link,
    name: String,
    generation: Vec<u8>,
    print: Print,
    dropped: u64,
}

/// How a table stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// As it was put in place.
    Intact,
    /// Removed or changed.
    Damaged,
}

/// A table without what changes by itself.
type Print = Vec<(Vec<u8>, Vec<u8>)>;

impl Tables {
    /// Those of this instance.
    pub fn of(instance: &str) -> Self {
        Self { name: format!("ambit_{instance}") }
    }

    /// Puts a pod's table in place of the one that it has, in one piece.
    ///
    /// # Errors
    ///
    /// See [`NftError`]; then the table is as it was.
    pub fn install(&self, netns: &Netns, plan: &Plan) -> Result<Watched, NftError> {
        put(netns, &self.name, &plan.install(&self.name))
    }

    /// Puts the node's own table in place of the one that it has, in one piece.
    ///
    /// # Errors
    ///
    /// See [`NftError`]; then the table is as it was.
    pub fn install_on_node(&self, netns: &Netns, plan: &NodePlan) -> Result<Watched, NftError> {
        let name = self.on_node();
        put(netns, &name, &plan.install(&name))
    }

    /// Removes the table of a pod. Idempotent. Connections that it redirected end.
    ///
    /// # Errors
    ///
    /// See [`NftError`].
    pub fn remove(&self, netns: &Netns) -> Result<(), NftError> {
        remove(netns, &self.name)
    }

    /// Removes the node's own table. Idempotent.
    ///
    /// # Errors
    ///
    /// See [`NftError`].
    pub fn remove_from_node(&self, netns: &Netns) -> Result<(), NftError> {
        remove(netns, &self.on_node())
    }

    fn on_node(&self) -> String {
        format!("{}_node", self.name)
    }

    /// The table in a namespace, if one is there on which it says whose it is.
    ///
    /// # Errors
    ///
    /// See [`NftError`].
    pub fn find(&self, netns: &Netns) -> Result<Option<Found>, NftError> {
        let table = table_named(netns, &self.name)?;
        let known = table.and_then(|table| wire::attribute(&table, 6).and_then(Plan::read_comment));
        Ok(known)
    }
}

/// Whether this kernel takes all that a pod's table may have, found out by trying, in a namespace that is made for it
/// (CAP_SYS_ADMIN).
///
/// # Errors
///
/// What the kernel does not take.
pub fn probe() -> Result<(), NftError> {
    let netns = net::netns::unnamed()?;
    let plan = Plan {
        uid: "probe".to_owned(),
        captures: true,
        questions: [true, true],
        probes: true,
        mark: 1,
        mask: 1,
    };
    Tables::of("probe").install(&netns, &plan).map(drop)
}

impl Watched {
    /// Whether the table is as it was put in place.
    ///
    /// # Errors
    ///
    /// See [`NftError`].
    pub fn look(&mut self) -> Result<Standing, NftError> {
        let generation = generation(&self.link)?;
        if generation == self.generation {
            return Ok(Standing::Intact);
        }
        let (print, _) = read(&self.link, &self.name)?;
        if print != self.print {
            return Ok(Standing::Damaged);
        }
        self.generation = generation;
        Ok(Standing::Intact)
    }

    /// How many packets the table has kept from leaving so far.
    ///
    /// # Errors
    ///
    /// See [`NftError`].
    pub fn dropped(&mut self) -> Result<u64, NftError> {
        let (_, dropped) = read(&self.link, &self.name)?;
        self.dropped = self.dropped.max(dropped);
        Ok(self.dropped)
    }
}

fn put(netns: &Netns, table: &str, change: &Batch) -> Result<Watched, NftError> {
    let (changing, link) = links(netns)?;
    changing.commit(change).map_err(NftError::Install)?;
    let (generation, (print, dropped)) = (generation(&link)?, read(&link, table)?);
    Ok(Watched { link, name: table.to_owned(), generation, print, dropped })
}

fn remove(netns: &Netns, table: &str) -> Result<(), NftError> {
    if table_named(netns, table)?.is_none() {
        return Ok(());
    }
    let (changing, _) = links(netns)?;
    changing.commit(&rules::remove(table)).map_err(NftError::Remove)
}

/// Its attributes.
fn table_named(netns: &Netns, name: &str) -> Result<Option<Vec<u8>>, NftError> {
    let (_, link) = links(netns)?;
    match link.list(Kind::GetTable, &Attributes::default()) {
        Ok(tables) => Ok(tables.into_iter().find(|table| is_named(table, name))),
        Err(error) if error.is_absent() => Ok(None),
        Err(error) => Err(NftError::Look(error)),
    }
}

fn links(netns: &Netns) -> Result<(Link, Link), NftError> {
    netns.run(|| Ok((Link::open()?, Link::open()?)))?.map_err(NftError::Look)
}

fn generation(link: &Link) -> Result<Vec<u8>, NftError> {
    let found = link.list(Kind::GetGeneration, &Attributes::default()).map_err(NftError::Look)?;
    let number = found.first().and_then(|generation| wire::attribute(generation, 1));
    number.map(<[u8]>::to_vec).ok_or(NftError::Look(WireError::Truncated))
}

/// The chains and rules of a table, and how many packets its counters have seen.
fn read(link: &Link, table: &str) -> Result<(Print, u64), NftError> {
    let mut print = Print::new();
    for chain in link.list(Kind::GetChain, &Attributes::default()).map_err(NftError::Look)? {
        if is_named(&chain, table) {
            let part = |kind| wire::attribute(&chain, kind).unwrap_or_default().to_vec();
            // Its name, and where it is hooked, with what policy.
            print.push((part(3), [part(4), part(5), part(7)].concat()));
        }
    }
    let mut packets = 0;
    for rule in link.list(Kind::GetRule, &rules::named(table)).map_err(NftError::Look)? {
        if !is_named(&rule, table) {
            continue;
        }
        let chain = wire::attribute(&rule, 2).unwrap_or_default().to_vec();
        let mut said = Vec::new();
        for (_, expression) in wire::attributes(wire::attribute(&rule, 4).unwrap_or_default()) {
            match (wire::attribute(expression, 1), wire::attribute(expression, 2)) {
                (Some(COUNTER), Some(data)) => packets += counted(data),
                _ => said.extend(expression),
            }
        }
        print.push((chain, said));
    }
    Ok((print, packets))
}

fn counted(counter: &[u8]) -> u64 {
    let packets = wire::attribute(counter, 2).and_then(|packets| packets.first_chunk());
    packets.map_or(0, |packets| u64::from_be_bytes(*packets))
}

/// Whether something is, or belongs to, the table of this name.
fn is_named(attributes: &[u8], table: &str) -> bool {
    wire::attribute(attributes, 1).and_then(|name| name.strip_suffix(&[0])) == Some(table.as_bytes())
}

/// Why a pod's table is not as it should be.
#[derive(Debug, Error)]
pub enum NftError {
    /// The namespace cannot be entered.
    #[error("the pod's network namespace cannot be entered")]
    Netns(#[from] NetnsError),
    /// The table cannot be put in place.
    #[error("the table that captures the pod's connections cannot be put in place")]
    Install(#[source] WireError),
    /// The table cannot be removed.
    #[error("the table that captures the pod's connections cannot be removed")]
    Remove(#[source] WireError),
    /// The tables cannot be listed.
    #[error("the tables of the pod's network namespace cannot be listed")]
    Look(#[source] WireError),
}

#[cfg(test)]
mod tests;
