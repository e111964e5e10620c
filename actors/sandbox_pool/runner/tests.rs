//! What a runner refuses, spoken to as nobody but an attacker of the gateway would; and what the gateway makes of a runner that is ill.

#![allow(
    clippy::disallowed_methods,
    reason = "tests may sleep and spawn; what they test may not"
)]

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bollard::models::ContainerCreateBody;
use bollard::query_parameters::{CreateContainerOptions, RemoveContainerOptionsBuilder};
use portcullis_core::ids::{AgentId, BoxId, Hash32};
use portcullis_core::sandbox::{
    Access, DriverChoice, ImageName, Isolation, Layer, Overrides, Profiles, Scope, ShareName,
    UserRange,
};
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::handle::RunnerHandle;
use super::judge::Judge;
use super::keep::{LONGEST_LINE, Relay, RunnerProgram, RunnerShown, keep};
use super::serve::{Ground, serve};
use super::wire::{
    Answer, Answered, Ask, Asked, Failed, Incoming, MOST_ANSWERED, MOST_ASKED, Order, frame,
};
use crate::sandbox_pool::config::SandboxPoolConfig;
use crate::sandbox_pool::docker::{Seen, shape};
use crate::sandbox_pool::driver::ProbeContext;
use crate::sandbox_pool::engine::{EngineConfig, EngineFacts};
use crate::sandbox_pool::hardening::{BOX_LABEL, OWNER_LABEL};
use crate::sandbox_pool::holder::Whose;
use crate::sandbox_pool::image::Image;
use crate::sandbox_pool::probe;
use crate::sandbox_pool::spec::BoxLimits;
use crate::sandbox_pool::tests::docker::{Engine, import, raw};
use crate::sandbox_pool::tests::harness::State;
use crate::sandbox_pool::users::User;
use crate::sandbox_pool::wanted::{Alike, digest, neutral};
use crate::supervision::Flag;

const NONCE: &str = "00112233445566778899aabbccddeeff";

fn agent(name: &str) -> AgentId {
    AgentId::new(name).unwrap()
}

fn image(name: &str) -> ImageName {
    ImageName::new(name).unwrap()
}

fn id(text: &str) -> BoxId {
    BoxId::new(text).unwrap()
}

/// One agent of its own image, one whose sessions have boxes, one that shares, and all others.
fn profiles() -> Profiles {
    let says = |says: Overrides| {
        let name = "[agents.NAME.sandbox]".to_owned();
        vec![Layer { name, says }]
    };
    let agents = [
        (
            "own",
            Overrides {
                image: Some(image("tools:1")),
                ..Overrides::default()
            },
        ),
        (
            "each",
            Overrides {
                scope: Some(Scope::Session),
                ..Overrides::default()
            },
        ),
        (
            "none",
            Overrides {
                scope: Some(Scope::Session),
                workspace: Some(Access::None),
                ..Overrides::default()
            },
        ),
        (
            "native",
            Overrides {
                driver: Some(DriverChoice::Native),
                ..Overrides::default()
            },
        ),
        (
            "both",
            Overrides {
                scope: Some(Scope::Shared),
                share: Some(ShareName::new("team").unwrap()),
                ..Overrides::default()
            },
        ),
    ];
    Profiles {
        every: vec![SandboxPoolConfig::default().layer()],
        agents: agents
            .into_iter()
            .map(|(name, own)| (agent(name), says(own)))
            .collect(),
    }
}

fn judge(context: ProbeContext) -> Judge {
    Judge {
        config: SandboxPoolConfig::default(),
        profiles: profiles(),
        neutral: neutral(&context).unwrap(),
        cell_digest: Hash32::of(b"cell"),
        users: rustix::process::geteuid()
            .is_root()
            .then(UserRange::default),
        context,
    }
}

fn context() -> ProbeContext {
    ProbeContext {
        run_root: PathBuf::from("/state/run"),
        workspaces: PathBuf::from("/state/workspaces"),
        cell: PathBuf::from("/state/run/cell"),
        uid: 65_600,
        gid: 65_600,
        owner: "owner".to_owned(),
        boot: "boot".to_owned(),
        limits: BoxLimits::of(&profiles().of(None).profile),
        require_cgroup: true,
    }
}

