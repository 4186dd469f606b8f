//! How a deployment's pods are replaced by those of another template. Pure.

use std::collections::BTreeSet;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// How pods are replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Replacement {
    /// All end before any is made anew.
    Recreate,
    /// Never more than so many beyond those that are wanted, nor so many fewer available.
    Rolling { surge: usize, unavailable: usize },
    /// Not at all for now.
    Paused,
}

/// A pod, as far as a rollout asks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Replica<'a> {
    pub(super) name: &'a str,
    /// It is of the present template.
    pub(super) is_current: bool,
    pub(super) is_ending: bool,
    pub(super) is_ready: bool,
    /// It has been ready for long enough.
    pub(super) is_available: bool,
}

/// What is to be done now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Moves<'a> {
    pub(super) end: BTreeSet<&'a str>,
    pub(super) make: BTreeSet<String>,
}

impl Replacement {
    /// What a deployment says, with Kubernetes' defaults: a quarter more, rounded up, and a quarter fewer, rounded down.
    pub(super) fn of(deployment: &Deployment) -> Self {
        let Some(spec) = &deployment.spec else { return Self::Paused };
        if spec.paused == Some(true) {
            return Self::Paused;
        }
        let strategy = spec.strategy.as_ref();
        if strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate") {
            return Self::Recreate;
        }
        let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
        let wanted = usize::try_from(spec.replicas.unwrap_or(1)).unwrap_or(0);
        let share = |value: Option<&IntOrString>, up: bool| match value {
            Some(IntOrString::Int(number)) => usize::try_from(*number).unwrap_or(0),
            Some(IntOrString::String(text)) => percent_of(text, wanted, up),
            None => percent_of("25%", wanted, up),
        };
        let surge = share(rolling.and_then(|rolling| rolling.max_surge.as_ref()), true);
        let unavailable = share(rolling.and_then(|rolling| rolling.max_unavailable.as_ref()), false);
        // Neither more nor fewer would be a rollout that never moves.
        let unavailable = if surge == 0 { unavailable.max(1) } else { unavailable };
        Self::Rolling { surge, unavailable }
    }

    /// How many of the wanted must be available.
    pub(super) fn least(&self, wanted: usize) -> usize {
        match self {
            Self::Rolling { unavailable, .. } => wanted.saturating_sub(*unavailable),
            Self::Recreate | Self::Paused => wanted,
        }
    }
}

/// A share that is no percentage is none, as validation says before.
fn percent_of(text: &str, whole: usize, up: bool) -> usize {
    let percent: usize = text.strip_suffix('%').and_then(|digits| digits.parse().ok()).unwrap_or(0);
    let hundredfold = whole.saturating_mul(percent);
    if up { hundredfold.div_ceil(100) } else { hundredfold / 100 }
}

