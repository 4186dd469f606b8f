//! Messages: bytes to values and back.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ambit_proto::zds as pb;
use prost::Message as _;
use serde::Serialize;
use thiserror::Error;

/// The longest reason that is sent or kept, in bytes.
const LONGEST_REASON: usize = 1024;

/// A pod's `metadata.uid`, which is what this protocol knows it by.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct PodUid(Arc<str>);

impl PodUid {
    /// Keeps a uid as it is.
    pub fn new(uid: impl AsRef<str>) -> Self {
        Self(uid.as_ref().into())
    }

    /// The uid.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who a pod is, on the word of the node's agent.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct PodInfo {
    /// Its name.
    pub name: Arc<str>,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its service account.
    pub service_account: Arc<str>,
}

/// ztunnel's first word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hello {
    /// Whether it takes the descriptors of the redirection maps.
    pub redirection_fds: bool,
    /// Whether it takes word of pods that come to their end.
    pub pod_state: bool,
    /// Whether it hands its listeners over and takes them back.
    pub listener_fds: bool,
    /// Whether it answers what pods ask resolvers.
    pub dns: bool,
}

/// What the agent asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// A pod joins, or is told again.
    Add(Add),
    /// A pod that ztunnel has already stays.
    Keep(PodUid),
    /// A pod leaves.
    Del(PodUid),
    /// All pods there are were named.
    SnapshotSent,
    /// How this node redirects.
    Redirection {
        /// The mark of captured sockets.
        mark: u32,
        /// The mask under which marks are compared.
        mask: u32,
        /// The mark that exempts a socket from capture, where the bypass storage does not travel with it.
        exempt_mark: Option<u32>,
    },
    /// A pod comes to its end.
    State(PodState),
    /// Who accepts on pods' listeners.
    Listeners(Turn),
    /// Something newer than this code.
    Unknown,
}

/// How far a pod is on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// It was asked to end, and may go on serving for a while.
    Terminating,
    /// It is not there any more.
    Ended,
}

/// That a pod is about to end, or has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodState {
    /// The pod.
    pub uid: PodUid,
    /// How far it is.
    pub stage: Stage,
    /// Its addresses, by which it is told apart from another of its name.
    pub addresses: Vec<IpAddr>,
}

/// Who accepts on pods' listeners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Nobody else does: accept.
    Serve,
    /// Another ztunnel does: prepare, and leave the listeners that come with pods to it.
    StandBy,
    /// Begin to accept beside the other one, if all pods can be served.
    TakeOver,
    /// Another ztunnel accepts from now on: end accepting, and let what stands end by itself.
    HandOver,
}

/// A pod that joins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Add {
    /// The pod.
    pub uid: PodUid,
    /// Who it is.
    pub info: PodInfo,
    /// What descriptors follow that of its network namespace, in order.
    pub attached: Vec<Attached>,
    /// Whether what it asks resolvers is steered to ztunnel.
    pub dns: bool,
}

/// What a descriptor that travels with a pod is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    /// The map into which ztunnel puts its listeners.
    ListenerMap,
    /// A listener.
    Listener(ListenerKind),
    /// Something newer than this code.
    Unknown,
}

/// Which of a pod's listeners a socket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ListenerKind {
    /// What the pod sends over IPv4, captured.
    OutboundV4,
    /// What the pod sends over IPv6, captured.
    OutboundV6,
    /// Plaintext from the network.
    InboundPlaintext,
    /// HBONE from the network.
    InboundHbone,
}

impl From<pb::FdKind> for Attached {
    fn from(kind: pb::FdKind) -> Self {
        match kind {
            pb::FdKind::Unspecified => Self::Unknown,
            pb::FdKind::ListenerMap => Self::ListenerMap,
            pb::FdKind::OutboundV4 => Self::Listener(ListenerKind::OutboundV4),
            pb::FdKind::OutboundV6 => Self::Listener(ListenerKind::OutboundV6),
            pb::FdKind::InboundPlaintext => Self::Listener(ListenerKind::InboundPlaintext),
            pb::FdKind::InboundHbone => Self::Listener(ListenerKind::InboundHbone),
        }
    }
}

impl From<Attached> for pb::FdKind {
    fn from(attached: Attached) -> Self {
        match attached {
            Attached::Unknown => Self::Unspecified,
            Attached::ListenerMap => Self::ListenerMap,
            Attached::Listener(ListenerKind::OutboundV4) => Self::OutboundV4,
            Attached::Listener(ListenerKind::OutboundV6) => Self::OutboundV6,
            Attached::Listener(ListenerKind::InboundPlaintext) => Self::InboundPlaintext,
            Attached::Listener(ListenerKind::InboundHbone) => Self::InboundHbone,
        }
    }
}

