//! How much there is, and how much of it one pod may have: pure.

use runtime::{ByteSize, Env};
use serde::Serialize;

/// What the environment says of quotas. What it leaves open follows from the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Settings {
    /// Connections that a pod may have with the proxy at once.
    pub pod_connections: Option<u64>,
    /// Tunnels to a pod that may be open at once.
    pub pod_streams: Option<u64>,
    /// Bytes that may lie in the proxy for a pod.
    pub pod_buffer: Option<ByteSize>,
    /// Memory of the whole proxy.
    pub memory: Option<ByteSize>,
    /// Descriptors that connections must leave.
    pub reserve: Option<u64>,
}

impl Settings {
    /// Reads the environment.
    pub fn read(env: &mut Env) -> Self {
        let number = "a number, at least 1";
        let size = "a size such as 512MiB";
        let positive = |n: Option<std::num::NonZeroU64>| n.map(u64::from);
        Self {
            pod_connections: positive(env.optional("AMBIT_POD_CONNECTIONS", number)),
            pod_streams: positive(env.optional("AMBIT_POD_STREAMS", number)),
            pod_buffer: env.optional("AMBIT_POD_BUFFER", size),
            memory: env.optional("AMBIT_MEMORY", size),
            reserve: env.optional("AMBIT_DESCRIPTOR_RESERVE", "a number"),
        }
    }
}

/// What the machine gives the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Descriptors that the process may have.
    pub descriptors: u64,
    /// Bytes of memory that it could have at most.
    pub memory: u64,
}

/// What is counted. The order is that in which it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Resource {
    /// TCP connections that a pod or its peers made to the proxy.
    Connections,
    /// Tunnels to a pod, inside of those.
    Streams,
    /// Sockets of the data path.
    Descriptors,
    /// Bytes that may lie here for a pod: the windows that its peers were given, and what waits for a slow reader.
    Memory,
}

impl Resource {
    /// All of them, in the order of their discriminants.
    pub const ALL: [Self; 4] = [Self::Connections, Self::Streams, Self::Descriptors, Self::Memory];

    /// The word on pages and in labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Streams => "streams",
            Self::Descriptors => "descriptors",
            Self::Memory => "memory",
        }
    }
}

/// So much of each resource.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount(pub [u64; 4]);

impl Amount {
    /// So much of one.
    pub const fn of(resource: Resource, n: u64) -> Self {
        let mut each = [0; 4];
        each[resource as usize] = n;
        Self(each)
    }

    /// A connection that was accepted: itself, and its socket.
    pub const CONNECTION: Self = Self([1, 0, 1, 0]);
    /// A tunnel to a pod: itself, and the socket to the application.
    pub const STREAM: Self = Self([0, 1, 1, 0]);
    /// A socket.
    pub const SOCKET: Self = Self([0, 0, 1, 0]);
    /// A connection that was accepted and needs a second socket.
    pub const PAIR: Self = Self([1, 0, 2, 0]);

    /// How much of a resource.
    pub fn get(&self, resource: Resource) -> u64 {
        self.0[resource as usize]
    }
}

/// How much there is of one resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Bound {
    /// For all pods together.
    pub node: u64,
    /// For a pod, however much is free.
    pub pod: u64,
    /// A pod may have so many times what is free: with 4 it gets four fifths where it is alone, and what it leaves is
    /// shared likewise. So there is always something for who comes next, and nothing lies idle for who may never come.
    pub share: u64,
}

impl Bound {
    const fn none() -> Self {
        Self { node: u64::MAX, pod: u64::MAX, share: u64::MAX }
    }

    /// How much more a pod may have that has `own`, of what all have.
    pub fn room(&self, own: u64, all: u64) -> u64 {
        let free = self.node.saturating_sub(all);
        let most = self.pod.min(free.saturating_mul(self.share));
        most.saturating_sub(own).min(free)
    }

    /// The most that a pod can have while nobody else has anything.
    fn alone(node: u64, share: u64) -> u64 {
        (u128::from(node) * u128::from(share) / (u128::from(share) + 1)) as u64
    }
}

/// How much there is of everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds(pub [Bound; 4]);

/// A pod alone gets four fifths of the descriptors.
const SHARE_OF_DESCRIPTORS: u64 = 4;
/// And half of the memory.
const SHARE_OF_MEMORY: u64 = 1;

impl Bounds {
    /// No bounds at all.
    pub const NONE: Self = Self([Bound::none(); 4]);

