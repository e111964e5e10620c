//! Which programs start other programs: for them a path says little about what runs.

use crate::plan::{ExecPlan, Executable};

/// What a program's path tells about what it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommandKind {
    /// It does one thing.
    Plain,
    /// It has options or files by which it starts other commands.
    Tool,
    /// It runs code or commands that arguments, files or input bring: shell, interpreter, wrapper, package runner.
    Runner,
}

const RUNNERS: &[&str] = &[
    // shells and multi-call programs
    "sh",
    "bash",
    "rbash",
    "zsh",
    "dash",
    "ash",
    "ksh",
    "mksh",
    "fish",
    "nu",
    "csh",
    "tcsh",
    "pwsh",
    "powershell",
    "busybox",
    "toybox",
    "elvish",
    "xonsh",
    "screen",
    "tmux",
    "script",
    "expect",
    // interpreters
    "python",
    "pypy",
    "ipython",
    "node",
    "nodejs",
    "bun",
    "deno",
    "ruby",
    "irb",
    "perl",
    "php",
    "lua",
    "luajit",
    "tclsh",
    "wish",
    "osascript",
    "java",
    "jshell",
    "groovy",
    "scala",
    "kotlin",
    "r",
    "rscript",
    "julia",
    "guile",
    "racket",
    "elixir",
    "erl",
    "escript",
    "ghci",
    "runghc",
    "runhaskell",
    "ocaml",
    "swift",
    "dotnet",
    "mono",
    "wasmtime",
    "wasmer",
    "qjs",
    "gjs",
    "awk",
    "gawk",
    "mawk",
    "nawk",
    "gdb",
    "lldb",
    "sqlite",
    "psql",
    "mysql",
    "jq",
    "bc",
    "dc",
    "emacs",
    "vim",
    "vi",
    "nvim",
    "ed",
    "ex",
    // wrappers and privilege
    "sudo",
    "sudoedit",
    "doas",
    "su",
    "runuser",
    "pkexec",
    "env",
    "nice",
    "nohup",
    "stdbuf",
    "timeout",
    "time",
    "flock",
    "setsid",
    "setarch",
    "setpriv",
    "unshare",
    "nsenter",
    "chroot",
    "chrt",
    "ionice",
    "taskset",
    "numactl",
    "cpulimit",
    "firejail",
    "bwrap",
    "proot",
    "proxychains",
    "torify",
    "torsocks",
    "unbuffer",
    "watch",
    "xvfb-run",
    "systemd-run",
    "eatmydata",
    "catchsegv",
    "linux",
    "xargs",
    "parallel",
    "at",
    "batch",
    "crontab",
    "command",
    "exec",
    "eval",
    "ld",
    "ld-linux",
    "ld-linux-x",
    "ld-musl",
    "strace",
    "ltrace",
    "perf",
    "valgrind",
    "entr",
    "start-stop-daemon",
    "dbus-run-session",
    "caffeinate",
    "arch",
    "xcrun",
    // package runners, build tools, engines
    "npx",
    "npm",
    "pnpm",
    "yarn",
    "corepack",
    "bunx",
    "uv",
    "uvx",
    "pip",
    "pipx",
    "poetry",
    "conda",
    "gem",
    "bundle",
    "bundler",
    "rake",
    "cargo",
    "rustup",
    "go",
    "make",
    "gmake",
    "cmake",
    "ninja",
    "meson",
    "bazel",
    "mvn",
    "gradle",
    "ant",
    "sbt",
    "composer",
    "mix",
    "rebar",
    "cabal",
    "stack",
    "nix",
    "nix-shell",
    "guix",
    "just",
    "task",
    "docker",
    "podman",
    "nerdctl",
    "kubectl",
    "helm",
    "ansible",
    "ansible-playbook",
    "terraform",
    "tofu",
    "vagrant",
    "apt",
    "apt-get",
    "dpkg",
    "rpm",
    "dnf",
    "yum",
    "pacman",
    "apk",
    "brew",
    "snap",
    "flatpak",
    "run-parts",
    "busctl",
    "systemctl",
    "portcullis",
    // more wrappers, of Debian's packages
    "prlimit",
    "choom",
    "ssh-agent",
    "coresched",
    "uclampset",
    "fakeroot",
    "faketime",
    "dbus-launch",
    "rlwrap",
    "logsave",
    "capsh",
    "aa-exec",
    "cgexec",
    "chpst",
    "setuidgid",
    "softlimit",
    "tini",
    "dumb-init",
    "prove",
    "dpkg-architecture",
    "dpkg-buildpackage",
    "debuild",
    "ssh-argv",
    "newgrp",
    "sg",
    "dtach",
    "abduco",
    "nsjail",
    "lxc-execute",
    "lxc-attach",
    "machinectl",
    "systemd-nspawn",
    "systemd-inhibit",
    "systemd-cat",
    "varlinkctl",
    "gtester",
    "bats",
    "tox",
    "nox",
    "pytest",
    "ccache",
    "distcc",
    "sccache",
];

