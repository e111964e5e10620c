//! What a box is made of, in bubblewrap's words, and bubblewrap's word about it.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Command;

use portcullis_core::sandbox::Access;
use serde::Deserialize;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;

use super::spec::{BoxSpec, CELL_INSIDE, HOST_NAME, RUN_INSIDE, WORKSPACE_INSIDE};

/// Parts of the host's `/etc` that a box may see, where they exist.
const ETC: [&str; 7] = [
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "alternatives",
    "localtime",
    "ssl/certs",
    "ca-certificates/extracted",
];
/// Ours, the same for every box.
pub const ETC_OURS: [&str; 3] = ["hosts", "nsswitch.conf", "hostname"];
/// Ours, of each box, in its control folder: no user of the host is named in one but its own.
pub const ETC_OF_BOX: [&str; 2] = ["passwd", "group"];
/// The host's devices that a box has.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
/// Descriptor of the child: bubblewrap's report.
pub const INFO_FD: i32 = 3;
/// Descriptor of the child: the other end of that report. Where this process ends before it has read it, bubblewrap must not die of it: its
/// init would wait for the next word for ever.
pub const INFO_KEPT_FD: i32 = 5;
/// Descriptor of the child: bubblewrap starts the box when it can read a byte there.
pub const BLOCK_FD: i32 = 4;

/// Name in the stage of the box's terminals.
pub const TERMINALS: &str = "p";

/// A file system in memory, which counts as the box's.
pub struct InMemory {
    /// In the stage.
    pub name: &'static str,
    inside: &'static str,
    mode: &'static str,
    bytes: u64,
    inodes: u64,
}

impl InMemory {
    /// As the kernel takes them.
    pub fn limits(&self) -> String {
        let (mode, bytes, inodes) = (self.mode, self.bytes, self.inodes);
        format!("mode={mode},size={bytes},nr_inodes={inodes}")
    }
}

/// Those that a box has.
pub fn in_memory(spec: &BoxSpec) -> Vec<InMemory> {
    let limits = &spec.limits;
    let of = |name, inside, mode, bytes| InMemory {
        name,
        inside,
        mode,
        bytes,
        inodes: limits.inodes(),
    };
    let mut all = vec![
        of("m", "/dev/shm", "1777", limits.shared()),
        of("t", "/tmp", "1777", limits.scratch()),
    ];
    if spec.access == Access::None {
        all.push(of("n", WORKSPACE_INSIDE, "700", limits.scratch()));
    }
    all
}

