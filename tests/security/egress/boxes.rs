//! The same from inside of real boxes, by what a box has: a shell, wget, netcat. On both drivers.

use std::sync::Arc;
use std::time::Duration;

use portcullis_actors::audit::AuditHandle;
use portcullis_actors::sandbox_pool::egress::{EgressLimits, Ways};
use portcullis_actors::sandbox_pool::{
    Record, RunEvent, RunSpec, SandboxPool, SandboxPoolConfig, SandboxPoolHandle,
    SandboxPoolWiring, SessionKey, Stream, UserBook,
};
use portcullis_actors::store::Store;
use portcullis_actors::supervision::{Policy, Tree};
use portcullis_actors::vault::VaultHandle;
use portcullis_core::egress::{Addresses, Rules};
use portcullis_core::ids::{AgentId, RunId};
use portcullis_core::sandbox::{DriverChoice, Layer, Overrides, Profiles, Scope};
use tokio::sync::mpsc;

use super::terminated::{SECRET, filled, github};
use super::upstream::{Authority, Upstream};
use super::{BREAKS, Names, Opening, add_vault, builder, log, records};
use crate::support::engine::Engine;

/// A pool, its log, and what its boxes say.
struct House {
    state: tempfile::TempDir,
    tree: Tree,
    audit: AuditHandle,
    pool: SandboxPoolHandle,
    names: Names,
    vault: Option<VaultHandle>,
    runs: u32,
    // Last: its boxes go before it.
    _engine: Option<Arc<Engine>>,
}

struct Said {
    out: String,
    err: String,
    code: Option<u8>,
}

impl House {
    async fn stand(docker: bool, rules: &[String]) -> Self {
        Self::stand_with(docker, rules, &[]).await
    }

    /// Some agents have more to say.
    async fn stand_with(docker: bool, rules: &[String], agents: &[(&str, Overrides)]) -> Self {
        Self::stand_opening(docker, rules, agents, None).await
    }

    async fn stand_opening(
        docker: bool,
        rules: &[String],
        agents: &[(&str, Overrides)],
        opening: Option<&Opening>,
    ) -> Self {
        let state = tempfile::TempDir::with_prefix("pcb").unwrap();
        let engine = docker.then(Engine::shared);
        let mut tree = builder();
        let audit = log(state.path(), &mut tree);
        let names = Names::default();
        let networks = Addresses::try_from(vec!["127.0.0.0/8".to_owned()]).unwrap();
        let config = SandboxPoolConfig {
            engine: engine.as_ref().map(|engine| engine.host()),
            says: Overrides {
                driver: Some(if docker {
                    DriverChoice::Docker
                } else {
                    DriverChoice::Native
                }),
                egress: Some(Rules::new(rules).unwrap()),
                terminate: opening.map(|opening| opening.terminate.clone()),
                ..Overrides::default()
            },
            egress_to_networks: networks,
            ..SandboxPoolConfig::default()
        };
        let path = state.path().canonicalize().unwrap();
        let mut ways = Ways::with(audit.clone(), names.resolver(), EgressLimits::default());
        let mut vault = None;
        if let Some(opening) = opening {
            let handle = add_vault(state.path(), &mut tree, &audit);
            ways = ways.opening(opening.opener(handle.clone()));
            vault = Some(handle);
        }
        let pool = SandboxPoolHandle::new(
            tree.room::<SandboxPool>(
                Policy::new(256),
                SandboxPoolWiring {
                    profiles: Profiles {
                        every: vec![config.layer()],
                        agents: agents
                            .iter()
                            .map(|(name, says)| {
                                let layer = Layer {
                                    name: format!("[agents.{name}.sandbox]"),
                                    says: says.clone(),
                                };
                                (AgentId::new(name).unwrap(), vec![layer])
                            })
                            .collect(),
                    },
                    config,
                    state: path.clone(),
                    private: Vec::new(),
                    cell: include_bytes!(env!("PORTCULLIS_CELL")),
                    owner: format!("test-{}", path.file_name().unwrap().to_string_lossy()),
                    boot: "boot-1".to_owned(),
                    users: UserBook {
                        store: Store::in_memory().unwrap(),
                        record: Record::Log(audit.clone()),
                    },
                    ways: Some(ways),
                    runner: None,
                },
            ),
        );
        let tree = tree.start().await.unwrap();
        Self {
            state,
            tree,
            audit,
            pool,
            names,
            vault,
            runs: 0,
            _engine: engine,
        }
    }

