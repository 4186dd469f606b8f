//! The table of a pod, as data.
//!
//! ```text
//! table inet ambit_INSTANCE {                                                    # its comment: the pod, and how it stands
//!     chain outbound {  type nat hook output priority -110;                      # before everybody else's
//!         meta mark & 0xfff == 0x539 return                                      # ztunnel's own
//!         meta mark & MASK == MARK return                                        # a client's address towards the application
//!         oif lo return
//!         tcp flags & (fin|syn|rst|ack) == syn redirect to :15001
//!     }
//!     chain inbound {   type nat hook prerouting priority -110;
//!         iif lo return
//!         tcp dport 15008 return                                                 # ztunnel listens there itself
//!         fib daddr type != local return                                         # what the pod routes for others
//!         ip saddr 169.254.7.127 return                                          # probes, where they can be told
//!         tcp flags & (fin|syn|rst|ack) == syn redirect to :15006
//!     }
//!     chain leaving {   type filter hook postrouting priority 0;
//!         oif lo return
//!         meta mark & MASK == MARK counter drop                                  # the pod's routing is damaged
//!         meta mark & 0xfff == 0x539 return
//!         fib saddr type != local return
//!         tcp flags & (syn|ack) == syn counter drop                              # somebody's rules came first
//!     }
//!     chain questions { type filter hook prerouting priority -150;
//!         iif lo meta l4proto udp th dport 53 meta mark & 0xfff == 0 fib daddr type != local
//!             meta nfproto ipv4 tproxy to 127.0.0.1:15053                        # and the same for IPv6
//!     }
//! }
//! ```
//!
//! Only a SYN is redirected: connection tracking takes the next packet of a connection that it does not know for the
//! first of a new one, and a connection that is older than its pod's enrolment is to go on. While a pod is let go, the
//! chains stay, and one rule that redirects stays out of reach in them: without any of its kind the kernel would neither
//! track nor translate what was redirected before.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::Found;
use super::expr::{Field, LOCAL, LOOPBACK, Rule, TCP, UDP, V4, V6};
use super::wire::{Attributes, Batch, Kind};

/// Where ztunnel takes what a pod sends.
pub const OUTBOUND: u16 = 15001;
/// Where ztunnel takes plaintext from the network.
pub const INBOUND: u16 = 15006;
/// Where ztunnel takes tunnels, which nobody redirects.
pub const TUNNELS: u16 = 15008;
/// Where ztunnel takes what a pod asks resolvers.
const QUESTIONS: u16 = 15053;
/// The port of resolvers.
const RESOLVER: u16 = 53;

/// The mark of ztunnel's own sockets, as with peers' agents, and the bits in which it is compared.
pub const EXEMPT: u32 = 0x539;
/// See [`EXEMPT`].
pub const EXEMPT_MASK: u32 = 0xfff;

/// Where probes come from to pods whose agent redirects by packet filter, as with peers' agents.
pub const PROBES_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 7, 127);
/// The same for IPv6.
pub const PROBES_V6: Ipv6Addr = Ipv6Addr::new(0xfd16, 0x9254, 0x7127, 0x1337, 0xffff, 0xffff, 0xffff, 0xffff);

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

const PREROUTING: u32 = 0;
pub(super) const FORWARD: u32 = 2;
pub(super) const OUTPUT: u32 = 3;
pub(super) const POSTROUTING: u32 = 4;

/// What a pod's table is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Its pod's uid.
    pub uid: String,
    /// Whether connections are captured, and not only those translated that were.
    pub captures: bool,
    /// Whether what is asked over IPv4 and over IPv6 goes to ztunnel.
    pub questions: [bool; 2],
    /// Whether probes are told by their source.
    pub probes: bool,
    /// The mark of connections that carry a client's address towards the application.
    pub mark: u32,
    /// The bits in which it is compared.
    pub mask: u32,
}

impl Plan {
    /// What is written on the table: how it stands and whose it is.
    pub(super) fn comment(&self) -> Vec<u8> {
        let stands = if self.captures { "captures" } else { "lets-go" };
        let questions = match self.questions {
            [false, false] => "-",
            [true, false] => "v4",
            [false, true] => "v6",
            [true, true] => "v4+v6",
        };
        format!("{stands} {questions} {}", self.uid).into_bytes()
    }

    /// Reads what is written on a table; nothing where somebody else wrote it.
    pub(super) fn read_comment(comment: &[u8]) -> Option<Found> {
        let mut words = std::str::from_utf8(comment).ok()?.splitn(3, ' ');
        let captures = match words.next()? {
            "captures" => true,
            "lets-go" => false,
            _ => return None,
        };
        let questions = match words.next()? {
            "-" => [false, false],
            "v4" => [true, false],
            "v6" => [false, true],
            "v4+v6" => [true, true],
            _ => return None,
        };
        Some(Found { uid: words.next()?.to_owned(), captures, questions })
    }

    /// The changes that put the table in place of whatever has its name.
    pub(super) fn install(&self, table: &str) -> Batch {
        let mut batch = remove(table);
        let mut made = named(table);
        made.put(6, &self.comment());
        batch.push(Kind::NewTable, made);
        chain(&mut batch, table, "outbound", b"nat\0", OUTPUT, -110, &self.outbound());
        chain(&mut batch, table, "inbound", b"nat\0", PREROUTING, -110, &self.inbound());
        chain(&mut batch, table, "leaving", b"filter\0", POSTROUTING, 0, &self.leaving());
        if self.questions.contains(&true) {
            let asked = self.asked();
            chain(&mut batch, table, "questions", b"filter\0", PREROUTING, -150, &asked);
        }
        batch
    }

