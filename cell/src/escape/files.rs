//! Files of the host, files that are not the box's to write, mounts and roots.

use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{Access, AtFlags, CWD, FileType, Mode, OFlags, XattrFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags,
};

use super::{Attempt, Given, Outcome, Why, opens_to_write, reads, refused};
use crate::sys::{Ask, ask};

pub const ALL: &[(&str, Attempt)] = &[
    ("host-file", |given| has_token(given, given.canary()?.0)),
    ("machine-id", |_| reads("/etc/machine-id")),
    ("symlink-out", |given| {
        let link = given.place("link");
        symlink(given.canary()?.0, &link)?;
        let outcome = has_token(given, &link);
        let _ = fs::remove_file(&link);
        outcome
    }),
    ("symlink-race", symlink_race),
    ("hardlink-out", |given| {
        let link = given.place("hard");
        fs::hard_link(given.canary()?.0, &link)?;
        let outcome = has_token(given, &link);
        let _ = fs::remove_file(&link);
        outcome
    }),
    ("dot-dot", |given| {
        std::env::set_current_dir(given.scratch())?;
        has_token(given, format!("{}{}", "../".repeat(40), given.canary()?.0))
    }),
    ("fd-leak-open", |given| {
        by_descriptor(given, |fd, canary| {
            has_token(
                given,
                format!("/proc/self/fd/{fd}/{}{canary}", "../".repeat(40)),
            )
        })
    }),
    ("fd-leak-cwd", |given| {
        by_descriptor(given, |fd, canary| {
            std::env::set_current_dir(format!("/proc/self/fd/{fd}"))?;
            has_token(given, format!("{}{canary}", "../".repeat(40)))
        })
    }),
    ("setuid-program", setuid_program),
    ("setuid-file", |given| set_id_file(given, 0o4755)),
    ("setgid-file", |given| set_id_file(given, 0o2755)),
    ("host-shm", |given| {
        has_token(given, format!("/dev/shm/{}", given.need("shm")?))
    }),
    ("shadow", |_| reads("/etc/shadow")),
    ("root-home", |_| {
        let count = fs::read_dir("/root")?.count();
        Ok(format!("{count} names in /root"))
    }),
    ("write-root", |_| writes_into("/")),
    ("write-usr", |_| writes_into("/usr")),
    ("write-etc", |_| writes_into("/etc")),
    ("chown-root", |given| {
        let path = given.place("own");
        fs::write(&path, "")?;
        let outcome = std::os::unix::fs::chown(&path, Some(0), Some(0));
        let owner = fs::metadata(&path).map(|found| found.uid());
        let _ = fs::remove_file(&path);
        outcome?;
        Ok(format!("a file of uid {}", owner?))
    }),
    ("file-capability", |given| {
        let path = given.place("capable");
        fs::write(&path, "")?;
        // Version 2, effective; CAP_SYS_ADMIN (21) permitted.
        let value = [0x0200_0001_u32, 1 << 21, 0, 0, 0].map(u32::to_le_bytes);
        let set = rustix::fs::setxattr(
            &path,
            "security.capability",
            value.as_flattened(),
            XattrFlags::empty(),
        );
        let _ = fs::remove_file(&path);
        set?;
        Ok("a program with CAP_SYS_ADMIN".to_owned())
    }),
    ("exe-overwrite", |given| {
        // Held first, so that its end is waited for: who runs it is then rid of "text file busy".
        first(given.victims()?, |pid| {
            let program = format!("/proc/{pid}/exe");
            let held = rustix::fs::open(program.as_str(), OFlags::PATH, Mode::empty())?;
            let again = format!("/proc/self/fd/{}", held.as_raw_fd());
            rustix::fs::accessat(CWD, again.as_str(), Access::WRITE_OK, AtFlags::EACCESS)?;
            Ok(format!("the program of process {pid} may be written"))
        })
    }),
    ("open-by-handle", |given| {
        let here = fs::File::open(given.scratch())?;
        ask(&Ask::OpenRoot(here.as_fd()))?;
        Ok("the root of the disk is open".to_owned())
    }),
    ("cell-file", |_| opens_to_write("/run/portcullis-cell")),
    ("control-folder", |_| writes_into("/run/portcullis")),
    ("mount-tmpfs", |given| {
        let place = folder(given, "mount")?;
        let none = MountFlags::empty();
        rustix::mount::mount("none", &place, "tmpfs", none, None)?;
        Ok("a file system of its own".to_owned())
    }),
    ("mount-bind", |given| {
        let place = folder(given, "bind")?;
        rustix::mount::mount_bind_recursive("/", &place)?;
        Ok("the root elsewhere".to_owned())
    }),
    ("mount-remount", |_| {
        rustix::mount::mount_remount("/", MountFlags::BIND, "")?;
        Ok("the root is mounted anew".to_owned())
    }),
    ("mount-proc", |given| {
        let place = folder(given, "proc")?;
        let none = MountFlags::empty();
        rustix::mount::mount("proc", &place, "proc", none, None)?;
        Ok("another /proc".to_owned())
    }),
    ("mount-cgroup", |given| {
        let place = folder(given, "cgroup")?;
        let none = MountFlags::empty();
        let first = rustix::mount::mount("none", &place, "cgroup", none, Some(c"memory"));
        first.or_else(|_| rustix::mount::mount("none", &place, "cgroup2", none, None))?;
        Ok("the control groups".to_owned())
    }),
    ("unmount", |_| {
        rustix::mount::unmount("/proc", UnmountFlags::DETACH)?;
        Ok("/proc is unmounted".to_owned())
    }),
    ("mount-new-api", |given| {
        let place = folder(given, "new")?;
        let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        rustix::mount::fsconfig_create(context.as_fd())?;
        let mount = rustix::mount::fsmount(
            context.as_fd(),
            FsMountFlags::empty(),
            MountAttrFlags::empty(),
        )?;
        let by_descriptor = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        rustix::mount::move_mount(mount.as_fd(), "", CWD, &place, by_descriptor)?;
        Ok("a file system of its own".to_owned())
    }),
    ("clone-tree", |_| {
        rustix::mount::open_tree(CWD, "/", OpenTreeFlags::OPEN_TREE_CLONE)?;
        Ok("a copy of the mounts".to_owned())
    }),
    ("mount-attributes", |_| {
        ask(&Ask::MountAttributes)?;
        Ok("the root mount's attributes are changed".to_owned())
    }),
    ("pivot-root", |given| {
        let place = folder(given, "pivot")?;
        // Where it may not mount, the call itself is still tried.
        let _ = rustix::mount::mount("none", &place, "tmpfs", MountFlags::empty(), None);
        std::env::set_current_dir(&place)?;
        rustix::process::pivot_root(".", ".")?;
        Ok("the root is another".to_owned())
    }),
    ("chroot", |given| {
        let place = folder(given, "chroot")?;
        rustix::process::chroot(&place)?;
        Ok("the root is another".to_owned())
    }),
    ("mknod", |given| {
        let path = given.place("null");
        let device = rustix::fs::makedev(1, 3);
        rustix::fs::mknodat(CWD, &path, FileType::CharacterDevice, Mode::RUSR, device)?;
        let _ = fs::remove_file(&path);
        Ok("a device".to_owned())
    }),
    ("mknod-disk", |given| {
        let (major, minor) = given.need("disk")?.split_once(':').unwrap_or_default();
        let number = |text: &str| text.parse::<u32>().map_err(std::io::Error::other);
        let device = rustix::fs::makedev(number(major)?, number(minor)?);
        let path = given.place("disk");
        rustix::fs::mknodat(CWD, &path, FileType::BlockDevice, Mode::RUSR, device)?;
        let outcome = reads(&path);
        let _ = fs::remove_file(&path);
        outcome
    }),
];