/// Why bytes are no message.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// They are no protobuf of the expected type.
    #[error("not a message of this protocol: {0}")]
    Malformed(#[from] prost::DecodeError),
    /// A field without which the message means nothing is empty.
    #[error("the message lacks {0}")]
    Missing(&'static str),
    /// The peer speaks another version.
    #[error("protocol version {0} is not supported, only 1 is")]
    Version(i32),
}

/// Reads a packet in every way that a side of this protocol could. For fuzzing.
pub fn decode(bytes: &[u8]) -> [Result<(), DecodeError>; 3] {
    [decode_hello(bytes).map(drop), decode_request(bytes).map(drop), decode_response(bytes).map(drop)]
}

/// Reads ztunnel's first word.
pub fn decode_hello(bytes: &[u8]) -> Result<Hello, DecodeError> {
    let hello = pb::ZdsHello::decode(bytes)?;
    if hello.version != pb::Version::V1 as i32 {
        return Err(DecodeError::Version(hello.version));
    }
    let can = |wanted| hello.capabilities().any(|capability| capability == wanted);
    Ok(Hello {
        redirection_fds: can(pb::Capability::RedirectionFds),
        listener_fds: can(pb::Capability::ListenerFds),
        pod_state: can(pb::Capability::PodState),
        dns: can(pb::Capability::Dns),
    })
}

/// Writes ztunnel's first word.
pub fn encode_hello(hello: Hello) -> Vec<u8> {
    let all = [
        (hello.redirection_fds, pb::Capability::RedirectionFds),
        (hello.listener_fds, pb::Capability::ListenerFds),
        (hello.pod_state, pb::Capability::PodState),
        (hello.dns, pb::Capability::Dns),
    ];
    let capabilities = all.into_iter().filter(|(can, _)| *can).map(|(_, capability)| capability as i32);
    pb::ZdsHello { version: pb::Version::V1 as i32, capabilities: capabilities.collect() }.encode_to_vec()
}

/// Reads what the agent asks for.
pub fn decode_request(bytes: &[u8]) -> Result<Request, DecodeError> {
    use pb::workload_request::Payload;
    let Some(payload) = pb::WorkloadRequest::decode(bytes)?.payload else { return Ok(Request::Unknown) };
    Ok(match payload {
        Payload::Add(add) => Request::Add(read_add(add)?),
        Payload::Keep(keep) => Request::Keep(read_uid(&keep.uid)?),
        Payload::Del(del) => Request::Del(read_uid(&del.uid)?),
        Payload::SnapshotSent(pb::SnapshotSent {}) => Request::SnapshotSent,
        Payload::Redirection(r) => {
            let exempt_mark = (r.exempt_mark != 0).then_some(r.exempt_mark);
            Request::Redirection { mark: r.mark, mask: r.mask, exempt_mark }
        }
        Payload::Listeners(listeners) => match listeners.turn() {
            pb::Turn::Serve => Request::Listeners(Turn::Serve),
            pb::Turn::StandBy => Request::Listeners(Turn::StandBy),
            pb::Turn::TakeOver => Request::Listeners(Turn::TakeOver),
            pb::Turn::HandOver => Request::Listeners(Turn::HandOver),
            pb::Turn::Unspecified => Request::Unknown,
        },
        Payload::State(state) => match read_state(state)? {
            Some(state) => Request::State(state),
            None => Request::Unknown,
        },
    })
}

fn read_add(add: pb::AddWorkload) -> Result<Add, DecodeError> {
    let attached = read_attached(&add.attached);
    let info = add.workload_info.ok_or(DecodeError::Missing("workload_info"))?;
    if info.name.is_empty() || info.namespace.is_empty() {
        return Err(DecodeError::Missing("the pod's name or namespace"));
    }
    let service_account = if info.service_account.is_empty() { "default" } else { &info.service_account };
    let info = PodInfo {
        name: info.name.as_str().into(),
        namespace: info.namespace.as_str().into(),
        service_account: service_account.into(),
    };
    Ok(Add { uid: read_uid(&add.uid)?, info, attached, dns: add.dns })
}

/// Nothing where the stage is newer than this code.
fn read_state(state: pb::PodState) -> Result<Option<PodState>, DecodeError> {
    let stage = match state.stage() {
        pb::pod_state::Stage::Terminating => Stage::Terminating,
        pb::pod_state::Stage::Ended => Stage::Ended,
        pb::pod_state::Stage::Unspecified => return Ok(None),
    };
    let ip = |bytes: &[u8]| {
        let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
        v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
    };
    let addresses: Option<Vec<IpAddr>> = state.addresses.iter().map(|bytes| ip(bytes)).collect();
    match addresses.filter(|addresses| !addresses.is_empty()) {
        Some(addresses) => Ok(Some(PodState { uid: read_uid(&state.uid)?, stage, addresses })),
        None => Err(DecodeError::Missing("the pod's addresses")),
    }
}

fn read_attached(kinds: &[i32]) -> Vec<Attached> {
    let known = kinds.iter().map(|&kind| pb::FdKind::try_from(kind).unwrap_or_default());
    known.map(Attached::from).collect()
}

fn write_attached(attached: &[Attached]) -> Vec<i32> {
    attached.iter().map(|&kind| pb::FdKind::from(kind) as i32).collect()
}

fn read_uid(uid: &str) -> Result<PodUid, DecodeError> {
    if uid.is_empty() { Err(DecodeError::Missing("uid")) } else { Ok(PodUid::new(uid)) }
}

/// Writes what the agent asks for.
pub fn encode_request(request: &Request) -> Vec<u8> {
    use pb::workload_request::Payload;
    let payload = match request {
        Request::Add(add) => Some(Payload::Add(write_add(add))),
        Request::Keep(uid) => Some(Payload::Keep(pb::KeepWorkload { uid: uid.to_string() })),
        Request::Del(uid) => Some(Payload::Del(pb::DelWorkload { uid: uid.to_string() })),
        Request::SnapshotSent => Some(Payload::SnapshotSent(pb::SnapshotSent {})),
        &Request::Redirection { mark, mask, exempt_mark } => {
            let exempt_mark = exempt_mark.unwrap_or_default();
            Some(Payload::Redirection(pb::Redirection { mark, mask, exempt_mark }))
        }
        Request::State(state) => Some(Payload::State(write_state(state))),
        Request::Listeners(turn) => {
            Some(Payload::Listeners(pb::Listeners { turn: write_turn(*turn) as i32 }))
        }
        Request::Unknown => None,
    };
    pb::WorkloadRequest { payload }.encode_to_vec()
}

fn write_turn(turn: Turn) -> pb::Turn {
    match turn {
        Turn::Serve => pb::Turn::Serve,
        Turn::StandBy => pb::Turn::StandBy,
        Turn::TakeOver => pb::Turn::TakeOver,
        Turn::HandOver => pb::Turn::HandOver,
    }
}

fn write_add(add: &Add) -> pb::AddWorkload {
    pb::AddWorkload {
        uid: add.uid.to_string(),
        workload_info: Some(pb::WorkloadInfo {
            name: add.info.name.to_string(),
            namespace: add.info.namespace.to_string(),
            service_account: add.info.service_account.to_string(),
        }),
        attached: write_attached(&add.attached),
        dns: add.dns,
    }
}

fn write_state(state: &PodState) -> pb::PodState {
    let octets = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec().into(),
        IpAddr::V6(ip) => ip.octets().to_vec().into(),
    };
    pb::PodState {
        uid: state.uid.to_string(),
        stage: match state.stage {
            Stage::Terminating => pb::pod_state::Stage::Terminating,
            Stage::Ended => pb::pod_state::Stage::Ended,
        }
        .into(),
        addresses: state.addresses.iter().map(octets).collect(),
    }
}

