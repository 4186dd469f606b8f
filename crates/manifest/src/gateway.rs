//! Gateways that traffic within the mesh passes: waypoints, and gateways between networks. Which objects name which
//! waypoint, and what a Gateway says of itself.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use model::{ApplicationTunnel, ApplicationTunnelProtocol, NamespacedName};

use crate::kinds::{Gateway, GatewayAddress, Listener};
use crate::object::{Object, annotation, label};

/// The label that names a waypoint: on a Service, ServiceEntry, pod or WorkloadEntry, or on a namespace for all in it. `none`
/// is for no waypoint.
pub const USE_WAYPOINT: &str = "istio.io/use-waypoint";
/// The namespace of that waypoint; the object's own where it is absent.
pub const USE_WAYPOINT_NAMESPACE: &str = "istio.io/use-waypoint-namespace";
/// The label that names a second waypoint, which takes a part of a service's traffic.
pub const CANARY: &str = "istio.io/use-waypoint-canary";
/// The namespace of the second waypoint.
pub const CANARY_NAMESPACE: &str = "istio.io/use-waypoint-canary-namespace";
/// The annotation that says how much of the traffic the second waypoint takes, in percent. It stands beside the label.
pub const CANARY_WEIGHT: &str = "istio.io/use-waypoint-canary-weight";
/// The label by which gateways send a service's traffic to its waypoint too.
pub const INGRESS_USE_WAYPOINT: &str = "istio.io/ingress-use-waypoint";
/// The label that says what a waypoint is for.
pub const WAYPOINT_FOR: &str = "istio.io/waypoint-for";
/// The label of what a Gateway is made of.
pub const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";
/// The annotation of a Gateway whose pods take connections behind the node's proxy: `PROXY/15088`.
pub const INBOUND_BINDING: &str = "ambient.istio.io/waypoint-inbound-binding";
/// The annotation that tells the account of a gateway that is not made of pods here.
pub const SERVICE_ACCOUNT: &str = "gateway.istio.io/service-account";
/// The label that names the network that a gateway leads to.
pub const NETWORK_LABEL: &str = "topology.istio.io/network";
/// The port of HBONE where a Gateway names none.
const HBONE_PORT: u16 = 15008;

/// What an object says about the waypoints before it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Waypoints {
    /// The waypoint.
    pub main: Option<NamespacedName>,
    /// The second waypoint, and the percentage that it takes.
    pub canary: Option<(NamespacedName, u32)>,
}

impl Waypoints {
    /// What holds for an object: its own labels, else its namespace's.
    pub fn of(object: &ObjectMeta, namespace: Option<&ObjectMeta>) -> Self {
        let at_home = object.namespace.as_deref().unwrap_or_default();
        let own = Self::named(object, at_home);
        if label(object, USE_WAYPOINT).is_some() {
            return own;
        }
        let inherited = namespace.map(|namespace| Self::named(namespace, at_home)).unwrap_or_default();
        Self { main: inherited.main, canary: own.canary.or(inherited.canary) }
    }

    /// What the labels of one object say of an object in a namespace.
    pub fn named(meta: &ObjectMeta, at_home: &str) -> Self {
        let name = |name, namespace| name_in(meta.labels.as_ref()?, name, namespace, at_home);
        let weight = annotation(meta, CANARY_WEIGHT).and_then(percentage).unwrap_or(0);
        Self {
            main: name(USE_WAYPOINT, USE_WAYPOINT_NAMESPACE),
            canary: name(CANARY, CANARY_NAMESPACE).map(|canary| (canary, weight)),
        }
    }

    /// All that are named.
    pub fn names(&self) -> impl Iterator<Item = &NamespacedName> {
        self.main.iter().chain(self.canary.iter().map(|(canary, _)| canary))
    }
}

/// The waypoint before a workload of a namespace: by its own labels, else by its namespace's.
pub fn waypoint_of(
    labels: &BTreeMap<String, String>,
    namespace: Option<&ObjectMeta>,
    at_home: &str,
) -> Option<NamespacedName> {
    if labels.contains_key(USE_WAYPOINT) {
        return name_in(labels, USE_WAYPOINT, USE_WAYPOINT_NAMESPACE, at_home);
    }
    Waypoints::named(namespace?, at_home).main
}