fn seen() -> Seen {
    Seen {
        socket: PathBuf::from("/run/docker.sock"),
        image: Image {
            id: "sha256:default".to_owned(),
            rootfs: "rootfs".to_owned(),
        },
        facts: EngineFacts {
            podman: false,
            keeps_id: false,
            version: "26".to_owned(),
            default_runtime: "runc".to_owned(),
            apparmor: false,
            runtimes: vec!["runc".to_owned()],
            cpus: 2,
        },
    }
}

/// As an honest gateway asks, for the agent by whose profile the box is made.
fn order(judge: &Judge, seen: &Seen, whose: Whose, by: &str, image: Option<&str>) -> Order {
    let effective = judge.profiles.of(Some(&agent(by)));
    let alike = Alike {
        user: User {
            uid: judge.context.uid,
            gid: judge.context.gid,
        },
        neutral: &judge.neutral,
        cell_digest: &judge.cell_digest,
        to_networks: &judge.config.egress_to_networks,
        driver: ("docker", Isolation::Docker),
    };
    let holds = image.unwrap_or(&seen.image.rootfs).to_owned();
    let profile = digest(alike, &effective, Some(holds), |spec| {
        shape(spec, &seen.facts)
    });
    Order {
        id: id("0123456789ab"),
        folder: whose.folder().unwrap_or_default(),
        whose,
        image: Some(image.unwrap_or(&seen.image.id).to_owned()),
        profile,
        nonce: NONCE.to_owned(),
        uid: judge.context.uid,
        gid: judge.context.gid,
    }
}

fn trial(judge: &Judge) -> Order {
    let id = id("0123456789ab");
    Order {
        folder: probe::folder(&id),
        id,
        whose: Whose::Probe,
        image: None,
        profile: probe::PROFILE.to_owned(),
        nonce: NONCE.to_owned(),
        uid: judge.context.uid,
        gid: judge.context.gid,
    }
}

fn pinned(name: &ImageName) -> Option<String> {
    (name.as_str() == "tools:1").then(|| "sha256:tools".to_owned())
}

#[test]
fn a_box_is_made_of_the_configuration_whoever_it_is_for() {
    let (judge, seen) = (judge(context()), seen());
    let tools = Some("sha256:tools");
    let share = ShareName::new("team").unwrap();
    for (whose, by, image, folder, access) in [
        (
            Whose::Agent(agent("demo")),
            "demo",
            None,
            "demo",
            Access::Rw,
        ),
        (Whose::Agent(agent("own")), "own", tools, "own", Access::Rw),
        (
            Whose::Session(agent("each")),
            "each",
            None,
            "each",
            Access::Rw,
        ),
        (
            Whose::Ready(Some(agent("each"))),
            "each",
            None,
            "each",
            Access::Rw,
        ),
        (Whose::Ready(None), "none", None, "", Access::None),
        (
            Whose::Session(agent("none")),
            "none",
            None,
            "none",
            Access::None,
        ),
        (
            Whose::Shared(share),
            "both",
            None,
            "shared.team",
            Access::Rw,
        ),
    ] {
        let order = order(&judge, &seen, whose.clone(), by, image);
        let spec = judge.spec(&seen, pinned, &order).expect("as it should be");
        let effective = judge.profiles.of(Some(&agent(by)));
        assert_eq!(
            spec.workspace,
            PathBuf::from("/state/workspaces").join(folder)
        );
        assert_eq!(spec.run_dir, PathBuf::from("/state/run/b/0123456789ab"));
        assert_eq!((spec.access, spec.uid, spec.gid), (access, 65_600, 65_600));
        assert_eq!(spec.limits, BoxLimits::of(&effective.profile), "{whose}");
        assert_eq!(
            spec.image.as_deref(),
            Some(image.unwrap_or("sha256:default"))
        );
        assert_eq!((spec.owner.as_str(), spec.boot.as_str()), ("owner", "boot"));
        assert_eq!(
            (spec.profile_hash, spec.nonce.as_str()),
            (order.profile, NONCE)
        );
    }
    let spec = judge.spec(&seen, pinned, &trial(&judge)).unwrap();
    assert_eq!(
        spec.workspace,
        PathBuf::from("/state/workspaces/.probe-0123456789ab")
    );
}

