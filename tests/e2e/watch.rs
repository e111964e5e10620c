//! `portcullis approvals watch` at a terminal: a card when a question comes, decided by a key and Enter.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use super::walk::Background;
use crate::support::gateway::Gateway;

/// A program at a terminal of its own.
pub struct Terminal {
    child: Child,
    keys: File,
    screen: Receiver<Vec<u8>>,
    shown: String,
}

impl Terminal {
    pub fn open(mut command: Command) -> Self {
        use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
        let own = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&own).unwrap();
        unlockpt(&own).unwrap();
        let name = ptsname(&own, vec![]).unwrap().into_string().unwrap();
        let theirs = File::options().read(true).write(true).open(name).unwrap();
        let end = || Stdio::from(OwnedFd::from(theirs.try_clone().unwrap()));
        command.stdin(end()).stdout(end()).stderr(end());
        let child = command.spawn().unwrap();
        drop((theirs, command));
        let keys = File::from(own);
        let mut reads = keys.try_clone().unwrap();
        let (tx, screen) = channel();
        // Ends with the terminal.
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(n @ 1..) = reads.read(&mut bytes) {
                if tx.send(bytes[..n].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self {
            child,
            keys,
            screen,
            shown: String::new(),
        }
    }

    /// Reads on until this is on the screen; what came before it is forgotten.
    pub fn until(&mut self, text: &str) -> String {
        let end = Instant::now() + Duration::from_mins(1);
        loop {
            if let Some(at) = self.shown.find(text) {
                let rest = self.shown.split_off(at + text.len());
                return std::mem::replace(&mut self.shown, rest);
            }
            let left = end.saturating_duration_since(Instant::now());
            match self.screen.recv_timeout(left) {
                Ok(bytes) => self.shown.push_str(&String::from_utf8_lossy(&bytes)),
                Err(error) => panic!("no {text:?} ({error}):\n{}", self.shown),
            }
        }
    }

    /// Another size, as when its window is drawn larger. The program is told, which leads no session here.
    pub fn size(&self, rows: u16, cols: u16) {
        let size = rustix::termios::Winsize {
            ws_row: rows,
            ws_col: cols,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        rustix::termios::tcsetwinsize(&self.keys, size).unwrap();
        self.told(rustix::process::Signal::WINCH);
    }

    pub fn told(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Does it take lines, and show them?
    pub fn is_plain(&self) -> bool {
        use rustix::termios::{LocalModes, tcgetattr};
        let modes = tcgetattr(&self.keys).unwrap().local_modes;
        modes.contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }

    /// Its exit code.
    pub fn ends(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }

    pub fn types(&mut self, text: &str) {
        self.keys.write_all(text.as_bytes()).unwrap();
    }
}

#[test]
fn a_person_at_a_terminal_decides_what_comes_by_a_key() {
    let gateway = Gateway::start();
    let mut watch = Terminal::open(gateway.command(&["approvals", "watch"]));
    watch.until("watching; ctrl-C ends it");
    let exec = |word: &str| {
        let argv = ["exec", "--agent", "demo", "--host", "--", "echo", word];
        Background::start(&gateway, &argv)
    };
    let denied = exec("first");
    let card = watch.until("[d] deny   [a1] allow once, then Enter");
    assert!(card.contains("\"first\""), "{card}");
    // What is no answer decides nothing.
    watch.types("yes\n");
    watch.until("d and Enter denies, a1 and Enter allows once");
    watch.types("d\n");
    watch.until(": deny by ");
    let (code, out, _) = denied.end();
    assert_eq!((code, out.as_str()), (125, ""));

    let allowed = exec("second");
    let card = watch.until("[d] deny   [a2] allow once, then Enter");
    assert!(
        card.contains("\"second\"") && !card.contains("\"first\""),
        "{card}"
    );
    watch.types("a1\n");
    watch.until("that is not the card that is shown");
    watch.types("a2\n");
    watch.until(": allow-once by ");
    let (code, out, told) = allowed.end();
    assert_eq!((code, out.trim_end()), (0, "second"), "{told}");
    // A change of the policy is answered here too.
    let file = gateway.home().join("policy.json");
    std::fs::write(
        &file,
        r#"{"version":1,"agents":{"demo":{"security":"full","ask":"off"}}}"#,
    )
    .unwrap();
    gateway.cli(&["approvals", "policy", "--set", file.to_str().unwrap()]);
    watch.until("[d] deny   [a3] allow once, then Enter");
    watch.types("a3\n");
    watch.until(": allow-once by ");
    let policy = gateway.json(&["approvals", "policy"]);
    assert_eq!(policy["file"]["agents"]["demo"]["ask"], "off", "{policy}");
    // Ctrl-C at the terminal.
    let pid = rustix::process::Pid::from_child(&watch.child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(watch.child.wait().unwrap().code(), Some(0));
}