/// The next moves. `wanted` are the names that shall be there in the end, `taken` those that cannot be given to a new pod,
/// `extra(n)` the names of those that a rollout adds for its time.
pub(super) fn moves<'a>(
    strategy: &Replacement,
    wanted: &BTreeSet<String>,
    pods: &[Replica<'a>],
    taken: &BTreeSet<&str>,
    extra: impl Fn(usize) -> String,
) -> Moves<'a> {
    let mut moves = Moves::default();
    let alive = || pods.iter().filter(|pod| !pod.is_ending);
    let is_wanted = |pod: &Replica<'_>| wanted.contains(pod.name);
    let is_outdated = |pod: &&Replica<'_>| !pod.is_current && *strategy != Replacement::Paused;
    let outdated = alive().filter(is_outdated).count();
    let (surge, unavailable) = match *strategy {
        Replacement::Recreate if pods.iter().any(|pod| !pod.is_current) => {
            moves.end.extend(alive().filter(is_outdated).map(|pod| pod.name));
            return moves;
        }
        Replacement::Rolling { surge, unavailable } => (surge, unavailable),
        Replacement::Recreate | Replacement::Paused => (0, 0),
    };
    // Additional pods stay until those that are to stay are there.
    let complete = alive().filter(|pod| is_wanted(pod) && pod.is_current && pod.is_available).count();
    let helps = |pod: &Replica<'_>| outdated > 0 || (pod.is_ready && complete < wanted.len());
    let helpers: BTreeSet<String> = (0..surge).map(&extra).collect();
    for pod in alive().filter(|pod| !is_wanted(pod) && !is_outdated(pod)) {
        if !(helpers.contains(pod.name) && helps(pod)) {
            moves.end.insert(pod.name);
        }
    }
    let mut available = alive().filter(|pod| pod.is_available && !moves.end.contains(pod.name)).count();
    // Who serves nobody goes first, and who is not to stay anyhow.
    let mut old: Vec<&Replica<'_>> = alive().filter(is_outdated).collect();
    old.sort_by_key(|pod| (pod.is_available, is_wanted(pod)));
    for pod in old {
        if pod.is_available {
            if available <= wanted.len().saturating_sub(unavailable) {
                continue;
            }
            available -= 1;
        }
        moves.end.insert(pod.name);
    }
    let mut count = alive().filter(|pod| !moves.end.contains(pod.name)).count();
    let missing = wanted.iter().cloned();
    let added = helpers.into_iter().take(surge.min(outdated));
    for name in missing.chain(added) {
        if count < wanted.len() + surge && !taken.contains(name.as_str()) {
            count += 1;
            moves.make.insert(name);
        }
    }
    moves
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn strategy(yaml: &str) -> Replacement {
        let text = format!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web, namespace: x}}\n\
             spec: {{replicas: 3{yaml}, selector: {{matchLabels: {{app: web}}}}, template: {{metadata: {{labels: {{app: web}}}}, \
             spec: {{containers: [{{name: m, command: [s]}}]}}}}}}\n"
        );
        let object = crate::lab::store::tests::objects(&text).remove(0);
        let manifest::Object::Deployment(deployment) = object else { panic!("no Deployment") };
        Replacement::of(&deployment)
    }

    #[test]
    fn shares_are_read_as_kubernetes_reads_them() {
        let rolling = |surge, unavailable| Replacement::Rolling { surge, unavailable };
        let update = |what: &str| strategy(&format!(", strategy: {{rollingUpdate: {{{what}}}}}"));
        assert_eq!(strategy(""), rolling(1, 0));
        assert_eq!(update("maxSurge: 0"), rolling(0, 1));
        assert_eq!(update("maxSurge: 50%, maxUnavailable: 50%"), rolling(2, 1));
        assert_eq!(update("maxSurge: 2, maxUnavailable: 2"), rolling(2, 2));
        assert_eq!(strategy(", strategy: {type: Recreate}"), Replacement::Recreate);
        assert_eq!(strategy(", paused: true"), Replacement::Paused);
    }

    #[derive(Clone, Debug)]
    struct Model {
        name: String,
        is_current: bool,
        is_ending: bool,
        is_ready: bool,
    }

    fn step(strategy: &Replacement, wanted: &BTreeSet<String>, pods: &mut Vec<Model>) -> bool {
        let replicas: Vec<Replica<'_>> = pods
            .iter()
            .map(|p| Replica {
                name: &p.name,
                is_current: p.is_current,
                is_ending: p.is_ending,
                is_ready: p.is_ready,
                is_available: p.is_ready && !p.is_ending,
            })
            .collect();
        let taken = pods.iter().map(|p| p.name.as_str()).collect();
        let extra = |n| format!("web-{}", wanted.len() + n);
        let Moves { end, make } = moves(strategy, wanted, &replicas, &taken, extra);
        let end: BTreeSet<String> = end.into_iter().map(str::to_owned).collect();
        let moved = !end.is_empty() || !make.is_empty();
        pods.iter_mut().filter(|p| end.contains(&p.name)).for_each(|p| p.is_ending = true);
        let new = |name| Model { name, is_current: true, is_ending: false, is_ready: false };
        pods.extend(make.into_iter().map(new));
        moved
    }

    proptest! {
        #[test]
        fn a_rollout_keeps_its_bounds_and_comes_to_its_end(
            replicas in 1usize..6,
            surge in 0usize..4,
            unavailable in 0usize..4,
            luck in prop::collection::vec(any::<u8>(), 400),
        ) {
            let unavailable = if surge == 0 { unavailable.max(1) } else { unavailable };
            let strategy = Replacement::Rolling { surge, unavailable };
            let wanted: BTreeSet<String> = (0..replicas).map(|n| format!("web-{n}")).collect();
            let old = |name: &String| Model { name: name.clone(), is_current: false, is_ending: false, is_ready: true };
            let mut pods: Vec<Model> = wanted.iter().map(old).collect();
            for (n, luck) in luck.into_iter().enumerate() {
                while step(&strategy, &wanted, &mut pods) {
                    let serving = pods.iter().filter(|p| p.is_ready && !p.is_ending).count();
                    prop_assert!(serving + unavailable >= replicas, "{pods:?}");
                    let alive = pods.iter().filter(|p| !p.is_ending).count();
                    prop_assert!(alive <= replicas + surge, "{pods:?}");
                }
                // Another one is made ready, or one that ends is gone, in any order.
                let waiting: Vec<usize> =
                    (0..pods.len()).filter(|n| pods[*n].is_ending || !pods[*n].is_ready).collect();
                let Some(chosen) = (!waiting.is_empty()).then(|| waiting[usize::from(luck) % waiting.len()]) else {
                    prop_assert!(n > 0);
                    break;
                };
                if pods[chosen].is_ending {
                    pods.remove(chosen);
                } else {
                    pods[chosen].is_ready = true;
                }
            }
            let names: BTreeSet<String> = pods.iter().map(|p| p.name.clone()).collect();
            prop_assert_eq!(names, wanted);
            prop_assert!(pods.iter().all(|p| p.is_current && p.is_ready));
        }
    }

    #[test]
    fn all_end_before_any_is_made_anew_where_that_is_asked() {
        let wanted: BTreeSet<String> = ["web-0".to_owned(), "web-1".to_owned()].into();
        let old = |n: usize| Model {
            name: format!("web-{n}"),
            is_current: false,
            is_ending: false,
            is_ready: true,
        };
        let mut pods = vec![old(0), old(1)];
        while step(&Replacement::Recreate, &wanted, &mut pods) {}
        assert!(pods.iter().all(|p| p.is_ending), "{pods:?}");
        pods.remove(0);
        assert!(!step(&Replacement::Recreate, &wanted, &mut pods), "one is still there");
        pods.clear();
        assert!(step(&Replacement::Recreate, &wanted, &mut pods));
        assert!(pods.len() == 2 && pods.iter().all(|p| p.is_current));
    }
}
