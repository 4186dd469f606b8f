//! What a CONNECT request and its answer say, to and from header fields.

use http::header::{FORWARDED, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri};
use model::NetworkId;

use crate::client::ConnectRequest;
use crate::{Authority, Baggage, BaggageHeader, Forwarded, Traceparent};

const BAGGAGE: HeaderName = HeaderName::from_static("baggage");
/// Says that the client goes elsewhere if it is refused with 503. Ambit's own; others pass it over.
const ALTERNATIVES: HeaderName = HeaderName::from_static("ambit-alternatives");
const NETWORK: HeaderName = HeaderName::from_static("x-forwarded-network");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The longest network's name that is read: a Kubernetes label's.
const NETWORK_MAX: usize = 63;

/// What a request says, as read from a peer.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) authority: Authority,
    pub(crate) baggage: Baggage,
    pub(crate) forwarded: Option<Forwarded>,
    pub(crate) traceparent: Option<Traceparent>,
    pub(crate) alternatives: bool,
    pub(crate) network: Option<NetworkId>,
}

/// Reads a request; one that is no CONNECT to a target gives nothing. Bad optional headers are as good as none.
pub(crate) fn read_request<B>(request: &Request<B>) -> Option<Head> {
    let uri = request.uri();
    let tunnel = request.method() == Method::CONNECT
        && request.extensions().get::<h2::ext::Protocol>().is_none()
        && uri.scheme().is_none()
        && uri.path_and_query().is_none();
    if !tunnel {
        return None;
    }
    let headers = request.headers();
    Some(Head {
        authority: uri.authority()?.as_str().parse().ok()?,
        baggage: read_baggage(headers),
        forwarded: text(headers, &FORWARDED).and_then(|t| t.parse().ok()),
        traceparent: text(headers, &TRACEPARENT).and_then(|t| t.parse().ok()),
        alternatives: text(headers, &ALTERNATIVES) == Some("?1"),
        network: text(headers, &NETWORK).filter(|name| name.len() <= NETWORK_MAX).map(NetworkId::new),
    })
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|v| v.to_str().ok())
}

pub(crate) fn read_baggage(headers: &HeaderMap) -> Baggage {
    Baggage::decode_all(headers.get_all(BAGGAGE).iter())
}

/// Nothing where the authority cannot be written as a URI, which no [`Authority`] that was parsed can be.
pub(crate) fn write_request(told: &ConnectRequest) -> Option<Request<()>> {
    let ConnectRequest { authority, baggage, forwarded, traceparent, alternatives, network } = told;
    let authority: http::uri::Authority = authority.to_string().parse().ok()?;
    let mut parts = http::uri::Parts::default();
    parts.authority = Some(authority);
    let mut request = Request::new(());
    *request.method_mut() = Method::CONNECT;
    *request.version_mut() = http::Version::HTTP_2;
    *request.uri_mut() = Uri::from_parts(parts).ok()?;
    let headers = request.headers_mut();
    if let Some(baggage) = baggage {
        headers.insert(BAGGAGE, baggage.header());
    }
    if let Some(value) = forwarded.as_ref().and_then(|f| f.to_string().try_into().ok()) {
        headers.insert(FORWARDED, value);
    }
    if let Some(traceparent) = traceparent {
        headers.insert(TRACEPARENT, traceparent.header());
    }
    if *alternatives {
        headers.insert(ALTERNATIVES, HeaderValue::from_static("?1"));
    }
    // A network's name that is no header value is of no use to anybody.
    if let Some(value) = network.as_ref().and_then(|n| n.as_str().try_into().ok()) {
        headers.insert(NETWORK, value);
    }
    Some(request)
}

pub(crate) fn write_response(status: StatusCode, baggage: Option<&BaggageHeader>) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = status;
    if let Some(baggage) = baggage {
        response.headers_mut().insert(BAGGAGE, baggage.header());
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let authority: Authority = "[fd00::1]:8080".parse().unwrap();
        let baggage = Baggage { namespace: Some("shop".into()), ..Baggage::default() };
        let forwarded = Forwarded::new("10.0.0.7:41000".parse().unwrap(), Some("catalog.shop.svc".into()));
        let trace: Traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse().unwrap();
        let network = NetworkId::new("elsewhere");
        let told = ConnectRequest {
            authority: authority.clone(),
            baggage: Some(BaggageHeader::from(&baggage)),
            forwarded: Some(forwarded.clone()),
            traceparent: Some(trace.clone()),
            network: Some(network.clone()),
            alternatives: true,
        };
        let head = read_request(&write_request(&told).unwrap()).unwrap();
        assert!(head.alternatives);
        let last = ConnectRequest { alternatives: false, ..told };
        assert!(!read_request(&write_request(&last).unwrap()).unwrap().alternatives);
        assert_eq!((head.authority, head.baggage), (authority, baggage));
        assert_eq!((head.forwarded, head.traceparent), (Some(forwarded), Some(trace)));
        assert_eq!(head.network, Some(network));
    }

    #[test]
    fn other_methods_and_other_uris_are_no_tunnels() {
        let read = |method, uri: &str| {
            let mut request = Request::new(());
            *request.method_mut() = method;
            *request.uri_mut() = uri.parse().unwrap();
            read_request(&request).is_some()
        };
        assert!(read(Method::CONNECT, "10.0.0.1:80"));
        assert!(!read(Method::GET, "10.0.0.1:80"));
        assert!(!read(Method::CONNECT, "https://10.0.0.1:80/"));
        assert!(!read(Method::CONNECT, "user@10.0.0.1:80"));
        assert!(!read(Method::CONNECT, "10.0.0.1"));
    }
}
