//! The sandbox of a pod: its namespaces and its cgroup.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use super::blueprint::Blueprint;
use super::pod::Job;
use super::{Entrance, PodName};
use crate::enter::Entry;
use crate::lab::address::RESOLVER;
use crate::lab::cgroup;
use crate::lab::network::{PodLink, mounts};
use crate::lab::place::pod_folder;

/// The namespaces and the cgroup of a pod.
pub(super) struct Sandbox {
    /// Its own network; none where it uses the node's.
    pub(super) link: Option<PodLink>,
    /// Held open, it keeps the mounts alive.
    mounts: OwnedFd,
    pub(super) cgroup: PathBuf,
    /// How to get in; without a command.
    pub(super) entry: Entry,
}

/// What is left of a sandbox must be gone within this.
const CLEAN_UP: Duration = Duration::from_secs(10);

impl Job {
    /// Makes a sandbox.
    pub(super) async fn sandbox(&self) -> Result<Sandbox, String> {
        let PodName { namespace, name, .. } = &self.name;
        let folder = pod_folder(namespace, name);
        let families = self.families();
        // A pod on its node's network has what the node has.
        let resolver = if self.host.is_some() { families.resolver() } else { RESOLVER.into() };
        let resolv_conf = mounts::resolv_conf(namespace, resolver);
        let overlays = mounts::write(&self.place.pod(namespace, name), &resolv_conf);
        let overlays = overlays.map_err(|error| error.to_string())?;
        let cgroup = self.cgroups.join(&folder);
        cgroup::create(&cgroup).map_err(|error| format!("{}: {error}", cgroup.display()))?;
        let link = match self.host {
            Some(host) => {
                let made = self.node.pod(host, families, self.place.netns(&folder)).await;
                Some(made.map_err(|error| error.to_string())?)
            }
            None => None,
        };
        let mounts = match mounts::namespace(overlays) {
            Ok(mounts) => mounts,
            Err(error) => {
                if let Some(link) = &link {
                    // The failure before is the one to be told.
                    let _ = self.node.remove(link).await;
                }
                return Err(format!("its mounts: {error}"));
            }
        };
        let entry = Entry {
            net: Some(link.as_ref().map_or_else(|| self.node.path.clone(), |link| link.path.clone())),
            mnt: Some(format!("/proc/{}/fd/{}", std::process::id(), mounts.as_raw_fd()).into()),
            cgroup: Some(cgroup.clone()),
            ..Entry::default()
        };
        Ok(Sandbox { link, mounts, cgroup, entry })
    }

    pub(super) fn stays_behind(&self, error: &dyn std::fmt::Display) {
        tracing::error!(pod = %self.name, %error, "something of a pod stays behind");
    }

    /// Ends all that runs in a sandbox, at once, and removes it.
    pub(super) async fn tear_down(&self, sandbox: Sandbox) {
        let Sandbox { link, cgroup: group, mounts, .. } = sandbox;
        let ended = tokio::task::spawn_blocking(move || {
            cgroup::kill(&group)?;
            if !cgroup::wait_until_empty(&group, CLEAN_UP)? {
                return Err(std::io::Error::other("processes of the pod do not die"));
            }
            cgroup::remove(&group)
        });
        match ended.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.stays_behind(&error),
            Err(error) => self.stays_behind(&error),
        }
        drop(mounts);
        if let Some(link) = &link
            && let Err(error) = self.node.remove(link).await
        {
            self.stays_behind(&error);
        }
    }
}

impl Sandbox {
    /// How to run a command in it, as its first container does.
    pub(super) fn entrance(&self, blueprint: &Blueprint) -> Entrance {
        let first = blueprint.main.first();
        Entrance {
            net: self.entry.net.clone().unwrap_or_default(),
            mnt: self.entry.mnt.clone().unwrap_or_default(),
            cgroup: self.cgroup.clone(),
            env: first.map(|container| container.env.clone()).unwrap_or_default(),
            dir: first.and_then(|container| container.dir.clone()),
        }
    }
}
