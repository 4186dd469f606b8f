//! How long the data path waits for anything.

use std::time::Duration;

use crate::relay::Patience;

/// Every wait of a connection has one of these limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// For the control plane to tell of the mesh, or of a policy that is known to be missing: 5 s.
    pub mesh: Duration,
    /// For the pod's certificate: 10 s. A connection never goes without it.
    pub identity: Duration,
    /// For the names of endpoints without addresses: 5 s.
    pub names: Duration,
    /// For a TCP connection to a destination: 5 s, so that another endpoint still has its chance.
    pub connect: Duration,
    /// For a destination where there are others, which are tried then, and it once more where they do not answer either:
    /// 1 s.
    pub hurry: Duration,
    /// For a TCP connection to an application in the pod: 5 s.
    pub application: Duration,
    /// For a TLS handshake: 10 s.
    pub tls: Duration,
    /// For a destination that takes no tunnel at the moment, because it is about to enter the mesh or to leave it: 2 s.
    pub transition: Duration,
    /// For news of a service of whose endpoints none takes a connection: 500 ms.
    pub news: Duration,
    /// How long tunnels to a pod that left are still taken, while its peers learn of it: 5 s.
    pub linger: Duration,
    /// How long a tunnel connection takes streams, if not for as long as its certificates hold: 24 h. When one of those
    /// ends it takes no more in any case, and what it carries may go on for as long again.
    pub tunnel_age: Option<Duration>,
    /// For a byte on a connection that stands.
    pub relay: Patience,
}

impl Limits {
    /// How long reaching a peer by mutual TLS may take: as long as all its steps, and a little, so that the step that is
    /// too slow is the one that is told. The pod's own lack of a certificate must not look like a peer that is away.
    pub fn reaching(&self) -> Duration {
        self.identity + self.connect + self.tls + Duration::from_secs(1)
    }

    /// How long a tunnel connection takes streams whose certificates still hold for so long.
    pub fn tunnel_life(&self, left: Duration) -> Duration {
        self.tunnel_age.map_or(left, |age| age.min(left))
    }

    /// How long what it carries may go on.
    pub fn stream_life(&self, left: Duration) -> Duration {
        self.tunnel_age.map_or(Duration::MAX, |age| left.saturating_add(age))
    }
}

impl Default for Limits {
    fn default() -> Self {
        let secs = Duration::from_secs;
        Self {
            mesh: secs(5),
            identity: secs(10),
            names: secs(5),
            connect: secs(5),
            hurry: secs(1),
            application: secs(5),
            tls: secs(10),
            transition: secs(2),
            news: Duration::from_millis(500),
            linger: secs(5),
            tunnel_age: Some(secs(24 * 3600)),
            relay: Patience::default(),
        }
    }
}

impl Limits {
    /// How tunnels are spoken within these limits.
    pub fn tunnels(&self) -> hbone::Settings {
        // All that reaching a peer may take; each part has its own limit, and gives its own reason.
        let connect_timeout = self.identity + self.connect + self.tls;
        let (handshake_timeout, hurry) = (self.tls, self.hurry);
        hbone::Settings { connect_timeout, handshake_timeout, hurry, ..hbone::Settings::default() }
    }
}
