//! Which pods of the node belong to the mesh.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use manifest::source::Batch;
use manifest::{ExistingConnections, Kind, Object, ObjectKey, Outside, annotation};

const NETNS: &str = "ambit.dev/netns";
/// The annotation by which a pod keeps what it asks resolvers to itself.
const DNS_CAPTURE: &str = "ambient.istio.io/dns-capture";

/// A pod that belongs to the mesh and can be enrolled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its `metadata.uid`.
    pub uid: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its service account.
    pub service_account: Arc<str>,
    /// Its IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// Its IPv6 address.
    pub v6: Option<Ipv6Addr>,
    /// The path that stands for its network namespace.
    pub netns: PathBuf,
    /// What becomes of its connections that are there when it is enrolled.
    pub existing: ExistingConnections,
    /// Whether what it asks resolvers is captured.
    pub dns: bool,
}

impl Member {
    /// Its addresses.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.v4.map(IpAddr::from).into_iter().chain(self.v6.map(IpAddr::from))
    }
}

/// What is to become of a pod of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Membership {
    /// It belongs to the mesh.
    Member(Member),
    /// It belongs to the mesh, but something is not known yet.
    Incomplete {
        /// Its namespace.
        namespace: Arc<str>,
        /// Its name.
        name: Arc<str>,
        /// What is missing.
        lacks: Lack,
    },
    /// It does not belong to the mesh.
    Outside {
        /// Why not.
        why: Outside,
        /// The path that stands for its network namespace, where one is named.
        netns: Option<PathBuf>,
    },
}

/// What is missing of a pod that is to be enrolled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lack {
    /// It has no address yet.
    Address,
    /// Its status holds something that is no address.
    ReadableAddress(String),
    /// Nothing says where its network namespace is.
    Netns,
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address => f.write_str("it has no address yet"),
            Self::ReadableAddress(found) => write!(f, "its address `{found}` is none"),
            Self::Netns => write!(f, "it has no annotation {NETNS}"),
        }
    }
}

/// The pods and namespaces of the source, as far as membership depends on them.
#[derive(Clone, Debug, Default)]
pub struct View {
    pods: BTreeMap<ObjectKey, Arc<Object>>,
    namespaces: BTreeMap<String, Arc<Object>>,
}

impl View {
    /// Takes in changes.
    pub fn apply(&mut self, batch: &Batch) {
        for object in &batch.upserts {
            match object.kind() {
                Kind::Pod => drop(self.pods.insert(object.key(), Arc::clone(object))),
                Kind::Namespace => {
                    self.namespaces.insert(object.name().to_owned(), Arc::clone(object));
                }
                _ => {}
            }
        }
        for key in &batch.deletes {
            match key.kind {
                Kind::Pod => drop(self.pods.remove(key)),
                Kind::Namespace => drop(self.namespaces.remove(&key.name)),
                _ => {}
            }
        }
    }

    /// What is to become of each pod of a node, by `metadata.uid`. Pods without a UID are not there yet.
    pub fn memberships(&self, node: &str) -> BTreeMap<Arc<str>, Membership> {
        let pods = self.pods.values().filter_map(|object| match object.as_ref() {
            Object::Pod(pod) => Some(pod.as_ref()),
            _ => None,
        });
        pods.filter(|pod| runs_on(pod, node))
            .filter_map(|pod| Some((pod.metadata.uid.as_deref()?.into(), self.membership(pod))))
            .collect()
    }

    /// The pods of a node that were asked to end, by `metadata.uid`.
    pub fn ending<'a>(&'a self, node: &'a str) -> impl Iterator<Item = &'a str> {
        let pods = self.pods.values().filter_map(move |object| match object.as_ref() {
            Object::Pod(pod) if runs_on(pod, node) => Some(pod.as_ref()),
            _ => None,
        });
        let ending = pods.filter(|pod| pod.metadata.deletion_timestamp.is_some());
        ending.filter_map(|pod| pod.metadata.uid.as_deref())
    }

