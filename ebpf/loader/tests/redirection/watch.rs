//! What is counted as having got past the mesh.

mod netns {
    use std::net::{Ipv4Addr, SocketAddr};
    use std::time::Duration;

    use aya::maps::{HashMap, Map, MapData};
    use ebpf_loader::{BypassStorage, Bypassed, DEFAULT_MARK, ListenerMap, slot};
    use socket2::{Domain, Socket, Type};

    use crate::bench::{Bench, ELSEWHERE_V4, Listening, OWN_V4, Pod, config};

    const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(10, 66, 0, 9);

    /// A captured pod with a proxy for what it sends; it has the other address on `lo` too, so that both can call.
    struct Scene {
        bench: Bench,
        pod: Pod,
        bypass: BypassStorage,
        _proxy: Listening,
    }

    impl Scene {
        fn new() -> Self {
            let mut bench = Bench::new();
            let pod = Pod::new();
            for address in [OWN_V4, ELSEWHERE] {
                pod.add_loopback_address(address);
            }
            let prepared = bench.instance().prepare(&pod.key, config().own).unwrap();
            let proxy = pod.listen(([127, 0, 0, 1], 15001).into());
            ListenerMap::from_fd(prepared.listeners).unwrap().set(slot::OUTBOUND_V4, &proxy.socket).unwrap();
            bench.instance().capture(&pod.key, config(), &pod.netns).unwrap();
            let bypass =
                BypassStorage::from_fd(bench.instance().bypass().try_clone_to_owned().unwrap()).unwrap();
            Self { bench, pod, bypass, _proxy: proxy }
        }

        fn counted(&mut self) -> Bypassed {
            self.bench.instance().bypassed(&self.pod.key).unwrap().unwrap()
        }

        /// Takes the pod out of the map that captures, behind the agent's back.
        fn break_capture(&self) {
            let meshed = MapData::from_pin(self.bench.pins.root().join("MESHED")).unwrap();
            let mut meshed: HashMap<_, u64, [u8; 32]> = Map::HashMap(meshed).try_into().unwrap();
            meshed.remove(&self.pod.key.cookie()).unwrap();
        }

        /// Connects from one address to another, and whether that succeeded.
        fn call(&self, from: Ipv4Addr, to: SocketAddr, prepare: impl FnOnce(&Socket)) -> bool {
            let socket =
                self.pod.netns.run(|| Socket::new(Domain::IPV4, Type::STREAM, None).unwrap()).unwrap();
            socket.bind(&SocketAddr::new(from.into(), 0).into()).unwrap();
            prepare(&socket);
            socket.connect_timeout(&to.into(), Duration::from_secs(5)).is_ok()
        }

        /// Calls an application of the pod from elsewhere, unmarked, until that is counted.
        fn until_accepted_are_counted(&mut self, app: SocketAddr) {
            let end = tokio::time::Instant::now() + Duration::from_secs(10);
            while self.counted().accepted == 0 {
                assert!(tokio::time::Instant::now() < end, "never counted");
                assert!(self.call(ELSEWHERE, app, |_| {}));
            }
        }
    }

    fn elsewhere() -> SocketAddr {
        ELSEWHERE_V4.parse().unwrap()
    }

    #[test]
    fn captured_connections_are_not_counted_and_those_that_capture_misses_are() {
        let mut scene = Scene::new();
        for _ in 0..3 {
            assert!(scene.call(OWN_V4, elsewhere(), |_| {}));
        }
        assert_eq!(scene.counted(), Bypassed::default());
        scene.break_capture();
        for _ in 0..3 {
            assert!(scene.call(OWN_V4, elsewhere(), |_| {}));
        }
        assert_eq!(scene.counted(), Bypassed { opened: 3, accepted: 0 });
    }

    #[test]
    fn what_is_refused_is_not_counted() {
        let mut scene = Scene::new();
        scene.break_capture();
        // Unmarked and to itself there is nobody; elsewhere the proxy would answer.
        assert!(!scene.call(ELSEWHERE, SocketAddr::new(OWN_V4.into(), 9), |_| {}));
        assert_eq!(scene.counted(), Bypassed::default());
    }

    #[test]
    fn the_proxys_own_connections_are_not_counted() {
        let mut scene = Scene::new();
        let exempt = |socket: &Socket| scene.bypass.exempt(socket).unwrap();
        assert!(scene.call(OWN_V4, elsewhere(), exempt));
        assert_eq!(scene.counted(), Bypassed::default());
    }

    #[test]
    fn connections_within_the_pod_are_not_counted() {
        let mut scene = Scene::new();
        scene.break_capture();
        let app = scene.pod.listen(SocketAddr::new(OWN_V4.into(), 0));
        let own = SocketAddr::new(OWN_V4.into(), app.port());
        assert!(scene.call(OWN_V4, own, |_| {}));
        let app = scene.pod.listen(([127, 0, 0, 1], 0).into());
        assert!(scene.call(Ipv4Addr::LOCALHOST, ([127, 0, 0, 1], app.port()).into(), |_| {}));
        assert_eq!(scene.counted(), Bypassed::default());
    }

    #[test]
    fn what_an_application_accepts_unmarked_is_counted_and_what_the_proxy_delivers_is_not() {
        let mut scene = Scene::new();
        let accept = || std::fs::write("/proc/sys/net/ipv4/tcp_fwmark_accept", "1");
        scene.pod.netns.run(accept).unwrap().unwrap();
        let listening = scene.pod.listen(SocketAddr::new(OWN_V4.into(), 0));
        let app = SocketAddr::new(OWN_V4.into(), listening.port());
        let proxys = scene.pod.listen(SocketAddr::new(OWN_V4.into(), 0));
        scene.bypass.exempt(&proxys.socket).unwrap();
        scene.until_accepted_are_counted(app);

        let before = scene.counted();
        let deliver = |socket: &Socket| {
            scene.bypass.exempt(socket).unwrap();
            socket.set_mark(DEFAULT_MARK).unwrap();
        };
        assert!(scene.call(ELSEWHERE, app, deliver));
        let hbone = SocketAddr::new(OWN_V4.into(), proxys.port());
        assert!(scene.call(ELSEWHERE, hbone, |_| {}), "the proxy's own listener passes on its exemption");
        assert_eq!(scene.counted().accepted, before.accepted);
        assert!(scene.call(ELSEWHERE, app, |_| {}));
        assert_eq!(scene.counted().accepted, before.accepted + 1);
    }

    #[test]
    fn the_count_outlives_the_process_and_ends_with_enrolment() {
        let mut scene = Scene::new();
        scene.break_capture();
        assert!(scene.call(OWN_V4, elsewhere(), |_| {}));
        scene.bench.instance = None;
        scene.bench.reopen();
        assert_eq!(scene.counted().opened, 1);
        let Scene { bench, pod, .. } = &mut scene;
        bench.instance().release(&pod.key).unwrap();
        assert_eq!(bench.instance().bypassed(&pod.key).unwrap(), None);
    }
}