/// The host's file, by this path to it.
fn has_token(given: &Given, path: impl AsRef<Path>) -> Outcome {
    let (_, token) = given.canary()?;
    let text = fs::read_to_string(path)?;
    if text.trim() != token {
        return refused("another file lies there");
    }
    Ok("the host's file was read".to_owned())
}

/// The first that succeeds, or why the last did not.
pub fn first<T>(all: Vec<T>, mut tried: impl FnMut(T) -> Outcome) -> Outcome {
    let mut last = refused("there is none to try");
    for one in all {
        last = tried(one);
        if last.is_ok() {
            return last;
        }
    }
    last
}

fn writes_into(folder: &str) -> Outcome {
    let path = Path::new(folder).join(format!(".escape-{}", std::process::id()));
    fs::write(&path, "")?;
    fs::remove_file(&path)?;
    Ok(format!("a file in {folder}"))
}

fn folder(given: &Given, name: &str) -> Result<std::path::PathBuf, Why> {
    let path = given.place(name);
    fs::create_dir_all(&path)?;
    Ok(path)
}

/// With each inherited descriptor.
fn by_descriptor(given: &Given, tried: impl Fn(i32, &str) -> Outcome) -> Outcome {
    let (canary, _) = given.canary()?;
    let open = fs::read_dir("/proc/self/fd")?;
    let open = open.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    let open: Vec<i32> = open.filter(|fd| *fd > 2).collect();
    // The last is the list's own, closed by now.
    first(open, |fd| tried(fd, canary))
}

