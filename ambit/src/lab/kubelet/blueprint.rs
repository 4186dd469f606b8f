//! From a pod's specification to what is run.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVar, Pod, PodSpec};

use super::hook::Hook;
use super::probe::Probe;
use crate::lab::store::{name, namespace};

/// What a pod runs.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Blueprint {
    /// Those that run first, one after the other, to their end.
    pub(super) init: Vec<ContainerPlan>,
    pub(super) main: Vec<ContainerPlan>,
    /// How long a container may take to end.
    pub(super) grace: Duration,
}

/// What a container runs.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ContainerPlan {
    pub(super) name: String,
    pub(super) command: Vec<String>,
    pub(super) env: Vec<(String, String)>,
    pub(super) dir: Option<PathBuf>,
    pub(super) restart: Restart,
    pub(super) startup: Option<Probe>,
    pub(super) readiness: Option<Probe>,
    pub(super) liveness: Option<Probe>,
    pub(super) pre_stop: Option<Hook>,
}

/// When a container that ended is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Restart {
    Always,
    OnFailure,
    Never,
}

impl Restart {
    fn of(spec: &PodSpec) -> Self {
        match spec.restart_policy.as_deref() {
            Some("Never") => Self::Never,
            Some("OnFailure") => Self::OnFailure,
            _ => Self::Always,
        }
    }

    /// Whether a container that ended with a status is started again.
    pub(super) fn again(self, code: i32) -> bool {
        match self {
            Self::Always => true,
            Self::OnFailure => code != 0,
            Self::Never => false,
        }
    }
}

/// A pod's containers in the order of its blueprint: those that run first, and those that stay.
///
/// An init container that restarts always is a sidecar: it runs beside the others.
pub(super) fn order(spec: &PodSpec) -> (Vec<&Container>, Vec<&Container>) {
    let is_sidecar = |c: &&Container| c.restart_policy.as_deref() == Some("Always");
    let (mut main, init): (Vec<_>, Vec<_>) = spec.init_containers.iter().flatten().partition(is_sidecar);
    main.extend(&spec.containers);
    (init, main)
}

/// What a pod's containers are told beside their specification.
#[derive(Clone, Copy, Debug)]
pub(super) struct Surroundings<'a> {
    /// Where the mesh's programs are; first on the path.
    pub(super) programs: &'a Path,
    pub(super) ips: &'a [IpAddr],
    pub(super) host_ips: &'a [IpAddr],
    /// Those of the pod's namespace, by name.
    pub(super) config_maps: &'a BTreeMap<String, ConfigMap>,
}

/// What is run for a pod.
///
/// # Errors
/// A sentence about what cannot be run.
pub(super) fn blueprint(pod: &Pod, around: &Surroundings<'_>) -> Result<Blueprint, String> {
    let spec = pod.spec.as_ref().ok_or("the pod has no `spec`")?;
    let of_pod = Restart::of(spec);
    let plan = |container: &Container, restart| {
        let plan = plan(pod, container, restart, around);
        plan.map_err(|why| format!("container `{}`: {why}", container.name))
    };
    let (init, main) = order(spec);
    let to_the_end = if of_pod == Restart::Always { Restart::OnFailure } else { of_pod };
    let staying =
        |c: &Container| if c.restart_policy.as_deref() == Some("Always") { Restart::Always } else { of_pod };
    let grace = spec.termination_grace_period_seconds.and_then(|s| u64::try_from(s).ok()).unwrap_or(30);
    Ok(Blueprint {
        init: init.into_iter().map(|c| plan(c, to_the_end)).collect::<Result<_, _>>()?,
        main: main.into_iter().map(|c| plan(c, staying(c))).collect::<Result<_, _>>()?,
        grace: Duration::from_secs(grace),
    })
}

