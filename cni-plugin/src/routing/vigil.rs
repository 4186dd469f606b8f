//! Whether a pod's routing still does what it is for, asked of the kernel itself: where would it send a packet?
//!
//! The answer covers whatever may be wrong: a rule or route that was deleted, and one of somebody else that comes first.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use net::{Netns, NetnsError};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use thiserror::Error;

use super::{FWMARK_ACCEPT, FWMARK_REFLECT, LOCAL_TABLE, Routing, TABLE, resolvers};
use crate::redirect::RedirectError;

const NLMSG_ERROR: u16 = 2;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const NLM_F_REQUEST: u16 = 1;
/// The answer names the table in which the route was found.
const RTM_F_LOOKUP_TABLE: u32 = 0x1000;
const RTA_DST: u16 = 1;
const RTA_MARK: u16 = 16;
const RTA_IP_PROTO: u16 = 27;
const RTA_DPORT: u16 = 29;
const RTN_LOCAL: u8 = 2;
const HEADER: usize = 16;
/// `struct rtmsg`.
const ROUTE: usize = 12;

/// Addresses of documentation: where a family that the pod does not have would lead.
const NOWHERE_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const NOWHERE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

/// Watches the routing of one pod.
#[derive(Debug)]
pub struct Vigil {
    routes: OwnedFd,
    sysctls: Vec<(&'static str, File)>,
}

/// Something that the routing does not do any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Damage {
    /// Marked packets do not loop back.
    Routing,
    /// Accepted sockets, or answers of no socket, do not take over marks.
    Sysctl,
    /// What the pod asks resolvers does not loop back.
    Questions,
}

impl Damage {
    /// What it is called in logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Routing => "routing",
            Self::Sysctl => "sysctl",
            Self::Questions => "questions",
        }
    }
}

/// A packet, and what must become of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Question {
    to: IpAddr,
    mark: u32,
    /// It is a datagram to this port.
    datagram_to: Option<u16>,
    /// It is delivered locally, by this table.
    table: u8,
    /// It may go nowhere instead.
    or_nowhere: bool,
}

impl Vigil {
    /// Begins to watch a namespace. What is opened here stays the namespace's.
    ///
    /// # Errors
    ///
    /// See [`VigilError`].
    pub fn begin(netns: &Netns) -> Result<Self, VigilError> {
        netns.run(|| {
            let routes = socket(
                AddressFamily::Netlink,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC,
                SockProtocol::NetlinkRoute,
            )
            .map_err(|errno| VigilError::Kernel(errno.into()))?;
            setsockopt(&routes, sockopt::ReceiveTimeout, &TimeVal::new(1, 0))
                .map_err(|errno| VigilError::Kernel(errno.into()))?;
            let mut sysctls = Vec::new();
            for path in [FWMARK_ACCEPT].into_iter().chain(FWMARK_REFLECT) {
                // Opened by path it is this namespace's setting from then on.
                match File::open(path) {
                    Ok(file) => sysctls.push((path, file)),
                    // Of a kernel without that family.
                    Err(error) if error.kind() == io::ErrorKind::NotFound && path != FWMARK_ACCEPT => {}
                    Err(source) => return Err(VigilError::Sysctl { path, source }),
                }
            }
            Ok(Self { routes, sysctls })
        })?
    }

    /// What the routing does not do any more; that of what the pod asks resolvers too, where they are `steered`.
    ///
    /// # Errors
    ///
    /// See [`VigilError`].
    pub fn damage(&self, routing: &Routing, steered: bool) -> Result<Vec<Damage>, VigilError> {
        let mut damage = Vec::new();
        let questions = questions(routing, steered);
        let asked: Vec<u8> = questions.iter().flat_map(|question| question.encode()).collect();
        send(self.routes.as_raw_fd(), &asked, MsgFlags::empty())
            .map_err(|errno| VigilError::Kernel(errno.into()))?;
        let (mut all_kept, mut all_steered) = (true, true);
        let mut buffer = [0; 4096];
        for question in &questions {
            let received = recv(self.routes.as_raw_fd(), &mut buffer, MsgFlags::empty())
                .map_err(|errno| VigilError::Kernel(errno.into()))?;
            let is_kept = question.is_kept(&buffer[..received])?;
            match question.datagram_to {
                Some(_) => all_steered &= is_kept,
                None => all_kept &= is_kept,
            }
        }
        if !all_kept {
            damage.push(Damage::Routing);
        }
        if !all_steered {
            damage.push(Damage::Questions);
        }
        for (path, file) in &self.sysctls {
            let mut value = [0; 1];
            file.read_exact_at(&mut value, 0).map_err(|source| VigilError::Sysctl { path, source })?;
            if value != *b"1" {
                damage.push(Damage::Sysctl);
                break;
            }
        }
        Ok(damage)
    }

