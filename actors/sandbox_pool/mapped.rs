//! The kernel's own word on whose the users of a box are. An engine that runs as root gives its boxes those of this machine; one without root
//! can only give the gateway's own, and what is lent to it (subuid(5)).

use portcullis_core::sandbox::Mapping;

/// One kind of ids: what the kernel calls its mapping, who lends them, who has them.
struct Kind {
    map: &'static str,
    lent: &'static str,
    known: &'static str,
}

const KINDS: [Kind; 2] = [
    Kind {
        map: "uid_map",
        lent: "/etc/subuid",
        known: "/etc/passwd",
    },
    Kind {
        map: "gid_map",
        lent: "/etc/subgid",
        known: "/etc/group",
    },
];

/// Whether the box of this first process has the users that it must: `own` is its uid and gid; `keeps_id`: in a namespace of its own, of an
/// engine without root.
///
/// # Errors
/// What it has instead, or that it cannot be seen.
pub fn users(pid: u32, own: [u32; 2], keeps_id: bool) -> Result<(), String> {
    for (at, kind) in KINDS.iter().enumerate() {
        let what = kind.map;
        let said = |why: String| format!("the box's {what} is not as asked: {why}");
        let read = |whose: String| {
            let text = std::fs::read_to_string(format!("/proc/{whose}/{what}"));
            text.map_err(|error| said(error.to_string()))
        };
        let map = read(pid.to_string())?;
        let flaw = if keeps_id {
            let text = |path| std::fs::read_to_string(path).unwrap_or_default();
            let passwd = text("/etc/passwd");
            let mapping = Mapping {
                map: &map,
                own: own[at],
                name: name_of(&passwd, own[0]),
                uid: own[0],
                lent: &text(kind.lent),
                known: &text(kind.known),
            };
            mapping.flaw()
        } else {
            let is_same = map == read("self".to_owned())?;
            (!is_same).then(|| "its users are not this machine's".to_owned())
        };
        if let Some(why) = flaw {
            return Err(said(why));
        }
    }
    Ok(())
}

fn name_of(passwd: &str, uid: u32) -> Option<&str> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, found) = (fields.next()?, fields.nth(1)?);
        (found.parse::<u32>() == Ok(uid)).then_some(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_users_of_this_machine_are_an_engines_with_root_and_no_others() {
        let own = std::process::id();
        let ids = [
            rustix::process::getuid().as_raw(),
            rustix::process::getgid().as_raw(),
        ];
        assert_eq!(users(own, ids, false), Ok(()));
        // All users of this machine, its root among them, are none of an engine without root.
        let refused = users(own, ids, true).unwrap_err();
        assert!(
            refused.starts_with("the box's uid_map is not as asked"),
            "{refused}"
        );
        assert!(users(0, ids, false).is_err());
    }

    #[test]
    fn a_user_is_found_by_its_number() {
        let passwd = "root:x:0:0::/root:/bin/sh\nworker:x:1000:1001::/home/worker:/bin/sh\n";
        assert_eq!(name_of(passwd, 1000), Some("worker"));
        assert_eq!(name_of(passwd, 1001), None);
        assert_eq!(name_of("+::::::\n", 0), None);
    }
}
