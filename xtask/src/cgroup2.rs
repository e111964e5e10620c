//! `cargo xtask long cgroup2`: the tests of boxes in a virtual machine that has control groups of version 2 only, as every distribution of
//! today has them; a machine that builds may have the first version.
//!
//! The machine is made of Debian's packages in the target folder, once, and has no network. It gets the test programs of this tree, so what
//! they link must be in it: it is of the Debian release that builds them. Its kernel is a newer one, for Landlock's scopes (Linux 6.12).

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::options::Options;
use crate::steps::{Counts, Steps};
use crate::{cargo, machine, setup};

const RELEASE: &str = "bookworm";
/// What makes a machine of Debian's minimum, in its folder; and what that runs.
const SETTLE: &str = include_str!("cgroup2/settle.sh");
const PARTS: &str = include_str!("cgroup2/parts.sh");
/// What [`PARTS`] says first, and at its end.
const UP: &str = "VM UP";
const END: &str = "VM END";
/// For a machine to come up before another way is taken.
const BOOT: Duration = Duration::from_mins(4);
/// For a line of a test that hangs. Emulated, a test may take minutes.
const SILENT: Duration = Duration::from_mins(20);

/// Makes the machine where it is not made yet, and runs the tests in it; each part of [`PARTS`] is a step.
pub fn run(steps: &mut Steps, options: &Options) -> Result<()> {
    let needs = [&setup::QEMU, &setup::DEBOOTSTRAP];
    if !setup::provide(&needs, &[], options)?.is_empty() {
        steps.could_not("cgroup2: without qemu-system-x86 and debootstrap there is no machine with cgroup v2 only".to_owned());
        return Ok(());
    }
    let folder = cargo::target()?.join("cgroup2");
    fs::create_dir_all(&folder)?;
    let programs = programs(steps)?;
    if !make_root(steps, &folder)? {
        return Ok(());
    }
    make_tests(&folder, &programs)?;
    let began = Instant::now();
    let is_kvm = fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_ok();
    if is_kvm && boot(steps, &folder, &["-accel", "kvm", "-cpu", "host"])? {
        return Ok(());
    }
    println!(
        "\n!!! KVM brings no kernel up here: the machine is EMULATED, and every bound on time is widened"
    );
    // QEMU 7.2 emulates the instruction behind cx16 so that kernels since 6.7 fault.
    let emulated = ["-accel", "tcg,thread=multi", "-cpu", "max,-cx16"];
    if !boot(steps, &folder, &emulated)? {
        steps.note("cgroup2: the machine comes up", began, false);
    }
    Ok(())
}

/// The test programs, the gateway and the cell, built as the tests build them.
fn programs(steps: &mut Steps) -> Result<Vec<(PathBuf, &'static str)>> {
    let began = Instant::now();
    println!("\n== build the test programs");
    let output = cargo::cargo(&["test", "--workspace", "--no-run"])
        .stderr(Stdio::piped())
        .spawn()?
        .wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    steps.note("build the test programs", began, output.status.success());
    // `Executable unittests lib.rs (target/debug/deps/portcullis_actors-0123456789abcdef)`
    let find = |name: &str| -> Result<PathBuf> {
        let begins = format!("/{name}-");
        let mut paths = said
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Executable")?.split_once('('));
        let found =
            paths.find_map(|(_, path)| path.strip_suffix(')').filter(|p| p.contains(&begins)));
        found
            .map(PathBuf::from)
            .with_context(|| format!("no {name} was built:\n{said}"))
    };
    let debug = cargo::target()?.join("debug");
    // The tests of the drivers build the cell themselves where nobody gives them one.
    let cell = embedded_cell(&debug)?;
    Ok(vec![
        (find("portcullis_actors")?, "portcullis_actors"),
        (find("portcullis_tests")?, "portcullis_tests"),
        (debug.join("portcullis"), "portcullis"),
        (cell, "portcullis-cell"),
    ])
}

/// The newest that a build script of the root package has made.
fn embedded_cell(debug: &Path) -> Result<PathBuf> {
    let mut found = vec![];
    for entry in fs::read_dir(debug.join("build"))? {
        let path = entry?.path().join("out/portcullis-cell");
        if let Ok(data) = fs::metadata(&path) {
            found.push((data.modified()?, path));
        }
    }
    found.sort();
    let (_, path) = found.pop().context("no build script has left a cell")?;
    Ok(path)
}

/// The root file system as an image; `false` where it could not be made. Made again when what it is made of has changed.
fn make_root(steps: &mut Steps, folder: &Path) -> Result<bool> {
    let (root, image, made) = (
        folder.join("root"),
        folder.join("root.img"),
        folder.join("root.made-of"),
    );
    let of = format!("{RELEASE}\n{SETTLE}");
    if image.is_file() && fs::read_to_string(&made).is_ok_and(|text| text == of) {
        return Ok(true);
    }
    for old in [&made, &image] {
        let _ = fs::remove_file(old);
    }
    let _ = fs::remove_dir_all(&root);
    let mut debootstrap = Command::new("debootstrap");
    debootstrap
        .args(["--variant=minbase", RELEASE])
        .arg(&root)
        .stdout(fs::File::create(folder.join("debootstrap.log"))?);
    if !steps.run("cgroup2: Debian's minimum", &mut debootstrap)? {
        return Ok(false);
    }
    // The machine's own names of servers: the new root has none.
    fs::copy("/etc/resolv.conf", root.join("etc/resolv.conf"))?;
    let mut settle = Command::new("chroot");
    settle
        .arg(&root)
        .args(["sh", "-euc", SETTLE])
        .stdout(fs::File::create(folder.join("settle.log"))?);
    if !steps.run(
        "cgroup2: what the tests need, a newer kernel, a user",
        &mut settle,
    )? {
        return Ok(false);
    }
    for (file, to) in [("vmlinuz", "kernel"), ("initrd.img", "initrd")] {
        fs::copy(one(&root.join("boot"), file)?, folder.join(to))?;
    }
    image_of(&root, &image, "4G")?;
    fs::remove_dir_all(&root)?;
    fs::write(&made, of)?;
    Ok(true)
}

