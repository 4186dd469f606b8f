//! A node's stream to the control plane.

use std::collections::BTreeMap;
use std::io;

use ambit_proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use net::{Dial, Network};
use rand::SeedableRng;
use rand::rngs::StdRng;
use testkit::fixtures::CLUSTER;
use testkit::sim::{SimHost, SimStream};
use xds::Defaults;
use xds::client::{Changes, Demand, NodeInfo, Session};
use ztunnel::mesh::{Folder, Mesh};

use super::XDS;
use crate::wire;

/// Keeps a node's view of the mesh up to date, over streams to the control plane that come and go.
pub(super) async fn follow(host: SimHost, name: String, mesh: Mesh, mut folder: Folder, seed: u64) {
    let node = NodeInfo {
        instance_ip: host.ip().to_string(),
        pod_name: format!("ztunnel-{name}"),
        namespace: "istio-system".into(),
        node_name: name,
        cluster_id: CLUSTER.into(),
        metadata: BTreeMap::new(),
    };
    let session = Session::new(node, Defaults::default());
    let mut session = if mesh.needs().is_some() { session.on_demand() } else { session };
    let mut rng = StdRng::seed_from_u64(seed);
    loop {
        let broken = match host.connect(&Dial::to(XDS.parse().expect("an address"))).await {
            Ok(stream) => follow_one(stream, &mut session, &mesh, &mut folder).await,
            Err(error) => Err(error),
        };
        let why = broken.err().map(|e| e.to_string()).unwrap_or_default();
        let wait = session.closed(wire::now(), &why, &mut rng);
        tokio::time::sleep(wait).await;
    }
}

/// One stream, until it breaks.
async fn follow_one(
    stream: SimStream,
    session: &mut Session,
    mesh: &Mesh,
    folder: &mut Folder,
) -> io::Result<()> {
    let demand = mesh.needs().map(|needs| needs.demand().clone());
    let mut wire = wire::Messages::<DeltaDiscoveryResponse, DeltaDiscoveryRequest>::over(stream);
    if let Some(demand) = &demand {
        session.ask_for(demand.current());
        folder.fold(session.forget_unwanted());
    }
    for request in session.connected(wire::now()) {
        wire.send(&request).await?;
    }
    loop {
        let acknowledgement = tokio::select! {
            response = wire.next(session.deadline()) => {
                let Some(received) = session.receive(wire::now(), response?) else { continue };
                folder.fold(received.updates);
                if let Some(demand) = &demand {
                    demand.answered(&received.answered);
                }
                let request = session.applied(wire::now(), received.ticket);
                if session.state().ready {
                    Folder::set_synced(mesh);
                }
                Some(request)
            }
            changes = changes(demand.as_ref()) => {
                session.ask(changes.added, changes.dropped);
                None
            }
        };
        for request in acknowledgement.into_iter().chain(session.next_request(wire::now())) {
            wire.send(&request).await?;
        }
    }
}

async fn changes(demand: Option<&Demand>) -> Changes {
    match demand {
        Some(demand) => demand.changes().await,
        None => std::future::pending().await,
    }
}
