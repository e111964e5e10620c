//! Epoch keys and checkpoints, held against another hand's signed notes.

use super::super::note::{origin, parse_first_key, verifier_key};
use super::super::verify::{Checker, Outside};
use super::*;
use crate::identity::{Identity, IdentityError};
use crate::seal::NONCE;
use proptest::prelude::*;
use signed_note::{Note, StandardVerifier, VerifierList};
use zeroize::Zeroizing;

fn key(n: u8) -> EpochKey {
    EpochKey::from_random(&Zeroizing::new([n; 32]))
}

fn checkpoint(size: u64) -> Checkpoint {
    Checkpoint {
        origin: origin(&key(1).public()),
        size,
        root: Hash32([0xab; 32]),
    }
}

#[test]
fn another_hand_reads_our_checkpoints_and_finds_them_signed() {
    let key = key(1);
    let note = key.sign(checkpoint(109_482));
    let text = note.to_text();
    let theirs = Note::from_bytes(text.as_bytes()).unwrap();
    let name = origin(&key.public());
    let vkey = verifier_key(&name, &key.public());
    let verifier = StandardVerifier::new(&vkey).unwrap();
    let known = VerifierList::new(vec![Box::new(verifier)]);
    let (verified, unverified) = theirs.verify(&known).unwrap();
    assert_eq!((verified.len(), unverified.len()), (1, 0));
    let read = tlog_tiles::Checkpoint::from_bytes(theirs.text()).unwrap();
    assert_eq!((read.origin(), read.size()), (name.as_str(), 109_482));
    assert_eq!(read.hash().0, [0xab; 32]);
    assert_eq!(SignedCheckpoint::parse(&text), Ok(note));
}

#[test]
fn a_note_that_others_have_signed_too_is_ours_by_our_own_line() {
    let (own, witness) = (key(1), key(9));
    let note = own.sign(checkpoint(7));
    let other = Checkpoint {
        origin: "witness.example".to_owned(),
        ..checkpoint(7)
    };
    let line = witness.sign(other).to_text();
    let line = line.lines().last().unwrap();
    let both = format!("{}{line}\n", note.to_text());
    let both = SignedCheckpoint::parse(&both).unwrap();
    assert!(both.is_by(&own.public()) && !both.is_by(&witness.public()));
    assert_eq!(both.checkpoint, note.checkpoint);
}

#[test]
fn a_first_key_is_read_in_both_forms_and_in_no_other() {
    for n in 1..200 {
        let public = key(n).public();
        let text = verifier_key(&origin(&public), &public);
        assert_eq!(parse_first_key(&text), Some(public));
    }
    let public = key(1).public();
    let text = verifier_key(&origin(&public), &public);
    assert_eq!(parse_first_key(&public.to_string()), Some(public));
    let foreign = verifier_key("example.org/log", &public);
    for wrong in [
        "",
        "+",
        "a+b+c",
        &foreign,
        &text[1..],
        &text[..text.len() - 1],
    ] {
        assert_eq!(parse_first_key(wrong), None, "{wrong}");
    }
}

#[test]
fn a_proof_is_written_as_tlog_proofs_are() {
    let note = key(1).sign(checkpoint(2));
    let text = super::super::note::proof_text(1, &[Hash32([0; 32])], &note);
    let front = format!("c2sp.org/tlog-proof@v1\nindex 1\n{}=\n\n", "A".repeat(43));
    assert_eq!(text, front + &note.to_text());
}

#[test]
fn a_sealed_key_opens_under_its_identity_and_epoch_only() {
    let identity = |n| EpochSealer::new(&Identity::from_random([n; 32]));
    let (own, other) = (identity(1), identity(2));
    let file = own.seal(3, &key(7), &[5; NONCE]);
    let public = own.open(3, &file).ok().map(|key| key.public());
    assert_eq!(public, Some(key(7).public()));
    assert!(own.open(4, &file).is_err());
    let code = other.open(3, &file).err().map(IdentityError::code);
    assert_eq!(code, Some("IDENTITY_MISMATCH"));
    assert!(!file.windows(32).any(|window| window == [7; 32]));
    for at in 0..file.len() {
        let mut bad = file.clone();
        bad[at] ^= 1;
        assert!(own.open(3, &bad).is_err(), "byte {at}");
        assert!(own.open(3, &file[..at]).is_err(), "cut at {at}");
    }
}

/// A log in memory: its records, and the checkpoints that an honest writer signs.
struct Log {
    bytes: Vec<u8>,
    head: Head,
    edge: TileEdge,
    epoch: u64,
    key: EpochKey,
    notes: Vec<(u64, SignedCheckpoint)>,
    origin: String,
}

impl Log {
    fn new() -> Self {
        Self {
            bytes: Vec::new(),
            head: Head::EMPTY,
            edge: TileEdge::default(),
            epoch: 0,
            key: key(1),
            notes: Vec::new(),
            origin: origin(&key(1).public()),
        }
    }

