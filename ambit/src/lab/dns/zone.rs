//! Names and their records, by the rules of Kubernetes' DNS specification 1.1.0.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, SOA, SRV};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use k8s_openapi::api::core::v1::Service;

use crate::lab::control::endpoints::{ready, slices_of};
use crate::lab::control::services;
use crate::lab::store::{Store, name, namespace};

/// The domain of the cluster.
const DOMAIN: &str = "cluster.local";
/// How long answers may be kept, in seconds: endpoints come and go.
const TTL: u32 = 5;

/// The most aliases that are followed from one to the next.
const LONGEST_CHAIN: usize = 8;

/// What one name stands for.
#[derive(Clone, Debug, Default, PartialEq)]
struct Entry {
    addresses: BTreeSet<IpAddr>,
    alias: Option<String>,
    /// Ports and the names where they are.
    services: BTreeSet<(u16, String)>,
}

/// All names, in lower case, without the last dot.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Zone {
    names: BTreeMap<String, Entry>,
}

impl Zone {
    /// The names of all services, their endpoints and all pods.
    pub(crate) fn of(store: &Store) -> Self {
        let mut zone = Self::default();
        store.services().for_each(|service| zone.service(service, store));
        for pod in store.pods() {
            let ips = pod.status.iter().flat_map(|status| status.pod_ips.iter().flatten());
            for ip in ips.filter_map(|ip| ip.ip.parse::<IpAddr>().ok()) {
                let name = format!("{}.{}.pod.{DOMAIN}", dashed(ip), namespace(&pod.metadata));
                zone.entry(name).addresses.insert(ip);
            }
        }
        // A name with something below it is there, if empty.
        let known: Vec<String> = zone.names.keys().cloned().collect();
        for name in known {
            let mut rest = name.as_str();
            while let Some((_, above)) = rest.split_once('.') {
                zone.entry(above.to_owned());
                rest = above;
            }
        }
        zone.names.remove("local");
        zone.entry(DOMAIN.to_owned());
        zone
    }

    fn service(&mut self, service: &Service, store: &Store) {
        let of = &service.metadata;
        let base = format!("{}.{}.svc.{DOMAIN}", name(of), namespace(of)).to_lowercase();
        let spec = service.spec.as_ref();
        if let Some(target) = spec.filter(|s| s.type_.as_deref() == Some("ExternalName")) {
            self.entry(base).alias = target.external_name.clone();
            return;
        }
        let ports = spec.iter().flat_map(|spec| spec.ports.iter().flatten());
        let srv = |name: &str, protocol: &str| format!("_{name}._{protocol}.{base}").to_lowercase();
        let vips = services::addresses(service);
        if !vips.is_empty() {
            self.entry(base.clone()).addresses.extend(vips);
            for port in ports {
                let (Some(name), Ok(number)) = (&port.name, u16::try_from(port.port)) else { continue };
                let protocol = port.protocol.as_deref().unwrap_or("TCP");
                self.entry(srv(name, protocol)).services.insert((number, base.clone()));
            }
            return;
        }
        self.entry(base.clone());
        for slice in slices_of(service, store) {
            for endpoint in ready(slice) {
                for ip in endpoint.addresses.iter().filter_map(|ip| ip.parse::<IpAddr>().ok()) {
                    let host = endpoint.hostname.clone().unwrap_or_else(|| dashed(ip));
                    let host = format!("{host}.{base}").to_lowercase();
                    self.entry(base.clone()).addresses.insert(ip);
                    self.entry(host.clone()).addresses.insert(ip);
                    for port in slice.ports.iter().flatten() {
                        let number = port.port.and_then(|number| u16::try_from(number).ok());
                        let (Some(name), Some(number)) =
                            (port.name.as_deref().filter(|n| !n.is_empty()), number)
                        else {
                            continue;
                        };
                        let protocol = port.protocol.as_deref().unwrap_or("TCP");
                        self.entry(srv(name, protocol)).services.insert((number, host.clone()));
                    }
                }
            }
        }
    }