fn name_in(
    labels: &BTreeMap<String, String>,
    name: &str,
    namespace: &str,
    at_home: &str,
) -> Option<NamespacedName> {
    let name = labels.get(name).filter(|name| !name.is_empty() && *name != "none")?;
    let namespace = labels.get(namespace).filter(|namespace| !namespace.is_empty());
    Some(NamespacedName::new(namespace.map_or(at_home, String::as_str), name))
}

/// The waypoints that an object itself names, for itself or, where it is a namespace, for what is in it.
pub fn named_waypoints(object: &Object) -> Waypoints {
    let at_home = match object {
        Object::Namespace(_) => object.name(),
        Object::Service(_) | Object::ServiceEntry(_) | Object::Pod(_) | Object::WorkloadEntry(_) => {
            object.namespace()
        }
        _ => return Waypoints::default(),
    };
    Waypoints::named(object.metadata(), at_home)
}

/// A whole number from 0 to 100.
pub(crate) fn percentage(text: &str) -> Option<u32> {
    text.parse().ok().filter(|weight| *weight <= 100)
}

/// What traffic a waypoint is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaypointFor {
    /// That to services, which is so where nothing is said.
    Service,
    /// That to workloads' own addresses.
    Workload,
    /// Both.
    All,
    /// Neither.
    None,
}

impl WaypointFor {
    /// The words for it.
    pub const WORDS: [&str; 4] = ["service", "workload", "all", "none"];

    /// Reads a word.
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "service" => Some(Self::Service),
            "workload" => Some(Self::Workload),
            "all" => Some(Self::All),
            "none" => Some(Self::None),
            _ => None,
        }
    }

    /// Whether it is for traffic to services.
    pub fn services(self) -> bool {
        matches!(self, Self::Service | Self::All)
    }

    /// Whether it is for traffic to workloads' own addresses.
    pub fn workloads(self) -> bool {
        matches!(self, Self::Workload | Self::All)
    }
}

/// An address that a Gateway is reached at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReachedAt {
    /// An address.
    Ip(IpAddr),
    /// A host name.
    Host(String),
}

impl Gateway {
    /// The listener of a waypoint; nothing where the Gateway is none, or leads to another network.
    pub fn waypoint(&self) -> Option<&Listener> {
        if self.leads_to().is_some() {
            return None;
        }
        self.hbone_listener()
    }

    /// The network that it leads to from other networks.
    pub fn leads_to(&self) -> Option<&str> {
        let between = ["istio-east-west", "istio-remote"].contains(&self.spec.gateway_class_name.as_str());
        label(&self.metadata, NETWORK_LABEL).filter(|network| between && !network.is_empty())
    }

    /// The port that takes HBONE.
    pub fn hbone_port(&self) -> u16 {
        let listener = self.hbone_listener();
        listener.and_then(|listener| u16::try_from(listener.port).ok()).unwrap_or(HBONE_PORT)
    }

    fn hbone_listener(&self) -> Option<&Listener> {
        self.spec.listeners.iter().find(|listener| listener.protocol == "HBONE")
    }

    /// What traffic it is for, as a waypoint.
    pub fn waypoint_for(&self) -> WaypointFor {
        label(&self.metadata, WAYPOINT_FOR).and_then(WaypointFor::parse).unwrap_or(WaypointFor::Service)
    }

    /// Where it is reached: as its status tells, or else its specification.
    pub fn addresses(&self) -> Vec<ReachedAt> {
        let told = self.status.as_ref().and_then(|status| status.get("addresses")?.as_array());
        let text = |value: &serde_json::Value, key: &str| value.get(key)?.as_str().map(str::to_owned);
        let told = told.into_iter().flatten().filter_map(|address| {
            Some(GatewayAddress { kind: text(address, "type"), value: text(address, "value")? })
        });
        let told: Vec<GatewayAddress> = told.collect();
        let all = if told.is_empty() { &self.spec.addresses } else { &told };
        all.iter().filter_map(GatewayAddress::reached_at).collect()
    }

    /// How its pods take connections behind the node's proxy, where they do otherwise than applications.
    pub fn inbound_binding(&self) -> Option<ApplicationTunnel> {
        inbound_binding(annotation(&self.metadata, INBOUND_BINDING)?)?
    }
}