/// Reads ztunnel's answer: done, and what descriptors came with it, or why not.
pub fn decode_response(bytes: &[u8]) -> Result<Result<Vec<Attached>, String>, DecodeError> {
    use pb::workload_response::Payload;
    match pb::WorkloadResponse::decode(bytes)?.payload {
        Some(Payload::Ack(ack)) if ack.error.is_empty() => Ok(Ok(read_attached(&ack.attached))),
        Some(Payload::Ack(ack)) => Ok(Err(shortened(&ack.error))),
        None => Err(DecodeError::Missing("the acknowledgement")),
    }
}

/// Writes ztunnel's answer, with the kinds of the descriptors that go with it. A refusal always has a reason.
pub fn encode_response(answer: &Result<Vec<Attached>, String>) -> Vec<u8> {
    let (error, attached) = match answer {
        Ok(attached) => (String::new(), write_attached(attached)),
        Err(reason) if reason.is_empty() => ("refused".to_owned(), Vec::new()),
        Err(reason) => (shortened(reason), Vec::new()),
    };
    pb::WorkloadResponse { payload: Some(pb::workload_response::Payload::Ack(pb::Ack { error, attached })) }
        .encode_to_vec()
}

fn shortened(reason: &str) -> String {
    let end = (0..=reason.len().min(LONGEST_REASON)).rev().find(|&n| reason.is_char_boundary(n));
    reason[..end.unwrap_or(0)].to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn add() -> Request {
        Request::Add(Add {
            uid: PodUid::new("4d9e"),
            info: PodInfo { name: "cart-0".into(), namespace: "shop".into(), service_account: "cart".into() },
            attached: vec![
                Attached::ListenerMap,
                Attached::Listener(ListenerKind::OutboundV4),
                Attached::Listener(ListenerKind::OutboundV6),
                Attached::Listener(ListenerKind::InboundPlaintext),
                Attached::Listener(ListenerKind::InboundHbone),
            ],
            dns: true,
        })
    }

    #[test]
    fn every_message_survives_the_round_trip() {
        let uid = || PodUid::new("4d9e");
        let redirection =
            |exempt_mark| Request::Redirection { mark: 0x0a40_0000, mask: 0x0fc0_0000, exempt_mark };
        let addresses = vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        let state = |stage| Request::State(PodState { uid: uid(), stage, addresses: addresses.clone() });
        for request in [
            add(),
            Request::Keep(uid()),
            Request::Del(uid()),
            Request::SnapshotSent,
            redirection(None),
            redirection(Some(0x539)),
            state(Stage::Terminating),
            state(Stage::Ended),
        ] {
            assert_eq!(decode_request(&encode_request(&request)), Ok(request));
        }
        for turn in [Turn::Serve, Turn::StandBy, Turn::TakeOver, Turn::HandOver] {
            let request = Request::Listeners(turn);
            assert_eq!(decode_request(&encode_request(&request)), Ok(request));
        }
        for (redirection_fds, listener_fds) in [(true, true), (true, false), (false, true), (false, false)] {
            let pod_state = redirection_fds != listener_fds;
            let hello = Hello { redirection_fds, listener_fds, pod_state, dns: listener_fds };
            assert_eq!(decode_hello(&encode_hello(hello)), Ok(hello));
        }
        let given = vec![Attached::Listener(ListenerKind::InboundHbone)];
        for answer in [Ok(Vec::new()), Ok(given), Err("no such pod".to_owned())] {
            assert_eq!(decode_response(&encode_response(&answer)), Ok(answer));
        }
    }

    #[test]
    fn what_the_wire_looks_like_to_plain_peers() {
        assert_eq!(encode_hello(Hello::default()), [0x08, 0x01]);
        assert_eq!(encode_request(&Request::SnapshotSent), [0x1a, 0x00]);
        assert_eq!(encode_request(&Request::Keep(PodUid::new("a"))), [0x2a, 0x03, 0x0a, 0x01, b'a']);
        assert_eq!(encode_request(&Request::Del(PodUid::new("a"))), [0x12, 0x03, 0x12, 0x01, b'a']);
        assert_eq!(encode_response(&Ok(Vec::new())), [0x0a, 0x00]);
    }

    #[test]
    fn a_message_that_names_nothing_is_refused() {
        let nobody = pb::AddWorkload { uid: "a".into(), ..pb::AddWorkload::default() };
        let request = pb::WorkloadRequest { payload: Some(pb::workload_request::Payload::Add(nobody)) };
        assert_eq!(decode_request(&request.encode_to_vec()), Err(DecodeError::Missing("workload_info")));
        assert_eq!(decode_request(&[0x2a, 0x00]), Err(DecodeError::Missing("uid")));
        assert_eq!(decode_hello(&[]), Err(DecodeError::Version(0)));
        assert_eq!(decode_response(&[]), Err(DecodeError::Missing("the acknowledgement")));
    }

    #[test]
    fn what_is_newer_than_this_code_is_unknown_not_an_error() {
        assert_eq!(decode_request(&[]), Ok(Request::Unknown));
        let state = pb::PodState { uid: "a".into(), stage: 9, addresses: Vec::new() };
        let request = pb::WorkloadRequest { payload: Some(pb::workload_request::Payload::State(state)) };
        assert_eq!(decode_request(&request.encode_to_vec()), Ok(Request::Unknown));
        // Field 2000, an empty message.
        assert_eq!(decode_request(&[0x82, 0x7d, 0x00]), Ok(Request::Unknown));
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let reason = "é".repeat(LONGEST_REASON);
        let kept = decode_response(&encode_response(&Err(reason))).unwrap().unwrap_err();
        assert_eq!(kept.len(), LONGEST_REASON);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
        }
    }
}
