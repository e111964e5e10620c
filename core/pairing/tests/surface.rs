//! What a node may be asked: only what a person approved, whatever happens in between.

use super::*;
use proptest::prelude::*;

fn surface(commands: &[&str]) -> Surface {
    Surface {
        caps: BTreeSet::from(["system".to_owned()]),
        commands: commands.iter().map(|c| (*c).to_owned()).collect(),
        ..Surface::default()
    }
}

impl Bench {
    fn node(&mut self, n: u32) -> DeviceId {
        let facts = ConnectFacts {
            local_operator: true,
            ..facts(n, Role::Node, &[])
        };
        self.paired(&facts);
        facts.device_id
    }

    fn declare(&mut self, node: &DeviceId, commands: &[&str]) -> Result<Effective, Refusal> {
        let generation = self.machine.generation(node, Role::Node).unwrap_or(0);
        let declared = Declared {
            surface: surface(commands),
            version: None,
        };
        self.intent += 1;
        let fresh = self.fresh();
        let (effective, change) = self
            .machine
            .declare(node, generation, &declared, self.now, &fresh)?;
        self.news.clear();
        if let Some(change) = change {
            self.settle(change);
        }
        Ok(effective)
    }

    fn say_yes(&mut self, request: &str, scopes: &[Scope]) -> Result<(), Refusal> {
        let change = self
            .machine
            .approve_surface(request, &operator(scopes), self.now)?;
        self.settle(change);
        Ok(())
    }
}

#[test]
fn an_approved_device_may_be_asked_nothing_until_its_surface_is_approved() {
    let mut bench = Bench::new(Limits::default());
    let node = bench.node(1);
    let first = bench.declare(&node, &["system.run"]).unwrap();
    assert!(first.surface.is_empty() && !first.approved);
    let request = first.pending.unwrap();
    assert!(matches!(&bench.news[..], [News::SurfaceRequested(_)]));
    // The same again is the same question, and costs no write.
    let again = bench.declare(&node, &["system.run"]).unwrap();
    assert_eq!(
        (again.pending.as_ref(), bench.news.len()),
        (Some(&request), 0)
    );
    bench.say_yes(&request, &[Scope::Admin]).unwrap();
    let after = bench.declare(&node, &["system.run"]).unwrap();
    assert_eq!(after.surface, surface(&["system.run"]));
    assert_eq!(after.pending, None);
}

#[test]
fn an_answer_is_to_what_was_shown_and_a_wider_surface_is_another_question() {
    let mut bench = Bench::new(Limits::default());
    let node = bench.node(1);
    let shown = bench
        .declare(&node, &["camera.snap"])
        .unwrap()
        .pending
        .unwrap();
    // It widens before the person says yes.
    let wider = bench
        .declare(&node, &["camera.snap", "system.run"])
        .unwrap()
        .pending
        .unwrap();
    assert_ne!(shown, wider);
    assert!(
        matches!(&bench.news[..], [News::SurfaceResolved { request_id, decision: Decision::Rejected, .. }, News::SurfaceRequested(_)] if *request_id == shown)
    );
    assert_eq!(
        bench.say_yes(&shown, &[Scope::Admin]),
        Err(Refusal::UnknownRequest)
    );
    bench.say_yes(&wider, &[Scope::Admin]).unwrap();
    // Less needs nobody; more keeps what was approved and waits for the rest.
    let less = bench.declare(&node, &["camera.snap"]).unwrap();
    assert_eq!(less.surface, surface(&["camera.snap"]));
    let more = bench
        .declare(&node, &["camera.snap", "file.write"])
        .unwrap();
    assert_eq!(more.surface, surface(&["camera.snap"]));
    let request = more.pending.unwrap();
    // Back to what is approved: nothing waits any more, and the old question cannot be answered.
    assert_eq!(
        bench.declare(&node, &["camera.snap"]).unwrap().pending,
        None
    );
    assert_eq!(
        bench.say_yes(&request, &[Scope::Admin]),
        Err(Refusal::UnknownRequest)
    );
}

