//! The roster against a world that does what it says, and against one that does not.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn start() -> Instant {
    tokio::time::Instant::now().into_std()
}

fn key(name: &str) -> PodKey {
    let cookie = name.bytes().fold(7, |sum, byte| sum * 31 + u64::from(byte));
    PodKey::new(cookie, name).unwrap()
}

fn member(name: &str) -> Member {
    Member {
        uid: name.into(),
        name: name.into(),
        namespace: "shop".into(),
        service_account: "default".into(),
        v4: Some([10, 0, 0, 1].into()),
        v6: None,
        netns: "/run/netns/x".into(),
        existing: manifest::ExistingConnections::Keep,
        dns: true,
    }
}

fn members(names: &[&str]) -> BTreeMap<PodKey, Member> {
    names.iter().map(|name| (key(name), member(name))).collect()
}

/// A world in which every step succeeds, with the facts that matter for safety.
#[derive(Debug)]
struct World {
    now: Instant,
    captured: BTreeSet<PodKey>,
    /// ztunnel knows pods by UID alone.
    told: BTreeMap<String, PodKey>,
    serves: BTreeSet<PodKey>,
    withdrawing: BTreeSet<PodKey>,
    connections: usize,
    log: Vec<&'static str>,
}

impl World {
    fn new() -> Self {
        Self {
            now: start(),
            captured: BTreeSet::new(),
            told: BTreeMap::new(),
            serves: BTreeSet::new(),
            withdrawing: BTreeSet::new(),
            connections: 0,
            log: Vec::new(),
        }
    }

    /// Does all steps that are due, and checks each against the facts.
    fn settle(&mut self, roster: &mut Roster) {
        for _ in 0..1000 {
            let Some(step) = roster.next(self.now) else { return };
            let outcome = self.perform(&step);
            roster.done(&step, outcome, self.now);
            self.tell(roster);
        }
        panic!("the roster does not come to rest: {:?}", self.log);
    }

    fn perform(&mut self, step: &Step) -> Outcome {
        self.log.push(step.name());
        let key = step.key().clone();
        match step {
            Step::Prepare(_) => {
                self.told.insert(key.uid().to_owned(), key.clone());
                self.serves.retain(|served| served.uid() != key.uid());
                if self.captured.contains(&key) { Outcome::AlreadyCaptured } else { Outcome::Done }
            }
            Step::Capture(_) => {
                assert!(self.serves.contains(&key), "captured before ztunnel listens");
                self.captured.insert(key);
                Outcome::Done
            }
            Step::Release(_) => {
                self.captured.remove(&key);
                Outcome::Done
            }
            Step::Withdraw(_) => {
                assert!(!self.captured.contains(&key), "captured for longer than ztunnel listens");
                self.untell(&key);
                self.withdrawing.insert(key);
                Outcome::Done
            }
            Step::CountConnections(_) => Outcome::Connections(self.connections),
            Step::Tidy(_) => {
                assert!(!self.captured.contains(&key), "tidied while captured");
                self.untell(&key);
                Outcome::Done
            }
        }
    }

    fn untell(&mut self, key: &PodKey) {
        if self.told.get(key.uid()) == Some(key) {
            self.told.remove(key.uid());
        }
    }

    fn tell(&self, roster: &mut Roster) {
        let standing = |uid: &str| {
            let told = self.told.get(uid)?;
            Some(if self.serves.contains(told) { Standing::Served } else { Standing::Pending })
        };
        roster.heard(standing);
    }

    fn ztunnel_serves_all(&mut self, roster: &mut Roster) {
        self.serves = self.told.values().cloned().collect();
        for key in std::mem::take(&mut self.withdrawing) {
            roster.withdrawn(&key);
        }
        self.tell(roster);
    }

    fn take_log(&mut self) -> Vec<&'static str> {
        std::mem::take(&mut self.log)
    }
}

fn state_of(roster: &Roster, name: &str) -> State {
    roster.standings().find(|standings| standings.key.uid() == name).unwrap().state
}

fn all_there(_: &PodKey) -> bool {
    true
}

fn enrolled(names: &[&str]) -> (Roster, World) {
    let (mut roster, mut world) = (Roster::default(), World::new());
    roster.want(members(names), all_there);
    world.settle(&mut roster);
    world.ztunnel_serves_all(&mut roster);
    world.settle(&mut roster);
    world.take_log();
    (roster, world)
}