impl GatewayAddress {
    fn reached_at(&self) -> Option<ReachedAt> {
        match self.kind.as_deref() {
            None | Some("IPAddress") => self.value.parse().ok().map(ReachedAt::Ip),
            Some("Hostname") => Some(ReachedAt::Host(self.value.clone())),
            _ => None,
        }
    }
}

impl Listener {
    /// Whether something of a namespace may use it; `own` is that of the Gateway.
    pub fn is_open_to(&self, namespace: &str, own: &str) -> bool {
        let namespaces = self.allowed_routes.as_ref().and_then(|routes| routes.namespaces.as_ref());
        match namespaces.and_then(|namespaces| namespaces.from.as_deref()) {
            Some("All") => true,
            Some("Selector") => {
                let selector = namespaces.and_then(|namespaces| namespaces.selector.as_ref());
                selector.is_some_and(|selector| chooses(selector, namespace))
            }
            _ => namespace == own,
        }
    }
}

/// Reads `PROXY`, `PROXY/15088` or `NONE`; nothing where it is none of these.
pub(crate) fn inbound_binding(word: &str) -> Option<Option<ApplicationTunnel>> {
    let (protocol, port) = match word.split_once('/') {
        Some((protocol, port)) => (protocol, Some(port.parse().ok().filter(|port| *port > 0)?)),
        None => (word, None),
    };
    match protocol {
        "PROXY" => Some(Some(ApplicationTunnel { protocol: ApplicationTunnelProtocol::Proxy, port })),
        "NONE" => Some(None),
        _ => None,
    }
}

