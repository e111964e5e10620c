//! The Docker driver against a private engine.

use std::collections::HashMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bollard::models::ContainerCreateBody;
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, CreateImageOptionsBuilder, ListContainersOptionsBuilder,
    ListImagesOptionsBuilder, RemoveImageOptionsBuilder,
};
use futures_util::{StreamExt, TryStreamExt};
use portcullis_actors::sandbox_pool::docker::{BoxEnd, Docker, EngineConfig};
use portcullis_actors::sandbox_pool::driver::{DriverError, ProbeContext};
use portcullis_actors::sandbox_pool::image;
use portcullis_actors::sandbox_pool::spec::{BoxLimits, BoxSpec};
use portcullis_cell::{Decoder, Ended, Frame, Spawn};
use portcullis_core::ids::{AgentId, BoxId};
use tempfile::TempDir;

use crate::support::engine::Engine;

const UID: u32 = 64_123;
const GID: u32 = 64_124;
const LIMITS: BoxLimits = BoxLimits {
    memory_bytes: 256 << 20,
    cpu_millis: 500,
    pids: 40,
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
            agent: AgentId::new("demo").unwrap(),
            workspace,
            run_dir,
            cell: self.context.cell.clone(),
            limits: LIMITS,
            uid: UID,
            gid: GID,
            owner: self.context.owner.clone(),
            boot: self.context.boot.clone(),
            profile_hash: "profile-1".to_owned(),
            nonce: "00ff".to_owned(),
            dead_man: Duration::from_secs(60),
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

/// The exit status of each attempt, and what the kernel shows to a process of the box.
const PROBE: &str = r#"#!/bin/sh
{
    for line in CapInh CapPrm CapEff CapBnd CapAmb NoNewPrivs Seccomp; do
        echo "$line=$(sed -n "s/^$line:[[:space:]]*//p" /proc/self/status)"
    done
    echo "uid=$(id -u) $(id -g) $(id -G)"
    echo "host=$(hostname)"
    echo "cwd=$PWD"
    echo "env=$(env | grep -v '^_=\|^PWD=\|^SHLVL=' | sort | tr '\n' ' ')"
    echo "argv=$*"
    echo "pid=$$"
    echo "nets=$(ls /sys/class/net | tr '\n' ' ')"
    echo "routes=$(($(wc -l </proc/net/route) - 1))"
    echo "root=$(ls -1 / | tr '\n' ' ')"
    for path in /x /etc/x /bin/x /run/x /run/portcullis/x /sys/x /proc/sys/kernel/hostname; do
        (: >"$path") 2>/dev/null; echo "write $path=$?"
    done
    for path in /workspace/x /tmp/x /dev/shm/x; do
        (: >"$path") 2>/dev/null; echo "write $path=$?"
    done
    chmod 777 /run/portcullis-cell 2>/dev/null; echo "chmod cell=$?"
    printf '#!/bin/sh\nexit 7\n' >/tmp/run && chmod +x /tmp/run && /tmp/run; echo "run tmp=$?"
    mount -t tmpfs none /tmp 2>/dev/null; echo "mount=$?"
    unshare -U true 2>/dev/null; echo "userns=$?"
    mknod /tmp/dev c 1 3 2>/dev/null; echo "mknod=$?"
    echo "kernel memory=$(cat /proc/kcore 2>/dev/null | head -c 1 | wc -c)"
    echo "open=$(ulimit -n) $(ulimit -Hn) core=$(ulimit -Hc)"
    echo "oom=$(cat /proc/self/oom_score_adj)"
    cg() { cat /sys/fs/cgroup/$1 2>/dev/null || cat /sys/fs/cgroup/$2 2>/dev/null; }
    echo "memory=$(cg memory.max memory/memory.limit_in_bytes)"
    echo "swap=$(cg memory.swap.max memory/memory.memsw.limit_in_bytes)"
    echo "pids=$(cg pids.max pids/pids.max)"
    echo "cpu=$(cat /sys/fs/cgroup/cpu.max 2>/dev/null || echo $(cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us) $(cat /sys/fs/cgroup/cpu/cpu.cfs_period_us))"
    echo "tmp=$(df -k /tmp | awk 'NR==2 {print $2}')"
    echo "v2=$(test -e /sys/fs/cgroup/cgroup.controllers && echo yes || echo no)"
} >/workspace/report.part 2>/workspace/errors
mv /workspace/report.part /workspace/report
exec sleep 600
"#;

#[tokio::test]
async fn a_box_sees_itself_confined() {
    let mut scene = Scene::new("confined", PROBE);
    let driver = scene.driver().await;
    let spec = scene.spec();
    fs::write(spec.run_dir.join("seen"), "").unwrap();
    let started = driver.start(&spec).await.unwrap();
    assert_eq!(
        started.image_digest.as_deref(),
        Some(driver.image().id.as_str())
    );
    let said = report(&spec.workspace.join("report")).await;
    driver.stop(&spec.id).await.unwrap();

    let is = |name: &str, value: &str| {
        assert_eq!(
            said.get(name).map(String::as_str),
            Some(value),
            "{name} in {said:#?}"
        )
    };
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        is(set, "0000000000000000");
    }
    is("NoNewPrivs", "1");
    is("Seccomp", "2");
    is("uid", &format!("{UID} {GID} {GID}"));
    is("host", "box");
    is("cwd", "/workspace");
    is("pid", "1");
    is("argv", &spec.cell_argv()[1..].join(" "));
    is(
        "env",
        "HOME=/workspace HOSTNAME=box LANG=C.UTF-8 PATH=/usr/local/bin:/usr/bin:/bin TMPDIR=/tmp ",
    );
    is("nets", "lo ");
    is("routes", "0");
    for path in [
        "/x",
        "/etc/x",
        "/bin/x",
        "/run/x",
        "/run/portcullis/x",
        "/sys/x",
        "/proc/sys/kernel/hostname",
    ] {
        is(&format!("write {path}"), "1");
    }
    for path in ["/workspace/x", "/tmp/x", "/dev/shm/x"] {
        is(&format!("write {path}"), "0");
    }
    is("run tmp", "7");
    for refused in ["chmod cell", "mount", "userns", "mknod"] {
        assert_ne!(
            said.get(refused).map(String::as_str),
            Some("0"),
            "{refused}"
        );
    }
    is("kernel memory", "0");
    is("open", "1024 1024 core=0");
    is("oom", "500");
    is("memory", "268435456");
    is("pids", "40");
    is("cpu", "50000 100000");
    is("tmp", "65536");
    // v1 counts memory and swap together, v2 swap alone.
    is(
        "swap",
        if said["v2"] == "yes" {
            "0"
        } else {
            "268435456"
        },
    );
}

