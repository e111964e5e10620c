//! Which variables a plan may carry.

use std::collections::BTreeSet;

use super::{MAX_NAME, PlanError, Target, field};
use crate::display;

/// What a host command finds as PATH: ours, never the requester's.
pub const HOST_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Set by the gateway in a host plan, never by who asks.
pub(super) const OWN_HOST_ENV: &[&str] = &["HOME", "LOGNAME", "PATH", "SHELL", "USER"];
/// What who asks may set for a host command, beside `LC_*` and the names in the configuration.
const HOST_ENV: &[&str] = &["LANG", "TZ", "TERM", "COLUMNS", "LINES"];

/// Names that steer a loader, an interpreter or a tool's own commands. Not the wall (that is the allow list for the
/// host, the sandbox for the rest): it keeps a plan honest about what runs.
const STEERING: &[&str] = &[
    "BASH_ENV",
    "ENV",
    "IFS",
    "PS4",
    "PROMPT_COMMAND",
    "SHELLOPTS",
    "BASHOPTS",
    "CDPATH",
    "GLOBIGNORE",
    "ZDOTDIR",
    "NODE_OPTIONS",
    "NODE_PATH",
    "NODE_REPL_EXTERNAL_MODULE",
    "PERL5LIB",
    "PERL5OPT",
    "PERL5DB",
    "PERLLIB",
    "RUBYLIB",
    "RUBYOPT",
    "TAR_OPTIONS",
    "RSYNC_RSH",
    "CVS_RSH",
    "SVN_SSH",
    "VIMINIT",
    "EXINIT",
    "AWKPATH",
    "AWKLIBPATH",
    "GCC_EXEC_PREFIX",
    "COMPILER_PATH",
    "GTK_MODULES",
    "OPENSSL_CONF",
    "OPENSSL_MODULES",
    "OPENSSL_ENGINES",
    "INPUTRC",
    "WGETRC",
    "CURL_HOME",
    "LESS",
    "LESSKEY",
    "LESSKEYIN",
    "SYSTEMD_PAGER",
    "MANOPT",
    "MAN_PAGER",
    "RIPGREP_CONFIG_PATH",
    "GOFLAGS",
    "GHCRTS",
    "KRB5_CONFIG",
    "FPATH",
    "MONO_ENV_OPTIONS",
    "LUA_PATH",
    "LUA_CPATH",
    "GCONV_PATH",
    "GLIBC_TUNABLES",
    "LOCPATH",
    "NLSPATH",
    "MALLOC_TRACE",
    "RESOLV_HOST_CONF",
    "HOSTALIASES",
    "RUSTC_WRAPPER",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTC",
    "RUSTFLAGS",
    "RUSTDOC",
    "MAKEFLAGS",
    "MFLAGS",
    "MAKEFILES",
    "JAVA_TOOL_OPTIONS",
    "_JAVA_OPTIONS",
    "JDK_JAVA_OPTIONS",
    "CLASSPATH",
    "MAVEN_OPTS",
    "GRADLE_OPTS",
    "PHPRC",
    "PHP_INI_SCAN_DIR",
    "HGRCPATH",
    "EDITOR",
    "VISUAL",
    "PAGER",
    "MANPAGER",
    "LESSOPEN",
    "LESSCLOSE",
    "BROWSER",
    "TERMINFO",
    "TERMINFO_DIRS",
    "TERMCAP",
    "TMPDIR",
    "AWS_CONFIG_FILE",
    "KUBECONFIG",
    "DOCKER_HOST",
    "SSH_ASKPASS",
    "SUDO_ASKPASS",
    "SSLKEYLOGFILE",
    "PATH",
    "HOME",
    "SHELL",
    "USER",
    "LOGNAME",
    "R_PROFILE",
    "R_ENVIRON",
    "JULIA_LOAD_PATH",
    "DOTNET_STARTUP_HOOKS",
    "COMSPEC",
];
const STEERING_STARTS: &[&str] = &[
    "LD_",
    "DYLD_",
    "PYTHON",
    "GIT_",
    "BASH_",
    "LUA_INIT",
    "ERL_",
    "R_PROFILE",
    "R_ENVIRON",
    "FZF_",
    "YARN_",
    "NPM_CONFIG_",
    "CARGO_",
    "RUSTUP_",
    "PIP_",
    "GEM_",
    "BUNDLE_",
    "TF_VAR_",
    "CORECLR_",
    "COR_",
    "DOTNET_",
    "XDG_",
    "PORTCULLIS_",
    "_RLD",
    "MALLOC_",
    "ASAN_",
    "LSAN_",
    "UBSAN_",
    "TSAN_",
];

/// Which variables may be set for host commands, beside the fixed ones.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EnvPolicy(BTreeSet<String>);

impl EnvPolicy {
    /// From `[exec.host] env`.
    ///
    /// # Errors
    /// A name that is none, or that steers a loader, an interpreter or a tool.
    pub fn new<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> Result<Self, PlanError> {
        let names = names.into_iter().map(|n| n.as_ref().to_owned());
        let set: BTreeSet<String> = names.collect();
        for name in &set {
            check_env_name(name)?;
            if steers(name) {
                return Err(PlanError::Env(name.clone(), "host"));
            }
        }
        Ok(Self(set))
    }

    /// May who asks set this variable for this target?
    ///
    /// # Errors
    /// [`PlanError`] with the name.
    pub fn check(&self, target: &Target, name: &str) -> Result<(), PlanError> {
        check_env_name(name)?;
        let refused = match target {
            Target::Host => {
                !HOST_ENV.contains(&name) && !name.starts_with("LC_") && !self.0.contains(name)
            }
            Target::Sandbox | Target::Node(_) => steers(name),
        };
        if refused {
            return Err(PlanError::Env(
                display::visible(name).into_owned(),
                target.kind(),
            ));
        }
        Ok(())
    }
}

/// Is this a name that a variable of a plan may have?
pub fn is_env_name(name: &str) -> bool {
    let start = name
        .bytes()
        .next()
        .is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    start && name.len() <= MAX_NAME && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

pub(super) fn check_env_name(name: &str) -> Result<(), PlanError> {
    if is_env_name(name) {
        return Ok(());
    }
    Err(field(
        "the name of a variable",
        "[A-Za-z_][A-Za-z0-9_]*, at most 256 characters",
    ))
}

/// Does this name steer a loader, an interpreter or a tool's own commands?
pub fn steers(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    STEERING.contains(&name.as_str()) || STEERING_STARTS.iter().any(|start| name.starts_with(start))
}

/// A variable that changes how output looks, not what runs: an allow-list entry says nothing of others.
pub(crate) fn is_harmless(name: &str) -> bool {
    OWN_HOST_ENV.contains(&name) || HOST_ENV.contains(&name) || name.starts_with("LC_")
}