#[test]
fn capture_begins_when_ztunnel_listens_and_not_before() {
    let (mut roster, mut world) = (Roster::default(), World::new());
    roster.want(members(&["a"]), all_there);
    world.settle(&mut roster);
    assert_eq!(world.take_log(), ["prepare"]);
    assert_eq!(state_of(&roster, "a"), State::Pending);
    assert!(roster.is_told());
    world.ztunnel_serves_all(&mut roster);
    world.settle(&mut roster);
    assert_eq!(world.take_log(), ["capture"]);
    assert_eq!(state_of(&roster, "a"), State::Enrolled);
}

#[test]
fn a_pod_stays_captured_while_ztunnel_is_away() {
    let (mut roster, mut world) = enrolled(&["a"]);
    world.serves.clear();
    world.tell(&mut roster);
    world.settle(&mut roster);
    assert_eq!(world.take_log(), [""; 0]);
    let standings = roster.standings().next().unwrap();
    assert_eq!(standings.state, State::Enrolled);
    assert!(standings.reason.unwrap().contains("ztunnel does not serve it"));
}

#[test]
fn leaving_ends_capture_at_once_and_all_else_later() {
    let (mut roster, mut world) = enrolled(&["a"]);
    roster.want(BTreeMap::new(), all_there);
    world.settle(&mut roster);
    assert_eq!(world.take_log(), ["release"]);
    assert_eq!(roster.deadline(), Some(world.now + LINGER));

    world.now += LINGER;
    world.connections = 2;
    world.settle(&mut roster);
    assert_eq!(world.take_log(), ["withdraw"]);
    world.ztunnel_serves_all(&mut roster);
    world.settle(&mut roster);
    assert_eq!(world.take_log(), ["count_connections"], "its routing stays while connections need it");
    assert_eq!(state_of(&roster, "a"), State::Leaving);

    world.connections = 0;
    world.now = roster.deadline().unwrap();
    world.settle(&mut roster);
    assert_eq!(world.take_log(), ["count_connections", "tidy"]);
    assert_eq!(roster.standings().count(), 0);
}

#[test]
fn a_pod_that_has_ended_is_not_lingered_for() {
    let (mut roster, mut world) = enrolled(&["a"]);
    world.connections = 5;
    roster.want(BTreeMap::new(), |_| false);
    world.settle(&mut roster);
    world.ztunnel_serves_all(&mut roster);
    world.settle(&mut roster);
    assert_eq!(world.take_log(), ["release", "withdraw", "tidy"]);
}

#[test]
fn a_pod_that_ends_while_it_drains_is_tidied() {
    let (mut roster, mut world) = enrolled(&["a"]);
    world.connections = 5;
    roster.want(BTreeMap::new(), all_there);
    world.settle(&mut roster);
    world.now += LINGER;
    world.settle(&mut roster);
    world.ztunnel_serves_all(&mut roster);
    world.settle(&mut roster);
    world.take_log();
    roster.want(BTreeMap::new(), |_| false);
    world.settle(&mut roster);
    assert_eq!(world.take_log(), ["tidy"]);
}

#[test]
fn a_pod_may_come_back_while_it_leaves() {
    let (mut roster, mut world) = enrolled(&["a"]);
    roster.want(BTreeMap::new(), all_there);
    world.settle(&mut roster);
    world.now += LINGER;
    world.settle(&mut roster);
    world.take_log();
    roster.want(members(&["a"]), all_there);
    world.serves.clear();
    world.settle(&mut roster);
    assert_eq!(world.take_log(), ["prepare"]);
    world.ztunnel_serves_all(&mut roster);
    world.settle(&mut roster);
    assert_eq!(world.take_log(), ["capture"]);
    assert_eq!(state_of(&roster, "a"), State::Enrolled);
}

#[test]
fn what_an_earlier_process_captured_is_adopted() {
    let (mut roster, mut world) = (Roster::default(), World::new());
    world.captured.insert(key("a"));
    roster.adopt(key("a"), true);
    world.settle(&mut roster);
    assert_eq!(world.take_log(), [""; 0], "nothing is done before it is known what belongs to the mesh");
    assert_eq!(state_of(&roster, "a"), State::Enrolled);
    roster.want(members(&["a"]), all_there);
    world.settle(&mut roster);
    assert_eq!(world.take_log(), ["prepare"]);
    assert_eq!(state_of(&roster, "a"), State::Enrolled);
}

