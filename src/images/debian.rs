//! A root file system of Debian's packages, by debootstrap: what it fetches is signed by Debian, or it is refused.

use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;

use tokio::process::Command;

use super::NotMade;
use crate::show::text::clean;

/// Packages of one image.
const MOST_PACKAGES: usize = 256;
/// Lines of debootstrap's that are shown where it fails.
const SHOWN: usize = 6;
/// Left behind by installing, of no use in a box, or of this machine.
const EMPTIED: [&str; 4] = [
    "var/cache/apt",
    "var/lib/apt/lists",
    "var/log",
    "var/cache/debconf",
];
const REMOVED: [&str; 5] = [
    "etc/resolv.conf",
    "etc/hostname",
    "etc/machine-id",
    "var/lib/dbus/machine-id",
    "debootstrap",
];

/// What is to be installed.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Names of packages.
    pub packages: Vec<String>,
    /// A release, as `bookworm`; none is this machine's own.
    pub suite: Option<String>,
    /// Where it is fetched from; none is debootstrap's own choice.
    pub mirror: Option<String>,
}

impl Wanted {
    /// Checks every name: they become arguments of a program that runs as root.
    ///
    /// # Errors
    /// The rule.
    pub fn check(&self) -> Result<(), String> {
        let is_name = |text: &str| {
            let mut bytes = text.bytes();
            bytes
                .next()
                .is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
                && text.len() <= 100
                && bytes
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+.-".contains(&b))
        };
        if self.packages.len() > MOST_PACKAGES {
            return Err("an image has at most 256 packages by name".to_owned());
        }
        if let Some(bad) = self.packages.iter().find(|name| !is_name(name)) {
            return Err(format!("{bad:?} is no name of a package"));
        }
        if let Some(suite) = self.suite.as_deref().filter(|suite| !is_name(suite)) {
            return Err(format!("{suite:?} is no name of a release: as bookworm"));
        }
        let is_url = |text: &str| {
            ["http://", "https://"]
                .iter()
                .any(|scheme| text.starts_with(scheme))
                && text.bytes().all(|b| b.is_ascii_graphic())
        };
        if let Some(mirror) = self.mirror.as_deref().filter(|mirror| !is_url(mirror)) {
            return Err(format!("{mirror:?} is no mirror: as https://HOST/debian"));
        }
        Ok(())
    }
}

/// Installs into `root`, which must be empty and nobody else's. Names and versions of what was asked for. It takes a minute.
///
/// # Errors
/// What debootstrap said last, or the command that installs it.
pub async fn install(wanted: &Wanted, root: &Path, log: &Path) -> Result<Vec<String>, NotMade> {
    if !rustix::process::geteuid().is_root() {
        return Err(NotMade::new(
            "packages are installed into a root of their own, which only root may do",
        )
        .next(
            "run it as root, or make the tar elsewhere and use `portcullis sandbox image import`",
        ));
    }
    let suite = match &wanted.suite {
        Some(suite) => suite.clone(),
        None => own_suite(&fs::read_to_string("/etc/os-release").unwrap_or_default()),
    };
    let out = File::create(log)?;
    // In namespaces of its own: what it mounts and starts is gone with it, and it with us, however that ends.
    let mut command = Command::new("setpriv");
    command
        .args([
            "--pdeathsig",
            "KILL",
            "--",
            "unshare",
            "--mount",
            "--propagation",
        ])
        .args([
            "private",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "--",
        ])
        .args(["debootstrap", "--variant=minbase", "--force-check-gpg"])
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LC_ALL", "C.UTF-8")
        .env("DEBIAN_FRONTEND", "noninteractive")
        .envs(proxies())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .stderr(out.try_clone()?)
        .stdout(out);
    if !wanted.packages.is_empty() {
        command.arg(format!("--include={}", wanted.packages.join(",")));
    }
    command.arg(&suite).arg(root).args(&wanted.mirror);
    let missing = || {
        NotMade::new("there is no debootstrap on this machine")
            .next("`apt-get install debootstrap`")
    };
    let in_path = |name: &str| {
        ["/usr/sbin", "/usr/bin", "/sbin", "/bin"]
            .iter()
            .any(|folder| Path::new(folder).join(name).exists())
    };
    if ["debootstrap", "unshare", "setpriv"]
        .iter()
        .any(|name| !in_path(name))
    {
        return Err(missing());
    }
    if !command.status().await?.success() {
        let said = fs::read(log).unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        let lines: Vec<_> = said
            .lines()
            .filter(|line| !line.trim().is_empty())
            .collect();
        let last = lines[lines.len().saturating_sub(SHOWN)..].iter();
        let last: Vec<_> = last.map(|line| clean(line)).collect();
        return Err(NotMade::new(format!("debootstrap failed: {}", last.join("; "))).next(
            "look at the names of packages and release, and whether this machine reaches the mirror (--mirror)",
        ));
    }
    for name in EMPTIED {
        empty(&root.join(name))?;
    }
    for name in REMOVED {
        let path = root.join(name);
        match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_dir() => fs::remove_dir_all(&path)?,
            Ok(_) => fs::remove_file(&path)?,
            Err(_) => {}
        }
    }
    let status = fs::read_to_string(root.join("var/lib/dpkg/status"))?;
    Ok(versions(&status, &wanted.packages))
}