#[test]
fn whatever_of_a_request_is_not_the_configurations_is_refused() {
    let (judge, seen) = (judge(context()), seen());
    let whose = |name: &str| Whose::Agent(agent(name));
    let good = order(&judge, &seen, whose("demo"), "demo", None);
    let with = |change: &dyn Fn(&mut Order)| {
        let mut order = good.clone();
        change(&mut order);
        judge.spec(&seen, pinned, &order).unwrap_err()
    };
    for folder in ["../x", "demo/..", "other", "", ".", "/etc", "demo/"] {
        let said = with(&|order| folder.clone_into(&mut order.folder));
        assert!(said.contains("is not the folder of demo"), "{said}");
    }
    for image in [None, Some("sha256:tools"), Some("debian"), Some("")] {
        let said = with(&|order| order.image = image.map(str::to_owned));
        assert!(said.contains("another was asked for"), "{said}");
    }
    for (uid, gid) in [
        (0, 65_600),
        (65_600, 0),
        (0, 0),
        (1000, 1000),
        (65_600, 4),
        (65_535, 65_535),
        (65_600, 65_601),
    ] {
        let said = with(&|order| (order.uid, order.gid) = (uid, gid));
        assert!(said.contains("no box runs as"), "{said}");
    }
    for nonce in [
        "",
        "00",
        &NONCE.to_uppercase(),
        &format!("{NONCE}0"),
        "--egress/run/portcullis/e-egress",
    ] {
        let said = with(&|order| nonce.clone_into(&mut order.nonce));
        assert!(said.contains("nonce"), "{said}");
    }
    let of_another = order(&judge, &seen, whose("own"), "own", Some("sha256:tools")).profile;
    for profile in ["", "probe", &"0".repeat(64), &of_another] {
        let said = with(&|order| profile.clone_into(&mut order.profile));
        assert!(said.contains("another profile was asked for"), "{said}");
    }
    // Whose boxes another driver makes has none of the engine's, whatever it is asked by.
    for by in ["native", "demo"] {
        let asked = order(&judge, &seen, whose("native"), by, None);
        let said = judge.spec(&seen, pinned, &asked).unwrap_err();
        assert!(said.contains("gives no such box to native"), "{said}");
    }
    // Of the agent's own scope only: a box that is an agent's for good is no session's, and nobody's folder is in one for anybody.
    for (other, folder) in [
        (Whose::Session(agent("demo")), "demo"),
        (Whose::Ready(Some(agent("demo"))), "demo"),
        (Whose::Ready(None), ""),
        (
            Whose::Shared(ShareName::new("team").unwrap()),
            "shared.team",
        ),
        (
            Whose::Shared(ShareName::new("other").unwrap()),
            "shared.other",
        ),
        (Whose::Probe, "demo"),
    ] {
        let said = judge.spec(
            &seen,
            pinned,
            &Order {
                whose: other.clone(),
                folder: folder.to_owned(),
                ..good.clone()
            },
        );
        assert!(said.is_err(), "{other}: {said:?}");
    }
    // An image that nobody has looked up, or that is another by now.
    let own = order(&judge, &seen, whose("own"), "own", Some("sha256:tools"));
    for now in [None, Some("sha256:moved".to_owned())] {
        let said = judge.spec(&seen, |_| now.clone(), &own).unwrap_err();
        assert!(said.contains("image"), "{said}");
    }
    // A trial is nothing else than a trial.
    let good = trial(&judge);
    for change in [
        |order: &mut Order| "demo".clone_into(&mut order.folder),
        |order: &mut Order| ".probe-0123456789ac".clone_into(&mut order.folder),
        |order: &mut Order| "0".repeat(64).clone_into(&mut order.profile),
        |order: &mut Order| order.image = Some("sha256:tools".to_owned()),
        |order: &mut Order| order.uid = 0,
        |order: &mut Order| order.gid = 4,
    ] {
        let mut order = good.clone();
        change(&mut order);
        assert!(judge.spec(&seen, pinned, &order).is_err(), "{order:?}");
    }
}

/// A runner in this process, spoken to as by its gateway.
struct Spoken {
    to: tokio::net::unix::OwnedWriteHalf,
    from: Incoming<tokio::net::unix::OwnedReadHalf>,
    served: JoinHandle<io::Result<()>>,
}

fn spoken(judge: Judge, engine: String) -> Spoken {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let engine = EngineConfig {
        engine: Some(engine),
        ..EngineConfig::default()
    };
    let served = tokio::spawn(serve(theirs, Ground::of(judge, engine)));
    let (from, to) = ours.into_split();
    Spoken {
        to,
        from: Incoming::new(from, MOST_ANSWERED),
        served,
    }
}

