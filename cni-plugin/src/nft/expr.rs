//! What rules are made of: expressions over registers, as `nft --debug=netlink` shows them.

use super::wire::Attributes;

const EXPR_NAME: u16 = 1;
const EXPR_DATA: u16 = 2;
/// The register in which a verdict goes.
const VERDICT: u32 = 0;
/// The registers that the rules here need, of 16 bytes each.
const FIRST: u32 = 1;
const SECOND: u32 = 2;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
/// What packets and bytes a counter has seen so far, which is no part of what a rule says.
pub(super) const COUNTER: &[u8] = b"counter\0";

const NF_DROP: i32 = 0;
const NFT_RETURN: i32 = -5;

/// Something of a packet, or of what the kernel knows of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    /// `meta mark`.
    Mark,
    /// `meta iif`.
    InputDevice,
    /// `meta oif`.
    OutputDevice,
    /// `meta l4proto`, one byte.
    Protocol,
    /// `meta nfproto`, one byte.
    Family,
    /// `th dport`.
    DestinationPort,
    /// The byte of a TCP header with its flags.
    TcpFlags,
    /// `ip saddr`.
    SourceV4,
    /// `ip6 saddr`.
    SourceV6,
    /// `fib daddr type`.
    KindOfDestination,
    /// `fib saddr type`.
    KindOfSource,
    /// `ip daddr`.
    DestinationV4,
    /// `ip6 daddr`.
    DestinationV6,
    /// `socket cgroupv2`, eight bytes.
    Cgroup {
        /// How deep the cgroup lies that is asked for.
        level: u32,
    },
}

/// The device `lo`, which has this number in every namespace.
pub(super) const LOOPBACK: [u8; 4] = 1_u32.to_ne_bytes();
/// RTN_LOCAL: an address of this host.
pub(super) const LOCAL: [u8; 4] = 2_u32.to_ne_bytes();
pub(super) const TCP: [u8; 1] = [6];
pub(super) const UDP: [u8; 1] = [17];
pub(super) const V4: [u8; 1] = [2];
pub(super) const V6: [u8; 1] = [10];

/// The expressions of one rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rule(Vec<Vec<u8>>);

impl Rule {
    /// Applies where a field has this value.
    pub(super) fn with(self, field: Field, value: &[u8]) -> Self {
        self.load(field).compare(true, value)
    }

    /// Applies where a field has any other value.
    pub(super) fn other_than(self, field: Field, value: &[u8]) -> Self {
        self.load(field).compare(false, value)
    }

    /// Applies where a field has this value in the bits of a mask.
    pub(super) fn has(self, field: Field, value: &[u8], mask: &[u8]) -> Self {
        self.load(field).masked(mask).compare(true, value)
    }

    /// Counts what comes this far.
    pub(super) fn counted(self) -> Self {
        let mut zeros = Attributes::default();
        zeros.put(1, &0_u64.to_be_bytes()).put(2, &0_u64.to_be_bytes());
        self.push(COUNTER, zeros)
    }

    /// Ends the chain: what stands behind it does not apply.
    pub(super) fn leave(self) -> Self {
        self.verdict(NFT_RETURN)
    }

    /// Drops the packet.
    pub(super) fn drop(self) -> Self {
        self.verdict(NF_DROP)
    }

    /// Sends the connection to a port of this host.
    pub(super) fn redirect(self, port: u16) -> Self {
        let mut redirect = Attributes::default();
        redirect.put_u32(1, FIRST).put_u32(2, FIRST);
        self.immediate(FIRST, &port.to_be_bytes()).push(b"redir\0", redirect)
    }

    /// Has the connection come from this address.
    pub(super) fn come_from(self, family: [u8; 1], address: &[u8]) -> Self {
        const SOURCE: u32 = 0;
        let mut nat = Attributes::default();
        nat.put_u32(1, SOURCE).put_u32(2, family[0].into()).put_u32(3, FIRST).put_u32(4, FIRST);
        self.immediate(FIRST, address).push(b"nat\0", nat)
    }

    /// Sets the packet's mark in the bits of a mask.
    pub(super) fn mark(self, mark: u32, mask: u32) -> Self {
        const MARK: u32 = 3;
        let mut set = Attributes::default();
        set.put_u32(2, MARK).put_u32(3, FIRST);
        self.load(Field::Mark).change(&(!mask).to_ne_bytes(), &mark.to_ne_bytes()).push(b"meta\0", set)
    }