#[test]
fn what_an_earlier_process_captured_and_nobody_wants_is_let_go() {
    let (mut roster, mut world) = (Roster::default(), World::new());
    world.captured.insert(key("a"));
    roster.adopt(key("a"), true);
    roster.want(BTreeMap::new(), all_there);
    world.settle(&mut roster);
    assert_eq!(world.take_log(), ["release", "count_connections", "tidy"]);
}

#[test]
fn nothing_is_let_go_for_the_lack_of_an_object_that_may_be_there() {
    let (mut roster, mut world) = (Roster::default(), World::new());
    for name in ["a", "b"] {
        world.captured.insert(key(name));
        roster.adopt(key(name), true);
    }
    roster.want_so_far(members(&["a"]), |_| false);
    world.settle(&mut roster);
    assert_eq!(world.take_log(), ["prepare"]);
    assert_eq!(state_of(&roster, "b"), State::Enrolled);
    // Of who has been a member in this process it is known that it is none any more.
    roster.want_so_far(BTreeMap::new(), |_| false);
    world.settle(&mut roster);
    world.ztunnel_serves_all(&mut roster);
    world.settle(&mut roster);
    assert_eq!(world.captured, BTreeSet::from([key("b")]));
    roster.want(BTreeMap::new(), |_| false);
    world.settle(&mut roster);
    assert_eq!(world.captured, BTreeSet::new());
    assert_eq!(roster.standings().count(), 0);
}

#[test]
fn a_namespace_with_a_new_owner_is_free_for_it_though_not_all_is_known() {
    let of = |name: &str| PodKey::new(5, name).unwrap();
    let (mut roster, mut world) = (Roster::default(), World::new());
    world.captured.insert(of("a"));
    roster.adopt(of("a"), true);
    roster.want_so_far(BTreeMap::from([(of("b"), member("b"))]), all_there);
    world.settle(&mut roster);
    world.ztunnel_serves_all(&mut roster);
    world.settle(&mut roster);
    assert_eq!(world.captured, BTreeSet::from([of("b")]));
}

#[test]
fn a_pod_whose_sandbox_was_made_anew_is_another_one() {
    let (mut roster, mut world) = enrolled(&["a"]);
    let anew = PodKey::new(999, "a").unwrap();
    roster.want(BTreeMap::from([(anew.clone(), member("a"))]), |key| *key == anew);
    world.settle(&mut roster);
    assert_eq!(world.told["a"], anew);
    assert!(!roster.is_captured(&key("a")));
    world.ztunnel_serves_all(&mut roster);
    world.settle(&mut roster);
    assert!(roster.is_captured(&anew));
}

#[test]
fn a_namespace_that_passes_to_another_pod_is_let_go_of_before_it_is_captured_anew() {
    // Whatever the order of their names.
    for (former, next) in [("a", "b"), ("b", "a")] {
        let of = |name: &str| PodKey::new(5, name).unwrap();
        let (mut roster, mut world) = (Roster::default(), World::new());
        roster.want(BTreeMap::from([(of(former), member(former))]), all_there);
        world.settle(&mut roster);
        world.ztunnel_serves_all(&mut roster);
        world.settle(&mut roster);
        world.take_log();
        world.connections = 5;
        roster.want(BTreeMap::from([(of(next), member(next))]), all_there);
        world.settle(&mut roster);
        assert!(roster.is_told(), "who waits for another holds up nobody");
        assert_eq!(roster.deadline(), None);
        world.ztunnel_serves_all(&mut roster);
        world.settle(&mut roster);
        world.ztunnel_serves_all(&mut roster);
        world.settle(&mut roster);
        assert_eq!(world.take_log(), ["release", "withdraw", "tidy", "prepare", "capture"]);
        assert_eq!(world.captured, BTreeSet::from([of(next)]));
    }
}

#[test]
fn a_changed_pod_is_told_again_without_a_gap() {
    let (mut roster, mut world) = enrolled(&["a"]);
    let renamed = Member { service_account: "other".into(), ..member("a") };
    roster.want(BTreeMap::from([(key("a"), renamed)]), all_there);
    world.settle(&mut roster);
    assert_eq!(world.take_log(), ["prepare"]);
    assert!(world.captured.contains(&key("a")));
}

