//! A command in a warm box: request to first byte with the intent durable, runs a second, and what a time-out leaves. The first
//! command of a fresh session, which reads and writes its agent's folder: in a box that was ready, and in one that was not.
//!
//! Native runs are measured beside a bare process of the host and plain bubblewrap, Docker's beside the engine's own exec in a
//! container of the same image, in turn. The engine is one of the bench's own; without Docker that half says so and is left out.
#![forbid(unsafe_code)]
#![allow(
    clippy::disallowed_methods,
    reason = "a bench waits for its child processes"
)]

mod support;

#[path = "../tests/support/engine.rs"]
#[allow(dead_code, reason = "a bench starts an engine and no more")]
mod engine;

#[path = "exec/beside.rs"]
mod beside;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use bollard::Docker;
use bollard::exec::{StartExecOptions, StartExecResults};
use bollard::models::{ContainerCreateBody, ExecConfig, HostConfig};
use bollard::query_parameters::RemoveContainerOptionsBuilder;
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use support::{Control, Running, State, control, least, line, median, percentile};
use tokio_tungstenite::tungstenite::Message;

const AGENT: &str = "demo";
/// Single runs, in rounds with one of the limit each.
const ROUNDS: usize = 60;
const PER_ROUND: usize = 5;
/// What one agent's box may have of the processors where runs are counted: both. With the default of one, its ceiling is what is measured.
const CPU: &str = "2000";
/// Runs of one agent that the gateway lets go at once.
const AT_ONCE: usize = 16;
const SPAN: Duration = Duration::from_secs(5);
const TIME_OUTS: usize = 15;
const LIMIT_MS: u64 = 200;
/// An agent each of whose sessions has a fresh box.
const SESSIONS: &str = "fresh";
/// Fresh sessions of each kind, in turn.
const FRESH: usize = 25;
/// Sessions that begin at once.
const BURST: usize = 8;
/// What a session's first command does.
const FIRST: &str = "echo x >> f; read -r line < f; echo $line";

#[tokio::main]
async fn main() -> Result<()> {
    if has("bwrap") {
        native().await?;
    } else {
        absent("bwrap", "native");
    }
    if ["dockerd", "containerd", "runc"].into_iter().all(has) {
        docker().await
    } else {
        absent("dockerd", "docker");
        Ok(())
    }
}

fn absent(program: &str, driver: &str) {
    println!(
        "NOT MEASURED: {program} is not installed, so the {driver} driver has no figures here"
    );
}

fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

async fn native() -> Result<()> {
    let state = State::with(vec![
        ("PORTCULLIS__SANDBOX__DRIVER", "native".into()),
        ("PORTCULLIS__SANDBOX__CPU_MILLIS", CPU.into()),
    ])?;
    let (gateway, _) = state.start()?;
    let mut client = Client::connect(&state).await?;
    client.warm_up().await?;
    let (mut ours, mut bare, mut plain) = (vec![], vec![], vec![]);
    for _ in 0..ROUNDS {
        for _ in 0..PER_ROUND {
            ours.push(millis(client.run(&["echo", "x"]).await?));
        }
        bare.push(millis(beside::first_byte(beside::bare())?));
        plain.push(millis(beside::bubblewrap_first_byte()?));
    }
    let bare = median(bare);
    println!(
        "native: a bare process of the host writes its first byte after {bare:.2} ms (median), one in plain bubblewrap after {:.2} ms",
        median(plain.clone())
    );
    told("native", &ours, median(ours.clone()) / bare, "bare process");
    println!(
        "native: ratio to plain bubblewrap, medians: {:.2}x",
        median(ours) / median(plain)
    );
    let rate = tokio::task::spawn_blocking(|| beside::bubblewrap_rate(AT_ONCE, SPAN)).await??;
    println!("native: plain bubblewrap, {AT_ONCE} at once: {rate:.0}/s");
    rest("native", &gateway, &mut client).await?;
    drop(gateway);
    let settings = vec![("PORTCULLIS__SANDBOX__DRIVER", "native".to_owned())];
    fresh("native", settings, None).await
}