/// The label of namespaces that a selector may ask for here: it is every namespace's own name.
pub(crate) const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// Whether a selector of namespaces by name chooses one.
fn chooses(selector: &LabelSelector, namespace: &str) -> bool {
    let mut by_label = selector.match_labels.iter().flatten();
    let mut by_expression = selector.match_expressions.iter().flatten();
    by_label.all(|(key, value)| key == NAMESPACE_NAME && value == namespace)
        && by_expression.all(|wanted| {
            let is_in = wanted.values.iter().flatten().any(|value| value == namespace);
            wanted.key == NAMESPACE_NAME && wanted.operator == "In" && is_in
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gateway(more: &str, spec: &str) -> Gateway {
        let text = format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: gate, namespace: shop{more}}}\nspec: {spec}\n"
        );
        let parsed = crate::parse("f.yaml", &text);
        assert_eq!(parsed.problems, []);
        let document = parsed.documents.into_iter().next().unwrap();
        let Object::Gateway(gateway) = document.object else { panic!("a Gateway") };
        *gateway
    }

    fn waypoint(more: &str, listener: &str) -> Gateway {
        let listener = format!("{{name: mesh, port: 15008, protocol: HBONE{listener}}}");
        gateway(more, &format!("{{gatewayClassName: istio-waypoint, listeners: [{listener}]}}"))
    }

    fn meta(labels: &[(&str, &str)], weight: Option<&str>) -> ObjectMeta {
        let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        ObjectMeta {
            namespace: Some("shop".to_owned()),
            labels: Some(labels.iter().map(own).collect()),
            annotations: weight.map(|weight| [(CANARY_WEIGHT.to_owned(), weight.to_owned())].into()),
            ..ObjectMeta::default()
        }
    }

    fn of(own: &ObjectMeta, namespace: &ObjectMeta) -> String {
        let Waypoints { main, canary } = Waypoints::of(own, Some(namespace));
        let main = main.map_or("-".to_owned(), |name| name.to_string());
        canary.map_or(main.clone(), |(name, weight)| format!("{main} {name}:{weight}"))
    }

    #[test]
    fn an_object_beats_its_namespace_and_none_is_a_word() {
        let named = meta(&[(USE_WAYPOINT, "w")], None);
        let elsewhere = meta(&[(USE_WAYPOINT, "w"), (USE_WAYPOINT_NAMESPACE, "infra")], None);
        let nothing = meta(&[], None);
        let none = meta(&[(USE_WAYPOINT, "none")], None);
        assert_eq!(of(&nothing, &nothing), "-");
        assert_eq!(of(&nothing, &named), "shop/w");
        assert_eq!(of(&elsewhere, &named), "infra/w");
        assert_eq!(
            of(&named, &elsewhere),
            "shop/w",
            "the namespace's word about the namespace goes with its name"
        );
        assert_eq!(of(&none, &named), "-");
    }

    #[test]
    fn a_canary_takes_the_percentage_beside_its_label() {
        let main = meta(&[(USE_WAYPOINT, "w")], None);
        let canary = meta(&[(CANARY, "c")], Some("10"));
        let both = meta(&[(USE_WAYPOINT, "w"), (CANARY, "c"), (CANARY_NAMESPACE, "infra")], Some("25"));
        assert_eq!(of(&canary, &main), "shop/w shop/c:10");
        assert_eq!(of(&meta(&[], None), &both), "shop/w infra/c:25");
        assert_eq!(of(&main, &both), "shop/w", "who names a waypoint has the namespace's canary no more");
        assert_eq!(of(&meta(&[(CANARY, "c")], None), &main), "shop/w shop/c:0");
    }

    #[test]
    fn a_listener_is_open_to_the_namespaces_that_it_says() {
        let open = |routes: &str| {
            let gateway = waypoint("", &format!(", allowedRoutes: {{namespaces: {routes}}}"));
            let listener = gateway.waypoint().unwrap();
            ["shop", "bar", "baz"].map(|namespace| listener.is_open_to(namespace, "shop"))
        };
        let by_name = |rest: &str| format!("{{from: Selector, selector: {{{rest}}}}}");
        assert_eq!(open("{}"), [true, false, false]);
        assert_eq!(open("{from: All}"), [true, true, true]);
        assert_eq!(open(&by_name("matchLabels: {kubernetes.io/metadata.name: bar}")), [false, true, false]);
        let one_of =
            "matchExpressions: [{key: kubernetes.io/metadata.name, operator: In, values: [bar, baz]}]";
        assert_eq!(open(&by_name(one_of)), [false, true, true]);
    }

    #[test]
    fn where_a_gateway_is_reached_its_status_knows_best() {
        let mut gateway = gateway(
            "",
            "{gatewayClassName: c, addresses: [{value: 192.0.2.1}], listeners: [{name: a, port: 80, protocol: HTTP}]}",
        );
        assert_eq!(gateway.addresses(), [ReachedAt::Ip("192.0.2.1".parse().unwrap())]);
        assert_eq!((gateway.waypoint(), gateway.hbone_port()), (None, 15008));
        let told = r#"{"addresses": [{"type": "Hostname", "value": "gate.shop.svc"}, {"type": "IPAddress", "value": "fd00::1"}]}"#;
        gateway.status = Some(serde_json::from_str(told).unwrap());
        let both = [ReachedAt::Host("gate.shop.svc".to_owned()), ReachedAt::Ip("fd00::1".parse().unwrap())];
        assert_eq!(gateway.addresses(), both);
    }

    #[test]
    fn a_gateway_between_networks_is_no_waypoint() {
        let named = ", labels: {topology.istio.io/network: east}";
        let listener = "[{name: a, port: 15010, protocol: HBONE}]";
        let of =
            |class: &str| gateway(named, &format!("{{gatewayClassName: {class}, listeners: {listener}}}"));
        for class in ["istio-east-west", "istio-remote"] {
            let gateway = of(class);
            assert_eq!((gateway.leads_to(), gateway.waypoint()), (Some("east"), None));
            assert_eq!(gateway.hbone_port(), 15010);
        }
        assert!(of("istio-waypoint").leads_to().is_none() && of("istio-waypoint").waypoint().is_some());
    }

    #[test]
    fn a_binding_names_a_protocol_and_perhaps_a_port() {
        let proxy = |port| Some(ApplicationTunnel { protocol: ApplicationTunnelProtocol::Proxy, port });
        let bound = |word: &str| {
            waypoint(&format!(", annotations: {{{INBOUND_BINDING}: {word}}}"), "").inbound_binding()
        };
        assert_eq!(bound("PROXY/15088"), proxy(Some(15088)));
        assert_eq!(bound("PROXY"), proxy(None));
        assert_eq!(bound("NONE"), None);
        for word in ["proxy", "PROXY/0", "PROXY/x", "PROXY/70000", "", "HTTP/80"] {
            assert_eq!(inbound_binding(word), None, "{word}");
        }
    }
}
