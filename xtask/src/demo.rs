//! `cargo xtask demo evidence`: what the vault and the audit log promise, shown with a gateway of its own on a temporary
//! state. Every command is printed as it runs; one that does not end as promised ends the demo with 1.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::cargo;
use crate::options::Options;

/// For a start, on a machine that builds something else.
const READY: Duration = Duration::from_mins(1);
/// What the vault keeps in this demo.
const SECRET: &str = "hunter2-the-demo-secret-2b7e151628aed2a6";
/// `audit verify` of a log that is not what it was.
const BROKEN: i32 = 10;

pub fn run(options: &Options) -> Result<u8> {
    match options.names.as_slice() {
        [name] if name == "evidence" => {}
        _ => {
            eprintln!("there is one: cargo xtask demo evidence");
            return Ok(2);
        }
    }
    let binary = match options.rest.as_slice() {
        [flag, path] if flag == "--binary" => PathBuf::from(path),
        [] => {
            let built = cargo::cargo(&["build", "--release", "--package", "portcullis"])
                .status()
                .context("cargo could not be started")?;
            ensure!(built.success(), "the release build failed");
            cargo::target()?.join("release/portcullis")
        }
        _ => bail!("after -- only --binary PATH is known"),
    };
    let place = Place::new()?;
    let demo = Demo {
        binary,
        home: place.0.clone(),
    };
    let began = Instant::now();
    demo.evidence()?;
    println!("\nAll of it held ({:.0} s).", began.elapsed().as_secs_f64());
    Ok(0)
}

/// A folder of our own, removed at the end.
struct Place(PathBuf);

