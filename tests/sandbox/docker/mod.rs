//! The Docker driver against a private engine.

mod image;
mod inside;
mod life;
mod refusals;

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::fs::chown;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use portcullis_actors::sandbox_pool::docker::Docker;
use portcullis_actors::sandbox_pool::driver::ProbeContext;
use portcullis_actors::sandbox_pool::spec::BoxLimits;
use portcullis_actors::sandbox_pool::spec::BoxSpec;
use portcullis_actors::sandbox_pool::{EngineConfig, Whose};
use portcullis_core::ids::BoxId;
use portcullis_core::sandbox::{Access, SystemCalls};
use tempfile::TempDir;

use crate::support::engine::Engine;

const UID: u32 = 64_123;
const GID: u32 = 64_124;
const LIMITS: BoxLimits = BoxLimits {
    memory_bytes: 256 << 20,
    cpu_millis: 500,
    pids: 40,
    open_files: 1024,
};
/// A cell that only stays: a script is as good an entry point as a program.
const STAYS: &str = "#!/bin/sh\nexec sleep 600\n";

/// Folders of one test's gateway, and an engine.
struct Scene {
    folder: TempDir,
    engine: Arc<Engine>,
    context: ProbeContext,
    boxes: u32,
}

impl Scene {
    fn new(owner: &str, cell: impl AsRef<[u8]>) -> Self {
        Self::with(Engine::shared(), owner, cell)
    }

    fn with(engine: Arc<Engine>, owner: &str, cell: impl AsRef<[u8]>) -> Self {
        let folder = TempDir::with_prefix("pcs").unwrap();
        let root = folder.path().canonicalize().unwrap();
        let path = root.join("cell");
        fs::write(&path, cell).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o555)).unwrap();
        fs::create_dir_all(root.join("run/b")).unwrap();
        fs::create_dir(root.join("workspaces")).unwrap();
        let context = ProbeContext {
            run_root: root.join("run"),
            workspaces: root.join("workspaces"),
            cell: path,
            uid: UID,
            gid: GID,
            owner: owner.to_owned(),
            boot: "boot-1".to_owned(),
            limits: LIMITS,
            require_cgroup: true,
        };
        Self {
            folder,
            engine,
            context,
            boxes: 0,
        }
    }

    fn config(&self) -> EngineConfig {
        EngineConfig {
            engine: Some(self.engine.host()),
            ..EngineConfig::default()
        }
    }

    async fn driver(&self) -> Docker {
        Docker::connect(&self.context, &self.config())
            .await
            .unwrap()
    }

    /// The engine, spoken to without our driver.
    fn raw(&self) -> bollard::Docker {
        bollard::Docker::connect_with_unix(&self.engine.host(), 60, bollard::API_DEFAULT_VERSION)
            .unwrap()
    }

    fn spec(&mut self) -> BoxSpec {
        self.boxes += 1;
        // Unique over all tests that share the engine.
        let id = format!("{:04x}{:08x}", self.boxes, {
            let mut seed = [0; 4];
            getrandom::fill(&mut seed).unwrap();
            u32::from_le_bytes(seed)
        });
        let workspace = self.context.workspaces.join(&id);
        let run_dir = self.context.run_root.join("b").join(&id);
        fs::create_dir(&workspace).unwrap();
        chown(&workspace, Some(UID), Some(GID)).unwrap();
        fs::create_dir(&run_dir).unwrap();
        fs::set_permissions(&run_dir, PermissionsExt::from_mode(0o755)).unwrap();
        BoxSpec {
            id: BoxId::new(&id).unwrap(),
            whose: Whose::Probe,
            workspace,
            access: Access::Rw,
            mounts: Vec::new(),
            runtime: None,
            seccomp: SystemCalls::Strict,
            image: None,
            run_dir,
            cell: self.context.cell.clone(),
            limits: LIMITS,
            uid: UID,
            gid: GID,
            owner: self.context.owner.clone(),
            boot: self.context.boot.clone(),
            profile_hash: "profile-1".to_owned(),
            nonce: "00ff".to_owned(),
            dead_man: Duration::from_mins(1),
            egress: false,
        }
    }
}

/// Waits, at most 20 s, for a file that the box writes whole.
async fn report(path: &Path) -> HashMap<String, String> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Ok(text) = fs::read_to_string(path) {
            return text
                .lines()
                .filter_map(|line| line.split_once('='))
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect();
        }
        assert!(
            Instant::now() < deadline,
            "the box wrote no {}",
            path.display()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