fn nobody() -> Spoken {
    spoken(
        judge(context()),
        "unix:///nonexistent/docker.sock".to_owned(),
    )
}

impl Spoken {
    async fn ask(&mut self, id: u64, ask: Ask) -> Result<Answer, Failed> {
        let asked = frame(&Asked { id, ask }, MOST_ASKED).unwrap();
        self.to.write_all(&asked).await.unwrap();
        let answered: Answered = self.from.next().await.unwrap().expect("it answers");
        assert_eq!(answered.id, id);
        answered.answer
    }

    /// These bytes end it, and it says nothing.
    async fn ends_by(mut self, bytes: &[u8]) -> io::Error {
        // It may have gone before it has read all.
        let _ = self.to.write_all(bytes).await;
        let ended = tokio::time::timeout(Duration::from_secs(20), self.served).await;
        let error = ended.expect("it goes on").unwrap().unwrap_err();
        assert!(!matches!(self.from.next::<Answered>().await, Ok(Some(_))));
        error
    }
}

#[tokio::test]
async fn what_is_no_request_ends_the_runner_without_an_answer() {
    let framed = |text: &str| {
        let mut bytes = u32::try_from(text.len()).unwrap().to_be_bytes().to_vec();
        bytes.extend(text.as_bytes());
        bytes
    };
    for text in [
        "",
        "\u{0}\u{1}",
        "{}",
        "[1,2]",
        r#"{"id":1}"#,
        r#"{"id":1,"ask":"exec"}"#,
        r#"{"id":-1,"ask":"ping"}"#,
        r#"{"id":1,"id":2,"ask":"ping"}"#,
        r#"{"id":1,"ask":"ping","more":1}"#,
        r#"{"id":1,"ask":{"stop":"../../etc"}}"#,
        r#"{"id":1,"ask":{"stop":"0123456789ab","image":"x"}}"#,
        r#"{"id":1,"ask":{"image":"a b\n"}}"#,
        r#"{"id":1,"ask":{"start":{"id":"0123456789ab","whose":{"agent":"../x"},"folder":"demo","image":null,"profile":"","nonce":"","uid":1,"gid":1}}}"#,
        r#"{"id":1,"ask":{"start":{"id":"0123456789ab","whose":{"agent":"demo"},"folder":"demo","image":null,"profile":"","nonce":"","uid":1,"gid":1,"privileged":true}}}"#,
        r#"{"id":1,"ask":{"start":{"id":"0123456789ab","whose":{"agent":"demo"},"folder":"demo","image":null,"profile":"","nonce":"","uid":1}}}"#,
        r#"{"id":1,"ask":{"start":{"id":"0123456789ab","whose":{"agent":"demo"},"folder":"demo","image":null,"profile":"","nonce":"","uid":4294967296,"gid":1}}}"#,
        r#"{"id":1,"ask":"ping"} {"id":2,"ask":"ping"}"#,
    ] {
        let mut nobody = nobody();
        assert_eq!(nobody.ask(7, Ask::Ping).await, Ok(Answer::Pong));
        let error = nobody.ends_by(&framed(text)).await;
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{text}");
    }
    // By its length alone, before a byte of it is kept.
    let long = u32::try_from(MOST_ASKED + 1).unwrap();
    for length in [long, u32::MAX] {
        let error = nobody().ends_by(&length.to_be_bytes()).await;
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{length}");
    }
    // Broken off in a frame, and between two: the end of the gateway.
    let mut cut = nobody();
    cut.to.write_all(&framed("{}")[..5]).await.unwrap();
    cut.to.shutdown().await.unwrap();
    let kind = cut.served.await.unwrap().unwrap_err().kind();
    assert_eq!(kind, io::ErrorKind::UnexpectedEof);
    let mut gone = nobody();
    assert_eq!(gone.ask(1, Ask::Ping).await, Ok(Answer::Pong));
    drop((gone.to, gone.from));
    gone.served.await.unwrap().unwrap();
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_a_reader_of_frames_do_anything_but_read_or_refuse(
        bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..4096),
        pieces in 1_usize..64,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (mut to, from) = tokio::io::duplex(64);
            let writing = async {
                for piece in bytes.chunks(pieces) {
                    if to.write_all(piece).await.is_err() {
                        break;
                    }
                }
                drop(to);
            };
            let reading = async {
                let mut from = Incoming::new(from, MOST_ASKED);
                while let Ok(Some(asked)) = from.next::<Asked>().await {
                    // What was read is what would be written.
                    let again = frame(&asked, MOST_ASKED).unwrap();
                    let mut again = Incoming::new(again.as_slice(), MOST_ASKED);
                    assert_eq!(again.next::<Asked>().await.unwrap(), Some(asked));
                }
            };
            futures_util::future::join(writing, reading).await;
        });
    }
}

