//! The real tree in this process, on a temporary state, with its real doors: so that a test can reach its rooms.

use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use portcullis::cli::GatewayArgs;
use portcullis::dashboard::{Page, PageConfig};
use portcullis::edge::{Again, Doors};
use portcullis::methods::{Local, Site};
use portcullis::runner;
use portcullis::tree::{Ground, plant};
use portcullis_actors::audit::verify_dir;
use portcullis_actors::auth::SharedSecret;
use portcullis_actors::connection::Methods;
use portcullis_actors::dashboard::DashboardHandle;
use portcullis_actors::sandbox_pool::{RunnerProgram, cell_file};
use portcullis_actors::store::Store;
use portcullis_actors::supervision::{Flag, OnFatal, RoomView, Tree, TreeWindow};
use portcullis_core::audit::BootId;
use portcullis_core::auth::secret::SharedHash;
use portcullis_core::identity::Identity;
use portcullis_core::seal::Secret;
use portcullis_core::token::TokenHash;
use tokio::time::Instant;

use crate::support::gateway::TOKEN;
use crate::support::ws::{Client, Connect, random};

const CELL: &[u8] = include_bytes!(env!("PORTCULLIS_CELL"));

/// See the module.
pub struct House {
    folder: tempfile::TempDir,
    store: Store,
    tree: Tree,
    address: SocketAddr,
    /// The page's sessions.
    pub page: DashboardHandle,
    /// What every door asks.
    pub methods: Arc<Methods>,
    fatal: Arc<Mutex<Vec<String>>>,
}

impl House {
    /// Stands and serves. `settings`: keys in small letters with dots.
    pub async fn stand(settings: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        for (name, mode) in [
            ("", 0o700),
            ("audit", 0o700),
            ("keys", 0o700),
            ("workspaces", 0o700),
            ("run", 0o750),
        ] {
            let mut folder = std::fs::DirBuilder::new();
            folder.mode(mode).create(state.join(name)).unwrap();
        }
        let variables = settings.iter().map(|(key, value)| {
            let name = format!("PORTCULLIS__{}", key.replace('.', "__").to_uppercase());
            (name, (*value).to_owned())
        });
        let loaded = portcullis::config::merge(None, variables, &[]).unwrap();
        let doors = Doors::open(
            "127.0.0.1:0".parse().unwrap(),
            &state.join("run"),
            "".as_ref(),
        )
        .unwrap();
        let address = doors.address();
        let store = Store::open(&state.join("state.db")).unwrap();
        let (cell_file, _) = cell_file::place(&state.join("run"), CELL).unwrap();
        let fatal = Arc::new(Mutex::new(vec![]));
        let told = fatal.clone();
        let on_fatal: OnFatal =
            Arc::new(move |room, why| told.lock().unwrap().push(format!("{room}: {why}")));
        let config_view = loaded.for_clients();
        let page = PageConfig {
            port: address.port(),
            hosts: vec![],
            dashboard: loaded.config.dashboard.clone(),
        };
        let args = GatewayArgs {
            port: None,
            bind: None,
        };
        let planted = plant(
            Ground {
                around: portcullis_actors::vault::Around::default(),
                config: loaded.config,
                config_view,
                state: state.clone(),
                store: store.clone(),
                identity: Identity::from_random(random()),
                token: SharedSecret::Given(SharedHash::Random(TokenHash::of(TOKEN))),
                pepper: Secret::new(vec![1; 32]),
                boot: BootId(random()),
                owner: crate::support::ws::hex(&random::<8>()),
                runner: RunnerProgram {
                    program: env!("CARGO_BIN_EXE_portcullis").into(),
                    ..runner::program(&state, "boot", &args, None).unwrap()
                },
                doors,
                sub_uids: Arc::default(),
                proxies: Flag::new(Arc::default()).reader(),
                again: Again::never(),
                tls: Flag::new(None).reader(),
                certificate: Flag::new(None).reader(),
                tls_shown: Flag::new(serde_json::Value::Null).reader(),
                cell: CELL,
                cell_file,
                forbidden: vec![],
                began: Instant::now(),
            },
            on_fatal,
        );
        let tree = planted.tree.start().await.unwrap();
        planted.window.set(Some(tree.window()));
        let calls = Local(planted.methods.clone());
        let page = Page::new(calls, planted.dashboard.clone(), tree.window(), page);
        planted.site.set(Some(Site::new(page)));
        Self {
            folder,
            store,
            tree,
            address,
            page: planted.dashboard,
            methods: planted.methods,
            fatal,
        }
    }

    /// STATE.
    pub fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// Of the TCP door.
    pub const fn port(&self) -> u16 {
        self.address.port()
    }

    /// On its rooms.
    pub fn window(&self) -> TreeWindow {
        self.tree.window()
    }

    /// A room as it is now.
    pub fn room(&self, name: &str) -> RoomView {
        let rooms = self.window().look().rooms;
        rooms.into_iter().find(|room| room.name == name).unwrap()
    }

    /// What would have ended the process.
    pub fn fatal(&self) -> Vec<String> {
        self.fatal.lock().unwrap().clone()
    }

    /// An operator with every right. Comes in however busy auth is: a minute.
    pub async fn admin(&self) -> Client {
        let connect =
            Connect::bare().scopes(&["operator.admin", "operator.approvals", "operator.act_as"]);
        let end = Instant::now() + std::time::Duration::from_mins(1);
        while Instant::now() < end {
            if let Ok(mut client) = Client::try_control(&self.state()).await
                && client.try_hello(&connect).await.is_some()
            {
                return client;
            }
        }
        panic!("not let in");
    }

    /// Stops in order: no process of ours is left, and the log is whole and closed.
    pub async fn end(self) {
        self.tree.stop().await;
        self.store.close().await.unwrap();
        // What was killed with the stop (a driver's trial) takes the kernel a moment.
        let until = Instant::now() + std::time::Duration::from_secs(5);
        let mut left = super::load::processes_of(self.folder.path());
        while !left.is_empty() && Instant::now() < until {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            left = super::load::processes_of(self.folder.path());
        }
        assert!(left.is_empty(), "left behind: {left:?}");
        let report = verify_dir(&self.state().join("audit")).unwrap();
        assert!(report.intact, "{report:?}");
    }
}