/// bubblewrap's options: everything is listed, nothing of the host is there that is not named here.
///
/// What only root may mount, `portcullis-cell launch` has mounted in `stage`: terminals (a devpts), and file systems in memory with a limit on
/// files. Without a stage a box has no terminals, and memory alone limits its files.
///
/// Neither `--dev` (for its devpts) nor `--disable-userns`: both nest a second user namespace in one where the box's uid is 0, and
/// `uid_map` then reads as if a box held a root. The cell's filter refuses new namespaces anyway.
pub fn arguments(
    command: &mut Command,
    spec: &BoxSpec,
    workspace: &Path,
    run_dir: &Path,
    cell: &Path,
    etc: &Path,
    stage: Option<&Path>,
) {
    command.args([
        "--unshare-all",
        "--unshare-user",
        "--as-pid-1",
        "--new-session",
        "--clearenv",
    ]);
    command.args(["--cap-drop", "ALL", "--hostname", HOST_NAME]);
    command.args([
        "--uid",
        &spec.uid.to_string(),
        "--gid",
        &spec.gid.to_string(),
    ]);
    command.args([
        "--info-fd",
        &INFO_FD.to_string(),
        "--block-fd",
        &BLOCK_FD.to_string(),
    ]);
    for (name, value) in BoxSpec::cell_env() {
        command.args(["--setenv", name, value]);
    }
    command.args(["--ro-bind", "/usr", "/usr"]);
    for name in ["bin", "sbin", "lib", "lib32", "lib64", "libx32"] {
        let path = Path::new("/").join(name);
        match fs::read_link(&path) {
            // A merged /usr: the same link inside.
            Ok(target) => command.arg("--symlink").arg(target).arg(&path),
            Err(_) if path.is_dir() => command.arg("--ro-bind").arg(&path).arg(&path),
            Err(_) => continue,
        };
    }
    for name in ETC {
        let path = Path::new("/etc").join(name);
        command.arg("--ro-bind-try").arg(&path).arg(&path);
    }
    let of_box = ETC_OF_BOX.map(|name| (run_dir, name));
    for (folder, name) in ETC_OURS.map(|name| (etc, name)).into_iter().chain(of_box) {
        command
            .arg("--ro-bind")
            .arg(folder.join(name))
            .arg(Path::new("/etc").join(name));
    }
    command.args([
        "--proc", "/proc", "--perms", "755", "--size", "65536", "--tmpfs", "/dev",
    ]);
    for name in DEVICES {
        let path = Path::new("/dev").join(name);
        command.arg("--dev-bind-try").arg(&path).arg(&path);
    }
    for (target, name) in [
        ("/proc/self/fd", "fd"),
        ("fd/0", "stdin"),
        ("fd/1", "stdout"),
        ("fd/2", "stderr"),
    ] {
        command
            .arg("--symlink")
            .arg(target)
            .arg(Path::new("/dev").join(name));
    }
    if let Some(stage) = stage {
        command.arg("--dev-bind").arg(stage.join(TERMINALS));
        command.args(["/dev/pts", "--symlink", "pts/ptmx", "/dev/ptmx"]);
    }
    for memory in in_memory(spec) {
        match stage {
            Some(stage) => command.arg("--bind").arg(stage.join(memory.name)),
            None => command.args([
                "--perms",
                memory.mode,
                "--size",
                &memory.bytes.to_string(),
                "--tmpfs",
            ]),
        }
        .arg(memory.inside);
    }
    command.args(["--remount-ro", "/dev"]);
    command.args(["--dir", "/var", "--symlink", "/tmp", "/var/tmp"]);
    command.arg("--ro-bind").arg(run_dir).arg(RUN_INSIDE);
    command.arg("--ro-bind").arg(cell).arg(CELL_INSIDE);
    match spec.access {
        Access::Rw => command.arg("--bind").arg(workspace).arg(WORKSPACE_INSIDE),
        Access::Ro => command
            .arg("--ro-bind")
            .arg(workspace)
            .arg(WORKSPACE_INSIDE),
        // In memory, above.
        Access::None => command,
    };
    for (number, mount) in spec.mounts.iter().enumerate() {
        let how = match mount.access {
            Access::Rw => "--bind",
            Access::Ro | Access::None => "--ro-bind",
        };
        command.arg(how);
        match stage {
            Some(stage) => command.arg(stage.join(mount.staged(number))),
            None => command.arg(&mount.source),
        };
        command.arg(&mount.inside);
    }
    command.args(["--remount-ro", "/", "--chdir", WORKSPACE_INSIDE, "--"]);
    command.args(spec.cell_argv());
}

/// Reads bubblewrap's report up to the pid it names.
pub async fn init_pid(info: OwnedFd) -> Result<u32, String> {
    #[derive(Deserialize)]
    struct Report {
        #[serde(rename = "child-pid")]
        pid: u32,
    }
    let mut info = pipe::Receiver::from_owned_fd(info).map_err(|error| error.to_string())?;
    let mut text = Vec::new();
    loop {
        if let Ok(report) = serde_json::from_slice::<Report>(&text) {
            return Ok(report.pid);
        }
        let read = info
            .read_buf(&mut text)
            .await
            .map_err(|error| error.to_string())?;
        if read == 0 || text.len() > 4096 {
            return Err("bubblewrap did not start:".to_owned());
        }
    }
}
