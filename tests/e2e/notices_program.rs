//! Notices by a program of this machine: only the one that is named, as it was named, and nothing of it is left.

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::notices::{ask, asked_and_answered};
use crate::support::gateway::Gateway;
use crate::support::ws::{admin, hex};

const PLANTED: &str = "planted-word-of-the-command-9d1f";
const PATIENCE: Duration = Duration::from_mins(1);
/// What the script reads: on this system `sh` is it, by a link.
const READER: &str = "/bin/sh";

/// A program that says what it got and how it stands, or does what `mode` says.
struct Bell {
    folder: tempfile::TempDir,
    out: PathBuf,
    script: PathBuf,
}

fn chmod(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn digest(path: &Path) -> String {
    hex(&Sha256::digest(std::fs::read(path).unwrap()))
}

impl Bell {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().canonicalize().unwrap();
        chmod(&at, 0o755);
        let open = at.join("open");
        std::fs::create_dir(&open).unwrap();
        chmod(&open, 0o777);
        let (out, script) = (open.join("out"), at.join("bell"));
        std::fs::write(at.join("mode"), "say\n").unwrap();
        let text = format!(
            "#! {READER}\nread -r line\nread -r mode < {at}/mode\n\
             case $mode in\n\
             hang) trap '' TERM; /usr/bin/sleep 86431 & /usr/bin/sleep 86432;;\n\
             daemon) (/usr/bin/setsid /usr/bin/sleep 86433 > /dev/null 2>&1 &);;\n\
             fail) exit 7;;\n\
             esac\n\
             {{ printf '%s\\n' \"$line\"; printf 'uid %s args %s\\n' \"$(/usr/bin/id -u)\" \"$*\"; /usr/bin/env; \
             printf 'state %s\\n' \"$(/usr/bin/ls -A \"$2\" 2>&1 | /usr/bin/tr '\\n' ' ')\"; printf 'end\\n'; }} >> {out}\n",
            at = at.display(),
            out = out.display(),
        );
        std::fs::write(&script, text).unwrap();
        chmod(&script, 0o755);
        Self {
            folder,
            out,
            script,
        }
    }

    fn mode(&self, mode: &str) {
        std::fs::write(self.folder.path().join("mode"), format!("{mode}\n")).unwrap();
    }

    fn set(&self, gateway: &mut Gateway) {
        let reader = Path::new(READER).canonicalize().unwrap();
        let arguments = format!("[\"--state\", \"{}\"]", gateway.state().display());
        for (name, value) in [
            ("plugins.bell.path", self.script.to_str().unwrap()),
            ("plugins.bell.sha256", &digest(&self.script)),
            ("plugins.reader.path", reader.to_str().unwrap()),
            ("plugins.reader.sha256", &digest(&reader)),
            ("notices.program.plugin", "bell"),
            ("notices.program.arguments", &arguments),
            ("notices.program.timeout_ms", "3000"),
            ("notices.retry_ms", "50"),
            ("notices.attempts", "1000"),
        ] {
            gateway.set(name, value);
        }
    }

    /// What it has said, a block for each time.
    fn said(&self) -> Vec<String> {
        let text = std::fs::read_to_string(&self.out).unwrap_or_default();
        let whole = text.split_inclusive("end\n");
        whole
            .filter(|block| block.ends_with("end\n"))
            .map(str::to_owned)
            .collect()
    }

    fn has_said(&self, count: usize) {
        let end = Instant::now() + PATIENCE;
        while self.said().len() < count {
            assert!(Instant::now() < end, "{count}: {:?}", self.said());
            std::thread::sleep(Duration::from_millis(50));
        }
        assert_eq!(self.said().len(), count, "{:?}", self.said());
    }
}

fn shown(gateway: &Gateway) -> Value {
    gateway.json(&["status"])["portcullis"].clone()
}