impl Place {
    fn new() -> Result<Self> {
        let mut random = [0_u8; 8];
        std::io::Read::read_exact(&mut fs::File::open("/dev/urandom")?, &mut random)?;
        let name = format!("portcullis-demo-{:016x}", u64::from_be_bytes(random));
        let path = std::env::temp_dir().join(name);
        fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Ends with its owner.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Demo {
    binary: PathBuf,
    home: PathBuf,
}

/// What a command said, and how it ended.
struct Said {
    code: i32,
    text: String,
}

impl Demo {
    fn evidence(&self) -> Result<()> {
        let own = self.home.join("identity.key");
        let state = self.home.join("state");
        title("A gateway of its own: a secret, some acts, a change of the log's key");
        let gateway = self.start(&state, &own)?.context("it does not serve")?;
        // Without an unlocker that is open yet the first try may have to wait.
        let until = Instant::now() + READY;
        while self.quiet(&state, &own, &["vault", "status"], None)?.code != 0 {
            ensure!(Instant::now() < until, "the vault does not open");
            pause();
        }
        self.must(&state, &own, &["vault", "set", "API_KEY"], Some(SECRET), 0)?;
        for n in 0..3 {
            let name = format!("OTHER_{n}");
            self.must(
                &state,
                &own,
                &["vault", "set", &name],
                Some("another value"),
                0,
            )?;
        }
        let head = self.must(&state, &own, &["audit", "head"], None, 0)?;
        let key = head
            .text
            .lines()
            .find_map(|line| line.strip_prefix("first key "))
            .context("no first key is told")?
            .trim()
            .to_owned();
        println!("  The first public key is kept elsewhere: on paper, on another machine.");
        Self::stop(gateway)?;
        // The second start ends the first epoch, and destroys its key.
        let gateway = self.start(&state, &own)?.context("it does not serve")?;
        let early = self.home.join("early");
        Self::stop(gateway)?;
        copy(&state, &early)?;

        self.thief(&state)?;
        self.forger(&state, &own)?;
        self.intruder(&state, &own, &key)?;
        self.tail(&state, &own, &early)
    }

    /// 1. The whole state directory, as it is.
    fn thief(&self, state: &Path) -> Result<()> {
        title("1. A thief copies the whole state directory");
        let stolen = self.home.join("stolen");
        copy(state, &stolen)?;
        let mut files = Vec::new();
        list(&stolen, &mut files)?;
        let needles = [
            SECRET.as_bytes().to_vec(),
            base64(SECRET.as_bytes()),
            hex(SECRET.as_bytes()),
        ];
        let planted = [b"before ".as_slice(), needles[1].as_slice()].concat();
        ensure!(
            needles.iter().any(|needle| holds(&planted, needle)),
            "the search finds nothing at all"
        );
        let mut bytes = 0;
        for file in &files {
            let content = fs::read(file)?;
            bytes += content.len();
            for needle in &needles {
                ensure!(
                    !holds(&content, needle),
                    "{} holds the secret",
                    file.display()
                );
            }
        }
        held(&format!(
            "the secret is in none of its {} files ({bytes} bytes), neither plain nor in base64 or hex",
            files.len()
        ));
        println!("  He starts a gateway on it, with an identity of his own:");
        let other = self.home.join("thief.key");
        let started = self.start(&stolen, &other)?;
        ensure!(started.is_none(), "a gateway serves on the stolen state");
        held(
            "it does not start: what signs and what opens the vault is sealed under the identity, which is not in the folder",
        );
        let keys = names(&stolen.join("keys"))?;
        let log: Vec<&String> = keys
            .iter()
            .filter(|name| {
                name.starts_with("audit-") && Path::new(name).extension() == Some("key".as_ref())
            })
            .collect();
        println!("  $ ls stolen/keys\n    {}", keys.join("  "));
        ensure!(log.len() == 1, "more than one key of the log lies there");
        held(
            "of the log's keys the newest alone is there, sealed: those of closed epochs are destroyed",
        );
        fs::remove_dir_all(stolen)?;
        Ok(())
    }

    /// 2. Write access to the state directory while nothing runs, and no key.
    fn forger(&self, state: &Path, own: &Path) -> Result<()> {
        title("2. Somebody may write the files while the gateway is down, and has no key");
        let forged = self.home.join("forged");
        copy(state, &forged)?;
        let segment = newest_segment(&forged)?;
        let good = fs::read(&segment)?;
        let record = follow(&good, "vault.open")?;
        fs::write(&segment, [good.as_slice(), &record].concat())?;
        println!("  He adds an act to the log; its hashes are right:");
        let offline = ["audit", "verify", "--offline"];
        let said = self.must(&forged, own, &offline, None, 0)?;
        ensure!(
            said.text.contains("under no checkpoint yet: the last 1"),
            "it does not say what nobody has signed"
        );
        let started = self.start(&forged, own)?;
        ensure!(started.is_none(), "a gateway goes on with a forged log");
        held("the gateway does not go on with it: the record's tag is not under the log's key");
        println!("  He cuts the end of the log, and the checkpoints with it:");
        let kept = good.len() - last_record(&good)?.len();
        fs::write(&segment, &good[..kept])?;
        let audit = forged.join("audit");
        let notes = audit.join("checkpoints");
        let newest = names(&notes)?.pop().context("no checkpoints")?;
        fs::remove_file(notes.join(newest))?;
        fs::remove_dir_all(audit.join("tile"))?;
        let started = self.start(&forged, own)?;
        ensure!(started.is_none(), "a gateway goes on with a cut log");
        held("how far the log had come at its stop is sealed: it does not go on with less");
        fs::remove_dir_all(forged)?;
        Ok(())
    }

    /// 3. Write access to everything, the identity key too.
    fn intruder(&self, state: &Path, own: &Path, key: &str) -> Result<()> {
        title("3. An intruder may write everywhere, and has the identity key too");
        let words = ["audit", "verify", "--offline", "--key", key];
        self.must(state, own, &words, None, 0)?;
        let changed = self.home.join("changed");
        copy(state, &changed)?;
        let segment = newest_segment(&changed)?;
        let mut bytes = fs::read(&segment)?;
        let at = find(&bytes, b"vault.set").context("no act in the first segment")?;
        bytes[at..at + 9].copy_from_slice(b"vault.get");
        fs::write(&segment, bytes)?;
        println!("  He makes another act of one in the closed epoch:");
        let said = self.must(&changed, own, &words, None, BROKEN)?;
        ensure!(
            said.text.contains("record "),
            "it does not say which record"
        );
        held("verifying names the record");
        fs::remove_dir_all(&changed)?;
        println!("  He has the gateway write a whole new history, with the machine's own keys:");
        let forged = self.home.join("forged");
        let gateway = self.start(&forged, own)?.context("it does not serve")?;
        Self::stop(gateway)?;
        self.must(&forged, own, &["audit", "verify", "--offline"], None, 0)?;
        println!("  By itself it is whole. Under the key that was kept elsewhere:");
        self.must(&forged, own, &words, None, BROKEN)?;
        held("no key on the machine signs the closed epochs anew");
        fs::remove_dir_all(forged)?;
        Ok(())
    }

    /// 4. The tail cut, by putting back an older folder.
    fn tail(&self, state: &Path, own: &Path, early: &Path) -> Result<()> {
        title("4. He cuts the log's end: the folder of before is put back");
        let gateway = self.start(state, own)?.context("it does not serve")?;
        self.must(state, own, &["vault", "rm", "API_KEY"], None, 0)?;
        let head = self.must(state, own, &["audit", "head"], None, 0)?;
        Self::stop(gateway)?;
        let note = self.home.join("checkpoint");
        let text: Vec<&str> = head
            .text
            .lines()
            .take_while(|line| !line.starts_with("first key "))
            .collect();
        fs::write(&note, text.join("\n") + "\n")?;
        println!("  That checkpoint is kept elsewhere. The folder of before:");
        fs::remove_dir_all(state)?;
        fs::rename(early, state)?;
        // Of a user who has seen nothing yet.
        let fresh = self.home.join("nobody");
        fs::DirBuilder::new().mode(0o700).create(&fresh)?;
        let stranger = Self {
            binary: self.binary.clone(),
            home: fresh,
        };
        let alone = stranger.must(state, own, &["audit", "verify", "--offline"], None, 0)?;
        ensure!(
            alone.text.contains("no outside checkpoint"),
            "it does not say what it cannot know"
        );
        held("by itself it is whole, and verifying says that it cannot know");
        let file = note.display().to_string();
        self.must(
            state,
            own,
            &["audit", "verify", "--offline", "--against", &file],
            None,
            BROKEN,
        )?;
        held("who holds a checkpoint sees it");
        let gateway = self.start(state, own)?.context("it does not serve")?;
        println!("  The gateway cannot know either, and serves. The user who asked it before:");
        let said = self.run(state, own, &["status"], None)?;
        ensure!(
            said.code != 0 && said.text.contains("AUDIT_FORKED"),
            "status does not say that the log does not go on"
        );
        held("his own command line kept the newest checkpoint, and says AUDIT_FORKED");
        Self::stop(gateway)
    }

    fn command(&self, state: &Path, identity: &Path, words: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .args(words)
            .env_clear()
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .env("HOME", &self.home)
            .env("PORTCULLIS_STATE_DIR", state)
            .env("PORTCULLIS_IDENTITY_FILE", identity)
            .stdin(Stdio::null());
        command
    }

    /// A gateway that serves; none where it refuses to.
    fn start(&self, state: &Path, identity: &Path) -> Result<Option<Running>> {
        if !state.exists() {
            fs::DirBuilder::new().mode(0o700).create(state)?;
        }
        let log = self.home.join("gateway.log");
        let out = fs::File::options()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(&log)?;
        let child = self
            .command(state, identity, &["gateway", "--port", "0"])
            .env("PORTCULLIS__SANDBOX__DRIVER", "native")
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .with_context(|| format!("{} could not be started", self.binary.display()))?;
        println!("  $ portcullis gateway --state {}", short(state));
        let mut running = Running(child);
        let until = Instant::now() + READY;
        while Instant::now() < until {
            if running.0.try_wait()?.is_some() {
                let said = fs::read_to_string(&log)?;
                for line in said.lines().filter(|line| line.contains("error[")).take(2) {
                    println!("    {line}");
                }
                return Ok(None);
            }
            if fs::read_to_string(&log)?.contains("gateway serves") {
                return Ok(Some(running));
            }
            pause();
        }
        bail!(
            "the gateway neither serves nor ends:\n{}",
            fs::read_to_string(&log)?
        )
    }

    fn stop(mut gateway: Running) -> Result<()> {
        let id = gateway.0.id().to_string();
        let told = Command::new("kill").arg(&id).status().context("kill(1)")?;
        ensure!(told.success(), "the gateway could not be told to stop");
        let until = Instant::now() + READY;
        while gateway.0.try_wait()?.is_none() {
            ensure!(Instant::now() < until, "the gateway does not stop");
            pause();
        }
        Ok(())
    }

    /// Runs it, shows it, and holds it to its exit code.
    fn must(
        &self,
        state: &Path,
        own: &Path,
        words: &[&str],
        input: Option<&str>,
        code: i32,
    ) -> Result<Said> {
        let said = self.run(state, own, words, input)?;
        ensure!(said.code == code, "it ended with {}, not {code}", said.code);
        Ok(said)
    }

    fn run(&self, state: &Path, own: &Path, words: &[&str], input: Option<&str>) -> Result<Said> {
        let shown: Vec<String> = words.iter().map(|word| short(Path::new(word))).collect();
        println!(
            "  $ portcullis {}{}",
            shown.join(" "),
            if input.is_some() { " < FILE" } else { "" }
        );
        let said = self.quiet(state, own, words, input)?;
        for line in said
            .text
            .lines()
            .filter(|line| !line.trim().is_empty())
            .take(6)
        {
            println!("    {line}");
        }
        println!("    exit {}", said.code);
        Ok(said)
    }

    fn quiet(&self, state: &Path, own: &Path, words: &[&str], input: Option<&str>) -> Result<Said> {
        let mut command = self.command(state, own, words);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        if input.is_some() {
            command.stdin(Stdio::piped());
        }
        let mut child = command
            .spawn()
            .with_context(|| format!("{} could not be started", self.binary.display()))?;
        if let (Some(text), Some(mut pipe)) = (input, child.stdin.take()) {
            pipe.write_all(text.as_bytes())?;
        }
        let output = child.wait_with_output()?;
        let text = [output.stdout, output.stderr].concat();
        Ok(Said {
            code: output.status.code().unwrap_or(-1),
            text: String::from_utf8_lossy(&text).into_owned(),
        })
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "no runtime here, and nobody else waits"
)]
fn pause() {
    std::thread::sleep(Duration::from_millis(50));
}

/// The segment that the log ends in.
fn newest_segment(state: &Path) -> Result<PathBuf> {
    let audit = state.join("audit");
    let name = names(&audit)?
        .into_iter()
        .rfind(|name| Path::new(name).extension().is_some_and(|end| end == "log"))
        .context("no segment")?;
    Ok(audit.join(name))
}

/// The last record of a segment: its length, its leaf, its hash.
fn last_record(segment: &[u8]) -> Result<&[u8]> {
    // Behind the header.
    let mut rest = segment.get(84..).context("no segment")?;
    loop {
        let (len, _) = rest.split_first_chunk::<4>().context("no record")?;
        let len = 4 + usize::try_from(u32::from_be_bytes(*len))? + 32;
        let (record, behind) = rest.split_at_checked(len).context("half a record")?;
        if behind.is_empty() {
            return Ok(record);
        }
        rest = behind;
    }
}

/// A record that follows the segment's last one, of an act of this name: all of it right but for the tag, which takes a key.
fn follow(segment: &[u8], action: &str) -> Result<Vec<u8>> {
    const SEQ: usize = 16 + 1 + 4;
    const PREV: usize = SEQ + 8;
    let last = last_record(segment)?;
    let (leaf, hash) = last[4..].split_at(last.len() - 36);
    let mut new = leaf[..PREV + 64].to_vec();
    let seq = leaf[SEQ..PREV].try_into().map(u64::from_be_bytes)? + 1;
    new[SEQ..PREV].copy_from_slice(&seq.to_be_bytes());
    new[PREV..PREV + 32].copy_from_slice(hash);
    // An event: its action, ten fields that are not there, no details.
    new.push(3);
    new.extend_from_slice(&u16::try_from(action.len())?.to_be_bytes());
    new.extend_from_slice(action.as_bytes());
    new.extend_from_slice(&[0; 12]);
    // The tag.
    new.extend_from_slice(&[0xaa; 16]);
    let len = u32::try_from(new.len())?.to_be_bytes();
    new[17..SEQ].copy_from_slice(&len);
    let hash = sha256(&[&[0], new.as_slice()].concat())?;
    Ok([&len, new.as_slice(), &hash].concat())
}

/// By the system's own tool.
fn sha256(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut child = Command::new("sha256sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("sha256sum(1)")?;
    let mut pipe = child.stdin.take().context("no pipe")?;
    pipe.write_all(bytes)?;
    drop(pipe);
    let said = String::from_utf8(child.wait_with_output()?.stdout)?;
    let digits = said.get(..64).context("sha256sum(1) says no sum")?;
    let byte = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16);
    Ok((0..64).step_by(2).map(byte).collect::<Result<_, _>>()?)
}

fn title(text: &str) {
    println!("\n{text}");
}

fn held(text: &str) {
    println!("  HELD: {text}");
}

/// A path of the demo by its last name.
fn short(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    if path.is_absolute() {
        name
    } else {
        path.as_os_str()
    }
    .to_string_lossy()
    .into_owned()
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        found.push(entry?.file_name().to_string_lossy().into_owned());
    }
    found.sort();
    Ok(found)
}

fn list(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            list(&entry.path(), found)?;
        } else if kind.is_file() {
            found.push(entry.path());
        }
    }
    Ok(())
}

