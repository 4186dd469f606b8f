//! Everything between the proxies and the kernel: network namespaces, TCP sockets with the options that redirection
//! needs, relaying, and the sequenced-packet socket of the node protocol.
//!
//! [`Network`] is the seam of the data path. The proxies are generic over it: in production it is [`PodNetwork`], whose
//! sockets live in a pod's network namespace; in simulation it is a network of virtual hosts on virtual time.
//!
//! This is the one crate of user space in which `unsafe` is allowed.

pub mod netns;
mod pod;
pub mod proxy_v2;
pub mod relay;
mod seam;
pub mod seqpacket;
pub mod tcp;
pub mod udp;

pub use netns::{Netns, NetnsError};
pub use pod::{Exempt, PodListener, PodNetwork};
pub use proxy_v2::ProxyHeader;
pub use relay::{Meter, RelayError, Side, Traffic, relay};
pub use seam::{Accepted, Listener, Network, Stream};
pub use tcp::{Bind, Dial, Source};
pub use udp::{Datagram, Datagrams, Impostor};
