//! What a box is asked to be, and what a driver says about one.

use std::path::PathBuf;
use std::time::Duration;

use portcullis_cell::RELAY_PORT;
use portcullis_core::ids::BoxId;
use portcullis_core::sandbox::{Access, Profile, RuntimeName, SystemCalls};
use serde::{Deserialize, Serialize};

use super::driver::ProbeContext;
use super::holder::Whose;
use super::mounts::BoxMount;
use super::users::User;

pub use portcullis_cell::CELL_INSIDE;
/// Where the box's control folder (read-only) is seen from inside.
pub const RUN_INSIDE: &str = "/run/portcullis";
/// The control socket as the cell dials it.
pub const SOCKET_INSIDE: &str = "/run/portcullis/s";
/// The socket of the box's way out, where it has one, as the cell dials it.
pub const EGRESS_INSIDE: &str = "/run/portcullis/e";
/// The authorities that a box trusts where TLS of hosts is opened for it: in its control folder, so it is no mount of its own.
pub const AUTHORITIES_INSIDE: &str = "/run/portcullis/ca.pem";
/// The folder of its agent, or of all that share it, as seen from inside; also HOME and the default working folder.
pub const WORKSPACE_INSIDE: &str = "/workspace";
/// Host name inside every box.
pub const HOST_NAME: &str = "box";
/// Command search path inside every box.
pub const PATH_INSIDE: &str = "/usr/local/bin:/usr/bin:/bin";

/// Ceilings of a whole box (all of its runs together).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BoxLimits {
    /// Memory and swap together, in bytes.
    pub memory_bytes: u64,
    /// Processor share in thousandths of one core: 1000 is one core.
    pub cpu_millis: u32,
    /// Most processes and threads alive at once, the cell included.
    pub pids: u32,
    /// Most open files of each process: what a run is given can be no more.
    pub open_files: u32,
}

impl BoxLimits {
    /// Of a profile.
    pub const fn of(profile: &Profile) -> Self {
        Self {
            memory_bytes: profile.memory_bytes,
            cpu_millis: profile.cpu_millis,
            pids: profile.pids,
            open_files: profile.open_files,
        }
    }

    /// Bytes of `/tmp`, and of the workspace where a box has no folder, each: a quarter of its memory.
    pub fn scratch(&self) -> u64 {
        (self.memory_bytes / 4).max(1 << 20)
    }

    /// Bytes of `/dev/shm`.
    pub fn shared(&self) -> u64 {
        self.scratch().min(64 << 20)
    }

    /// Files in each of these: a file of no length takes about a kilobyte of the box's memory. All of them filled in every way leave room for
    /// the next run.
    pub fn inodes(&self) -> u64 {
        (self.memory_bytes >> 14).max(1024)
    }
}

/// How long a cell outlives a daemon that is gone.
pub const DEAD_MAN: Duration = Duration::from_mins(1);

/// What of a box is its own: the rest follows from whose it is, and from the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Own {
    /// Its name.
    pub id: BoxId,
    /// Who has it.
    pub whose: Whose,
    /// The folder below `workspaces/`; empty where it sees none.
    pub folder: String,
    /// What of the host its profile names, as it was looked at.
    pub mounts: Vec<BoxMount>,
    /// See [`BoxSpec::uid`].
    pub user: User,
    /// See [`BoxSpec::image`].
    pub image: Option<String>,
    /// See [`BoxSpec::profile_hash`].
    pub profile_hash: String,
    /// See [`BoxSpec::nonce`].
    pub nonce: String,
}

/// One box, completely described before anything is started.
#[derive(Debug, Clone)]
pub struct BoxSpec {
    /// The box's name: 12 hex digits.
    pub id: BoxId,
    /// Who had it when it was made.
    pub whose: Whose,
    /// Host folder, exists, owned by `uid:gid`; seen inside as [`WORKSPACE_INSIDE`].
    pub workspace: PathBuf,
    /// How it is seen there. With none it need not exist: in its place is an empty one in memory.
    pub access: Access,
    /// What else of the host is seen in it, as it was checked.
    pub mounts: Vec<BoxMount>,
    /// The engine's runtime; none is its default one.
    pub runtime: Option<RuntimeName>,
    /// Which system calls its runs may make.
    pub seccomp: SystemCalls,
    /// The engine's id of the image it is made from; none is the driver's own.
    pub image: Option<String>,
    /// `STATE/run/b/<id>`: the host listens on `run_dir/s`; seen inside as [`RUN_INSIDE`], read-only.
    pub run_dir: PathBuf,
    /// The static cell binary on the host; seen inside as [`CELL_INSIDE`], read-only.
    pub cell: PathBuf,
    /// Ceilings of the whole box.
    pub limits: BoxLimits,
    /// Host uid of everything in the box; never 0.
    pub uid: u32,
    /// Host gid of everything in the box; never 0.
    pub gid: u32,
    /// Label: the gateway that owns the box.
    pub owner: String,
    /// Label: the start of that gateway which made the box.
    pub boot: String,
    /// Label: digest of the profile the box was made with.
    pub profile_hash: String,
    /// What the cell must say in its HELLO: lower-case hex, fresh per box.
    pub nonce: String,
    /// How long the cell outlives a host that does not answer.
    pub dead_man: Duration,
    /// It may reach hosts: the cell passes 127.0.0.1 on to [`EGRESS_INSIDE`]. The box has no network in either case.
    pub egress: bool,
}

