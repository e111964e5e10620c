//! The ceilings of a box, held by the kernel: memory with swap, processor share, number of processes. Both generations of cgroups.
//!
//! A box's group is a child of the daemon's own group, so that a limit on the daemon's service also holds for its boxes; where the
//! second generation forbids that (other processes in the daemon's group, or its group is the root), of a top-level `portcullis` group.
//! Which one it is does not change while the daemon runs, nor over a restart in the same place: the boxes of an earlier life are found there.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::spec::BoxLimits;

/// Length of a processor-share period in microseconds.
const PERIOD_US: u64 = 100_000;

/// Where groups for boxes can be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cgroups {
    /// One folder per controller.
    V1 {
        /// Parent in the memory hierarchy.
        memory: PathBuf,
        /// Parent in the cpu hierarchy.
        cpu: PathBuf,
        /// Parent in the pids hierarchy.
        pids: PathBuf,
    },
    /// One folder for all.
    V2 {
        /// Parent, with the three controllers switched on for its children.
        base: PathBuf,
    },
}

/// One box's group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    folders: Vec<PathBuf>,
    v2: bool,
}

impl Cgroups {
    /// Finds where this process may make groups, and proves it by making one.
    ///
    /// # Errors
    /// A sentence that says what is missing.
    pub fn find() -> Result<Self, String> {
        let own = read("/proc/self/cgroup")?;
        let mounts = read("/proc/self/mountinfo")?;
        let found = match v2(&own, &mounts) {
            Some((mount, own)) => Self::V2 { base: prepare_v2(&mount, &own)? },
            None => v1(&own, &mounts)
                .ok_or("neither the memory, cpu and pids hierarchies of cgroup v1 nor a cgroup v2 with them is mounted")?,
        };
        let random = super::probe::random_hex(4).map_err(|error| error.to_string())?;
        let trial = found.group(&format!("trial-{random}"));
        let limits = BoxLimits {
            memory_bytes: 64 << 20,
            cpu_millis: 1000,
            pids: 16,
            open_files: 1024,
        };
        let made = trial
            .make(&limits)
            .map_err(|error| format!("a control group cannot be made: {error}"));
        trial.remove_now();
        made.map(|()| found)
    }

    /// The group of this name, whether or not it exists.
    pub fn group(&self, name: &str) -> Group {
        let name = format!("portcullis-{name}");
        match self {
            Self::V1 { memory, cpu, pids } => Group {
                folders: vec![memory.join(&name), cpu.join(&name), pids.join(&name)],
                v2: false,
            },
            Self::V2 { base } => Group {
                folders: vec![base.join(&name)],
                v2: true,
            },
        }
    }
}

