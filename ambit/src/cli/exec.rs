//! `exec`: a command in a pod, with the caller's terminal and the command's exit status.

use std::ffi::OsString;
use std::process::ExitCode;
use std::str::FromStr;

use super::console::complain;
use super::{call, foreign};
use crate::enter::Entry;
use crate::lab::api::{PodReference, Reply, Request};
use crate::lab::place::Place;

/// Runs a command in a pod.
#[derive(Debug, clap::Args)]
pub(super) struct Exec {
    /// NS/POD, or NS/deploy/NAME for any pod of a deployment.
    #[arg(value_name = "NS/POD|NS/deploy/NAME")]
    pod: Target,
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    namespace: String,
    pod: PodReference,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let parts: Vec<&str> = s.split('/').collect();
        let (namespace, pod) = match parts[..] {
            _ if parts.contains(&"") => return Err("a part of it is empty".to_owned()),
            [namespace, pod] => (namespace, PodReference::Pod(pod.to_owned())),
            [namespace, "deploy" | "deployment", name] => {
                (namespace, PodReference::Deployment(name.to_owned()))
            }
            [namespace, "pod", name] => (namespace, PodReference::Pod(name.to_owned())),
            _ => return Err("write NS/POD or NS/deploy/NAME".to_owned()),
        };
        Ok(Self { namespace: namespace.to_owned(), pod })
    }
}

impl Exec {
    pub(super) fn run(self, place: &Place) -> ExitCode {
        let Target { namespace, pod } = self.pod;
        let entrance = match call(place, &Request::Enter { namespace, pod }) {
            Ok(Reply::Entrance(entrance)) => entrance,
            Ok(Reply::Refused(why)) => {
                why.into_iter().for_each(complain);
                return ExitCode::FAILURE;
            }
            Ok(other) => return foreign(&other),
            Err(code) => return code,
        };
        let entry = Entry {
            net: Some(entrance.net),
            mnt: Some(entrance.mnt),
            cgroup: Some(entrance.cgroup),
            dir: entrance.dir,
            command: self.command,
            ..Entry::default()
        };
        // What a terminal needs is the caller's, everything else the pod's.
        let mut env = entrance.env;
        for name in ["TERM", "LANG", "COLUMNS", "LINES"] {
            if let Ok(value) = std::env::var(name)
                && !env.iter().any(|(known, _)| known == name)
            {
                env.push((name.to_owned(), value));
            }
        }
        let error = entry.become_command(Some(&env));
        complain(error.to_string());
        ExitCode::from(error.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_named_with_its_namespace() {
        let target = |text: &str| text.parse::<Target>().map(|target| target.pod);
        assert_eq!(target("shop/redis-0").unwrap(), PodReference::Pod("redis-0".into()));
        assert_eq!(target("shop/deploy/redis").unwrap(), PodReference::Deployment("redis".into()));
        for bad in ["redis", "/redis", "shop/", "shop/svc/redis", "a/b/c/d"] {
            assert!(target(bad).is_err(), "{bad}");
        }
    }
}