const TOOLS: &[&str] = &[
    "git",
    "hg",
    "svn",
    "find",
    "fd",
    "fdfind",
    "sed",
    "tar",
    "bsdtar",
    "zip",
    "unzip",
    "rsync",
    "ssh",
    "scp",
    "sftp",
    "ssh-keygen",
    "less",
    "more",
    "man",
    "sort",
    "split",
    "rg",
    "ag",
    "ack",
    "curl",
    "wget",
    "gpg",
    "openssl",
    "socat",
    "nc",
    "ncat",
    "telnet",
    "ftp",
    "lftp",
    "gcc",
    "g++",
    "cc",
    "clang",
    "ld.gold",
    "install",
    "dd",
    "tee",
    "cp",
    "mv",
    "ln",
    "chmod",
    "chown",
    "mount",
    "ip",
    "tcpdump",
    "nmap",
    "logrotate",
    "cpio",
    "ar",
    "view",
    "nano",
    "pico",
    "dig",
    "mail",
    "sendmail",
    "journalctl",
    "service",
    "iptables",
    "insmod",
    "modprobe",
    "tic",
];

/// The program that copies files out of a box and into it.
const CELL: &str = "portcullis-cell";

/// What the plan's program is, by the name it is called and by the file that it is.
pub fn kind_of(plan: &ExecPlan) -> CommandKind {
    // A script's interpreter is in the plan with its digest; so is the script. Its own name is what counts.
    if matches!(plan.executable, Executable::Node { .. }) {
        return CommandKind::Runner;
    }
    kind_of_command(&plan.executable, &plan.argv)
}

/// As [`kind_of`], before there is a plan.
pub fn kind_of_command(executable: &Executable, argv: &[String]) -> CommandKind {
    let file = executable.path().map_or("", base);
    let called = base(argv.first().map_or("", String::as_str));
    if file == CELL || called == CELL {
        // Beside these two it has words that start others.
        return match argv.get(1).map(String::as_str) {
            Some("get" | "put") => CommandKind::Plain,
            _ => CommandKind::Runner,
        };
    }
    let kinds = [kind_of_name(file), kind_of_name(called)];
    if kinds.contains(&CommandKind::Runner) {
        CommandKind::Runner
    } else if kinds.contains(&CommandKind::Tool) {
        CommandKind::Tool
    } else {
        CommandKind::Plain
    }
}

/// Does a program that is called so start what the configuration of the folder names in which it runs?
pub fn reads_its_folder(name: &str) -> bool {
    matches!(stem(base(name)).as_str(), "git" | "hg" | "svn")
}

pub(super) fn base(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// python3.12, perl5.36.0, lua5.4, gcc-12, vim.basic, ld-linux-x86-64.so.2: the name before the version or variant.
pub(super) fn stem(name: &str) -> String {
    let name = name.to_ascii_lowercase();
    let name = name.strip_suffix(".exe").unwrap_or(&name);
    let stem = name.split('.').next().unwrap_or(name);
    let stem = stem.trim_end_matches(|c: char| c.is_ascii_digit() || c == '-' || c == '_');
    stem.to_owned()
}

pub(super) fn kind_of_name(name: &str) -> CommandKind {
    let stem = stem(name);
    let stem = stem.as_str();
    let name = name.to_ascii_lowercase();
    let name = name.strip_suffix(".exe").unwrap_or(&name);
    let loader = name.starts_with("ld-") || name.starts_with("ld.so");
    // x86_64-linux-gnu-gcc: what stands behind the machine.
    let last = stem.rsplit('-').next().unwrap_or(stem);
    if loader || RUNNERS.contains(&name) || RUNNERS.contains(&stem) {
        CommandKind::Runner
    } else if TOOLS.contains(&name) || TOOLS.contains(&stem) || TOOLS.contains(&last) {
        CommandKind::Tool
    } else {
        CommandKind::Plain
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_cells_words_only_two_start_nothing() {
        let cell = Executable::Image {
            digest: "d".into(),
            path: "/run/portcullis-cell".into(),
        };
        let kind = |words: &[&str]| {
            let argv: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            kind_of_command(&cell, &argv)
        };
        let name = "/run/portcullis-cell";
        assert_eq!(kind(&[name, "get", "a"]), CommandKind::Plain);
        assert_eq!(kind(&[name, "put", "a", "644"]), CommandKind::Plain);
        for words in [
            &[name][..],
            &[name, "tty", "/bin/sh", "sh"],
            &[name, "run"],
            &["get", "tty"],
        ] {
            assert_eq!(kind(words), CommandKind::Runner, "{words:?}");
        }
    }

    #[test]
    fn versions_and_variants_do_not_hide_a_runner() {
        for name in [
            "sh",
            "python3.12",
            "python3",
            "perl5.36.0",
            "node",
            "busybox",
            "vim.basic",
            "ld-linux-x86-64.so.2",
            "env",
            "npx",
            "lua5.4",
            "SUDO",
            "php8.2",
            "ruby3.1",
            "awk",
        ] {
            assert_eq!(kind_of_name(name), CommandKind::Runner, "{name}");
        }
        assert_eq!(kind_of_name("git"), CommandKind::Tool);
        assert_eq!(kind_of_name("gcc-12"), CommandKind::Tool);
        assert_eq!(kind_of_name("x86_64-linux-gnu-gcc-12"), CommandKind::Tool);
        for name in ["uname", "ls", "shred", "nodeenvy", "id"] {
            assert_eq!(kind_of_name(name), CommandKind::Plain, "{name}");
        }
    }
}
