//! Every room of the real tree panics, again and again, under live sockets: nobody else's socket is lost, every call is
//! answered, nothing acknowledged is lost, no command runs twice, and each room serves again.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use portcullis_actors::supervision::{PanicAt, RoomState};
use serde_json::{Value, json};

use super::house::House;
use super::load::{Tally, percentile};
use super::{figure, is_long, times};
use crate::protocol::signed_http::Signer;
use crate::support::ws::{Came, Client, Connect};

/// The rooms, and the call that shows that one serves.
const ROOMS: &[(&str, &str)] = &[
    ("audit", "audit.tail"),
    ("vault", "vault.list"),
    ("sinks", "status"),
    ("pairing", "device.pair.list"),
    ("signing", "POST /rpc/health"),
    ("auth", "connect"),
    ("sandbox_pool", "exec.run"),
    ("nodes", "node.list"),
    ("approval", "exec.approvals.get"),
    ("exec", "exec.run"),
    ("notices", "status"),
    ("dashboard", "dashboard.code"),
];
/// Of `ORDER`: the first is no room, the second has a test of its own here, the third is a child and breaks with those.
const ELSEWHERE: [&str; 3] = ["store", "edge", "connection"];
/// For anything at all.
const PATIENCE: Duration = Duration::from_mins(2);

#[test]
fn every_room_of_the_tree_is_among_those_that_break() {
    let mut order = portcullis::tree::ORDER.to_vec();
    order.retain(|name| !ELSEWHERE.contains(name));
    let rooms: Vec<&str> = ROOMS.iter().map(|(room, _)| *room).collect();
    assert_eq!(rooms, order);
}