async fn docker() -> Result<()> {
    let engine = engine::Engine::start();
    let state = State::with(vec![
        ("PORTCULLIS__SANDBOX__DRIVER", "docker".into()),
        ("PORTCULLIS__SANDBOX__ENGINE", engine.host()),
        ("PORTCULLIS__SANDBOX__CPU_MILLIS", CPU.into()),
    ])?;
    let (gateway, _) = state.start()?;
    let mut client = Client::connect(&state).await?;
    let image = client.warm_up().await?;
    let theirs = Engines::start(&engine, image.context("the run names no image")?).await?;
    theirs.exec().await?;
    let (mut ours, mut limit) = (vec![], vec![]);
    for _ in 0..ROUNDS {
        for _ in 0..PER_ROUND {
            ours.push(millis(client.run(&["echo", "x"]).await?));
        }
        limit.push(millis(theirs.exec().await?));
    }
    println!(
        "docker: the engine's own exec writes its first byte after {:.2} ms (median), {:.2} ms (p99)",
        median(limit.clone()),
        percentile(limit.clone(), 99),
    );
    let ratio = median(ours.clone()) / median(limit);
    told("docker", &ours, ratio, "engine's exec");
    let rate = theirs.rate().await?;
    println!("docker: the engine's own exec, {AT_ONCE} at once: {rate:.0}/s");
    rest("docker", &gateway, &mut client).await?;
    drop(gateway);
    let settings = vec![
        ("PORTCULLIS__SANDBOX__DRIVER", "docker".into()),
        ("PORTCULLIS__SANDBOX__ENGINE", engine.host()),
    ];
    fresh("docker", settings, Some(&theirs)).await?;
    theirs.stop().await
}

