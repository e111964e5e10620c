//! The way of a daemon to bubblewrap. Nothing in a box may be host uid 0, and the box's uid cannot walk to folders that only root
//! may enter. So, as root: a mount namespace of its own, the box's three things bound into a folder that anyone may walk, and then
//! no root any more: groups, gid and uid are given up before bubblewrap is executed.
//!
//! Who is not root does the same in a user namespace where it is the one user that it is outside, and nobody is root: what may be mounted
//! there is what bubblewrap's own options cannot ask for (terminals, limits on files), and a folder is the one that was looked at. Its
//! capabilities there end when bubblewrap is executed.

use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};
use rustix::process::{Gid, Uid};
use rustix::thread::UnshareFlags;

/// Covered by a small tmpfs of our own in our own mount namespace; bubblewrap then covers it again with its new root.
const STAGE: &str = "/tmp";

/// Terminals of one box at once: the machine has 4096.
const TERMINALS: u32 = 64;

#[derive(Default)]
struct Options {
    uid: u32,
    gid: u32,
    /// Name in the stage, host path.
    staged: Vec<(String, String)>,
    /// Name in the stage, and the device and inode that must lie at its path.
    same: Vec<(String, String)>,
    /// Name in the stage of a folder for the box's terminals.
    terminals: Option<String>,
    /// Name in the stage, and options of a file system in memory.
    memory: Vec<(String, String)>,
    command: Vec<String>,
}

fn options(mut arguments: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options::default();
    while let Some(name) = arguments.next() {
        if name == "--" {
            options.command = arguments.collect();
            break;
        }
        let value = arguments
            .next()
            .ok_or_else(|| format!("{name} needs a value"))?;
        let number = || {
            value
                .parse::<u32>()
                .map_err(|_| format!("{name} {value}: not a number"))
        };
        match name.as_str() {
            "--uid" => options.uid = number()?,
            "--gid" => options.gid = number()?,
            "--terminals" if is_plain(&value) => options.terminals = Some(value),
            "--memory" => {
                let (name, limits) = value.split_once('=').ok_or("--memory NAME=LIMITS")?;
                if !is_plain(name) {
                    return Err(format!("--memory {value}: a plain name"));
                }
                options.memory.push((name.to_owned(), limits.to_owned()));
            }
            "--same" => {
                let (name, node) = value.split_once('=').ok_or("--same NAME=DEVICE:INODE")?;
                options.same.push((name.to_owned(), node.to_owned()));
            }
            "--stage" => {
                let (name, path) = value.split_once('=').ok_or("--stage NAME=PATH")?;
                if !is_plain(name) || !path.starts_with('/') {
                    return Err(format!(
                        "--stage {value}: a plain name and an absolute path"
                    ));
                }
                options.staged.push((name.to_owned(), path.to_owned()));
            }
            _ => return Err(format!("unknown option {name}")),
        }
    }
    if options.uid == 0 || options.gid == 0 {
        return Err("a box never runs as uid or gid 0".to_owned());
    }
    if options.command.is_empty() {
        return Err("nothing to execute".to_owned());
    }
    Ok(options)
}

/// May it be a name in the stage?
fn is_plain(name: &str) -> bool {
    !name.is_empty() && !name.contains('/') && !name.starts_with('.')
}

/// Entry of `portcullis-cell launch --uid U --gid G --stage NAME=PATH... [--same NAME=DEVICE:INODE]... [--memory NAME=LIMITS]... [--terminals NAME] -- COMMAND...`: returns
/// only if it failed.
pub fn main(arguments: impl Iterator<Item = String>) -> Result<(), String> {
    let options = options(arguments)?;
    let root = rustix::process::geteuid().is_root();
    if !root {
        own_namespace(options.uid, options.gid)?;
    }
    stage(&options.staged, &options.same)?;
    if let Some(name) = &options.terminals {
        terminals(&format!("{STAGE}/{name}"), options.gid)?;
    }
    for (name, limits) in &options.memory {
        memory(&format!("{STAGE}/{name}"), limits, options.uid, options.gid)?;
    }
    if root {
        drop_root(options.uid, options.gid)?;
    } else {
        rustix::thread::set_no_new_privs(true)
            .map_err(|error| format!("giving up new privileges: {error}"))?;
    }
    let error = Command::new(&options.command[0])
        .args(&options.command[1..])
        .env_clear()
        .exec();
    Err(format!("{}: {error}", options.command[0]))
}

/// A user namespace with one user and one group, which are the caller's own. None of them is root: with one, `uid_map` of a box would
/// read as if it held a root.
fn own_namespace(uid: u32, gid: u32) -> Result<(), String> {
    if rustix::process::getuid().as_raw() != uid || rustix::process::getgid().as_raw() != gid {
        return Err("only root starts a box of another user".to_owned());
    }
    // See `stage` for the deprecation.
    #[allow(deprecated)]
    rustix::thread::unshare(UnshareFlags::NEWUSER)
        .map_err(|error| format!("a user namespace of its own: {error}"))?;
    for (file, text) in [
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("{uid} {uid} 1")),
        ("gid_map", format!("{gid} {gid} 1")),
    ] {
        let path = format!("/proc/self/{file}");
        std::fs::write(&path, text).map_err(|error| format!("{path}: {error}"))?;
    }
    Ok(())
}

