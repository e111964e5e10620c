//! The kernel's own word on a process that an engine says it has confined.

use std::time::Duration;

/// A container's init is the engine's own launcher for some milliseconds after "started": its last steps are the filter and the exec.
const SETTLE: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(2);
/// Files of the kernel's that an engine covers, and those that it makes read-only.
const COVERED: [&str; 3] = ["/proc/kcore", "/proc/keys", "/proc/timer_list"];
const READ_ONLY: [&str; 4] = ["/", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
/// Those of a box.
const NAMESPACES: [&str; 6] = ["cgroup", "ipc", "mnt", "net", "pid", "uts"];

/// Returns once `/proc/PID/status` shows every uid and gid as asked, no capability in any set, no new privileges and a seccomp filter, and
/// its network namespace has no route that leaves the box; where `apparmor` is due, a profile of that is enforced; its namespaces are its own (all of [`NAMESPACES`], but for those that the engine
/// cannot be asked for), and what an engine covers of `/proc` is covered.
///
/// # Errors
/// What still differs after 2 s, or that the process cannot be seen: the engine's process ids are then not this machine's.
pub async fn confined(
    pid: u32,
    uid: u32,
    gid: u32,
    without: &[&str],
    apparmor: bool,
) -> Result<(), String> {
    let folder = format!("/proc/{pid}");
    let deadline = tokio::time::Instant::now() + SETTLE;
    loop {
        let verdict = match std::fs::read_to_string(format!("{folder}/status")) {
            Ok(status) => shortfall(&status, uid, gid)
                .or_else(|| way_out(&folder))
                .or_else(|| shared(&folder, without))
                .or_else(|| uncovered(&folder))
                .or_else(|| apparmor.then(|| unprofiled(&folder)).flatten()),
            Err(error) => {
                return Err(format!(
                    "the box's first process {pid} is not seen on this machine: {error}"
                ));
            }
        };
        match verdict {
            None => return Ok(()),
            Some(what) if tokio::time::Instant::now() >= deadline => {
                return Err(format!(
                    "the kernel says that the box is not confined as asked: {what}"
                ));
            }
            Some(_) => tokio::time::sleep(POLL).await,
        }
    }
}

/// The first namespace that a box shares with this process.
fn shared(folder: &str, without: &[&str]) -> Option<String> {
    let of = |folder: &str, name: &str| std::fs::read_link(format!("{folder}/ns/{name}"));
    NAMESPACES
        .into_iter()
        .filter(|name| !without.contains(name))
        .find_map(|name| match (of("/proc/self", name), of(folder, name)) {
            (Ok(own), Ok(its)) if own != its => None,
            (Ok(_), Ok(_)) => Some(format!("its {name} namespace is this machine's")),
            (Err(error), _) | (_, Err(error)) => {
                Some(format!("its {name} namespace cannot be seen: {error}"))
            }
        })
}

/// Whether the kernel lets a process have so many files open, where an engine cannot be asked for a limit: its runs are given theirs below it.
///
/// # Errors
/// What it says instead.
pub fn may_open(pid: u32, files: u32) -> Result<(), String> {
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits"))
        .map_err(|error| format!("the limits of the box's first process are not seen: {error}"))?;
    match most_files(&limits) {
        Some(most) if most >= u64::from(files) => Ok(()),
        most => Err(format!(
            "a run may have {files} open files, and the box {}: raise `LimitNOFILE` of the engine's service, or lower `open_files`",
            most.map_or_else(|| "an unknown number".to_owned(), |most| most.to_string())
        )),
    }
}

/// The hard limit.
fn most_files(limits: &str) -> Option<u64> {
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    match line.split_whitespace().nth(1)? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

/// What AppArmor says of a process that is to have a profile of its, enforced (`docker-default (enforce)`).
fn unprofiled(folder: &str) -> Option<String> {
    let own = ["apparmor/current", "current"];
    let read = |file| std::fs::read_to_string(format!("{folder}/attr/{file}"));
    let said = own.into_iter().find_map(|file| read(file).ok());
    let said = said.unwrap_or_default();
    let said = said.trim_matches(['\0', '\n']);
    (!is_enforced(said)).then(|| format!("its AppArmor profile is {said:?}"))
}

fn is_enforced(said: &str) -> bool {
    said.strip_suffix(" (enforce)")
        .is_some_and(|profile| !profile.is_empty() && !profile.contains("unconfined"))
}

/// What of the kernel's own files an engine has left open, by the mounts that the box has.
fn uncovered(folder: &str) -> Option<String> {
    match std::fs::read_to_string(format!("{folder}/mountinfo")) {
        // Not every kernel has all of them.
        Ok(mounts) => open_in(&mounts, |place| std::path::Path::new(place).exists()),
        Err(error) => Some(format!("its mounts cannot be seen: {error}")),
    }
}

fn open_in(mounts: &str, exists: impl Fn(&str) -> bool) -> Option<String> {
    // Mount point and options: the fifth and sixth field. The last one at a place is what is seen there.
    let at = |place: &str| {
        let mut fields = mounts.lines().rev().filter_map(|line| {
            let mut fields = line.split(' ').skip(4);
            Some((fields.next()?, fields.next()?))
        });
        fields.find(|(point, _)| *point == place)
    };
    let is_read_only = |options: &str| options.split(',').any(|option| option == "ro");
    let open = COVERED
        .into_iter()
        .find(|place| exists(place) && at(place).is_none())
        .map(|place| format!("{place} is not covered"));
    open.or_else(|| {
        READ_ONLY
            .into_iter()
            .find(|place| {
                exists(place) && !at(place).is_some_and(|(_, options)| is_read_only(options))
            })
            .map(|place| format!("{place} can be written"))
    })
}

/// The first line of a status file that is not as a box's must be. A missing line is a shortfall.
fn shortfall(status: &str, uid: u32, gid: u32) -> Option<String> {
    let value = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .map(str::trim)
    };
    let differs = |name: &str, fits: &dyn Fn(&str) -> bool| match value(name) {
        Some(text) if fits(text) => None,
        other => Some(format!("{name} is {}", other.unwrap_or("missing"))),
    };
    let all = |id: u32, least: usize| {
        move |text: &str| {
            let mut ids = text.split_whitespace().map(str::parse::<u32>);
            ids.clone().count() >= least && ids.all(|given| given == Ok(id))
        }
    };
    let no_capability = |text: &str| u64::from_str_radix(text, 16) == Ok(0);
    differs("Uid", &all(uid, 4))
        .or_else(|| differs("Gid", &all(gid, 4)))
        .or_else(|| differs("Groups", &all(gid, 0)))
        .or_else(|| {
            ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"]
                .into_iter()
                .find_map(|set| differs(set, &no_capability))
        })
        .or_else(|| differs("NoNewPrivs", &|text| text == "1"))
        .or_else(|| differs("Seccomp", &|text| text == "2"))
}

/// The first route of a process's network namespace that is not the loopback's. The box's lists of routes are readable by everybody.
fn way_out(folder: &str) -> Option<String> {
    let v4 = std::fs::read_to_string(format!("{folder}/net/route"));
    let v6 = match std::fs::read_to_string(format!("{folder}/net/ipv6_route")) {
        // A kernel without IPv6.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        read => read,
    };
    match (v4, v6) {
        (Ok(v4), Ok(v6)) => foreign_route(&v4, &v6),
        (Err(error), _) | (_, Err(error)) => Some(format!("its routes cannot be read: {error}")),
    }
}

/// IPv4: a heading, then one line per route, its device first. IPv6: the device last.
fn foreign_route(v4: &str, v6: &str) -> Option<String> {
    let v4 = v4
        .lines()
        .skip(1)
        .map(|line| line.split_whitespace().next());
    let v6 = v6.lines().map(|line| line.split_whitespace().next_back());
    v4.chain(v6)
        .flatten()
        .find(|device| *device != "lo")
        .map(|device| format!("a route leaves it through {device}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "Name:\tcell\nUid:\t1000\t1000\t1000\t1000\nGid:\t1000\t1000\t1000\t1000\nGroups:\t \nCapInh:\t0000000000000000\nCapPrm:\t0000000000000000\n\
        CapEff:\t0000000000000000\nCapBnd:\t0000000000000000\nCapAmb:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n";

    #[test]
    fn a_confined_process_passes_and_every_single_weakness_is_named() {
        assert_eq!(shortfall(GOOD, 1000, 1000), None);
        for (from, to, names) in [
            ("Uid:\t1000", "Uid:\t0", "Uid"),
            ("Gid:\t1000", "Gid:\t0", "Gid"),
            ("Groups:\t ", "Groups:\t27 ", "Groups"),
            ("CapInh:\t0", "CapInh:\t1", "CapInh"),
            ("CapPrm:\t0", "CapPrm:\t1", "CapPrm"),
            ("CapEff:\t0", "CapEff:\t8", "CapEff"),
            ("CapBnd:\t0", "CapBnd:\tf", "CapBnd"),
            ("CapAmb:\t0", "CapAmb:\tx", "CapAmb"),
            ("NoNewPrivs:\t1", "NoNewPrivs:\t0", "NoNewPrivs"),
            ("Seccomp:\t2", "Seccomp:\t0", "Seccomp"),
            ("Seccomp:\t2\n", "", "Seccomp"),
        ] {
            let weak = GOOD.replacen(from, to, 1);
            assert_ne!(weak, GOOD, "{from}");
            let found = shortfall(&weak, 1000, 1000).unwrap_or_default();
            assert!(found.starts_with(names), "{from}: {found}");
        }
        assert!(shortfall("", 1000, 1000).is_some());
    }

    #[test]
    fn this_process_shares_its_own_namespaces_and_covers_nothing() {
        assert!(
            shared("/proc/self", &NAMESPACES[1..])
                .unwrap()
                .contains("is this machine's")
        );
        assert!(shared("/proc/0", &[]).unwrap().contains("cannot be seen"));
        assert_eq!(shared("/proc/self", &NAMESPACES), None);
        assert!(uncovered("/proc/self").is_some());
        let good = "1 0 0:1 / / ro,relatime - overlay o rw\n2 1 0:2 / /proc rw - proc p rw\n3 2 0:2 / /proc/kcore rw - tmpfs t rw\n\
            4 2 0:2 / /proc/keys rw - tmpfs t rw\n4 2 0:2 / /proc/timer_list rw - tmpfs t rw\n4 2 0:2 / /proc/irq ro - proc p rw\n4 2 0:2 / /proc/sys ro,nosuid - proc p rw\n5 2 0:2 / /proc/sysrq-trigger ro - proc p rw\n";
        assert_eq!(open_in(good, |_| true), None);
        for (from, to) in [
            ("/ / ro,", "/ / rw,"),
            ("/proc/kcore", "/proc/kcor"),
            ("/proc/sys ro", "/proc/sys rw"),
            ("/proc/sysrq-trigger ro", "/proc/sysrq-trigger rw"),
        ] {
            let bad = good.replacen(from, to, 1);
            assert_ne!(bad, good);
            assert!(open_in(&bad, |_| true).is_some(), "{from}");
        }
        // A kernel that has none of them needs no cover.
        let bare = "1 0 0:1 / / ro,relatime - overlay o rw\n";
        assert_eq!(open_in(bare, |place| place == "/"), None);
        // Another one over it is what holds.
        let over = format!("{good}6 0 0:9 / / rw - overlay o rw\n");
        assert!(open_in(&over, |_| true).is_some());
    }

    #[tokio::test]
    async fn a_process_that_is_not_there_is_refused() {
        let refused = confined(u32::MAX, 1000, 1000, &[], false)
            .await
            .unwrap_err();
        assert!(refused.contains("not seen on this machine"), "{refused}");
    }

    #[test]
    fn a_box_that_may_open_fewer_files_than_its_runs_are_given_is_refused() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
            Max open files            1024                 4096                 files     \n";
        assert_eq!(most_files(limits), Some(4096));
        assert_eq!(
            most_files(&limits.replace("4096", "unlimited")),
            Some(u64::MAX)
        );
        assert_eq!(most_files(""), None);
        let own = std::process::id();
        assert_eq!(may_open(own, 1), Ok(()));
        assert!(may_open(0, 1).unwrap_err().contains("not seen"));
        let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
        if let Some(more) = most.and_then(|most| u32::try_from(most + 1).ok()) {
            assert!(may_open(own, more).unwrap_err().contains("open_files"));
        }
    }

    #[test]
    fn a_profile_of_apparmor_that_is_not_enforced_is_none() {
        for said in [
            "docker-default (enforce)",
            "containers-default-0.50.1 (enforce)",
        ] {
            assert!(is_enforced(said), "{said}");
        }
        for said in [
            "",
            "unconfined",
            " (enforce)",
            "docker-default (complain)",
            "docker-default",
            "docker-default//&unconfined (enforce)",
        ] {
            assert!(!is_enforced(said), "{said}");
        }
        assert!(unprofiled("/proc/0").is_some());
    }

    #[test]
    fn a_route_that_is_not_the_loopbacks_is_a_way_out() {
        let v4 = "Iface\tDestination\tGateway\n";
        let v6 = "00000000000000000000000000000001 80 0 00 0 0 0 0 80200001       lo\n";
        assert_eq!(foreign_route(v4, v6), None);
        assert_eq!(foreign_route(v4, ""), None);
        let eth = format!("{v4}eth0\t00000000\t010011AC\n");
        assert!(foreign_route(&eth, v6).unwrap_or_default().contains("eth0"));
        let wg = format!("{v6}fe80 40 0 00 0 0 0 0 00000001 wg0\n");
        assert!(foreign_route(v4, &wg).unwrap_or_default().contains("wg0"));
        // This very process has a way out, or at least its routes can be read.
        assert!(!way_out("/proc/self").unwrap_or_default().contains("cannot"));
        assert!(way_out("/proc/0").is_some());
    }
}