    /// What follows from the settings and the machine.
    pub fn derive(settings: &Settings, machine: Machine) -> Self {
        // What the proxy itself needs: its runtimes, the control plane, its pages, the agent, and the moment between
        // accepting a connection and refusing it.
        let reserve = settings.reserve.unwrap_or_else(|| (machine.descriptors / 40).clamp(64, 4096));
        let descriptors = machine.descriptors.saturating_sub(reserve);
        // The rest is for the system, the applications, and the kernel's own buffers.
        let memory = settings.memory.map_or(machine.memory / 4, |size| size.0).max(64 << 20);
        let alone = Bound::alone(descriptors, SHARE_OF_DESCRIPTORS);
        let counted = |set: Option<u64>| Bound { pod: set.unwrap_or(alone), ..Bound::none() };
        let buffer = settings.pod_buffer.map_or(Bound::alone(memory, SHARE_OF_MEMORY), |size| size.0);
        Self([
            counted(settings.pod_connections),
            counted(settings.pod_streams),
            Bound { node: descriptors, pod: u64::MAX, share: SHARE_OF_DESCRIPTORS },
            Bound { node: memory, pod: buffer, share: SHARE_OF_MEMORY },
        ])
    }

    /// The bound of a resource.
    pub fn of(&self, resource: Resource) -> &Bound {
        &self.0[resource as usize]
    }
}

/// The smallest window of a tunnel connection: HTTP/2's own.
pub const WINDOW_LEAST: u32 = 65_535;
/// A new tunnel connection gets so small a part of what there is for large windows, so that the next ones get some too.
const WINDOW_PART: u64 = 32;
/// So small a part of the room that a pod has at first is kept for the smallest windows, of which there may be thousands.
const KEPT_PART: u64 = 4;

/// The window for a new tunnel connection, given what its pod may still have and what it could have at first.
pub fn window(room: u64, at_first: u64, most: u32) -> u32 {
    let for_large = room.saturating_sub(at_first / KEPT_PART);
    let part = u32::try_from(for_large / WINDOW_PART).unwrap_or(u32::MAX);
    part.clamp(WINDOW_LEAST, most.max(WINDOW_LEAST))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MACHINE: Machine = Machine { descriptors: 20_000, memory: 8 << 30 };

    #[test]
    fn a_pod_alone_may_have_fifteen_thousand_connections_of_twenty_thousand_descriptors() {
        let bounds = Bounds::derive(&Settings::default(), MACHINE);
        let descriptors = bounds.of(Resource::Descriptors);
        assert_eq!(descriptors.node, 19_500);
        // Their tunnels, the listeners of the pods and a few connections of others are in it too.
        assert!(descriptors.room(15_250, 15_450) > 0);
        assert_eq!(descriptors.room(15_600, 15_600), 0);
        assert!(bounds.of(Resource::Connections).pod > 15_000);
    }

    #[test]
    fn what_is_set_holds() {
        let settings = Settings {
            pod_connections: Some(10),
            pod_streams: Some(20),
            pod_buffer: Some(ByteSize(1 << 20)),
            memory: Some(ByteSize(256 << 20)),
            reserve: Some(1000),
        };
        let bounds = Bounds::derive(&settings, MACHINE);
        let pod = |r: Resource| bounds.of(r).pod;
        assert_eq!(
            (pod(Resource::Connections), pod(Resource::Streams), pod(Resource::Memory)),
            (10, 20, 1 << 20)
        );
        assert_eq!(bounds.of(Resource::Descriptors).node, 19_000);
        assert_eq!(bounds.of(Resource::Memory).node, 256 << 20);
    }

    #[test]
    fn windows_get_smaller_as_they_become_many_and_never_useless() {
        let bound = Bound { node: 1 << 30, pod: u64::MAX, share: 1 };
        let (mut used, mut windows) = (0, Vec::new());
        loop {
            let room = bound.room(used, used);
            let w = window(room, bound.room(0, 0), 16 << 20);
            if room < u64::from(w) {
                break;
            }
            used += u64::from(w);
            windows.push(w);
        }
        assert!(windows[0] == 16 << 20 && windows.windows(2).all(|w| w[0] >= w[1]), "{windows:?}");
        assert!(*windows.last().unwrap() >= WINDOW_LEAST);
        assert!(used <= (1 << 29) + u64::from(WINDOW_LEAST), "half of the memory");
        assert!(windows.len() > 2000, "{}", windows.len());
    }

    proptest! {
        /// However pods come and go, all of them together stay within the bound, none takes more than its share, and one
        /// that has nothing gets something as long as anything is free.
        #[test]
        fn shares_hold_whoever_asks(
            node in 1u64..5_000,
            share in 1u64..8,
            asks in proptest::collection::vec((0usize..6, 1u64..40, any::<bool>()), 1..400),
        ) {
            let bound = Bound { node, pod: u64::MAX, share };
            let mut pods = [0u64; 6];
            for (who, n, takes) in asks {
                let all: u64 = pods.iter().sum();
                if !takes {
                    pods[who] -= n.min(pods[who]);
                    continue;
                }
                let room = bound.room(pods[who], all);
                prop_assert!(pods[who] > 0 || all >= node || room > 0, "a newcomer is left out");
                if n <= room {
                    pods[who] += n;
                    prop_assert!(pods[who] <= share * (node - all));
                }
                prop_assert!(pods.iter().sum::<u64>() <= node);
            }
        }
    }
}