#[test]
fn what_a_surface_can_do_decides_who_may_approve_it() {
    for (commands, scopes, lacks) in [
        (&[][..], &[Scope::Pairing][..], None),
        (&["camera.snap"], &[Scope::Pairing], Some(Scope::Write)),
        (&["camera.snap"], &[Scope::Pairing, Scope::Write], None),
        (&["system.notify"], &[Scope::Pairing, Scope::Write], None),
        (
            &["system.run"],
            &[Scope::Pairing, Scope::Write],
            Some(Scope::Admin),
        ),
        (
            &["system.which"],
            &[Scope::Pairing, Scope::Write],
            Some(Scope::Admin),
        ),
        (
            &["fs.listDir"],
            &[Scope::Pairing, Scope::Write],
            Some(Scope::Admin),
        ),
        (
            &["browser.proxy.upload.v1"],
            &[Scope::Pairing, Scope::Write],
            Some(Scope::Admin),
        ),
        (
            &["system.execApprovals.set"],
            &[Scope::Pairing, Scope::Write],
            Some(Scope::Admin),
        ),
        (
            &["file.write", "camera.snap"],
            &[Scope::Pairing, Scope::Write],
            Some(Scope::Admin),
        ),
        (&["system.run"], &[Scope::Admin], None),
    ] {
        let mut bench = Bench::new(Limits::default());
        let node = bench.node(1);
        let request = bench.declare(&node, commands).unwrap().pending.unwrap();
        assert_eq!(
            bench.say_yes(&request, scopes),
            lacks.map_or(Ok(()), |scope| Err(Refusal::MissingScope(scope))),
            "{commands:?} by {scopes:?}"
        );
    }
}

#[test]
fn a_node_cannot_approve_itself_and_a_stranger_to_it_neither() {
    let mut bench = Bench::new(Limits::default());
    let node = bench.node(1);
    let request = bench
        .declare(&node, &["camera.snap"])
        .unwrap()
        .pending
        .unwrap();
    let node_is = node.clone();
    for device in [node, id(2)] {
        let caller = Caller {
            device: Some(device.clone()),
            is_device: true,
            behind: BTreeSet::new(),
            ..operator(&[Scope::Pairing, Scope::Write])
        };
        let result = bench.machine.approve_surface(&request, &caller, bench.now);
        let why = if device == node_is {
            Refusal::ApprovalDenied
        } else {
            Refusal::UnknownRequest
        };
        assert_eq!(result.map(|_| ()), Err(why), "{device}");
    }
}

#[test]
fn a_surface_ends_with_its_role_its_device_and_its_machine() {
    let mut bench = Bench::new(Limits::default());
    for end in 0..4 {
        let node = bench.node(10 + end);
        let request = bench
            .declare(&node, &["system.run"])
            .unwrap()
            .pending
            .unwrap();
        bench.say_yes(&request, &[Scope::Admin]).unwrap();
        let waits = bench
            .declare(&node, &["system.run", "file.write"])
            .unwrap()
            .pending
            .unwrap();
        let change = match end {
            0 => bench.machine.revoke(&node, Role::Node, &admin(), bench.now),
            1 => bench.machine.remove(&node, &admin(), bench.now),
            2 => bench.machine.remove_node(&node, &admin(), bench.now),
            _ => {
                let mut moved = facts(10 + end, Role::Node, &[]);
                moved.client.platform = Some("darwin".into());
                let (pairing, reason) = bench.request(&moved);
                assert_eq!(reason, Reason::MetadataUpgrade);
                bench.machine.approve(&pairing, &admin(), false, bench.now)
            }
        };
        bench.settle(change.unwrap());
        assert!(
            bench.news.iter().any(|news| matches!(news, News::SurfaceResolved { request_id, decision: Decision::Removed, .. } if *request_id == waits)),
            "{end}"
        );
        let state = bench.machine.surface(&node);
        assert_eq!((state.approved, state.pending), (None, None), "{end}");
        assert_eq!(
            bench.say_yes(&waits, &[Scope::Admin]),
            Err(Refusal::UnknownRequest)
        );
    }
}

#[test]
fn a_device_that_is_more_than_a_node_stays_what_else_it_is() {
    let mut bench = Bench::new(Limits::default());
    let (request, _) = bench.request(&facts(1, Role::Operator, &[Scope::Read]));
    let change = bench.machine.approve(&request, &admin(), false, bench.now);
    bench.settle(change.unwrap());
    let (request, _) = bench.request(&facts(1, Role::Node, &[]));
    let change = bench.machine.approve(&request, &admin(), false, bench.now);
    bench.settle(change.unwrap());
    let change = bench.machine.remove_node(&id(1), &admin(), bench.now);
    bench.settle(change.unwrap());
    assert_eq!(bench.machine.generation(&id(1), Role::Node), None);
    assert!(bench.machine.generation(&id(1), Role::Operator).is_some());
    let again = bench.machine.remove_node(&id(1), &admin(), bench.now);
    assert_eq!(again.map(|_| ()), Err(Refusal::UnknownNode));
}