fn stage(staged: &[(String, String)], same: &[(String, String)]) -> Result<(), String> {
    let said = |what: &str| {
        let what = what.to_owned();
        move |error: rustix::io::Errno| format!("{what}: {error}")
    };
    // Deprecated for flags that share descriptors between threads; a new mount namespace in a process of one thread is not that.
    #[allow(deprecated)]
    rustix::thread::unshare(UnshareFlags::NEWNS).map_err(said("a mount namespace of its own"))?;
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .map_err(said("private mounts"))?;
    // Opened before the stage covers whatever lies below it, and after the unshare: a mount of another namespace cannot be bound.
    let mut opened: Vec<(&str, bool, OwnedFd)> = Vec::new();
    for (name, path) in staged {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path.as_str(), flags, Mode::empty()).map_err(said(path))?;
        let found = rustix::fs::fstat(&fd).map_err(said(path))?;
        let node = format!("{}:{}", found.st_dev, found.st_ino);
        // What was looked at is what is mounted, whatever was put in its place since.
        if let Some((_, looked_at)) = same.iter().find(|(same, _)| same == name)
            && *looked_at != node
        {
            return Err(format!("{path}: it is not what was looked at before"));
        }
        match rustix::fs::FileType::from_raw_mode(found.st_mode) {
            rustix::fs::FileType::Directory => opened.push((name, true, fd)),
            rustix::fs::FileType::RegularFile => opened.push((name, false, fd)),
            _ => return Err(format!("{path}: neither a folder nor a file")),
        }
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("tmpfs", STAGE, "tmpfs", flags, c"mode=0711,size=64k").map_err(said("the stage"))?;
    for (name, folder, fd) in opened {
        let target = format!("{STAGE}/{name}");
        if folder {
            rustix::fs::mkdir(target.as_str(), Mode::from_raw_mode(0o711))
                .map_err(said(&target))?;
        } else {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            rustix::fs::open(target.as_str(), flags, Mode::from_raw_mode(0o444))
                .map_err(said(&target))?;
        }
        mount_bind(format!("/proc/self/fd/{}", fd.as_raw_fd()), target.as_str()).map_err(
            |error| {
                // In a user namespace the kernel shows nothing that was covered: what is mounted below cannot be left out.
                let below = match error {
                    rustix::io::Errno::INVAL => " (is something mounted below it?)",
                    _ => "",
                };
                format!("{target}: {error}{below}")
            },
        )?;
    }
    Ok(())
}

/// A devpts of the box's own: no terminal of the host or of another box has a name in it. bubblewrap mounts one only where a user namespace
/// has a root, which nothing in a box is. Where the kernel mounts none the folder stays empty, and a run that asks for a terminal is refused.
fn terminals(target: &str, gid: u32) -> Result<(), String> {
    rustix::fs::mkdir(target, Mode::from_raw_mode(0o755))
        .map_err(|error| format!("{target}: {error}"))?;
    let options = format!("newinstance,ptmxmode=0666,mode=0620,gid={gid},max={TERMINALS}");
    let options = CString::new(options).map_err(|error| error.to_string())?;
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    if let Err(error) = mount("devpts", target, "devpts", flags, options.as_c_str()) {
        let _ = std::io::Write::write_all(
            &mut std::io::stderr(),
            format!("portcullis-cell: no terminals: {error}\n").as_bytes(),
        );
    }
    Ok(())
}

/// A file system in memory with limits that bubblewrap cannot set: without one on files, their inodes can take all of a box's memory, which no
/// end of a run gives back.
fn memory(target: &str, limits: &str, uid: u32, gid: u32) -> Result<(), String> {
    rustix::fs::mkdir(target, Mode::from_raw_mode(0o755))
        .map_err(|error| format!("{target}: {error}"))?;
    let options = format!("uid={uid},gid={gid},{limits}");
    let options = CString::new(options).map_err(|error| error.to_string())?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount("tmpfs", target, "tmpfs", flags, options.as_c_str())
        .map_err(|error| format!("{target}: {error}"))
}

fn drop_root(uid: u32, gid: u32) -> Result<(), String> {
    let said =
        |what: &'static str| move |error: rustix::io::Errno| format!("giving up {what}: {error}");
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    rustix::thread::set_thread_groups(&[]).map_err(said("groups"))?;
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(said("the gid"))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(said("the uid"))?;
    rustix::thread::set_no_new_privs(true).map_err(said("new privileges"))?;
    if rustix::process::getuid() == uid
        && rustix::process::geteuid() == uid
        && rustix::process::getegid() == gid
    {
        Ok(())
    } else {
        Err("root was not given up".to_owned())
    }
}