fn plan(
    pod: &Pod,
    container: &Container,
    restart: Restart,
    around: &Surroundings<'_>,
) -> Result<ContainerPlan, String> {
    let mut env = vec![
        ("PATH".to_owned(), path(around.programs)),
        ("HOME".to_owned(), "/root".to_owned()),
        ("HOSTNAME".to_owned(), name(&pod.metadata).to_owned()),
    ];
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        let Some(map) = &source.config_map_ref else {
            return Err("`envFrom` knows only ConfigMaps here".to_owned());
        };
        match around.config_maps.get(&map.name) {
            Some(found) => {
                for (key, value) in found.data.iter().flatten() {
                    set(&mut env, format!("{prefix}{key}"), value.clone());
                }
            }
            None if map.optional == Some(true) => {}
            None => return Err(format!("there is no ConfigMap `{}`", map.name)),
        }
    }
    for variable in container.env.iter().flatten() {
        if let Some(value) = value(pod, variable, &env, around)? {
            set(&mut env, variable.name.clone(), value);
        }
    }
    if container.command.as_ref().is_none_or(Vec::is_empty) {
        return Err("it has no `command`; a lab runs programs of this machine, not images".to_owned());
    }
    let words = container.command.iter().flatten().chain(container.args.iter().flatten());
    let pre_stop = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.as_ref());
    let probe = |probe: &Option<_>| probe.as_ref().map(|p| Probe::of(p, container)).transpose();
    Ok(ContainerPlan {
        name: container.name.clone(),
        command: words.map(|word| expand(word, &env)).collect(),
        dir: container.working_dir.as_ref().map(PathBuf::from),
        restart,
        startup: probe(&container.startup_probe)?,
        readiness: probe(&container.readiness_probe)?,
        liveness: probe(&container.liveness_probe)?,
        pre_stop: pre_stop.map(|handler| Hook::of(handler, container)).transpose()?,
        env,
    })
}

/// The path of pods' programs.
fn path(programs: &Path) -> String {
    format!("{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", programs.display())
}

fn set(env: &mut Vec<(String, String)>, name: String, value: String) {
    env.retain(|(known, _)| *known != name);
    env.push((name, value));
}

fn value(
    pod: &Pod,
    variable: &EnvVar,
    env: &[(String, String)],
    around: &Surroundings<'_>,
) -> Result<Option<String>, String> {
    let Some(source) = &variable.value_from else {
        return Ok(Some(expand(variable.value.as_deref().unwrap_or_default(), env)));
    };
    if let Some(field) = &source.field_ref {
        return match field_of(pod, &field.field_path, around) {
            Some(value) => Ok(Some(value)),
            None => Err(format!("`{}`: there is no field `{}`", variable.name, field.field_path)),
        };
    }
    if let Some(key) = &source.config_map_key_ref {
        let found = around.config_maps.get(&key.name).and_then(|map| map.data.as_ref()?.get(&key.key));
        return match found {
            Some(value) => Ok(Some(value.clone())),
            None if key.optional == Some(true) => Ok(None),
            None => {
                Err(format!("`{}`: there is no key `{}` in ConfigMap `{}`", variable.name, key.key, key.name))
            }
        };
    }
    Err(format!("`{}`: a lab knows values, fields and ConfigMaps, no other sources", variable.name))
}

fn field_of(pod: &Pod, path: &str, around: &Surroundings<'_>) -> Option<String> {
    let of_map = |map: &Option<BTreeMap<String, String>>, key: &str| {
        let key = key.strip_prefix("['")?.strip_suffix("']")?;
        Some(map.as_ref().and_then(|map| map.get(key)).cloned().unwrap_or_default())
    };
    let all = |ips: &[IpAddr]| ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let first = |ips: &[IpAddr]| ips.first().map(ToString::to_string).unwrap_or_default();
    let (metadata, spec) = (&pod.metadata, pod.spec.as_ref()?);
    match path {
        "metadata.name" => Some(name(metadata).to_owned()),
        "metadata.namespace" => Some(namespace(metadata).to_owned()),
        "metadata.uid" => metadata.uid.clone(),
        "spec.nodeName" => spec.node_name.clone(),
        "spec.serviceAccountName" => {
            Some(spec.service_account_name.clone().unwrap_or_else(|| "default".to_owned()))
        }
        "status.podIP" => Some(first(around.ips)),
        "status.podIPs" => Some(all(around.ips)),
        "status.hostIP" => Some(first(around.host_ips)),
        "status.hostIPs" => Some(all(around.host_ips)),
        _ => match path.strip_prefix("metadata.labels") {
            Some(key) => of_map(&metadata.labels, key),
            None => of_map(&metadata.annotations, path.strip_prefix("metadata.annotations")?),
        },
    }
}

