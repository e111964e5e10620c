//! What a command needs on the machine: found, listed, asked about, installed. Nothing is installed that was not listed first.

use std::io::{BufRead as _, Write as _};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::machine;
use crate::options::Options;

/// One thing a command needs, and the Debian package that brings it.
pub struct Need {
    pub what: &'static str,
    pub packages: &'static [&'static str],
    /// What cannot run without it.
    pub serves: &'static str,
    pub there: fn() -> bool,
}

pub const COMPILER: Need = Need {
    what: "a C compiler",
    packages: &["gcc", "libc6-dev"],
    serves: "building SQLite and linking",
    there: || machine::compiler().is_some(),
};
pub const BUBBLEWRAP: Need = Need {
    what: "bubblewrap",
    packages: &["bubblewrap"],
    serves: "the native sandbox driver",
    there: || machine::program("bwrap").is_some(),
};
pub const BUSYBOX: Need = Need {
    what: "busybox (static)",
    packages: &["busybox-static"],
    serves: "the image of the Docker driver's boxes",
    there: || machine::static_busybox().is_some(),
};
pub const DOCKER: Need = Need {
    what: "a Docker engine's programs",
    packages: &["docker.io"],
    serves: "the tests of the Docker driver",
    there: || machine::program("dockerd").is_some() && machine::program("docker").is_some(),
};
pub const PODMAN: Need = Need {
    what: "podman",
    packages: &["podman"],
    serves: "the tests of boxes behind Podman's socket",
    there: || machine::program("podman").is_some(),
};
pub const DEBOOTSTRAP: Need = Need {
    what: "debootstrap",
    packages: &["debootstrap"],
    serves: "the test that builds an image of Debian's packages (it fetches them)",
    there: || machine::program("debootstrap").is_some(),
};
pub const QEMU: Need = Need {
    what: "qemu for this machine's kind",
    packages: &["qemu-system-x86"],
    serves: "the tests in a virtual machine with cgroup v2 only",
    there: || machine::program("qemu-system-x86_64").is_some(),
};
pub const STRACE: Need = Need {
    what: "strace",
    packages: &["strace"],
    serves: "the tests of failing writes and of call counts",
    there: || machine::program("strace").is_some(),
};
pub const CHROMIUM: Need = Need {
    what: "chromium and its driver",
    packages: &["chromium", "chromium-driver"],
    serves: "the tests of the page",
    there: || machine::program("chromium").is_some() && machine::program("chromedriver").is_some(),
};
pub const NODE: Need = Need {
    what: "node and npm",
    packages: &["nodejs", "npm"],
    serves: "the tests with the npm clients openclaw and openclaw-node",
    // Any version: where it is older than the clients want, npm brings another beside them.
    there: || machine::program("node").is_some() && machine::program("npm").is_some(),
};

pub const OPENSSH: Need = Need {
    what: "OpenSSH (its sshd is not started)",
    packages: &["openssh-server", "openssh-client"],
    serves: "the tests of the way over SSH",
    there: || {
        ["sshd", "ssh", "ssh-keygen"]
            .iter()
            .all(|name| machine::program(name).is_some())
    },
};
pub const PYTHON: Need = Need {
    what: "python3",
    packages: &["python3-minimal"],
    serves: "the tests that try every way out of a host command",
    there: || machine::program("python3").is_some(),
};

/// Those of `needs` that are not met now.
pub fn missing<'a>(needs: &[&'a Need]) -> Vec<&'a Need> {
    needs
        .iter()
        .copied()
        .filter(|need| !(need.there)())
        .collect()
}

/// Lists what is missing, asks once, installs. Returns the needs that are still not met; whether that is fatal is the caller's to say.
pub fn provide<'a>(
    needs: &[&'a Need],
    also: &[String],
    options: &Options,
) -> Result<Vec<&'a Need>> {
    let lacking = missing(needs);
    if lacking.is_empty() && also.is_empty() {
        return Ok(vec![]);
    }
    println!("This will be installed, and started where it says so:");
    for need in &lacking {
        println!(
            "  {:32} apt-get install {:28} for {}",
            need.what,
            need.packages.join(" "),
            need.serves
        );
    }
    for line in also {
        println!("  {line}");
    }
    if options.offline {
        println!("--offline: nothing is installed.");
        return Ok(lacking);
    }
    if !agreed(options)? {
        println!("Nothing is installed.");
        return Ok(lacking);
    }
    if !lacking.is_empty() {
        install(&lacking)?;
    }
    Ok(missing(needs))
}

fn agreed(options: &Options) -> Result<bool> {
    if options.assume_yes() {
        return Ok(true);
    }
    print!("Go on? [Y/n] ");
    std::io::stdout().flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "" | "y" | "Y" | "yes"))
}

fn install(lacking: &[&Need]) -> Result<()> {
    let Some(before) = machine::installer() else {
        println!("No apt-get here, or neither root nor sudo: install the packages above by hand.");
        return Ok(());
    };
    let root = |words: &[&str]| -> Result<bool> {
        let mut line: Vec<&str> = before.clone();
        // Through env, because sudo drops the caller's environment.
        line.extend(["env", "DEBIAN_FRONTEND=noninteractive"]);
        line.extend(words);
        println!("$ {}", line.join(" "));
        let status = Command::new(line[0])
            .args(&line[1..])
            .status()
            .with_context(|| format!("{} could not be started", line[0]))?;
        Ok(status.success())
    };
    let get = |needs: &[&Need]| -> Result<bool> {
        let mut words = vec!["apt-get", "install", "-y", "-qq", "--no-install-recommends"];
        words.extend(needs.iter().flat_map(|need| need.packages).copied());
        root(&words)
    };
    if !root(&["apt-get", "update", "-qq"])? {
        println!("The package lists could not be refreshed; trying with those that are here.");
    }
    // A test is no reason to open this machine's port 22: sshd is installed under a policy that starts nothing.
    let (doors, rest): (Vec<&Need>, Vec<&Need>) = lacking
        .iter()
        .copied()
        .partition(|need| need.packages == OPENSSH.packages);
    if !rest.is_empty() && !get(&rest)? {
        // One package that cannot be had must not cost the others.
        for need in rest {
            if !get(&[need])? {
                println!("Could not install {}.", need.packages.join(" "));
            }
        }
    }
    if doors.is_empty() {
        return Ok(());
    }
    let has_policy = Path::new(POLICY).exists();
    if !has_policy && !root(&["sh", "-c", START_NOTHING])? {
        println!("Could not keep sshd from being started, so it is not installed.");
        return Ok(());
    }
    let installed = get(&doors);
    if !has_policy {
        root(&["rm", "-f", POLICY])?;
    }
    if !installed? {
        println!("Could not install {}.", OPENSSH.packages.join(" "));
    } else if !root(&["update-rc.d", "ssh", "disable"])? {
        println!(
            "sshd is installed and may start with the machine: `systemctl disable ssh` keeps it from that."
        );
    }
    Ok(())
}

/// Asked by Debian's packages before they start a service (invoke-rc.d(8)).
const POLICY: &str = "/usr/sbin/policy-rc.d";
const START_NOTHING: &str =
    "printf '#!/bin/sh\\nexit 101\\n' > /usr/sbin/policy-rc.d && chmod 755 /usr/sbin/policy-rc.d";