    fn membership(&self, pod: &Pod) -> Membership {
        let metadata = &pod.metadata;
        let namespace = self.namespaces.get(metadata.namespace.as_deref().unwrap_or_default());
        let namespace = namespace.and_then(|object| match object.as_ref() {
            Object::Namespace(namespace) => Some(namespace.as_ref()),
            _ => None,
        });
        let existing = manifest::existing_connections(pod, namespace);
        let netns = annotation(metadata, NETNS).filter(|path| !path.is_empty()).map(PathBuf::from);
        if let Err(why) = manifest::membership(pod, namespace) {
            return Membership::Outside { why, netns };
        }
        let name: Arc<str> = metadata.name.as_deref().unwrap_or_default().into();
        let namespace: Arc<str> = metadata.namespace.as_deref().unwrap_or_default().into();
        let lacks =
            |lacks| Membership::Incomplete { namespace: namespace.clone(), name: name.clone(), lacks };
        let (v4, v6) = match addresses(pod.status.as_ref()) {
            Ok((None, None)) => return lacks(Lack::Address),
            Ok(addresses) => addresses,
            Err(found) => return lacks(Lack::ReadableAddress(found)),
        };
        let Some(netns) = netns else { return lacks(Lack::Netns) };
        let service_account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref());
        Membership::Member(Member {
            uid: metadata.uid.as_deref().unwrap_or_default().into(),
            name,
            namespace,
            service_account: service_account.filter(|name| !name.is_empty()).unwrap_or("default").into(),
            v4,
            v6,
            netns,
            existing,
            dns: annotation(metadata, DNS_CAPTURE) != Some("false"),
        })
    }
}

fn runs_on(pod: &Pod, node: &str) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(node)
}