#[tokio::test]
async fn the_image_is_imported_once_and_boxes_are_made_from_its_id() {
    // Its own engine: others' images would come and go.
    let mut scene = Scene::with(Arc::new(Engine::start()), "image", STAYS);
    let raw = scene.raw();
    let first = scene.driver().await;
    let second = scene.driver().await;
    assert_eq!(first.image(), second.image());
    let all = ListImagesOptionsBuilder::default().all(true).build();
    assert_eq!(raw.list_images(Some(all.clone())).await.unwrap().len(), 1);

    // Somebody puts another image under our tag and our label: content decides, neither of them.
    let rootfs = image::root_fs(Path::new(image::BUSYBOX)).await.unwrap();
    assert_eq!(rootfs.digest(), first.image().rootfs);
    let mut evil = rootfs.tar().to_vec();
    let root_entry = evil
        .windows(10)
        .position(|bytes| bytes == b"/bin/false")
        .unwrap();
    evil[root_entry..root_entry + 10].copy_from_slice(b"/bin/sh   ");
    let options = CreateImageOptionsBuilder::default()
        .from_src("-")
        .repo("portcullis/base")
        .tag(rootfs.digest())
        .changes(vec![format!(
            "LABEL {}={}",
            image::ROOTFS_LABEL,
            rootfs.digest()
        )])
        .build();
    let body = bollard::body_full(evil.into());
    let imported: Vec<_> = raw
        .create_image(Some(options), Some(body), None)
        .try_collect()
        .await
        .unwrap();
    let evil_id = imported.last().unwrap().status.clone().unwrap();
    let third = scene.driver().await;
    assert_eq!(third.image(), first.image());
    assert_ne!(third.image().id, evil_id);

    // An image with our very layer but a config of its own is not ours either.
    let options = CreateImageOptionsBuilder::default()
        .from_src("-")
        .repo("portcullis/base")
        .tag("other")
        .changes(vec![format!(
            "LABEL {}={}\nENV LD_PRELOAD=/workspace/x.so",
            image::ROOTFS_LABEL,
            rootfs.digest()
        )])
        .build();
    let body = bollard::body_full(rootfs.tar().to_vec().into());
    raw.create_image(Some(options), Some(body), None)
        .try_collect::<Vec<_>>()
        .await
        .unwrap();
    assert_eq!(scene.driver().await.image(), first.image());

    // The box is made from the id, and says so.
    let spec = scene.spec();
    let started = first.start(&spec).await.unwrap();
    let name = format!("portcullis-{}", spec.id.as_str());
    let made = raw.inspect_container(&name, None).await.unwrap();
    assert_eq!(made.image.as_deref(), Some(first.image().id.as_str()));
    assert_eq!(
        made.config.unwrap().image.as_deref(),
        Some(first.image().id.as_str())
    );
    assert_eq!(
        started.image_digest.as_deref(),
        Some(first.image().id.as_str())
    );
    first.stop(&spec.id).await.unwrap();

    // Somebody prunes images while the gateway runs: the next box imports it again.
    let force = RemoveImageOptionsBuilder::default().force(true).build();
    for image in raw.list_images(Some(all)).await.unwrap() {
        raw.remove_image(&image.id, Some(force.clone()), None)
            .await
            .unwrap();
    }
    let spec = scene.spec();
    let again = first.start(&spec).await.unwrap();
    assert_ne!(again.image_digest, None);
    first.stop(&spec.id).await.unwrap();
}