    fn entry(&mut self, name: String) -> &mut Entry {
        self.names.entry(name).or_default()
    }

    /// The answer to a packet; nothing to what is no query.
    pub(crate) fn answer(&self, packet: &[u8]) -> Option<Message> {
        let query = Message::from_vec(packet).ok()?;
        if query.metadata.message_type != MessageType::Query {
            return None;
        }
        let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
        answer.metadata.recursion_desired = query.metadata.recursion_desired;
        answer.metadata.recursion_available = true;
        answer.add_queries(query.queries.iter().cloned());
        if query.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(1232);
            answer.set_edns(edns);
        }
        answer.metadata.response_code = match query.queries.as_slice() {
            [question] if query.metadata.op_code == OpCode::Query => {
                if matches!(question.query_class(), DNSClass::IN | DNSClass::ANY) {
                    self.resolve(question.name(), question.query_type(), &mut answer)
                } else {
                    ResponseCode::Refused
                }
            }
            [_] => ResponseCode::NotImp,
            _ => ResponseCode::FormErr,
        };
        Some(answer)
    }

    fn resolve(&self, asked: &Name, kind: RecordType, answer: &mut Message) -> ResponseCode {
        let text = asked.to_ascii().to_lowercase();
        let text = text.trim_end_matches('.');
        answer.metadata.authoritative = text == DOMAIN || text.ends_with(&format!(".{DOMAIN}"));
        let Some(entry) = self.names.get(text) else {
            // Nobody else is asked: a pod's names are the cluster's or none.
            answer.add_authority(authority());
            return ResponseCode::NXDomain;
        };
        let record = |data: RData| Record::from_rdata(asked.clone(), TTL, data);
        if let Some(target) = entry.alias.as_ref().and_then(|alias| fqdn(alias)) {
            answer.add_answer(record(RData::CNAME(CNAME(target.clone()))));
            let known = self.names.contains_key(target.to_ascii().to_lowercase().trim_end_matches('.'));
            // An alias of an alias and so on is followed so far, and one that leads back to itself too.
            if known && answer.answers.len() < LONGEST_CHAIN {
                self.resolve(&target, kind, answer);
            }
            return ResponseCode::NoError;
        }
        for ip in &entry.addresses {
            match ip {
                IpAddr::V4(ip) if matches!(kind, RecordType::A | RecordType::ANY) => {
                    answer.add_answer(record(RData::A(A(*ip))));
                }
                IpAddr::V6(ip) if matches!(kind, RecordType::AAAA | RecordType::ANY) => {
                    answer.add_answer(record(RData::AAAA(AAAA(*ip))));
                }
                _ => {}
            }
        }
        if matches!(kind, RecordType::SRV | RecordType::ANY) {
            for (port, target) in &entry.services {
                if let Some(target) = fqdn(target) {
                    answer.add_answer(record(RData::SRV(SRV::new(0, 100, *port, target))));
                }
            }
        }
        if answer.answers.is_empty() {
            answer.add_authority(authority());
        }
        ResponseCode::NoError
    }
}

fn fqdn(name: &str) -> Option<Name> {
    let mut name = Name::from_ascii(name).ok()?;
    name.set_fqdn(true);
    Some(name)
}

/// Tells for how long a name that is not there may be taken for one.
fn authority() -> Record {
    let zone = fqdn(DOMAIN).unwrap_or_default();
    let at = |label: &str| fqdn(&format!("{label}.{DOMAIN}")).unwrap_or_default();
    let soa = SOA::new(at("ns.dns"), at("hostmaster"), 1, 7200, 1800, 86400, TTL);
    Record::from_rdata(zone, TTL, RData::SOA(soa))
}