#[test]
fn a_failing_step_is_tried_again_after_longer_and_longer_pauses() {
    let (mut roster, mut now) = (Roster::default(), start());
    roster.want(members(&["a"]), all_there);
    let mut pauses = Vec::new();
    for _ in 0..7 {
        let step = roster.next(now).unwrap();
        roster.done(&step, Outcome::Failed("no room".to_owned()), now);
        assert_eq!(roster.next(now), None);
        let again = roster.deadline().unwrap();
        pauses.push((again - now).as_secs());
        now = again;
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
    let standings = roster.standings().next().unwrap();
    assert_eq!((standings.state, standings.reason.as_deref()), (State::Failed, Some("no room")));
    assert!(roster.is_told(), "one that cannot be told holds up nobody");
}

#[test]
fn a_refusal_of_ztunnel_is_shown() {
    let (mut roster, mut world) = (Roster::default(), World::new());
    roster.want(members(&["a"]), all_there);
    world.settle(&mut roster);
    roster.heard(|_| Some(Standing::Refused("port in use".to_owned())));
    let standings = roster.standings().next().unwrap();
    assert_eq!(standings.state, State::Failed);
    assert!(standings.reason.unwrap().contains("port in use"));
}

#[test]
fn a_ztunnel_without_redirection_has_nothing_captured_for_it() {
    let (mut roster, mut world) = (Roster::default(), World::new());
    roster.want(members(&["a"]), all_there);
    world.settle(&mut roster);
    roster.heard(|_| Some(Standing::Unsteerable));
    assert_eq!(roster.next(world.now), None);
    let standings = roster.standings().next().unwrap();
    assert_eq!(standings.state, State::Pending);
    assert!(standings.reason.unwrap().starts_with("this ztunnel cannot take eBPF redirection: "));
    assert!(roster.is_told());
    world.ztunnel_serves_all(&mut roster);
    world.settle(&mut roster);
    assert_eq!(state_of(&roster, "a"), State::Enrolled, "the next one can");
}

#[test]
fn a_pod_stays_captured_when_a_ztunnel_without_redirection_comes() {
    let (mut roster, world) = enrolled(&["a"]);
    roster.heard(|_| Some(Standing::Unsteerable));
    assert_eq!(roster.next(world.now), None);
    let standings = roster.standings().next().unwrap();
    assert_eq!(standings.state, State::Enrolled);
    assert!(standings.reason.unwrap().contains("this ztunnel cannot take eBPF redirection: "));
}

#[derive(Clone, Debug)]
enum Happening {
    Wanted(Vec<bool>, bool),
    ZtunnelAnswers,
    ZtunnelDies,
    Connections(usize),
    TimePasses(u64),
    StepFails,
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        (proptest::collection::vec(any::<bool>(), 3), any::<bool>())
            .prop_map(|(wanted, there)| Happening::Wanted(wanted, there)),
        Just(Happening::ZtunnelAnswers),
        Just(Happening::ZtunnelDies),
        (0..3_usize).prop_map(Happening::Connections),
        (0..60_000_u64).prop_map(Happening::TimePasses),
        Just(Happening::StepFails),
    ]
}

const NAMES: [&str; 3] = ["a", "b", "c"];

proptest! {
    /// The assertions of [`World::perform`] hold whatever happens, and once the world behaves all come to where they
    /// are wanted.
    #[test]
    fn order_is_kept_whatever_happens(happenings in proptest::collection::vec(happening(), 0..40)) {
        let (mut roster, mut world) = (Roster::default(), World::new());
        let mut wanted = BTreeMap::new();
        for happening in happenings {
            match happening {
                Happening::Wanted(which, there) => {
                    let names: Vec<_> = NAMES.into_iter().zip(which).filter(|(_, want)| *want).map(|(name, _)| name).collect();
                    wanted = members(&names);
                    roster.want(wanted.clone(), |_| there);
                }
                Happening::ZtunnelAnswers => world.ztunnel_serves_all(&mut roster),
                Happening::ZtunnelDies => {
                    world.serves.clear();
                    world.tell(&mut roster);
                }
                Happening::Connections(connections) => world.connections = connections,
                Happening::TimePasses(millis) => world.now += Duration::from_millis(millis),
                Happening::StepFails => {
                    if let Some(step) = roster.next(world.now) {
                        roster.done(&step, Outcome::Failed("as told".to_owned()), world.now);
                    }
                }
            }
            world.settle(&mut roster);
        }
        world.connections = 0;
        for _ in 0..20 {
            world.ztunnel_serves_all(&mut roster);
            world.settle(&mut roster);
            world.now += Duration::from_secs(60);
        }
        let captured: Vec<_> = world.captured.iter().cloned().collect();
        prop_assert_eq!(captured, wanted.keys().cloned().collect::<Vec<_>>());
        prop_assert_eq!(roster.standings().count(), wanted.len());
    }
}