    fn push(&mut self, body: &Body) {
        self.head = encode_record(&mut self.bytes, self.head, STAMP, BOOT, body, None).unwrap();
        self.edge.push(self.head.hash, |_, _| {});
    }

    fn sign(&mut self) {
        let note = self.key.sign(Checkpoint {
            origin: self.origin.clone(),
            size: self.head.seq.0,
            root: self.edge.root(),
        });
        self.notes.push((self.epoch, note));
    }

    /// Begins the next epoch, with a start or a carry.
    fn turn(&mut self) {
        let next = self.epoch + 1;
        let new = key(u8::try_from(next).unwrap());
        let mark = self.key.hand_over(next, new.public(), self.head);
        self.push(&if next.is_multiple_of(2) {
            Body::Carry {
                open: None,
                state_rev: None,
                epoch: Some(mark),
            }
        } else {
            Body::Start {
                reopened: false,
                open: None,
                version: "1".into(),
                state_rev: None,
                epoch: Some(mark),
            }
        });
        if self.epoch > 0 {
            self.sign();
        }
        (self.epoch, self.key) = (next, new);
    }

    /// Three epochs of a few records each.
    fn three() -> Self {
        let mut log = Self::new();
        for _ in 0..3 {
            log.turn();
            for n in 0..4 {
                log.push(&body(n * 2));
            }
            log.sign();
        }
        log
    }

    /// What verifying says.
    fn check(&self, outside: Outside) -> Result<Checker, (Seq, String)> {
        let mut checker = Checker::new(outside);
        let mut scan = Scanner::new(Head::EMPTY, 0);
        let mut notes = self.notes.iter().peekable();
        loop {
            let at = usize::try_from(scan.offset()).unwrap();
            match scan.step(&self.bytes[at..], true) {
                Step::Record { leaf, hash, .. } => {
                    let found = checker.record(&leaf, hash, |_, _| {});
                    found.map_err(|found| (found.seq, found.why))?;
                    let size = leaf.seq.0;
                    while let Some((epoch, note)) =
                        notes.next_if(|(_, note)| note.checkpoint.size == size)
                    {
                        let found = checker.note(*epoch, note);
                        found.map_err(|found| (found.seq, found.why))?;
                    }
                }
                Step::End => break,
                other => panic!("{other:?}"),
            }
        }
        checker.end().map_err(|found| (found.seq, found.why))?;
        Ok(checker)
    }
}

fn outside(key: Option<PublicKey>, checkpoint: Option<SignedCheckpoint>) -> Outside {
    Outside {
        first_key: key,
        checkpoint,
    }
}

#[test]
fn a_log_of_three_epochs_verifies_with_its_first_key_and_any_of_its_checkpoints() {
    let log = Log::three();
    let checker = log.check(Outside::default()).unwrap();
    assert_eq!(checker.notes(), 5);
    assert_eq!(checker.chain().last().map(|last| last.number), Some(3));
    assert_eq!(checker.edge().root(), log.edge.root());
    for (_, note) in &log.notes {
        log.check(outside(Some(key(1).public()), Some(note.clone())))
            .unwrap();
    }
    let (seq, why) = log.check(outside(Some(key(2).public()), None)).unwrap_err();
    assert_eq!(seq, Seq(1), "{why}");
}

#[test]
fn an_outside_checkpoint_tells_of_a_cut_tail_and_of_another_history() {
    let (long, mut short) = (Log::three(), Log::new());
    short.turn();
    short.push(&body(0));
    short.push(&body(2));
    let newest = long.notes.last().unwrap().1.clone();
    let (seq, why) = short
        .check(outside(None, Some(newest.clone())))
        .unwrap_err();
    assert_eq!(seq, Seq(4));
    assert!(why.contains("the log ends before it"), "{why}");
    // As long, with the same keys, but not what was signed.
    let mut other = Log::three();
    let mut forged = Log::new();
    for epoch in 0..3 {
        forged.turn();
        for n in 0..4 {
            let other = Body::event(Entry::new("other")).unwrap();
            forged.push(&if epoch == 1 { other } else { body(n * 2) });
        }
        forged.sign();
    }
    forged.check(Outside::default()).unwrap();
    let (_, why) = forged
        .check(outside(None, Some(newest.clone())))
        .unwrap_err();
    assert!(why.contains("is not what the records give"), "{why}");
    // Another log altogether.
    other.origin = "portcullis-audit/0000000000000000".to_owned();
    other.push(&body(0));
    other.sign();
    let foreign = other.notes.pop().unwrap().1;
    let (seq, _) = long.check(outside(None, Some(foreign))).unwrap_err();
    assert_eq!(seq, Seq(1));
}