    fn outbound(&self) -> Vec<Rule> {
        if !self.captures {
            // The second says nothing, but that connections are to be tracked.
            return vec![Rule::default().leave(), first().redirect(OUTBOUND)];
        }
        vec![
            exempt().leave(),
            self.towards_the_application().leave(),
            Rule::default().with(Field::OutputDevice, &LOOPBACK).leave(),
            first().redirect(OUTBOUND),
        ]
    }

    fn inbound(&self) -> Vec<Rule> {
        if !self.captures {
            return Vec::new();
        }
        let mut rules = vec![
            Rule::default().with(Field::InputDevice, &LOOPBACK).leave(),
            tcp().with(Field::DestinationPort, &TUNNELS.to_be_bytes()).leave(),
            Rule::default().other_than(Field::KindOfDestination, &LOCAL).leave(),
        ];
        if self.probes {
            let of = |family| Rule::default().with(Field::Family, family);
            rules.push(of(&V4).with(Field::SourceV4, &PROBES_V4.octets()).leave());
            rules.push(of(&V6).with(Field::SourceV6, &PROBES_V6.octets()).leave());
        }
        rules.push(first().redirect(INBOUND));
        rules
    }

    fn leaving(&self) -> Vec<Rule> {
        let mut rules = vec![
            Rule::default().with(Field::OutputDevice, &LOOPBACK).leave(),
            self.towards_the_application().counted().drop(),
        ];
        if self.captures {
            rules.extend([
                exempt().leave(),
                Rule::default().other_than(Field::KindOfSource, &LOCAL).leave(),
                tcp().has(Field::TcpFlags, &[SYN], &[SYN | ACK]).counted().drop(),
            ]);
        }
        rules
    }

    fn asked(&self) -> Vec<Rule> {
        let hand = |family: [u8; 1], address: &[u8]| {
            Rule::default()
                .with(Field::InputDevice, &LOOPBACK)
                .with(Field::Protocol, &UDP)
                .with(Field::DestinationPort, &RESOLVER.to_be_bytes())
                .has(Field::Mark, &0_u32.to_ne_bytes(), &EXEMPT_MASK.to_ne_bytes())
                .other_than(Field::KindOfDestination, &LOCAL)
                .with(Field::Family, &family)
                .hand_to(family, address, QUESTIONS)
        };
        let [v4, v6] = self.questions;
        let v4 = v4.then(|| hand(V4, &Ipv4Addr::LOCALHOST.octets()));
        let v6 = v6.then(|| hand(V6, &Ipv6Addr::LOCALHOST.octets()));
        v4.into_iter().chain(v6).collect()
    }

    fn towards_the_application(&self) -> Rule {
        Rule::default().has(Field::Mark, &self.mark.to_ne_bytes(), &self.mask.to_ne_bytes())
    }
}

/// Adds a chain, and what it says.
pub(super) fn chain(
    batch: &mut Batch,
    table: &str,
    name: &str,
    kind: &[u8],
    hook: u32,
    priority: i32,
    rules: &[Rule],
) {
    let (mut chain, mut at) = (Attributes::default(), Attributes::default());
    at.put_u32(1, hook).put_u32(2, priority.cast_unsigned());
    chain.put_name(1, table).put_name(3, name).put_nested(4, &at).put(7, kind);
    batch.push(Kind::NewChain, chain);
    for rule in rules {
        let mut attributes = Attributes::default();
        attributes.put_name(1, table).put_name(2, name).put_nested(4, &rule.encode());
        batch.push(Kind::NewRule, attributes);
    }
}

fn exempt() -> Rule {
    Rule::default().has(Field::Mark, &EXEMPT.to_ne_bytes(), &EXEMPT_MASK.to_ne_bytes())
}

fn tcp() -> Rule {
    Rule::default().with(Field::Protocol, &TCP)
}

/// Applies to the first packet of a connection.
pub(super) fn first() -> Rule {
    tcp().has(Field::TcpFlags, &[SYN], &[FIN | SYN | RST | ACK])
}

/// The changes that remove a table, whether it is there or not.
pub(super) fn remove(table: &str) -> Batch {
    let mut batch = Batch::default();
    batch.push(Kind::NewTable, named(table));
    batch.push(Kind::DeleteTable, named(table));
    batch
}

pub(super) fn named(table: &str) -> Attributes {
    let mut attributes = Attributes::default();
    attributes.put_name(1, table);
    attributes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_on_a_table_is_read_again() {
        for captures in [true, false] {
            for questions in [[false, false], [true, false], [false, true], [true, true]] {
                let uid = "4d9e-1".to_owned();
                let plan = Plan { uid: uid.clone(), captures, questions, probes: true, mark: 1, mask: 1 };
                let found = Found { uid, captures, questions };
                assert_eq!(Plan::read_comment(&plan.comment()), Some(found));
            }
        }
        assert_eq!(Plan::read_comment(b"somebody else's"), None);
        assert_eq!(Plan::read_comment(&[0xff]), None);
    }
}
