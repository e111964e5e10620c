//! As whom host commands run.

use std::collections::HashMap;
use std::fs;

use portcullis_core::codes;
use rustix::process::{getegid, geteuid};

use super::config::HostConfig;
use super::messages::ExecRefusal;

/// A user of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    pub home: String,
    /// The gateway is root and gives it up for the command; otherwise the command has the gateway's own user.
    pub switched: bool,
}

impl User {
    /// From the configuration and `/etc/passwd`, read anew for each plan.
    ///
    /// # Errors
    /// `HOST_USER_INVALID`.
    pub fn find(
        config: &HostConfig,
        operator_uids: &[u32],
        operator_gids: &[u32],
    ) -> Result<Self, ExecRefusal> {
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let invalid = |text: String| ExecRefusal::new(codes::HOST_USER_INVALID, text);
        if !geteuid().is_root() {
            let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
            let mut user = by_uid(&passwd, uid).unwrap_or_else(|| Self {
                name: uid.to_string(),
                uid,
                gid,
                home: "/".to_owned(),
                switched: false,
            });
            user.gid = gid;
            return if gid == 0 {
                Err(invalid(
                    "the gateway's group is root's: start it with another".to_owned(),
                ))
            } else {
                Ok(user)
            };
        }
        let wanted = &config.user;
        let mut user = by_name(&passwd, wanted)
            .ok_or_else(|| invalid(format!("[exec.host] user {wanted:?} is not in /etc/passwd")))?;
        user.switched = true;
        let refused = if user.uid == 0 || user.gid == 0 {
            Some("is root, or of root's group")
        } else if operator_uids.contains(&user.uid) || operator_gids.contains(&user.gid) {
            Some("is an operator: what runs as it could approve")
        } else {
            None
        };
        match refused {
            Some(why) => Err(invalid(format!("[exec.host] user {wanted:?} {why}"))),
            None => Ok(user),
        }
    }
}

/// The number of this user's name, by `/etc/passwd` as it is now.
pub fn uid_of(name: &str) -> Option<u32> {
    let passwd = fs::read_to_string("/etc/passwd").ok()?;
    by_name(&passwd, name).map(|user| user.uid)
}

/// All users of this machine by name, read once.
pub fn uids() -> impl Fn(&str) -> Option<u32> {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let uids: HashMap<String, u32> = entries(&passwd).map(|user| (user.name, user.uid)).collect();
    move |name| uids.get(name).copied()
}

fn by_name(passwd: &str, name: &str) -> Option<User> {
    entries(passwd).find(|user| user.name == name)
}

fn by_uid(passwd: &str, uid: u32) -> Option<User> {
    entries(passwd).find(|user| user.uid == uid)
}

fn entries(passwd: &str) -> impl Iterator<Item = User> + '_ {
    passwd.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, uid, gid, _, home, _] = fields[..] else {
            return None;
        };
        Some(User {
            name: name.to_owned(),
            uid: uid.parse().ok()?,
            gid: gid.parse().ok()?,
            home: home.to_owned(),
            switched: false,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_is_no_user_is_passed_over() {
        let text = "root:x:0:0:root:/root:/bin/sh\nbroken\n+:::\nnobody:x:65534:65534:n:/nonexistent:/bin/false\n";
        assert_eq!(
            by_name(text, "nobody").map(|u| (u.uid, u.gid)),
            Some((65534, 65534))
        );
        assert_eq!(by_uid(text, 0).map(|u| u.name), Some("root".to_owned()));
        assert_eq!(by_name(text, "broken"), None);
    }
}