#[tokio::test]
async fn boxes_of_another_owner_are_neither_listed_nor_removed() {
    let mut ours = Scene::new("owner-a", STAYS);
    let mut theirs = Scene::new("owner-b", STAYS);
    let (mine, other) = (ours.driver().await, theirs.driver().await);
    let (a, mut b) = (ours.spec(), theirs.spec());
    b.boot = "boot-9".to_owned();
    mine.start(&a).await.unwrap();
    other.start(&b).await.unwrap();

    let found = mine.list("owner-a").await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(
        (found[0].id.clone(), found[0].running),
        (a.id.clone(), true)
    );
    assert_eq!(
        (found[0].boot.as_str(), found[0].profile_hash.as_str()),
        ("boot-1", "profile-1")
    );

    mine.stop(&b.id).await.unwrap();
    let found = other.list("owner-b").await.unwrap();
    assert_eq!(found.len(), 1, "a box of another owner was removed");
    assert_eq!((found[0].boot.as_str(), found[0].running), ("boot-9", true));
    assert_eq!(
        mine.wait(&b.id).await,
        BoxEnd::Gone,
        "another owner's box is not there for us"
    );

    mine.stop(&a.id).await.unwrap();
    other.stop(&b.id).await.unwrap();
    assert_eq!(mine.list("owner-a").await.unwrap(), []);
}

#[tokio::test]
async fn a_container_that_only_has_our_name_is_left_alone() {
    let mut scene = Scene::new("names", STAYS);
    let driver = scene.driver().await;
    let spec = scene.spec();
    let raw = scene.raw();
    let name = format!("portcullis-{}", spec.id.as_str());
    let options = CreateContainerOptionsBuilder::default().name(&name).build();
    let body = ContainerCreateBody {
        image: Some(driver.image().id.clone()),
        entrypoint: Some(vec!["sleep".to_owned(), "600".to_owned()]),
        ..ContainerCreateBody::default()
    };
    raw.create_container(Some(options), body).await.unwrap();
    assert!(driver.start(&spec).await.is_err(), "the name is taken");
    driver.stop(&spec.id).await.unwrap();
    assert!(
        raw.inspect_container(&name, None).await.is_ok(),
        "a foreign container was removed"
    );
    raw.remove_container(&name, None).await.unwrap();
}

