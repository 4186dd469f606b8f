//! The programs in the kernel, in network namespaces of our own. Needs root.

#[path = "redirection/bench.rs"]
mod bench;
#[path = "redirection/watch.rs"]
mod watch;

mod netns {
    use std::fs;
    use std::io::ErrorKind;
    use std::net::{Ipv4Addr, SocketAddr};

    use ebpf_loader::{
        BypassStorage, DEFAULT_MARK, DEFAULT_MASK, HandleError, Instance, ListenerMap, OpenError,
        OwnAddresses, PodKey, probe, slot,
    };

    use super::bench::{Bench, ELSEWHERE_V4, OWN_V4, Pod, config, dial, mark_of, socket};

    #[test]
    fn this_kernel_can_redirect() {
        probe().unwrap();
    }

    #[test]
    fn connections_that_leave_a_meshed_pod_are_marked() {
        let mut bench = Bench::new();
        let pod = bench.meshed_pod();
        for to in [ELSEWHERE_V4, "[fd00::9]:80", "[::ffff:10.66.0.9]:80"] {
            assert_eq!(pod.mark_after_connect(to), DEFAULT_MARK, "{to}");
        }
    }

    #[test]
    fn connections_within_the_pod_are_not_marked() {
        let mut bench = Bench::new();
        let pod = bench.meshed_pod();
        for to in
            ["127.0.0.1:1", "0.0.0.0:1", "10.66.0.1:1", "[::1]:1", "[fd00::1]:1", "[::ffff:10.66.0.1]:1"]
        {
            assert_eq!(pod.mark_after_connect(to), 0, "{to}");
        }
    }

    #[test]
    fn a_pod_without_ipv4_does_not_let_ipv4_pass() {
        let mut bench = Bench::new();
        let pod = Pod::new();
        let own = OwnAddresses::new(None, Some("fd00::1".parse().unwrap()));
        bench.instance().prepare(&pod.key, own).unwrap();
        let config = ebpf_loader::NsConfig { own, ..config() };
        bench.instance().capture(&pod.key, config, &pod.netns).unwrap();
        assert_eq!(pod.mark_after_connect(ELSEWHERE_V4), DEFAULT_MARK);
        assert_eq!(pod.mark_after_connect("10.66.0.1:80"), DEFAULT_MARK);
        assert_eq!(pod.mark_after_connect("[fd00::1]:80"), 0);
    }

    #[test]
    fn unmeshed_namespaces_are_untouched() {
        let mut bench = Bench::new();
        let _meshed = bench.meshed_pod();
        assert_eq!(Pod::new().mark_after_connect(ELSEWHERE_V4), 0);
    }

    #[test]
    fn a_forged_mark_does_not_escape() {
        let mut bench = Bench::new();
        let pod = bench.meshed_pod();
        for forged in [0x539, 0x111, 0x0400_0000, !DEFAULT_MARK] {
            let socket = pod.netns.run(|| socket(ELSEWHERE_V4)).unwrap();
            socket.set_mark(forged).unwrap();
            dial(&socket, ELSEWHERE_V4);
            let mark = mark_of(&socket);
            assert_eq!(mark & DEFAULT_MASK, DEFAULT_MARK);
            assert_eq!(mark & !DEFAULT_MASK, forged & !DEFAULT_MASK, "other bits are the application's");
        }
    }

    #[test]
    fn a_mark_is_taken_off_a_socket_that_then_stays_within_the_pod() {
        let mut bench = Bench::new();
        let pod = bench.meshed_pod();
        let used = pod.netns.run(|| socket(ELSEWHERE_V4)).unwrap();
        dial(&used, ELSEWHERE_V4);
        assert_eq!(mark_of(&used), DEFAULT_MARK);
        dial(&used, "127.0.0.1:1");
        assert_eq!(mark_of(&used), 0);
        let forged = pod.netns.run(|| socket(ELSEWHERE_V4)).unwrap();
        forged.set_mark(DEFAULT_MARK | 7).unwrap();
        dial(&forged, "127.0.0.1:1");
        assert_eq!(mark_of(&forged), 7);
    }

