//! What a container wants done before it is asked to end.

use std::time::Duration;

use k8s_openapi::api::core::v1::{self as core, Container, LifecycleHandler};
use tokio::time::sleep;

use super::probe::{Ask, Standpoint};

/// A `preStop` hook.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Hook {
    /// A command in the pod, or a page of it.
    Ask(Ask),
    Sleep(Duration),
}

impl Hook {
    /// Reads a hook.
    ///
    /// # Errors
    /// A sentence about one that a lab cannot run.
    pub(super) fn of(handler: &LifecycleHandler, container: &Container) -> Result<Self, String> {
        if let Some(sleep) = &handler.sleep {
            return Ok(Self::Sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0))));
        }
        let LifecycleHandler { exec, http_get, .. } = handler.clone();
        if exec.is_none() && http_get.is_none() {
            return Err("a lab knows the hooks exec, httpGet and sleep".to_owned());
        }
        Ask::of(&core::Probe { exec, http_get, ..core::Probe::default() }, container).map(Self::Ask)
    }

    /// Runs it for `patience` at most. That it fails keeps nobody alive.
    pub(super) async fn run(&self, at: &Standpoint<'_>, patience: Duration) {
        match self {
            Self::Ask(ask) => {
                if !ask.succeeds(at, patience).await {
                    tracing::warn!(hook = ?ask, "a container's preStop hook failed");
                }
            }
            Self::Sleep(time) => sleep((*time).min(patience)).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hook_is_a_command_a_page_or_a_pause() {
        let container: Container = serde_json::from_str(r#"{"name": "m"}"#).unwrap();
        let hook = |json: &str| Hook::of(&serde_json::from_str(json).unwrap(), &container);
        assert_eq!(hook(r#"{"sleep": {"seconds": 3}}"#), Ok(Hook::Sleep(Duration::from_secs(3))));
        let exec = Ask::Exec(vec!["sync".to_owned()]);
        assert_eq!(hook(r#"{"exec": {"command": ["sync"]}}"#), Ok(Hook::Ask(exec)));
        assert!(matches!(hook(r#"{"httpGet": {"port": 80}}"#), Ok(Hook::Ask(Ask::Http { port: 80, .. }))));
        assert!(hook(r#"{"tcpSocket": {"port": 80}}"#).unwrap_err().contains("exec, httpGet and sleep"));
    }
}
