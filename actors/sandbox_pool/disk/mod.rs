//! What workspaces may take of the disk: measured before runs write, while they do and after them, for no file system that is to be counted
//! on has quotas. One [`Gauge`] a folder, whichever boxes see it.
//!
//! Over the limit, every run that may write there is ended. Then the folder is counted with nobody in it, and runs may begin again, to delete: no
//! file can be longer than nothing, and the folder may not grow beyond what was counted. One that grows anyway ends with what runs beside it, and
//! nothing is started there any more until a person has made room. So whatever is tried, a folder grows beyond its limit by no more than two
//! runs' work between two counts.

mod gauge;
mod measure;

use std::fmt;

use portcullis_core::sandbox::{Access, Line, Profile, Shown};

use super::actor::SandboxPool;
use super::messages::{PoolError, SandboxPoolMsg, Start};

pub use gauge::{Gauge, Held, Pass, State};
pub use measure::Unmeasured;

/// What a folder holds, or may hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Used {
    /// Of the disk.
    pub bytes: u64,
    /// Names in it.
    pub files: u64,
}

impl Used {
    /// What the workspaces of a profile may.
    pub const fn of(profile: &Profile) -> Self {
        Self {
            bytes: profile.workspace_bytes,
            files: profile.workspace_files,
        }
    }

    const fn is_within(self, most: Self) -> bool {
        self.bytes <= most.bytes && self.files <= most.files
    }

    fn lesser(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.min(other.bytes),
            files: self.files.min(other.files),
        }
    }
}

/// Why no run may write to a workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full {
    /// What it holds, as far as that is known.
    pub used: Used,
    /// What it may.
    pub most: Used,
    /// What is the matter.
    pub why: Why,
}

/// See [`Full::why`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// It holds more than it may.
    Over,
    /// It did already, and a run that was to delete made more of it.
    Grew,
    /// It cannot be told what it holds.
    Unmeasured(Unmeasured),
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { used, most, why } = self;
        match why {
            Why::Over | Why::Grew => write!(
                f,
                "the workspace holds {} in {} files and folders, and may hold {} in {}",
                Size(used.bytes),
                used.files,
                Size(most.bytes),
                most.files
            )?,
            Why::Unmeasured(Unmeasured::Moved) => f.write_str(
                "what the workspace holds cannot be told: folders are moved about under the count",
            )?,
            Why::Unmeasured(Unmeasured::Closed) => f.write_str(
                "what the workspace holds cannot be told: a folder in it is closed to its owner (chmod -R u+rwX opens it)",
            )?,
            Why::Unmeasured(Unmeasured::Slow) => f.write_str(
                "what the workspace holds cannot be told: counting it takes more than 30 s",
            )?,
            Why::Unmeasured(Unmeasured::Failed(error)) => {
                write!(f, "what the workspace holds cannot be told: {error}")?;
            }
        }
        if *why == Why::Grew {
            f.write_str("; a run that was only to delete made it more")?;
        }
        Ok(())
    }
}

/// Bytes as people read them.
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, name) = match self.0 {
            0..0x10_0000 => (1 << 10, "KiB"),
            0x10_0000..0x4000_0000 => (1 << 20, "MiB"),
            _ => (1 << 30, "GiB"),
        };
        let tenths = self.0.saturating_mul(10) / unit;
        write!(f, "{}.{} {name}", tenths / 10, tenths % 10)
    }
}

/// How a run that may write to a workspace is held.
pub enum Admitted {
    /// By the limits of its profile; a box that cannot write to its folder needs no more.
    Free,
    /// It can delete.
    ToDelete(Full),
}