    /// Hands the packet to the transparent socket at an address of this host.
    pub(super) fn hand_to(self, family: [u8; 1], address: &[u8], port: u16) -> Self {
        let mut tproxy = Attributes::default();
        tproxy.put_u32(1, family[0].into()).put_u32(2, FIRST).put_u32(3, SECOND);
        self.immediate(FIRST, address).immediate(SECOND, &port.to_be_bytes()).push(b"tproxy\0", tproxy)
    }

    /// The expressions as they go on the wire.
    pub(super) fn encode(&self) -> Attributes {
        let mut list = Attributes::default();
        for expression in &self.0 {
            list.put_encoded(1, expression);
        }
        list
    }

    fn load(self, field: Field) -> Self {
        let meta = |key| {
            let mut meta = Attributes::default();
            meta.put_u32(1, FIRST).put_u32(2, key);
            (&b"meta\0"[..], meta)
        };
        let payload = |base, offset, length| {
            let mut payload = Attributes::default();
            payload.put_u32(1, FIRST).put_u32(2, base).put_u32(3, offset).put_u32(4, length);
            (&b"payload\0"[..], payload)
        };
        let fib = |flags| {
            const ADDRESS_TYPE: u32 = 3;
            let mut fib = Attributes::default();
            fib.put_u32(1, FIRST).put_u32(2, ADDRESS_TYPE).put_u32(3, flags);
            (&b"fib\0"[..], fib)
        };
        const NETWORK: u32 = 1;
        const TRANSPORT: u32 = 2;
        let (name, data) = match field {
            Field::Mark => meta(3),
            Field::InputDevice => meta(4),
            Field::OutputDevice => meta(5),
            Field::Family => meta(15),
            Field::Protocol => meta(16),
            Field::DestinationPort => payload(TRANSPORT, 2, 2),
            Field::TcpFlags => payload(TRANSPORT, 13, 1),
            Field::SourceV4 => payload(NETWORK, 12, 4),
            Field::SourceV6 => payload(NETWORK, 8, 16),
            Field::DestinationV4 => payload(NETWORK, 16, 4),
            Field::DestinationV6 => payload(NETWORK, 24, 16),
            Field::Cgroup { level } => {
                const CGROUP: u32 = 3;
                let mut socket = Attributes::default();
                socket.put_u32(1, CGROUP).put_u32(2, FIRST).put_u32(3, level);
                (&b"socket\0"[..], socket)
            }
            Field::KindOfSource => fib(1),
            Field::KindOfDestination => fib(2),
        };
        self.push(name, data)
    }

    fn masked(self, mask: &[u8]) -> Self {
        self.change(mask, &vec![0; mask.len()])
    }

    /// Keeps some bits, and then flips some.
    fn change(self, keep: &[u8], flip: &[u8]) -> Self {
        let length = keep.len() as u32;
        let mut bitwise = Attributes::default();
        let (mut kept, mut flipped) = (Attributes::default(), Attributes::default());
        kept.put(DATA_VALUE, keep);
        flipped.put(DATA_VALUE, flip);
        bitwise.put_u32(1, FIRST).put_u32(2, FIRST).put_u32(3, length);
        bitwise.put_nested(4, &kept).put_nested(5, &flipped);
        self.push(b"bitwise\0", bitwise)
    }

    fn compare(self, equal: bool, value: &[u8]) -> Self {
        let (mut cmp, mut data) = (Attributes::default(), Attributes::default());
        data.put(DATA_VALUE, value);
        cmp.put_u32(1, FIRST).put_u32(2, u32::from(!equal)).put_nested(3, &data);
        self.push(b"cmp\0", cmp)
    }

    fn immediate(self, register: u32, value: &[u8]) -> Self {
        let (mut immediate, mut data) = (Attributes::default(), Attributes::default());
        data.put(DATA_VALUE, value);
        immediate.put_u32(1, register).put_nested(2, &data);
        self.push(b"immediate\0", immediate)
    }

    fn verdict(self, code: i32) -> Self {
        let (mut immediate, mut data, mut verdict) =
            (Attributes::default(), Attributes::default(), Attributes::default());
        verdict.put_u32(1, code.cast_unsigned());
        data.put_nested(DATA_VERDICT, &verdict);
        immediate.put_u32(1, VERDICT).put_nested(2, &data);
        self.push(b"immediate\0", immediate)
    }

    fn push(mut self, name: &[u8], data: Attributes) -> Self {
        let mut expression = Attributes::default();
        expression.put(EXPR_NAME, name).put_nested(EXPR_DATA, &data);
        self.0.push(expression.into_bytes());
        self
    }
}