#[tokio::test]
async fn stopping_twice_or_what_never_was_is_no_error() {
    let mut scene = Scene::new("twice", STAYS);
    let driver = scene.driver().await;
    let spec = scene.spec();
    driver.stop(&spec.id).await.unwrap();
    let pid = driver.start(&spec).await.unwrap().init_pid;
    let (one, two) = tokio::join!(driver.stop(&spec.id), driver.stop(&spec.id));
    one.unwrap();
    two.unwrap();
    driver.stop(&spec.id).await.unwrap();
    assert!(
        !Path::new(&format!("/proc/{pid}")).exists(),
        "its first process is left"
    );
    assert_eq!(driver.list("twice").await.unwrap(), []);
    assert_eq!(driver.wait(&spec.id).await, BoxEnd::Gone);
}

#[tokio::test]
async fn the_end_of_a_box_is_told_with_its_code() {
    let mut scene = Scene::new(
        "ends",
        "#!/bin/sh\nwhile [ ! -e /workspace/go ]; do sleep 0.05; done\nexit 3\n",
    );
    let driver = scene.driver().await;
    let spec = scene.spec();
    driver.start(&spec).await.unwrap();
    let waiting = driver.clone();
    let id = spec.id.clone();
    let end = tokio::spawn(async move { waiting.wait(&id).await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!end.is_finished());
    fs::write(spec.workspace.join("go"), "").unwrap();
    let end = tokio::time::timeout(Duration::from_secs(10), end)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(end, BoxEnd::Exited { code: 3 });
    // What ended is still listed, as not running, until somebody stops it.
    let found = driver.list("ends").await.unwrap();
    assert_eq!((found.len(), found[0].running), (1, false));
    assert_eq!(
        driver.wait(&spec.id).await,
        BoxEnd::Exited { code: 3 },
        "asking late is the same"
    );
    driver.stop(&spec.id).await.unwrap();
}

#[tokio::test]
async fn a_box_whose_cell_does_not_run_fails_and_leaves_nothing() {
    for cell in [
        "#!/bin/sh\nexit 9\n",
        "#!/no/such/interpreter\n",
        "not a program",
    ] {
        let mut scene = Scene::new("stillborn", cell);
        let driver = scene.driver().await;
        let spec = scene.spec();
        let refused = driver.start(&spec).await.unwrap_err();
        assert_eq!(refused.code(), "BOX_START_FAILED", "{refused}");
        assert!(
            !refused.to_string().contains("not seen on this machine"),
            "{refused}"
        );
        assert_eq!(driver.list("stillborn").await.unwrap(), [], "{cell:?}");
        let probed = Docker::probe(&scene.context, &scene.config())
            .await
            .unwrap_err();
        assert_eq!(probed.code(), "NO_DRIVER", "{probed}");
        assert_eq!(
            fs::read_dir(&scene.context.run_root.join("b"))
                .unwrap()
                .count(),
            1,
            "only the spec's own folder"
        );
    }
}

#[tokio::test]
async fn a_probe_makes_a_box_and_removes_all_of_it() {
    let scene = Scene::new("probe", STAYS);
    let driver = Docker::probe(&scene.context, &scene.config())
        .await
        .unwrap();
    assert!(
        driver.describe().starts_with("Docker "),
        "{}",
        driver.describe()
    );
    assert_eq!(driver.list("probe").await.unwrap(), []);
    assert_eq!(fs::read_dir(&scene.context.workspaces).unwrap().count(), 0);
    assert_eq!(
        fs::read_dir(scene.context.run_root.join("b"))
            .unwrap()
            .count(),
        0
    );
}

#[tokio::test]
async fn what_no_box_may_be_is_refused_before_the_engine_is_asked() {
    let mut scene = Scene::new("refused", STAYS);
    let driver = scene.driver().await;
    let good = scene.spec();
    let link = scene.context.workspaces.join("link");
    symlink(&good.workspace, &link).unwrap();
    let root = scene.folder.path().canonicalize().unwrap();
    let changed = |change: &dyn Fn(&mut BoxSpec)| {
        let mut spec = good.clone();
        change(&mut spec);
        spec
    };
    let cases: Vec<(&str, BoxSpec)> = vec![
        ("root", changed(&|s| s.uid = 0)),
        ("root's group", changed(&|s| s.gid = 0)),
        (
            "another owner",
            changed(&|s| s.owner = "somebody".to_owned()),
        ),
        ("no memory limit", changed(&|s| s.limits.memory_bytes = 0)),
        ("no pids limit", changed(&|s| s.limits.pids = 0)),
        ("no processor limit", changed(&|s| s.limits.cpu_millis = 0)),
        ("a link", changed(&|s| s.workspace = link.clone())),
        (
            "dots",
            changed(&|s| s.workspace = good.workspace.join("../../run")),
        ),
        ("missing", changed(&|s| s.workspace = root.join("no"))),
        (
            "the whole machine",
            changed(&|s| s.workspace = PathBuf::from("/")),
        ),
        (
            "the machine's settings",
            changed(&|s| s.workspace = PathBuf::from("/etc")),
        ),
        ("a file", changed(&|s| s.workspace = s.cell.clone())),
        (
            "the gateway's state",
            changed(&|s| s.workspace = root.clone()),
        ),
        ("no cell", changed(&|s| s.cell = root.join("no"))),
    ];
    for (what, spec) in cases {
        let refused = driver.start(&spec).await.expect_err(what);
        assert_eq!(refused.code(), "BOX_START_FAILED", "{what}: {refused}");
    }
    assert_eq!(driver.list("refused").await.unwrap(), []);
    // The state directory of a gateway that runs as the box's own user is no workspace either.
    chown(&root, Some(UID), Some(GID)).unwrap();
    let refused = driver
        .start(&changed(&|s| s.workspace = root.clone()))
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("own files"), "{refused}");
}

