//! What a well-typed object may still get wrong.

mod gateway;
mod kubernetes;
mod names;
mod policies;
mod service_entry;

use std::fmt;

use crate::object::Object;
pub use kubernetes::mesh_settings;
pub(crate) use kubernetes::unused_mesh_settings;

use crate::problem::{Position, Severity};

/// One thing that is wrong with an object, and the way to it from the object's top.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// The field.
    pub path: FieldPath,
    /// A place within the field's text, where that is YAML itself.
    pub within: Option<Position>,
    /// What is wrong.
    pub message: String,
    /// What to do instead.
    pub remedy: Option<String>,
    /// What it means for the object.
    pub severity: Severity,
}

/// The way from an object's top to a field.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldPath(Vec<Segment>);

/// A step of the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Segment {
    /// Into a mapping.
    Field(String),
    /// Into a list.
    Index(usize),
}

impl FieldPath {
    /// The steps.
    pub fn segments(&self) -> &[Segment] {
        &self.0
    }

    fn field(&self, name: impl Into<String>) -> Self {
        let mut path = self.clone();
        path.0.push(Segment::Field(name.into()));
        path
    }

    fn index(&self, index: usize) -> Self {
        let mut path = self.clone();
        path.0.push(Segment::Index(index));
        path
    }
}

impl From<&str> for FieldPath {
    /// A dotted way without indices.
    fn from(dotted: &str) -> Self {
        Self(dotted.split('.').map(|name| Segment::Field(name.to_owned())).collect())
    }
}

/// `spec.rules[0].from`.
impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, segment) in self.0.iter().enumerate() {
            match segment {
                Segment::Field(name) if n == 0 => f.write_str(name)?,
                Segment::Field(name) => write!(f, ".{name}")?,
                Segment::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

/// Where the checks put what they find.
#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn error(&mut self, path: &FieldPath, message: impl Into<String>) -> &mut Finding {
        let finding = Finding {
            path: path.clone(),
            within: None,
            message: message.into(),
            remedy: None,
            severity: Severity::Error,
        };
        self.0.push(finding);
        let last = self.0.len() - 1;
        &mut self.0[last]
    }

    fn refused(&mut self, path: &FieldPath, message: impl Into<String>) -> &mut Finding {
        let finding = self.error(path, message);
        finding.severity = Severity::Refused;
        finding
    }
}

impl Finding {
    fn remedy(&mut self, remedy: impl Into<String>) {
        self.remedy = Some(remedy.into());
    }

    fn did_you_mean<'a>(&mut self, word: &str, candidates: impl IntoIterator<Item = &'a str>) {
        self.remedy = crate::suggest::did_you_mean(word, candidates);
    }
}

/// Finds all that is wrong with an object beyond its types.
pub fn validate(object: &Object) -> Vec<Finding> {
    let mut findings = Findings::default();
    names::metadata(object, &mut findings);
    if matches!(object, Object::Namespace(_) | Object::Service(_) | Object::ServiceEntry(_)) {
        kubernetes::traffic_distribution(object, &mut findings);
    }
    gateway::use_of_waypoints(object, &mut findings);
    match object {
        Object::Namespace(_) | Object::Node(_) | Object::ServiceAccount(_) => {}
        Object::ConfigMap(map) => kubernetes::config_map(map, &mut findings),
        Object::Deployment(deployment) => kubernetes::deployment(deployment, &mut findings),
        Object::Pod(pod) => kubernetes::pod(pod, &mut findings),
        Object::Service(service) => kubernetes::service(service, &mut findings),
        Object::EndpointSlice(slice) => kubernetes::endpoint_slice(slice, &mut findings),
        Object::ServiceEntry(entry) => service_entry::service_entry(&entry.spec, &mut findings),
        Object::WorkloadEntry(entry) => {
            service_entry::workload_entry(&entry.spec, &"spec".into(), &mut findings);
        }
        Object::Gateway(gateway) => gateway::gateway(gateway, &mut findings),
        Object::AuthorizationPolicy(policy) => policies::authorization(policy, &mut findings),
        Object::PeerAuthentication(policy) => policies::peer(policy, &mut findings),
    }
    findings.0
}

/// A port number in a field.
fn check_port(number: i64, path: &FieldPath, findings: &mut Findings) {
    if !(1..=65535).contains(&number) {
        findings.error(path, format!("{number} is no port")).remedy("ports are 1 to 65535");
    }
}

#[cfg(test)]
mod tests;
