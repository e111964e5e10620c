//! The canonical bytes of a plan: what is hashed, approved and compared.

use super::{Egress, EnvValue, ExecPlan, Executable, Form, HostFile, Limits, Stdin, TtySize};
use crate::ids::Hash32;

impl ExecPlan {
    /// The bytes that are approved: each field as u32 big-endian length and bytes, in the order of the contract; a
    /// list or map is such a sequence inside its field, maps sorted by key, so different plans have different bytes.
    pub fn canonical(&self) -> Vec<u8> {
        let prefix = match self.v {
            Form::V1 => "portcullis-plan-v1\0",
            Form::V2 => "portcullis-plan-v2\0",
        };
        self.encode(prefix, true)
    }

    /// SHA-256 of [`Self::canonical`]: what is approved, recorded and used once.
    pub fn plan_hash(&self) -> Hash32 {
        Hash32::of(&self.canonical())
    }

    /// The same without session and nonce, under its own prefix: for grants and for cards that stand for many.
    pub fn subject_hash(&self) -> Hash32 {
        let prefix = match self.v {
            Form::V1 => "portcullis-subject-v1\0",
            Form::V2 => "portcullis-subject-v2\0",
        };
        Hash32::of(&self.encode(prefix, false))
    }

    fn encode(&self, prefix: &str, whole: bool) -> Vec<u8> {
        let mut out = Writer(prefix.as_bytes().to_vec());
        out.bytes(&[u8::from(self.v)]);
        out.text(&self.target.word());
        out.text(self.agent.as_str());
        if whole {
            out.text(&self.session);
        }
        out.text(&self.principal);
        out.nested(|w| self.argv.iter().for_each(|a| w.text(a)));
        out.nested(|w| encode_executable(&self.executable, w));
        if self.v == Form::V2 {
            out.nested(|w| {
                for operand in &self.operands {
                    w.nested(|w| operand.encode(w));
                }
            });
        }
        out.text(&self.cwd);
        out.nested(|w| {
            w.bytes(&self.uid.to_be_bytes());
            w.bytes(&self.gid.to_be_bytes());
            w.nested(|w| self.groups.iter().for_each(|g| w.bytes(&g.to_be_bytes())));
        });
        out.nested(|w| {
            for (name, value) in &self.env {
                w.text(name);
                match value {
                    EnvValue::Plain(text) => {
                        w.text("plain");
                        w.text(text);
                    }
                    EnvValue::Secret { name, version } => {
                        w.text("secret");
                        w.nested(|w| {
                            w.text(name);
                            w.bytes(&version.to_be_bytes());
                        });
                    }
                }
            }
        });
        out.nested(|w| match &self.stdin {
            Stdin::None => w.text("none"),
            Stdin::Open => w.text("open"),
            Stdin::Sha256(hash) => {
                w.text("sha256");
                w.bytes(&hash.0);
            }
        });
        // Without one as it was before there were any.
        out.bytes(&self.tty.map_or(vec![0], |TtySize { rows, cols }| {
            let [size, line] = [rows, cols].map(u16::to_be_bytes);
            [&[1], &size[..], &line[..]].concat()
        }));
        out.nested(|w| {
            let Limits {
                timeout_ms,
                output_bytes,
                memory_bytes,
                cpu_millis,
                pids,
            } = self.limits;
            w.bytes(&timeout_ms.to_be_bytes());
            w.bytes(&output_bytes.to_be_bytes());
            w.bytes(&memory_bytes.map_or(Vec::new(), |n| n.to_be_bytes().to_vec()));
            w.bytes(&cpu_millis.map_or(Vec::new(), |n| n.to_be_bytes().to_vec()));
            w.bytes(&pids.map_or(Vec::new(), |n| n.to_be_bytes().to_vec()));
        });
        match &self.egress {
            Egress::None => out.text("none"),
            Egress::Host => out.text("host"),
            // Longer than either word, whatever is in it.
            Egress::Hosts(hosts) => out.nested(|w| {
                w.text("hosts");
                for host in hosts {
                    w.text(host);
                }
            }),
        }
        out.bytes(&self.profile_digest.0);
        if whole {
            out.bytes(&self.nonce.0);
        }
        out.0
    }
}

fn encode_executable(executable: &Executable, w: &mut Writer) {
    match executable {
        Executable::Host(program) => {
            w.text("host");
            w.file(program);
        }
        Executable::HostScript {
            script,
            interpreter,
            argument,
        } => {
            w.text("host-script");
            w.file(script);
            w.file(interpreter);
            w.nested(|w| argument.iter().for_each(|a| w.text(a)));
        }
        Executable::Image { digest, path } => {
            w.text("image");
            w.text(digest);
            w.text(path);
        }
        Executable::Workspace { path } => {
            w.text("workspace");
            w.text(path);
        }
        Executable::Node { claimed_sha256 } => {
            w.text("node");
            w.bytes(claimed_sha256.as_ref().map_or(&[][..], |h| &h.0));
        }
    }
}

pub(super) struct Writer(Vec<u8>);

impl Writer {
    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        // Texts are below 128 KiB (validate_shape); a longer one still cannot collide, as its length saturates alone.
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.0.extend_from_slice(&len.to_be_bytes());
        self.0.extend_from_slice(bytes);
    }

    pub(super) fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    pub(super) fn file(&mut self, file: &HostFile) {
        self.text(&file.path);
        self.bytes(&file.dev.to_be_bytes());
        self.bytes(&file.ino.to_be_bytes());
        self.bytes(&file.sha256.0);
    }

    pub(super) fn nested(&mut self, fill: impl FnOnce(&mut Self)) {
        let mut inner = Self(Vec::new());
        fill(&mut inner);
        self.bytes(&inner.0);
    }
}