    /// Puts back what the routing does not do any more, and says in `mended` what that was.
    ///
    /// # Errors
    ///
    /// It cannot be put back, or does not do what it is for though it is.
    pub(crate) async fn mend(
        &self,
        netns: &Netns,
        routing: &Routing,
        steered: bool,
        mended: &mut Vec<&'static str>,
    ) -> Result<(), RedirectError> {
        let damage = self.damage(routing, steered)?;
        if damage.is_empty() {
            return Ok(());
        }
        if damage.iter().any(|what| *what != Damage::Questions) {
            super::install(netns, routing).await?;
        }
        if steered {
            resolvers::install(netns, routing).await?;
        }
        let left = self.damage(routing, steered)?;
        mended.extend(damage.iter().filter(|what| !left.contains(what)).map(|what| what.name()));
        match left.first() {
            None => Ok(()),
            Some(what) => Err(RedirectError::Overridden(what.name())),
        }
    }
}

fn questions(routing: &Routing, steered: bool) -> Vec<Question> {
    let mut questions = Vec::new();
    let families = [
        (routing.v4.map(IpAddr::from), IpAddr::from(NOWHERE_V4)),
        (routing.v6.map(IpAddr::from), IpAddr::from(NOWHERE_V6)),
    ];
    for (own, nowhere) in families {
        let (to, or_nowhere) = own.map_or((nowhere, true), |own| (own, false));
        // The pod's own address is what the local table has too: so it is known which of them comes first.
        let marked = Question { to, mark: routing.mark, datagram_to: None, table: TABLE, or_nowhere };
        questions.push(marked);
        if let Some(own) = own {
            let known = Question { or_nowhere: false, ..marked };
            questions.push(Question { to: nowhere, ..known });
            questions.push(Question { to: own, mark: 0, table: LOCAL_TABLE, ..known });
            if steered {
                let datagram_to = Some(resolvers::PORT);
                questions.push(Question {
                    to: nowhere,
                    mark: 0,
                    datagram_to,
                    table: resolvers::TABLE,
                    ..known
                });
            }
        }
    }
    questions
}