/// Variables that say by which proxy this machine gets out.
fn proxies() -> Vec<(&'static str, std::ffi::OsString)> {
    let names = ["http_proxy", "https_proxy", "no_proxy"];
    names
        .into_iter()
        .filter_map(|name| Some((name, std::env::var_os(name)?)))
        .collect()
}

fn empty(folder: &Path) -> Result<(), NotMade> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Ok(());
    };
    for entry in entries {
        let path = entry?.path();
        if fs::symlink_metadata(&path)?.is_dir() {
            fs::remove_dir_all(&path)?;
        } else {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// Of a machine that is none of Debian's: the release that Debian calls stable.
fn own_suite(os_release: &str) -> String {
    let value = |key: &str| {
        let mut lines = os_release.lines();
        let line = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.map(|value| value.trim_matches('"').to_owned())
    };
    value("VERSION_CODENAME")
        .filter(|_| value("ID").as_deref() == Some("debian"))
        .filter(|name| !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase()))
        .unwrap_or_else(|| "stable".to_owned())
}

/// Names and versions, as dpkg has them, of the packages that were asked for.
fn versions(status: &str, wanted: &[String]) -> Vec<String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"+.-:~".contains(&b);
    let field = |stanza: &str, key: &str| {
        let mut lines = stanza.lines();
        let value = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix(": "));
        value.map(str::to_owned)
    };
    let mut found: Vec<String> = status
        .split("\n\n")
        .filter_map(|stanza| {
            let name = field(stanza, "Package").filter(|name| wanted.contains(name))?;
            let version = field(stanza, "Version").filter(|text| text.bytes().all(plain))?;
            Some(format!("{name} {version}"))
        })
        .collect();
    found.sort();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_be_options_or_lists_are_refused() {
        let wanted = |package: &str, suite: &str, mirror: &str| Wanted {
            packages: vec![package.to_owned()],
            suite: Some(suite.to_owned()),
            mirror: Some(mirror.to_owned()),
        };
        let url = "https://mirror.example/debian";
        assert_eq!(wanted("g++-12", "bookworm", url).check(), Ok(()));
        for package in [
            "",
            "-x",
            "--foreign",
            "a,b",
            "a b",
            "A",
            "../a",
            "a\nb",
            "a/b",
        ] {
            assert!(wanted(package, "sid", url).check().is_err(), "{package:?}");
        }
        for suite in ["--help", "", "a/b", "../x"] {
            assert!(wanted("bash", suite, url).check().is_err(), "{suite:?}");
        }
        for mirror in ["file:///x", "--help", "https://a b", "ssh://x"] {
            assert!(wanted("bash", "sid", mirror).check().is_err(), "{mirror:?}");
        }
    }

    #[test]
    fn the_release_is_this_machines_where_that_is_debian() {
        assert_eq!(
            own_suite("ID=debian\nVERSION_CODENAME=bookworm\n"),
            "bookworm"
        );
        assert_eq!(own_suite("ID=ubuntu\nVERSION_CODENAME=jammy\n"), "stable");
        assert_eq!(own_suite("ID=debian\nVERSION_CODENAME=\"--x\"\n"), "stable");
        assert_eq!(own_suite(""), "stable");
    }

    #[test]
    fn versions_are_those_of_what_was_asked_for() {
        let status = "Package: bash\nStatus: install ok installed\nVersion: 5.2.15-2+b2\n\n\
                      Package: libc6\nVersion: 2.36\n\nPackage: git\nVersion: 1:2.39.5-0+deb12u2\n";
        let wanted = ["git".to_owned(), "bash".to_owned(), "none".to_owned()];
        assert_eq!(
            versions(status, &wanted),
            ["bash 5.2.15-2+b2", "git 1:2.39.5-0+deb12u2"]
        );
    }
}