#[test]
fn names_are_held_to_their_limits_and_an_old_generation_declares_nothing() {
    let mut bench = Bench::new(Limits::default());
    let node = bench.node(1);
    let long = "x".repeat(129);
    for bad in ["", "a b", "ä", "a\nb", long.as_str()] {
        assert_eq!(
            bench.declare(&node, &[bad]),
            Err(Refusal::SurfaceInvalid),
            "{bad:?}"
        );
    }
    let many: Vec<String> = (0..257).map(|n| format!("c.{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_eq!(bench.declare(&node, &many), Err(Refusal::SurfaceInvalid));
    let generation = bench.machine.generation(&node, Role::Node).unwrap();
    let (declared, fresh) = (Declared::default(), bench.fresh());
    let old = bench
        .machine
        .declare(&node, generation - 1, &declared, bench.now, &fresh);
    assert_eq!(old.map(|_| ()), Err(Refusal::UnknownNode));
}

#[derive(Debug, Clone)]
enum Step {
    Declare(Vec<usize>),
    /// An answer to any question ever asked, late ones too.
    Answer(usize, bool),
    Revoke,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => proptest::collection::vec(0..5_usize, 0..4).prop_map(Step::Declare),
        3 => (0..20_usize, any::<bool>()).prop_map(|(nth, yes)| Step::Answer(nth, yes)),
        1 => Just(Step::Revoke),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1_000) })]

    #[test]
    fn no_order_of_declarations_and_answers_gives_a_command_that_nobody_approved(
        steps in proptest::collection::vec(any_step(), 1..40)
    ) {
        const NAMES: [&str; 5] = ["camera.snap", "system.run", "system.which", "file.write", "location.get"];
        let mut bench = Bench::new(Limits::default());
        let node = bench.node(1);
        // Request and what it showed; what a person said yes to last.
        let mut asked: Vec<(String, Surface)> = Vec::new();
        let mut approved: Option<Surface> = None;
        for step in steps {
            match step {
                Step::Declare(names) => {
                    let names: Vec<&str> = names.into_iter().map(|n| NAMES[n]).collect();
                    let effective = match bench.declare(&node, &names) {
                        Ok(effective) => effective,
                        Err(refusal) => {
                            let is_gone = bench.machine.generation(&node, Role::Node).is_none();
                            prop_assert!(is_gone || refusal == Refusal::AsksTooOften, "{refusal}");
                            continue;
                        }
                    };
                    let allowed = approved.clone().unwrap_or_default();
                    prop_assert!(allowed.covers(&effective.surface));
                    prop_assert!(surface(&names).covers(&effective.surface));
                    if let Some(request) = effective.pending {
                        match asked.iter().find(|(id, _)| *id == request) {
                            Some((_, shown)) => prop_assert_eq!(shown, &surface(&names), "a question changed"),
                            None => asked.push((request, surface(&names))),
                        }
                    }
                }
                Step::Answer(nth, yes) => {
                    let Some((request, shown)) = asked.get(nth).cloned() else { continue };
                    let change = if yes {
                        bench.machine.approve_surface(&request, &admin(), bench.now)
                    } else {
                        bench.machine.reject_surface(&request, &admin(), bench.now)
                    };
                    if let Ok(change) = change {
                        bench.settle(change);
                        if yes {
                            approved = Some(shown);
                        }
                    }
                }
                Step::Revoke => {
                    if let Ok(change) = bench.machine.revoke(&node, Role::Node, &admin(), bench.now) {
                        bench.settle(change);
                        approved = None;
                        // A person lets it in again, as a device.
                        bench.now = bench.now.plus(60_000);
                        let (request, _) = bench.request(&facts(1, Role::Node, &[]));
                        let change = bench.machine.approve(&request, &admin(), false, bench.now);
                        bench.settle(change.expect("pending"));
                    }
                }
            }
            prop_assert_eq!(bench.machine.surface(&node).approved.map(|a| a.surface), approved.clone());
        }
    }
}