/// The one file of the folder whose name begins so.
fn one(folder: &Path, begins: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(folder)?.flatten().map(|entry| entry.path());
    let mut found = entries.filter(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(begins)
    });
    let path = found.next();
    path.with_context(|| format!("no {begins} in {}", folder.display()))
}

/// The programs and what runs them, as a second disk that is never written.
fn make_tests(folder: &Path, programs: &[(PathBuf, &str)]) -> Result<()> {
    let tests = folder.join("tests");
    let _ = fs::remove_dir_all(&tests);
    fs::create_dir_all(&tests)?;
    for (program, name) in programs {
        // Without what only a debugger reads they are a third as long; a panic still tells its line.
        let mut strip = Command::new("strip");
        strip.arg("-g").arg("-o").arg(tests.join(name)).arg(program);
        done(&mut strip)?;
    }
    fs::write(tests.join("parts.sh"), PARTS)?;
    image_of(&tests, &folder.join("tests.img"), "1G")
}

fn image_of(content: &Path, image: &Path, size: &str) -> Result<()> {
    let mut make = Command::new("mke2fs");
    make.args(["-q", "-F", "-t", "ext4", "-d"])
        .arg(content)
        .arg(image)
        .arg(size);
    done(&mut make)
}

fn done(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("{command:?} could not be started"))?;
    if !status.success() {
        bail!("{command:?}: {status}");
    }
    Ok(())
}

/// Runs the machine to its end, and notes each part; `false` where its kernel does not come up.
fn boot(steps: &mut Steps, folder: &Path, way: &[&str]) -> Result<bool> {
    println!("\n== cgroup2: {}", way.join(" "));
    let disk = |name: &str, how: &str| {
        let path = folder.join(name);
        format!("file={},format=raw,if=virtio,{how}", path.display())
    };
    let mut qemu = Command::new(machine::program("qemu-system-x86_64").context("no qemu")?)
        .args(way)
        .args(["-m", "4096", "-smp", "2", "-nodefaults", "-no-reboot"])
        .args(["-display", "none", "-serial", "stdio", "-kernel"])
        .arg(folder.join("kernel"))
        .arg("-initrd")
        .arg(folder.join("initrd"))
        .args([
            "-append",
            "root=/dev/vda rw console=ttyS0 quiet loglevel=1 panic=-1 cgroup_no_v1=all systemd.unified_cgroup_hierarchy=1 systemd.show_status=0",
        ])
        .args(["-drive", &disk("root.img", "snapshot=on")])
        .args(["-drive", &disk("tests.img", "readonly=on")])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("qemu-system-x86_64 could not be started")?;
    let console = qemu.stdout.take().context("no console")?;
    let (sender, lines) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        for line in BufReader::new(console).split(b'\n') {
            let Ok(line) = line else { return };
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    let heard = hear(steps, &lines);
    // It may have ended by itself.
    let _ = qemu.kill();
    qemu.wait()?;
    drop(lines);
    let _ = reader.join();
    Ok(heard)
}

/// One part of the tests: its name, when it began, what libtest has counted in it.
type Part = (String, Instant, Counts);

/// What the machine says, to its end; `false` where it never comes up.
fn hear(steps: &mut Steps, lines: &mpsc::Receiver<String>) -> bool {
    let began = Instant::now();
    let (mut is_up, mut last) = (false, String::new());
    let mut part: Option<Part> = None;
    loop {
        let within = if is_up { SILENT } else { BOOT };
        let Ok(line) = lines.recv_timeout(within) else {
            break;
        };
        is_up |= line == UP;
        if line == END {
            break;
        }
        if !is_up {
            // A boot that speaks and never ends.
            if began.elapsed() > BOOT {
                break;
            }
            last = line;
            continue;
        }
        println!("{line}");
        if let Some(name) = line.strip_prefix("PART ") {
            part = Some((name.to_owned(), Instant::now(), Counts::default()));
        } else if let Some(why) = line.strip_prefix("NOT RUN: ") {
            steps.could_not(format!("cgroup2: {why}"));
        } else if let Some(code) = line.strip_prefix("ENDED ")
            && let Some((name, began, counts)) = part.take()
        {
            // A part that ran no test has proven nothing.
            let passed = code == "0" && counts.passed > 0;
            let Counts {
                passed: p,
                failed: f,
                ..
            } = counts;
            steps.note(
                &format!("cgroup2: {name}: {p} passed, {f} failed"),
                began,
                passed,
            );
        } else if let Some((.., counts)) = &mut part {
            counts.read(&line);
            steps.counts.read(&line);
        }
    }
    if !is_up {
        println!("it did not come up; its last word: {last}");
    }
    if let Some((name, began, _)) = part {
        steps.note(&format!("cgroup2: {name}: it did not end"), began, false);
    }
    is_up
}