#[test]
fn keys_that_do_not_follow_and_checkpoints_of_the_wrong_epoch_are_found() {
    let break_of = |change: &dyn Fn(&mut Log)| {
        let mut log = Log::three();
        change(&mut log);
        log.check(Outside::default()).map(|_| ()).unwrap_err()
    };
    // An old key signs what a later one should.
    let (seq, why) = break_of(&|log| {
        let old = key(1).sign(log.notes[4].1.checkpoint.clone());
        log.notes[4].1 = old;
    });
    assert_eq!(seq, Seq(15));
    assert!(why.contains("not signed by the key of epoch 3"), "{why}");
    // Its file is another epoch's.
    let (seq, _) = break_of(&|log| log.notes[2].0 = 1);
    assert_eq!(seq, Seq(10));
    // A closing checkpoint is gone, and a later epoch stands on it.
    let (seq, why) = break_of(&|log| {
        log.notes.remove(1);
    });
    assert_eq!(seq, Seq(6));
    assert!(why.contains("closes epoch 1"), "{why}");
    // The next epoch's key names itself, or comes with the number of another.
    for (by, number) in [(key(9), 4), (key(3), 5), (key(3), 3), (key(1), 4)] {
        let mut log = Log::three();
        let mark = by.hand_over(number, key(9).public(), log.head);
        log.push(&Body::Carry {
            open: None,
            state_rev: None,
            epoch: Some(mark),
        });
        let (seq, _) = log.check(Outside::default()).map(|_| ()).unwrap_err();
        assert_eq!(seq, Seq(16));
    }
    // A hand-over for another place in the log.
    let mut log = Log::three();
    let mark = log.key.hand_over(4, key(9).public(), Head::EMPTY);
    log.push(&Body::Carry {
        open: None,
        state_rev: None,
        epoch: Some(mark),
    });
    log.check(Outside::default()).map(|_| ()).unwrap_err();
    // A start that names no key, where there are keys.
    let mut log = Log::three();
    log.push(&Body::Carry {
        open: None,
        state_rev: None,
        epoch: None,
    });
    let (seq, why) = log.check(Outside::default()).map(|_| ()).unwrap_err();
    assert_eq!(
        (seq, why.as_str()),
        (Seq(16), "the record names no next key")
    );
}

#[test]
fn a_log_of_before_there_were_keys_goes_on_with_them() {
    let mut log = Log::new();
    for n in 0..5 {
        log.push(&body(n));
    }
    log.check(Outside::default()).unwrap();
    log.turn();
    log.sign();
    let checker = log.check(outside(Some(key(1).public()), None)).unwrap();
    assert_eq!(checker.notes(), 1);
}

#[test]
fn every_flipped_bit_of_a_file_of_checkpoints_is_found_and_every_cut_is_a_front() {
    let log = Log::three();
    let bytes: Vec<u8> = log.notes[1..3]
        .iter()
        .flat_map(|(_, note)| note.to_text().into_bytes())
        .collect();
    let whole = Notes::read(&bytes);
    assert_eq!(
        (whole.all.len(), whole.whole, whole.flaw),
        (2, bytes.len(), None)
    );
    for bit in 0..bytes.len() * 8 {
        let mut bad = bytes.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        let read = Notes::read(&bad);
        let is_same = read.flaw.is_none()
            && read
                .all
                .iter()
                .zip(&log.notes[1..3])
                .all(|(found, (epoch, note))| {
                    found.checkpoint == note.checkpoint
                        && found.is_by(&key(u8::try_from(*epoch).unwrap()).public())
                })
            && read.all.len() == 2;
        assert!(!is_same, "bit {bit}");
    }
    let first = log.notes[1].1.to_text().len();
    for cut in 0..bytes.len() {
        let read = Notes::read(&bytes[..cut]);
        assert_eq!(read.flaw, None, "cut at {cut}");
        assert_eq!(read.all.len(), usize::from(cut >= first));
        let zeros = [&bytes[..cut], &[0; 700][..]].concat();
        let read = Notes::read(&zeros);
        assert_eq!(
            (read.flaw, read.all.len()),
            (None, usize::from(cut >= first)),
            "{cut}"
        );
    }
    let twice = [&bytes[..first], &bytes[..first]].concat();
    assert!(Notes::read(&twice).flaw.is_some());
    let turned = [&bytes[first..], &bytes[..first]].concat();
    assert!(Notes::read(&turned).flaw.is_some());
}

proptest! {
    #[test]
    fn what_is_no_note_is_refused_without_a_panic(text in "[ -~\n\u{2014}]{0,300}", bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        if let Ok(note) = SignedCheckpoint::parse(&text) {
            prop_assert_eq!(note.to_text(), text.clone());
        }
        let _ = Notes::read(&bytes);
        let _ = Notes::read(text.as_bytes());
        let _ = parse_first_key(&text);
    }
}
