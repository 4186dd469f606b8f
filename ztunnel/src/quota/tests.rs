use telemetry::metrics::{Exposition, Registry};

use super::*;

fn quotas(settings: &Settings, descriptors: u64) -> (Quotas, Exposition) {
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let bounds = Bounds::derive(settings, Machine { descriptors, memory: 1 << 30 });
    (Quotas::new(bounds, metrics), Exposition::new(registry))
}

fn count(mut take: impl FnMut() -> Result<Permit, Excess>) -> (Vec<Permit>, Excess) {
    let mut permits = Vec::new();
    loop {
        match take() {
            Ok(permit) => permits.push(permit),
            Err(excess) => return (permits, excess),
        }
    }
}

#[test]
fn a_greedy_pod_leaves_something_for_the_others() {
    let (quotas, metrics) = quotas(&Settings::default(), 1_064);
    let greedy = quotas.account(&PodUid::new("greedy"));
    let (held, excess) = count(|| greedy.admit(Amount::CONNECTION));
    assert_eq!(held.len(), 800, "four fifths of the thousand that the reserve leaves");
    assert!(matches!(excess, Excess::Quota { held: 800, most: 800, .. }), "{excess}");
    for (name, some) in [("second", 100), ("third", 20)] {
        let other = quotas.account(&PodUid::new(name));
        let (mine, _) = count(|| other.admit(Amount::CONNECTION));
        assert!(mine.len() > some, "{name} got {}", mine.len());
        std::mem::forget(mine);
    }
    let text = metrics.render(None).body;
    assert!(text.contains("ambit_quota_refusals_total{reason=\"connections\"} 1\n"), "{text}");
    assert!(text.contains("ambit_quota_refusals_total{reason=\"descriptors\"} 2\n"), "{text}");
}

#[test]
fn what_is_refused_takes_nothing() {
    let settings = Settings { pod_streams: Some(1), ..Settings::default() };
    let (quotas, _) = quotas(&settings, 1_064);
    let account = quotas.account(&PodUid::new("a"));
    let first = account.admit(Amount::STREAM).unwrap();
    let excess = account.admit(Amount::STREAM).unwrap_err();
    assert_eq!(excess.lack(), Lack::Of(Resource::Streams));
    let shown = quotas.shown();
    assert_eq!((shown.used["streams"], shown.used["descriptors"]), (1, 1));
    assert_eq!(shown.pods[0].at_limit, ["streams"]);
    assert_eq!(shown.pods[0].refused["streams"], 1);
    drop(first);
    assert_eq!(quotas.shown().used["descriptors"], 0);
    drop(account.admit(Amount::STREAM).unwrap());
}

#[test]
fn an_account_is_one_for_all_who_serve_the_pod_and_ends_with_them() {
    let (quotas, _) = quotas(&Settings::default(), 1_064);
    let uid = PodUid::new("a");
    let (one, other) = (quotas.account(&uid), quotas.account(&uid));
    let _listeners = one.force(Amount::of(Resource::Descriptors, 6));
    assert_eq!(other.used(Resource::Descriptors), 6);
    drop((one, other));
    assert_eq!(quotas.shown().pods.len(), 1, "the permit needs it");
    drop(_listeners);
    assert_eq!(quotas.shown().pods.len(), 0);
}

#[test]
fn windows_stay_within_the_pods_buffer() {
    let settings = Settings { pod_buffer: Some(runtime::ByteSize(1 << 20)), ..Settings::default() };
    let (quotas, _) = quotas(&settings, 20_000);
    let account = quotas.account(&PodUid::new("a"));
    let (held, excess) = count(|| account.window(16 << 20).map(|(_, permit)| permit));
    assert_eq!(held.len(), 16, "the smallest that there is");
    assert_eq!(excess.lack(), Lack::Of(Resource::Memory));
    assert!(account.used(Resource::Memory) <= 1 << 20);
}

#[test]
fn slow_readers_make_buffers_small_and_not_for_ever() {
    let settings = Settings { pod_buffer: Some(runtime::ByteSize(200_000)), ..Settings::default() };
    let (quotas, _) = quotas(&settings, 20_000);
    let account = quotas.account(&PodUid::new("a"));
    (0..3).for_each(|_| account.hold(65_536));
    assert!(!account.is_scarce());
    account.hold(65_536);
    assert!(account.is_scarce());
    (0..2).for_each(|_| account.let_go(65_536));
    assert!(!account.is_scarce());
}

#[test]
fn when_memory_is_short_those_with_much_get_no_more() {
    let (quotas, _) = quotas(&Settings::default(), 20_000);
    let (rich, poor) = (quotas.account(&PodUid::new("rich")), quotas.account(&PodUid::new("poor")));
    let _held: Vec<_> = (0..10).map(|_| rich.admit(Amount::CONNECTION).unwrap()).collect();
    quotas.press(true);
    assert_eq!(rich.admit(Amount::CONNECTION).unwrap_err(), Excess::Pressed);
    let _one = poor.admit(Amount::CONNECTION).unwrap();
    quotas.press(false);
    drop(rich.admit(Amount::CONNECTION).unwrap());
}