#[tokio::test]
async fn a_killed_engine_is_told_within_two_seconds_and_its_boxes_are_found_again() {
    let engine = Arc::new(Engine::start());
    let mut scene = Scene::with(Arc::clone(&engine), "killed", STAYS);
    let driver = scene.driver().await;
    let spec = scene.spec();
    driver.start(&spec).await.unwrap();
    let waiting = driver.clone();
    let id = spec.id.clone();
    let end = tokio::spawn(async move { waiting.wait(&id).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!end.is_finished());

    let killed = Instant::now();
    engine.signal("KILL");
    let end = tokio::time::timeout(Duration::from_secs(2), end)
        .await
        .unwrap()
        .unwrap();
    assert!(matches!(end, BoxEnd::EngineLost { .. }), "{end:?}");
    assert!(killed.elapsed() < Duration::from_secs(2));

    // Without an engine each call ends with an error, at once.
    let asked = Instant::now();
    let other = scene.spec();
    assert_eq!(
        driver.start(&other).await.unwrap_err().code(),
        "BOX_START_FAILED"
    );
    assert_eq!(
        driver.stop(&spec.id).await.unwrap_err().code(),
        "BOX_STATE_UNKNOWN"
    );
    assert_eq!(
        driver.list("killed").await.unwrap_err().code(),
        "BOX_STATE_UNKNOWN"
    );
    assert!(matches!(
        driver.wait(&spec.id).await,
        BoxEnd::EngineLost { .. }
    ));
    let probed = Docker::probe(&scene.context, &scene.config())
        .await
        .unwrap_err();
    assert!(
        probed.to_string().contains("systemctl start docker"),
        "{probed}"
    );
    assert!(asked.elapsed() < Duration::from_secs(5));

    // The same driver serves again when the engine is back; what is left of the box is found and removed.
    engine.start_again();
    let found = driver.list("killed").await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].id, spec.id);
    driver.stop(&spec.id).await.unwrap();
    driver.start(&other).await.unwrap();
    driver.stop(&other.id).await.unwrap();
    assert_eq!(driver.list("killed").await.unwrap(), []);
}

#[tokio::test]
async fn a_hanging_engine_is_told_within_its_time_out() {
    let engine = Arc::new(Engine::start());
    let mut scene = Scene::with(Arc::clone(&engine), "hangs", STAYS);
    let driver = scene.driver().await;
    let spec = scene.spec();
    driver.start(&spec).await.unwrap();
    let waiting = driver.clone();
    let id = spec.id.clone();
    let end = tokio::spawn(async move { waiting.wait(&id).await });
    engine.signal("STOP");
    let end = tokio::time::timeout(Duration::from_secs(17), end).await;
    engine.signal("CONT");
    assert!(matches!(end.unwrap().unwrap(), BoxEnd::EngineLost { .. }));
    driver.stop(&spec.id).await.unwrap();
}

