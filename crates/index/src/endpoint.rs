//! A service's ports on one of its endpoints.

use model::{Service, Workload};

/// The port on `workload` that stands behind a port of `service`.
///
/// The workload's own list comes first, since a named target port may be another number on every endpoint; then the
/// service's. Nothing where the service has no such port, or where its target port is named and the workload does not
/// have that name: then the workload is no endpoint for this port.
pub fn target_port(service: &Service, workload: &Workload, service_port: u16) -> Option<u16> {
    let declared = service.port(service_port)?;
    let own = workload.services.get(&service.key()).into_iter().flatten();
    let own = own.filter(|p| p.service_port == service_port).find_map(|p| p.target_port);
    own.or(declared.target_port)
}