    #[test]
    fn datagrams_are_left_alone() {
        let mut bench = Bench::new();
        let pod = bench.meshed_pod();
        let datagram =
            pod.netns.run(|| socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None));
        let datagram = datagram.unwrap().unwrap();
        dial(&datagram, ELSEWHERE_V4);
        assert_eq!(mark_of(&datagram), 0);
    }

    #[test]
    fn an_exempt_socket_is_not_captured_and_keeps_its_mark() {
        let mut bench = Bench::new();
        let pod = bench.meshed_pod();
        let bypass = BypassStorage::from_fd(bench.instance().bypass().try_clone_to_owned().unwrap()).unwrap();
        for own_mark in [0, DEFAULT_MARK] {
            let exempt = pod.netns.run(|| socket(ELSEWHERE_V4)).unwrap();
            bypass.exempt(&exempt).unwrap();
            exempt.set_mark(own_mark).unwrap();
            dial(&exempt, ELSEWHERE_V4);
            assert_eq!(mark_of(&exempt), own_mark);
        }
        let file = fs::File::open("/proc/self/status").unwrap();
        assert!(bypass.exempt(&file).is_err(), "only sockets can be exempt");
    }

    #[test]
    fn handles_refuse_other_descriptors() {
        let bench = Bench::new();
        let bypass = bench.instance.as_ref().unwrap().bypass().try_clone_to_owned().unwrap();
        assert!(matches!(ListenerMap::from_fd(bypass), Err(HandleError::OtherMap { .. })));
        let file = fs::File::open("/proc/self/status").unwrap();
        assert!(matches!(BypassStorage::from_fd(file.into()), Err(HandleError::Info(_))));
    }

    /// 10.66.0.9 stands on `lo` here, so that connections to it come in by `lo` as those of marked sockets do.
    #[test]
    fn looped_connections_go_to_the_listener_and_nowhere_without_one() {
        let mut bench = Bench::new();
        let pod = Pod::new();
        pod.add_loopback_address(Ipv4Addr::new(10, 66, 0, 9));
        let elsewhere: SocketAddr = ELSEWHERE_V4.parse().unwrap();
        let app = pod.listen(elsewhere);
        let prepared = bench.instance().prepare(&pod.key, own()).unwrap();
        assert_eq!(pod.reach(elsewhere).unwrap(), app.port(), "prepared is not captured yet");

        bench.instance().capture(&pod.key, config(), &pod.netns).unwrap();
        assert_eq!(pod.reach(elsewhere).unwrap_err().kind(), ErrorKind::ConnectionRefused);

        let proxy = pod.listen(([127, 0, 0, 1], 15001).into());
        let map = ListenerMap::from_fd(prepared.listeners).unwrap();
        map.set(slot::OUTBOUND_V4, &proxy.socket).unwrap();
        assert_eq!(pod.reach(elsewhere).unwrap(), proxy.port());

        drop(proxy);
        assert_eq!(pod.reach(elsewhere).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        bench.instance().release(&pod.key).unwrap();
        let refused = pod.reach(elsewhere).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "what was marked still goes there alone");
        bench.instance().forget(&pod.key).unwrap();
        assert_eq!(pod.reach(elsewhere).unwrap(), app.port());
    }

    #[test]
    fn the_pods_own_address_is_left_to_the_application() {
        let mut bench = Bench::new();
        let pod = bench.meshed_pod();
        pod.add_loopback_address(OWN_V4);
        let own = SocketAddr::new(OWN_V4.into(), 80);
        let app = pod.listen(own);
        assert_eq!(pod.reach(own).unwrap(), app.port());
    }

    #[test]
    fn a_listener_map_takes_listeners_alone() {
        let mut bench = Bench::new();
        let pod = Pod::new();
        let prepared = bench.instance().prepare(&pod.key, own()).unwrap();
        let map = ListenerMap::from_fd(prepared.listeners).unwrap();
        let closed = pod.netns.run(|| socket(ELSEWHERE_V4)).unwrap();
        assert!(map.set(slot::INBOUND, &closed).is_err());
        let listener = pod.listen(([127, 0, 0, 1], 0).into());
        assert!(map.set(slot::COUNT as u32, &listener.socket).is_err());
        map.set(slot::INBOUND, &listener.socket).unwrap();
    }

    #[test]
    fn a_pod_must_be_prepared_before_it_is_captured() {
        let mut bench = Bench::new();
        let pod = Pod::new();
        let error = bench.instance().capture(&pod.key, config(), &pod.netns).unwrap_err();
        assert!(matches!(error, ebpf_loader::CaptureError::Unprepared));
        assert_eq!(pod.mark_after_connect(ELSEWHERE_V4), 0);
    }

    #[test]
    fn capture_outlives_the_process_and_is_adopted() {
        let mut bench = Bench::new();
        let pod = bench.meshed_pod();
        bench.instance = None;
        assert_eq!(pod.mark_after_connect(ELSEWHERE_V4), DEFAULT_MARK, "nobody has it open");

        bench.reopen();
        assert_eq!(pod.mark_after_connect(ELSEWHERE_V4), DEFAULT_MARK, "adopted");
        let pinned = bench.instance().pins().pods().unwrap();
        assert_eq!(pinned.len(), 1);
        assert_eq!(pinned[0].key, pod.key);
        assert_eq!(pinned[0].steered_in, Some(pod.netns.inode()));
        assert!(bench.instance().prepare(&pod.key, own()).unwrap().captured);
        bench.instance().capture(&pod.key, config(), &pod.netns).unwrap();

        bench.instance().forget(&pod.key).unwrap();
        assert_eq!(pod.mark_after_connect(ELSEWHERE_V4), 0);
        assert_eq!(bench.instance().pins().pods().unwrap(), []);
    }

    #[test]
    fn listeners_outlive_the_process_with_their_map() {
        let mut bench = Bench::new();
        let pod = Pod::new();
        pod.add_loopback_address(Ipv4Addr::new(10, 66, 0, 9));
        let prepared = bench.instance().prepare(&pod.key, own()).unwrap();
        let proxy = pod.listen(([127, 0, 0, 1], 15001).into());
        ListenerMap::from_fd(prepared.listeners).unwrap().set(slot::OUTBOUND_V4, &proxy.socket).unwrap();
        bench.instance().capture(&pod.key, config(), &pod.netns).unwrap();
        bench.instance = None;
        bench.reopen();
        bench.instance().prepare(&pod.key, own()).unwrap();
        assert_eq!(pod.reach(ELSEWHERE_V4.parse().unwrap()).unwrap(), proxy.port());
    }

    #[test]
    fn entries_of_no_pinned_pod_are_swept_at_start() {
        let mut bench = Bench::new();
        let pod = bench.meshed_pod();
        let folder = bench.instance().pins().root().join("pods").join(pod.key.to_string());
        bench.instance = None;
        fs::remove_dir_all(folder).unwrap();
        bench.reopen();
        assert!(bench.instance().meshed().unwrap().is_empty());
        assert_eq!(pod.mark_after_connect(ELSEWHERE_V4), 0);
    }

    #[test]
    fn pins_of_a_dead_namespace_can_be_forgotten() {
        let mut bench = Bench::new();
        let pod = bench.meshed_pod();
        let key = pod.key.clone();
        drop(pod);
        bench.instance().forget(&key).unwrap();
        bench.instance().forget(&key).unwrap();
        assert_eq!(bench.instance().pins().pods().unwrap(), []);
        assert!(bench.instance().meshed().unwrap().is_empty());
    }

    #[test]
    fn an_instance_is_opened_once() {
        let bench = Bench::new();
        let again = Instance::open(bench.pins.clone(), &bench.cgroup);
        assert!(matches!(again, Err(OpenError::InUse { .. })));
    }

    #[test]
    fn two_instances_do_not_touch_each_other() {
        let mut bench = Bench::new();
        let mut other = bench.beside("other");
        let (ours, theirs) = (bench.meshed_pod(), other.meshed_pod());
        bench.instance().forget(&ours.key).unwrap();
        assert_eq!(ours.mark_after_connect(ELSEWHERE_V4), 0);
        assert_eq!(theirs.mark_after_connect(ELSEWHERE_V4), DEFAULT_MARK);
        bench.instance = None;
        bench.pins.remove().unwrap();
        assert_eq!(theirs.mark_after_connect(ELSEWHERE_V4), DEFAULT_MARK);
    }

    #[test]
    fn removal_leaves_nothing() {
        let mut bench = Bench::new();
        let pod = bench.meshed_pod();
        bench.instance = None;
        bench.pins.remove().unwrap();
        assert_eq!(pod.mark_after_connect(ELSEWHERE_V4), 0);
        assert_eq!(fs::read_dir(bench.bpffs().join("ambit")).unwrap().count(), 0);
        bench.pins.remove().unwrap();
    }

    #[test]
    fn pods_of_one_uid_in_two_namespaces_are_two() {
        let mut bench = Bench::new();
        let (old, new) = (bench.meshed_pod(), Pod::new());
        let again = PodKey::new(new.key.cookie(), old.key.uid()).unwrap();
        bench.instance().prepare(&again, own()).unwrap();
        bench.instance().capture(&again, config(), &new.netns).unwrap();
        bench.instance().forget(&old.key).unwrap();
        assert_eq!(new.mark_after_connect(ELSEWHERE_V4), DEFAULT_MARK);
        assert_eq!(old.mark_after_connect(ELSEWHERE_V4), 0);
    }

    fn own() -> OwnAddresses {
        config().own
    }
}