impl BoxSpec {
    /// The box of this profile. The gateway describes what it asks for by this, and the runner what it makes.
    pub fn of(context: &ProbeContext, profile: &Profile, own: Own) -> Self {
        Self {
            run_dir: context.run_root.join("b").join(own.id.as_str()),
            workspace: context.workspaces.join(&own.folder),
            id: own.id,
            whose: own.whose,
            access: profile.workspace,
            mounts: own.mounts,
            runtime: profile.runtime.clone(),
            seccomp: profile.seccomp,
            image: own.image,
            cell: context.cell.clone(),
            limits: BoxLimits::of(profile),
            uid: own.user.uid,
            gid: own.user.gid,
            owner: context.owner.clone(),
            boot: context.boot.clone(),
            profile_hash: own.profile_hash,
            nonce: own.nonce,
            dead_man: DEAD_MAN,
            egress: profile.may_leave(),
        }
    }

    /// Command line of the box's pid 1, the same in every driver.
    pub fn cell_argv(&self) -> Vec<String> {
        let mut argv = vec![
            CELL_INSIDE.to_owned(),
            "box".to_owned(),
            "--socket".to_owned(),
            SOCKET_INSIDE.to_owned(),
            "--nonce".to_owned(),
            self.nonce.clone(),
            "--dead-man".to_owned(),
            self.dead_man.as_secs().max(1).to_string(),
        ];
        if self.seccomp != SystemCalls::Strict {
            argv.extend(["--calls".to_owned(), self.seccomp.as_str().to_owned()]);
        }
        if self.egress {
            argv.extend(["--egress".to_owned(), EGRESS_INSIDE.to_owned()]);
        }
        argv
    }

    /// The whole environment of the box's pid 1, the same in every driver. A run's own variables travel in its SPAWN.
    pub fn cell_env() -> Vec<(&'static str, &'static str)> {
        vec![
            ("PATH", PATH_INSIDE),
            ("HOME", WORKSPACE_INSIDE),
            ("LANG", "C.UTF-8"),
            ("TMPDIR", "/tmp"),
        ]
    }

    /// What the runs of a box with a way out have besides: where the proxy is, in the spellings that programs look for. Node looks at them
    /// from version 22 on, and only if it is told to.
    pub fn egress_env() -> Vec<(&'static str, String)> {
        let proxy = format!("http://127.0.0.1:{RELAY_PORT}");
        let all = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"];
        let none = "localhost,127.0.0.1,::1".to_owned();
        let mut env: Vec<_> = all.iter().map(|name| (*name, proxy.clone())).collect();
        env.extend(["http_proxy", "https_proxy", "all_proxy"].map(|name| (name, proxy.clone())));
        env.extend(["NO_PROXY", "no_proxy"].map(|name| (name, none.clone())));
        env.push(("NODE_USE_ENV_PROXY", "1".to_owned()));
        env
    }

    /// What the runs of a box have where TLS of hosts is opened for it: whom to trust, in the names that programs look for.
    pub fn authorities_env() -> [(&'static str, &'static str); 7] {
        [
            "SSL_CERT_FILE",
            "CURL_CA_BUNDLE",
            "REQUESTS_CA_BUNDLE",
            "NODE_EXTRA_CA_CERTS",
            "GIT_SSL_CAINFO",
            "CARGO_HTTP_CAINFO",
            "AWS_CA_BUNDLE",
        ]
        .map(|name| (name, AUTHORITIES_INSIDE))
    }
}

/// A box that has been started. It serves once its cell has said HELLO on the link.
#[derive(Debug)]
pub struct StartedBox {
    /// The cell, as the host sees it: the only peer whom the link accepts.
    pub init_pid: u32,
    /// Digest of the image it was made from; none for the native driver, whose root is the host's `/usr`.
    pub image_digest: Option<String>,
    /// A driver's own child process (bubblewrap's monitor); kept so that it is reaped. None for an engine.
    pub child: Option<tokio::process::Child>,
}

/// A box of ours that a driver found, whether or not this daemon started it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FoundBox {
    /// Its name.
    pub id: BoxId,
    /// The start of the gateway which made it.
    pub boot: String,
    /// Digest of the profile it was made with.
    pub profile_hash: String,
    /// False when only its remains (a stopped container, a state file) are left.
    pub running: bool,
}