impl Group {
    /// Makes it, with its limits.
    pub fn make(&self, limits: &BoxLimits) -> io::Result<()> {
        for folder in &self.folders {
            match fs::create_dir(folder) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(named(folder, &error));
                }
                _ => {}
            }
        }
        let memory = limits.memory_bytes.to_string();
        let quota = u64::from(limits.cpu_millis) * PERIOD_US / 1000;
        let pids = limits.pids.to_string();
        match &self.folders[..] {
            [all] if self.v2 => {
                put(all, "memory.max", &memory)?;
                // Swap beside it would be memory beyond the limit; a kernel without swap has no such file.
                put_if_there(all, "memory.swap.max", "0")?;
                put(all, "cpu.max", &format!("{quota} {PERIOD_US}"))?;
                put(all, "pids.max", &pids)
            }
            [in_memory, in_cpu, in_pids] => {
                put(in_memory, "memory.limit_in_bytes", &memory)?;
                put_if_there(in_memory, "memory.memsw.limit_in_bytes", &memory)?;
                put(in_cpu, "cpu.cfs_period_us", &PERIOD_US.to_string())?;
                put(in_cpu, "cpu.cfs_quota_us", &quota.to_string())?;
                put(in_pids, "pids.max", &pids)
            }
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    /// Moves a process in; its later children are born there.
    pub fn add(&self, pid: u32) -> io::Result<()> {
        self.folders
            .iter()
            .try_for_each(|folder| put(folder, "cgroup.procs", &pid.to_string()))
    }

    /// A limit as the kernel has it now.
    #[cfg(test)]
    pub fn limit(&self, first: &str, second: &str) -> String {
        let file = if self.v2 { second } else { first };
        let mut found = self.folders.iter().map(|folder| folder.join(file));
        let path = found.find(|path| path.exists()).unwrap();
        fs::read_to_string(path).unwrap().trim().to_owned()
    }

    /// Removes it; waits a little for the kernel to bury its last processes. True when it is gone.
    pub async fn remove(&self) -> bool {
        for folder in self.folders.iter().filter(|_| self.v2) {
            // Its init is dead, and with it all of the box: this is for what nobody thought of (Linux 5.14; a group that is gone says so below).
            let _ = put_if_there(folder, "cgroup.kill", "1");
        }
        for _ in 0..100 {
            if self.remove_now() {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        false
    }

    fn remove_now(&self) -> bool {
        let mut gone = true;
        for folder in &self.folders {
            gone &= fs::remove_dir(folder)
                .map_or_else(|error| error.kind() == io::ErrorKind::NotFound, |()| true);
        }
        gone
    }
}

fn read(path: &str) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn put(folder: &Path, file: &str, value: &str) -> io::Result<()> {
    let path = folder.join(file);
    fs::write(&path, value).map_err(|error| named(&path, &error))
}

fn put_if_there(folder: &Path, file: &str, value: &str) -> io::Result<()> {
    if folder.join(file).exists() {
        put(folder, file, value)
    } else {
        Ok(())
    }
}

/// A mount of `/proc/self/mountinfo`: its root inside the file system, its place, its kind, its super options.
fn mounts(mountinfo: &str) -> impl Iterator<Item = (&str, &str, &str, &str)> {
    mountinfo.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut before = before.split(' ').skip(3);
        let (root, place) = (before.next()?, before.next()?);
        let mut after = after.split(' ');
        let kind = after.next()?;
        Some((root, place, kind, after.nth(1)?))
    })
}

/// A group's folder: the mount may show only a part of the hierarchy (in a container).
fn folder(root: &str, place: &str, own: &str) -> PathBuf {
    let inside = if root == "/" {
        own
    } else {
        own.strip_prefix(root).unwrap_or("")
    };
    Path::new(place).join(inside.trim_start_matches('/'))
}

fn v1(own: &str, mountinfo: &str) -> Option<Cgroups> {
    Some(Cgroups::V1 {
        memory: v1_group(own, mountinfo, "memory")?,
        cpu: v1_group(own, mountinfo, "cpu")?,
        pids: v1_group(own, mountinfo, "pids")?,
    })
}

/// The group in a first-generation hierarchy of a process whose `/proc/PID/cgroup` this is.
fn v1_group(own: &str, mountinfo: &str, controller: &str) -> Option<PathBuf> {
    let path = own.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let controllers = parts.next()?;
        let path = parts.next()?;
        controllers
            .split(',')
            .any(|one| one == controller)
            .then_some(path)
    })?;
    mounts(mountinfo)
        .find(|(_, _, kind, options)| {
            *kind == "cgroup" && options.split(',').any(|one| one == controller)
        })
        .map(|(root, place, ..)| folder(root, place, path))
}

/// Where the kernel counts what it killed in a process' group for want of memory: the word of no driver, and the same for all.
#[derive(Debug, Clone)]
pub struct OutOfMemory(PathBuf);