#[tokio::test]
async fn containers_that_were_made_and_never_started_are_found() {
    let scene = Scene::new("half", STAYS);
    let driver = scene.driver().await;
    let labels = HashMap::from(
        [
            ("portcullis.owner", "half"),
            ("portcullis.box", "0123456789ab"),
            ("portcullis.boot", "old"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned())),
    );
    let body = ContainerCreateBody {
        image: Some(driver.image().id.clone()),
        entrypoint: Some(vec!["sleep".to_owned()]),
        labels: Some(labels),
        ..ContainerCreateBody::default()
    };
    scene.raw().create_container(None, body).await.unwrap();
    let found = driver.list("half").await.unwrap();
    assert_eq!(
        (found.len(), found[0].running, found[0].boot.as_str()),
        (1, false, "old")
    );
    driver.stop(&found[0].id).await.unwrap();
    assert_eq!(driver.list("half").await.unwrap(), []);
}

#[tokio::test]
async fn the_ceilings_hold() {
    // A file past the size of /tmp, then two hundred processes: neither gets through, and the box lives on.
    let cell = "#!/bin/sh\nuntil [ -e /workspace/go ]; do sleep 0.05; done\n\
        dd if=/dev/zero of=/tmp/big bs=1M count=100 2>/dev/null; echo \"dd=$?\" >/workspace/part\nrm /tmp/big\n\
        (i=0; while [ $i -lt 200 ]; do sleep 30 & i=$((i+1)); done) 2>/workspace/bomb\n\
        set -- /proc/[0-9]*; echo \"processes=$#\" >>/workspace/part\n\
        read -r refused </workspace/bomb; echo \"refused=$refused\" >>/workspace/part\n\
        kill -9 -1; wait; mv /workspace/part /workspace/report\nexec sleep 600\n";
    let mut scene = Scene::new("ceilings", cell);
    let driver = scene.driver().await;
    let spec = scene.spec();
    driver.start(&spec).await.unwrap();
    fs::write(spec.workspace.join("go"), "").unwrap();
    let said = report(&spec.workspace.join("report")).await;
    assert_ne!(said["dd"], "0", "{said:?}");
    assert!(said["refused"].contains("can't fork"), "{said:?}");
    let processes: u32 = said["processes"].parse().unwrap();
    assert!((30..=LIMITS.pids).contains(&processes), "{said:?}");
    assert!(driver.list("ceilings").await.unwrap()[0].running);
    driver.stop(&spec.id).await.unwrap();
}

#[tokio::test]
async fn an_engine_that_cannot_be_used_is_refused_with_what_to_do() {
    let scene = Scene::new("unusable", STAYS);
    let folder = scene.folder.path().display().to_string();
    let dynamic = scene.folder.path().join("dynamic");
    fs::copy("/bin/ls", &dynamic).unwrap();
    let file = scene.folder.path().join("file");
    fs::write(&file, "").unwrap();
    let engine = |engine: &str| EngineConfig {
        engine: Some(engine.to_owned()),
        ..EngineConfig::default()
    };
    let env = |host: &str| EngineConfig {
        docker_host: Some(host.to_owned()),
        ..EngineConfig::default()
    };
    let busybox = |path: PathBuf| EngineConfig {
        busybox: path,
        ..scene.config()
    };
    for (config, says) in [
        (
            engine(&format!("unix://{folder}/none")),
            "apt-get install docker.io",
        ),
        (
            engine(&format!("unix://{}", file.display())),
            "systemctl start docker",
        ),
        (
            engine("tcp://127.0.0.1:2375"),
            "only an engine on this machine",
        ),
        (env("ssh://root@host"), "unset DOCKER_HOST"),
        (env("http://h"), "only an engine on this machine"),
        (
            engine("npipe:////./pipe/docker_engine"),
            "only an engine on this machine",
        ),
        (
            busybox(scene.folder.path().join("none")),
            "apt-get install busybox-static",
        ),
        (busybox(dynamic), "apt-get install busybox-static"),
    ] {
        let refused: DriverError = Docker::connect(&scene.context, &config).await.unwrap_err();
        assert_eq!(refused.code(), "NO_DRIVER");
        assert!(refused.to_string().contains(says), "{refused}");
    }
    // The config was written for this program: it wins over the environment.
    let both = EngineConfig {
        docker_host: Some("tcp://10.0.0.1:2375".to_owned()),
        ..scene.config()
    };
    Docker::connect(&scene.context, &both).await.unwrap();
}