/// A gateway whose sessions find a box ready, one whose sessions do not, and what makes a box, in turn.
async fn fresh(
    driver: &str,
    settings: Vec<(&'static str, String)>,
    engine: Option<&Engines>,
) -> Result<()> {
    let with = |more: &[(&'static str, &str)]| {
        let both = [
            ("PORTCULLIS__AGENTS__FRESH__SANDBOX__SCOPE", "session"),
            ("PORTCULLIS__SANDBOX__MAX_BOXES", "64"),
            ("PORTCULLIS__SANDBOX__SESSIONS_PER_AGENT", "32"),
        ];
        let more = both.iter().chain(more);
        let more = more.map(|(name, value)| (*name, (*value).to_owned()));
        State::with(settings.iter().cloned().chain(more).collect())
    };
    let ready = with(&[("PORTCULLIS__SANDBOX__WARM_MAX", "8")])?;
    let bare = with(&[("PORTCULLIS__SANDBOX__WARM_MAX", "0")])?;
    let (ready_gateway, _) = ready.start()?;
    let (bare_gateway, _) = bare.start()?;
    let mut look = Client::connect(&ready).await?;
    let mut look_bare = Client::connect(&bare).await?;
    // The driver is proven, and what is read is in memory.
    for look in [&mut look, &mut look_bare] {
        look.run(&["echo", "x"]).await?;
    }
    let boxes = look_bare.pool().await?.1;
    let (mut warm, mut cold, mut limit) = (vec![], vec![], vec![]);
    let same = match engine {
        Some(engine) => Some((engine, engine.as_a_box().await?)),
        None => None,
    };
    for _ in 0..FRESH {
        look.until_ready(1).await?;
        let settled = look.pool().await?;
        warm.push(millis(first_command(&ready).await?));
        // The box that was used goes, and another is made for it: not beside what is measured next.
        let began = Instant::now();
        while look.pool().await? != settled && began.elapsed() < Duration::from_secs(5) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        cold.push(millis(first_command(&bare).await?));
        while look_bare.pool().await?.1 > boxes {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if let Some((engine, body)) = &same {
            limit.push(millis(engine.create_and_start(body).await?));
        }
    }
    line(
        &format!("{driver}: a fresh session's first byte, warm, p50"),
        median(warm.clone()),
        "ms",
        10.0,
    );
    println!(
        "{driver}: a fresh session's first byte, warm: {:.2} ms at most",
        percentile(warm, 100)
    );
    println!(
        "{driver}: a fresh session's first byte, cold: {:.2} ms (median)",
        median(cold.clone())
    );
    if engine.is_some() {
        println!(
            "{driver}: the engine's own create and start of the same container: {:.2} ms (median)",
            median(limit.clone())
        );
        line(
            &format!("{driver}: cold / the engine's create and start, medians"),
            median(cold) / median(limit),
            "x",
            1.1,
        );
    }
    burst(driver, &ready, &mut look).await?;
    look.until_ready(BURST).await?;
    let (count, held) = (look.pool().await?.1, ready_gateway.pid());
    let held = beside::held(held, engine.map(|engine| engine.folder.as_path()))?;
    ensure!(held > 0.0, "the processes of the boxes are not found");
    println!(
        "{driver}: {count} boxes in which nothing runs hold {:.2} MiB each (shared pages divided; their keepers with them)",
        held / 1024.0 / count as f64
    );
    drop((ready_gateway, bare_gateway));
    Ok(())
}

/// A session of its own: the connection, which ends with this.
async fn first_command(state: &State) -> Result<Duration> {
    let mut client = Client::connect(state).await?;
    client.agent = SESSIONS;
    client.run(&["sh", "-c", FIRST]).await
}

/// Sessions that begin at once, twice: the second time a box is ready for each.
async fn burst(driver: &str, state: &State, look: &mut Client) -> Result<()> {
    let mut firsts = vec![];
    for ready in [1, BURST] {
        look.until_ready(ready).await?;
        let mut clients = vec![];
        for _ in 0..BURST {
            let mut client = Client::connect(state).await?;
            client.agent = SESSIONS;
            clients.push(client);
        }
        let running = clients
            .iter_mut()
            .map(|client| client.run(&["sh", "-c", FIRST]));
        firsts = futures_util::future::try_join_all(running).await?;
        // Their sessions go on while the boxes are made anew.
        let began = Instant::now();
        let mut meanwhile = vec![];
        while look.pool().await?.0 < BURST {
            meanwhile.push(millis(look.run(&["echo", "x"]).await?));
            tokio::time::sleep(Duration::from_millis(10)).await;
            ensure!(began.elapsed() < Duration::from_mins(1), "none is made");
        }
        line(
            &format!("{driver}: {BURST} boxes ready again after a burst"),
            began.elapsed().as_secs_f64(),
            "s",
            4.0,
        );
        println!(
            "{driver}: meanwhile another agent's first byte: {:.2} ms (median), {:.2} ms (p99)",
            median(meanwhile.clone()),
            percentile(meanwhile, 99)
        );
    }
    let firsts: Vec<f64> = firsts.into_iter().map(millis).collect();
    println!(
        "{driver}: {BURST} fresh sessions at once, all warm, first bytes: {:.2} ms (median), {:.2} ms at most",
        median(firsts.clone()),
        percentile(firsts, 100)
    );
    Ok(())
}

fn told(driver: &str, ours: &[f64], ratio: f64, limit: &str) {
    line(
        &format!("{driver}: request to first byte, p50"),
        median(ours.to_vec()),
        "ms",
        3.0,
    );
    line(
        &format!("{driver}: request to first byte, p99"),
        percentile(ours.to_vec(), 99),
        "ms",
        15.0,
    );
    if driver == "docker" {
        line(
            &format!("{driver}: first byte / the {limit}'s, medians"),
            ratio,
            "x",
            1.0,
        );
    } else {
        println!("{driver}: ratio to the {limit}, medians: {ratio:.2}x");
    }
}

/// What both drivers owe without a limit beside it.
async fn rest(driver: &str, gateway: &Running, client: &mut Client) -> Result<()> {
    let (count, took) = client.many(&["echo", "x"]).await?;
    println!(
        "{driver}: runs a second of the box's own echo (a host's loads its libraries at each start): {:.0}/s",
        f64::from(count) / took.as_secs_f64()
    );
    // The target is for what a run costs, so both drivers start the very same program.
    let before = gateway.cpu()?;
    let (count, took) = client.many(&["busybox", "echo", "x"]).await?;
    let cpu = gateway.cpu()?.saturating_sub(before);
    println!(
        "{driver}: {:.0} us of the gateway's CPU a run",
        cpu.as_secs_f64() * 1e6 / f64::from(count)
    );
    least(
        &format!("{driver}: runs a second, {AT_ONCE} at once"),
        f64::from(count) / took.as_secs_f64(),
        "/s",
        1_000.0,
    );
    let mut over = vec![];
    for round in 0..TIME_OUTS {
        over.push(millis(client.time_out(round).await?) - LIMIT_MS as f64);
    }
    // Fifteen are too few for a p99: the worst counts.
    line(
        &format!("{driver}: time-out to nothing left, over the limit, worst"),
        percentile(over, 100),
        "ms",
        50.0,
    );
    Ok(())
}

fn millis(span: Duration) -> f64 {
    span.as_secs_f64() * 1e3
}

/// An operator who acts for the agent.
struct Client {
    socket: Control,
    agent: &'static str,
    next: u64,
}

impl Client {
    async fn connect(state: &State) -> Result<Self> {
        Ok(Self {
            socket: control(state).await?,
            agent: AGENT,
            next: 0,
        })
    }

    async fn begin(&mut self, argv: &[&str], timeout_ms: u64) -> Result<String> {
        self.next += 1;
        let id = self.next.to_string();
        // One that was used on another connection would be a repeat.
        let key = format!("{id}-{:?}", Instant::now());
        let params = json!({
            "argv": argv, "target": "sandbox", "agent": self.agent, "timeoutMs": timeout_ms,
            "idempotencyKey": key,
        });
        let frame = json!({ "type": "req", "id": id, "method": "exec.run", "params": params });
        self.socket.send(Message::text(frame.to_string())).await?;
        Ok(id)
    }

    /// Boxes that are ready, and all.
    async fn pool(&mut self) -> Result<(usize, usize)> {
        self.next += 1;
        let id = self.next.to_string();
        let frame = json!({ "type": "req", "id": id, "method": "status", "params": {} });
        self.socket.send(Message::text(frame.to_string())).await?;
        let (status, _) = self.end(&id).await?;
        let driver = &status["portcullis"]["driver"];
        let number = |value: &Value| value.as_u64().and_then(|n| usize::try_from(n).ok());
        number(&driver["warm"]["ready"])
            .zip(number(&driver["boxes"]))
            .context("the status does not tell of boxes")
    }

    async fn until_ready(&mut self, count: usize) -> Result<()> {
        let began = Instant::now();
        while self.pool().await?.0 < count {
            ensure!(began.elapsed() < Duration::from_mins(1), "none is ready");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    async fn frame(&mut self) -> Result<Value> {
        loop {
            let message = self.socket.next().await;
            let message = message.context("the gateway closed the socket")??;
            if let Message::Text(text) = message {
                return Ok(serde_json::from_str(text.as_str())?);
            }
        }
    }

    /// The last answer to this request, and when its first byte of output came.
    async fn end(&mut self, id: &str) -> Result<(Value, Option<Instant>)> {
        let mut first = None;
        loop {
            let mut frame = self.frame().await?;
            if frame["event"] == "exec.output" {
                first = first.or_else(|| Some(Instant::now()));
            }
            if frame["id"] != id {
                continue;
            }
            ensure!(frame["ok"] == true, "refused: {frame}");
            if frame["payload"]["status"] != "accepted" {
                return Ok((frame["payload"].take(), first));
            }
        }
    }

    /// Makes the box; the image that it is of.
    async fn warm_up(&mut self) -> Result<Option<String>> {
        let mut image = None;
        for _ in 0..20 {
            let id = self.begin(&["echo", "x"], 20_000).await?;
            let (end, _) = self.end(&id).await?;
            ensure!(end["exitCode"] == 0, "the first command failed: {end}");
            image = end["provenance"]["imageDigest"].as_str().map(str::to_owned);
        }
        Ok(image)
    }

    /// From the request to the first byte.
    async fn run(&mut self, argv: &[&str]) -> Result<Duration> {
        let began = Instant::now();
        let id = self.begin(argv, 20_000).await?;
        let (end, first) = self.end(&id).await?;
        ensure!(end["exitCode"] == 0, "the command failed: {end}");
        Ok(first.context("it wrote nothing")?.duration_since(began))
    }

    /// [`AT_ONCE`] under way, each followed by another; how many ended, and in what time.
    async fn many(&mut self, argv: &[&str]) -> Result<(u32, Duration)> {
        let began = Instant::now();
        let mut open = BTreeSet::new();
        for _ in 0..AT_ONCE {
            open.insert(self.begin(argv, 20_000).await?);
        }
        let mut count = 0;
        while !open.is_empty() {
            let frame = self.frame().await?;
            let Some(id) = frame["id"].as_str().filter(|id| open.contains(*id)) else {
                continue;
            };
            ensure!(frame["ok"] == true, "refused: {frame}");
            if frame["payload"]["status"] == "accepted" {
                continue;
            }
            ensure!(frame["payload"]["exitCode"] == 0, "failed: {frame}");
            open.remove(id);
            count += 1;
            if began.elapsed() < SPAN {
                open.insert(self.begin(argv, 20_000).await?);
            }
        }
        Ok((count, began.elapsed()))
    }

    /// A command that outstays its limit, with a child in a session of its own: how long until the answer, by when both
    /// must be gone.
    async fn time_out(&mut self, round: usize) -> Result<Duration> {
        let marker = format!("9{round:03}.{}", std::process::id());
        let script = format!("setsid sleep {marker} & exec sleep {marker}");
        let began = Instant::now();
        let id = self.begin(&["sh", "-c", &script], LIMIT_MS).await?;
        let (end, _) = self.end(&id).await?;
        let took = began.elapsed();
        ensure!(end["status"] == "timed-out", "not timed out: {end}");
        let left = processes_with(&marker)?;
        ensure!(left == 0, "{left} processes outlived their time-out");
        Ok(took)
    }
}

fn processes_with(word: &str) -> Result<usize> {
    let own = std::process::id().to_string();
    let mut count = 0;
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        // One that has just ended has no line.
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        if entry.file_name() != own.as_str() && line.contains(word) {
            count += 1;
        }
    }
    Ok(count)
}

/// The limit: a container of the same image, and the engine's exec in it.
struct Engines {
    engine: Docker,
    folder: std::path::PathBuf,
    image: String,
    container: String,
}

impl Engines {
    async fn start(engine: &engine::Engine, image: String) -> Result<Self> {
        let (socket, folder) = (engine.socket(), engine.folder().to_owned());
        let engine =
            Docker::connect_with_unix(&socket.to_string_lossy(), 30, bollard::API_DEFAULT_VERSION)?
                .negotiate_version()
                .await?;
        let body = ContainerCreateBody {
            image: Some(image.clone()),
            entrypoint: Some(vec!["/bin/sleep".into()]),
            cmd: Some(vec!["86400".into()]),
            host_config: Some(HostConfig {
                network_mode: Some("none".into()),
                ..HostConfig::default()
            }),
            ..ContainerCreateBody::default()
        };
        let made = engine.create_container(None, body).await?;
        engine.start_container(&made.id, None).await?;
        Ok(Self {
            engine,
            folder,
            image,
            container: made.id,
        })
    }

    /// What one of the gateway's own boxes was made of, for a container that does nothing: without its labels, so that no gateway takes it for its own.
    async fn as_a_box(&self) -> Result<ContainerCreateBody> {
        let all = self.engine.list_containers(None).await?;
        let one = all
            .into_iter()
            .filter_map(|found| found.id)
            .find(|id| *id != self.container);
        let one = one.context("the gateway has no box")?;
        let said = self.engine.inspect_container(&one, None).await?;
        let config = said.config.context("the engine does not say what it is")?;
        let host = said.host_config.context("nor how it is held")?;
        Ok(ContainerCreateBody {
            image: Some(self.image.clone()),
            entrypoint: Some(vec!["/bin/sleep".into()]),
            cmd: Some(vec!["86400".into()]),
            user: config.user,
            env: config.env,
            working_dir: config.working_dir,
            network_disabled: config.network_disabled,
            host_config: Some(HostConfig {
                restart_policy: None,
                ..host
            }),
            ..ContainerCreateBody::default()
        })
    }

    /// Such a container, made and started by the engine alone; removed outside the figure.
    async fn create_and_start(&self, body: &ContainerCreateBody) -> Result<Duration> {
        let began = Instant::now();
        let made = self.engine.create_container(None, body.clone()).await?;
        self.engine.start_container(&made.id, None).await?;
        let took = began.elapsed();
        let force = RemoveContainerOptionsBuilder::default().force(true).build();
        self.engine.remove_container(&made.id, Some(force)).await?;
        Ok(took)
    }

    /// From the request to the first byte; returns when the output has ended.
    async fn exec(&self) -> Result<Duration> {
        let began = Instant::now();
        let config = ExecConfig {
            attach_stdout: Some(true),
            cmd: Some(vec!["echo".into(), "x".into()]),
            ..ExecConfig::default()
        };
        let made = self.engine.create_exec(&self.container, config).await?;
        let started = self.engine.start_exec(&made.id, None::<StartExecOptions>);
        let StartExecResults::Attached { mut output, .. } = started.await? else {
            bail!("the engine did not attach");
        };
        output.next().await.context("it wrote nothing")??;
        let took = began.elapsed();
        while output.next().await.is_some() {}
        Ok(took)
    }

    async fn rate(&self) -> Result<f64> {
        let began = Instant::now();
        let runs = (0..AT_ONCE).map(|_| async {
            let mut count = 0_u32;
            while began.elapsed() < SPAN {
                self.exec().await?;
                count += 1;
            }
            anyhow::Ok(count)
        });
        let counts = futures_util::future::try_join_all(runs).await?;
        Ok(f64::from(counts.iter().sum::<u32>()) / began.elapsed().as_secs_f64())
    }

    async fn stop(&self) -> Result<()> {
        let force = RemoveContainerOptionsBuilder::default().force(true).build();
        self.engine
            .remove_container(&self.container, Some(force))
            .await?;
        Ok(())
    }
}