impl OutOfMemory {
    /// Of the group of this process; none where nothing is counted for it.
    pub fn of(pid: u32) -> Option<Self> {
        let own = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let mountinfo = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let first = v1_group(&own, &mountinfo, "memory");
        let second = || {
            let path = own.lines().find_map(|line| line.strip_prefix("0::"))?;
            let (root, place, ..) =
                mounts(&mountinfo).find(|(_, _, kind, _)| *kind == "cgroup2")?;
            Some(folder(root, place, path).join("memory.events"))
        };
        let file = first.map(|group| group.join("memory.oom_control"));
        let file = file.or_else(second).filter(|file| file.exists())?;
        Some(Self(file))
    }

    /// How often, since the group was made.
    pub fn count(&self) -> u64 {
        let text = fs::read_to_string(&self.0).unwrap_or_default();
        text.lines()
            .find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
            .unwrap_or(0)
    }
}

/// The kernel's word on the ceilings of a process that somebody else has placed, as an engine: in its group or in one above it, for a limit
/// there holds for all that is below.
///
/// # Errors
/// The first ceiling that is missing or higher than asked, or that its group cannot be seen. Of the first generation nothing is said,
/// but that it is no `second`, where that is due.
pub fn held(pid: u32, limits: &BoxLimits, second: bool) -> Result<(), String> {
    let own = read(&format!("/proc/{pid}/cgroup"))?;
    let mountinfo = read("/proc/self/mountinfo")?;
    let Some((mount, own)) = v2(&own, &mountinfo) else {
        return if second {
            Err("this machine has no control groups of version 2, without which its engine holds no limit".to_owned())
        } else {
            Ok(())
        };
    };
    match missing(&mount, &own, limits) {
        None => Ok(()),
        Some(what) => {
            let fix = if second {
                "; give the user's manager the controllers (`Delegate=cpu memory pids` of user@.service)"
            } else {
                ""
            };
            Err(format!(
                "the kernel does not hold the box's ceilings: {what}{fix}"
            ))
        }
    }
}

fn missing(mount: &Path, own: &Path, limits: &BoxLimits) -> Option<String> {
    let groups = || own.ancestors().take_while(|group| *group != mount);
    // A share of the processor: quota and period.
    let number = |text: &str| {
        let mut words = text.split_whitespace();
        let value: u64 = words.next()?.parse().ok()?;
        match words.next() {
            None => Some(value),
            Some(period) => value.checked_mul(1000)?.checked_div(period.parse().ok()?),
        }
    };
    let lowest = |file: &str| {
        groups()
            .filter_map(|group| number(&fs::read_to_string(group.join(file)).ok()?))
            .min()
    };
    let has = |file: &str| groups().any(|group| group.join(file).exists());
    let ceilings = [
        ("memory.max", limits.memory_bytes),
        ("pids.max", u64::from(limits.pids)),
        ("cpu.max", u64::from(limits.cpu_millis)),
    ];
    // A kernel without swap has no such file, and nothing to hold.
    let swap = has("memory.swap.max").then_some(("memory.swap.max", 0));
    ceilings
        .into_iter()
        .chain(swap)
        .find_map(|(file, most)| match lowest(file) {
            Some(held) if held <= most => None,
            Some(held) => Some(format!("{file} is {held}, not {most}")),
            None => Some(format!("{file} is not set")),
        })
}

/// The mount and the own group of a second-generation hierarchy that has all three controllers.
fn v2(own: &str, mountinfo: &str) -> Option<(PathBuf, PathBuf)> {
    let path = own.lines().find_map(|line| line.strip_prefix("0::"))?;
    let (root, place, ..) = mounts(mountinfo).find(|(_, _, kind, _)| *kind == "cgroup2")?;
    let mount = PathBuf::from(place);
    has_controllers(&mount, "cgroup.controllers").then(|| (mount, folder(root, place, path)))
}

fn has_controllers(folder: &Path, file: &str) -> bool {
    let text = fs::read_to_string(folder.join(file)).unwrap_or_default();
    ["memory", "cpu", "pids"]
        .iter()
        .all(|wanted| text.split_whitespace().any(|one| one == *wanted))
}

