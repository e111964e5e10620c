use super::decide_tests::{Key as Paired, by_other_key, decide, demanding, device_key, with_key};
use super::kin::Key;
use super::tests::{NOW, asked, operator, principal};
use super::*;
use crate::auth::{Proof, SecretName};
use crate::pairing::LetIn;
use crate::plan::tests::host_plan;
use std::collections::BTreeSet;

const BEFORE: Millis = Millis(NOW.0 - 1);

fn came(by: &[&str], at: Millis) -> LetIn {
    LetIn {
        by: by.iter().map(|name| (*name).to_owned()).collect(),
        at,
        approved: at,
        is_local: false,
        user: None,
    }
}

/// The key that our command line has made for this user of the machine.
fn own_of(uid: u32, at: Millis) -> LetIn {
    LetIn {
        is_local: true,
        user: Some(uid),
        ..came(&[], at)
    }
}

fn known(key: &Paired, came: &LetIn) -> Key {
    (key.signer.credential.device.clone(), Some(came.clone()))
}

/// May the second say yes beside the first, each with how its key came in, both on a question of now?
fn beside(
    first: (&Principal, &Paired, &LetIn),
    second: (&Principal, &Paired, &LetIn),
    word: Word,
) -> Result<(), Refusal> {
    let mut m = demanding(&[Act::Quorum], 2);
    asked(&mut m, 1, host_plan(&["uname"])).unwrap();
    let speaker = |(by, key, came): (&Principal, &Paired, &LetIn)| {
        let mut signer = key.signer.clone();
        signer.user = came.user;
        (by.clone(), signer, vec![known(key, came)])
    };
    let (by, signer, keys) = speaker(first);
    let who = Speaker {
        by: &by,
        signer: Some(&signer),
        keys: &keys,
    };
    m.counts("a0001", word, who, &[])?;
    let mut said = with_key(&m, "a0001", Word::AllowOnce, first.1);
    said.signed.as_mut().unwrap().signer = signer;
    assert_eq!(decide(&mut m, "a0001", &said, &by), Ok(true));
    let (voted, (by, signer, keys)) = (keys, speaker(second));
    let who = Speaker {
        by: &by,
        signer: Some(&signer),
        keys: &keys,
    };
    m.counts("a0001", word, who, &voted)
}

/// The bug: one person at the console said yes with his own key, let another in, and said yes with that too.
#[test]
fn a_key_that_came_in_after_the_question_is_no_second_person() {
    let (cli, phone) = (device_key(3), device_key(4));
    let (console, by_phone) = (operator(), by_other_key(&device_key(4)));
    let own = own_of(1000, BEFORE);
    for at in [NOW, NOW.plus(1)] {
        // Whoever let it in, also nobody that is known; and first as second.
        for by in [&["uid:1000"][..], &["device:x"], &[]] {
            let late = came(by, at);
            let (one, two) = ((&console, &cli, &own), (&by_phone, &phone, &late));
            let refused = Err(Refusal::CameAfter);
            assert_eq!(beside(one, two, Word::AllowOnce), refused);
            assert_eq!(beside(two, one, Word::AllowAlways), refused);
        }
        // Nor what was there, and has got more since.
        let wider = LetIn {
            approved: at,
            ..came(&[], BEFORE)
        };
        assert_eq!(
            beside(
                (&console, &cli, &own),
                (&by_phone, &phone, &wider),
                Word::AllowOnce
            ),
            Err(Refusal::CameAfter)
        );
    }
    assert_eq!(Refusal::CameAfter.code().name, "APPROVAL_SELF");
    // Another user of this machine is another, whenever his command line made its key; himself he is not.
    let other = principal(Proof::PeerUid(2000), Role::Operator, None);
    let token = principal(Proof::SharedToken, Role::Operator, None);
    for (by, uid, expected) in [
        (&other, 2000, Ok(())),
        (&token, 2000, Ok(())),
        (&token, 1000, Err(Refusal::SameVoter)),
    ] {
        let late = own_of(uid, NOW.plus(1));
        let said = beside((&console, &cli, &own), (by, &phone, &late), Word::AllowOnce);
        assert_eq!(said, expected, "{uid}");
    }
    // A no is taken from whoever may answer.
    let late = came(&["uid:1000"], NOW);
    let mut m = demanding(&[Act::Quorum], 2);
    asked(&mut m, 1, host_plan(&["uname"])).unwrap();
    let keys = [known(&phone, &late)];
    let who = Speaker {
        by: &by_phone,
        signer: None,
        keys: &keys,
    };
    assert_eq!(m.counts("a0001", Word::Deny, who, &[]), Ok(()));
    // And where one decides, who has come since may be that one.
    m.deciding.demands = Demands::default();
    let mut one = m.get("a0001").unwrap().clone();
    one.quorum = 1;
    m.settle(Step {
        puts: vec![Put::Record(Box::new(one))],
    });
    assert_eq!(m.counts("a0001", Word::AllowOnce, who, &[]), Ok(()));
}

/// The bug: only the devices of the votes were compared with who let a key in, not the users and names behind them.
#[test]
fn a_key_and_the_user_name_or_device_that_let_it_in_are_one_person() {
    let (cli, phone, tablet) = (device_key(3), device_key(4), device_key(5));
    let (console, by_phone) = (operator(), by_other_key(&device_key(4)));
    let by_tablet = by_other_key(&device_key(5));
    let ann = Principal {
        secret: Some(SecretStanding {
            secret: SecretName::Password("ann".to_owned()),
            generation: 1,
        }),
        proof: Proof::PasswordAndDevice("ann".to_owned(), tablet.signer.credential.device.clone()),
        ..operator()
    };
    let own = own_of(1000, BEFORE);
    let plain = came(&[], BEFORE);
    let kin = Err(Refusal::SelfThroughAnother);
    let tablet_name = format!("device:{}", tablet.signer.credential.device);
    for (other, key, way, by) in [
        (&console, &cli, &own, "uid:1000"),
        (&by_tablet, &tablet, &plain, tablet_name.as_str()),
        (&ann, &tablet, &plain, "password:ann"),
    ] {
        let guest = came(&[by, "device:y"], BEFORE);
        let (one, two) = ((other, key, way), (&by_phone, &phone, &guest));
        assert_eq!(beside(one, two, Word::AllowOnce), kin, "{by}");
        assert_eq!(beside(two, one, Word::AllowOnce), kin, "{by}");
    }
    // Two that one person has let in are two, and so are a device and who did not let it in.
    let guest = came(&["uid:1000"], BEFORE);
    for (one, two) in [
        ((&by_tablet, &tablet, &guest), (&by_phone, &phone, &guest)),
        ((&console, &cli, &own), (&by_phone, &phone, &plain)),
    ] {
        assert_eq!(beside(one, two, Word::AllowOnce), Ok(()));
    }
    // One person's password with two devices is one person.
    let again = Principal {
        proof: Proof::PasswordAndDevice("ann".to_owned(), phone.signer.credential.device.clone()),
        ..ann.clone()
    };
    assert_eq!(
        beside(
            (&ann, &tablet, &plain),
            (&again, &phone, &plain),
            Word::AllowOnce
        ),
        Err(Refusal::SameVoter)
    );
    let names: BTreeSet<String> = again.behind();
    assert!(names.contains("password:ann") && names.len() == 2);
}