fn until(gateway: &Gateway, what: &str, is: impl Fn(&Value) -> bool) {
    let end = Instant::now() + PATIENCE;
    loop {
        let now = shown(gateway);
        if is(&now) {
            return;
        }
        assert!(
            Instant::now() < end,
            "{what}: {} {}",
            now["notices"],
            now["plugins"]
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn fails(part: &str) -> impl Fn(&Value) -> bool + '_ {
    move |now| {
        let error = &now["notices"]["program"]["error"];
        error.as_str().is_some_and(|why| why.contains(part))
    }
}

/// What somebody does to a program.
type Change<'a> = Box<dyn Fn() + 'a>;

/// Is a process with this argument there?
fn lives(argument: &str) -> bool {
    std::fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0)
            .any(|word| word == argument.as_bytes())
    })
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_gets_the_notice_and_nothing_of_the_gateway_also_where_that_is_not_root() {
    // A gateway of root gives root up; any other holds the program in bubblewrap.
    for uid in [None, Some(61_234)] {
        if uid.is_some() && !is_root() {
            continue;
        }
        let bell = Bell::new();
        let mut gateway = Gateway::prepared(&[]);
        if let Some(uid) = uid {
            gateway = gateway.run_by(uid);
            // Who asks and answers here.
            gateway.set("gateway.local.operators", r#"["self", "uid:0"]"#);
        }
        bell.set(&mut gateway);
        gateway.set("PLANTED_VARIABLE", PLANTED);
        gateway.launch();
        asked_and_answered(&gateway, "p1").await;
        bell.has_said(2);
        let due = match uid {
            None if is_root() => 65_534,
            None => rustix::process::geteuid().as_raw(),
            Some(uid) => uid,
        };
        for (block, event) in bell
            .said()
            .iter()
            .zip(["approval.requested", "approval.resolved"])
        {
            let line: Value = serde_json::from_str(block.lines().next().unwrap()).unwrap();
            assert_eq!(line["event"], event);
            // Who asked has no word in it.
            let id = line["id"].as_str().unwrap();
            assert!(id.starts_with("pc-") && !block.contains("p1\""), "{id}");
            assert_eq!(line.as_object().unwrap().len(), 7, "{line}");
            let state = gateway.state();
            let args = format!("uid {due} args --state {}\n", state.display());
            assert!(block.contains(&args), "{block}");
            // The shell's own variable is the only one.
            let variables = block.lines().filter(|line| line.contains('='));
            let variables: Vec<_> = variables.filter(|line| !line.starts_with('{')).collect();
            assert!(
                variables.iter().all(|v| ["PWD=", "_=", "SHLVL=", "OLDPWD="]
                    .iter()
                    .any(|own| v.starts_with(own))),
                "{variables:?}"
            );
            assert!(
                !block.contains("state.db") && !block.contains("keys"),
                "{block}"
            );
            assert!(!block.contains(PLANTED), "{block}");
        }
        let now = shown(&gateway);
        assert_eq!(now["plugins"]["bell"]["state"], "ok", "{now}");
        assert_eq!(now["plugins"]["reader"]["state"], "ok");
        let text = String::from_utf8(gateway.cli(&["status"]).stdout).unwrap();
        assert!(text.contains("program bell: 2 told, 0 waiting"), "{text}");
        assert!(
            text.contains(&format!("bell {}: ok", bell.script.display())),
            "{text}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_was_exchanged_or_that_others_could_exchange_is_never_started() {
    let bell = Bell::new();
    let mut gateway = Gateway::prepared(&[]);
    bell.set(&mut gateway);
    gateway.launch();
    asked_and_answered(&gateway, "s1").await;
    bell.has_said(2);
    let (path, aside) = (&bell.script, bell.folder.path().join("aside"));
    let other = format!(
        "#! {READER}\nprintf 'another\\nend\\n' >> {}\n",
        bell.out.display()
    );
    let folder = bell.folder.path().to_owned();
    let whole = std::fs::read(path).unwrap();
    let mut count = 2;
    let changes: [(&str, Change<'_>, Change<'_>); 6] = [
        (
            "PLUGIN_CHANGED",
            Box::new(|| {
                std::fs::rename(path, &aside).unwrap();
                std::fs::write(path, &other).unwrap();
                chmod(path, 0o755);
            }),
            Box::new(|| std::fs::rename(&aside, path).unwrap()),
        ),
        (
            "PLUGIN_CHANGED",
            // In place: the same file with other bytes.
            Box::new(|| std::fs::write(path, &other).unwrap()),
            Box::new(|| std::fs::write(path, &whole).unwrap()),
        ),
        (
            "PLUGIN_UNSAFE",
            Box::new(|| chmod(path, 0o775)),
            Box::new(|| chmod(path, 0o755)),
        ),
        (
            "PLUGIN_UNSAFE",
            Box::new(|| chmod(&folder, 0o777)),
            Box::new(|| chmod(&folder, 0o755)),
        ),
        (
            "PLUGIN_UNSAFE",
            Box::new(|| {
                std::fs::rename(path, &aside).unwrap();
                symlink(&aside, path).unwrap();
            }),
            Box::new(|| std::fs::rename(&aside, path).unwrap()),
        ),
        (
            "PLUGIN_NOT_FOUND",
            Box::new(|| std::fs::rename(path, &aside).unwrap()),
            Box::new(|| std::fs::rename(&aside, path).unwrap()),
        ),
    ];
    for (number, (code, change, back)) in changes.iter().enumerate() {
        change();
        asked_and_answered(&gateway, &format!("t{number}")).await;
        until(&gateway, code, fails(code));
        assert_eq!(shown(&gateway)["plugins"]["bell"]["state"], *code);
        assert_eq!(bell.said().len(), count, "{number} {code}");
        back();
        count += 2;
        bell.has_said(count);
        until(&gateway, "all is told", |now| {
            let program = &now["notices"]["program"];
            program["error"].is_null() && program["waiting"] == 0
        });
    }
    assert!(
        !std::fs::read_to_string(&bell.out)
            .unwrap()
            .contains("another")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_hangs_or_leaves_something_behind_is_ended_with_all_of_it_and_nobody_waits()
{
    let bell = Bell::new();
    let mut gateway = Gateway::prepared(&[]);
    bell.set(&mut gateway);
    gateway.set("notices.program.timeout_ms", "1000");
    gateway.launch();
    bell.mode("daemon");
    asked_and_answered(&gateway, "u1").await;
    bell.has_said(2);
    until(&gateway, "told", |now| {
        now["notices"]["program"]["told"] == 2
    });
    assert!(!lives("86433"));
    bell.mode("hang");
    let took = asked_and_answered(&gateway, "u2").await;
    assert!(took < Duration::from_secs(10), "{took:?}");
    until(&gateway, "it hangs", fails("took too long"));
    bell.mode("fail");
    until(&gateway, "it fails", fails("ended with 7"));
    assert!(!lives("86431") && !lives("86432"));
    // A stop of the gateway ends it too.
    bell.mode("hang");
    let end = Instant::now() + PATIENCE;
    while !lives("86432") {
        assert!(Instant::now() < end, "it does not run");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(gateway.stop(), 0);
    let end = Instant::now() + Duration::from_secs(10);
    while lives("86431") || lives("86432") {
        assert!(Instant::now() < end, "it outlives the gateway");
        std::thread::sleep(Duration::from_millis(50));
    }
    bell.mode("say");
    gateway.launch();
    // It was not told; what is over by now is not told any more.
    let mut asks = admin(&gateway).await;
    ask(&mut asks, "u3", json!({})).await;
    bell.has_said(3);
    assert!(bell.said()[2].contains("approval.requested"));
}