    async fn run(&mut self, script: &str) -> Said {
        self.run_as("demo", script).await
    }

    async fn run_as(&mut self, agent: &str, script: &str) -> Said {
        self.runs += 1;
        let (events, mut seen) = mpsc::channel(64);
        let spec = RunSpec {
            session: SessionKey {
                by: "test".to_owned(),
                name: "one".to_owned(),
            },
            session_over: None,
            run: RunId::new(&format!("run-{}", self.runs)).unwrap(),
            argv: ["sh", "-c", script].map(str::to_owned).to_vec(),
            cwd: None,
            env: vec![],
            timeout: Some(Duration::from_mins(1)),
            stdin: false,
            tty: None,
        };
        let agent = AgentId::new(agent).unwrap();
        self.pool.start_run(agent, spec, events).await.unwrap();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let code = loop {
            match seen.recv().await {
                Some(RunEvent::Output { stream, data, .. }) => match stream {
                    Stream::Out => out.extend(data),
                    Stream::Err => err.extend(data),
                },
                Some(RunEvent::Exited(exited)) => break exited.code,
                other => panic!("{other:?} of {script:?}"),
            }
        };
        Said {
            out: String::from_utf8_lossy(&out).into_owned(),
            err: String::from_utf8_lossy(&err).into_owned(),
            code,
        }
    }

    /// A file in the agent's folder, which is there after its first run.
    fn put(&self, name: &str, bytes: &[u8]) {
        let path = self.state.path().join("workspaces/demo").join(name);
        std::fs::write(path, bytes).unwrap();
    }
}

