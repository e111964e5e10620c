//! What a box is, seen from inside.

use std::collections::HashMap;
use std::fs;
use std::io::Read;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use bollard::query_parameters::ListContainersOptionsBuilder;
use futures_util::StreamExt;
use portcullis_cell::Decoder;
use portcullis_cell::Ended;
use portcullis_cell::Frame;
use portcullis_cell::Spawn;

use super::GID;
use super::LIMITS;
use super::Scene;
use super::UID;
use super::report;

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
    echo "loopback=$(cat /sys/class/net/lo/flags)"
    echo "localhost=$(grep -c localhost /etc/hosts)"
    echo "routes=$(($(wc -l </proc/net/route) - 1))"
    echo "root=$(ls -1 / | tr '\n' ' ')"
    for path in /x /etc/x /bin/x /run/x /run/portcullis/x /sys/x /etc/hosts /proc/sys/kernel/hostname; do
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
    for namespace in ["net", "mnt", "pid", "ipc", "uts", "cgroup"] {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{namespace}")).unwrap();
        assert_ne!(of(&started.init_pid.to_string()), of("self"), "{namespace}");
    }
    let said = report(&spec.workspace.join("report")).await;
    driver.stop(&spec.id).await.unwrap();

    let is = |name: &str, value: &str| {
        assert_eq!(
            said.get(name).map(String::as_str),
            Some(value),
            "{name} in {said:#?}"
        );
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
    is("loopback", "0x9");
    is("localhost", "2");
    for path in [
        "/x",
        "/etc/x",
        "/bin/x",
        "/run/x",
        "/run/portcullis/x",
        "/sys/x",
        "/etc/hosts",
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
            env: vec![("PATH".to_owned(), "/bin".into())],
            cwd: "/workspace".to_owned(),
            timeout_ms: 10_000,
            grace_ms: 100,
            output_cap: 1 << 20,
            open_files: 256,
            file_bytes: 1 << 20,
            stdin: false,
            tty: None,
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