/// Where the daemon's own processes go, beside its boxes.
const BESIDE: &str = "gateway";
/// How often that is tried.
const MOVES: u32 = 10;
/// The parent of boxes where the daemon's own group cannot be it.
const TOP: &str = "portcullis";

/// Moves this process and what it has started, as the runner, into a group below their own. Nothing where anybody else is in it.
fn move_beside(own: &Path) -> Result<(), String> {
    let beside = own.join(BESIDE);
    let processes = fs::read_to_string(own.join("cgroup.procs")).unwrap_or_default();
    let processes: Vec<u32> = processes
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect();
    if !processes.iter().all(|pid| is_ours(*pid)) {
        return Err(format!("{} holds other processes", own.display()));
    }
    fs::create_dir_all(&beside).map_err(|error| named(&beside, &error).to_string())?;
    // This one first: what it starts from now on is born there.
    let me = std::process::id();
    let others = processes.into_iter().filter(|pid| *pid != me);
    for pid in std::iter::once(me).chain(others) {
        match put(&beside, "cgroup.procs", &pid.to_string()) {
            // It has ended.
            Err(_) if pid != me && !Path::new(&format!("/proc/{pid}")).exists() => {}
            other => other.map_err(|error| error.to_string())?,
        }
    }
    Ok(())
}

/// What this process starts while it moves is born where it was, and then the controllers are refused: once more. Where nothing helps all
/// are put back, for beside nothing of ours they would have no controllers.
fn stand_beside(own: &Path, enable: impl Fn(&Path) -> Result<(), String>) -> Result<(), String> {
    let mut done = Ok(());
    for _ in 0..MOVES {
        done = move_beside(own);
        if done.is_err() {
            break;
        }
        done = enable(own);
        if done.is_ok() {
            return done;
        }
    }
    let beside = own.join(BESIDE);
    let moved = fs::read_to_string(beside.join("cgroup.procs")).unwrap_or_default();
    for pid in moved.split_whitespace() {
        let _ = put(own, "cgroup.procs", pid);
    }
    let _ = fs::remove_dir(&beside);
    done
}

/// This process, or one below it.
fn is_ours(mut pid: u32) -> bool {
    while pid > 1 {
        if pid == std::process::id() {
            return true;
        }
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // After the name, which may hold anything: state, parent.
        let parent = stat
            .rsplit_once(") ")
            .and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok());
        match parent {
            Some(parent) => pid = parent,
            // Ended meanwhile, and so in no group.
            None => return stat.is_empty(),
        }
    }
    false
}

