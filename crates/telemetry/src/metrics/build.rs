//! Which build runs.

use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use super::Registry;

/// Registers `istio_build{component, tag} 1`.
///
/// `component` is the program's name, `tag` its version.
pub fn register_build(registry: &mut Registry, component: &'static str, tag: &'static str) {
    let family = Family::<[(&'static str, &'static str); 2], Gauge>::default();
    family.get_or_create(&[("component", component), ("tag", tag)]).set(1);
    registry.register("istio_build", "The build that runs, its version as a label", family);
}