impl Question {
    /// `struct nlmsghdr`, `struct rtmsg`, the address and the mark.
    fn encode(&self) -> Vec<u8> {
        let (family, address) = match self.to {
            IpAddr::V4(v4) => (AddressFamily::Inet, v4.octets().to_vec()),
            IpAddr::V6(v6) => (AddressFamily::Inet6, v6.octets().to_vec()),
        };
        let mut bytes = vec![0; 4];
        bytes.extend(RTM_GETROUTE.to_ne_bytes());
        bytes.extend(NLM_F_REQUEST.to_ne_bytes());
        bytes.extend([0; 8]);
        bytes.extend([family as u8, 8 * address.len() as u8, 0, 0, 0, 0, 0, 0]);
        bytes.extend(RTM_F_LOOKUP_TABLE.to_ne_bytes());
        let mut attribute = |kind: u16, value: &[u8]| {
            bytes.extend((4 + value.len() as u16).to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        };
        attribute(RTA_DST, &address);
        attribute(RTA_MARK, &self.mark.to_ne_bytes());
        if let Some(port) = self.datagram_to {
            attribute(RTA_IP_PROTO, &[SockProtocol::Udp as u8]);
            attribute(RTA_DPORT, &port.to_be_bytes());
        }
        let length = bytes.len() as u32;
        bytes[..4].copy_from_slice(&length.to_ne_bytes());
        bytes
    }

    fn is_kept(&self, answer: &[u8]) -> Result<bool, VigilError> {
        let kind = answer.get(4..).and_then(<[u8]>::first_chunk).ok_or(VigilError::Truncated)?;
        let body = answer.get(HEADER..).ok_or(VigilError::Truncated)?;
        match u16::from_ne_bytes(*kind) {
            RTM_NEWROUTE => {
                let [_, _, _, _, table, _, _, kind, ..] =
                    *body.first_chunk::<ROUTE>().ok_or(VigilError::Truncated)?;
                Ok(kind == RTN_LOCAL && table == self.table)
            }
            NLMSG_ERROR => {
                let errno = i32::from_ne_bytes(*body.first_chunk().ok_or(VigilError::Truncated)?);
                match Errno::from_raw(errno.saturating_neg()) {
                    // The ways in which a kernel says that there is no way.
                    Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EACCES | Errno::EINVAL => {
                        Ok(self.or_nowhere)
                    }
                    Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP | Errno::ENODEV => Ok(self.or_nowhere),
                    errno => Err(VigilError::Kernel(errno.into())),
                }
            }
            _ => Err(VigilError::Truncated),
        }
    }
}

/// Why the routing of a pod cannot be watched.
#[derive(Debug, Error)]
pub enum VigilError {
    /// The namespace cannot be entered.
    #[error("the pod's network namespace cannot be entered")]
    Netns(#[from] NetnsError),
    /// The kernel cannot be asked.
    #[error("the kernel does not say where it would send the pod's packets")]
    Kernel(#[source] io::Error),
    /// A sysctl cannot be read.
    #[error("{path} cannot be read")]
    Sysctl {
        /// Which.
        path: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The answer ends too early, or is none to this question.
    #[error("the kernel's answer about a route makes no sense")]
    Truncated,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OWN: Question = Question {
        to: IpAddr::V4(Ipv4Addr::new(10, 0, 0, 5)),
        mark: 1,
        datagram_to: None,
        table: TABLE,
        or_nowhere: false,
    };

    fn route(table: u8, kind: u8) -> Vec<u8> {
        let mut bytes = vec![0; HEADER + ROUTE];
        bytes[4..6].copy_from_slice(&RTM_NEWROUTE.to_ne_bytes());
        bytes[HEADER + 4] = table;
        bytes[HEADER + 7] = kind;
        bytes
    }

    fn refusal(errno: Errno) -> Vec<u8> {
        let mut bytes = vec![0; HEADER + 4];
        bytes[4..6].copy_from_slice(&NLMSG_ERROR.to_ne_bytes());
        bytes[HEADER..].copy_from_slice(&(-(errno as i32)).to_ne_bytes());
        bytes
    }

    #[test]
    fn only_local_delivery_by_the_right_table_will_do() {
        const UNICAST: u8 = 1;
        assert!(OWN.is_kept(&route(TABLE, RTN_LOCAL)).unwrap());
        for other in [route(LOCAL_TABLE, RTN_LOCAL), route(TABLE, UNICAST), route(254, UNICAST)] {
            assert!(!OWN.is_kept(&other).unwrap());
        }
    }

    #[test]
    fn a_family_that_the_pod_does_not_have_may_lead_nowhere() {
        let absent = Question { or_nowhere: true, ..OWN };
        for errno in [Errno::ENETUNREACH, Errno::EHOSTUNREACH, Errno::EAFNOSUPPORT] {
            assert!(absent.is_kept(&refusal(errno)).unwrap());
            assert!(!OWN.is_kept(&refusal(errno)).unwrap());
        }
        assert!(!absent.is_kept(&route(254, 1)).unwrap(), "but not out");
        assert!(absent.is_kept(&refusal(Errno::EPERM)).is_err(), "a refusal to answer is no answer");
    }

    #[test]
    fn both_families_are_asked_about_and_which_table_comes_first() {
        let routing = Routing { mark: 1, mask: 1, v4: Some([10, 0, 0, 5].into()), v6: None };
        let asked = |steered| -> Vec<_> {
            questions(&routing, steered).iter().map(|q| (q.to.to_string(), q.mark, q.table)).collect()
        };
        let owned = |(to, mark, table): (&str, u32, u8)| (to.to_owned(), mark, table);
        let mut expected = vec![
            ("10.0.0.5", 1, TABLE),
            ("192.0.2.1", 1, TABLE),
            ("10.0.0.5", 0, LOCAL_TABLE),
            ("2001:db8::1", 1, TABLE),
        ];
        assert_eq!(asked(false), expected.iter().copied().map(owned).collect::<Vec<_>>());
        expected.insert(3, ("192.0.2.1", 0, resolvers::TABLE));
        assert_eq!(asked(true), expected.into_iter().map(owned).collect::<Vec<_>>());
    }

    proptest! {
        #[test]
        fn no_answer_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = OWN.is_kept(&bytes);
        }
    }
}