fn symlink_race(given: &Given) -> Outcome {
    let (canary, token) = given.canary()?;
    let [at, plain, link] = ["race", "plain", "swap"].map(|name| given.place(name));
    fs::write(&at, "own")?;
    let over = AtomicBool::new(false);
    let seen = std::thread::scope(|threads| {
        threads.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let _ = symlink(canary, &link).and_then(|()| fs::rename(&link, &at));
                let _ = fs::write(&plain, "own").and_then(|()| fs::rename(&plain, &at));
            }
        });
        let until = Instant::now() + Duration::from_millis(500);
        let mut seen = false;
        while !seen && Instant::now() < until {
            let found = fs::symlink_metadata(&at);
            if found.is_ok_and(|found| found.is_file()) {
                seen = fs::read_to_string(&at).is_ok_and(|text| text.trim() == token);
            }
        }
        over.store(true, Ordering::Relaxed);
        seen
    });
    for path in [at, plain, link] {
        let _ = fs::remove_file(path);
    }
    if seen {
        return Ok("the host's file was read behind the check".to_owned());
    }
    refused("the host's file was never behind the link")
}

/// By each way that a file comes to its mode.
fn set_id_file(given: &Given, mode: u32) -> Outcome {
    let (path, bits) = (given.place("set-id"), Mode::from_raw_mode(mode));
    let plain = Mode::from_raw_mode(0o755);
    let make = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    let nameless = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    let name = std::ffi::CString::new(path.as_os_str().as_encoded_bytes());
    let name = name.map_err(std::io::Error::other)?;
    let ways: Vec<(&str, Box<dyn Fn() -> std::io::Result<u32> + '_>)> = vec![
        (
            "chmod",
            Box::new(|| {
                rustix::fs::open(&path, make, plain)?;
                rustix::fs::chmod(&path, bits)?;
                Ok(fs::metadata(&path)?.mode())
            }),
        ),
        (
            "fchmod",
            Box::new(|| {
                let file = rustix::fs::open(&path, make, plain)?;
                rustix::fs::fchmod(&file, bits)?;
                Ok(rustix::fs::fstat(&file)?.st_mode)
            }),
        ),
        (
            "fchmodat",
            Box::new(|| {
                rustix::fs::open(&path, make, plain)?;
                rustix::fs::chmodat(CWD, &path, bits, AtFlags::empty())?;
                Ok(fs::metadata(&path)?.mode())
            }),
        ),
        (
            "fchmodat2",
            Box::new(|| {
                let file = rustix::fs::open(&path, make, plain)?;
                ask(&Ask::OwnersBit(file.as_fd()))?;
                Ok(rustix::fs::fstat(&file)?.st_mode)
            }),
        ),
        (
            "a new file",
            Box::new(|| Ok(rustix::fs::fstat(rustix::fs::open(&path, make, bits)?)?.st_mode)),
        ),
        (
            "a new file without a name",
            Box::new(|| {
                let file = rustix::fs::open(given.scratch(), nameless, bits)?;
                Ok(rustix::fs::fstat(file)?.st_mode)
            }),
        ),
        (
            "openat2",
            Box::new(|| {
                ask(&Ask::NewWithOwnersBit(&name))?;
                Ok(fs::metadata(&path)?.mode())
            }),
        ),
        (
            "mknod",
            Box::new(|| {
                rustix::fs::mknodat(CWD, &path, FileType::RegularFile, bits, 0)?;
                Ok(fs::metadata(&path)?.mode())
            }),
        ),
    ];
    first(ways, |(way, tried)| {
        let _ = fs::remove_file(&path);
        let outcome = tried();
        let _ = fs::remove_file(&path);
        let found =
            outcome.map_err(|error| Why::from(std::io::Error::other(format!("{way}: {error}"))))?;
        if found & 0o6000 != 0 {
            return Ok(format!("by {way} a file of mode {:o}", found & 0o7777));
        }
        refused(format!("{way} leaves the bit out"))
    })
}

fn setuid_program(_: &Given) -> Outcome {
    let programs = ["su", "passwd", "mount", "newgrp", "chsh", "sudo"];
    let mut found = programs.map(|name| format!("/usr/bin/{name}")).to_vec();
    found.extend(programs.map(|name| format!("/bin/{name}")));
    found.retain(|path| {
        fs::metadata(path).is_ok_and(|found| found.mode() & 0o4000 != 0 && found.is_file())
    });
    first(found, |path| {
        // With a question that waits for an answer, so that it can be looked at.
        let mut child = Command::new(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let until = Instant::now() + Duration::from_millis(300);
        let status = format!("/proc/{}/status", child.id());
        let mut root = false;
        while !root && Instant::now() < until {
            let text = fs::read_to_string(&status).unwrap_or_default();
            let uids = text.lines().find_map(|line| line.strip_prefix("Uid:\t"));
            root = uids.and_then(|uids| uids.split('\t').nth(1)) == Some("0");
            if child.try_wait()?.is_some() {
                break;
            }
        }
        super::end(child);
        if root {
            return Ok(format!("{path} runs as root"));
        }
        refused(format!("{path} does not become root"))
    })
}