/// What `/readyz` says now. Asked again while the kernel cannot tell who asks (see [`by_token`]).
async fn readyz(house: &House, wanted: &str, body: &str) {
    let end = Instant::now() + PATIENCE;
    loop {
        let ask = "GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        let answer = http(house, ask).await;
        if answer.starts_with(&format!("HTTP/1.1 {wanted} ")) && answer.ends_with(body) {
            return;
        }
        assert!(Instant::now() < end, "not {wanted} {body}: {answer}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The crashes are counted here, not the waits between them: no room is ever over its intensity.
async fn house() -> House {
    let house = House::stand(&[
        ("sandbox.driver", "native"),
        ("supervision.max_restarts", "1000000"),
        ("supervision.healthy_after_secs", "0"),
        ("exec.runs_per_agent", "64"),
    ])
    .await;
    let mut admin = house.admin().await;
    let tally = Tally::default();
    // The vault is open and the box is warm before anything breaks.
    while tally.run(&mut admin, "first").await.as_deref() != Some("exited")
        || !admin.call("vault.list", json!({})).await["ok"]
            .as_bool()
            .unwrap()
    {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    house
}

/// Who asks the rooms.
struct Asker {
    admin: Client,
    signer: Signer,
    n: u64,
}

impl Asker {
    async fn new(house: &House, n: u64) -> Self {
        let end = Instant::now() + PATIENCE;
        let signer = loop {
            // As in [`by_token`]: the kernel may not know yet who asks.
            if let Ok(client) = Client::dial_port(house.port()).await
                && let Some(signer) = Signer::paired_by(client, &["operator.read"]).await
            {
                break signer;
            }
            assert!(Instant::now() < end, "no key for signed requests");
        };
        Self {
            admin: house.admin().await,
            signer,
            n,
        }
    }
}

/// Whether the signed request is answered. What was signed before the room started is not, nor in that second.
async fn signs(house: &House, signer: &Signer) -> bool {
    let sent = signer.now_on(house.port(), "health", "").text();
    let answer = http(house, &sent).await;
    let is_answered = answer.starts_with("HTTP/1.1 200 ");
    if !is_answered {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    is_answered
}

async fn http(house: &House, sent: &str) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut socket = tokio::net::TcpStream::connect(("127.0.0.1", house.port()))
        .await
        .unwrap();
    let mut answer = String::new();
    let _ = socket.write_all(sent.as_bytes()).await;
    let _ = socket.read_to_string(&mut answer).await;
    answer
}

/// Asks the room for something. `true`: it serves.
async fn serves(house: &House, tally: &Tally, asker: &mut Asker, call: &str) -> bool {
    asker.n += 1;
    let Asker { admin, signer, n } = asker;
    let params = match call {
        "POST /rpc/health" => return signs(house, signer).await,
        "connect" => {
            let mut client = Client::try_control(&house.state()).await.unwrap();
            return client.try_hello(&Connect::bare()).await.is_some();
        }
        "exec.run" => {
            let end = tally.run(admin, &format!("probe-{n}")).await;
            return end.expect("the socket lives") == "exited";
        }
        "audit.tail" => json!({ "limit": 1 }),
        _ => json!({}),
    };
    let answer = tally.call(admin, call, params).await;
    answer.expect("the socket lives").is_ok()
}

async fn sockets(house: &House, tally: &Arc<Tally>) -> Vec<tokio::task::JoinHandle<()>> {
    let count = times(50, 500).max(50);
    let pause = Duration::from_millis(if is_long() { 500 } else { 100 });
    let light = [("health", json!({})), ("status", json!({}))];
    let broad: Vec<(&str, Value)> = [
        "health",
        "vault.list",
        "status",
        "device.pair.list",
        "exec.approvals.get",
        "audit.tail",
        "exec.approval.list",
    ]
    .map(|method| (method, json!({})))
    .to_vec();
    let mut tasks = vec![];
    for n in 0..count {
        let (tally, light, broad) = (tally.clone(), light.clone(), broad.clone());
        let client = if n % 2 == 0 {
            house.admin().await
        } else {
            by_token(house).await
        };
        tasks.push(tokio::spawn(async move {
            let id = n.to_string();
            match n % 50 {
                0 => tally.runs(client, &format!("r{id}"), pause).await,
                2 => tally.keeps_secrets(client, &format!("S{id}"), pause).await,
                _ if n % 4 == 0 => tally.goes_on(client, &broad, n, pause).await,
                _ => tally.goes_on(client, &light, n, pause).await,
            }
        }));
    }
    tasks
}

/// Over TCP. The kernel is asked who holds the other end, and while another test of this process starts a program that
/// one holds it for a moment too: then it is tried again.
async fn by_token(house: &House) -> Client {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        if let Ok(mut client) = Client::dial_port(house.port()).await
            && client
                .try_hello(&Connect::token().scopes(&["operator.read"]))
                .await
                .is_some()
            && client.call("status", json!({})).await["ok"] == true
        {
            return client;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("not let in");
}

async fn until(what: &str, mut test: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !test() {
        assert!(Instant::now() < end, "never: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// One room's panics, between messages and within them. How long it took from the panic until it was up, and until it
/// served (of those between messages: there the moment is known).
async fn breaks(
    house: &House,
    tally: &Tally,
    (room, call): (&str, &str),
    count: usize,
) -> [Vec<Duration>; 2] {
    let mut asker = Asker::new(house, 0).await;
    let (mut up, mut served) = (vec![], vec![]);
    for round in 0..count {
        let before = house.room(room).restarts;
        let at = match round % 4 {
            0 | 2 => PanicAt::Now,
            k => PanicAt::Await(u32::try_from(k / 2 + round / 4 % 3).unwrap()),
        };
        let began = Instant::now();
        let end = began + PATIENCE;
        until("the room is there to be broken", || {
            house.window().panic(room, at)
        })
        .await;
        if at == PanicAt::Now {
            until("it is up again", || {
                let now = house.room(room);
                now.restarts > before && matches!(now.state, RoomState::Up | RoomState::Waiting)
            })
            .await;
            up.push(began.elapsed());
            while !serves(house, tally, &mut asker, call).await {
                assert!(Instant::now() < end, "{room} does not serve again");
            }
            served.push(began.elapsed());
        } else {
            while house.room(room).restarts == before
                || !serves(house, tally, &mut asker, call).await
            {
                assert!(Instant::now() < end, "{room} does not serve again");
                if house.room(room).restarts == before {
                    // It breaks at the next message, whoever sends it: this may be the one.
                    serves(house, tally, &mut asker, call).await;
                }
            }
        }
        let name = format!("AFTER_{}", asker.n);
        tally.keep_secret(&mut asker.admin, &name).await;
    }
    let broken = house.room(room).restarts;
    assert!(broken >= count as u64, "{room}: {broken} restarts");
    [up, served].map(|mut times| {
        times.sort();
        times
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_room_panics_again_and_again_and_no_foreign_socket_is_lost() {
    let count = times(3, 100);
    let house = house().await;
    let tally = Arc::new(Tally::default());
    let tasks = sockets(&house, &tally).await;
    for room in ROOMS {
        let [up, served] = breaks(&house, &tally, *room, count).await;
        figure(&format!(
            "panics: {:12} {count} times under {} sockets; panic to up p50 {:?} p99 {:?}, to serving ({}) p50 {:?} p99 {:?}",
            room.0,
            tasks.len(),
            percentile(&up, 50),
            percentile(&up, 99),
            room.1,
            percentile(&served, 50),
            percentile(&served, 99),
        ));
        tally.check();
    }
    children_break(&house, &tally, count).await;
    tally.over.store(true, Relaxed);
    let sockets = tasks.len();
    for task in tasks {
        task.await.unwrap();
    }
    tally.check();
    let kept = house.admin().await.get("vault.list", json!({})).await;
    let kept: Vec<&str> = kept["entries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["name"].as_str().unwrap())
        .collect();
    let secrets = tally.secrets.lock().unwrap().clone();
    for secret in &secrets {
        assert!(kept.contains(&secret.as_str()), "{secret} was acknowledged");
    }
    let ran = tally.check_runs(&house.state().join("workspaces/demo"));
    until("every permit is back", || {
        let rooms = house.window().look().rooms;
        rooms
            .iter()
            .all(|room| room.gate.as_ref().unwrap().depth == 0)
    })
    .await;
    assert_eq!(house.fatal(), [""; 0]);
    figure(&format!(
        "panics: {sockets} sockets, 0 lost; {} good answers, {} to try again, 0 others, slowest {:?}; {} secrets kept, {ran} commands ran, none twice",
        tally.good.load(Relaxed),
        tally.retryable.load(Relaxed),
        tally.slowest(),
        secrets.len(),
    ));
    house.end().await;
}

/// A connection, a box, a run: each is its owner's child, and nobody but who uses it notices.
async fn children_break(house: &House, tally: &Tally, count: usize) {
    let restarts = |name| house.room(name).restarts;
    let before = ["edge", "sandbox_pool", "exec"].map(restarts);
    let mut asker = Asker::new(house, 0).await;
    for round in 0..count {
        let mut victim = house.admin().await;
        assert!(
            house
                .window()
                .panic("edge", PanicAt::YoungestChild("connection"))
        );
        while matches!(victim.next().await, Came::Frame(_)) {}

        for (owner, noun) in [("sandbox_pool", "sandbox"), ("exec", "run")] {
            let key = format!("{noun}-{round}");
            let mut other = house.admin().await;
            let run = tally.run(&mut other, &key);
            let fault = async {
                tokio::time::sleep(Duration::from_millis(u64::try_from(round % 8).unwrap())).await;
                assert!(house.window().panic(owner, PanicAt::YoungestChild(noun)));
            };
            let (end, ()) = tokio::join!(run, fault);
            assert!(end.is_some(), "the socket lives");
        }
        // A socket of this round: one that does not read answers no pings, and is closed for it.
        let end = Instant::now() + PATIENCE;
        asker.admin = house.admin().await;
        asker.n = 1_000_000 * (round as u64 + 1);
        while !serves(house, tally, &mut asker, "exec.run").await {
            assert!(Instant::now() < end, "runs go on");
        }
    }
    assert_eq!(before, ["edge", "sandbox_pool", "exec"].map(restarts));
    figure(&format!(
        "panics: connection, sandbox and run, {count} times each; their owners were not restarted"
    ));
}

/// The edge owns the sockets, so its panic ends them: every client comes back in, to the same address.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_edge_panics_again_and_again_and_every_client_comes_back() {
    let (count, sockets) = (times(3, 100), times(50, 500).max(50));
    let house = Arc::new(house().await);
    let mut back = vec![];
    let mut clients = vec![];
    for _ in 0..sockets {
        clients.push(house.admin().await);
    }
    let mut slowest = Duration::ZERO;
    for round in 0..count {
        let before = house.room("edge").restarts;
        let began = Instant::now();
        assert!(house.window().panic("edge", PanicAt::Now));
        let mut first = house.admin().await;
        while house.room("edge").restarts == before {
            first = house.admin().await;
        }
        first.get("health", json!({})).await;
        back.push(began.elapsed());
        // As many at once as the budget of strangers has room for.
        let door = Arc::new(tokio::sync::Semaphore::new(32));
        let mut tasks = tokio::task::JoinSet::new();
        for mut client in clients.drain(..) {
            let (house, door) = (house.clone(), door.clone());
            tasks.spawn(async move {
                while matches!(client.next().await, Came::Frame(_)) {}
                let _turn = door.acquire().await.unwrap();
                let mut client = house.admin().await;
                client.get("health", json!({})).await;
                client
            });
        }
        while let Some(client) = tasks.join_next().await {
            clients.push(client.unwrap());
        }
        slowest = slowest.max(began.elapsed());
        assert_eq!(house.room("edge").restarts, before + 1, "round {round}");
    }
    back.sort();
    figure(&format!(
        "panics: edge         {count} times under {sockets} sockets; panic to the first client back p50 {:?} p99 {:?}, to all back at most {slowest:?}",
        percentile(&back, 50),
        percentile(&back, 99),
    ));
    drop(clients);
    let Ok(house) = Arc::try_unwrap(house) else {
        panic!("somebody still holds the house");
    };
    house.end().await;
}

/// Of the real rooms, with the settings of a first start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pairing_over_its_intensity_stays_down_while_the_rest_serves_and_the_log_over_it_is_fatal()
{
    let house = House::stand(&[("sandbox.driver", "native")]).await;
    let mut admin = house.admin().await;
    readyz(&house, "200", r#"{"ready":true}"#).await;
    let end = Instant::now() + PATIENCE;
    while house.room("pairing").state != RoomState::Down {
        assert!(Instant::now() < end, "pairing is never given up");
        house.window().panic("pairing", PanicAt::Now);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(house.fatal(), Vec::<String>::new());
    // While it is down: its next try is thirty seconds away.
    readyz(&house, "503", r#"{"ready":false}"#).await;
    assert_eq!(house.room("pairing").state, RoomState::Down);
    let refused = admin.call("device.pair.list", json!({})).await;
    assert_eq!(
        refused["error"]["details"]["code"], "ROOM_DOWN",
        "{refused}"
    );
    assert_eq!(
        admin.call("audit.tail", json!({ "limit": 1 })).await["ok"],
        true
    );

    readyz(&house, "200", r#"{"ready":true}"#).await;
    assert_eq!(
        admin.call("device.pair.list", json!({})).await["ok"],
        true,
        "it is back"
    );
    let end = Instant::now() + PATIENCE;
    while house.fatal().is_empty() {
        assert!(
            Instant::now() < end,
            "a log that cannot stand is never fatal"
        );
        house.window().panic("audit", PanicAt::Now);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(
        house.fatal()[0].starts_with("audit: "),
        "{:?}",
        house.fatal()
    );
    drop(admin);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vault_over_its_intensity_is_fatal() {
    let house = House::stand(&[("sandbox.driver", "native")]).await;
    let end = Instant::now() + PATIENCE;
    while house.fatal().is_empty() {
        assert!(Instant::now() < end, "a vault that cannot stand is no end");
        house.window().panic("vault", PanicAt::Now);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(
        house.fatal()[0].starts_with("vault: "),
        "{:?}",
        house.fatal()
    );
}