fn dashed(ip: IpAddr) -> String {
    ip.to_string().replace(['.', ':'], "-")
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::Query;

    use super::*;
    use crate::lab::store::tests::store;

    const WORLD: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.1.1, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {clusterIP: None, ports: [{name: pg, port: 5432}]}
---
apiVersion: v1
kind: Service
metadata: {name: out, namespace: shop}
spec: {type: ExternalName, externalName: example.com}
---
apiVersion: v1
kind: Service
metadata: {name: alias, namespace: shop}
spec: {type: ExternalName, externalName: web.shop.svc.cluster.local}
---
apiVersion: v1
kind: Service
metadata: {name: ring, namespace: shop}
spec: {type: ExternalName, externalName: ring.shop.svc.cluster.local}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: db-1, namespace: shop, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
ports: [{name: pg, port: 5433}]
endpoints:
- {addresses: [10.244.1.2], conditions: {ready: true}, hostname: db-0}
- {addresses: [10.244.1.3], conditions: {ready: true}}
- {addresses: [10.244.1.4], conditions: {ready: false}}
";

    /// Asks as a resolver does: in bytes.
    fn ask(name: &str, kind: RecordType) -> Message {
        let mut query = Message::query();
        query.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        let zone = Zone::of(&store(WORLD).0);
        let answer = zone.answer(&query.to_vec().unwrap()).unwrap();
        Message::from_vec(&answer.to_vec().unwrap()).unwrap()
    }

    fn answers(name: &str, kind: RecordType) -> Vec<String> {
        ask(name, kind).answers.iter().map(|record| record.data.to_string()).collect()
    }

    #[test]
    fn a_service_is_its_virtual_ip() {
        assert_eq!(answers("web.shop.svc.cluster.local.", RecordType::A), ["10.96.1.1"]);
        assert_eq!(answers("WEB.Shop.svc.cluster.local.", RecordType::A), ["10.96.1.1"]);
        let v6 = ask("web.shop.svc.cluster.local.", RecordType::AAAA);
        assert_eq!((v6.metadata.response_code, v6.answers.len()), (ResponseCode::NoError, 0));
    }

    #[test]
    fn a_headless_service_is_its_ready_endpoints() {
        assert_eq!(answers("db.shop.svc.cluster.local.", RecordType::A), ["10.244.1.2", "10.244.1.3"]);
        assert_eq!(answers("db-0.db.shop.svc.cluster.local.", RecordType::A), ["10.244.1.2"]);
        assert_eq!(answers("10-244-1-3.db.shop.svc.cluster.local.", RecordType::A), ["10.244.1.3"]);
    }

    #[test]
    fn ports_are_found_by_name() {
        assert_eq!(
            answers("_http._tcp.web.shop.svc.cluster.local.", RecordType::SRV),
            ["0 100 80 web.shop.svc.cluster.local."]
        );
        assert_eq!(answers("_pg._tcp.db.shop.svc.cluster.local.", RecordType::SRV).len(), 2);
    }

    #[test]
    fn an_external_name_is_an_alias() {
        assert_eq!(answers("out.shop.svc.cluster.local.", RecordType::A), ["example.com."]);
        let alias = answers("alias.shop.svc.cluster.local.", RecordType::A);
        assert_eq!(alias, ["web.shop.svc.cluster.local.", "10.96.1.1"]);
        assert_eq!(answers("ring.shop.svc.cluster.local.", RecordType::A).len(), LONGEST_CHAIN);
    }

    #[test]
    fn what_is_not_there_is_told_apart_from_what_is_empty() {
        let code = |name: &str| ask(name, RecordType::A).metadata.response_code;
        assert_eq!(code("nobody.shop.svc.cluster.local."), ResponseCode::NXDomain);
        assert_eq!(code("example.com."), ResponseCode::NXDomain);
        assert_eq!(code("shop.svc.cluster.local."), ResponseCode::NoError);
    }

    #[test]
    fn garbage_is_not_answered() {
        let zone = Zone::default();
        assert_eq!(zone.answer(b"hello"), None);
        let answer = Message::response(7, OpCode::Query).to_vec().unwrap();
        assert_eq!(zone.answer(&answer), None, "answers are not answered");
    }
}