#[tokio::test]
async fn without_an_engine_it_says_so_and_goes_on() {
    let mut nobody = nobody();
    for (id, ask) in [Ask::Open, Ask::List, Ask::Stop(id("0123456789ab"))]
        .into_iter()
        .enumerate()
    {
        let said = nobody.ask(id as u64, ask).await;
        assert!(
            matches!(&said, Err(Failed::NoDriver(why, _)) if why.contains("/nonexistent")),
            "{said:?}"
        );
    }
    let said = nobody.ask(9, Ask::Image(image("debian:latest"))).await;
    assert!(
        matches!(&said, Err(Failed::Refused(why)) if why.contains("names no image")),
        "{said:?}"
    );
    assert_eq!(nobody.ask(10, Ask::Ping).await, Ok(Answer::Pong));
}

/// Containers with this label, in whatever state.
async fn labelled(engine: &bollard::Docker, label: &str) -> Vec<String> {
    let filters = std::collections::HashMap::from([("label", vec![label.to_owned()])]);
    let options = bollard::query_parameters::ListContainersOptionsBuilder::default()
        .all(true)
        .filters(&filters)
        .build();
    let found = engine.list_containers(Some(options)).await.unwrap();
    found.into_iter().filter_map(|found| found.id).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forged_request_makes_and_ends_nothing_at_a_real_engine() {
    let engine = Engine::shared();
    let state = State::new();
    let judge = judge(state.context.clone());
    let mut runner = spoken(judge.clone(), engine.host());
    let seen = match runner.ask(1, Ask::Open).await {
        Ok(Answer::Opened(seen)) => *seen,
        other => panic!("{other:?}"),
    };
    let foreign = import(&engine, "foreign:1", "foreign", &[]).await;
    let good = order(&judge, &seen, Whose::Agent(agent("demo")), "demo", None);
    let mut number = 1;
    for change in [
        |order: &mut Order, _: &str| "../x".clone_into(&mut order.folder),
        |order: &mut Order, foreign: &str| order.image = Some(foreign.to_owned()),
        |order: &mut Order, _: &str| order.image = None,
        |order: &mut Order, _: &str| order.uid = 0,
        |order: &mut Order, _: &str| order.profile = "0".repeat(64),
        |order: &mut Order, _: &str| order.whose = Whose::Session(agent("demo")),
    ] {
        let mut forged = good.clone();
        change(&mut forged, &foreign);
        number += 1;
        let said = runner.ask(number, Ask::Start(Box::new(forged))).await;
        assert!(matches!(said, Err(Failed::Refused(_))), "{said:?}");
    }
    let said = runner.ask(90, Ask::Image(image("foreign:1"))).await;
    assert!(matches!(said, Err(Failed::Refused(_))), "{said:?}");
    let raw = raw(&engine);
    let own = format!("{OWNER_LABEL}={}", state.context.owner);
    assert_eq!(labelled(&raw, &own).await, Vec::<String>::new());

    // A container of somebody else's, under the very name of a box.
    let name = "0123456789ab";
    let body = ContainerCreateBody {
        image: Some(foreign),
        cmd: Some(vec!["/never".to_owned()]),
        labels: Some(
            [(OWNER_LABEL, "another"), (BOX_LABEL, name)]
                .map(|(label, value)| (label.to_owned(), value.to_owned()))
                .into(),
        ),
        ..ContainerCreateBody::default()
    };
    let made = raw.create_container(None::<CreateContainerOptions>, body);
    let theirs = made.await.unwrap().id;
    assert_eq!(
        runner.ask(91, Ask::Init(id(name))).await,
        Ok(Answer::Init(None))
    );
    assert_eq!(
        runner.ask(92, Ask::Stop(id(name))).await,
        Ok(Answer::Stopped)
    );
    assert_eq!(runner.ask(93, Ask::List).await, Ok(Answer::Boxes(vec![])));
    let left = raw.inspect_container(&theirs, None).await;
    let options = RemoveContainerOptionsBuilder::default().force(true).build();
    raw.remove_container(&theirs, Some(options)).await.unwrap();
    assert_eq!(left.unwrap().id, Some(theirs));
}

/// A runner that is this shell script.
fn ill(script: &str, beat: Duration) -> (RunnerHandle, JoinHandle<()>) {
    let program = Arc::new(RunnerProgram {
        program: "/bin/sh".into(),
        args: vec!["-c".into(), script.into()],
        env: vec![("PATH".to_owned(), "/usr/bin:/bin".to_owned())],
        config: None,
        beat,
    });
    let (calls, called) = mpsc::channel(4);
    let shown = Arc::new(Flag::new(RunnerShown::default()));
    let handle = RunnerHandle::new(calls, shown.reader());
    let kept = tokio::spawn(async move { match keep(program, called, shown).await {} });
    (handle, kept)
}

async fn restarted(runner: &RunnerHandle, times: u64) -> RunnerShown {
    let until = tokio::time::Instant::now() + Duration::from_secs(30);
    loop {
        let shown = runner.shown();
        if shown.restarts >= times {
            return shown;
        }
        assert!(tokio::time::Instant::now() < until, "{shown:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_runner_that_gives_no_sign_of_life_is_killed_and_who_waits_is_told() {
    let (runner, kept) = ill("exec sleep 1000", Duration::from_millis(100));
    let said = runner.ask(Ask::Open, Some(Duration::from_secs(20))).await;
    assert!(
        matches!(&said, Err(Failed::Gone(why)) if why.contains("no sign of life")),
        "{said:?}"
    );
    let shown = restarted(&runner, 1).await;
    assert!(shown.said.contains("no sign of life"), "{shown:?}");
    // One that is stopped is no other.
    let (stopped, kept_too) = ill("kill -STOP $$", Duration::from_millis(100));
    let shown = restarted(&stopped, 1).await;
    assert!(shown.said.contains("no sign of life"), "{shown:?}");
    kept.abort();
    kept_too.abort();
}

#[tokio::test]
async fn a_runner_that_ends_is_started_again_at_once_and_then_more_and_more_seldom() {
    let began = tokio::time::Instant::now();
    let (runner, kept) = ill("exit 3", Duration::from_secs(5));
    let shown = restarted(&runner, 2).await;
    assert!(shown.said.contains("exit status: 3"), "{shown:?}");
    restarted(&runner, 6).await;
    // 50, 100, 200, 400 ms from the second on.
    assert!(began.elapsed() >= Duration::from_millis(750));
    kept.abort();
    let _ = kept.await;
    // Nobody keeps one any more: it is told at once.
    let said = runner.ask(Ask::List, Some(Duration::from_secs(20))).await;
    assert!(matches!(said, Err(Failed::Gone(_))), "{said:?}");
}

#[tokio::test]
async fn a_runner_that_speaks_otherwise_is_ended() {
    // Longer than any answer, by its length alone; and no JSON.
    for script in [
        r"printf '\377\377\377\377' >&0; exec sleep 1000",
        r"printf '\0\0\0\2[]' >&0; exec sleep 1000",
    ] {
        let (runner, kept) = ill(script, Duration::from_secs(5));
        let shown = restarted(&runner, 1).await;
        assert!(shown.said.contains("otherwise"), "{shown:?}");
        kept.abort();
    }
}

#[test]
fn of_a_line_of_its_log_without_an_end_no_more_is_kept_than_is_shown() {
    let mut relay = Relay::new();
    for _ in 0..1000 {
        relay.bytes.extend([b'x'; 1000]);
        relay.pass();
        assert!(relay.bytes.len() <= LONGEST_LINE, "{}", relay.bytes.len());
    }
    relay
        .bytes
        .extend(b"\nWARN \x1b[31mred\x07 and\tmore\nrest");
    assert!(relay.line().is_some());
    assert_eq!(relay.line().as_deref(), Some("WARN  [31mred  and more"));
    assert_eq!(relay.line(), None);
    assert_eq!(relay.bytes, b"rest");
}