impl SandboxPool {
    /// Whether a run may begin, and how: none where it was refused, or waits for the folder to be counted.
    pub(super) fn admit(
        &mut self,
        start: Box<Start>,
        folder: Option<&str>,
        profile: &Profile,
    ) -> Option<(Box<Start>, Admitted)> {
        let Some(folder) = folder.filter(|_| profile.workspace == Access::Rw) else {
            return Some((start, Admitted::Free));
        };
        let gauge = self.gauge(folder, Used::of(profile));
        let (state, at) = gauge.shown();
        let is_fresh = at.is_some_and(|at| at >= start.asked);
        match state {
            State::Within(_) => Some((start, Admitted::Free)),
            // A person may have made room: it is counted anew for each that asks.
            State::Full(full) if is_fresh => Some((start, Admitted::ToDelete(full))),
            State::Closed(full) if is_fresh => {
                start.reply.refuse(PoolError::WorkspaceFull(full));
                None
            }
            State::Unknown | State::Full(_) | State::Closed(_) => {
                let (counted, ctx) = (gauge.look(), self.ctx.clone());
                let again = async move {
                    if counted.await.is_ok() {
                        ctx.notify(SandboxPoolMsg::Start(start));
                    } else {
                        start.reply.refuse(PoolError::NoBox(
                            "what its workspace holds is not being counted".to_owned(),
                        ));
                    }
                };
                self.ctx.task("counted", 0, again).keep();
                None
            }
        }
    }

    /// What a run in this box carries that may write to its folder.
    pub(super) fn pass(&mut self, key: u64, profile: &Profile, how: &Admitted) -> Option<Pass> {
        let live = self.boxes.get(&key)?;
        let folder = live.holder.folder()?;
        if profile.workspace != Access::Rw {
            return None;
        }
        let standing = live.standing.clone();
        let to_delete = match how {
            Admitted::Free => None,
            Admitted::ToDelete(full) => Some(*full),
        };
        let gauge = self.gauge(&folder, Used::of(profile));
        Some(gauge.enter(to_delete, standing))
    }

    fn gauge(&mut self, folder: &str, most: Used) -> &Gauge {
        let workspaces = &self.context.workspaces;
        let ctx = &self.ctx;
        let gauge = self.gauges.entry(folder.to_owned()).or_insert_with(|| {
            let (gauge, watching) = Gauge::new(workspaces.clone(), folder.to_owned());
            ctx.task("gauge", 0, watching).keep();
            gauge
        });
        gauge.may_hold(most);
        gauge
    }

    /// How a workspace is held, for `explain`; besides why no run would be started.
    pub(super) fn disk_lines(
        &self,
        folder: Option<&str>,
        profile: &Profile,
    ) -> (Vec<Line>, Option<PoolError>) {
        let line = |key, value, from: &str| Line {
            key,
            value,
            from: from.to_owned(),
        };
        if profile.workspace != Access::Rw {
            return (Vec::new(), None);
        }
        let by = "the gateway counts it before, while and after runs write to it";
        let mut lines = vec![line(
            "workspace_held",
            Shown::Word("measured".to_owned()),
            by,
        )];
        let known = folder.and_then(|folder| self.gauges.get(folder));
        let Some((state, Some(at))) = known.map(Gauge::shown) else {
            return (lines, None);
        };
        let from = format!("counted {} s ago", at.elapsed().as_secs());
        let (used, refusal) = match state {
            State::Within(used) => (Some(used), None),
            State::Full(full) => (Some(full.used), None),
            State::Closed(full) => (Some(full.used), Some(PoolError::WorkspaceFull(full))),
            State::Unknown => (None, None),
        };
        // Of one that cannot be counted nothing is known.
        if let Some(used) = used.filter(|used| used.bytes < u64::MAX) {
            for (key, number) in [
                ("workspace_holds_bytes", used.bytes),
                ("workspace_holds_files", used.files),
            ] {
                lines.push(line(key, Shown::Number(number), &from));
            }
        }
        if let State::Full(full) = state {
            let text = "over: runs can only delete".to_owned();
            lines.push(line(
                "workspace_state",
                Shown::Word(text),
                &full.to_string(),
            ));
        }
        (lines, refusal)
    }
}