#[tokio::test]
async fn nothing_of_these_tests_publishes_or_logs() {
    let mut scene = Scene::new("quiet", "#!/bin/sh\necho loud\nexec sleep 600\n");
    let driver = scene.driver().await;
    let spec = scene.spec();
    driver.start(&spec).await.unwrap();
    let raw = scene.raw();
    let options = ListContainersOptionsBuilder::default()
        .filters(&HashMap::from([("label", vec!["portcullis.owner=quiet"])]))
        .build();
    let all = raw.list_containers(Some(options)).await.unwrap();
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].ports.as_deref().unwrap_or_default(), []);
    let logs = bollard::query_parameters::LogsOptionsBuilder::default()
        .stdout(true)
        .build();
    let logged: Vec<_> = raw
        .logs(all[0].id.as_deref().unwrap(), Some(logs))
        .collect()
        .await;
    assert!(logged.iter().all(Result::is_err), "{logged:?}");
    driver.stop(&spec.id).await.unwrap();
}

/// The cell that the daemon embeds.
const CELL: &[u8] = include_bytes!(env!("PORTCULLIS_CELL"));

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_cell_dials_as_the_first_process_of_its_box_and_runs_a_command() {
    let mut scene = Scene::new("cell", CELL);
    let driver = scene.driver().await;
    let spec = scene.spec();
    let socket = spec.run_dir.join("s");
    let listener = UnixListener::bind(&socket).unwrap();
    fs::set_permissions(&socket, PermissionsExt::from_mode(0o666)).unwrap();
    let started = driver.start(&spec).await.unwrap();
    let nonce = spec.nonce.clone();
    let talk = tokio::task::spawn_blocking(move || {
        let (mut link, _) = listener.accept().unwrap();
        link.set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let peer = rustix::net::sockopt::socket_peercred(&link).unwrap();
        let mut decoder = Decoder::default();
        let mut next = |link: &mut UnixStream| loop {
            if let Some(frame) = decoder.next_frame().unwrap() {
                return frame;
            }
            let mut bytes = [0; 4096];
            let read = link.read(&mut bytes).unwrap();
            assert_ne!(read, 0, "the cell hung up");
            decoder.push(&bytes[..read]);
        };
        assert_eq!(
            next(&mut link),
            Frame::Hello {
                proto: portcullis_cell::PROTO,
                nonce: nonce.clone()
            }
        );
        let spawn = Spawn {
            argv: [
                "sh",
                "-c",
                "id -u; touch made; grep -c ^Seccomp_filters /proc/self/status; exit 5",
            ]
            .map(str::to_owned)
            .to_vec(),
            env: vec![("PATH".to_owned(), "/bin".to_owned())],
            cwd: "/workspace".to_owned(),
            timeout_ms: 10_000,
            grace_ms: 100,
            output_cap: 1 << 20,
            open_files: 256,
            file_bytes: 1 << 20,
        };
        let mut bytes = Vec::new();
        Frame::Hello {
            proto: portcullis_cell::PROTO,
            nonce,
        }
        .encode(&mut bytes)
        .unwrap();
        Frame::Spawn {
            run: 1,
            spawn: Box::new(spawn),
        }
        .encode(&mut bytes)
        .unwrap();
        link.write_all(&bytes).unwrap();
        let mut output = Vec::new();
        loop {
            match next(&mut link) {
                Frame::Output { data, .. } => output.extend(data),
                Frame::Exit { exit, .. } => {
                    return (peer, String::from_utf8(output).unwrap(), exit);
                }
                other => panic!("{other:?}"),
            }
        }
    });
    let (peer, output, exit) = talk.await.unwrap();
    assert_eq!(
        peer.pid.as_raw_nonzero().get().cast_unsigned(),
        started.init_pid
    );
    assert_eq!((peer.uid.as_raw(), peer.gid.as_raw()), (UID, GID));
    assert_eq!(exit.ended, Ended::Code(5), "{output}");
    assert!(output.starts_with(&UID.to_string()), "{output}");
    let made = fs::metadata(spec.workspace.join("made")).unwrap();
    assert_eq!((made.uid(), made.gid()), (UID, GID));
    driver.stop(&spec.id).await.unwrap();
}