/// Replaces `$(NAME)` by the variable's value. `$$` is a dollar; what is not known stays as it is.
fn expand(text: &str, env: &[(String, String)]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix("$$") {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix("$(").and_then(|rest| rest.split_once(')')) {
            match env.iter().find(|(known, _)| known == name) {
                Some((_, value)) => out.push_str(value),
                None => out.push_str(&rest[..name.len() + 3]),
            }
            rest = after;
        } else {
            out.push('$');
            rest = &rest[1..];
        }
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::store::tests::{objects, store};

    fn planned(container: &str) -> Result<ContainerPlan, String> {
        let yaml = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: a, namespace: x, labels: {{app: web}}}}\n\
             spec: {{nodeName: node1, containers: [{{name: main, {container}}}]}}\n"
        );
        let config = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings}\ndata: {level: high}\n";
        let manifest::Object::ConfigMap(map) = objects(config).remove(0) else { panic!("no ConfigMap") };
        let pod = store(&yaml).0.pod("x", "a").unwrap().clone();
        let around = Surroundings {
            programs: Path::new("/opt/ambit"),
            ips: &["10.244.1.2".parse().unwrap(), "fd00::2".parse().unwrap()],
            host_ips: &["10.240.0.11".parse().unwrap()],
            config_maps: &BTreeMap::from([("settings".to_owned(), *map)]),
        };
        blueprint(&pod, &around).map(|mut blueprint| blueprint.main.remove(0))
    }

    fn variable(plan: &ContainerPlan, name: &str) -> String {
        plan.env.iter().find(|(known, _)| known == name).map(|(_, v)| v.clone()).unwrap_or_default()
    }

    #[test]
    fn command_and_arguments_are_one() {
        let plan =
            planned("command: [serve], args: [--name, \"$(HOSTNAME)\", \"$(NOBODY)\", \"$$5\"]").unwrap();
        assert_eq!(plan.command, ["serve", "--name", "a", "$(NOBODY)", "$5"]);
        assert!(variable(&plan, "PATH").starts_with("/opt/ambit:"));
    }

    #[test]
    fn variables_come_from_values_fields_and_config_maps() {
        let field = |name: &str, path: &str| {
            format!("{{name: {name}, valueFrom: {{fieldRef: {{fieldPath: {path}}}}}}}")
        };
        let env = [
            field("IP", "status.podIP"),
            field("NODE", "spec.nodeName"),
            field("APP", "\"metadata.labels['app']\""),
            "{name: BOTH, value: \"$(IP) on $(NODE)\"}".to_owned(),
            "{name: LEVEL, valueFrom: {configMapKeyRef: {name: settings, key: level}}}".to_owned(),
        ];
        let plan = planned(&format!("command: [s], env: [{}]", env.join(", "))).unwrap();
        assert_eq!(variable(&plan, "BOTH"), "10.244.1.2 on node1");
        assert_eq!((variable(&plan, "APP"), variable(&plan, "LEVEL")), ("web".into(), "high".into()));
    }

    #[test]
    fn what_cannot_be_run_says_why() {
        assert_eq!(
            planned("image: nginx").unwrap_err(),
            "container `main`: it has no `command`; a lab runs programs of this machine, not images"
        );
        let env = "command: [s], env: [{name: A, valueFrom: {fieldRef: {fieldPath: status.phase}}}]";
        assert_eq!(planned(env).unwrap_err(), "container `main`: `A`: there is no field `status.phase`");
    }
}
