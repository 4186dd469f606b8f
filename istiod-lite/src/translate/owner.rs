//! What manages a pod.

use k8s_openapi::api::core::v1::Pod;
use manifest::label;
use model::WorkloadKind;

/// What manages a pod, and its name: a ReplicaSet stands for its Deployment, a Job for its CronJob where it looks like
/// one of a series.
pub(super) fn owner(pod: &Pod) -> (WorkloadKind, String) {
    let own_name = pod.metadata.name.clone().unwrap_or_default();
    let owners = pod.metadata.owner_references.as_deref().unwrap_or_default();
    let Some(owner) = owners.iter().find(|owner| owner.controller == Some(true)) else {
        return (WorkloadKind::Pod, own_name);
    };
    let name = owner.name.as_str();
    match owner.kind.as_str() {
        "ReplicaSet" => {
            let hash = label(&pod.metadata, "pod-template-hash").unwrap_or_default();
            let deployment = name.strip_suffix(hash).and_then(|rest| rest.strip_suffix('-'));
            let deployment = deployment.filter(|rest| !hash.is_empty() && !rest.is_empty());
            (WorkloadKind::Deployment, deployment.unwrap_or(name).to_owned())
        }
        "Job" => match name.rsplit_once('-') {
            // A CronJob names its Jobs by the minute, in seconds or minutes since 1970.
            Some((series, time))
                if (8..=10).contains(&time.len()) && time.bytes().all(|b| b.is_ascii_digit()) =>
            {
                (WorkloadKind::CronJob, series.to_owned())
            }
            _ => (WorkloadKind::Job, name.to_owned()),
        },
        "CronJob" => (WorkloadKind::CronJob, name.to_owned()),
        // DaemonSets, StatefulSets and the like keep their pods up as a Deployment does.
        _ => (WorkloadKind::Deployment, name.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use manifest::Object;

    fn of(metadata: &str) -> (WorkloadKind, String) {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: web-abc-1, {metadata}}}\nspec: {{containers: [{{name: c}}]}}\n"
        );
        let mut parsed = manifest::parse("p.yaml", &text);
        let Some(Object::Pod(pod)) = parsed.documents.pop().map(|d| d.object) else {
            panic!("{:?}", parsed.problems)
        };
        owner(&pod)
    }

    fn owned(kind: &str, name: &str) -> String {
        format!(
            "ownerReferences: [{{apiVersion: x/v1, kind: {kind}, name: {name}, uid: u, controller: true}}]"
        )
    }

    #[test]
    fn a_replica_set_stands_for_its_deployment() {
        let labels = "labels: {pod-template-hash: abc}";
        let deployment = of(&format!("{labels}, {}", owned("ReplicaSet", "web-abc")));
        assert_eq!(deployment, (WorkloadKind::Deployment, "web".to_owned()));
        assert_eq!(of(&owned("ReplicaSet", "web-abc")).1, "web-abc");
    }

    #[test]
    fn a_job_of_a_series_is_a_cron_job() {
        assert_eq!(of(&owned("Job", "backup-28401120")), (WorkloadKind::CronJob, "backup".to_owned()));
        assert_eq!(of(&owned("Job", "import-2")), (WorkloadKind::Job, "import-2".to_owned()));
    }

    #[test]
    fn a_bare_pod_is_its_own() {
        assert_eq!(of("labels: {}"), (WorkloadKind::Pod, "web-abc-1".to_owned()));
        assert_eq!(of(&owned("StatefulSet", "db")), (WorkloadKind::Deployment, "db".to_owned()));
    }
}