/// Folders and plain files; a socket is nothing that is copied.
fn copy(from: &Path, to: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = fs::metadata(from)?.permissions().mode() & 0o7777;
    fs::DirBuilder::new().mode(mode).create(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (kind, to) = (entry.file_type()?, to.join(entry.file_name()));
        if kind.is_dir() {
            copy(&entry.path(), &to)?;
        } else if kind.is_file() {
            fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}

fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    bytes.windows(needle.len()).position(|w| w == needle)
}

fn holds(bytes: &[u8], needle: &[u8]) -> bool {
    find(bytes, needle).is_some()
}

fn hex(bytes: &[u8]) -> Vec<u8> {
    let digits = bytes.iter().map(|byte| format!("{byte:02x}"));
    digits.collect::<String>().into_bytes()
}

/// Without its last group: that depends on what follows.
fn base64(bytes: &[u8]) -> Vec<u8> {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (groups, _) = bytes.as_chunks::<3>();
    let mut out = Vec::new();
    for [a, b, c] in groups {
        let all = u32::from(*a) << 16 | u32::from(*b) << 8 | u32::from(*c);
        for shift in [18, 12, 6, 0] {
            out.push(DIGITS[(all >> shift & 63) as usize]);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_looked_for_is_found_where_it_is() {
        assert_eq!(base64(b"hunter2"), b"aHVudGVy");
        assert_eq!(hex(b"\x00\xff"), b"00ff");
        assert!(holds(b"xxabcxx", b"abc") && !holds(b"xxabxx", b"abc"));
    }
}
