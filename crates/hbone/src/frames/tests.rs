use std::time::Duration;

use proptest::prelude::*;

use super::*;

const RATE: Rate = Rate { burst: 100, per_second: 10 };
const SECOND: Duration = Duration::from_secs(1);

fn meter(end: End, now: Instant) -> Meter {
    Meter::new(end, RATE, RATE, now)
}

fn frame(kind: u8, flags: u8, len: usize) -> Vec<u8> {
    let mut bytes = (len as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags, 0, 0, 0, 1]);
    bytes.resize(9 + len, 0xaa);
    bytes
}

/// What the meter says of so many of these frames, read at once.
fn verdict(end: End, frames: &[Vec<u8>], times: usize) -> Option<Kind> {
    let now = Instant::now();
    let mut meter = meter(end, now);
    if end == End::Server {
        meter.read(&[0; 24], now);
    }
    for _ in 0..times {
        frames.iter().for_each(|frame| meter.read(frame, now));
    }
    meter.flood().map(|flood| flood.kind)
}

#[test]
fn each_flood_is_found_and_named() {
    let cases = [
        (frame(3, 0, 4), Kind::Reset),
        (frame(6, 0, 8), Kind::Ping),
        (frame(6, 1, 8), Kind::Ping),
        (frame(4, 0, 0), Kind::Settings),
        (frame(4, 0, 36), Kind::Settings),
        (frame(2, 0, 5), Kind::Priority),
        (frame(8, 0, 4), Kind::WindowUpdate),
        (frame(0, 0, 0), Kind::Data),
        (frame(0, 8, 1), Kind::Data),
        (frame(0, 8, 256), Kind::Data),
        (frame(9, 0, 10), Kind::Continuation),
        (frame(0x42, 0, 10), Kind::Other),
    ];
    for (frame, kind) in cases {
        for end in [End::Server, End::Client] {
            let frames = std::slice::from_ref(&frame);
            assert_eq!(verdict(end, frames, 100), None, "{kind:?}");
            assert_eq!(verdict(end, frames, 101), Some(kind));
        }
    }
}

#[test]
fn what_there_was_most_of_is_named() {
    let mix = [frame(6, 0, 8), frame(1, 4, 30), frame(3, 0, 4), frame(3, 0, 4)];
    assert_eq!(verdict(End::Server, &mix, 200), Some(Kind::Reset));
}

#[test]
fn what_carries_something_costs_nothing() {
    let cases = [frame(0, 0, 1), frame(0, 0, 16_384), frame(0, 1, 0), frame(0, 9, 3), frame(0, 8, 257)];
    for frame in cases {
        assert_eq!(verdict(End::Server, &[frame], 10_000), None);
    }
}

#[test]
fn answers_cost_a_client_nothing_as_long_as_it_asks() {
    let now = Instant::now();
    let mut meter = meter(End::Client, now);
    for _ in 0..10_000 {
        meter.opened();
        meter.read(&frame(1, 4, 5), now);
        meter.read(&frame(3, 0, 4), now);
    }
    assert_eq!(meter.flood(), None);
    (0..101).for_each(|_| meter.read(&frame(1, 4, 5), now));
    assert_eq!(meter.flood(), Some(Flood { kind: Kind::Headers }));
}

#[test]
fn what_is_written_pays_for_windows() {
    let now = Instant::now();
    let mut meter = meter(End::Client, now);
    for _ in 0..10_000 {
        (0..10).for_each(|_| meter.wrote(103));
        (0..2).for_each(|_| meter.read(&frame(8, 0, 4), now));
    }
    assert_eq!(meter.flood(), None);
    (0..101).for_each(|_| meter.read(&frame(8, 0, 4), now));
    assert_eq!(meter.flood(), Some(Flood { kind: Kind::WindowUpdate }));
}

#[test]
fn requests_that_are_taken_back_have_a_rate_of_their_own() {
    let now = Instant::now();
    let mut meter = meter(End::Server, now);
    (0..100).for_each(|_| meter.withdrew(now));
    assert_eq!(meter.flood(), None);
    meter.withdrew(now + SECOND);
    (0..10).for_each(|_| meter.withdrew(now + SECOND));
    assert_eq!(meter.flood(), Some(Flood { kind: Kind::Withdrawn }));
}

#[test]
fn requests_cost_nothing_as_long_as_somebody_is_shown_them() {
    let now = Instant::now();
    let mut meter = meter(End::Server, now);
    meter.read(&[0; 24], now);
    for _ in 0..1_000 {
        (0..50).for_each(|_| meter.read(&frame(1, 4, 30), now));
        (0..50).for_each(|_| meter.shown());
    }
    (0..100).for_each(|_| meter.read(&frame(1, 4, 30), now));
    assert_eq!(meter.flood(), None);
    meter.read(&frame(1, 4, 30), now);
    assert_eq!(meter.flood(), Some(Flood { kind: Kind::Headers }));
}

#[test]
fn who_is_suspected_is_what_came_last() {
    let now = Instant::now();
    let mut meter = meter(End::Client, now);
    assert_eq!(meter.suspect().kind, Kind::Other);
    meter.read(&frame(3, 0, 4), now);
    meter.read(&frame(1, 4, 5), now);
    assert_eq!(meter.suspect().kind, Kind::Reset);
    meter.read(&frame(9, 0, 5), now);
    assert_eq!(meter.suspect().kind, Kind::Continuation);
}

proptest! {
    /// However the bytes come, the meter sees the frames that were written.
    #[test]
    fn frames_are_found_in_whatever_pieces(
        frames in proptest::collection::vec((0u8..12, any::<u8>(), 0usize..700), 0..60),
        cuts in proptest::collection::vec(1usize..400, 1..40),
        preface in any::<bool>(),
    ) {
        let mut bytes = if preface { vec![b'P'; 24] } else { Vec::new() };
        for (kind, flags, len) in &frames {
            bytes.extend(frame(*kind, *flags, *len));
        }
        let mut heads = if preface { Heads::after_preface() } else { Heads::default() };
        let (mut found, mut rest, mut cuts) = (Vec::new(), &bytes[..], cuts.into_iter().cycle());
        while !rest.is_empty() {
            let (mut piece, after) = rest.split_at(cuts.next().unwrap_or(1).min(rest.len()));
            rest = after;
            while let Some(Frame { len, kind, flags }) = heads.next(&mut piece) {
                found.push((kind, flags, len as usize));
            }
        }
        prop_assert_eq!(found, frames);
    }

    /// Any bytes at all are borne.
    #[test]
    fn any_bytes_are_borne(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..50), 0..50)) {
        let now = Instant::now();
        let mut meter = meter(End::Server, now);
        for piece in pieces {
            meter.read(&piece, now);
            meter.suspect();
        }
    }
}
