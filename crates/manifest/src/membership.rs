//! Which pods belong to the mesh. The control plane and the node agent must agree on it, so they ask here.

use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::object::{annotation, label};

/// The label by which a namespace or a pod joins (`ambient`) or stays out (`none`).
pub const DATAPLANE_MODE_LABEL: &str = "istio.io/dataplane-mode";

/// Why a pod does not belong to the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outside {
    /// Neither it nor its namespace asks for it.
    NotAsked,
    /// It opts out.
    OptedOut,
    /// It shares the node's network namespace.
    HostNetwork,
    /// It has a proxy of its own.
    Sidecar,
    /// It has ended.
    Finished,
}

/// Whether a pod belongs to the mesh; its own label beats its namespace's.
///
/// # Errors
/// Why it does not.
pub fn membership(pod: &Pod, namespace: Option<&Namespace>) -> Result<(), Outside> {
    let inherited =
        || namespace.is_some_and(|ns| label(&ns.metadata, DATAPLANE_MODE_LABEL) == Some("ambient"));
    match label(&pod.metadata, DATAPLANE_MODE_LABEL) {
        Some("none") => return Err(Outside::OptedOut),
        Some("ambient") => {}
        _ if inherited() => {}
        _ => return Err(Outside::NotAsked),
    }
    if pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false) {
        return Err(Outside::HostNetwork);
    }
    if annotation(&pod.metadata, "sidecar.istio.io/status").is_some()
        || label(&pod.metadata, "sidecar.istio.io/inject") == Some("true")
    {
        return Err(Outside::Sidecar);
    }
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    if matches!(phase, Some("Succeeded" | "Failed")) {
        return Err(Outside::Finished);
    }
    Ok(())
}

/// The annotation or label by which a namespace or a pod says what becomes of the connections that are older than its
/// enrolment.
pub const EXISTING_CONNECTIONS: &str = "ambit.dev/existing-connections";

/// What becomes of the connections of a pod that are there when it is enrolled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ExistingConnections {
    /// They go on past the mesh, as long as they last.
    #[default]
    Keep,
    /// They are ended, so that whoever wants another one gets it through the mesh.
    Close,
}

impl ExistingConnections {
    /// The words for them.
    pub const NAMES: [&str; 2] = ["keep", "close"];

    fn of(metadata: &ObjectMeta) -> Option<Self> {
        let value =
            annotation(metadata, EXISTING_CONNECTIONS).or_else(|| label(metadata, EXISTING_CONNECTIONS));
        match value? {
            "keep" => Some(Self::Keep),
            "close" => Some(Self::Close),
            // An object with another word is refused where it is read.
            _ => None,
        }
    }
}

/// What becomes of a pod's older connections: the pod's word beats its namespace's, an annotation a label.
pub fn existing_connections(pod: &Pod, namespace: Option<&Namespace>) -> ExistingConnections {
    let of_namespace = || namespace.and_then(|namespace| ExistingConnections::of(&namespace.metadata));
    ExistingConnections::of(&pod.metadata).or_else(of_namespace).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Object;

    fn objects(pod: &str, namespace: &str) -> (Pod, Namespace) {
        let text = format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: n, {namespace}}}\n---\napiVersion: v1\nkind: Pod\nmetadata: {{name: p, namespace: n, {pod}}}\nspec: {{containers: [{{name: c}}]}}\n"
        );
        let parsed = crate::parse("t.yaml", &text);
        let [Object::Namespace(namespace), Object::Pod(pod)] =
            [&parsed.documents[0].object, &parsed.documents[1].object]
        else {
            panic!("{:?}", parsed.problems)
        };
        (pod.as_ref().clone(), namespace.as_ref().clone())
    }

    fn of(pod: &str, namespace: &str) -> Result<(), Outside> {
        let (pod, namespace) = objects(pod, &format!("labels: {{{namespace}}}"));
        membership(&pod, Some(&namespace))
    }

    const AMBIENT: &str = "istio.io/dataplane-mode: ambient";
    const NONE: &str = "istio.io/dataplane-mode: none";

    #[test]
    fn the_pod_s_label_beats_the_namespace_s() {
        assert_eq!(of("", AMBIENT), Ok(()));
        assert_eq!(of("", ""), Err(Outside::NotAsked));
        assert_eq!(of("", NONE), Err(Outside::NotAsked));
        assert_eq!(of(&format!("labels: {{{NONE}}}"), AMBIENT), Err(Outside::OptedOut));
        assert_eq!(of(&format!("labels: {{{AMBIENT}}}"), NONE), Ok(()));
    }

    #[test]
    fn a_pod_with_a_sidecar_stays_out() {
        assert_eq!(of("labels: {sidecar.istio.io/inject: 'true'}", AMBIENT), Err(Outside::Sidecar));
        assert_eq!(of("annotations: {sidecar.istio.io/status: '{}'}", AMBIENT), Err(Outside::Sidecar));
    }

    #[test]
    fn the_pods_word_on_older_connections_beats_its_namespaces() {
        let decided = |pod: &str, namespace: &str| {
            let (pod, namespace) = objects(pod, namespace);
            existing_connections(&pod, Some(&namespace))
        };
        const KEEP: &str = "annotations: {ambit.dev/existing-connections: keep}";
        const CLOSE: &str = "annotations: {ambit.dev/existing-connections: close}";
        const LABEL: &str = "labels: {ambit.dev/existing-connections: close}";
        assert_eq!(decided("labels: {}", "labels: {}"), ExistingConnections::Keep);
        for close in [CLOSE, LABEL] {
            assert_eq!(decided("labels: {}", close), ExistingConnections::Close);
            assert_eq!(decided(close, KEEP), ExistingConnections::Close);
            assert_eq!(decided(KEEP, close), ExistingConnections::Keep);
        }
    }
}