/// The first address of each family, or the text that is none.
fn addresses(status: Option<&PodStatus>) -> Result<(Option<Ipv4Addr>, Option<Ipv6Addr>), String> {
    let Some(status) = status else { return Ok((None, None)) };
    let listed = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
    let (mut v4, mut v6) = (None, None);
    for text in listed.chain(status.pod_ip.as_deref()).filter(|text| !text.is_empty()) {
        match text.parse::<IpAddr>().map_err(|_| text.to_owned())? {
            IpAddr::V4(address) => drop(v4.get_or_insert(address)),
            IpAddr::V6(address) => drop(v6.get_or_insert(address)),
        }
    }
    Ok((v4, v6))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(yaml: &str) -> Arc<Object> {
        let parsed = manifest::parse("test.yaml", yaml);
        assert!(parsed.is_usable(), "{:?}", parsed.problems);
        Arc::new(parsed.documents.into_iter().next().unwrap().object)
    }

    fn namespace(labels: &str) -> Arc<Object> {
        object(&format!("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop\n  labels: {{{labels}}}\n"))
    }

    struct Text {
        labels: &'static str,
        annotations: &'static str,
        spec: &'static str,
        status: &'static str,
    }

    const PLAIN: Text = Text {
        labels: "",
        annotations: "ambit.dev/netns: /run/netns/cart",
        spec: "nodeName: node-1, serviceAccountName: cart",
        status: "phase: Running, podIP: 10.0.0.5, podIPs: [{ip: 10.0.0.5}, {ip: 'fd00::5'}]",
    };

    fn pod(text: &Text) -> Arc<Object> {
        let Text { labels, annotations, spec, status } = text;
        object(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: cart\n  namespace: shop\n  uid: u-1\n  labels: {{{labels}}}\n  \
             annotations: {{{annotations}}}\nspec: {{{spec}, containers: [{{name: app, image: app}}]}}\nstatus: {{{status}}}\n"
        ))
    }

    fn view(objects: Vec<Arc<Object>>) -> View {
        let mut view = View::default();
        view.apply(&Batch { upserts: objects, ..Batch::default() });
        view
    }

    fn outside(membership: &Membership) -> Option<Outside> {
        match membership {
            Membership::Outside { why, .. } => Some(*why),
            _ => None,
        }
    }

    fn membership(namespace_labels: &str, text: &Text) -> Membership {
        let view = view(vec![namespace(namespace_labels), pod(text)]);
        view.memberships("node-1").remove("u-1").unwrap()
    }

    const AMBIENT: &str = "istio.io/dataplane-mode: ambient";

    #[test]
    fn a_labelled_namespace_brings_its_pods_in() {
        let member = Member {
            uid: "u-1".into(),
            name: "cart".into(),
            namespace: "shop".into(),
            service_account: "cart".into(),
            v4: Some(Ipv4Addr::new(10, 0, 0, 5)),
            v6: Some("fd00::5".parse().unwrap()),
            netns: "/run/netns/cart".into(),
            existing: ExistingConnections::Keep,
            dns: true,
        };
        assert_eq!(membership(AMBIENT, &PLAIN), Membership::Member(member));
        assert_eq!(outside(&membership("", &PLAIN)), Some(Outside::NotAsked));
    }

    #[test]
    fn a_pod_may_keep_its_questions_to_itself() {
        let asking = |annotations| match membership(AMBIENT, &Text { annotations, ..PLAIN }) {
            Membership::Member(member) => member.dns,
            other => panic!("{other:?}"),
        };
        assert!(asking(PLAIN.annotations));
        assert!(asking("ambit.dev/netns: /run/netns/cart, ambient.istio.io/dns-capture: 'true'"));
        assert!(!asking("ambit.dev/netns: /run/netns/cart, ambient.istio.io/dns-capture: 'false'"));
    }

    #[test]
    fn the_pods_label_beats_its_namespaces() {
        let joins = Text { labels: AMBIENT, ..PLAIN };
        assert!(matches!(membership("", &joins), Membership::Member(_)));
        let leaves = Text { labels: "istio.io/dataplane-mode: none", ..PLAIN };
        assert_eq!(outside(&membership(AMBIENT, &leaves)), Some(Outside::OptedOut));
    }

    #[test]
    fn a_namespace_that_is_not_known_asks_for_nothing() {
        let view = view(vec![pod(&PLAIN)]);
        assert_eq!(outside(&view.memberships("node-1")["u-1"]), Some(Outside::NotAsked));
    }

    #[test]
    fn pods_that_cannot_be_captured_stay_outside() {
        let cases = [
            (Text { spec: "nodeName: node-1, hostNetwork: true", ..PLAIN }, Outside::HostNetwork),
            (Text { labels: "sidecar.istio.io/inject: 'true'", ..PLAIN }, Outside::Sidecar),
            (Text { annotations: "sidecar.istio.io/status: '{}'", ..PLAIN }, Outside::Sidecar),
            (Text { status: "phase: Succeeded, podIP: 10.0.0.5", ..PLAIN }, Outside::Finished),
            (Text { status: "phase: Failed, podIP: 10.0.0.5", ..PLAIN }, Outside::Finished),
        ];
        for (text, why) in cases {
            assert_eq!(outside(&membership(AMBIENT, &text)), Some(why));
        }
        let not_injected = Text { labels: "sidecar.istio.io/inject: 'false'", ..PLAIN };
        assert!(matches!(membership(AMBIENT, &not_injected), Membership::Member(_)));
    }

    #[test]
    fn pods_of_the_node_that_were_asked_to_end_are_named() {
        let Object::Pod(mut ending) = (*pod(&PLAIN)).clone() else { panic!("no pod") };
        let time = "2026-01-01T00:00:00Z".parse().unwrap();
        ending.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(time));
        let view = view(vec![namespace(AMBIENT), Arc::new(Object::Pod(ending))]);
        assert_eq!(view.ending("node-1").collect::<Vec<_>>(), ["u-1"]);
        assert_eq!(view.ending("node-2").count(), 0);
        assert!(matches!(view.memberships("node-1")["u-1"], Membership::Member(_)), "it stays captured");
    }

    #[test]
    fn a_pod_waits_for_what_it_lacks() {
        let lacks = |text: &Text| match membership(AMBIENT, text) {
            Membership::Incomplete { lacks, .. } => lacks,
            other => panic!("{other:?}"),
        };
        assert_eq!(lacks(&Text { status: "phase: Pending", ..PLAIN }), Lack::Address);
        assert_eq!(lacks(&Text { annotations: "", ..PLAIN }), Lack::Netns);
    }

    #[test]
    fn a_pod_of_one_family_has_one_address() {
        let Membership::Member(member) = membership(AMBIENT, &Text { status: "podIP: 'fd00::5'", ..PLAIN })
        else {
            panic!("no member");
        };
        assert_eq!((member.v4, member.v6), (None, Some("fd00::5".parse().unwrap())));
    }

    #[test]
    fn the_default_service_account_has_a_name() {
        let Membership::Member(member) = membership(AMBIENT, &Text { spec: "nodeName: node-1", ..PLAIN })
        else {
            panic!("no member");
        };
        assert_eq!(&*member.service_account, "default");
    }

    #[test]
    fn pods_of_other_nodes_and_deleted_ones_are_not_listed() {
        let mut view = view(vec![namespace(AMBIENT), pod(&PLAIN)]);
        assert!(view.memberships("node-2").is_empty());
        let key = pod(&PLAIN).key();
        view.apply(&Batch { deletes: vec![key], ..Batch::default() });
        assert!(view.memberships("node-1").is_empty());
    }
}