async fn what_a_box_reaches_is_what_its_list_names(docker: bool) {
    let authority = Authority::of(&["allowed.test"], false);
    let (plain, tls) = (Upstream::plain().await, Upstream::tls(&authority).await);
    let (at, secure) = (
        format!("allowed.test:{}", plain.port),
        format!("allowed.test:{}", tls.port),
    );
    let mut house = House::stand(
        docker,
        &[at.clone(), secure.clone(), format!("{BREAKS}:80")],
    )
    .await;
    house.names.set("allowed.test", &[&["127.0.0.1"]]);
    house.names.set("denied.test", &[&["127.0.0.1"]]);

    let said = house.run("env | grep -i proxy | sort").await;
    let expected = "ALL_PROXY=http://127.0.0.1:3128\nHTTPS_PROXY=http://127.0.0.1:3128\nHTTP_PROXY=http://127.0.0.1:3128\n\
        NODE_USE_ENV_PROXY=1\nNO_PROXY=localhost,127.0.0.1,::1\nall_proxy=http://127.0.0.1:3128\nhttp_proxy=http://127.0.0.1:3128\n\
        https_proxy=http://127.0.0.1:3128\nno_proxy=localhost,127.0.0.1,::1\n";
    assert_eq!(said.out, expected, "{}", said.err);

    let profile = house
        .pool
        .profile(AgentId::new("demo").unwrap(), None)
        .await
        .unwrap();
    let mut listed = [at.clone(), secure.clone(), format!("{BREAKS}:80")];
    listed.sort();
    assert_eq!(profile.egress, listed);

    // Allowed, by a program that knows of proxies; again after the box's own has tried everything against pid 1.
    let get = format!("busybox wget -q -O - http://{at}/");
    for script in [
        get.clone(),
        format!("kill -9 1; kill -TERM 1; kill -STOP 1; {get}"),
        format!(
            "(busybox nc -l -s 127.0.0.1 -p 3128 || echo taken >&2) & sleep 0.3; {get}; kill $! 2>/dev/null; true"
        ),
    ] {
        let said = house.run(&script).await;
        assert_eq!(
            (said.out.as_str(), said.code),
            ("hello", Some(0)),
            "{script}: {}",
            said.err
        );
    }
    assert_eq!(plain.seen.connections(), 3);
    let allowed = records(&house.audit, "egress.allow", 3).await;
    assert_eq!(allowed[0]["object"], at);
    assert_eq!(allowed[0]["detail"]["runs"], "[\"run-2\"]");

    // Everything that goes around the proxy.
    for (script, what) in [
        (
            format!("unset http_proxy; timeout 8 busybox wget -q -O - http://{at}/"),
            "a name, without the proxy",
        ),
        ("busybox nslookup allowed.test".to_owned(), "DNS"),
        (
            "busybox nslookup allowed.test 127.0.0.1".to_owned(),
            "DNS at the relay's address",
        ),
        (
            "busybox nslookup allowed.test 8.8.8.8".to_owned(),
            "DNS far away",
        ),
        (
            format!("busybox nc -w 2 127.0.0.1 {} </dev/null", plain.port),
            "the host's loopback",
        ),
        (
            format!("busybox nc -w 2 ::1 {} </dev/null", plain.port),
            "the host's loopback by v6",
        ),
        (
            "busybox nc -w 2 169.254.169.254 80 </dev/null".to_owned(),
            "metadata",
        ),
        (
            "busybox nc -w 2 8.8.8.8 53 </dev/null".to_owned(),
            "an address",
        ),
        (
            "ping -c 1 -W 1 127.0.0.2 >/dev/null 2>&1; busybox wget -q -T 2 -O - http://127.0.0.2/"
                .to_owned(),
            "another loopback address",
        ),
    ] {
        let said = house.run(&format!("timeout 10 sh -c '{script}'")).await;
        assert_ne!(said.code, Some(0), "{what}: {} {}", said.out, said.err);
    }
    assert_eq!(plain.seen.connections(), 3, "{:?}", plain.seen.requests());

    // And what goes through it to somewhere else, byte for byte.
    let cases = [
        (
            "GET http://denied.test/ HTTP/1.1\r\nHost: denied.test\r\n\r\n".to_owned(),
            "not-listed",
        ),
        (
            format!(
                "CONNECT denied.test:{} HTTP/1.1\r\nHost: denied.test:{}\r\n\r\n",
                tls.port, tls.port
            ),
            "not-listed",
        ),
        (
            "CONNECT allowed.test:22 HTTP/1.0\r\n\r\n".to_owned(),
            "port-not-listed",
        ),
        (
            "CONNECT 127.0.0.1:1 HTTP/1.0\r\n\r\n".to_owned(),
            "address-not-listed",
        ),
        (
            "CONNECT [::1]:1 HTTP/1.0\r\n\r\n".to_owned(),
            "address-not-listed",
        ),
        (
            "CONNECT 0x7f.1:1 HTTP/1.0\r\n\r\n".to_owned(),
            "address-spelling",
        ),
        (
            "CONNECT 2130706433:1 HTTP/1.0\r\n\r\n".to_owned(),
            "address-spelling",
        ),
        (
            "CONNECT 0177.0.0.1:1 HTTP/1.0\r\n\r\n".to_owned(),
            "address-spelling",
        ),
        (
            "CONNECT [::ffff:127.0.0.1]:1 HTTP/1.0\r\n\r\n".to_owned(),
            "address-spelling",
        ),
        (
            "CONNECT 169.254.169.254:80 HTTP/1.0\r\n\r\n".to_owned(),
            "address-not-listed",
        ),
        (
            format!("GET http://{at}/ HTTP/1.1\r\nHost: denied.test\r\n\r\n"),
            "host-mismatch",
        ),
        (
            format!("GET https://{secure}/ HTTP/1.1\r\nHost: {secure}\r\n\r\n"),
            "scheme",
        ),
    ];
    for (n, (request, _)) in cases.iter().enumerate() {
        house.put(&format!("q{n}"), request.as_bytes());
    }
    let all = format!(
        "for n in $(seq 0 {}); do timeout 10 busybox nc 127.0.0.1 3128 < q$n > a$n; done; for n in $(seq 0 {}); do grep X-Portcullis a$n || echo none; done",
        cases.len() - 1,
        cases.len() - 1
    );
    let said = house.run(&all).await;
    let words: Vec<&str> = said
        .out
        .lines()
        .map(|line| line.trim().trim_start_matches("X-Portcullis-Egress: "))
        .collect();
    let expected: Vec<&str> = cases.iter().map(|(_, word)| *word).collect();
    assert_eq!(words, expected, "{}", said.err);
    let denied = records(&house.audit, "egress.deny", cases.len()).await;
    for (record, word) in denied.iter().zip(&expected) {
        assert_eq!(record["detail"]["reason"], **word);
        assert_eq!(record["detail"]["agent"], "demo");
        assert!(
            record["detail"]["runs"].as_str().unwrap().contains("run-"),
            "{record}"
        );
    }
    let said = house.run("cat a0").await;
    assert!(
        said.out.contains("denied.test:80 is not on the list")
            && said.out.contains("To ask for it"),
        "{}",
        said.out
    );
    assert_eq!(plain.seen.connections(), 3);
    assert_eq!(tls.seen.connections(), 0);

    // Its way out breaks and comes back at the same place; what runs in the box goes on.
    let script = format!(
        "printf 'GET http://{BREAKS}/ HTTP/1.0\\r\\n\\r\\n' | busybox nc 127.0.0.1 3128; echo broken; \
         for n in $(seq 100); do {get} && break; sleep 0.1; done"
    );
    let said = house.run(&script).await;
    assert_eq!(said.out, "broken\nhello", "{}", said.err);

    // A real client over TLS, where the box has one.
    if !docker {
        assert!(
            std::path::Path::new("/usr/bin/curl").exists(),
            "apt-get install curl"
        );
        house.put("ca.pem", authority.pem.as_bytes());
        let said = house
            .run(&format!("curl -sS --cacert ca.pem https://{secure}/"))
            .await;
        assert_eq!(
            (said.out.as_str(), said.code),
            ("hello", Some(0)),
            "{}",
            said.err
        );
        let said = house.run(&format!("curl -sS --cacert ca.pem --connect-to denied.test:443:{secure} https://denied.test/")).await;
        assert_ne!(said.code, Some(0));
        assert_eq!(
            tls.seen
                .requests()
                .iter()
                .filter(|seen| seen.starts_with("sni allowed.test"))
                .count(),
            1
        );
    }
    house.tree.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_native_box_reaches_what_its_list_names_and_nothing_else() {
    what_a_box_reaches_is_what_its_list_names(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_docker_box_reaches_what_its_list_names_and_nothing_else() {
    what_a_box_reaches_is_what_its_list_names(true).await;
}

async fn a_box_without_a_list_has_no_way_out(docker: bool) {
    let mut house = House::stand(docker, &[]).await;
    let said = house
        .run("env | grep -ic proxy; ls /run/portcullis; busybox nc -w 2 127.0.0.1 3128 </dev/null; echo $?")
        .await;
    let of_etc = ["hosts", "passwd", "group"];
    let lines: Vec<&str> = said
        .out
        .lines()
        .filter(|line| !of_etc.contains(line))
        .collect();
    assert_eq!(lines, ["0", "s", "1"], "{}", said.err);
    let profile = house
        .pool
        .profile(AgentId::new("demo").unwrap(), None)
        .await
        .unwrap();
    assert!(profile.egress.is_empty());
    house.tree.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_native_box_without_a_list_has_no_way_out() {
    a_box_without_a_list_has_no_way_out(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_docker_box_without_a_list_has_no_way_out() {
    a_box_without_a_list_has_no_way_out(true).await;
}

/// One of several agents, and a session's that was made before anybody had it.
async fn a_box_of_another_scope_has_the_way_out_of_who_has_it(docker: bool) {
    let plain = Upstream::plain().await;
    let at = |name: &str| format!("{name}.test:{}", plain.port);
    let says = |scope, names: &[&str]| Overrides {
        scope: Some(scope),
        egress: Rules::new(names.iter().map(|name| at(name))).ok(),
        ..Overrides::default()
    };
    let agents = [
        ("a", says(Scope::Shared, &["a", "both"])),
        ("b", says(Scope::Shared, &["b", "both"])),
        ("s", says(Scope::Session, &["s"])),
    ];
    let mut house = House::stand_with(docker, &[], &agents).await;
    for name in ["a", "b", "both", "s"] {
        house.names.set(&format!("{name}.test"), &[&["127.0.0.1"]]);
    }
    for (agent, name, reaches) in [
        ("a", "both", true),
        ("a", "a", false),
        ("a", "b", false),
        ("b", "both", true),
        ("b", "a", false),
        ("b", "b", false),
        ("s", "s", true),
        ("s", "both", false),
    ] {
        let get = format!("busybox wget -q -O - http://{}/", at(name));
        let said = house.run_as(agent, &get).await;
        let what = format!("{agent} to {name}: {} {}", said.out, said.err);
        assert_eq!(said.code == Some(0), reaches, "{what}");
    }
    assert_eq!(plain.seen.connections(), 3);
    let allowed = records(&house.audit, "egress.allow", 3).await;
    let whose: Vec<_> = allowed
        .iter()
        .map(|record| {
            (
                record["principal"].clone(),
                record["detail"]["agent"].clone(),
            )
        })
        .collect();
    let pair = |principal: &str, whose: &str| (principal.into(), whose.into());
    let shared = pair("shared:default", "shared:default");
    assert_eq!(whose, [shared.clone(), shared, pair("agent:s", "s")]);
    house.tree.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_native_box_that_agents_share_reaches_what_each_of_their_lists_names() {
    a_box_of_another_scope_has_the_way_out_of_who_has_it(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_docker_box_that_agents_share_reaches_what_each_of_their_lists_names() {
    a_box_of_another_scope_has_the_way_out_of_who_has_it(true).await;
}

/// Two lists are two profiles.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_list_is_part_of_what_contains_a_run() {
    let mut hashes = std::collections::BTreeSet::new();
    for rules in [
        vec![],
        vec!["a.test:443".to_owned()],
        vec!["b.test:443".to_owned()],
    ] {
        let house = House::stand(false, &rules).await;
        let profile = house
            .pool
            .profile(AgentId::new("demo").unwrap(), None)
            .await
            .unwrap();
        hashes.insert(profile.profile_hash);
        house.tree.stop().await;
    }
    assert_eq!(hashes.len(), 3);
}

/// The bug: all boxes together had four lookups, and two boxes held all of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_native_box_finds_names_while_another_agents_wait_for_theirs() {
    let host = Upstream::plain().await;
    let at = format!("allowed.test:{}", host.port);
    let mut house = House::stand(false, &[at.clone(), "*.hangs.test:80".to_owned()]).await;
    house.names.set("allowed.test", &[&["127.0.0.1"]]);
    // A lookup cannot be called back: it goes on when its run has ended.
    let ask = |n| format!("busybox wget -q -O - http://a{n}.hangs.test/ >/dev/null 2>&1 &");
    let many: String = (0..6).map(ask).collect();
    let busy = house
        .run(&format!(
            "{many} sleep 1; timeout 3 busybox wget -O - http://{at}/ 2>&1; true"
        ))
        .await;
    assert!(!busy.out.contains("hello"), "{}", busy.out);
    let other = house
        .run_as(
            "other",
            &format!("timeout 8 busybox wget -q -O - http://{at}/"),
        )
        .await;
    assert_eq!(
        (other.out.as_str(), other.code),
        ("hello", Some(0)),
        "{}",
        other.err
    );
    house.tree.stop().await;
}

/// By the programs that agents have, where the box has them: the native driver's has this machine's.
async fn programs_reach_a_host_whose_tls_is_opened(docker: bool) {
    let authority = Authority::of(&["api.test"], false);
    let host = Upstream::echo(&authority).await;
    let at = format!("api.test:{}", host.port);
    let opening = Opening {
        terminate: github(&at),
        agents: None,
        client: Some(authority.client.clone()),
    };
    let mut house =
        House::stand_opening(docker, std::slice::from_ref(&at), &[], Some(&opening)).await;
    house.names.set("api.test", &[&["127.0.0.1"]]);
    filled(house.vault.as_ref().unwrap()).await;

    let said = house.run("env | grep -e _CA -e CERT | sort; id -u; test -r /run/portcullis/ca.pem && head -1 /run/portcullis/ca.pem; echo > /run/portcullis/ca.pem").await;
    let named = [
        "AWS_CA_BUNDLE",
        "CARGO_HTTP_CAINFO",
        "CURL_CA_BUNDLE",
        "GIT_SSL_CAINFO",
        "NODE_EXTRA_CA_CERTS",
        "REQUESTS_CA_BUNDLE",
        "SSL_CERT_FILE",
    ];
    for name in named {
        assert!(
            said.out
                .contains(&format!("{name}=/run/portcullis/ca.pem\n")),
            "{name}: {}{}",
            said.out,
            said.err
        );
    }
    assert!(
        said.out.contains("-----BEGIN CERTIFICATE-----") && said.code != Some(0),
        "{}{}",
        said.out,
        said.err
    );
    if docker {
        // The default image has no program that verifies.
        house.tree.stop().await;
        return;
    }
    let url = format!("https://{at}");
    let python =
        format!("import urllib.request as u; print(u.urlopen('{url}/repos/py').read().decode())");
    let node = format!(
        "const h=require('http'),t=require('tls');const r=h.request({{host:'127.0.0.1',port:3128,method:'CONNECT',path:'{at}',headers:{{Host:'{at}'}}}});r.on('connect',(q,s)=>{{const c=t.connect({{socket:s,servername:'api.test'}},()=>c.write('GET /repos/node HTTP/1.1\\r\\nHost: {at}\\r\\n\\r\\n'));c.on('data',d=>process.stdout.write(d.toString()))}});r.end()"
    );
    let git = format!("git -c protocol.version=0 ls-remote {url}/repos/git; true");
    let programs = [
        ("curl", format!("curl -sS {url}/repos/curl"), "/repos/curl"),
        (
            "python3",
            format!("/usr/bin/python3 -c \"{python}\""),
            "/repos/py",
        ),
        ("node", format!("node -e \"{node}\""), "/repos/node"),
        ("git", git, "/repos/git/info/refs"),
    ];
    let mut ran = Vec::new();
    for (program, script, path) in programs {
        if house.run(&format!("command -v {program}")).await.code != Some(0) {
            continue;
        }
        ran.push(program);
        let said = house.run(&script).await;
        let seen = host.seen.requests();
        let reached = seen.iter().any(|seen| {
            seen.starts_with(&format!("GET {path}"))
                && seen.contains(&format!("Authorization: Bearer {SECRET}"))
        });
        assert!(reached, "{program}: {}{}{seen:#?}", said.out, said.err);
        assert!(
            program == "git" || said.out.contains("key=Bearer [secret]"),
            "{program}: {}{}",
            said.out,
            said.err
        );
        assert!(
            !said.out.contains("C4nary") && !said.err.contains("C4nary"),
            "{program}"
        );
    }
    assert!(
        ran.contains(&"curl") || ran.contains(&"python3"),
        "no program was tried: {ran:?}"
    );
    // In nothing that the box has: every variable, every file, every process, before and after.
    let look = "grep -r C4nar[y] /run /workspace /tmp /etc 2>/dev/null; for p in /proc/[0-9]*; do tr '\\0' '\\n' < $p/environ; tr '\\0' '\\n' < $p/cmdline; done 2>/dev/null | grep C4nar[y]; echo looked";
    assert_eq!(house.run(look).await.out, "looked\n");
    // A program that trusts this machine's authorities and no other is shown nothing that it would believe.
    if ran.contains(&"curl") {
        let said = house
            .run(&format!(
                "curl -sS --cacert /etc/ssl/certs/ca-certificates.crt {url}/repos/no; echo $?"
            ))
            .await;
        assert!(
            said.out.trim() == "60" || said.out.trim() == "77",
            "{}{}",
            said.out,
            said.err
        );
    }
    // Where no TLS is opened nothing is said of authorities.
    house.tree.stop().await;
    let mut house = House::stand(docker, &[at]).await;
    let said = house
        .run("env | grep -e _CA -e CERT; ls /run/portcullis")
        .await;
    assert!(!said.out.contains("ca.pem"), "{}", said.out);
    house.tree.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_of_a_native_box_reach_a_host_whose_tls_is_opened_and_never_see_the_secret() {
    programs_reach_a_host_whose_tls_is_opened(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_docker_box_trusts_the_gateways_authority_where_tls_is_opened_for_it() {
    programs_reach_a_host_whose_tls_is_opened(true).await;
}