/// Makes a parent whose children have the controllers. A group with processes in it may not have such children ("no internal processes"), so
/// the daemon moves into a group beside them, but only where it is alone: nobody else's processes are moved.
fn prepare_v2(mount: &Path, own: &Path) -> Result<PathBuf, String> {
    let enable = |folder: &Path| {
        put(folder, "cgroup.subtree_control", "+memory +cpu +pids")
            .map_err(|error| error.to_string())
    };
    let is_on = |folder: &Path| has_controllers(folder, "cgroup.subtree_control");
    // A namespace's own root, as in a container, is a group like any other: only the kernel's has no type.
    let is_root = |folder: &Path| folder == mount && !folder.join("cgroup.type").exists();
    // Asked again by a daemon that has moved: the parent is the one that it was.
    let moved = own.parent().filter(|_| own.ends_with(BESIDE));
    if let Some(parent) = moved.filter(|parent| is_on(parent) && !is_root(parent)) {
        return Ok(parent.to_owned());
    }
    let first = if is_root(own) {
        // Its children may have controllers all the same, so a second look would find another parent than the first.
        Err("the daemon is in the root group".to_owned())
    } else if is_on(own) {
        return Ok(own.to_owned());
    } else {
        stand_beside(own, enable)
    };
    if first.is_ok() {
        return Ok(own.to_owned());
    }
    let top = mount.join(TOP);
    let made = fs::create_dir_all(&top).map_err(|error| named(&top, &error).to_string());
    // Already on under systemd; where not, the root group may always switch it on.
    let _ = enable(mount);
    made.and_then(|()| enable(&top))
        .map(|()| top)
        .map_err(|error| format!("{error} ({})", first.err().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN_V1: &str =
        "9:name=systemd:/\n8:pids:/\n4:memory:/api/1\n2:cpuacct:/\n1:cpu:/x\n0::/\n";
    const MOUNTS_V1: &str = "\
31 30 0:27 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
32 30 0:28 / /sys/fs/cgroup/cpuacct rw,relatime - cgroup cgroup rw,cpuacct
33 30 0:29 /api /sys/fs/cgroup/memory rw,relatime shared:7 - cgroup cgroup rw,memory
34 30 0:30 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
";

    #[test]
    fn first_generation_is_found_by_controller_and_mount_root() {
        let found = v1(OWN_V1, MOUNTS_V1).unwrap();
        let expected = Cgroups::V1 {
            memory: "/sys/fs/cgroup/memory/1".into(),
            cpu: "/sys/fs/cgroup/cpu/x".into(),
            pids: "/sys/fs/cgroup/pids/".into(),
        };
        assert_eq!(found, expected);
        assert!(v1("0::/\n", MOUNTS_V1).is_none());
    }

    /// The files of the second generation on an ordinary folder: what is written where, not that a kernel obeys.
    #[test]
    fn second_generation_gets_all_limits_in_one_folder() {
        let place = tempfile::tempdir().unwrap();
        fs::write(
            place.path().join("cgroup.controllers"),
            "cpuset cpu io memory pids\n",
        )
        .unwrap();
        let mountinfo = format!(
            "40 30 0:30 / {} rw - cgroup2 cgroup2 rw\n",
            place.path().display()
        );
        let (mount, own) = v2("0::/app.service\n", &mountinfo).unwrap();
        fs::create_dir(&own).unwrap();
        fs::write(
            own.join("cgroup.procs"),
            format!("{}\n", std::process::id()),
        )
        .unwrap();
        let base = prepare_v2(&mount, &own).unwrap();
        assert_eq!(base, own);
        assert_eq!(
            fs::read_to_string(own.join("gateway/cgroup.procs")).unwrap(),
            std::process::id().to_string()
        );
        let group = Cgroups::V2 { base }.group("abc");
        group
            .make(&BoxLimits {
                memory_bytes: 1 << 29,
                cpu_millis: 1500,
                pids: 128,
                open_files: 1024,
            })
            .unwrap();
        let read = |file: &str| fs::read_to_string(own.join("portcullis-abc").join(file)).unwrap();
        assert_eq!(read("memory.max"), "536870912");
        assert_eq!(read("cpu.max"), "150000 100000");
        assert_eq!(read("pids.max"), "128");
    }

    #[test]
    fn others_processes_are_never_moved() {
        let place = tempfile::tempdir().unwrap();
        let own = place.path().join("session.scope");
        fs::create_dir(&own).unwrap();
        fs::write(
            own.join("cgroup.procs"),
            format!("1\n{}\n", std::process::id()),
        )
        .unwrap();
        assert_eq!(
            prepare_v2(place.path(), &own).unwrap(),
            place.path().join("portcullis")
        );
        assert!(!own.join("gateway").exists());
    }

    #[test]
    fn a_ceiling_that_the_kernel_does_not_hold_is_named() {
        let place = tempfile::tempdir().unwrap();
        let mount = place.path();
        let scope = mount.join("user.slice/libpod-1.scope");
        let own = scope.join("container");
        fs::create_dir_all(&own).unwrap();
        let limits = BoxLimits {
            memory_bytes: 1 << 29,
            cpu_millis: 1500,
            pids: 128,
            open_files: 1024,
        };
        let files = [
            ("memory.max", "536870912", "536875008"),
            ("memory.swap.max", "0", "4096"),
            ("cpu.max", "150000 100000", "160000 100000"),
            ("pids.max", "128", "129"),
        ];
        for (file, held, _) in files {
            fs::write(scope.join(file), held).unwrap();
            fs::write(own.join(file), "max").unwrap();
        }
        assert_eq!(missing(mount, &own, &limits), None);
        for (file, held, more) in files {
            for wrong in [more, "max", "max 100000", ""] {
                fs::write(scope.join(file), wrong).unwrap();
                let said = missing(mount, &own, &limits).unwrap_or_default();
                assert!(said.starts_with(file), "{file} {wrong}: {said}");
            }
            fs::write(scope.join(file), held).unwrap();
        }
        // The root of the hierarchy bounds nothing.
        assert!(missing(&scope, &scope, &limits).is_some());
    }

    /// The bug: a gateway whose runner was up already was told that its group held other processes.
    #[test]
    fn what_the_daemon_has_started_moves_with_it() {
        let place = tempfile::tempdir().unwrap();
        let own = place.path().join("app.service");
        fs::create_dir(&own).unwrap();
        let mut child = std::process::Command::new("sleep");
        let mut child = child.arg("60").spawn().unwrap();
        let listed = format!("{}\n{}\n", child.id(), std::process::id());
        fs::write(own.join("cgroup.procs"), listed).unwrap();
        let parent = prepare_v2(place.path(), &own);
        // What was written last: the daemon moves first.
        let moved = fs::read_to_string(own.join("gateway/cgroup.procs"));
        let id = child.id().to_string();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!((parent.unwrap(), moved.unwrap()), (own, id));
        assert!(!is_ours(1) && is_ours(std::process::id()));
    }

    /// The bug: what a daemon started while it moved kept its group from having controllers, and it stayed in one beside that had none: an engine
    /// that was started there found no limits to hold.
    #[test]
    fn a_daemon_that_cannot_have_its_boxes_below_its_group_goes_back_into_it() {
        let place = tempfile::tempdir().unwrap();
        let own = place.path().join("app.service");
        fs::create_dir(&own).unwrap();
        let me = std::process::id().to_string();
        fs::write(own.join("cgroup.procs"), &me).unwrap();
        let tries = std::cell::Cell::new(0);
        let refuses = |often| {
            let tries = &tries;
            move |folder: &Path| {
                // A real one is empty by now.
                fs::write(folder.join("cgroup.procs"), "").unwrap();
                tries.set(tries.get() + 1);
                if tries.get() > often {
                    Ok(())
                } else {
                    Err("busy".to_owned())
                }
            }
        };
        assert_eq!(stand_beside(&own, refuses(3)), Ok(()));
        let read = |file: &str| fs::read_to_string(own.join(file)).unwrap();
        assert_eq!((tries.get(), read("cgroup.procs")), (4, String::new()));
        tries.set(0);
        assert_eq!(stand_beside(&own, refuses(MOVES)), Err("busy".to_owned()));
        assert_eq!((tries.get(), read("cgroup.procs")), (MOVES, me));
    }

    /// The bug: a daemon that looked again found another parent than it had, in which none of its boxes was.
    #[test]
    fn the_parent_is_the_same_at_every_look() {
        let place = tempfile::tempdir().unwrap();
        let (mount, own) = (place.path(), place.path().join("app.service"));
        let beside = own.join("gateway");
        fs::create_dir_all(&beside).unwrap();
        for folder in [mount, &own] {
            fs::write(folder.join("cgroup.subtree_control"), "cpu memory pids\n").unwrap();
        }
        assert_eq!(prepare_v2(mount, &beside).unwrap(), own);
        assert!(!beside.join("gateway").exists());
        // The kernel's root group, whose children have controllers and which may hold processes all the same.
        assert_eq!(prepare_v2(mount, mount).unwrap(), mount.join("portcullis"));
        // The root that a container sees is a group like any other.
        fs::write(mount.join("cgroup.type"), "domain\n").unwrap();
        assert_eq!(prepare_v2(mount, mount).unwrap(), mount);
    }
}
