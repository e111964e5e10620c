//! Many requests, and who pays for them.

use super::*;

#[test]
fn a_flood_displaces_nobody_who_asks_once() {
    let limits = Limits {
        pending_max: 12,
        pending_per_address: 4,
        ..Limits::default()
    };
    let mut bench = Bench::new(limits);
    let from = |n: u32, ip: &str| {
        let mut facts = facts(n, Role::Operator, &[Scope::Read]);
        facts.client.remote_ip = Some(ip.parse().expect("ip"));
        facts
    };
    let (honest, _) = bench.request(&from(1, "192.0.2.1"));
    for n in 0..200 {
        let ip = format!("198.51.100.{}", n % 5);
        bench.now = bench.now.plus(1);
        drop(bench.connect(&from(100 + n, &ip)));
    }
    assert_eq!(bench.machine.counts().1, 12);
    // A newcomer still finds room, the honest one is still there.
    let (second, _) = bench.request(&from(2, "192.0.2.2"));
    bench.approve(&second, &admin()).expect("newcomer");
    bench.approve(&honest, &admin()).expect("honest");
    // One /64 is one address, and so are both spellings of an IPv4 one.
    let mut bench = Bench::new(limits);
    let mut refused = 0;
    for n in 0..8 {
        refused += u32::from(bench.connect(&from(n, &format!("2001:db8::{n}"))).is_err());
        let v4 = if n % 2 == 0 {
            "203.0.113.9"
        } else {
            "::ffff:203.0.113.9"
        };
        refused += u32::from(bench.connect(&from(50 + n, v4)).is_err());
    }
    assert_eq!((refused, bench.machine.counts().1), (8, 8));
}

/// The bug: a request counted by address and user, and a user has all of 127.0.0.0/8: one user filled every place, was
/// never the fullest, and displaced whom he liked.
#[test]
fn one_user_with_every_loopback_address_has_one_users_places() {
    let limits = Limits {
        pending_max: 12,
        pending_per_address: 4,
        ..Limits::default()
    };
    let mut bench = Bench::new(limits);
    let of = |n: u32, ip: [u8; 4], uid: Option<u32>| {
        let mut facts = facts(n, Role::Operator, &[Scope::Read]);
        facts.client.remote_ip = Some(IpAddr::from(ip));
        facts.client.remote_uid = uid;
        facts
    };
    let (honest, _) = bench.request(&of(1, [127, 0, 0, 1], Some(2000)));
    let mut taken = [0, 0];
    for n in 0..100_u8 {
        for (at, uid) in [Some(11_111), None].into_iter().enumerate() {
            let facts = of(
                100 + 2 * u32::from(n) + u32::from(at == 1),
                [127, 1, n, 1],
                uid,
            );
            taken[at] += u32::from(bench.connect(&facts).is_ok());
        }
    }
    assert_eq!(taken, [4, 4], "and nobody knows who has no name");
    let (other, _) = bench.request(&of(2, [127, 0, 0, 1], Some(2001)));
    bench.approve(&honest, &admin()).expect("who asked before");
    bench.approve(&other, &admin()).expect("who asked after");
}

/// The bug: over the total only addresses were compared, and one network has 256 or more of them.
#[test]
fn over_the_total_the_fullest_network_pays() {
    let limits = Limits {
        pending_max: 12,
        pending_per_address: 4,
        ..Limits::default()
    };
    for flood in ["198.51.100", "2001:db8:1"] {
        let mut bench = Bench::new(limits);
        let from = |n: u32, ip: &str| {
            let mut facts = facts(n, Role::Operator, &[Scope::Read]);
            facts.client.remote_ip = Some(ip.parse().expect("ip"));
            facts
        };
        let (honest, _) = bench.request(&from(1, "192.0.2.1"));
        for n in 0..50 {
            let ip = if flood.contains(':') {
                format!("{flood}:{n}::1")
            } else {
                format!("{flood}.{n}")
            };
            bench.now = bench.now.plus(1);
            drop(bench.connect(&from(100 + n, &ip)));
        }
        assert_eq!(bench.machine.counts().1, 12);
        let (second, _) = bench.request(&from(2, "203.0.113.1"));
        let (third, _) = bench.request(&from(3, "203.0.113.2"));
        for request in [honest, second, third] {
            bench.approve(&request, &admin()).expect("asked once");
        }
    }
}

#[test]
fn a_flood_that_falls_silent_makes_room_for_who_asks_and_users_of_one_machine_count_alone() {
    let limits = Limits {
        pending_per_address: 3,
        ..Limits::default()
    };
    let mut bench = Bench::new(limits);
    let of = |n: u32, uid: u32| {
        let mut facts = facts(n, Role::Operator, &[Scope::Read]);
        facts.client.remote_ip = Some(IpAddr::from([127, 0, 0, 1]));
        facts.client.remote_uid = Some(uid);
        facts
    };
    for n in 0..3 {
        bench.request(&of(n, 1000));
    }
    // Another user of the machine is not touched by it, nor by what follows.
    let (other, _) = bench.request(&of(50, 1001));
    let refused = bench.connect(&of(9, 1000)).err();
    assert_eq!(refused, Some(Refusal::TooManyPending));
    // One of the three goes on asking, as clients do; the two others are gone.
    for _ in 0..4 {
        bench.now = bench.now.plus(15_000);
        bench.request(&of(1, 1000));
    }
    let (request, _) = bench.request(&of(9, 1000));
    assert!(
        bench
            .news
            .iter()
            .any(|news| matches!(news, News::Resolved { device_id, .. } if *device_id == id(0))),
        "the longest silent one is told to be over: {:?}",
        bench.news
    );
    bench.request(&of(10, 1000));
    // Nobody else is silent for long enough.
    let refused = bench.connect(&of(11, 1000)).err();
    assert_eq!(refused, Some(Refusal::TooManyPending));
    assert_eq!(bench.machine.counts().1, 4);
    bench.approve(&request, &admin()).expect("the newcomer");
    bench.approve(&other, &admin()).expect("the other user");
}

/// The bug: a device under another platform each time made a synced record, and another card, as fast as it could dial.
#[test]
fn a_device_that_asks_for_one_thing_after_another_waits() {
    let mut bench = Bench::new(Limits::default());
    let under = |n: u32, platform: usize| {
        let mut facts = facts(n, Role::Operator, &[Scope::Read]);
        facts.client.platform = Some(format!("p{platform}"));
        facts
    };
    let mut asked = 0;
    for round in 0..100 {
        bench.now = bench.now.plus(10);
        match bench.connect(&under(1, round)).err() {
            None => asked += 1,
            refusal => assert_eq!(refusal, Some(Refusal::AsksTooOften)),
        }
    }
    assert_eq!(asked, 8);
    // What it asked last still waits and may be asked for again; nobody else is touched.
    let (request, _) = bench.request(&under(1, 7));
    bench.request(&under(2, 0));
    assert_eq!(bench.machine.counts().1, 2);
    bench.approve(&request, &admin()).expect("approved");
    // Nor does an answer give it more turns. After its minute it has them again.
    let refused = bench.connect(&under(1, 9)).err();
    assert_eq!(refused, Some(Refusal::AsksTooOften));
    bench.now = bench.now.plus(60_000);
    bench.request(&under(1, 9));
}
